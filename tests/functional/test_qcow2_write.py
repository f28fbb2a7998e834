"""qcow2 images written through the mount: the same bytes as a mirror, and no fault that qemu-img finds.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import concurrent.futures
import errno
import json
import os
import random
import struct

import pytest

import fileio
import harness
import qcow2
from fileio import opened
from qcow2 import NODE, VARIANTS
from system import KiB, MiB
from test_concurrency import fio_verify

SIZE = 6 * MiB + 1536
BACKING = "backing.driver = qcow2\nbacking.file.driver = file\nbacking.file.filename = base.qcow2\n"


def write_randomly(place, image, extra="", threads=3, number=None, length=SIZE, seed=None, holes=True):
    """Several threads, each in a region of its own, then two threads' worth of checks by qemu-img."""
    seed = random.randrange(1 << 30) if seed is None else seed
    number = number or harness.count(60, 2000)
    print(f"seed {seed}")
    mirror = qcow2.content(place, image)
    step = length // threads
    daemon = place.mount(NODE.format(image=image) + extra, at=f"mnt{len(place.daemons)}")
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(qcow2.random_operations, daemon.file("disk"), i * step,
                               bytearray(mirror[i * step:(i + 1) * step if i < threads - 1 else length]),
                               seed + i, number, holes=holes) for i in range(threads)]
        mirror = b"".join(future.result() for future in futures)
    daemon.stop()
    qcow2.check(place, image)
    qcow2.compare(place, image, mirror)


@pytest.mark.limit(120)
@pytest.mark.parametrize("variant", VARIANTS)
def test_random_writes(place, variant):
    image = qcow2.create(place, "disk.qcow2", VARIANTS[variant], SIZE)
    qcow2.fill(place, image, SIZE, seed=len(variant), number=20)
    qcow2.check(place, image)
    write_randomly(place, image)


@pytest.mark.limit(120)
@pytest.mark.parametrize("variant", qcow2.BACKED)
def test_random_writes_over_a_backing(place, variant):
    base = qcow2.create(place, "base.qcow2", VARIANTS[variant], SIZE - 700 * KiB)
    qcow2.fill(place, base, SIZE - 700 * KiB, seed=1)
    image = qcow2.create(place, "disk.qcow2", VARIANTS[variant], SIZE, "base.qcow2")
    qcow2.fill(place, image, SIZE, seed=2, number=15)
    # Version 2 cannot say "zero" over a backing, so that there are no holes to punch.
    write_randomly(place, image, BACKING, holes=not variant.startswith("v2"))
    qcow2.check(place, base)


@pytest.mark.limit(120)
@pytest.mark.parametrize("variant", ("v2", "v3", "512", "refcount8", "extended", "extended-16k", "zstd",
                                     "metadata"))
def test_snapshots_keep_their_content(place, variant):
    image = qcow2.create(place, "disk.qcow2", VARIANTS[variant], SIZE)
    kept = {}
    for name in ("one", "two"):
        qcow2.fill(place, image, SIZE, seed=len(kept))
        place.run("qemu-img", "snapshot", "-c", name, image)
        kept[name] = qcow2.content(place, image)
    write_randomly(place, image)
    for name, data in kept.items():
        assert qcow2.content(place, image, "-l", f"snapshot.name={name}") == data
    place.run("qemu-img", "snapshot", "-d", "one", image)
    write_randomly(place, image)
    assert qcow2.content(place, image, "-l", "snapshot.name=two") == kept["two"]


