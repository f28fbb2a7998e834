"""blockgraph check: agrees with qemu-img check on good and on broken images, and repairs.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import json
import os
import pty
import random
import struct
import subprocess

import pytest

import harness
import qcow2
from fileio import opened
from system import KiB, MiB

pytestmark = pytest.mark.faulty

SIZE = 6 * MiB + 1536
COPIED = 1 << 63
# A second opinion has other keys, or counts otherwise what is broken more than once.
SAME = ("image-end-offset", "total-clusters", "allocated-clusters", "compressed-clusters", "fragmented-clusters")


class Image:
    """Where the tables of an image lie."""

    def __init__(self, path):
        self.path = path
        with opened(path, os.O_RDONLY) as fd:
            head = os.pread(fd, 104, 0)
        self.version, = struct.unpack(">I", head[4:8])
        self.cluster = 1 << struct.unpack(">I", head[20:24])[0]
        self.l1_size, self.l1, self.reftable, self.n_reftable = struct.unpack(">IQQI", head[36:60])
        self.l2 = [e & 0x00fffffffffffe00 for e in self.numbers(self.l1, self.l1_size) if e]
        self.blocks = [e for e in self.numbers(self.reftable, self.n_reftable * self.cluster // 8) if e]
        self.stride = 16 if self.version > 2 and head[79] & 16 else 8

    def numbers(self, offset, n):
        with opened(self.path, os.O_RDONLY) as fd:
            return struct.unpack(f">{n}Q", os.pread(fd, n * 8, offset).ljust(n * 8, b"\0"))

    def get(self, offset):
        return self.numbers(offset, 1)[0]

    def put(self, offset, number):
        with opened(self.path) as fd:
            os.pwrite(fd, struct.pack(">Q", number), offset)

    def put_refcount(self, cluster, value):
        """16 bits, in the first block."""
        with opened(self.path) as fd:
            os.pwrite(fd, struct.pack(">H", value), self.blocks[0] + 2 * cluster)


def theirs(place, image):
    done = place.run("qemu-img", "check", "--output=json", "-f", "qcow2", image, check=False)
    return done.returncode, json.loads(done.stdout)


def ours(place, image, *options):
    done = place.client("check", "--json", *options, image, check=False)
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def agree(place, image, shared=False):
    """The verdict; and all numbers where nothing is wrong. shared: qemu-img counts a table once an entry."""
    status, told = theirs(place, image)
    before = image.read_bytes()
    mine, data, text = ours(place, image)
    assert mine == status, text
    assert image.read_bytes() == before
    assert bool(data["corruptions"]) == bool(told.get("corruptions"))
    if status in (0, 3):
        assert data["leaks"] == told.get("leaks", 0)
        assert shared or {k: data[k] for k in SAME} == {k: told.get(k, 0) for k in SAME}
    return status


def repaired(place, image, *, fixed=None, content=None, shared=False):
    """All of it, as qemu-img sees it, and there is nothing left to do."""
    mine, data, text = ours(place, image, "--repair")
    assert mine == 0 and (data["corruptions-fixed"] or data["leaks-fixed"]), text
    assert fixed is None or (data["corruptions-fixed"], data["leaks-fixed"]) == fixed
    assert agree(place, image, shared) == 0
    qcow2.check(place, image)
    if content is not None:
        assert qcow2.content(place, image) == content
    again, data, _ = ours(place, image, "--repair")
    assert again == 0 and data["corruptions-fixed"] == data["leaks-fixed"] == 0


@pytest.fixture
def image(place):
    """Two L2 tables, some data, in 4 KiB clusters."""
    path = qcow2.create(place, "disk.qcow2", "cluster_size=4k", SIZE)
    place.run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 40k", "-c", "write -P 2 4M 12k", path)
    return Image(path)


# ---- Good images

@pytest.mark.parametrize("variant", qcow2.VARIANTS)
def test_good(place, variant):
    path = qcow2.create(place, "disk.qcow2", qcow2.VARIANTS[variant], SIZE)
    assert agree(place, path) == 0
    qcow2.fill(place, path, SIZE, seed=len(variant), number=16)
    agree(place, path)  # qemu-io of QEMU 7.2 at times leaves an error, with compressed clusters
    if not variant.endswith(("refcount1", "refcount2", "refcount4")):
        place.run("qemu-img", "snapshot", "-c", "s", path)
        qcow2.fill(place, path, SIZE, seed=3, number=6)
        agree(place, path)


def test_good_with_snapshots(place):
    path = qcow2.create(place, "disk.qcow2", "cluster_size=512", SIZE)
    for number in range(4):
        place.run("qemu-io", "-f", "qcow2", "-c", f"write {number}M 700k", "-c", "write -z 2M 100k", path)
        place.run("qemu-img", "snapshot", "-c", f"s{number}", path)
    assert agree(place, path) == 0
    place.run("qemu-img", "snapshot", "-d", "s1", path)
    assert agree(place, path) == 0


@pytest.mark.parametrize("options", ["", "cluster_size=512", "cluster_size=4k,extended_l2=off", "extended_l2=on"])
def test_bitmaps(place, options):
    path = qcow2.create(place, "disk.qcow2", options, SIZE)
    for name in ("one", "another-with-a-longer-name", "off"):
        place.run("qemu-img", "bitmap", "--add", *(["-g", "4k"] if name == "one" else []), path, name)
    place.run("qemu-img", "bitmap", "--disable", path, "off")
    qcow2.fill(place, path, SIZE, seed=4)
    assert agree(place, path) == 0
    mine, data, _ = ours(place, path, "--repair")
    assert mine == 0 and not data["corruptions-fixed"]
    assert "off" in place.run("qemu-img", "info", path).stdout


@pytest.mark.parametrize("options", ["", "data_file_raw=on", "extended_l2=on", "cluster_size=512"])
def test_external_data_file(place, options):
    """It need not be there: only the tables are looked at."""
    options += "," if options else ""
    path = qcow2.create(place, "disk.qcow2", f"{options}data_file=data.raw", SIZE)
    place.run("qemu-io", "-f", "qcow2", "-c", "write 0 300k", "-c", "write -z 100k 64k", "-c", "write 5M 10k", path)
    assert agree(place, path) == 0
    (place.path / "data.raw").rename(place.path / "elsewhere")
    assert ours(place, path)[0] == 0
    where = Image(path)
    where.put(where.l2[0] + where.stride, 2 * where.cluster | COPIED)
    assert ours(place, path, "--repair")[0] == 2
    where.put(where.l2[0] + where.stride, where.cluster | COPIED)
    where.put(where.reftable, 0)
    assert ours(place, path, "--repair")[0] == 0
    (place.path / "elsewhere").rename(place.path / "data.raw")
    assert agree(place, path) == 0


def test_compressed_in_an_external_data_file(place):
    """There must be none: told, and left as it is."""
    path = qcow2.create(place, "disk.qcow2", "data_file=data.raw", SIZE)
    place.run("qemu-io", "-f", "qcow2", "-c", "write 0 300k", path)
    where = Image(path)
    entry = COPIED | 1 << 62 | where.cluster
    where.put(where.l2[0] + where.stride, entry)
    for options in ([], ["--repair"], []):
        status, data, text = ours(place, path, *options)
        assert status == 2 and data["corruptions"] == 1 and "compressed, in an external data file" in text
        assert where.get(where.l2[0] + where.stride) == entry


def test_compressed(place):
    (place.path / "raw").write_bytes(bytes(range(256)) * 4096 * 4 + os.urandom(300 * KiB))
    for options in ("", "cluster_size=2M", "cluster_size=512", "compression_type=zstd,extended_l2=on"):
        place.run("qemu-img", "convert", "-c", "-O", "qcow2", *(["-o", options] if options else []), "raw",
                  "disk.qcow2")
        assert agree(place, place.path / "disk.qcow2") == 0


def test_made_by_the_daemon(place):
    path = qcow2.create(place, "disk.qcow2", "cluster_size=4k", SIZE)
    place.run("qemu-img", "snapshot", "-c", "s", path)
    daemon = place.mount(qcow2.NODE.format(image=path))
    qcow2.random_operations(daemon.file("disk"), 0, bytearray(SIZE), 3, 120)
    done = place.client("check", path, check=False)
    assert done.returncode == 1 and "another process" in done.stderr
    daemon.stop()
    assert agree(place, path) == 0


def test_text(place, image):
    done = place.client("check", image.path)
    assert done.stdout == place.client("check", image.path, "-f", "qcow2").stdout
    assert done.stdout.splitlines()[0] == "No errors were found." and done.stderr == ""
    assert "13/1537 = 0.85% allocated, 0.00% fragmented, 0.00% compressed clusters" in done.stdout
    image.put_refcount(3, 7)
    done = place.client("check", image.path, check=False)
    assert "1 leaked clusters" in done.stdout and "cluster 3 leaks" in done.stderr


def test_progress_on_a_terminal(place, image):
    leader, follower = pty.openpty()
    subprocess.run([place.binary.with_name("blockgraph"), "check", image.path], check=True, stderr=follower,
                   stdout=subprocess.DEVNULL, timeout=60)
    os.close(follower)
    assert b"% checked" in os.read(leader, 65536)
    os.close(leader)


# ---- Broken ones

def test_leak(place, image):
    content = qcow2.content(place, image.path)
    end = image.path.stat().st_size // image.cluster
    os.truncate(image.path, (end + 4) * image.cluster)
    for cluster in range(end, end + 3):
        image.put_refcount(cluster, 1)
    image.put_refcount(image.get(image.l2[0]) % COPIED // image.cluster, 3)
    # The flag does not fit the wrong refcount: that is an error, besides.
    assert agree(place, image.path) == 2
    mine, data, _ = ours(place, image.path, "--repair=leaks")
    assert data["leaks-fixed"] == 4 and mine == 0
    assert agree(place, image.path) == 0
    assert qcow2.content(place, image.path) == content


def test_only_leaks(place, image):
    end = image.path.stat().st_size // image.cluster
    os.truncate(image.path, (end + 2) * image.cluster)
    image.put_refcount(end + 1, 1)
    assert agree(place, image.path) == 3
    repaired(place, image.path, fixed=(0, 1))


def low_refcount(image):
    image.put_refcount(image.get(image.l2[0]) % COPIED // image.cluster, 0)


def low_refcount_of_l1(image):
    image.put_refcount(image.l1 // image.cluster, 0)


def copied_missing(image):
    image.put(image.l2[0], image.get(image.l2[0]) ^ COPIED)


def copied_missing_in_l1(image):
    image.put(image.l1 + 8, image.get(image.l1 + 8) ^ COPIED)


def two_entries(image):
    image.put(image.l2[0] + 8, image.get(image.l2[0]))


def two_l1_entries(image):
    image.put(image.l1 + 8, image.get(image.l1))


def data_on_metadata(image):
    image.put(image.l2[0] + 16, image.l1 | COPIED)


def data_on_the_other_l2_table(image):
    image.put(image.l2[0] + 16, image.l2[1] | COPIED)


def no_block(image):
    image.put(image.reftable, 0)


def no_table(image):
    image.put(48, 0)


def table_outside(image):
    image.put(48, 1 << 50)


def block_on_l1(image):
    image.put(image.reftable, image.l1)


def block_on_data(image):
    image.put(image.reftable, image.get(image.l2[0]) % COPIED)


def block_twice(image):
    image.put(image.reftable + 8, image.blocks[0])


def block_outside(image):
    image.put(image.reftable, 1 << 40)


def block_unaligned(image):
    image.put(image.reftable, image.blocks[0] + 1)


def another_block_outside(image):
    image.put(image.reftable + 24, 1 << 40)


def l1_flag_alone(image):
    image.put(image.l1 + 8, COPIED)


REPAIRED = [low_refcount, low_refcount_of_l1, copied_missing, copied_missing_in_l1, two_entries, two_l1_entries,
            data_on_metadata, data_on_the_other_l2_table, no_block, no_table, table_outside, block_on_l1,
            block_on_data, block_twice, block_outside, block_unaligned, another_block_outside, l1_flag_alone]
HARMLESS = [low_refcount, low_refcount_of_l1, copied_missing, copied_missing_in_l1, no_block, no_table,
            table_outside, block_on_l1, block_on_data, block_twice, block_outside, block_unaligned,
            another_block_outside]


@pytest.mark.parametrize("damage", REPAIRED, ids=lambda f: f.__name__)
def test_repair(place, image, damage):
    before = qcow2.content(place, image.path)
    damage(image)
    assert agree(place, image.path) == 2
    repaired(place, image.path, content=before if damage in HARMLESS else None,
             shared=damage is two_l1_entries)


def l2_outside(image):
    image.put(image.l2[0] + 8, 1 << 40 | COPIED)


def l2_unaligned(image):
    image.put(image.l2[0] + 8, image.get(image.l2[0] + 8) + 512)


def l2_reserved(image):
    image.put(image.l2[0] + 8, image.get(image.l2[0] + 8) | 4)


def l1_outside(image):
    image.put(image.l1, 1 << 40 | COPIED)


def l1_reserved(image):
    image.put(image.l1, image.get(image.l1) | 1 << 60)


def compressed_outside(image):
    image.put(image.l2[0] + 8, 1 << 62 | 1 << 40)


@pytest.mark.parametrize("damage", [l2_outside, l2_unaligned, l2_reserved, l1_outside, l1_reserved,
                                    compressed_outside], ids=lambda f: f.__name__)
def test_what_is_not_repaired(place, image, damage):
    """What such entries meant is not known. Nothing is freed, so that it could still be found."""
    damage(image)
    assert agree(place, image.path) == 2
    refcounts = image.numbers(image.blocks[0], 16)
    for option in ("--repair=leaks", "--repair"):
        mine, data, text = ours(place, image.path, option)
        assert mine == 2 and data["corruptions"] and "entry" in text
        assert image.numbers(image.blocks[0], 16) == refcounts
    assert agree(place, image.path) == 2


@pytest.mark.parametrize("variant", ["4k-refcount2", "1k-refcount1", "512-refcount64", "8k-refcount4", "extended-16k",
                                     "refcount32", "v2-4k"])
def test_rebuild_in_all_widths(place, variant):
    path = qcow2.create(place, "disk.qcow2", qcow2.VARIANTS[variant], SIZE)
    qcow2.fill(place, path, SIZE, seed=11)
    content = qcow2.content(place, path)
    where = Image(path)
    for i in range(len(where.blocks)):
        where.put(where.reftable + 8 * i, 0)
    assert agree(place, path) == 2
    repaired(place, path, content=content)
    daemon = place.mount(qcow2.NODE.format(image=path))
    mirror = qcow2.random_operations(daemon.file("disk"), 0, bytearray(content), 7, 40)
    daemon.stop()
    qcow2.compare(place, path, mirror)
    assert agree(place, path) == 0


def test_refcount_that_cannot_be_said(place):
    """One bit, two references."""
    path = qcow2.create(place, "disk.qcow2", "refcount_bits=1", SIZE)
    place.run("qemu-io", "-f", "qcow2", "-c", "write 0 128k", path)
    two_entries(Image(path))
    assert agree(place, path) == 2
    mine, data, _ = ours(place, path, "--repair")
    assert mine == 2 and data["corruptions"] == 1


def test_snapshots_broken(place):
    path = qcow2.create(place, "disk.qcow2", "", SIZE)
    qcow2.fill(place, path, SIZE, seed=1)
    place.run("qemu-img", "snapshot", "-c", "s", path)
    qcow2.fill(place, path, SIZE, seed=2)
    where = Image(path)
    n = path.stat().st_size // where.cluster
    for cluster in range(n):
        where.put_refcount(cluster, 1)
    assert agree(place, path) == 2
    repaired(place, path)
    place.run("qemu-img", "snapshot", "-a", "s", path)
    assert agree(place, path) == 0


def test_snapshot_whose_table_is_not_there(place, image):
    place.run("qemu-img", "snapshot", "-c", "s", image.path)
    image.put(image.get(64), 1 << 40)
    assert agree(place, image.path) == 2
    assert "snapshot 's'" in ours(place, image.path, "--repair")[2]
    assert agree(place, image.path) == 2


# ---- Anything

def damage_at_random(image, choose):
    def number_at(at):
        old, last = image.get(at), image.path.stat().st_size // image.cluster
        return choose.choice((0, old ^ COPIED, old & COPIED | choose.randrange(last) * image.cluster,
                              old ^ 1 << choose.randrange(64), choose.randrange(last + 2) * image.cluster))
    for _ in range(choose.choice((1, 1, 2, 3))):
        kind = choose.choice(("l1", "l2", "l2", "table", "block", "block"))
        if kind == "block":
            with opened(image.path) as fd:
                os.pwrite(fd, bytes([choose.choice((0, 1, 2, 255))]),
                          choose.choice(image.blocks) + choose.randrange(40))
            continue
        at = {"l1": image.l1 + 8 * choose.randrange(image.l1_size),
              "l2": choose.choice(image.l2) + 8 * choose.randrange(32),
              "table": image.reftable + 8 * choose.randrange(3)}[kind]
        image.put(at, number_at(at))


def same_verdict(mine, status, text):
    """qemu-img does not look at the lowest bit where there are subclusters, and gives up at some offsets."""
    return mine == status or (mine == 2 and (status == 1 or "reserved bits" in text))


@pytest.mark.limit(120)
@pytest.mark.parametrize("variant", ["v2", "v3", "512", "1k-refcount1", "512-refcount64", "extended-16k", "refcount8"])
def test_random_damage(place, variant):
    """Whatever is broken, the verdict is qemu-img's, also about what the repair has left."""
    for seed in range(harness.count(3, 150)):
        choose = random.Random(f"{variant} {seed}")
        path = qcow2.create(place, "disk.qcow2", qcow2.VARIANTS[variant], 4 * MiB)
        qcow2.fill(place, path, 4 * MiB, seed=seed, number=8)
        if not Image(path).l2:
            continue
        damage_at_random(Image(path), choose)
        status, _ = theirs(place, path)
        mine, _, text = ours(place, path)
        assert same_verdict(mine, status, text), f"seed {seed}: {text}"
        mine, _, text = ours(place, path, choose.choice(("--repair", "--repair=leaks")))
        status, _ = theirs(place, path)
        assert same_verdict(mine, status, text), f"seed {seed}: {text}"


