"""The command line: --help, --version, going to the background, PID file, queues, order of options, fstab words.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

import harness
import system
from fileio import opened
from harness import DISK
from system import MiB


def threads(daemon):
    """The names of the daemon's threads."""
    task = f"/proc/{daemon.pid}/task"
    return [open(f"{task}/{tid}/comm", encoding="utf-8").read().strip() for tid in os.listdir(task)]


@pytest.fixture
def source(place):
    place.image("disk.img", MiB, b"content")
    return place.write("graph.conf", DISK)


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(place, option):
    done = place.run(place.binary, option)
    assert done.stdout.startswith("usage: blockgraphfs") and done.stderr == ""
    assert all(len(line) <= 90 for line in done.stdout.splitlines())


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(place, option):
    done = place.run(place.binary, option)
    assert done.stdout.startswith("blockgraphfs ") and done.stderr == ""


def test_help_to_a_full_device_fails(place):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([place.binary, "--help"], stdout=full, check=False)
    assert done.returncode == 1


def test_no_arguments(place):
    done = place.run(place.binary, check=False)
    assert done.returncode == 1
    assert "SOURCE and MOUNTPOINT" in done.stderr and "--help" in done.stderr


@pytest.mark.parametrize("words", [["-s"], ["-o", "queues=1"]], ids=" ".join)
def test_one_queue(place, source, words):
    mountpoint = place.directory()
    daemon = place.start(*words, source, mountpoint, mountpoints=[mountpoint])
    assert len([name for name in threads(daemon) if name.startswith("queue")]) == 1


def test_queues_are_threads(place, source):
    mountpoint = place.directory()
    daemon = place.start("-o", "queues=5", source, mountpoint, mountpoints=[mountpoint])
    assert sorted(name for name in threads(daemon) if name.startswith("queue")) == [f"queue{i}" for i in range(5)]


def test_iothreads_of_the_graph_serve_the_queues(place, source):
    with open(source, "a", encoding="utf-8") as graph:
        graph.write("\n[iothread one]\n[iothread two]\n")
    mountpoint = place.directory()
    daemon = place.start(source, mountpoint, mountpoints=[mountpoint])
    names = threads(daemon)
    assert "one" in names and "two" in names
    assert not [name for name in names if name.startswith("queue")]


