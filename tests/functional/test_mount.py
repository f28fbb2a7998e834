"""Mounting, listing and every way to an end: umount, signals, kill -9, mount(8), the background.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import errno
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

import harness
import system
from fileio import opened
from harness import DISK
from system import MiB


def as_installed(place):
    """A directory with the daemon under its installed name."""
    bin_dir = place.directory("bin")
    script = bin_dir / "blockgraphfs"
    script.write_text(f'#!/bin/sh\nexec {shlex.join([*place.wrapper, str(place.binary)])} "$@"\n')
    script.chmod(0o755)
    return bin_dir


def run_installed(place, *lines):
    """Run lines of shell where the daemon is installed.

    mount(8) hides PATH from its helpers, so a directory of the default path is covered, for these only.
    """
    script = "\n".join(["set -e", f"mount --bind {as_installed(place)} /usr/local/sbin", *lines])
    return place.run("unshare", "--mount", "sh", "-c", script)


def adopt_background_daemon(place, mountpoint):
    found = system.children(mountpoint)
    assert len(found) == 1, found
    return system.AdoptedProcess(found[0].pid)


@pytest.mark.valgrind
def test_list_and_umount(place, disk):
    assert os.listdir(disk.mountpoints[0]) == ["disk"]
    status = os.stat(disk.file("disk"))
    assert status.st_size == 16 * MiB
    disk.umount()
    assert os.listdir(disk.mountpoints[0]) == []
    assert (place.path / "disk.img").stat().st_size == 16 * MiB


def test_mount_table_names_the_source(place, disk):
    entry = system.mounts(disk.mountpoints[0])[0]
    assert entry.fstype == "fuse.blockgraphfs"
    assert entry.source.endswith("mnt.conf")


def test_nodes_without_parent_are_exported(place):
    place.image("a.img", 1 * MiB)
    place.image("b.img", 2 * MiB)
    daemon = place.mount("""
        [node a-file]
        driver = file
        filename = a.img

        [node a]
        driver = raw
        file = a-file

        [node b]
        driver = file
        filename = b.img
        read-only = on
        """)
    names = sorted(os.listdir(daemon.mountpoints[0]))
    assert names == ["a", "b"]
    assert os.stat(daemon.file("a")).st_mode & 0o777 == 0o600
    assert os.stat(daemon.file("b")).st_mode & 0o777 == 0o400
    with pytest.raises(OSError) as caught:
        fd = os.open(daemon.file("b"), os.O_RDWR)
        os.pwrite(fd, b"x", 0)
    assert caught.value.errno in (errno.EROFS, errno.EACCES, errno.EPERM)


def test_graph_in_json(place):
    place.image("disk.img", 1 * MiB, b"json")
    daemon = place.mount("""{
        "nodes": [{"driver": "raw", "node-name": "n",
                   "file": {"driver": "file", "filename": "disk.img"}}],
        "exports": [{"type": "fuse", "id": "vm.img", "node-name": "n", "writable": true}]
        }""")
    assert os.listdir(daemon.mountpoints[0]) == ["vm.img"]
    assert daemon.file("vm.img").read_bytes()[:4] == b"json"


def test_one_image_without_a_graph(place):
    image = place.image("disk.img", 1 * MiB)
    mountpoint = place.directory("mnt")
    daemon = place.start("--format=raw", image, mountpoint, mountpoints=[mountpoint])
    [name] = os.listdir(mountpoint)
    with open(daemon.file(name), "r+b") as export:
        export.write(b"shorthand")
    daemon.stop()
    assert image.read_bytes()[:9] == b"shorthand"


def test_one_image_probed_as_raw_is_read_only(place):
    image = place.image("disk.img", 1 * MiB)
    mountpoint = place.directory("mnt")
    daemon = place.start(image, mountpoint, mountpoints=[mountpoint], stderr_allowed=r"--format=raw")
    [name] = os.listdir(mountpoint)
    assert daemon.file(name).read_bytes() == bytes(MiB)
    with pytest.raises(OSError):
        with open(daemon.file(name), "r+b", buffering=0) as export:
            export.write(b"x")
    assert "--format=raw" in daemon.said()


@pytest.mark.valgrind
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_unmounts(disk, number):
    disk.stop(number)


def test_signal_with_open_file(disk):
    with opened(disk.file("disk")) as fd:
        os.pwrite(fd, b"before", 0)
        disk.stop()
        with pytest.raises(OSError):
            os.pread(fd, 6, 0)
    assert (disk.place.path / "disk.img").read_bytes()[:6] == b"before"


def test_kill_9_then_fusermount(place, disk):
    mountpoint = disk.mountpoints[0]
    disk.crash()
    with pytest.raises(OSError) as caught:
        os.listdir(mountpoint)
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    place.run("fusermount3", "-u", mountpoint)
    assert not system.is_mounted(mountpoint)
    again = place.mount(DISK)
    assert os.listdir(mountpoint) == ["disk"]
    again.stop()


@pytest.mark.timing
@pytest.mark.parametrize("event_loop", ["auto", "epoll"])
def test_auto_unmount(place, event_loop):
    if not shutil.which("fusermount3"):
        pytest.skip("needs fusermount3")
    place.image("disk.img")
    for i in range(3):
        daemon = place.mount(DISK, "--verbose", "-o", f"auto_unmount,event-loop={event_loop}", at=f"mnt{i}",
                             stderr_allowed=".")
        assert ("sake of auto_unmount" in daemon.said()) == (event_loop == "auto")
        daemon.file("disk").read_bytes()
        daemon.crash()
        if not leaves_by_itself(daemon.mountpoints[0], 2):
            # fusermount3 looked before the kernel had ended the connection: its race, see the man page.
            place.run("fusermount3", "-u", daemon.mountpoints[0], check=False)
        assert not system.is_mounted(daemon.mountpoints[0])


def leaves_by_itself(mountpoint, seconds):
    deadline = time.monotonic() + seconds
    while system.is_mounted(mountpoint) or system.children(mountpoint):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_umount_of_a_busy_mount_is_refused(place, disk):
    fd = os.open(disk.file("disk"), os.O_RDWR)
    done = place.run("umount", disk.mountpoints[0], check=False)
    assert done.returncode != 0 and "busy" in done.stderr
    os.pwrite(fd, b"still here", 0)
    assert os.pread(fd, 10, 0) == b"still here"
    os.close(fd)
    disk.umount()


def test_lazy_umount_serves_open_files_until_closed(place, disk):
    fd = os.open(disk.file("disk"), os.O_RDWR)
    place.run("umount", "-l", disk.mountpoints[0])
    os.pwrite(fd, b"lazy", 0)
    assert os.pread(fd, 4, 0) == b"lazy"
    assert disk.is_running()
    os.close(fd)
    disk.wait_exit()
    assert (place.path / "disk.img").read_bytes()[:4] == b"lazy"


def test_fusermount_unmounts(place, disk):
    place.run("fusermount3", "-u", disk.mountpoints[0])
    disk.wait_exit()


def test_background(place):
    place.image("disk.img")
    started = time.monotonic()
    daemon = place.mount(DISK, background=True)
    # The command has returned: the mount answers already, and the daemon holds on to nothing of ours.
    assert os.listdir(daemon.mountpoints[0]) == ["disk"]
    assert time.monotonic() - started < 10
    assert os.readlink(f"/proc/{daemon.pid}/cwd") == "/"
    assert os.getsid(daemon.pid) != os.getsid(0)
    for number in range(3):
        assert str(place.path) not in os.readlink(f"/proc/{daemon.pid}/fd/{number}")
    daemon.umount()


def test_background_closes_its_pipes(place):
    """Whoever starts it with pipes, as systemd, ssh or $(…) do, sees their end when the command returns."""
    place.image("disk.img")
    source, mountpoint = place.write("graph.conf", DISK), place.directory("mnt")
    done = place.run(*place.wrapper, place.binary, source, mountpoint, timeout=15)
    assert done.stdout == "" and (place.wrapper or done.stderr == "")
    daemon = adopt_background_daemon(place, mountpoint)
    place.run("umount", mountpoint)
    assert daemon.wait(timeout=20) == 0


def test_background_failure_is_reported(place):
    mountpoint = place.directory("mnt")
    source = place.write("graph.conf", DISK)  # disk.img is not there
    done = place.run(*place.wrapper, place.binary, source, mountpoint, check=False)
    assert done.returncode == 1
    assert "disk.img" in done.stderr and "disk" in done.stderr
    assert not system.is_mounted(mountpoint)
    assert not system.children(mountpoint)


def wait_until_gone(mountpoint):
    deadline = time.monotonic() + 20
    while system.children(mountpoint):
        assert time.monotonic() < deadline, "the daemon did not end"
        time.sleep(0.02)


def test_mount_by_type(place):
    place.image("disk.img")
    source, mountpoint = place.write("graph.conf", DISK), place.directory("mnt")
    done = run_installed(place, f"mount -t fuse.blockgraphfs {source} {mountpoint}", f"ls {mountpoint}",
                         f"grep {mountpoint} /proc/self/mounts", f"umount {mountpoint}")
    assert done.stdout.startswith(f"disk\n{source} {mountpoint} fuse.blockgraphfs rw,")
    wait_until_gone(mountpoint)


def test_fstab_line(place):
    place.image("disk.img")
    source, mountpoint = place.write("graph.conf", DISK), place.directory("mnt")
    options = "defaults,_netdev,noauto,nofail,user,x-systemd.automount,x-anything=1,ro"
    fstab = place.write("fstab", f"{source} {mountpoint} fuse.blockgraphfs {options} 0 0\n")
    done = run_installed(place, f"mount --fstab {fstab} {mountpoint}", f"ls {mountpoint}",
                         f"! touch -c {mountpoint}/disk", f"umount {mountpoint}")
    assert done.stdout == "disk\n"
    assert "Read-only file system" in done.stderr
    wait_until_gone(mountpoint)


def test_raw_image_in_fstab(place):
    """Writable: the format is given, not guessed."""
    image, mountpoint = place.image("disk.img"), place.directory("mnt")
    fstab = place.write("fstab", f"{image} {mountpoint} fuse.blockgraphfs format=raw,nofail 0 0\n")
    run_installed(place, f"mount --fstab {fstab} {mountpoint}",
                  f"printf written | dd of={mountpoint}/disk.img conv=notrunc,fsync", f"umount {mountpoint}")
    assert image.read_bytes()[:7] == b"written"
    wait_until_gone(mountpoint)


def mount_helper(place):
    """scripts/mount.blockgraphfs as make install would make it, for a daemon of ours."""
    as_installed(place)
    template = Path(__file__).resolve().parents[2] / "scripts/mount.blockgraphfs.in"
    helper = place.write("mount.blockgraphfs", template.read_text().replace("@sbindir@", str(place.path / "bin")))
    helper.chmod(0o755)
    return helper


def test_mount_helper(place):
    """As mount(8) calls it: with options that mean something else to the daemon."""
    place.image("disk.img")
    source, mountpoint = place.write("graph.conf", DISK), place.directory("mnt")
    helper = mount_helper(place)
    place.run(helper, source, mountpoint, "-s", "-n", "-o", "rw,noatime,_netdev")
    daemon = adopt_background_daemon(place, mountpoint)
    assert os.listdir(mountpoint) == ["disk"]
    place.run("umount", mountpoint)
    assert daemon.wait(timeout=20) == 0


def test_mount_helper_pretends(place):
    """mount -f does all but mount."""
    source, mountpoint = place.write("graph.conf", DISK), place.directory("mnt")
    done = place.run(mount_helper(place), source, mountpoint, "-f", "-v", "-o", "ro")
    assert str(mountpoint) in done.stdout and "ro" in done.stdout
    assert not system.is_mounted(mountpoint)
    assert not system.children(mountpoint)


@pytest.mark.parametrize("options", [["-o", "defaults"], ["-o", "_netdev,nofail"], ["-o", "users,noauto"],
                                     ["-o", "x-systemd.requires=network.target"], ["-o", "allow_other"],
                                     ["-o", "noatime,nosuid,nodev"], ["-s"], ["-o", "queues=1"],
                                     ["-o", "queues=3"], ["-o", "transport=dev"], ["-o", "transport=auto"]],
                         ids=" ".join)
def test_mount_options(place, options):
    place.image("disk.img", data=b"options")
    daemon = place.mount(DISK, *options)
    assert daemon.file("disk").read_bytes()[:7] == b"options"


def test_read_only_mount(place):
    place.image("disk.img")
    daemon = place.mount(DISK, "-o", "ro")
    assert daemon.file("disk").read_bytes() == bytes(16 * MiB)
    with pytest.raises(OSError) as caught:
        os.open(daemon.file("disk"), os.O_WRONLY)
    assert caught.value.errno == errno.EROFS


@pytest.mark.parametrize("event_loop", ["io_uring", "epoll"])
def test_event_loops(place, event_loop):
    place.image("disk.img")
    daemon = place.mount(DISK, "-o", f"event-loop={event_loop}")
    with open(daemon.file("disk"), "r+b", buffering=0) as export:
        assert export.write(b"loop") == 4
        os.fsync(export.fileno())
    daemon.stop()
    assert (place.path / "disk.img").read_bytes()[:4] == b"loop"


@pytest.mark.valgrind
def test_many_exports(place):
    number = 300
    graph = "".join(f"[node disk{i}]\ndriver = null-co\nsize = {i + 1}M\nread-zeroes = on\n"
                    for i in range(number))
    daemon = place.mount(graph)
    assert sorted(os.listdir(daemon.mountpoints[0])) == sorted(f"disk{i}" for i in range(number))
    for i in range(0, number, 37):
        assert os.stat(daemon.file(f"disk{i}")).st_size == (i + 1) * MiB
        with open(daemon.file(f"disk{i}"), "rb", buffering=0) as export:
            assert export.read(4096) == bytes(4096)
    inodes = {entry.inode() for entry in os.scandir(daemon.mountpoints[0])}
    assert len(inodes) == number


def test_several_daemons(place):
    for name in ("one", "two", "three"):
        place.image(f"{name}.img", MiB, name.encode())
    daemons = [place.mount(f"[node n]\ndriver = file\nfilename = {name}.img\n", at=name)
               for name in ("one", "two", "three")]
    for daemon, name in zip(daemons, ("one", "two", "three")):
        assert daemon.file("n").read_bytes().startswith(name.encode())
    daemons[1].stop()
    assert daemons[0].file("n").read_bytes().startswith(b"one")


def test_mount_and_unmount_again_and_again(place):
    place.image("disk.img")
    for i in range(10):
        daemon = place.mount(DISK)
        with open(daemon.file("disk"), "r+b", buffering=0) as export:
            export.seek(i * 4096)
            export.write(bytes([i + 1]) * 4096)
        daemon.umount() if i % 2 else daemon.stop()
    content = (place.path / "disk.img").read_bytes()
    assert [content[i * 4096] for i in range(10)] == list(range(1, 11))


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_mount_right_after_umount(place, kind):
    """umount(8) returns before the old daemon has flushed and unlocked the image."""
    place.image("disk.img")
    if kind == "directory":
        source, mountpoint = place.write("graph.conf", DISK), place.directory()
        words, export = [source, mountpoint], mountpoint / "disk"
    else:
        mountpoint = export = place.write("target", "")
        source = place.write("graph.conf", DISK + f"[export e]\nnode = disk\nwritable = on\nmountpoint = {export}\n")
        words = ["--daemonize", source]
    daemons = []
    for i in range(31):
        place.run(*place.wrapper, place.binary, *words)
        known = {daemon.pid for daemon in daemons}
        daemons += [system.AdoptedProcess(p.pid) for p in system.children(place.path) if p.pid not in known]
        with open(export, "r+b", buffering=0) as file:
            file.write(bytes([i]) * MiB)
        place.run("umount", mountpoint)
    assert len(daemons) == 31
    assert [daemon.wait(timeout=20) for daemon in daemons] == 31 * [0]


def test_lock_that_stays_is_refused(place):
    image, source, mountpoint = place.image("disk.img"), place.write("graph.conf", DISK), place.directory()
    if not shutil.which("qemu-io"):
        pytest.skip("needs qemu-io")
    with subprocess.Popen(["qemu-io", "-f", "raw", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            holder.stdin.write(b"length\n")
            holder.stdin.flush()
            assert b"16 MiB" in holder.stdout.readline()  # it is open
            started = time.monotonic()
            message = place.refuse(source, mountpoint)
            assert "another process holds" in message and "disk.img" in message, message
            assert 0.9 < time.monotonic() - started < 5 * harness.TIME_SCALE
            waiting = subprocess.Popen([place.binary, "-f", source, mountpoint])
            time.sleep(0.3)
        finally:
            holder.stdin.close()
            holder.wait(timeout=10)
    try:
        deadline = time.monotonic() + 10
        while not system.is_mounted(mountpoint):
            assert waiting.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(timeout=20) == 0


def test_busy_mountpoint_is_refused(place, disk):
    """A file that another daemon of ours writes cannot be opened a second time for writing."""
    second = place.directory("second")
    done = place.run(*place.wrapper, place.binary, "-f", place.path / "mnt.conf", second, check=False)
    assert done.returncode == 1
    assert "disk.img" in done.stderr
    assert not system.is_mounted(second)
    assert os.listdir(disk.mountpoints[0]) == ["disk"]


def test_readiness_notification(place):
    """What systemd's Type=notify waits for."""
    place.image("disk.img")
    address = str(place.path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(address)
        notify.settimeout(20)
        daemon = place.mount(DISK, env={"NOTIFY_SOCKET": address})
        assert b"READY=1" in notify.recv(4096)
        daemon.stop()
        rest = []
        notify.settimeout(0.1)
        try:
            while True:
                rest.append(notify.recv(4096))
        except TimeoutError:
            pass
        assert any(b"STOPPING=1" in message for message in rest)


def test_deleting_the_mountpoint_is_refused(disk):
    with pytest.raises(OSError) as caught:
        os.rmdir(disk.mountpoints[0])
    assert caught.value.errno == errno.EBUSY


def test_dead_mount_gives_errors_not_hangs(place, disk):
    with opened(disk.file("disk")) as fd:
        disk.crash()
        with pytest.raises(OSError):
            os.pread(fd, 4096, 0)
    done = subprocess.run(["umount", disk.mountpoints[0]], timeout=20, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