# ---- Marks

def mark(path, bits):
    with opened(path) as fd:
        os.pwrite(fd, struct.pack(">Q", bits), 72)


def marks(path):
    return path.read_bytes()[79]


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_marks_of_a_good_image(place, image, bits):
    mark(image.path, bits)
    assert agree(place, image.path) == 0
    assert marks(image.path) == bits
    for option in ("--repair=leaks", "--repair"):
        mark(image.path, bits)
        assert ours(place, image.path, option)[0] == 0
        assert marks(image.path) == 0


def test_marks_stay_with_what_is_wrong(place, image):
    mark(image.path, 3)
    l2_outside(image)
    assert ours(place, image.path, "--repair")[0] == 2
    assert marks(image.path) == 3


def test_corrupt_image_is_used_again(place, image):
    mark(image.path, 2)
    low_refcount(image)
    graph = qcow2.NODE.format(image=image.path)
    message = place.refuse(place.write("graph.conf", graph), place.directory("mnt"))
    assert "marked corrupt" in message and "blockgraph check --repair" in message
    repaired(place, image.path)
    daemon = place.mount(graph)
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, b"x" * 3000, 0)
    daemon.stop()
    assert agree(place, image.path) == 0


def test_shared_cluster_is_copied_when_it_changes(place, image):
    two_entries(image)
    repaired(place, image.path)
    daemon = place.mount(qcow2.NODE.format(image=image.path))
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, b"x" * 4096, 0)
        assert os.pread(fd, 8192, 0) == b"x" * 4096 + b"\1" * 4096
    daemon.stop()


