"""qcow2 images that were made to do harm: refused with a message, or EIO where they contradict themselves; never a
crash, a hang, or much memory. Meanwhile the daemon serves other nodes.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import concurrent.futures
import contextlib
import errno
import os
import signal
import struct
import zlib

import pytest

import harness
import qcow2
from fileio import opened
from qcow2 import NODE
from system import KiB, MiB

pytestmark = pytest.mark.faulty

CLUSTER = 64 * KiB
SIZE = 6 * MiB
COPIED, COMPRESSED = 1 << 63, 1 << 62
GiB, TiB = 1 << 30, 1 << 40
# Beside what is allocated, the address sanitizer keeps what was freed, and shadows of all.
SANITIZED = any(word in os.environ.get("BLOCKGRAPHFS", "") for word in ("asan", "tsan"))
MOST_MEMORY = 64 * MiB

OTHER = """
[node other]
driver = null-co
size = 1M

[export disk]
node = disk
writable = {writable}

[export other]
node = other
"""


class Image:
    """An image of qemu-img's, to be patched."""

    def __init__(self, place, options="", size=SIZE, data=True):
        self.path = qcow2.create(place, "disk.qcow2", options, size)
        if data:
            place.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 1M", "-c", "write -q -P 8 3M 64k", self.path)
        self.file = None

    def __enter__(self):
        self.file = open(self.path, "r+b", buffering=0)
        return self

    def __exit__(self, *_):
        self.file.close()

    def get(self, offset, form=">Q"):
        return struct.unpack(form, os.pread(self.file.fileno(), struct.calcsize(form), offset))[0]

    def put(self, offset, value, form=">Q"):
        os.pwrite(self.file.fileno(), struct.pack(form, value), offset)

    def write(self, offset, data):
        os.pwrite(self.file.fileno(), data, offset)

    def grow(self, length):
        os.truncate(self.path, length)

    @property
    def l1(self):
        return self.get(40)

    @property
    def l2(self):
        return self.get(self.l1) & ~COPIED

    @property
    def reftable(self):
        return self.get(48)

    @property
    def refblock(self):
        return self.get(self.reftable)


def most_memory(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * KiB for line in status if line.startswith("VmHWM:"))


def mount(place, writable=True, **kwargs):
    graph = NODE.format(image="disk.qcow2") + OTHER.format(writable="on" if writable else "off")
    return place.mount(graph, "-o", "queues=2", **kwargs)


def refuse(place, *words):
    message = place.refuse(place.write("graph.conf", NODE.format(image="disk.qcow2")), place.directory("mnt"))
    for word in ("'disk'", *words):
        assert word in message, message


@pytest.fixture(scope="module")
def healthy_memory():
    """What the daemon takes for the same work on a sound image; measured once."""
    return {}