@pytest.mark.limit(120)
@pytest.mark.parametrize("variant", ("v3", "512", "2M", "extended", "zstd", "zstd-extended", "v2"))
def test_compressed_clusters_are_overwritten(place, variant):
    data = b"".join(bytes([i % 251]) * 3000 + fileio.pattern(500, i) for i in range(SIZE // 3500 + 1))[:SIZE]
    (place.path / "raw").write_bytes(data)
    options = ["-o", VARIANTS[variant]] if VARIANTS[variant] else []
    place.run("qemu-img", "convert", "-c", "-O", "qcow2", *options, "raw", "disk.qcow2")
    write_randomly(place, place.path / "disk.qcow2")


@pytest.mark.limit(120)
@pytest.mark.parametrize("variant", ("512", "4k-refcount2", "v3", "extended-16k"))
def test_smallest_caches(place, variant):
    """Tables come and go all the time."""
    image = qcow2.create(place, "disk.qcow2", VARIANTS[variant], SIZE)
    write_randomly(place, image, "l2-cache-size = 1\nrefcount-cache-size = 1\n")


def test_refcount_table_grows(place):
    """Clusters of 512 bytes and refcounts of 64 bits: 2 MiB for each cluster of the table."""
    size = 24 * MiB
    image = qcow2.create(place, "disk.qcow2", VARIANTS["512-refcount64"], size)
    data = fileio.pattern(size)
    daemon = place.mount(NODE.format(image=image))
    with opened(daemon.file("disk")) as fd:
        for at in range(0, size, 256 * KiB):
            os.pwrite(fd, data[at:at + 256 * KiB], at)
    daemon.stop()
    qcow2.check(place, image)
    qcow2.compare(place, image, data)


@pytest.mark.limit(180)
@pytest.mark.parametrize("variant", ("v3", "4k-refcount2", "extended"))
def test_fio_verify(place, variant):
    image = qcow2.create(place, "disk.qcow2", VARIANTS[variant], 64 * MiB)
    daemon = place.mount(NODE.format(image=image), "-o", "queues=4")
    fio_verify(place, [(f"job{i}", daemon.file("disk"), options) for i, options in enumerate((
        ["ioengine=io_uring", "iodepth=16", "rw=randwrite"],
        ["ioengine=libaio", "iodepth=8", "direct=1", "rw=randwrite"],
        ["ioengine=psync", "rw=randrw"],
        ["ioengine=psync", "rw=write", "fsync=50"],
    ))])
    daemon.stop()
    qcow2.check(place, image)


def test_neighbours_in_one_cluster(place):
    """Threads write into the same clusters while those are being allocated."""
    image = qcow2.create(place, "disk.qcow2", "", 8 * MiB)
    daemon = place.mount(NODE.format(image=image), "-o", "queues=4")
    threads, piece = 8, 4096

    def write(number):
        with opened(daemon.file("disk"), os.O_RDWR | os.O_DIRECT) as fd:
            buffer = fileio.aligned(bytes([number + 1]) * piece)
            for at in range(number * piece, 8 * MiB, threads * piece):
                os.pwrite(fd, buffer, at)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, range(threads)))
    daemon.stop()
    qcow2.check(place, image)
    qcow2.compare(place, image, b"".join(bytes([at // piece % threads + 1]) * piece
                                         for at in range(0, 8 * MiB, piece)))


@pytest.mark.parametrize("variant", ("v3", "512", "4k-refcount2", "extended"))
def test_freed_while_in_use(place, variant):
    """Writers and readers race with discards of the same range: what takes the freed clusters stays whole."""
    image = qcow2.create(place, "disk.qcow2", VARIANTS[variant], 8 * MiB)
    daemon = place.mount(NODE.format(image=image), "-o", "queues=4")
    rounds = harness.count(60, 1000)

    def race(write):
        buffer = fileio.aligned(b"\xaa" * 256 * KiB)
        with opened(daemon.file("disk"), os.O_RDWR | os.O_DIRECT) as fd:
            for i in range(rounds):
                at = i % 4 * 64 * KiB
                if write:
                    os.pwrite(fd, buffer, at)
                else:
                    into = fileio.aligned(256 * KiB)
                    os.preadv(fd, [into], at)
                    assert set(into[:]) <= {0, 0xaa}

    def free():
        with opened(daemon.file("disk")) as fd:
            for _ in range(rounds):
                fileio.punch_hole(fd, 0, 512 * KiB)
                os.fsync(fd)

    def take(number):
        start = (2 + 2 * number) * MiB
        with opened(daemon.file("disk"), os.O_RDWR | os.O_DIRECT) as fd:
            for i in range(rounds):
                data = bytes([number * 100 + i % 100 + 1]) * 64 * KiB
                at = start + i % 16 * 64 * KiB
                os.pwrite(fd, fileio.aligned(data), at)
                into = fileio.aligned(64 * KiB)
                os.preadv(fd, [into], at)
                assert into[:] == data
                fileio.punch_hole(fd, start + (i + 7) % 16 * 64 * KiB, 64 * KiB)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        tasks = [pool.submit(race, True), pool.submit(race, True), pool.submit(race, False), pool.submit(free),
                 pool.submit(take, 0), pool.submit(take, 1)]
        for task in tasks:
            task.result()
    daemon.stop()
    qcow2.check(place, image)


# ---- Freed clusters

def test_discard_frees_and_room_is_used_again(place):
    image = qcow2.create(place, "disk.qcow2", "", 16 * MiB)
    daemon = place.mount(NODE.format(image=image))
    with opened(daemon.file("disk")) as fd:
        for _ in range(4):
            os.pwrite(fd, fileio.pattern(8 * MiB), 0)
            os.fsync(fd)
            full = os.stat(image).st_blocks * 512
            fileio.punch_hole(fd, 0, 8 * MiB)
            os.fsync(fd)
            assert os.stat(image).st_blocks * 512 < full - 7 * MiB
            assert os.pread(fd, 8 * MiB, 0) == bytes(8 * MiB)
    daemon.stop()
    assert os.stat(image).st_size < 12 * MiB
    qcow2.check(place, image)


def test_after_fsync_there_are_no_leaks(place):
    image = qcow2.create(place, "disk.qcow2", "", 16 * MiB)
    daemon = place.mount(NODE.format(image=image))
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, fileio.pattern(MiB), 0)
        fileio.punch_hole(fd, 0, 512 * KiB)
        os.fsync(fd)
        place.run("qemu-img", "check", "-U", image)
        data = os.pread(fd, MiB, 0)
        daemon.crash()
    qcow2.check(place, image)
    assert qcow2.content(place, image)[:MiB] == data


@pytest.mark.parametrize("variant", ("v3", "512", "extended"))
def test_kill_keeps_what_was_synced(place, variant):
    """Leaks at most, and every byte before the fsync."""
    image = qcow2.create(place, "disk.qcow2", VARIANTS[variant], SIZE)
    daemon = place.mount(NODE.format(image=image))
    synced = fileio.pattern(2 * MiB)
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, synced, 0)
        os.fsync(fd)
        os.pwrite(fd, fileio.pattern(3 * MiB, 2), 2 * MiB)
        daemon.crash()
    done = place.run("qemu-img", "check", image, check=False)
    assert done.returncode in (0, 3), done.stdout
    assert qcow2.content(place, image)[:2 * MiB] == synced


