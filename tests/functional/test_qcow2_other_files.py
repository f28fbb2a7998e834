"""qcow2 images that lie in several files: what an image names itself, and external data files.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import errno
import json
import os
import struct

import pytest

import fileio
import harness
import qcow2
from fileio import opened
from qcow2 import NODE, refuse
from system import KiB, MiB

SIZE = 6 * MiB + 1536
BACKING = "backing.driver = qcow2\nbacking.file.driver = file\nbacking.file.filename = base.qcow2\n"


# ---- What the image names itself

def overlay(place, name, backing, backing_format="qcow2", size=4 * MiB, options=()):
    """An overlay on whatever `backing` says."""
    words = ["-F", backing_format] if backing_format else []
    place.run("qemu-img", "create", "-q", "-u", "-f", "qcow2", *options, "-b", backing, *words, name, size)
    return place.path / name


ALLOWED = "allow-image-references = pool\n"


def make_chain(place):
    """disk.qcow2 -> pool/mid.qcow2 -> pool/base.raw; returns what the disk reads as."""
    place.directory("pool")
    place.image("pool/base.raw", 3 * MiB, data=fileio.pattern(3 * MiB))
    overlay(place, "pool/mid.qcow2", "base.raw", "raw")
    place.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x11 1M 1M", "pool/mid.qcow2")
    disk = overlay(place, "disk.qcow2", "pool/mid.qcow2")
    place.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x22 64k 64k", disk)
    return disk, qcow2.content(place, disk)


def test_chain_below_a_listed_directory(place):
    disk, data = make_chain(place)
    before = {name: (place.path / "pool" / name).read_bytes() for name in ("mid.qcow2", "base.raw")}
    daemon = place.mount(NODE.format(image=disk) + ALLOWED)
    with opened(daemon.file("disk")) as fd:
        assert os.pread(fd, 4 * MiB, 0) == data
        os.pwrite(fd, b"new", MiB)
        data = data[:MiB] + b"new" + data[MiB + 3:]
    nodes = json.loads(daemon.graph("graph.json"))["nodes"]
    assert sum(node["read-only"] for node in nodes) == 4  # two images below, and their files
    daemon.stop()
    qcow2.check(place, disk)
    qcow2.compare(place, disk, data)
    assert before == {name: (place.path / "pool" / name).read_bytes() for name in before}


@pytest.mark.parametrize("listed", ("allow-image-references = other:pool", "allow-image-references.0 = other\n"
                                    "allow-image-references.1 = pool", "allow-image-references = {path}/other:/",
                                    "allow-image-references = link"))
def test_ways_to_list(place, listed):
    disk, data = make_chain(place)
    place.directory("other")
    (place.path / "link").symlink_to("pool")
    daemon = place.mount(NODE.format(image=disk) + listed.format(path=place.path) + "\n")
    assert daemon.file("disk").read_bytes() == data
    daemon.stop()


def test_list_in_json(place):
    disk, data = make_chain(place)
    node = {"node-name": "disk", "driver": "qcow2", "file": {"driver": "file", "filename": disk.name},
            "allow-image-references": ["pool"]}
    daemon = place.mount(json.dumps({"nodes": [node]}))
    assert daemon.file("disk").read_bytes() == data
    daemon.stop()


def test_two_overlays_share_what_they_name(place):
    disk, data = make_chain(place)
    overlay(place, "two.qcow2", "pool/mid.qcow2")
    daemon = place.mount(NODE.format(image=disk) + ALLOWED
                         + NODE.format(image="two.qcow2").replace("node disk", "node two") + ALLOWED)
    assert daemon.file("disk").read_bytes() == data
    assert daemon.file("two").read_bytes()[MiB:2 * MiB] == b"\x11" * MiB
    daemon.stop()


def test_the_graph_has_the_last_word(place):
    disk, data = make_chain(place)
    daemon = place.mount(NODE.format(image=disk) + ALLOWED + "backing =\n")
    assert daemon.file("disk").read_bytes() == bytes(64 * KiB) + b"\x22" * 64 * KiB + bytes(4 * MiB - 128 * KiB)
    daemon.stop()


def test_block_device_as_backing(place):
    place.directory("pool")
    raw = place.image("pool/base.raw", 3 * MiB, data=fileio.pattern(3 * MiB))
    with place.loop(raw) as device:
        disk = overlay(place, "disk.qcow2", device, "raw", 3 * MiB)
        daemon = place.mount(NODE.format(image=disk) + "allow-image-references = /dev\n")
        assert daemon.file("disk").read_bytes() == fileio.pattern(3 * MiB)
        daemon.stop()


REFERENCES_REFUSED = (
    ("outside.qcow2", "does not lie below a directory of allow-image-references"),
    ("pool/../outside.qcow2", "does not lie below"),
    ("pool/link.qcow2", "outside.qcow2' does not lie below"),
    ("poolside/near.qcow2", "does not lie below"),
    ("{path}/outside.qcow2", "does not lie below"),
    ("/etc/passwd", "does not lie below"),
    ("pool/missing.qcow2", "No such file"),
    ("pool/fifo", "neither a regular file nor a block device"),
    ("pool", "does not lie below"),
    ("pool/sub", "neither a regular file"),
    ("nbd://localhost/x", "only names of local files are followed"),
    ("nbd:unix:/x", "only names of local files"),
    ("json:{{\"driver\":\"null-co\"}}", "only names of local files"),
    ("file:pool/near.qcow2", "only names of local files"),
    ("pool/near.qcow2/x", "Not a directory"),
    ("pool/raw.img", "pool/raw.img': node '#disk.backing': not a qcow2 image"),
)


def test_references_refused(place):
    for directory in ("pool", "pool/sub", "poolside"):
        place.directory(directory)
    for name in ("outside.qcow2", "pool/near.qcow2", "poolside/near.qcow2"):
        qcow2.create(place, name)
    place.image("pool/raw.img", MiB)
    (place.path / "pool/link.qcow2").symlink_to("../outside.qcow2")
    os.mkfifo(place.path / "pool/fifo")
    for backing, words in REFERENCES_REFUSED:
        disk = overlay(place, "disk.qcow2", backing.format(path=place.path))
        message = refuse(place, NODE.format(image=disk) + ALLOWED)
        assert words in message and "node 'disk': option 'backing" in message, backing


def test_format_is_never_guessed(place):
    place.directory("pool")
    qcow2.create(place, "pool/base.qcow2")
    disk = overlay(place, "disk.qcow2", "pool/base.qcow2")
    with opened(disk) as fd:  # qemu-img insists on a format: the extension becomes an unknown one
        header = os.pread(fd, 4096, 0)
        os.pwrite(fd, b"\0\0\0\1", header.index(b"\xe2\x79\x2a\xca"))
    assert "it does not say of which format" in refuse(place, NODE.format(image=disk) + ALLOWED)


def test_other_formats(place):
    place.directory("pool")
    qcow2.create(place, "pool/base.qcow2")
    disk = overlay(place, "disk.qcow2", "pool/base.qcow2", "raw")
    for name in ("vmdk", "file", "null-co", "nonsense"):
        with opened(disk) as fd:
            at = os.pread(fd, 4096, 0).index(b"\xe2\x79\x2a\xca")
            os.pwrite(fd, struct.pack(">I", len(name)) + name.encode(), at + 4)
        assert f"its format '{name}' is not supported" in refuse(place, NODE.format(image=disk) + ALLOWED)


def test_loops(place):
    place.directory("pool")
    overlay(place, "pool/self.qcow2", "self.qcow2")
    assert "would come to lie below itself" in refuse(
        place, NODE.format(image="pool/self.qcow2") + ALLOWED)
    for name, backing in (("a", "b"), ("b", "c"), ("c", "link")):
        overlay(place, f"pool/{name}.qcow2", f"{backing}.qcow2")
    (place.path / "pool/link.qcow2").symlink_to("a.qcow2")
    assert "a.qcow2' would come to lie below itself" in refuse(
        place, NODE.format(image="pool/a.qcow2") + ALLOWED)
    os.unlink(place.path / "pool/link.qcow2")
    os.link(place.path / "pool/b.qcow2", place.path / "pool/link.qcow2")
    assert "link.qcow2' would come to lie below itself" in refuse(
        place, NODE.format(image="pool/a.qcow2") + ALLOWED)


def test_longest_chain(place):
    place.directory("pool")
    qcow2.create(place, "pool/0000.qcow2", size=MiB)
    place.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x77 0 1M", "pool/0000.qcow2")
    template = overlay(place, "pool/template", "0000.qcow2", size=MiB).read_bytes()
    at = template.index(b"0000.qcow2")
    for number in range(1, 101):
        name = f"{number - 1:04}".encode()
        (place.path / f"pool/{number:04}.qcow2").write_bytes(template[:at] + name + template[at + 4:])
    daemon = place.mount(NODE.format(image="pool/0099.qcow2") + ALLOWED)
    assert daemon.file("disk").read_bytes() == b"\x77" * MiB
    daemon.stop()
    assert "more than 100 images that name each other" in refuse(
        place, NODE.format(image="pool/0100.qcow2") + ALLOWED)


@pytest.mark.parametrize("option, words", (
    ("allow-image-references =", "expected a list of strings, none of them empty"),
    ("allow-image-references = a::b", "expected a list of strings"),
    ("allow-image-references.x = a", "expected a list of strings"),
    ("allow-image-references = missing", "the directory '{path}/missing' of allow-image-references"),
    ("allow-image-reference = pool", "did you mean 'allow-image-references'?"),
))
def test_bad_lists(place, option, words):
    place.directory("pool")
    disk = overlay(place, "disk.qcow2", "pool/base.qcow2") if "missing" in option else qcow2.create(place, "disk.qcow2")
    qcow2.create(place, "pool/base.qcow2")
    assert words.format(path=place.path) in refuse(place, NODE.format(image=disk) + option + "\n")


# ---- External data files

DATA_FILE = "data-file.driver = file\ndata-file.filename = disk.data\n"
DATA_VARIANTS = {"plain": "", "raw": "data_file_raw=on,", "4k": "cluster_size=4k,", "512": "cluster_size=512,",
                 "extended": "extended_l2=on,", "raw-extended": "data_file_raw=on,extended_l2=on,",
                 "raw-512": "data_file_raw=on,cluster_size=512,", "metadata": "preallocation=metadata,"}


def create_with_data(place, variant, size=SIZE):
    return qcow2.create(place, "disk.qcow2", f"{DATA_VARIANTS[variant]}data_file=disk.data", size)


def raw_bit(image):
    with opened(image, os.O_RDONLY) as fd:
        return struct.unpack(">Q", os.pread(fd, 8, 88))[0] == 2


def check_data(place, image, variant, data):
    """qemu-img agrees; and raw, the data file alone says the same."""
    qcow2.check(place, image)
    qcow2.compare(place, image, data)
    assert raw_bit(image) == variant.startswith("raw")
    raw = (place.path / "disk.data").read_bytes()
    if variant.startswith("raw"):
        assert raw[:len(data)] == data and not any(raw[len(data):])
    # qemu-img makes it longer itself where it allocates the last cluster.
    assert len(raw) == len(data) or (variant in ("raw", "raw-extended", "metadata") and len(raw) < len(data) + 64 * KiB)


@pytest.mark.parametrize("variant", DATA_VARIANTS)
def test_data_file(place, variant):
    image = create_with_data(place, variant)
    fill = [word for at in range(5) for word in ("-c", f"write -q -P {at + 1} {at * MiB + 512} 150k",
                                                 "-c", f"write -q -z {at * MiB + 64 * KiB} 64k",
                                                 "-c", f"discard -q {at * MiB + 128 * KiB} 64k")]
    place.run("qemu-io", "-f", "qcow2", *fill, image)
    mirror = bytearray(qcow2.content(place, image))
    for number in range(2):
        daemon = place.mount(NODE.format(image=image) + DATA_FILE, at=f"mnt{number}")
        assert daemon.file("disk").read_bytes() == mirror
        mirror = qcow2.random_operations(daemon.file("disk"), 0, mirror, number, harness.count(80, 2000))
        daemon.stop()
        check_data(place, image, variant, mirror)


@pytest.mark.parametrize("variant", ("plain", "raw", "4k", "extended", "raw-512"))
def test_data_file_shrinks_and_grows(place, variant):
    image = create_with_data(place, variant)
    data = fileio.pattern(SIZE)
    daemon = place.mount(NODE.format(image=image) + DATA_FILE)
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, data, 0)
        for length in (3 * MiB + 512, 1000, 0):
            os.ftruncate(fd, length)
            os.fsync(fd)
            assert (place.path / "disk.data").stat().st_size == length
            os.ftruncate(fd, SIZE + MiB)
            data = data[:length] + bytes(SIZE + MiB - length)
            assert os.pread(fd, SIZE + MiB, 0) == data
        os.pwrite(fd, b"end", SIZE + MiB - 3)
    daemon.stop()
    check_data(place, image, variant, data[:-3] + b"end")


@pytest.mark.parametrize("variant", ("plain", "raw"))
def test_data_file_is_freed(place, variant):
    image = create_with_data(place, variant, 16 * MiB)
    daemon = place.mount(NODE.format(image=image) + DATA_FILE)
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, fileio.pattern(8 * MiB), 0)
        os.fsync(fd)
        assert os.fstat(fd).st_blocks * 512 >= 8 * MiB
        fileio.punch_hole(fd, 0, 8 * MiB)
        os.fsync(fd)
        assert os.stat(place.path / "disk.data").st_blocks * 512 < MiB
        assert os.pread(fd, 8 * MiB, 0) == bytes(8 * MiB)
        assert fileio.extents(fd, 16 * MiB) == []
    daemon.stop()
    check_data(place, image, variant, bytes(16 * MiB))


def test_data_file_does_not_grow_by_zeroes(place):
    """The image ends in the middle of a cluster, which is zeroed up to there."""
    image = create_with_data(place, "plain")
    daemon = place.mount(NODE.format(image=image) + DATA_FILE)
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, fileio.pattern(SIZE), 0)
        fileio.punch_hole(fd, 6 * MiB, SIZE - 6 * MiB)
    daemon.stop()
    check_data(place, image, "plain", fileio.pattern(SIZE)[:6 * MiB] + bytes(SIZE - 6 * MiB))


def test_data_file_over_a_backing(place):
    base = qcow2.create(place, "base.qcow2", "", 4 * MiB)
    place.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 0x55 0 4M", base)
    image = qcow2.create(place, "disk.qcow2", "data_file=disk.data", 4 * MiB, "base.qcow2")
    daemon = place.mount(NODE.format(image=image) + DATA_FILE + BACKING)
    mirror = bytearray(b"\x55" * 4 * MiB)
    mirror = qcow2.random_operations(daemon.file("disk"), 0, mirror, 3, 60)
    daemon.stop()
    qcow2.check(place, image)
    qcow2.compare(place, image, mirror)


def test_data_file_on_a_device(place):
    """The device is as long as the image, which ends in the middle of a cluster."""
    size = MiB + 512
    disk = place.image("device.img", size)
    with place.loop(disk) as device:
        place.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={device}", "disk.qcow2", str(size))
        daemon = place.mount(NODE.format(image="disk.qcow2")
                             + f"data-file.driver = host_device\ndata-file.filename = {device}\n")
        with opened(daemon.file("disk")) as fd:
            os.pwrite(fd, fileio.pattern(size), 0)
            os.pwrite(fd, bytes(700), size - 700)
        daemon.stop()
        qcow2.check(place, "disk.qcow2")
        qcow2.compare(place, "disk.qcow2", fileio.pattern(size)[:-700] + bytes(700))


@pytest.mark.parametrize("variant", ("plain", "raw-512", "extended"))
def test_kill_with_a_data_file(place, variant):
    image = create_with_data(place, variant)
    daemon = place.mount(NODE.format(image=image) + DATA_FILE)
    synced = fileio.pattern(2 * MiB)
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, synced, 0)
        os.fsync(fd)
        os.pwrite(fd, fileio.pattern(3 * MiB, 2), 2 * MiB)
        daemon.crash()
    done = place.run("qemu-img", "check", image, check=False)
    assert done.returncode in (0, 3), done.stdout
    assert qcow2.content(place, image)[:2 * MiB] == synced


def test_data_file_named_by_the_image(place):
    place.directory("pool")
    image = qcow2.create(place, "disk.qcow2", "data_file=pool/disk.data", SIZE)
    assert "the image names the data file 'pool/disk.data', which is not opened by itself" in refuse(
        place, NODE.format(image=image))
    daemon = place.mount(NODE.format(image=image) + ALLOWED)
    daemon.file("disk").write_bytes(fileio.pattern(SIZE))
    assert os.listdir(daemon.mountpoints[0] / ".graph/nodes/disk/children") == ["file", "data-file"]
    daemon.stop()
    qcow2.check(place, image)
    assert (place.path / "pool/disk.data").read_bytes() == fileio.pattern(SIZE)
    daemon = place.mount(NODE.format(image=image) + ALLOWED + "read-only = on\n", at="read-only")
    assert daemon.file("disk").read_bytes() == fileio.pattern(SIZE)
    daemon.stop()


@pytest.mark.parametrize("graph, words", (
    ("data-file = file\n[node file]\ndriver = null-co\nread-only = on\n", None),
    ("data-file =\n", "data-file"),
    ("data-file.driver = file\ndata-file.filename = nothing.data\n", "nothing.data"),
    (ALLOWED, "does not lie below"),
    ("allow-image-references = .\nbacking =\n", None),
))
def test_what_a_data_file_may_be(place, graph, words):
    place.directory("pool")
    image = create_with_data(place, "plain")
    if words:
        assert words in refuse(place, NODE.format(image=image) + graph)
    else:
        place.mount(NODE.format(image=image) + graph).stop()


def test_an_image_is_not_its_own_data_file(place):
    image = create_with_data(place, "plain")
    with opened(image) as fd:
        at = os.pread(fd, 4096, 0).index(b"disk.data")
        os.pwrite(fd, b"disk.qcow", at)
    os.link(image, place.path / "disk.qcow")
    assert "would come to lie below itself" in refuse(
        place, NODE.format(image=image) + "allow-image-references = .\n")
    assert "is the node of the image itself" in refuse(
        place, "[node disk]\ndriver = qcow2\nread-only = on\nfile = f\ndata-file = f\n"
        f"[node f]\ndriver = file\nfilename = {image}\nread-only = on\n")


def test_no_data_file_needed(place):
    image = qcow2.create(place, "disk.qcow2")
    place.image("disk.data", MiB)
    assert "option 'data-file': the image keeps its data in itself" in refuse(
        place, NODE.format(image=image) + DATA_FILE)


def test_data_at_another_place(place):
    """In a data file a cluster has its guest offset as its place: anything else is corruption."""
    image = create_with_data(place, "plain")
    place.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 128k", image)
    with opened(image) as fd:
        l1_offset, = struct.unpack(">Q", os.pread(fd, 8, 40))
        l2_offset = struct.unpack(">Q", os.pread(fd, 8, l1_offset))[0] & 0xfffffffffffe00
        os.pwrite(fd, struct.pack(">Q", 1 << 63 | 0x20000), l2_offset)
    daemon = place.mount(NODE.format(image=image) + DATA_FILE)
    with opened(daemon.file("disk")) as fd:
        with pytest.raises(OSError) as refused:
            os.pread(fd, 4096, 0)
        assert refused.value.errno == errno.EIO
    assert "corrupt" in daemon.graph("errors")
    daemon.stop()


def test_no_snapshots_beside_a_data_file(place):
    image = create_with_data(place, "plain")
    daemon = place.mount(NODE.format(image=image) + DATA_FILE)
    with pytest.raises(OSError) as refused:
        os.mkdir(daemon.mountpoints[0] / ".snap/one")
    assert refused.value.errno == errno.EOPNOTSUPP
    assert "external data file" in daemon.graph("errors")
    daemon.stop()


@pytest.mark.faulty  # qemu-img does without no data file
@pytest.mark.parametrize("options", ("", ",data_file_raw=on", ",extended_l2=on"))
def test_check_with_an_external_data_file(place, options):
    """Its tables alone are checked; the data file need not be there."""
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=disk.raw" + options, "disk.qcow2", "6M")
    place.run("qemu-io", "-f", "qcow2", "-c", "write 0 1M", "-c", "write 3M 100k", "-c", "discard 64k 128k",
              "disk.qcow2")
    (place.path / "disk.raw").unlink()
    done = place.run(place.binary.with_name("blockgraph"), "check", "disk.qcow2")
    assert "No errors were found" in done.stdout


@pytest.mark.parametrize("variant", ("plain", "raw", "extended", "raw-512"))
def test_check_with_a_data_file(place, variant):
    """Only what lies in the image is checked; what qemu-img calls good we do, too."""
    image = create_with_data(place, variant)
    place.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 3M", "-c", "write -q -z 64k 64k",
              "-c", "discard -q 1M 128k", image)
    data = qcow2.content(place, image)
    tool = place.binary.parent / "blockgraph"
    before = image.read_bytes()
    for options in ((), ("--repair",)):
        place.run(tool, "check", *options, image)
        assert image.read_bytes() == before
    with opened(image) as fd:  # marked dirty: repaired when it is opened
        os.pwrite(fd, struct.pack(">Q", 5 | (16 if "extended" in variant else 0)), 72)
    daemon = place.mount(NODE.format(image=image) + DATA_FILE, stderr_allowed="refcounts|dirty|repair")
    assert daemon.file("disk").read_bytes() == data
    daemon.stop()
    qcow2.check(place, image)
    qcow2.compare(place, image, data)
