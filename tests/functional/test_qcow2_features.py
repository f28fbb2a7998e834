"""What a qcow2 image can have besides clusters: another length, data elsewhere, names of other files, bitmaps.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import concurrent.futures
import errno
import os
import random

import pytest

import fileio
import harness
import qcow2
from fileio import opened
from qcow2 import NODE, VARIANTS
from system import KiB, MiB

SIZE = 6 * MiB + 1536
BACKING = "backing.driver = qcow2\nbacking.file.driver = file\nbacking.file.filename = base.qcow2\n"


# ---- Shrinking

def grown_by_qemu(place, image, size):
    """What the image holds after qemu-img has made it `size` bytes long."""
    place.run("qemu-img", "resize", "-q", "-f", "qcow2", image, str(size))
    qcow2.check(place, image)
    return qcow2.content(place, image)


@pytest.mark.parametrize("variant", VARIANTS)
def test_shrink_and_grow(place, variant):
    image = qcow2.create(place, "disk.qcow2", VARIANTS[variant], SIZE)
    qcow2.fill(place, image, SIZE, seed=2, number=20)
    qcow2.check(place, image)
    data = qcow2.content(place, image)
    daemon = place.mount(NODE.format(image=image))
    with opened(daemon.file("disk")) as fd:
        for length in (SIZE - 700, 3 * MiB + 512, 2 * MiB, 1000, 0):
            os.ftruncate(fd, length)
            assert os.fstat(fd).st_size == length
            assert os.pread(fd, SIZE, 0) == data[:length]
            os.ftruncate(fd, SIZE)
            data = data[:length] + bytes(SIZE - length)
            assert os.pread(fd, SIZE, 0) == data
            os.pwrite(fd, b"again", SIZE - 5)
            data = data[:-5] + b"again"
        os.ftruncate(fd, 2 * MiB)
        data = data[:2 * MiB]
    daemon.stop()
    qcow2.check(place, image)
    qcow2.compare(place, image, data)
    assert grown_by_qemu(place, image, SIZE // 512 * 512) == data + bytes(SIZE // 512 * 512 - len(data))


@pytest.mark.parametrize("variant", ("v3", "512", "extended-16k", "v2"))
def test_shrink_to_the_middle_of_a_cluster(place, variant):
    """qemu-img, which grows the image again, finds nothing old in the last cluster."""
    image = qcow2.create(place, "disk.qcow2", VARIANTS[variant], 4 * MiB)
    place.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x55 0 4M", image)
    length = MiB + 9 * 512
    daemon = place.mount(NODE.format(image=image))
    place.run("truncate", "-s", str(length), daemon.file("disk"))
    daemon.stop()
    qcow2.check(place, image)
    qcow2.compare(place, image, b"\x55" * length)
    assert grown_by_qemu(place, image, 4 * MiB) == b"\x55" * length + bytes(4 * MiB - length)


@pytest.mark.parametrize("variant", ("v3", "512", "extended", "v2"))
def test_shrink_frees_the_room(place, variant):
    image = qcow2.create(place, "disk.qcow2", VARIANTS[variant], 16 * MiB)
    daemon = place.mount(NODE.format(image=image))
    with opened(daemon.file("disk")) as fd:
        for _ in range(3):
            os.pwrite(fd, fileio.pattern(8 * MiB), 8 * MiB)
            os.fsync(fd)
            full = os.stat(image).st_blocks * 512
            os.ftruncate(fd, 8 * MiB)
            os.fsync(fd)
            assert os.stat(image).st_blocks * 512 < full - 7 * MiB
            place.run("truncate", "-s", "16M", daemon.file("disk"))
    daemon.stop()
    qcow2.check(place, image)
    assert os.stat(image).st_size < 12 * MiB


@pytest.mark.parametrize("variant", ("v3", "512", "extended", "v2"))
def test_shrink_and_grow_over_a_backing(place, variant):
    base = qcow2.create(place, "base.qcow2", "", 4 * MiB)
    place.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x55 0 4M", base)
    image = qcow2.create(place, "disk.qcow2", VARIANTS[variant], 4 * MiB, "base.qcow2")
    place.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x66 1M 512k", "-c", "write -q -P 0x77 3M 5k", image)
    daemon = place.mount(NODE.format(image=image) + BACKING)
    mirror = bytearray(b"\x55" * MiB + b"\x66" * 512 * KiB + b"\x55" * (2 * MiB + 512 * KiB))
    mirror[3 * MiB:3 * MiB + 5 * KiB] = b"\x77" * 5 * KiB
    with opened(daemon.file("disk")) as fd:
        for length in (2 * MiB + 512, MiB + 70000, 12345):
            os.ftruncate(fd, length)
            assert os.pread(fd, 4 * MiB, 0) == mirror[:length]
            os.ftruncate(fd, 4 * MiB)
            mirror[length:] = bytes(4 * MiB - length)
            assert os.pread(fd, 4 * MiB, 0) == mirror
    daemon.stop()
    qcow2.check(place, image)
    qcow2.compare(place, image, mirror)


@pytest.mark.parametrize("variant", ("v3", "512", "extended"))
def test_snapshots_keep_what_is_cut_off(place, variant):
    image = qcow2.create(place, "disk.qcow2", VARIANTS[variant], SIZE)
    qcow2.fill(place, image, SIZE, seed=6)
    data = qcow2.content(place, image)
    place.run("qemu-img", "snapshot", "-c", "one", image)
    daemon = place.mount(NODE.format(image=image))
    with opened(daemon.file("disk")) as fd:
        os.ftruncate(fd, MiB + 512)
        os.fsync(fd)
    daemon.stop()
    qcow2.check(place, image)
    qcow2.compare(place, image, data[:MiB + 512])
    place.run("qemu-img", "snapshot", "-a", "one", image)
    qcow2.check(place, image)
    assert qcow2.content(place, image)[:len(data)] == data


def test_version_2_with_snapshots_keeps_its_length(place):
    image = qcow2.create(place, "disk.qcow2", VARIANTS["v2"], SIZE)
    place.run("qemu-img", "snapshot", "-c", "one", image)
    daemon = place.mount(NODE.format(image=image))
    with opened(daemon.file("disk")) as fd:
        for length in (MiB, 2 * SIZE):
            with pytest.raises(OSError) as refused:
                os.ftruncate(fd, length)
            assert refused.value.errno == errno.EOPNOTSUPP
            assert os.fstat(fd).st_size == SIZE
    daemon.stop()


@pytest.mark.parametrize("variant", ("v3", "512", "extended-16k"))
def test_shrink_under_readers_and_writers(place, variant):
    """Others read everywhere and write to what stays, while the end comes and goes."""
    image = qcow2.create(place, "disk.qcow2", VARIANTS[variant], 4 * MiB)
    daemon = place.mount(NODE.format(image=image) + "l2-cache-size = 1\n", "-o", "queues=4")
    mirror = bytearray(MiB + 512)
    choose = random.Random(7)

    def resize():
        with opened(daemon.file("disk")) as fd:
            for i in range(harness.count(60, 600)):
                os.pwrite(fd, b"\xee" * 100000, 2 * MiB + i % 7 * 50000)
                os.ftruncate(fd, MiB + 512 + i % 3 * 100000)
                os.ftruncate(fd, 4 * MiB)
                assert os.pread(fd, MiB, 2 * MiB) == bytes(MiB)

    def write():
        with opened(daemon.file("disk"), os.O_RDWR | os.O_DIRECT) as fd:
            for i in range(harness.count(200, 2000)):
                at = choose.randrange((MiB + 512) // 512) * 512
                mirror[at:at + 512] = bytes([i % 251]) * 512
                os.pwrite(fd, fileio.aligned(bytes([i % 251]) * 512), at)

    def read():
        with opened(daemon.file("disk"), os.O_RDWR | os.O_DIRECT) as fd:
            for i in range(harness.count(100, 1000)):
                into = fileio.aligned(256 * KiB)
                os.preadv(fd, [into], 2 * MiB + i % 4 * 256 * KiB)
                assert set(into[:]) <= {0, 0xee}

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        for task in [pool.submit(work) for work in (resize, write, read)]:
            task.result()
    daemon.stop()
    qcow2.check(place, image)
    qcow2.compare(place, image, mirror + bytes(4 * MiB - len(mirror)))