# ---- The dirty bit

def make_dirty(place, options="lazy_refcounts=on"):
    """A writer with lazy refcounts that ended in the middle."""
    path = qcow2.create(place, "disk.qcow2", options, 8 * MiB)
    place.run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 3M", "-c", "flush", "-c", "write -z 1M 128k",
              "-c", "discard 2M 64k", "-c", "flush", "-c", "abort", path, check=False)
    assert marks(path) & 1 and agree(place, path) != 0
    return path


@pytest.mark.parametrize("options", ["lazy_refcounts=on", "lazy_refcounts=on,cluster_size=512",
                                     "lazy_refcounts=on,cluster_size=2M,refcount_bits=64",
                                     "lazy_refcounts=on,extended_l2=on"])
def test_dirty_image_is_repaired_on_opening(place, options):
    path = make_dirty(place, options)
    content = qcow2.content(place, path)
    daemon = place.mount(qcow2.NODE.format(image=path), stderr_allowed="not closed properly: repaired [1-9]")
    assert "not closed properly" in daemon.said()
    assert not marks(path) & 1
    mirror = qcow2.random_operations(daemon.file("disk"), 0, bytearray(content), 5, 60)
    daemon.stop()
    assert not marks(path) & 1
    assert agree(place, path) == 0
    qcow2.compare(place, path, mirror)


