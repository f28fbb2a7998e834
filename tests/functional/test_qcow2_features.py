"""What a qcow2 image can have besides clusters: another length, bitmaps; and options of QEMU's.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import concurrent.futures
import errno
import json
import os
import random
import struct
import time

import pytest

import fileio
import harness
import qcow2
from fileio import opened
from qcow2 import NODE, VARIANTS, refuse
from system import KiB, MiB

SIZE = 6 * MiB + 1536
BACKING = "backing.driver = qcow2\nbacking.file.driver = file\nbacking.file.filename = base.qcow2\n"


# ---- Shrinking

def grown_by_qemu(place, image, size):
    """What the image holds after qemu-img has made it `size` bytes long."""
    place.run("qemu-img", "resize", "-q", "-f", "qcow2", image, str(size))
    qcow2.check(place, image)
    return qcow2.content(place, image)


@pytest.mark.parametrize("variant", harness.count(("v2", "v3", "512", "4k-refcount2", "extended", "metadata-512"),
                                                  VARIANTS))
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


@pytest.mark.parametrize("variant", ("v3", "512", "extended"))
def test_own_snapshots_keep_what_is_cut_off(place, variant):
    """A snapshot is read while the image below it becomes shorter and longer again."""
    image = qcow2.create(place, "disk.qcow2", VARIANTS[variant], SIZE)
    daemon = place.mount(NODE.format(image=image))
    data = fileio.pattern(SIZE)
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, data, 0)
        (daemon.file(".snap") / "one").mkdir()
        with opened(daemon.file(".snap") / "one/disk", os.O_RDONLY) as snapshot:
            for length in (4 * MiB + 512, 1000, 0):
                os.ftruncate(fd, length)
                os.fsync(fd)
                os.ftruncate(fd, SIZE)
                os.pwrite(fd, b"\xee" * 2 * MiB, SIZE - 2 * MiB)
                assert os.pread(snapshot, SIZE, 0) == data
    daemon.stop()
    qcow2.check(place, image)
    assert qcow2.content(place, image, "-l", "snapshot.name=one") == data
    qcow2.compare(place, image, bytes(SIZE - 2 * MiB) + b"\xee" * 2 * MiB)


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


# ---- Bitmaps

def bitmaps(place, image):
    text = place.run("qemu-img", "info", "--output=json", image).stdout
    return {b["name"]: "in-use" in b["flags"] for b in json.loads(text)["format-specific"]["data"].get("bitmaps", [])}


def create_with_bitmaps(place, options="", names=("b0", "a longer name", "b2")):
    image = qcow2.create(place, "disk.qcow2", options, SIZE)
    for name in names:
        place.run("qemu-img", "bitmap", "--add", image, name)
    place.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 9 0 1M", image)
    qcow2.check(place, image)
    return image


@pytest.mark.parametrize("mode", ("read-only = on\n", "", "export"))
def test_bitmaps_stay_true_where_nothing_is_written(place, mode):
    image = create_with_bitmaps(place)
    before = image.read_bytes()
    daemon = place.mount(NODE.format(image=image) + (mode if mode != "export" else "\n[export e]\nnode = disk\n"))
    name = "e" if mode == "export" else "disk"
    assert daemon.file(name).read_bytes()[:MiB] == b"\x09" * MiB
    with opened(daemon.file(name), os.O_RDONLY) as fd:
        os.fsync(fd)
    daemon.stop()
    assert image.read_bytes() == before
    assert not any(bitmaps(place, image).values())


@pytest.mark.parametrize("variant, change", (("v3", "write"), ("512", "punch"), ("v3", "cut"), ("extended", "grow")))
def test_bitmaps_are_not_taken_for_true(place, variant, change):
    image = create_with_bitmaps(place, VARIANTS[variant])
    daemon = place.mount(NODE.format(image=image))
    with opened(daemon.file("disk")) as fd:
        if change == "write":
            os.pwrite(fd, b"x", 5)
        elif change == "punch":
            fileio.punch_hole(fd, 0, 512 * KiB)
        else:
            os.ftruncate(fd, MiB if change == "cut" else 16 * MiB)
        os.fsync(fd)
    daemon.crash()
    qcow2.check(place, image)
    found = bitmaps(place, image)
    assert list(found) == ["b0", "a longer name", "b2"] and all(found.values())
    for name in found:
        place.run("qemu-img", "bitmap", "--remove", image, name)
    qcow2.check(place, image)


@pytest.mark.faulty  # the bitmaps' clusters are leaks from then on
def test_clear_bitmaps_are_forgotten(place):
    """A directory that makes no sense is not touched; the bit that vouches for it goes."""
    image = create_with_bitmaps(place)
    with opened(image) as fd:
        header = os.pread(fd, 4096, 0)
        at = header.index(b"\x23\x85\x28\x75")
        os.pwrite(fd, struct.pack(">I", 4), at + 8)
    daemon = place.mount(NODE.format(image=image))
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, b"x", 5)
    daemon.stop()
    with opened(image, os.O_RDONLY) as fd:
        assert os.pread(fd, 8, 88) == bytes(8)


@pytest.mark.faulty
def test_bitmap_directory_at_a_hostile_place(place):
    """Over the L1 table: nothing is written there."""
    image = create_with_bitmaps(place)
    with opened(image) as fd:
        header = os.pread(fd, 4096, 0)
        at = header.index(b"\x23\x85\x28\x75")
        size, where = struct.unpack(">QQ", header[at + 16:at + 32])
        l1_offset, = struct.unpack(">Q", header[40:48])
        directory = os.pread(fd, size, where)
        os.pwrite(fd, directory, l1_offset)
        os.pwrite(fd, struct.pack(">Q", l1_offset), at + 24)
    daemon = place.mount(NODE.format(image=image))
    with opened(daemon.file("disk")) as fd:
        with pytest.raises(OSError) as refused:
            os.ftruncate(fd, 2 * SIZE)
        assert refused.value.errno == errno.EIO
    assert "corrupt" in daemon.graph("errors")
    daemon.stop()
    with opened(image, os.O_RDONLY) as fd:
        assert os.pread(fd, size, l1_offset) == directory


# ---- Options of QEMU's

OPTIONS_WE_DO = (
    ("lazy-refcounts = off", "overlap-check = cached", "discard-no-unref = off", "cache-clean-interval = 0"),
    ("pass-discard-request = on", "pass-discard-snapshot = on", "pass-discard-other = on"),
    ("overlap-check.template = cached", "cache-clean-interval = 4294967295"),
)

OPTIONS_REFUSED = (
    ("lazy-refcounts = on", "is not supported, other than off"),
    ("discard-no-unref = on", "is not supported, other than off"),
    ("pass-discard-request = off", "is not supported, other than on"),
    ("pass-discard-snapshot = off", "is not supported, other than on"),
    ("pass-discard-other = off", "is not supported, other than on"),
    ("overlap-check = all", "unknown value 'all', expected one of cached"),
    ("overlap-check.template = none", "unknown value 'none', expected one of cached"),
    ("overlap-check.inactive-l2 = on", "unknown option"),
    ("cache-size = 1M", "is not supported"),
    ("l2-cache-entry-size = 4k", "is not supported"),
    ("encrypt.format = luks", "is not supported"),
    ("cache-clean-interval = 4294967296", "out of range"),
)


def test_options(place):
    """What asks for what is done anyway is accepted, anything else refused by name."""
    image = qcow2.create(place, "disk.qcow2")
    for options in OPTIONS_WE_DO:
        place.mount(NODE.format(image=image) + "\n".join(options) + "\n").stop()
    for option, words in OPTIONS_REFUSED:
        message = refuse(place, NODE.format(image=image) + option + "\n")
        assert words in message and "node 'disk': option '" + option.split(" ")[0].split(".")[0] in message


def test_tables_come_back_after_cleaning(place):
    image = qcow2.create(place, "disk.qcow2", "cluster_size=4k", SIZE)
    daemon = place.mount(NODE.format(image=image) + "cache-clean-interval = 1\n")
    mirror = bytearray(SIZE)
    for seed in range(2):
        mirror = qcow2.random_operations(daemon.file("disk"), 0, mirror, seed, 60)
        time.sleep(1.1)
    daemon.stop()
    qcow2.check(place, image)
    qcow2.compare(place, image, mirror)


@pytest.mark.parametrize("offset, byte, words", [
    (117, 2, "an extension is longer"),  # the length of the first one behind a header of 112 bytes
    (71, 0x40, "the snapshot table"),
])
def test_header_that_others_refuse(place, offset, byte, words):
    image = qcow2.create(place, "odd.qcow2", "cluster_size=4k", MiB)
    with opened(image) as fd:
        os.pwrite(fd, bytes([byte]), offset)
    assert place.run("qemu-img", "info", "-f", "qcow2", image, check=False).returncode or \
        place.run("qemu-img", "check", "-f", "qcow2", image, check=False).returncode
    assert words in refuse(place, NODE.format(image=image))
    done = place.client("check", image, check=False)
    assert done.returncode == 1 and words in done.stderr
    image.unlink()
