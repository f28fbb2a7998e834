"""What the functional tests ask of the system: mounts, FUSE connections, processes, loop devices.

Nothing here touches a path inside a mount: /proc and /sys answer even when a daemon hangs.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import ctypes
import os
import re
import resource
import select
import shlex
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30
PR_SET_CHILD_SUBREAPER = 36

# Debian's root has these in PATH, its users and some containers have not.
os.environ["PATH"] += ":/usr/sbin:/sbin"


@dataclass(frozen=True)
class MountEntry:
    mountpoint: str
    fstype: str
    source: str
    connection: int  # the FUSE connection's number: the minor of the mount's device


def free_port():
    """A TCP port of 127.0.0.1 that nobody listens on, for a server to be started."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _unescape(field):
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), field)


def mounts(below=None):
    """The mounts of this namespace, those at or below a directory only where one is given."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ", 1)
        fields, (fstype, source, *_) = left.split(), right.split()
        mountpoint = _unescape(fields[4])
        if below is None or mountpoint == str(below) or mountpoint.startswith(f"{below}/"):
            minor = int(fields[2].split(":")[1])
            found.append(MountEntry(mountpoint, fstype, _unescape(source), minor))
    return found


def is_mounted(mountpoint):
    return any(entry.mountpoint == str(mountpoint) for entry in mounts())


class Outside:
    """A shell for commands that must work while we have files open on a mount whose daemon hangs.

    A child of ours would hang as well, before its exec: closing such a file asks the daemon. The shell is
    started before the first test opens anything.
    """

    def __init__(self):
        self.lock = threading.Lock()
        self.shell = subprocess.Popen(["/bin/sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, *command, timeout=20):
        """What a command said, or that it did not end."""
        with self.lock, tempfile.NamedTemporaryFile("r", errors="replace") as output:
            line = f"timeout -k 5 {timeout} {shlex.join(map(str, command))} > {output.name} 2>&1 < /dev/null"
            self.shell.stdin.write(f"{line}; echo $?\n")
            self.shell.stdin.flush()
            ready, _, _ = select.select([self.shell.stdout], [], [], timeout + 10)
            if not ready:
                # It goes on in the way of the next; a new shell cannot be started safely any more.
                return f"{shlex.join(map(str, command))}: did not end"
            self.shell.stdout.readline()
            return output.read()


outside = Outside()


def connection_control(connection):
    """The directory by which the kernel lets root control a FUSE connection; not every machine has it mounted."""
    control = Path("/sys/fs/fuse/connections")
    if not (control / str(connection)).exists():
        outside.run("mount", "-t", "fusectl", "fusectl", control)
    return control / str(connection)


def abort_connection(entry):
    """Fail everything that waits for a FUSE daemon. Frees processes that no signal reaches."""
    if not entry.fstype.startswith("fuse"):
        return
    try:
        (connection_control(entry.connection) / "abort").write_text("1")
    except OSError:
        pass  # gone already, or we may not


def open_files(pid):
    """(device, inode) of the regular files that a process has open."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            status = link.stat()
            if stat.S_ISREG(status.st_mode):
                found.add((status.st_dev, status.st_ino))
    return found


def wait_until_unlocked(files, timeout):
    """Wait for the kernel, which closes what an io_uring refers to some time after its process has ended."""
    wanted = {f"{os.major(device):02x}:{os.minor(device):02x}:{inode}" for device, inode in files}
    deadline = time.monotonic() + timeout
    while wanted & set(Path("/proc/locks").read_text().split()):
        assert time.monotonic() < deadline, "the files of a killed daemon stay locked"
        time.sleep(0.02)


def clear_mounts(below):
    """Take away what a test left mounted, deepest first, dead daemons or not."""
    for entry in reversed(mounts(below)):
        abort_connection(entry)
        outside.run("umount", "-l", entry.mountpoint)


def loop_devices(below):
    """(device, backing file) of the loop devices on files below a directory."""
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = entry.read_text().strip()
        except OSError:
            continue
        if backing.startswith(f"{below}/"):
            found.append((f"/dev/{entry.parts[3]}", backing))
    return found


def become_subreaper():
    """Adopt daemons that fork into the background, so that their exit status can be seen."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


@dataclass(frozen=True)
class ProcessEntry:
    pid: int
    parent: int
    state: str
    argv: tuple


def processes():
    found = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            stat = (directory / "stat").read_text()
            argv = (directory / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        state, parent = stat.rsplit(")", 1)[1].split()[:2]
        found.append(ProcessEntry(int(directory.name), int(parent), state, tuple(argv.split("\0")[:-1])))
    return found


def children(mentioning):
    """Live children of ours with an argument that contains a text (a test's directory)."""
    return [p for p in processes() if p.parent == os.getpid() and p.state != "Z"
            and any(str(mentioning) in word for word in p.argv)]


class AdoptedProcess:
    """A background daemon, with those methods of subprocess.Popen that the tests use."""

    def __init__(self, pid):
        self.pid = pid
        self.returncode = None

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.005)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def stacks_of(pid, with_gdb):
    """What every thread of a process is doing, for a failure's bundle.

    Not with gdb where it may hang in a mount: gdb would wait for it, too.
    """
    text = [f"==== process {pid}"]
    for name in ("cmdline", "status", "wchan", "limits"):
        text += [f"---- /proc/{pid}/{name}", _read(f"/proc/{pid}/{name}").replace("\0", " ")]
    for task in sorted(Path(f"/proc/{pid}/task").glob("*")):
        text += [f"---- kernel stack of {task.name} ({_read(task / 'comm').strip()})", _read(task / "stack")]
    return "\n".join([*text, _gdb("-p", str(pid)) if with_gdb else ""])


def stacks_of_core(binary, core):
    """Where a process that dumped its memory was."""
    return f"==== {core}\n{_gdb(str(binary), str(core))}"


def _gdb(*target):
    return "---- gdb\n" + outside.run("gdb", "-nx", "-batch", "-ex", "set pagination off",
                                      "-ex", "thread apply all backtrace 40", *target, timeout=30)


def allow_core_dumps():
    """For processes that we start; where the kernel writes core files, they go to the working directory."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))


def _read(path):
    try:
        return Path(path).read_text(errors="replace")
    except OSError as error:
        return f"({error})"


def keeps_holes_and_direct_io(directory):
    """Whether a file system does what disks' do: O_DIRECT, and holes that can be punched."""
    probe = Path(directory) / f".probe-{os.getpid()}"
    try:
        fd = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
        try:
            os.ftruncate(fd, MiB)
            return subprocess.run(["fallocate", "-p", "-l", "64k", probe], timeout=10, check=False,
                                  stderr=subprocess.DEVNULL).returncode == 0
        finally:
            os.close(fd)
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)


def file_system_of(directory):
    """The type of the file system that holds a directory, as stat(1) names it."""
    return subprocess.run(["stat", "-f", "-c", "%T", directory], timeout=10, check=True,
                          capture_output=True, text=True).stdout.strip()
