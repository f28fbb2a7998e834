"""Errors from below reach the writer as themselves, are counted and named, and the daemon serves on.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import errno
import os

import pytest

import fileio
from fileio import opened
from system import KiB, MiB


@pytest.fixture
def small_disk(place):
    """A directory on a file system of 8 MiB."""
    directory = place.directory("small")
    place.run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", directory)
    yield directory
    for daemon in place.daemons:
        if daemon.is_running():
            daemon.stop()
    place.run("umount", directory)


def test_enospc_from_below(place, small_disk):
    with open(small_disk / "disk.img", "wb") as image:
        image.truncate(64 * MiB)
    daemon = place.mount("[node disk]\ndriver = raw\nfile.driver = file\nfile.node-name = host\n"
                         "file.filename = small/disk.img\n")
    with opened(daemon.file("disk")) as fd:
        with pytest.raises(OSError) as caught:
            for i in range(64):
                os.pwrite(fd, fileio.pattern(MiB, i), i * MiB)
        assert caught.value.errno == errno.ENOSPC
        assert i >= 6, "failed before the file system was full"
        assert os.pread(fd, MiB, 3 * MiB) == fileio.pattern(MiB, 3), "what was written is not there"
        errors = daemon.graph("errors")
        assert "host" in errors and "ENOSPC" in errors
        assert b"ENOSPC" in os.getxattr(daemon.file("disk"), "user.blockgraph.last-error")
        assert "error" in daemon.graph("metrics")
        fileio.punch_hole(fd, 0, 4 * MiB)
        os.pwrite(fd, b"room again", 50 * MiB)
        assert os.pread(fd, 10, 50 * MiB) == b"room again"


@pytest.mark.parametrize("option", ["aio = threads", "aio = io_uring"])
def test_failed_growth_leaves_nothing(place, small_disk, option):
    """A write beyond the end that fails half-way: later growth shows zeroes there."""
    image = small_disk / "disk.img"
    image.write_bytes(fileio.pattern(MiB))
    daemon = place.mount(f"[node disk]\ndriver = file\nfilename = small/disk.img\n{option}\n"
                         "[export disk]\nnode = disk\nwritable = on\ngrowable = on\n")
    filler, room = small_disk / "filler", os.statvfs(small_disk)
    filler.write_bytes(bytes(room.f_bavail * room.f_bsize - 64 * KiB))
    with opened(daemon.file("disk")) as fd:
        for offset in (MiB, 2 * MiB):
            with pytest.raises(OSError) as caught:
                os.pwrite(fd, b"\xee" * 128 * KiB, offset)
            assert caught.value.errno == errno.ENOSPC
            assert os.fstat(fd).st_size == MiB
            assert image.stat().st_size == MiB, "bytes of the failed write are left in the image"
        filler.unlink()
        os.ftruncate(fd, MiB + 64 * KiB)
        os.pwrite(fd, b"end", 3 * MiB)
        assert os.pread(fd, 4 * MiB, 0) == fileio.pattern(MiB) + bytes(2 * MiB) + b"end"
    daemon.stop()


def test_eio_from_below(place, small_disk):
    """A loop device whose file cannot take the data: writes to the device fail with EIO."""
    with open(small_disk / "backing.img", "wb") as backing:
        backing.truncate(64 * MiB)
    with place.loop(small_disk / "backing.img") as device:
        daemon = place.mount(f"[node disk]\ndriver = file\nfilename = {device}\ncache.direct = on\n")
        with opened(daemon.file("disk")) as fd:
            os.pwrite(fd, fileio.pattern(MiB), 0)
            with pytest.raises(OSError) as caught:
                for i in range(1, 64):
                    os.pwrite(fd, fileio.pattern(MiB, i), i * MiB)
            assert caught.value.errno in (errno.EIO, errno.ENOSPC)
            name = errno.errorcode[caught.value.errno]
            assert "disk" in daemon.graph("errors") and name in daemon.graph("errors")
            assert os.pread(fd, MiB, 0) == fileio.pattern(MiB)
        daemon.stop()


def test_image_that_shrinks(place, disk):
    with opened(disk.file("disk")) as fd:
        os.pwrite(fd, fileio.pattern(MiB), 0)
        os.truncate(place.path / "disk.img", 4096)
        with pytest.raises(OSError) as caught:
            os.pread(fd, 4096, 8 * MiB)
        assert caught.value.errno == errno.EIO
        assert "EIO" in disk.graph("errors")
        assert os.pread(fd, 4096, 0) == fileio.pattern(MiB)[:4096]


def test_repeated_errors_do_not_fill_the_log(place, disk):
    os.truncate(place.path / "disk.img", 4096)
    with opened(disk.file("disk")) as fd:
        for i in range(500):
            with pytest.raises(OSError):
                os.pread(fd, 512, 8 * MiB + i * 512)
    assert 1 <= len(disk.graph("errors").splitlines()) < 100
