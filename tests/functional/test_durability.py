"""fsync reaches the disk: seen as flushes of the device that holds the image, and by kill -9.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import concurrent.futures
import errno
import json
import os
import signal
import time

import pytest

import fileio
import harness
import qcow2
from fileio import opened
from system import MiB

FLUSH_REQUESTS = 15  # field of /sys/block/DEVICE/stat: flush requests completed


class CountingDisk:
    """An ext4 of its own on a loop device; the kernel counts the flushes that reach the device."""

    def __init__(self, place, device, directory):
        self.place = place
        self.device = os.path.basename(device)
        self.directory = directory

    def flushes(self):
        with open(f"/sys/block/{self.device}/stat", encoding="ascii") as stat:
            return int(stat.read().split()[FLUSH_REQUESTS])

    def quiet_flushes(self):
        """The count once the file system's own background work has come to rest."""
        os.sync()
        return self.flushes()


@pytest.fixture
def counting(place):
    backing = place.image("backing.img", 128 * MiB)
    with place.loop(backing) as device:
        place.run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", device)
        # A journal commit of the file system's own accord would count as a flush, too.
        with place.mounted(device, "disk", "commit=600,noatime") as directory:
            with open(directory / "disk.img", "wb") as image:
                image.write(bytes(32 * MiB))  # allocated, so that a write changes no metadata
            os.sync()
            yield CountingDisk(place, device, directory)
            for daemon in place.daemons:
                if daemon.is_running():
                    daemon.stop()


def graph(options=""):
    return f"[node disk]\ndriver = raw\nfile.driver = file\nfile.filename = disk/disk.img\n{options}"


@pytest.mark.parametrize("options", ["", "file.aio = threads\n", "file.aio = io_uring\nfile.cache.direct = on\n",
                                     "file.cache.direct = on\n"],
                         ids=["default", "threads", "io_uring-direct", "direct"])
@pytest.mark.parametrize("sync", [os.fsync, os.fdatasync], ids=["fsync", "fdatasync"])
def test_fsync_flushes_the_device(place, counting, options, sync):
    daemon = place.mount(graph(options))
    with opened(daemon.file("disk")) as fd:
        for i in range(5):
            os.pwrite(fd, fileio.pattern(4096, i), i * 4096)
            before = counting.flushes()
            sync(fd)
            assert counting.flushes() > before, f"{sync.__name__} number {i} did not flush the device"


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC], ids=["O_SYNC", "O_DSYNC"])
def test_synchronous_writes(place, counting, flag):
    daemon = place.mount(graph())
    with opened(daemon.file("disk"), os.O_RDWR | flag) as fd:
        for i in range(3):
            before = counting.flushes()
            os.pwrite(fd, fileio.pattern(4096, i), i * 4096)
            assert counting.flushes() > before


def test_fsync_of_the_directory(place, counting):
    daemon = place.mount(graph())
    with opened(daemon.file("disk")) as fd, opened(daemon.mountpoints[0], os.O_RDONLY | os.O_DIRECTORY) as root:
        for i in range(3):
            os.pwrite(fd, fileio.pattern(4096, i), i * 4096)
            before = counting.flushes()
            os.fsync(root)
            assert counting.flushes() > before


def fsync_error(fd):
    try:
        os.fsync(fd)
    except OSError as error:
        return error.errno
    return 0


def test_a_failed_flush_is_reported_once(place):
    """No room for the tables of an image when they are to be written out; later there is."""
    with place.mounted("tmpfs", "small", "size=4m") as directory:
        image = qcow2.create(place, "small/disk.qcow2", "", 16 * MiB)
        daemon = place.mount(qcow2.NODE.format(image=image))
        path = daemon.file("disk")
        with opened(path) as first, opened(path) as second, opened(path) as idle:
            os.pwrite(first, b"first" * 100, 0)
            os.pwrite(second, b"second" * 100, MiB)
            with open(directory / "filler", "wb", buffering=0) as filler:
                with pytest.raises(OSError, match="No space left"):
                    while True:
                        filler.write(bytes(4096))
            assert fsync_error(first) == errno.ENOSPC
            os.unlink(directory / "filler")
            assert [fsync_error(fd) for fd in (first, idle, second)] == [0, 0, errno.ENOSPC]
            with opened(path) as later:
                assert [fsync_error(fd) for fd in (first, second, idle, later)] == [0, 0, 0, 0]
            assert b"ENOSPC" in os.getxattr(path, "user.blockgraph.last-error")
            assert "ENOSPC" in daemon.graph("errors")
        daemon.stop()
        qcow2.check(place, image)
        content = qcow2.content(place, image)
        assert content[:500] == b"first" * 100
        assert content[MiB:MiB + 600] == b"second" * 100


