"""What only shows in how the kernel and the front end work together.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import errno
import mmap
import os
import signal
import subprocess

import pytest

import harness
import system
from fileio import opened, pattern
from system import MiB

SIZE = 16 * MiB


def test_aio_readers_do_not_notice_o_trunc(place):
    """Opening with O_TRUNC leaves a fixed length alone, also in the eyes of the kernel's asynchronous reads.

    (qemu-io takes a read that finds the end of the file for zeroes, and then misses its pattern.)
    """
    place.image("disk.img", SIZE, b"Z" * SIZE)
    disk = place.mount(harness.DISK)
    command = ["stdbuf", "-oL", "qemu-io", "-r", "-f", "raw", "-n", "-i", "native", disk.file("disk")]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as reader:
        for offset in range(0, SIZE, MiB):
            reader.stdin.write(f"read -P {ord('Z')} {offset} 4096\n")
            reader.stdin.flush()
            while "ops" not in (line := reader.stdout.readline()):
                assert line and "failed" not in line
            os.close(os.open(disk.file("disk"), os.O_WRONLY | os.O_TRUNC))
        rest = reader.communicate("quit\n", timeout=60)[0]
    assert "failed" not in rest
    assert os.stat(disk.file("disk")).st_size == SIZE


def test_ftruncate_is_no_o_trunc(disk):
    with opened(disk.file("disk")) as fd:
        os.ftruncate(fd, 0)
        assert os.fstat(fd).st_size == 0
    assert (disk.place.path / "disk.img").stat().st_size == 0


def test_dirty_mapping_survives_the_end(disk):
    """SIGTERM while somebody has written through a mapping and not synced: it reaches the image."""
    with opened(disk.file("disk")) as fd, mmap.mmap(fd, SIZE) as mapping:
        mapping[8192:8196] = b"late"
        disk.stop()
        # The mapping is dead now; what it held is not.
        image = (disk.place.path / "disk.img").read_bytes()
        assert image[8192:8196] == b"late"


def test_appending_processes_do_not_overwrite_each_other(place):
    place.image("log.img", size=0)
    daemon = place.mount("[node log]\ndriver=file\nfilename=log.img\n"
                         "[export log]\nnode=log\nwritable=on\ngrowable=on\n")
    writers, lines = 4, harness.count(200, 2000)
    script = ("import os, sys\n"
              "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)\n"
              f"for i in range({lines}): os.write(fd, sys.argv[2].encode() * 100)\n")
    running = [subprocess.Popen(["/usr/bin/python3", "-c", script, daemon.file("log"), letter])
               for letter in "abcd"[:writers]]
    assert [process.wait(timeout=60) for process in running] == [0] * writers
    data = daemon.file("log").read_bytes()
    assert len(data) == writers * lines * 100
    records = [data[i:i + 100] for i in range(0, len(data), 100)]
    assert all(len(set(record)) == 1 for record in records)
    assert [records.count(letter.encode() * 100) for letter in "abcd"] == [lines] * writers


def test_no_question_about_capabilities_for_each_write(place, disk):
    """Without the right INIT flags the kernel asks for security.capability before every write."""
    disk.stop()
    daemon = place.mount(harness.DISK, "-d", stderr_allowed=".")
    with opened(daemon.file("disk")) as fd:
        for i in range(100):
            os.pwrite(fd, b"x" * 4096, i * 4096)
    daemon.stop()
    log = daemon.said()
    assert log.count(" WRITE (16)") == 100
    assert log.count(" GETXATTR (22)") < 20


def test_requests_are_as_large_as_agreed(place, disk):
    disk.stop()
    daemon = place.mount(harness.DISK, "-d", stderr_allowed=".")
    with opened(daemon.file("disk"), os.O_RDWR | os.O_DIRECT) as fd:
        buffer = mmap.mmap(-1, 4 * MiB)
        buffer.write(pattern(4 * MiB))
        assert os.pwritev(fd, [buffer], 0) == 4 * MiB
        assert os.preadv(fd, [buffer], 0) == 4 * MiB
    daemon.stop()
    assert daemon.said().count(" WRITE (16)") == daemon.said().count(" READ (15)") == 4


def test_abort_by_the_administrator(place, disk):
    """As HACKING.md says for a hanging mount: the connection ends, and the daemon takes the dead mount away."""
    control = system.connection_control(os.minor(os.stat(disk.mountpoints[0]).st_dev))
    fd = os.open(disk.file("disk"), os.O_RDONLY)
    try:
        (control / "abort").write_text("1", encoding="ascii")
        with pytest.raises(OSError) as error:
            os.pread(fd, 512, 0)
        assert error.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)
    disk.wait_exit()


def test_something_mounted_over_the_mount_is_left_alone(place, disk):
    disk.stderr_allowed = "mounted over it"
    mountpoint = disk.mountpoints[0]
    place.run("mount", "-t", "tmpfs", "cover", mountpoint)
    try:
        disk.process.send_signal(signal.SIGTERM)
        disk.process.wait(timeout=20 * harness.TIME_SCALE)
        assert [e.fstype for e in system.mounts(mountpoint)][-1] == "tmpfs"
    finally:
        place.run("umount", mountpoint)  # the cover
        place.run("umount", mountpoint)  # what the daemon could not reach
    disk.wait_exit()


def test_another_mount_at_the_same_place_survives(place, disk):
    """The daemon's mount was taken away lazily and something else is there: it is not the daemon's to unmount."""
    mountpoint = disk.mountpoints[0]
    with opened(disk.file("disk"), os.O_RDONLY) as fd:
        place.run("umount", "-l", mountpoint)
        place.run("mount", "-t", "tmpfs", "other", mountpoint)
        try:
            assert len(os.pread(fd, 512, 0)) == 512
            disk.process.send_signal(signal.SIGTERM)
            disk.process.wait(timeout=20 * harness.TIME_SCALE)
            assert [e.fstype for e in system.mounts(mountpoint)] == ["tmpfs"]
        finally:
            place.run("umount", mountpoint)
    disk.wait_exit()


@pytest.mark.parametrize("below", ["", ".graph", "no/such/directory"])
def test_dead_mountpoint_is_named(place, disk, below):
    os.stat(disk.mountpoints[0])  # the kernel remembers the root's attributes for a second
    disk.crash()
    done = place.run(place.binary, "-f", "mnt.conf", disk.mountpoints[0] / below, check=False)
    assert done.returncode == 1
    assert "died" in done.stderr and f"fusermount3 -u {disk.mountpoints[0]}" in done.stderr
    place.run("fusermount3", "-u", disk.mountpoints[0])