def test_dirty_image_opened_read_only_stays(place):
    path = make_dirty(place)
    before = path.read_bytes()
    daemon = place.mount(qcow2.NODE.format(image=path) + "read-only = on\n")
    assert daemon.file("disk").read_bytes()[:MiB] == b"\7" * MiB
    daemon.stop()
    assert path.read_bytes() == before


def test_dirty_image_with_errors_is_refused(place):
    path = make_dirty(place)
    l2_outside(Image(path))
    message = place.refuse(place.write("graph.conf", qcow2.NODE.format(image=path)), place.directory("mnt"))
    assert "not repaired on opening" in message and "blockgraph check" in message
    assert marks(path) & 1


def test_lazy_refcounts_are_kept_exact_here(place):
    path = qcow2.create(place, "disk.qcow2", "lazy_refcounts=on", SIZE)
    daemon = place.mount(qcow2.NODE.format(image=path))
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, b"x" * 500000, 12345)
        os.fsync(fd)
    assert not marks(path) & 1
    daemon.crash()
    assert agree(place, path) == 0


# ---- Hostile

def memory_of(place, *argv):
    """Exit status and the most memory in KiB, by GNU time's way: the kernel's count for the child."""
    program = "import os, sys; pid = os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:]); " \
              "_, status, used = os.wait4(pid, 0); print(os.waitstatus_to_exitcode(status), used.ru_maxrss)"
    done = place.run("/usr/bin/python3", "-c", program, *argv)
    return tuple(map(int, done.stdout.split()[-2:]))