# ---- Growing

@pytest.mark.parametrize("variant", ("v2", "v3", "512", "extended", "2M"))
def test_grow(place, variant):
    image = qcow2.create(place, "disk.qcow2", VARIANTS[variant], MiB + 512)
    data = fileio.pattern(MiB + 512)
    daemon = place.mount(NODE.format(image=image))
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, 9 * MiB)
        os.pwrite(fd, b"end", 9 * MiB - 3)
    daemon.stop()
    qcow2.check(place, image)
    qcow2.compare(place, image, data + bytes(8 * MiB - 512 - 3) + b"end")


@pytest.mark.parametrize("variant", ("v2", "v3", "extended", "512"))
def test_growing_does_not_show_the_backing(place, variant):
    base = qcow2.create(place, "base.qcow2", "", 3 * MiB)
    place.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x55 0 3M", base)
    image = qcow2.create(place, "disk.qcow2", VARIANTS[variant], MiB + 512, "base.qcow2")
    daemon = place.mount(NODE.format(image=image) + BACKING)
    with opened(daemon.file("disk")) as fd:
        os.ftruncate(fd, 4 * MiB)
    daemon.stop()
    qcow2.check(place, image)
    qcow2.compare(place, image, b"\x55" * (MiB + 512) + bytes(3 * MiB - 512))


# ---- Header bits

def info(place, image):
    return json.loads(place.run("qemu-img", "info", "--output=json", image).stdout)["format-specific"]["data"]


@pytest.mark.faulty
def test_corrupt_tables_are_not_followed(place):
    """An L2 entry that points to the L1 table: the write fails, the image is marked, reads go on."""
    image = qcow2.create(place, "disk.qcow2", "", 4 * MiB)
    place.run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 128k", image)
    with opened(image) as fd:
        l1_offset, = struct.unpack(">Q", os.pread(fd, 8, 40))
        l2_offset = struct.unpack(">Q", os.pread(fd, 8, l1_offset))[0] & 0xfffffffffffe00
        os.pwrite(fd, struct.pack(">Q", l1_offset | 1 << 63), l2_offset)
    daemon = place.mount(NODE.format(image=image))
    with opened(daemon.file("disk"), os.O_RDWR | os.O_DIRECT) as fd:
        buffer = fileio.aligned(4096)
        for at in (0, 64 * KiB):
            with pytest.raises(OSError) as refused:
                os.pwrite(fd, buffer, at)
            assert refused.value.errno == errno.EIO
        assert os.preadv(fd, [buffer], 64 * KiB) == 4096 and buffer[:] == b"\x07" * 4096
    assert "corrupt" in daemon.graph("errors")
    daemon.stop()
    assert info(place, image)["corrupt"] is True