def cpu_ticks(daemon):
    fields = pathlib.Path(f"/proc/{daemon.pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.parametrize("poll", ["0", "1000000"])
def test_an_idle_mount_uses_no_cpu(place, source, poll):
    """Neither before the first request nor after a load that made the loop look for requests."""
    mountpoint = place.directory()
    daemon = place.start("--object", f"iothread,id=io,poll-max-ns={poll}", source, mountpoint, mountpoints=[mountpoint])
    with opened(daemon.file("disk"), os.O_RDONLY) as fd:
        for _ in range(2):
            before = cpu_ticks(daemon)
            time.sleep(1)
            assert cpu_ticks(daemon) - before <= 2  # of 10 ms
            for _ in range(2000):
                os.pread(fd, 4096, 0)


def test_options_after_and_between_operands(place, source):
    mountpoint = place.directory()
    daemon = place.start(source, "-o", "ro", mountpoint, "-s", mountpoints=[mountpoint])
    assert daemon.file("disk").read_bytes()[:7] == b"content"
    with pytest.raises(OSError):
        os.open(daemon.file("disk"), os.O_RDWR)


def test_graph_and_command_line_together(place, source):
    """Nodes of both refer to each other."""
    mountpoint = place.directory()
    daemon = place.start("--blockdev", "raw,node-name=window,offset=3,size=4,file=disk", source, mountpoint,
                         mountpoints=[mountpoint])
    assert os.listdir(mountpoint) == ["window"]
    assert daemon.file("window").read_bytes() == b"tent"


def test_graph_file_without_mountpoint(place):
    """With a mountpoint for each export the directory may be left out; the command stays in the foreground."""
    place.image("disk.img", MiB, b"content")
    target = place.write("target", "")
    source = place.write("graph.conf", DISK + "[export e]\nnode = disk\nmountpoint = target\n")
    daemon = place.start(source, mountpoints=[target], background=False)
    assert target.read_bytes()[:7] == b"content"
    daemon.stop()


def test_relative_names_are_relative_to_the_graph_file(place):
    sub = place.directory("sub")
    place.image("sub/disk.img", MiB, b"below")
    source = place.write("sub/graph.conf", DISK)
    mountpoint = place.directory()
    daemon = place.start(os.path.relpath(source, place.path), os.path.relpath(mountpoint, place.path),
                         mountpoints=[mountpoint])
    assert daemon.file("disk").read_bytes()[:5] == b"below"
    assert str(sub) in daemon.graph("graph.txt")


def test_image_with_relative_name_in_the_background(place):
    place.image("disk.img", MiB, b"relative")
    mountpoint = place.directory()
    daemon = place.start("--format=raw", "disk.img", mountpoint, mountpoints=[mountpoint], background=True)
    assert daemon.file("disk.img").read_bytes()[:8] == b"relative"
    daemon.umount()


def test_image_name_with_comma_colon_and_space(place):
    place.image("a,b: c=d.img", MiB, b"odd")
    mountpoint = place.directory()
    daemon = place.start("--format=raw", "./a,b: c=d.img", mountpoint, mountpoints=[mountpoint])
    assert daemon.file("a,b: c=d.img").read_bytes()[:3] == b"odd"
    entry = [line.split() for line in open("/proc/self/mounts", encoding="utf-8") if str(mountpoint) in line]
    assert entry[0][0] == "./a,b:\\040c=d.img"


def test_block_device_as_image(place):
    image = place.image("disk.img", MiB, b"device")
    mountpoint = place.directory()
    with place.loop(image) as device:
        daemon = place.start("--format=raw", device, mountpoint, mountpoints=[mountpoint])
        [name] = os.listdir(mountpoint)
        assert name == os.path.basename(device)
        assert daemon.file(name).read_bytes()[:6] == b"device"
        daemon.stop()


def test_mount_table(place, source):
    mountpoint = place.directory()
    place.start("-o", "fsname=a\\,b,subtype=lab,noexec,max_read=65536", source, mountpoint,
                mountpoints=[mountpoint])
    [entry] = [line.split() for line in open("/proc/self/mounts", encoding="utf-8") if str(mountpoint) in line]
    assert entry[0] == "a,b"
    assert entry[2] == "fuse.lab"
    assert "noexec" in entry[3].split(",") and "max_read=65536" in entry[3].split(",")


# ---- Background, PID file


def test_daemonize_without_mountpoint(place):
    image, target = place.image("disk.img", MiB, b"content"), place.write("target", "")
    daemon = place.start("--daemonize", "--pidfile", "pid", "--blockdev", f"file,node-name=n,filename={image}",
                         "--export", f"fuse,id=e,node-name=n,mountpoint={target}", mountpoints=[target],
                         background=True)
    assert int((place.path / "pid").read_text()) == daemon.pid
    daemon.stop()
    assert not (place.path / "pid").exists()


def test_pidfile(place, source):
    mountpoint, pidfile = place.directory(), place.path / "pid"
    pidfile.write_text("a stale one, longer than a process id\n")
    daemon = place.start("--pidfile", pidfile, source, mountpoint, mountpoints=[mountpoint])
    assert pidfile.read_text() == f"{daemon.pid}\n"
    other = place.directory("other")
    done = place.run(place.binary, "-f", "--pidfile", pidfile, "-o", "ro", source, other, check=False)
    assert done.returncode == 1 and str(pidfile) in done.stderr
    assert not system.is_mounted(other)
    assert pidfile.read_text() == f"{daemon.pid}\n"
    daemon.stop()
    assert not pidfile.exists()


def test_pidfile_of_a_failed_start_is_removed(place):
    mountpoint = place.directory()
    place.refuse("--pidfile", "pid", "--format=raw", "absent.img", mountpoint)
    source = place.write("graph.conf", DISK)  # no disk.img
    place.refuse("--pidfile", "pid", source, mountpoint)
    assert not (place.path / "pid").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs")
def test_pidfile_on_a_full_disk_is_removed(place, source):
    full = place.directory("full")
    place.run("mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", full)
    try:
        (full / "filler").write_bytes(bytes(4096))
        done = place.run(*place.wrapper, place.binary, "-f", "--pidfile", full / "pid", source, place.directory(),
                         check=False)
        assert done.returncode == 1 and "No space left" in done.stderr, done.stderr
        assert os.listdir(full) == ["filler"]
    finally:
        place.run("umount", full)


@pytest.mark.parametrize("name", ["fifo", "directory", "absent/pid", "/dev/null"])
def test_bad_pidfile(place, source, name):
    os.mkfifo(place.path / "fifo")
    place.directory("directory")
    assert name in place.refuse("--pidfile", name, source, place.directory())


def test_status_of_a_killed_start(place):
    """What ends the daemon before it is up is told by the command that waits for it."""
    image = place.image("disk.img", MiB)
    # A mountpoint below a FUSE mount that never answers would do; a stopped daemon is simpler.
    below = place.directory("below")
    first = place.start("--format=raw", image, below, mountpoints=[below])
    first.process.send_signal(signal.SIGSTOP)
    mountpoint = place.directory()
    waiting = subprocess.Popen([place.binary, "--format=raw", below / "disk.img", mountpoint], cwd=place.path,
                               stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(0.3)
        assert waiting.poll() is None
    finally:
        first.process.send_signal(signal.SIGCONT)
    _, message = waiting.communicate(timeout=20)
    assert waiting.returncode == 1, message  # a file inside one of our mounts is refused
    assert "disk.img" in message
    assert not system.is_mounted(mountpoint)


# ---- Signals


def test_hangup_is_ignored_with_a_message(place, source):
    mountpoint = place.directory()
    daemon = place.start(source, mountpoint, mountpoints=[mountpoint], stderr_allowed="SIGHUP is ignored")
    daemon.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 10
    while "SIGHUP" not in daemon.said() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "SIGHUP is ignored" in daemon.said()
    assert daemon.file("disk").read_bytes()[:7] == b"content"


@pytest.mark.timing
def test_sigterm_of_idle_mounts_ends_at_once(place, source):
    mountpoint = place.directory()
    daemon = place.start(source, mountpoint, mountpoints=[mountpoint])
    daemon.file("disk").read_bytes()
    started = time.monotonic()
    daemon.stop()
    assert time.monotonic() - started < 1.0


def test_sigterm_waits_for_a_slow_request(place):
    """Requests in flight complete; a second signal changes nothing."""
    mountpoint = place.directory()
    daemon = place.start("--blockdev", "null-co,node-name=slow,size=1M,latency-ns=1500000000", "none", mountpoint,
                         mountpoints=[mountpoint], stderr_allowed="already stopping")
    result = []

    def read():
        fd = os.open(daemon.file("slow"), os.O_RDONLY)
        try:
            result.append(os.pread(fd, 4096, 0))
        finally:
            with contextlib.suppress(OSError):  # the mount may have gone
                os.close(fd)

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.5)
    daemon.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_exit()
    reader.join(timeout=20)
    assert result == [bytes(4096)]
    assert "already stopping" in daemon.said()


def test_notification_in_the_background(place, source):
    address = str(place.path / "notify")
    mountpoint = place.directory()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(address)
        notify.settimeout(20)
        daemon = place.start(source, mountpoint, mountpoints=[mountpoint], background=True,
                             env={"NOTIFY_SOCKET": address})
        lines = notify.recv(4096).decode().splitlines()
        assert "READY=1" in lines and f"MAINPID={daemon.pid}" in lines
        daemon.umount()


# ---- Ordinary users


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which takes root")
def test_ordinary_user(place):
    """Through fusermount3, with /dev/fuse open to all as distributions have it."""
    if not shutil.which("fusermount3") or not os.stat("/dev/fuse").st_mode & 0o006 == 0o006:
        pytest.skip("needs fusermount3 and a /dev/fuse that is open to users")
    image = place.image("disk.img", MiB, b"mine")
    mountpoint = place.directory()
    binary = place.path / "blockgraphfs"
    shutil.copy(place.binary, binary)
    for path in (place.path, place.path.parent):
        path.chmod(0o755)
    for path in (image, mountpoint):
        os.chown(path, 65534, 65534)
    user = {"user": 65534, "group": 65534, "extra_groups": []}
    try:
        place.run(binary, "--format=raw", image, mountpoint, **user)
        [entry] = system.mounts(mountpoint)
        assert entry.fstype == "fuse.blockgraphfs"
        assert place.run("head", "-c", "4", mountpoint / "disk.img", **user).stdout == "mine"
        done = place.run("cat", mountpoint / "disk.img", check=False)  # not even root, without allow_other
        assert done.returncode != 0
    finally:
        place.run("fusermount3", "-u", mountpoint, check=False, **user)
    for process in system.children(mountpoint):
        system.AdoptedProcess(process.pid).wait(timeout=20)


# ---- JSON in all places


def test_json_everywhere(place):
    image = place.image("disk.img", MiB, b"json")
    mountpoint = place.directory()
    inner = json.dumps({"driver": "file", "filename": str(image)}).replace(",", ",,")
    daemon = place.start("--blockdev", f"raw,node-name=a,file=json:{inner}",
                         "--object", json.dumps({"qom-type": "iothread", "id": "io"}),
                         "--export", json.dumps({"type": "fuse", "id": "e", "node-name": "a"}),
                         "none", mountpoint, mountpoints=[mountpoint])
    assert daemon.file("e").read_bytes()[:4] == b"json"


def test_json_with_dotted_keys(place):
    """Behind json:, as QEMU writes it; JSON elsewhere is QMP's, which has none."""
    image, mountpoint = place.image("disk.img", MiB, b"json"), place.directory()
    dotted = {"driver": "raw", "file.driver": "file", "file.filename": "disk.img"}
    daemon = place.start(f"json:{json.dumps(dotted)}", mountpoint, mountpoints=[mountpoint])
    assert daemon.file("disk.img").read_bytes()[:4] == b"json"
    daemon.umount()
    inner = "json:" + json.dumps({"driver": "raw", "file": {"driver": "raw"}, "file.file.driver": "file",
                                  "file.file.filename": str(image)})
    daemon = place.start("--blockdev", json.dumps({"driver": "raw", "node-name": "a", "file": inner}),
                         "none", mountpoint, mountpoints=[mountpoint])
    assert daemon.file("a").read_bytes()[:4] == b"json"
    daemon.umount()
    refused = json.dumps({**dotted, "node-name": "a"})
    assert "name with dots" in place.refuse("--blockdev", refused, "none", mountpoint)
    graph = place.write("graph.json", f'{{"nodes": [{refused}]}}')
    assert "name with dots" in place.refuse(graph, mountpoint)
    twice = json.dumps({**dotted, "file": {"driver": "file"}})
    assert "given more than once" in place.refuse(f"json:{twice}", mountpoint)


def test_signals_until_the_very_end(place):
    """SIGTERM again and again until the process has gone: never its default action."""
    for number in range(harness.count(3, 30)):
        mountpoint = place.directory(f"mnt{number}")
        daemon = place.start("--blockdev", "null-co,node-name=n,size=1M", "none", mountpoint,
                             mountpoints=[mountpoint], stderr_allowed="already stopping")
        while daemon.process.poll() is None:
            daemon.process.send_signal(signal.SIGTERM)
            daemon.process.send_signal(signal.SIGINT)
        daemon.wait_exit()