def test_memory_is_bounded(place):
    """A huge sparse file, and an L2 table whose entries are as far apart as can be; shared a thousand times."""
    path = qcow2.create(place, "disk.qcow2", "", 1024 * 512 * MiB)
    place.run("qemu-io", "-f", "qcow2", "-c", "write 0 64k", path)
    where = Image(path)
    length = 7 << 40
    os.truncate(path, length)
    step = length // 8192 // where.cluster * where.cluster
    with opened(path) as fd:
        os.pwrite(fd, b"".join(struct.pack(">Q", max(i, 1) * step) for i in range(8192)), where.l2[0])
        for i in range(1, 60):  # more tables, far apart, too
            table = length - (i + 1) * 1024 * where.cluster
            os.pwrite(fd, b"".join(struct.pack(">Q", max(j, 1) * step + (i + 1) * 64 * where.cluster)
                                   for j in range(8000)), table)
            os.pwrite(fd, struct.pack(">Q", table), where.l1 + 8 * i)
        os.pwrite(fd, struct.pack(">Q", where.l2[0]) * 900, where.l1 + 8 * 60)
    baseline = memory_of(place, place.binary.with_name("blockgraph"), "--version")[1]
    status, used = memory_of(place, place.binary.with_name("blockgraph"), "check", path)
    assert status == 2
    if harness.TIME_SCALE == 1:  # a sanitizer's memory is not ours
        assert used - baseline < 72 * KiB