def test_msync(place, counting):
    import mmap
    daemon = place.mount(graph())
    with opened(daemon.file("disk")) as fd, mmap.mmap(fd, 32 * MiB) as mapping:
        mapping[100:200] = bytes(range(100))
        before = counting.flushes()
        mapping.flush()
        assert counting.flushes() > before


def test_no_flush(place, counting):
    daemon = place.mount(graph("file.cache.no-flush = on\n"))
    before = counting.quiet_flushes()
    with opened(daemon.file("disk")) as fd:
        for i in range(5):
            os.pwrite(fd, fileio.pattern(4096, i), i * 4096)
            os.fsync(fd)
    assert counting.flushes() == before
    assert os.getxattr(daemon.file("disk"), "user.blockgraph.durable") == b"no"


@pytest.mark.parametrize("end", ["SIGTERM", "umount"])
def test_the_end_flushes(place, counting, end):
    daemon = place.mount(graph())
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, fileio.pattern(MiB), 0)
    before = counting.flushes()
    daemon.umount() if end == "umount" else daemon.stop(signal.SIGTERM)
    assert counting.flushes() > before
    assert (counting.directory / "disk.img").read_bytes()[:MiB] == fileio.pattern(MiB)


def test_flush_count_of_the_nodes(place, disk):
    def flushes():
        return json.loads(disk.graph("nodes/disk/stats.json"))

    with opened(disk.file("disk")) as fd:
        before = flushes()
        os.pwrite(fd, b"x", 0)
        os.fsync(fd)
        assert flushes() != before


def test_strict_sync_refuses_what_cannot_flush(place):
    place.image("disk.img")
    graph_file = place.write("graph.conf", harness.DISK + "file.cache.no-flush = on\n")
    message = place.refuse("-o", "strict-sync", graph_file, place.directory("mnt"))
    assert "disk" in message


@pytest.mark.parametrize("round", range(harness.count(3, 50)))
def test_fsync_then_kill_9(place, disk, round):
    synced = {}
    with opened(disk.file("disk")) as fd:
        for i in range(40):
            data = fileio.pattern(4096, round * 1000 + i)
            os.pwrite(fd, data, i * 100_000)
            if i % 4 == 3:
                os.fsync(fd)
            synced[i * 100_000] = data
        disk.crash()
    image = (place.path / "disk.img").read_bytes()
    for offset, data in synced.items():
        assert image[offset:offset + 4096] == data
    place.run("fusermount3", "-u", disk.mountpoints[0])


def test_concurrent_fsync(place, disk):
    """Many at once, each after a write of its own: all succeed, all data is there."""
    threads, rounds = 16, harness.count(20, 200)

    def work(number):
        with opened(disk.file("disk")) as fd:
            for i in range(rounds):
                os.pwrite(fd, bytes([number + 1]) * 512, (i * threads + number) * 512)
                os.fsync(fd)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    disk.crash()
    image = (place.path / "disk.img").read_bytes()
    for i in range(rounds * threads):
        assert image[i * 512] == i % threads + 1
    place.run("fusermount3", "-u", disk.mountpoints[0])


def test_readers_do_not_wait_for_an_fsync(place, disk):
    """Reads go on while fsyncs run one after the other."""
    until = time.monotonic() + 2

    def sync():
        with opened(disk.file("disk")) as fd:
            while time.monotonic() < until:
                os.pwrite(fd, fileio.pattern(65536), MiB)
                os.fsync(fd)

    def read():
        worst = number = 0
        with opened(disk.file("disk"), os.O_RDONLY) as fd:
            while time.monotonic() < until:
                start = time.monotonic()
                os.pread(fd, 4096, 8 * MiB)
                worst = max(worst, time.monotonic() - start)
                number += 1
        return number, worst

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        syncing = [pool.submit(sync) for _ in range(2)]
        number, worst = pool.submit(read).result()
        for future in syncing:
            future.result()
    assert number > 100
    assert worst < 5.0 * harness.TIME_SCALE
