"""The functional tests' instruments: a work place per test, the daemons started in it, commands.

A test that uses the `place` fixture gets a directory on a disk's file system and starts daemons there.
What the harness checks without being asked, when a daemon is stopped and when the test ends:
exit status 0, nothing said on stderr, no sanitizer report, no mount, process or loop device left.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import system

TIME_SCALE = float(os.environ.get("BG_TIME_SCALE", "1"))  # for sanitizers, valgrind, slow machines
LONG = os.environ.get("BG_LONG", "") not in ("", "0")
PATIENCE = TIME_SCALE * (15 if LONG else 1)  # with whole tests and commands; what has a deadline keeps it
SANITIZER_REPORT = re.compile(
    r"ERROR: AddressSanitizer|ERROR: LeakSanitizer|WARNING: ThreadSanitizer|runtime error:")

# The smallest useful graph: one raw image, exported as "disk".
DISK = """\
[node disk]
driver = raw
file.driver = file
file.filename = disk.img
"""


def default_binary():
    return Path(__file__).resolve().parents[2] / "build" / "blockgraphfs"


def count(default, long):
    """How often to repeat: few times for everybody, many with BG_LONG=1."""
    return long if LONG else default


def wait_for_port(port, process, log):
    """Until the server `process`, which writes to `log`, listens on a port of 127.0.0.1."""
    deadline = time.monotonic() + 20 * TIME_SCALE
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return
        assert process.poll() is None, f"the server ended with status {process.returncode}: {log.read_text()}"
        assert time.monotonic() < deadline, f"the server does not listen: {log.read_text()}"
        time.sleep(0.01)


class Daemon:
    """One blockgraphfs: started, awaited, stopped, and checked when it ends."""

    def __init__(self, place, argv, mountpoints, env=None, background=False, stderr_allowed=None):
        self.place = place
        self.argv = [*place.wrapper, str(place.binary), *([] if background else ["-f"]), *map(str, argv)]
        self.mountpoints = [Path(m) for m in mountpoints]
        self.stderr_allowed = stderr_allowed
        number = len(place.daemons)
        self.log = place.path / f"daemon-{number}.log"
        self.sanitizer_log = place.path / f"daemon-{number}.sanitizer"
        self.env = {**os.environ, **self._sanitizer_env(), **(env or {})}
        self.expected_status = 0
        self.finished = False
        place.record(self.argv, background=not background, env=env)
        self.process = self._start_background() if background else self._start_foreground()
        place.daemons.append(self)  # only now: one that failed to start has no process to ask

    def _sanitizer_env(self):
        # In the background stderr is gone, so reports go to files.
        return {"ASAN_OPTIONS": f"log_path={self.sanitizer_log}:{os.environ.get('ASAN_OPTIONS', '')}",
                "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={self.sanitizer_log}",
                "TSAN_OPTIONS": f"log_path={self.sanitizer_log} {os.environ.get('TSAN_OPTIONS', '')}"}

    def _start_foreground(self):
        with open(self.log, "wb") as log:
            return subprocess.Popen(self.argv, cwd=self.place.path, env=self.env,
                                    stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _start_background(self):
        with open(self.log, "wb") as log:
            launcher = subprocess.Popen(self.argv, cwd=self.place.path, env=self.env,
                                        stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            status = launcher.wait(timeout=20 * TIME_SCALE)
        except subprocess.TimeoutExpired:
            launcher.kill()
            raise AssertionError(f"did not go to the background in time; it said: {self.said()}") from None
        assert status == 0, f"exit status {status}; it said: {self.said()}"
        assert all(map(system.is_mounted, self.mountpoints)), "returned 0, but nothing is mounted"
        known = {d.process.pid for d in self.place.daemons}
        ours = [p for p in system.children(self.mountpoints[0]) if p.pid not in known]
        assert len(ours) == 1, f"expected one daemon in the background, found {ours}"
        return system.AdoptedProcess(ours[0].pid)

    def said(self):
        """All that came on stdout and stderr so far."""
        return self.log.read_text(errors="replace")

    @property
    def pid(self):
        return self.process.pid

    def is_running(self):
        return self.process.poll() is None

    def wait_ready(self, timeout=20):
        deadline = time.monotonic() + timeout * TIME_SCALE
        for mountpoint in self.mountpoints:
            while not self._is_served(mountpoint):
                status = self.process.poll()
                assert status is None, f"ended with status {status}; it said: {self.said()}"
                assert time.monotonic() < deadline, f"{mountpoint} not mounted in time; it said: {self.said()}"
                time.sleep(0.003)
            os.stat(mountpoint)
        return self

    def _is_served(self, mountpoint):
        return any(e.mountpoint == str(mountpoint) and e.fstype.startswith("fuse") for e in system.mounts())

    def file(self, name):
        return self.mountpoints[0] / name

    def graph(self, name):
        """The text of a file in .graph."""
        return (self.mountpoints[0] / ".graph" / name).read_text()

    def wait_exit(self, timeout=20):
        """Wait for the daemon to end, then check what it left."""
        try:
            self.process.wait(timeout=timeout * TIME_SCALE)
        except subprocess.TimeoutExpired:
            self.place.save_stacks("daemon that did not end in time")
            raise AssertionError(f"daemon {self.pid} did not end in {timeout * TIME_SCALE} s") from None
        self.check_end()

    def check_end(self):
        self.finished = True
        reports = [self.said()] + [p.read_text(errors="replace")
                                   for p in self.place.path.glob(f"{self.sanitizer_log.name}*")]
        for report in reports:
            assert not SANITIZER_REPORT.search(report), f"sanitizer report:\n{report}"
        assert self.process.returncode == self.expected_status, \
            f"exit status {self.process.returncode}; it said: {self.said()}"
        if self.expected_status >= 0:
            left = [e.mountpoint for m in self.mountpoints for e in system.mounts(m)]
            assert not left, f"still mounted after exit: {left}"
        unexpected = [line for line in self.said().splitlines() if not self._is_allowed(line)]
        assert not unexpected, "said on stderr:\n" + "\n".join(unexpected)

    def _is_allowed(self, line):
        if self.place.wrapper and line.startswith("=="):  # valgrind's own
            return True
        return bool(self.stderr_allowed and re.search(self.stderr_allowed, line))

    def stop(self, number=signal.SIGTERM, timeout=20):
        self.place.note(f"kill -{number} the daemon")
        self.process.send_signal(number)
        self.wait_exit(timeout)

    def umount(self, timeout=20):
        for mountpoint in self.mountpoints:
            self.place.run("umount", mountpoint)
        self.wait_exit(timeout)

    def crash(self):
        """kill -9: the mount stays, dead."""
        self.expected_status = -signal.SIGKILL
        self.place.note("kill -9 the daemon")
        files = system.open_files(self.process.pid)
        self.process.kill()
        self.process.wait(timeout=10)
        system.wait_until_unlocked(files, 20 * TIME_SCALE)
        self.finished = True


class Place:
    """A directory for one test, and all that the test started there."""

    def __init__(self, path, results, binary):
        self.path = path
        self.results = results
        self.binary = binary
        self.wrapper = shlex.split(os.environ.get("BG_WRAPPER", ""))
        self.daemons = []
        self.servers = []  # have stop(); ended after the daemons, which may need them for their last flush
        self.script = []
        self.bundled = False

    # ---- what goes into the reproduction script

    def record(self, argv, background=False, env=None):
        words = [f"{k}={shlex.quote(v)}" for k, v in (env or {}).items()] + [shlex.quote(str(w)) for w in argv]
        self.script.append(" ".join(words) + (" &\nsleep 1" if background else ""))

    def note(self, text):
        self.script.append(f"# here: {text}")

    # ---- files

    def image(self, name="disk.img", size=16 * system.MiB, data=None):
        """A sparse image, or one with the given content at its start."""
        path = self.path / name
        with open(path, "wb") as image:
            if data is not None:
                image.write(data)
            image.truncate(max(size, len(data or b"")))
        self.script.append(f"truncate -s {max(size, len(data or b''))} {path}"
                           + ("  # with content of the test's" if data else ""))
        return path

    def write(self, name, text):
        path = self.path / name
        path.write_text(text)
        self.script.append(f"cat > {path} <<'END'\n{text.rstrip()}\nEND")
        return path

    def directory(self, name="mnt"):
        path = self.path / name
        path.mkdir(exist_ok=True)
        self.script.append(f"mkdir -p {path}")
        return path

    # ---- commands

    def run(self, *argv, timeout=60, check=True, env=None, text=True, **kwargs):
        """Run a command in the work place; on a non-zero exit status fail with what it said."""
        argv = [str(word) for word in argv]
        self.record(argv, env=env)
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        process = subprocess.Popen(argv, cwd=self.path, env={**os.environ, **(env or {})}, text=text,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)
        try:
            out, err = process.communicate(timeout=timeout * PATIENCE)
        except subprocess.TimeoutExpired:
            self.save_stacks(f"command that did not end: {shlex.join(argv)}", process.pid)
            process.kill()
            raise AssertionError(f"did not end in {timeout * PATIENCE} s: {shlex.join(argv)}") from None
        done = subprocess.CompletedProcess(argv, process.returncode, out, err)
        assert not check or done.returncode == 0, \
            f"{shlex.join(argv)}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def client(self, *argv, **kwargs):
        """Run blockgraph, which lies beside the daemon."""
        done = self.run(*self.wrapper, self.binary.with_name("blockgraph"), *argv, **kwargs)
        assert not SANITIZER_REPORT.search(done.stderr), done.stderr
        return done

    # ---- daemons

    def start(self, *argv, mountpoints, **kwargs):
        """Start a daemon with these arguments and wait until it serves the mountpoints."""
        return Daemon(self, argv, mountpoints, **kwargs).wait_ready()

    def mount(self, graph, *options, at="mnt", **kwargs):
        """Mount a graph, given as the text of a graph file, on a directory of the place."""
        suffix = "json" if graph.lstrip().startswith("{") else "conf"
        source = self.write(f"{at}.{suffix}", graph)
        mountpoint = self.directory(at)
        return self.start(*options, source, mountpoint, mountpoints=[mountpoint], **kwargs)

    def refuse(self, *argv, timeout=20):
        """Start a daemon that must refuse: exit status 1, a message, nothing mounted. Returns the message."""
        command = [*self.wrapper, self.binary, "-f", *argv]
        done = self.run(*command, timeout=timeout, check=False)
        message = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("=="))
        assert done.returncode == 1, f"exit status {done.returncode}: {message}"
        assert not SANITIZER_REPORT.search(done.stderr), done.stderr
        assert message.strip(), "refused without a message"
        assert not system.mounts(self.path), "refused, but left a mount"
        return message

    @contextlib.contextmanager
    def loop(self, path, *options):
        """A loop device on a file; detached at the end."""
        device = self.run("losetup", "--find", "--show", *options, path).stdout.strip()
        try:
            yield device
        finally:
            self.run("losetup", "--detach", device)
            # The kernel lets go once nobody (a scanner of block devices, say) has it open.
            deadline = time.monotonic() + 10 * TIME_SCALE
            while device in dict(system.loop_devices(self.path)) and time.monotonic() < deadline:
                time.sleep(0.01)

    @contextlib.contextmanager
    def mounted(self, device, at="vm", options="rw"):
        """A kernel file system, mounted."""
        mountpoint = self.directory(at)
        kind = ["-t", "tmpfs"] if device == "tmpfs" else []
        self.run("mount", *kind, "-o", options, device, mountpoint)
        try:
            yield mountpoint
        finally:
            self.run("umount", mountpoint)

    # ---- the end

    def finish(self):
        """Stop what runs and check that nothing is left. Raises after everything is cleaned up."""
        problems = []
        for daemon in self.daemons:
            if daemon.finished:
                continue
            try:
                if daemon.is_running():
                    daemon.stop()
                else:
                    daemon.check_end()
            except AssertionError as error:
                problems.append(str(error))
        for server in self.servers:
            server.stop()
        problems += self.leftovers()
        if problems:
            self.bundle("the end of the test")
        self.emergency_stop()
        assert not problems, "\n".join(problems)

    def leftovers(self):
        problems = [f"left a loop device: {device} on {backing}"
                    for device, backing in system.loop_devices(self.path)]
        dead = [m for d in self.daemons if d.expected_status < 0 for m in map(str, d.mountpoints)]
        problems += [f"left a mount: {e.mountpoint}" for e in system.mounts(self.path)
                     if e.mountpoint not in dead]
        problems += [f"left a process: {p.pid} {shlex.join(p.argv)}" for p in system.children(self.path)]
        return problems

    def emergency_stop(self):
        """Nothing of ours may go on or hang, whatever state it is in."""
        for process in system.children(self.path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        for daemon in self.daemons:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                daemon.process.kill()
                daemon.process.wait(timeout=5)
        for device, _ in system.loop_devices(self.path):
            system.outside.run("losetup", "--detach", device)
        system.clear_mounts(self.path)

    def save_stacks(self, why, *more_pids):
        daemons = [d.pid for d in self.daemons if d.is_running()]
        others = {*more_pids, *(p.pid for p in system.children(self.path))} - {*daemons}
        self._append_stacks(f"######## {why}")
        for pid in [*daemons, *sorted(others)]:
            self._append_stacks(system.stacks_of(pid, with_gdb=pid in daemons))

    def _append_stacks(self, text):
        self.results.mkdir(parents=True, exist_ok=True)
        with open(self.results / "stacks.txt", "a", encoding="utf-8") as out:
            out.write(text + "\n")

    def _copy_small_files(self):
        # Of a mountpoint not even the type may be asked for: its daemon may hang.
        mounted = {entry.mountpoint for entry in system.mounts(self.path)}
        for entry in os.scandir(self.path):
            if entry.path in mounted or not entry.is_file(follow_symlinks=False):
                continue
            if entry.name.startswith("core"):
                self._append_stacks(system.stacks_of_core(self.binary, entry.path))
            elif entry.stat().st_size < 256 * system.KiB:
                shutil.copy(entry.path, self.results)

    def bundle(self, why):
        """Leave what one needs to see what happened: logs, stacks, mounts, a script to do it again."""
        if self.bundled:
            return
        self.bundled = True
        self.save_stacks(why)
        (self.results / "mounts.txt").write_text("\n".join(map(str, system.mounts())) + "\n")
        self._copy_small_files()
        script = "\n".join(self.script).replace(str(self.path), "$work").replace(
            str(self.binary), "$BLOCKGRAPHFS")
        # Words with $work in them were quoted for the path, which needs no quotes.
        reproduce = self.results / "reproduce.sh"
        reproduce.write_text("#!/bin/sh\n# Does what the test did, as far as it is commands.\n"
                             f": ${{BLOCKGRAPHFS:={self.binary}}}\nwork=$(mktemp -d)\ncd \"$work\"\nset -x\n"
                             f"{script}\n")
        reproduce.chmod(0o755)