def test_several_passes(place):
    """Clusters so far apart that not all can be counted at once: refcounts made anew, then mended in place."""
    path = qcow2.create(place, "disk.qcow2", "cluster_size=2M", 512 * 1024 * MiB)
    place.run("qemu-io", "-f", "qcow2", "-c", "write 0 64k", path)
    where = Image(path)
    os.truncate(path, 15 << 40)
    apart = 64 * where.cluster
    with opened(path) as fd:
        os.pwrite(fd, b"".join(struct.pack(">Q", i * apart | COPIED) for i in range(1, 120000)), where.l2[0] + 8)
    mine, data, text = ours(place, path)
    assert mine == 2 and data["corruptions"] >= 110000, text
    assert ours(place, path, "--repair")[0] == theirs(place, path)[0] == 0
    where = Image(path)
    assert len(where.blocks) >= 8
    per_block, far = where.cluster // 2, [i * 64 for i in range(1, 120000)]
    with opened(path) as fd:
        for cluster in far[::1000]:
            os.pwrite(fd, b"\0\5", where.blocks[cluster // per_block] + cluster % per_block * 2)
    mine, data, _ = ours(place, path, "--repair")
    assert mine == theirs(place, path)[0] == 0
    assert data["leaks-fixed"] == len(far[::1000]) and data["corruptions-fixed"] == 0
    assert Image(path).blocks == where.blocks


@pytest.mark.parametrize("words, message", [
    (("disk.qcow2", "--repair=some"), "neither leaks nor all"),
    ((), "too few arguments"),
    (("none",), "No such file"),
    (("disk.qcow2", "-f", "raw"), "nothing that could be checked"),
    (("disk.qcow2", "-f", "qcow3"), "did you mean 'qcow2'"),
    (("garbage",), "not a qcow2 image"),
])
def test_refused(place, words, message):
    qcow2.create(place, "disk.qcow2")
    place.image("garbage", MiB, b"x" * 1000)
    done = place.client("check", *words, check=False)
    assert done.returncode == 1 and message in done.stderr and done.stdout == ""


def test_read_only_file_is_not_repaired(place, image):
    two_entries(image)
    place.run("chattr", "+i", image.path)
    try:
        assert place.client("check", image.path, check=False).returncode == 2
        done = place.client("check", "--repair", image.path, check=False)
        assert done.returncode == 1 and "for writing" in done.stderr
    finally:
        place.run("chattr", "-i", image.path)