def use(daemon):
    """Read, write, sync, snapshots, whatever of it works. Returns the errors that came."""
    errors = set()

    def attempt(function, *args):
        try:
            function(*args)
        except OSError as error:
            errors.add(error.errno)
            return False
        return True

    path = daemon.file("disk")
    for flags in os.O_RDONLY, os.O_RDWR:
        with contextlib.suppress(PermissionError), opened(path, flags) as fd:
            size = os.fstat(fd).st_size
            for offset in (0, 64 * KiB, MiB, 3 * MiB, size // 2, max(size - 4096, 0)):
                attempt(os.pread, fd, 256 * KiB, offset)
            if flags == os.O_RDWR:
                for offset in (0, 100, MiB - 50, 5 * MiB, size // 2, max(size - 512, 0)):
                    attempt(os.pwrite, fd, b"x" * min(512, size), offset)
                attempt(os.fsync, fd)
    snapshot = daemon.file(".snap") / "new"
    if attempt(os.mkdir, snapshot):
        if size <= 64 * MiB:
            attempt((snapshot / "disk").read_bytes)
        attempt(os.rmdir, snapshot)
    return errors


def stop(daemon, failed):
    """What could not be written is told again at the end."""
    daemon.stderr_allowed = "Input/output error|File too large" if failed else None
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.wait(timeout=20 * harness.TIME_SCALE)
    daemon.expected_status = 1 if failed and daemon.process.returncode == 1 else 0
    daemon.check_end()


def serve(place, healthy_memory, errors, writable=True):
    """The image is served with these errors at most, in little memory, beside another node."""
    daemon = mount(place, writable)
    got = use(daemon)
    assert got <= errors, f"unexpected: {[errno.errorcode[e] for e in got]}"
    assert daemon.file("other").read_bytes() == bytes(MiB)
    memory = most_memory(daemon.pid)
    stop(daemon, got)
    if "bytes" in healthy_memory and not SANITIZED:
        assert memory <= healthy_memory["bytes"] + MOST_MEMORY, f"{memory / MiB} MiB"
    return memory, got


@pytest.fixture
def hostile(place, healthy_memory):
    """hostile(errors): serve the image that the test has made."""
    if "bytes" not in healthy_memory:
        Image(place)
        healthy_memory["bytes"], got = serve(place, {}, set())
        assert not got
        os.unlink(place.path / "disk.qcow2")

    def check(*errors, **kwargs):
        return serve(place, healthy_memory, set(errors), **kwargs)[1]

    check.most_memory = healthy_memory["bytes"] + MOST_MEMORY
    return check


# ---- Refused

@pytest.mark.parametrize("what, fields, word", [
    ("L1 of terabytes", [(36, ">I", 0xffffffff)], "L1 table is too large"),
    ("disk of exbibytes", [(24, ">Q", 1 << 62)], "L1 table is too large"),
    ("L1 beyond the end", [(40, ">Q", 1 << 50)], "L1 table is not in the file"),
    ("L1 at the header", [(40, ">Q", 0)], "L1 table is not in the file"),
    ("refcount table at the header", [(48, ">Q", 0)], "refcount table is not in the file"),
    ("refcount table of gigabytes", [(56, ">I", 1 << 16)], "refcount table is too large"),
    ("snapshot table beyond the end", [(60, ">I", 3), (64, ">Q", 1 << 40)], "snapshot table is not in the file"),
    ("snapshots without end", [(60, ">I", 0xffffffff), (64, ">Q", 0x30000)], "4294967295 snapshots"),
    ("snapshot table full of ones", [(60, ">I", 1), (64, ">Q", 0x60000)], "snapshot table"),
], ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "")
def test_refused(place, what, fields, word):
    with Image(place) as image:
        if what.endswith("ones"):
            image.grow(CLUSTER * 16)
            image.write(0x60000, b"\xff" * 4096)
        for offset, form, value in fields:
            image.put(offset, value, form)
    refuse(place, word)


def test_huge_tables_in_a_sparse_file(place):
    """Tables that lie in the file, as that is long and empty, but are larger than any that we take."""
    with Image(place) as image:
        image.grow(TiB)
        image.put(36, 1 << 23, ">I")
        image.put(40, GiB)
    refuse(place, "L1 table is too large")


def test_itself_as_backing(place):
    image = qcow2.create(place, "disk.qcow2", backing="diskkqcow2")
    with opened(image) as fd:
        at = os.pread(fd, 4096, 0).index(b"diskkqcow2")
        os.pwrite(fd, b"disk.qcow2", at)
    refuse(place, "backing", "disk.qcow2")
    graph = NODE.format(image="disk.qcow2")
    for more, word in ((f"allow-image-references = {place.path}\n", "itself"),
                       ("backing = disk\n", "disk -> disk"),
                       ("backing.driver = qcow2\nbacking.file.driver = file\n"
                        "backing.file.filename = disk.qcow2\n", "disk.qcow2")):
        message = place.refuse(place.write("graph.conf", graph + more), place.directory("mnt"))
        assert word in message, message


# ---- Tables that overlap

def point_to(where):
    def entry(image):
        return {"header": 0, "refcount table": image.reftable, "refcount block": image.refblock, "L1": image.l1,
                "L2": image.l2, "another's": image.get(image.l2 + 8) & ~COPIED}[where]
    return entry


@pytest.mark.parametrize("where", ["refcount table", "refcount block", "L1", "L2"])
@pytest.mark.parametrize("copied", [0, COPIED], ids=["shared", "copied"])
def test_data_in_tables(place, hostile, where, copied):
    """An L2 entry that leads to a table: it may be read, but nothing in the table may change."""
    with Image(place) as image:
        target = point_to(where)(image)
        image.put(image.l2, target | copied)
        before = os.pread(image.file.fileno(), 4096, target)
    got = hostile(errno.EIO)
    assert not copied or got == {errno.EIO}
    if where == "refcount table":
        assert before == (place.path / "disk.qcow2").read_bytes()[target:target + 4096]


def test_one_cluster_for_two(place, hostile):
    with Image(place) as image:
        image.put(image.l2, point_to("another's")(image) | COPIED)
    hostile(errno.EIO)


@pytest.mark.parametrize("where", ["header", "refcount table", "refcount block", "L1"])
def test_l2_in_other_tables(place, hostile, where):
    with Image(place) as image:
        image.put(image.l1, point_to(where)(image) | COPIED)
    hostile(errno.EIO)


@pytest.mark.parametrize("where", ["refcount table", "L1", "L2"])
def test_refcounts_in_other_tables(place, hostile, where):
    with Image(place) as image:
        image.put(image.reftable, point_to(where)(image))
    hostile(errno.EIO)


@pytest.mark.parametrize("where", [1 << 55, (1 << 40) + CLUSTER, 0x123 << 9], ids=["far", "beyond", "unaligned"])
@pytest.mark.parametrize("table", ["l1", "l2", "reftable"])
def test_entries_that_lead_nowhere(place, hostile, where, table):
    with Image(place) as image:
        image.put(getattr(image, table), where | (COPIED if table != "reftable" else 0))
    hostile(errno.EIO, errno.EFBIG)


def test_no_refcounts_at_all(place, hostile):
    """All clusters look free: what is taken would lie in tables."""
    with Image(place) as image:
        image.write(image.refblock, bytes(CLUSTER))
    assert hostile(errno.EIO) == {errno.EIO}


# ---- Compressed clusters

def compressed_entry(offset, sectors):
    return COMPRESSED | (sectors - 1) << (62 - (16 - 8)) | offset


def zstd_frame(window_log, blocks):
    """A frame whose header asks for a window, with blocks that each repeat one byte."""
    data = struct.pack("<IB", 0xfd2fb528, 0) + bytes([(window_log - 10) << 3])
    for i, size in enumerate(blocks):
        last = i == len(blocks) - 1
        data += struct.pack("<I", size << 3 | 1 << 1 | last)[:3] + b"Z"
    return data


def deflate(data):
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize("kind, data, good", [
    ("zlib", deflate(bytes(64 * MiB)), True),  # more than the cluster: what lies beyond is not looked at
    ("zlib", deflate(bytes(CLUSTER))[:-20], False),
    ("zlib", deflate(b"short"), False),
    ("zlib", b"\xff" * 2000, False),
    ("zlib", b"", False),
    ("zstd", zstd_frame(23, [128 * KiB - 1] * 1000), True),
    ("zstd", zstd_frame(31, [CLUSTER]), False),
    ("zstd", zstd_frame(23, [100]), False),
    ("zstd", zstd_frame(17, [CLUSTER])[:8], False),
    ("zstd", b"\xff" * 2000, False),
    ("zstd", struct.pack("<II", 0x184d2a50, 0xfffffff0), False),  # a frame to be skipped
    ("zstd", b"", False),
], ids=lambda value: "" if isinstance(value, bytes) else str(value))
def test_compressed(place, hostile, kind, data, good):
    data = data[:64 * KiB - 512]
    with Image(place, f"compression_type={kind}") as image:
        place_of_data = os.fstat(image.file.fileno()).st_size
        image.write(place_of_data, data.ljust(CLUSTER, b"\0"))
        image.put(image.l2, compressed_entry(place_of_data, max(1, -(-len(data) // 512))))
    got = hostile(errno.EIO)
    assert got == (set() if good else {errno.EIO}) or (good and got == {errno.EIO})


@pytest.mark.parametrize("cluster", [64 * KiB, 2 * MiB])
def test_many_bombs_at_once(place, hostile, cluster):
    """Each wants a window of 8 MiB; together they do not get more than a few do."""
    bits = cluster.bit_length() - 1
    with Image(place, f"compression_type=zstd,cluster_size={cluster}", 64 * cluster, data=False) as image:
        pass
    place.run("qemu-io", "-f", "qcow2", "-c", "write -q 0 512", image.path)
    data = zstd_frame(23, [100 * KiB] * 90)
    with image:
        at = os.fstat(image.file.fileno()).st_size
        image.write(at, data.ljust(cluster, b"\0"))
        for i in range(64):
            image.put(image.l2 + 8 * i, COMPRESSED | (-(-len(data) // 512) - 1) << (62 - (bits - 8)) | at)
    graph = NODE.format(image="disk.qcow2") + "read-only = on\n"
    daemon = place.mount(graph, "-o", "queues=2")

    def read(i):
        with opened(daemon.file("disk"), os.O_RDONLY) as fd:
            return os.pread(fd, 4096, i * cluster)

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        for got in pool.map(read, range(64)):
            assert got == b"Z" * 4096
    memory = most_memory(daemon.pid)
    daemon.stop()
    assert SANITIZED or memory <= hostile.most_memory, f"{memory / MiB} MiB"


# ---- Snapshots

def snapshot_entry(l1_offset, l1_entries, name, length=SIZE):
    extra = struct.pack(">QQ", 0, length)
    fixed = struct.pack(">QIHHIIQII", l1_offset, l1_entries, 1, len(name), 0, 0, 0, 0, len(extra))
    entry = fixed + extra + b"1" + name
    return entry + bytes(-len(entry) % 8)


def with_snapshots(image, entries, at=CLUSTER * 64):
    image.grow(max(os.fstat(image.file.fileno()).st_size, at + CLUSTER))
    image.write(at, b"".join(entries))
    image.put(60, len(entries), ">I")
    image.put(64, at)


@pytest.mark.parametrize("l1, n, word", [
    (1 << 50, 1, "not in the file"), (0, 1 << 31, "too large"), (CLUSTER + 8, 1, "not in the file"),
    (CLUSTER * 3, 0, "too small")])
def test_snapshot_without_a_table(place, l1, n, word):
    with Image(place) as image:
        with_snapshots(image, [snapshot_entry(l1, n, b"s")])
    refuse(place, "snapshot table, entry 0", word)


def test_snapshot_whose_name_never_ends(place):
    with Image(place) as image:
        entry = bytearray(snapshot_entry(image.l1, 1, b"s"))
        entry[36:40] = struct.pack(">I", 0xfffffff0)
        with_snapshots(image, [bytes(entry)])
    refuse(place, "snapshot table, entry 0")


@pytest.mark.parametrize("where", ["header", "refcount table", "refcount block", "L1", "L2"])
def test_snapshot_in_other_tables(place, hostile, where):
    with Image(place) as image:
        with_snapshots(image, [snapshot_entry(point_to(where)(image), 1, b"s")])
    daemon = mount(place)
    for function, name in ((os.mkdir, "t"), (os.rmdir, "s"), (os.rmdir, "t")):
        with contextlib.suppress(OSError):
            function(daemon.file(".snap") / name)
    stop(daemon, True)


def test_huge_l1_of_snapshots(place, hostile):
    """The L1 tables lie in a file of terabytes without data, of 32 MiB each."""
    with Image(place) as image:
        image.grow(4 * TiB)
        with_snapshots(image, [snapshot_entry(GiB + 32 * MiB * i, 1 << 22, b"s%d" % i) for i in range(60)])
    daemon = mount(place)
    files = []
    for i in range(60):
        with contextlib.suppress(OSError):
            files.append(open(daemon.file(".snap") / f"s{i}" / "disk", "rb", buffering=0))
    assert files
    for file in files:
        assert file.read(4096) == bytes(4096)
        file.close()
    for i in range(3):
        with contextlib.suppress(OSError):
            os.rmdir(daemon.file(".snap") / f"s{i}")
    memory = most_memory(daemon.pid)
    daemon.stop()
    assert SANITIZED or memory <= hostile.most_memory, f"{memory / MiB} MiB"


def test_one_l2_table_everywhere(place, hostile):
    """All entries of an L1 table lead to one L2 table, whose refcount is as high as can be."""
    with Image(place, "refcount_bits=64", size=8 * TiB) as image:
        for i in range(16384):
            image.put(image.l1 + 8 * i, image.l2)
        for cluster in range(4096):
            if image.get(image.refblock + 8 * cluster):
                image.put(image.refblock + 8 * cluster, 1 << 40)
    hostile(errno.EIO, errno.ENOTSUP, errno.EFBIG)


def test_refcount_blocks_of_terabytes(place, hostile):
    """Refcount blocks all over a sparse file: a snapshot would have to copy them all."""
    with Image(place) as image:
        image.grow(8 * TiB)
        for i in range(1, 4000):
            image.put(image.reftable + 8 * i, TiB + CLUSTER * i)
    hostile(errno.EIO, errno.EFBIG)
