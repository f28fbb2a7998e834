"""qcow2 images made by others: read through the mount, or refused with a message.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import struct
from pathlib import Path

import pytest

import fileio
import qcow2
from fileio import opened
from qcow2 import NODE, VARIANTS
from system import KiB, MiB

SIZE = 6 * MiB + 1536


def read_whole(daemon, name="disk"):
    with opened(daemon.file(name), os.O_RDONLY) as fd:
        size = os.fstat(fd).st_size
        parts = []
        while sum(map(len, parts)) < size:
            parts.append(os.pread(fd, MiB, sum(map(len, parts))))
        return b"".join(parts)


@pytest.mark.faulty
@pytest.mark.parametrize("variant", VARIANTS)
def test_reads_as_qemu_img_does(place, variant):
    image = qcow2.create(place, "disk.qcow2", VARIANTS[variant], SIZE)
    qcow2.fill(place, image, SIZE, seed=len(variant))
    before = image.read_bytes()
    daemon = place.mount(NODE.format(image=image) + "read-only = on\n")
    assert read_whole(daemon) == qcow2.content(place, image)
    daemon.stop()
    assert image.read_bytes() == before


@pytest.mark.parametrize("variant", ("v2", "v3", "512", "2M", "extended", "zstd", "zstd-extended"))
def test_compressed_image(place, variant):
    (place.path / "raw").write_bytes((fileio.pattern(100000) + bytes(300000) + b"abc" * 100000) * 3)
    options = ["-o", VARIANTS[variant]] if VARIANTS[variant] else []
    place.run("qemu-img", "convert", "-c", "-O", "qcow2", *options, "raw", "disk.qcow2")
    daemon = place.mount(NODE.format(image="disk.qcow2") + "read-only = on\n")
    assert read_whole(daemon) == qcow2.content(place, "disk.qcow2")


def chain(lengths):
    """Graph of a chain, the first on top."""
    text = ""
    for i in range(len(lengths)):
        text += f"[node n{i}]\ndriver = qcow2\nfile.driver = file\nfile.filename = n{i}.qcow2\n"
        text += f"backing = n{i + 1}\n" if i + 1 < len(lengths) else ""
        text += "read-only = on\n\n"
    return text + "[export disk]\nnode = n0\n"


@pytest.mark.parametrize("variant", qcow2.BACKED)
def test_chain_of_backings(place, variant):
    """Shorter and longer than what lies on top."""
    lengths = (SIZE, SIZE - 1 * MiB, SIZE + 1 * MiB, SIZE // 2)
    for i, length in reversed(list(enumerate(lengths))):
        backing = f"n{i + 1}.qcow2" if i + 1 < len(lengths) else None
        qcow2.create(place, f"n{i}.qcow2", VARIANTS[variant], length, backing)
        qcow2.fill(place, place.path / f"n{i}.qcow2", length, seed=i, number=12)
    daemon = place.mount(chain(lengths))
    assert read_whole(daemon) == qcow2.content(place, "n0.qcow2")


def test_snapshots_present(place):
    image = qcow2.create(place, "disk.qcow2", "", SIZE)
    for number in range(3):
        qcow2.fill(place, image, SIZE, seed=number)
        place.run("qemu-img", "snapshot", "-c", f"s{number}", image)
    qcow2.fill(place, image, SIZE, seed=9)
    daemon = place.mount(NODE.format(image=image) + "read-only = on\n")
    assert read_whole(daemon) == qcow2.content(place, image)


@pytest.mark.faulty
def test_image_without_a_graph(place):
    """The format is found by its magic; a backing has to be said in a graph."""
    image = qcow2.create(place, "base.qcow2", "", SIZE)
    qcow2.fill(place, image, SIZE, seed=5)
    daemon = place.start(image, place.directory("mnt"), mountpoints=[place.directory("mnt")])
    assert read_whole(daemon, "base.qcow2") == qcow2.content(place, image)
    daemon.stop()
    overlay = qcow2.create(place, "disk.qcow2", backing="base.qcow2")
    assert "backing" in place.refuse(overlay, place.directory("mnt"))


def test_holes_show(place):
    image = qcow2.create(place, "disk.qcow2", "", SIZE)
    place.run("qemu-io", "-f", "qcow2", "-c", "write 1M 128k", "-c", "write -z 1M 64k", image)
    daemon = place.mount(NODE.format(image=image))
    with opened(daemon.file("disk"), os.O_RDONLY) as fd:
        assert fileio.extents(fd, SIZE) == [(MiB + 64 * KiB, MiB + 128 * KiB)]


# ---- Backing only as the graph says

def test_backing_named_by_the_image_is_not_opened(place):
    qcow2.create(place, "base.qcow2")
    image = qcow2.create(place, "disk.qcow2", backing="base.qcow2")
    graph = NODE.format(image=image)
    message = place.refuse(place.write("graph.conf", graph), place.directory("mnt"))
    assert "base.qcow2" in message and "backing" in message and "'disk'" in message


@pytest.mark.parametrize("none", ('backing = \n', '{"backing": null}'))
def test_no_backing(place, none):
    qcow2.create(place, "base.qcow2")
    qcow2.fill(place, "base.qcow2", 6 * MiB, 1)
    image = qcow2.create(place, "disk.qcow2", backing="base.qcow2")
    graph = NODE.format(image=image) + none
    if none.startswith("{"):
        graph = '{"nodes": [{"node-name": "disk", "driver": "qcow2", "backing": null,' \
                f' "file": {{"driver": "file", "filename": "{image}"}}}}]}}'
    daemon = place.mount(graph)
    assert read_whole(daemon) == bytes(6 * MiB)


def test_backing_in_place_is_only_read(place):
    base = qcow2.create(place, "base.qcow2")
    qcow2.fill(place, base, 6 * MiB, 1)
    want = qcow2.content(place, base)
    before = base.read_bytes()
    image = qcow2.create(place, "disk.qcow2", backing="base.qcow2")
    daemon = place.mount(NODE.format(image=image) + "backing.driver = qcow2\nbacking.file.driver = file\n"
                         "backing.file.filename = base.qcow2\n")
    assert read_whole(daemon) == want
    place.run("qemu-io", "-r", "-f", "qcow2", "-c", "read 0 4k", base)  # others may read it, too
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, b"x" * 100000, 54321)
    daemon.stop()
    assert base.read_bytes() == before
    qcow2.check(place, image)


# ---- Refused

def patched(place, offset, data, options=""):
    image = qcow2.create(place, "disk.qcow2", options)
    with opened(image) as fd:
        os.pwrite(fd, data, offset)
    return image


@pytest.mark.parametrize("what, offset, data, words", [
    ("magic", 0, b"QFI\0", "not a qcow2 image"),
    ("version", 4, struct.pack(">I", 4), "version 4"),
    ("cluster bits", 20, struct.pack(">I", 22), "2^22"),
    ("size", 24, struct.pack(">Q", 1 << 63), "size"),
    ("encryption", 32, struct.pack(">I", 1), "encrypted"),
    ("l1 size", 36, struct.pack(">I", 0xffffffff), "L1 table is too large"),
    ("l1 too small", 36, struct.pack(">I", 0), "L1 table is too small"),
    ("l1 offset", 40, struct.pack(">Q", 1 << 40), "L1 table is not in the file"),
    ("l1 unaligned", 40, struct.pack(">Q", 0x30001), "L1 table is not in the file"),
    ("refcount table", 48, struct.pack(">Q", 0), "refcount table is not in the file"),
    ("refcount clusters", 56, struct.pack(">I", 0x10000000), "refcount table is too large"),
    ("snapshots", 60, struct.pack(">I", 0xffffffff), "snapshots"),
    ("snapshot table", 60, struct.pack(">IQ", 1, 1 << 50), "snapshot table"),
    ("unknown feature", 72, struct.pack(">Q", 1 << 40), "bit 40"),
    ("data file", 72, struct.pack(">Q", 4), "option 'data-file': required"),
    ("refcount width", 96, struct.pack(">I", 7), "refcounts"),
    ("header length", 100, struct.pack(">I", 0xfffffff8), "length"),
    ("corrupt", 72, struct.pack(">Q", 2), "corrupt"),
], ids=lambda value: value.replace(" ", "-") if isinstance(value, str) and len(value) < 30 else "")
@pytest.mark.faulty
def test_refused(place, what, offset, data, words):
    image = patched(place, offset, data)
    message = place.refuse(place.write("graph.conf", NODE.format(image=image)), place.directory("mnt"))
    assert words in message and "'disk'" in message


@pytest.mark.faulty
def test_refcount_block_entered_twice(place):
    image = qcow2.create(place, "disk.qcow2")
    with opened(image) as fd:
        table, = struct.unpack(">Q", os.pread(fd, 8, 48))
        os.pwrite(fd, os.pread(fd, 8, table), table + 80)
    message = place.refuse(place.write("graph.conf", NODE.format(image=image)), place.directory("mnt"))
    assert "two entries" in message
    place.mount(NODE.format(image=image) + "read-only = on\n", at="read-only")


@pytest.mark.faulty
def test_unknown_feature_is_named(place):
    """By the name that the image itself has for it."""
    image = qcow2.create(place, "disk.qcow2")
    with opened(image) as fd:
        head = bytearray(os.pread(fd, 4096, 0))
        at = head.index(b"\x00\x00dirty bit")
        head[at:at + 48] = struct.pack(">BB46s", 0, 37, b"time travel")
        head[72:80] = struct.pack(">Q", 1 << 37)
        os.pwrite(fd, head, 0)
    message = place.refuse(place.write("graph.conf", NODE.format(image=image)), place.directory("mnt"))
    assert "time travel (bit 37)" in message


@pytest.mark.parametrize("bit, option", [(1, "read-only"), (2, "read-only"), (2, "auto-read-only")])
def test_dirty_and_corrupt_images_are_readable(place, bit, option):
    image = patched(place, 72, struct.pack(">Q", bit))
    before = image.read_bytes()
    for _ in range(2):
        daemon = place.mount(NODE.format(image=image) + f"{option} = on\n", at=option)
        assert len(read_whole(daemon)) == 6 * MiB
        daemon.stop()
    assert image.read_bytes() == before


@pytest.mark.parametrize("option, words", [
    ("l2-cache-size = much", "not a size"),
    ("refcount-cache-size = -1", "refcount-cache-size"),
    ("cache-clean-interval = often", "not a whole number"),
    ("cache-clean-intervall = 5", "did you mean 'cache-clean-interval'?"),
    ("backing = nobody", "nobody"),
])
def test_options_refused(place, option, words):
    image = qcow2.create(place, "disk.qcow2")
    message = place.refuse(place.write("graph.conf", NODE.format(image=image) + option + "\n"),
                           place.directory("mnt"))
    assert words in message


def test_truncated_file(place):
    image = qcow2.create(place, "disk.qcow2")
    for length in (0, 3, 71, 100, 4096):
        os.truncate(image, length)
        place.refuse(place.write("graph.conf", NODE.format(image=image)), place.directory("mnt"))


@pytest.fixture(name="zram")
def zram_device():
    """A device with blocks of 4 KiB that takes direct I/O to any address, as it says."""
    control = Path("/sys/class/zram-control")
    if not (control / "hot_add").exists():
        pytest.skip("the kernel has no zram devices")
    number = (control / "hot_add").read_text(encoding="ascii").strip()
    try:
        Path(f"/sys/block/zram{number}/disksize").write_text("64M", encoding="ascii")
        yield f"/dev/zram{number}"
    finally:
        Path(f"/sys/block/zram{number}/reset").write_text("1", encoding="ascii")
        (control / "hot_remove").write_text(number, encoding="ascii")


def test_direct_io_to_memory_that_is_not_aligned(place, zram):
    """Headers and tables are read to wherever the heap puts them."""
    place.run("mkfs.ext4", "-q", zram)
    with place.mounted(zram, at="fast"):
        image = qcow2.create(place, "fast/disk.qcow2", "", SIZE)
        qcow2.fill(place, image, SIZE, seed=1, number=20)
        place.run("fallocate", "-l", "4M", "-o", "8M", image)  # so that a whole header buffer is read
        daemon = place.mount(NODE.format(image=image) + "file.cache.direct = on\n")
        assert read_whole(daemon) == qcow2.content(place, image)
        daemon.stop()
