"""External snapshots: overlays that take the place of nodes while files are open and written.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import concurrent.futures
import errno
import hashlib
import os
import random
import threading

import pytest

import qcow2
import qmp
from fileio import opened
from harness import count
from qmp import QmpError
from system import KiB, MiB

TWO = """
[node base]
driver = qcow2
file.driver = file
file.filename = base.qcow2

[node plain]
driver = raw
file.driver = file
file.filename = plain.img

[export vm.img]
node = base
writable = on

[export data]
node = plain
writable = on
"""


@pytest.fixture
def daemon(place):
    qcow2.create(place, "base.qcow2", "", 16 * MiB)
    place.image("plain.img", 8 * MiB, b"plain")
    return place.mount(TWO)


def nodes_of(control):
    return {node["node-name"]: node for node in control("query-named-block-nodes", flat=True)}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Writer(threading.Thread):
    """Writes, through one open file, random data that it keeps a mirror of, until told to stop."""

    def __init__(self, path, seed):
        super().__init__()
        self.fd = os.open(path, os.O_RDWR)
        self.length = os.fstat(self.fd).st_size
        self.mirror = bytearray(os.pread(self.fd, self.length, 0))
        self.random = random.Random(seed)
        self.stopping = False
        self.writes = 0
        self.error = None
        self.start()

    def run(self):
        try:
            while not self.stopping:
                self.step()
        except (OSError, AssertionError) as error:
            self.error = error

    def step(self):
        size = self.random.randrange(1, 64 * KiB)
        at = self.random.randrange(self.length - size)
        data = self.random.randbytes(size)
        assert os.pwrite(self.fd, data, at) == size
        self.mirror[at:at + size] = data
        self.writes += 1
        if self.random.randrange(20) == 0:
            os.fsync(self.fd)
        if self.random.randrange(4) == 0:
            at = self.random.randrange(self.length - size)
            assert os.pread(self.fd, size, at) == self.mirror[at:at + size]

    def wait_for(self, writes):
        """Until so many more were written."""
        target = self.writes + writes
        while self.writes < target and self.is_alive():
            threading.Event().wait(0.001)
        self.check()

    def check(self):
        if self.error:
            raise self.error

    def finish(self):
        self.stopping = True
        self.join()
        self.check()
        assert os.pread(self.fd, self.length, 0) == self.mirror
        os.fsync(self.fd)
        os.close(self.fd)
        return bytes(self.mirror)


def test_under_writes(place, daemon):
    """The file stays open; the base does not change any more; a mount of the printed graph has the same."""
    writer = Writer(daemon.file("vm.img"), 1)
    with qmp.connect(daemon) as control:
        bases, images = [], ["base.qcow2"]
        for i in range(count(3, 20)):
            writer.wait_for(50)
            control("blockdev-snapshot-sync", device="vm.img", snapshot_file=f"s{i}.qcow2",
                    snapshot_node_name=f"s{i}")
            bases.append((place.path / images[-1], digest(place.path / images[-1])))
            images.append(f"s{i}.qcow2")
        writer.wait_for(50)
        graph = control("x-blockgraph-graph", format="conf")
        exports = {e["id"]: e["node-name"] for e in control("query-block-exports")}
    mirror = writer.finish()
    assert exports == {"vm.img": f"s{len(bases) - 1}", "data": "plain"}
    assert [digest(path) for path, _ in bases] == [before for _, before in bases]
    daemon.stop()
    for image in images:
        qcow2.check(place, image)
    qcow2.compare(place, images[-1], mirror)
    again = place.mount(graph, at="again")
    assert again.file("vm.img").read_bytes() == mirror
    with qmp.connect(again) as control:
        assert control("x-blockgraph-graph", format="conf") == graph
    with opened(again.file("vm.img")) as fd:
        os.pwrite(fd, b"once more", 0)
        os.fsync(fd)
    assert [digest(path) for path, _ in bases] == [before for _, before in bases]


def test_base_is_as_at_the_snapshot(place, daemon):
    with opened(daemon.file("vm.img")) as fd, qmp.connect(daemon) as control:
        os.pwrite(fd, b"before" * 1000, 12345)
        control("blockdev-snapshot-sync", node_name="base", snapshot_file=str(place.path / "top.qcow2"))
        os.pwrite(fd, b"AFTER!" * 1000, 12345)
        os.fsync(fd)
        assert os.pread(fd, 6000, 12345) == b"AFTER!" * 1000
        assert qcow2.content(place, "base.qcow2")[12345:12345 + 6000] == b"before" * 1000
        nodes = nodes_of(control)
        assert nodes["base"]["ro"] and not nodes["top.qcow2"]["ro"]
        assert nodes["top.qcow2"]["backing_file_depth"] == 1
        assert nodes["top.qcow2"]["image"]["full-backing-filename"] == str(place.path / "base.qcow2")
        # The lock for writing on the base is given up: others may open it for reading with locks.
        place.run("qemu-img", "info", "base.qcow2")
        place.run("qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0x62 12345 1", "base.qcow2")


def test_survives_kill(place, daemon):
    """What was synced after the snapshot is there after kill -9."""
    with opened(daemon.file("vm.img")) as fd, qmp.connect(daemon) as control:
        os.pwrite(fd, b"before", 0)
        control("blockdev-snapshot-sync", device="base", snapshot_file="top.qcow2", snapshot_node_name="top")
        graph = control("x-blockgraph-graph", format="conf")
        os.pwrite(fd, b"after", 1 * MiB)
        os.fsync(fd)
        daemon.crash()
    again = place.mount(graph, at="again")
    with opened(again.file("vm.img")) as fd:
        assert os.pread(fd, 6, 0) == b"before" and os.pread(fd, 5, 1 * MiB) == b"after"


def test_several_at_one_point(place, daemon):
    """Two files, one of them raw, written in turns: in no image is the later write without the earlier."""
    stop = threading.Event()
    counts = [0]

    def write_in_turns():
        with opened(daemon.file("vm.img")) as first, opened(daemon.file("data")) as second:
            while not stop.is_set():
                counts[0] += 1
                os.pwrite(first, counts[0].to_bytes(8, "little"), 4096)
                os.pwrite(second, counts[0].to_bytes(8, "little"), 4096)

    thread = threading.Thread(target=write_in_turns)
    thread.start()
    try:
        with qmp.connect(daemon) as control:
            for i in range(count(5, 50)):
                before = counts[0]
                while counts[0] < before + 20:
                    stop.wait(0.001)
                control("x-blockgraph-snapshot-create", name=f"s{i}", external=True)
                graph = control("x-blockgraph-graph", format="conf")
    finally:
        stop.set()
        thread.join()
    daemon.stop()
    # Each image that is not the top one, read with what lies below it.
    nodes = [block.split("]")[0] for block in graph.split("[node ")[1:]]
    frozen = graph.split("[export")[0] + "".join(f"[export {n}]\nnode = {n}\nwritable = off\n" for n in nodes)
    again = place.mount(frozen, at="again")

    def number(name):
        return int.from_bytes(again.file(name).read_bytes()[4096:4104], "little")

    pairs = [("base", "plain")] + [(f"vm.img.s{i}.qcow2", f"data.s{i}.qcow2") for i in range(count(5, 50))]
    for first, second in pairs:
        assert 0 <= number(first) - number(second) <= 1


def test_existing_overlay(place, daemon):
    qcow2.create(place, "over.qcow2", "", 16 * MiB, backing="base.qcow2")
    with opened(daemon.file("vm.img")) as fd, qmp.connect(daemon) as control:
        os.pwrite(fd, b"below", 0)
        control("blockdev-snapshot-sync", device="base", snapshot_file="over.qcow2", mode="existing",
                snapshot_node_name="over")
        assert os.pread(fd, 5, 0) == b"below"
        os.pwrite(fd, b"above", 0)
        assert os.pread(fd, 5, 0) == b"above"


def test_all_or_nothing(place, daemon):
    """The second action fails: the first has left neither node nor file."""
    qcow2.create(place, "short.qcow2", "", 1 * MiB)
    with opened(daemon.file("vm.img")) as fd, qmp.connect(daemon) as control:
        before = sorted(os.listdir(place.path))
        graph = control("x-blockgraph-graph", format="conf")

        def refuse(words, *actions):
            with pytest.raises(QmpError) as failure:
                control("transaction", actions=[{"type": kind, "data": data} for kind, data in actions])
            for word in words:
                assert word in failure.value.desc
            assert control("x-blockgraph-graph", format="conf") == graph
            assert sorted(os.listdir(place.path)) == before
            assert not control("x-blockgraph-snapshot-list")
            os.pwrite(fd, b"x", 0)

        first = ("blockdev-snapshot-sync", {"device": "vm.img", "snapshot-file": "new.qcow2"})
        refuse(["action 1", "abort"], first, ("abort", {}))
        refuse(["action 1", "no node 'plan'", "'plain'"], first,
               ("blockdev-snapshot-sync", {"device": "plan", "snapshot-file": "b.qcow2"}))
        refuse(["action 1", "named twice"], first,
               ("blockdev-snapshot-internal-sync", {"device": "base", "name": "s"}))
        refuse(["1048576", "8388608"], first,
               ("blockdev-snapshot-sync", {"device": "plain", "snapshot-file": "short.qcow2", "mode": "existing"}))
        refuse(["raw", "backing"], first,
               ("blockdev-snapshot-sync", {"device": "plain", "snapshot-file": "plain.img", "format": "raw",
                                           "mode": "existing"}))
        refuse(["contains '/'"],
               ("blockdev-snapshot-sync", {"device": "plain", "snapshot-file": "new.qcow2"}),
               ("blockdev-snapshot-internal-sync", {"device": "base", "name": "a/b"}))
        # The snapshot inside the first was taken when the second failed.
        refuse(["1048576", "8388608"],
               ("blockdev-snapshot-internal-sync", {"device": "base", "name": "s"}),
               ("blockdev-snapshot-sync", {"device": "plain", "snapshot-file": "short.qcow2", "mode": "existing"}))
        refuse(["action 0", "one of the arguments"], ("blockdev-snapshot-sync", {"snapshot-file": "b.qcow2"}))


def test_internal_and_external_together(place, daemon):
    with opened(daemon.file("vm.img")) as fd, qmp.connect(daemon) as control:
        os.pwrite(fd, b"one", 0)
        control("transaction", actions=[
            {"type": "blockdev-snapshot-internal-sync", "data": {"device": "base", "name": "inside"}},
            {"type": "blockdev-snapshot-sync", "data": {"device": "plain", "snapshot-file": "p.qcow2"}}])
        os.pwrite(fd, b"two", 0)
        snapshots = control("x-blockgraph-snapshot-list")
        assert [(s["export"], s["name"]) for s in snapshots] == [("vm.img", "inside")]
        assert nodes_of(control)["base"]["image"]["snapshots"][0]["name"] == "inside"
    daemon.stop()
    assert "inside" in place.run("qemu-img", "snapshot", "-l", "base.qcow2").stdout
    qcow2.check(place, "base.qcow2")


def test_existing_file_is_not_overwritten_by_the_client(place, daemon):
    (place.path / "vm.img.s.qcow2").write_text("precious")
    with qmp.connect(daemon) as control:
        with pytest.raises(QmpError) as failure:
            control("x-blockgraph-snapshot-create", name="s", external=True)
        assert "vm.img.s.qcow2" in failure.value.desc
    assert (place.path / "vm.img.s.qcow2").read_text() == "precious"
    assert not (place.path / "data.s.qcow2").exists()


def test_time_of_change_does_not_go_back(daemon):
    path = daemon.file("vm.img")
    with opened(path) as fd, qmp.connect(daemon) as control:
        os.pwrite(fd, b"x", 0)
        before = os.fstat(fd).st_mtime_ns
        control("blockdev-snapshot-sync", device="base", snapshot_file="top.qcow2")
        assert os.fstat(fd).st_mtime_ns == before
        assert os.fstat(fd).st_size == 16 * MiB


def test_reader_of_an_inner_snapshot_stays(place, daemon):
    """A file in .snap reads the image that it is in, also when an overlay has taken that one's place."""
    root = daemon.mountpoints[0]
    with qmp.connect(daemon) as control:
        with opened(daemon.file("vm.img")) as fd:
            os.pwrite(fd, b"old", 0)
            control("x-blockgraph-snapshot-create", name="s", exports=["vm.img"])
            os.pwrite(fd, b"new", 0)
        reader = os.open(root / ".snap/s/vm.img", os.O_RDONLY)
        try:
            control("blockdev-snapshot-sync", device="base", snapshot_file="top.qcow2")
            assert os.pread(reader, 3, 0) == b"old"
        finally:
            os.close(reader)
        assert daemon.file("vm.img").read_bytes()[:3] == b"new"


def test_mkdir_that_waits_for_an_overlay(place):
    """mkdir and rmdir in .snap that come while an overlay is put in place find the node that is writable then."""
    qcow2.create(place, "base.qcow2", "", 16 * MiB)
    daemon = place.mount("[node base]\ndriver = qcow2\nfile.driver = file\nfile.filename = base.qcow2\n"
                         "[export vm.img]\nnode = base\nwritable = on\n")
    root = daemon.mountpoints[0] / ".snap"
    stop = threading.Event()

    def make(number):
        turn = 0
        while not stop.is_set():
            (root / f"s{number}-{turn}").mkdir()
            turn += 1

    with qmp.connect(daemon) as control, concurrent.futures.ThreadPoolExecutor(4) as pool:
        makers = [pool.submit(make, number) for number in range(4)]
        try:
            for i in range(6):
                control("x-blockgraph-snapshot-create", name=f"x{i}", external=True)
                threading.Event().wait(0.05) # some snapshots between two overlays
        finally:
            stop.set()
        for maker in makers:
            maker.result()


def test_node_of_the_graph_as_overlay(place):
    """blockdev-snapshot: the overlay was opened before, with nothing below it."""
    qcow2.create(place, "base.qcow2", "", 4 * MiB)
    qcow2.create(place, "over.qcow2", "", 4 * MiB)
    daemon = place.mount("""
[node base]
driver = qcow2
file.driver = file
file.filename = base.qcow2

[node over]
driver = qcow2
file.driver = file
file.filename = over.qcow2

[export vm.img]
node = base
writable = on
""")
    with opened(daemon.file("vm.img")) as fd, qmp.connect(daemon) as control:
        os.pwrite(fd, b"below", 0)
        before = control("x-blockgraph-graph", format="conf")
        with pytest.raises(QmpError):
            control("blockdev-snapshot", node="base", overlay="base")
        with pytest.raises(QmpError):
            control("blockdev-snapshot", node="base", overlay="none")
        assert control("x-blockgraph-graph", format="conf") == before
        control("blockdev-snapshot", node="base", overlay="over")
        os.pwrite(fd, b"ABOVE", 0)
        with pytest.raises(QmpError) as failure:
            control("blockdev-snapshot", node="base", overlay="over")
        assert "over" in failure.value.desc
        graph = control("x-blockgraph-graph", format="conf")
        assert "backing = base" in graph and graph.count("read-only = on") == 1
    daemon.stop()
    assert qcow2.content(place, "base.qcow2")[:5] == b"below"
    assert place.mount(graph, at="again").file("vm.img").read_bytes()[:5] == b"ABOVE"


def test_overlay_inside_the_mount(daemon):
    """A graph cannot stand on itself: refused, and nothing hangs."""
    with qmp.connect(daemon) as control:
        for name in (daemon.mountpoints[0] / "new.qcow2", daemon.file("data"), daemon.mountpoints[0] / ".snap/x"):
            with pytest.raises(QmpError):
                control("blockdev-snapshot-sync", device="vm.img", snapshot_file=str(name))
        assert {e["node-name"] for e in control("query-block-exports")} == {"base", "plain"}
    with opened(daemon.file("data")) as fd:
        assert os.pread(fd, 5, 0) == b"plain"


def test_beside_snapshots_inside(place):
    """mkdir and rmdir in .snap, overlays and I/O, all at the same time."""
    qcow2.create(place, "base.qcow2", "", 4 * MiB)
    daemon = place.start("--format=qcow2", "base.qcow2", place.directory(), mountpoints=[place.path / "mnt"])
    writer = Writer(daemon.file("base.qcow2"), 7)
    stop = threading.Event()
    taken = []

    def snap():
        number = 0
        while not stop.is_set():
            number += 1
            path = daemon.mountpoints[0] / f".snap/n{number}"
            try:
                path.mkdir()
                taken.append(number)
                if number % 2:
                    path.rmdir()
            except OSError as error:
                # The node became read-only in between, or its snapshot lies below an overlay now.
                if error.errno not in (errno.EROFS, errno.ENOENT, errno.EACCES):
                    raise

    thread = threading.Thread(target=snap)
    thread.start()
    overlays = count(5, 50)
    try:
        with qmp.connect(daemon) as control:
            for i in range(overlays):
                writer.wait_for(30)
                control("x-blockgraph-snapshot-create", name=f"s{i}", external=True)
    finally:
        stop.set()
        thread.join()
    mirror = writer.finish()
    daemon.stop(timeout=60)
    images = ["base.qcow2"] + [f"base.qcow2.s{i}.qcow2" for i in range(overlays)]
    for image in images:
        qcow2.check(place, image)
    qcow2.compare(place, images[-1], mirror)
    assert taken


def test_an_image_of_the_graph_is_not_overwritten(place):
    """Also where no lock would tell that it is in use."""
    image = qcow2.create(place, "base.qcow2", "", 4 * MiB)
    daemon = place.mount("[node base]\ndriver = qcow2\nfile.driver = file\nfile.locking = off\n"
                         "file.filename = base.qcow2\n[export vm.img]\nnode = base\nwritable = on\n")
    daemon.file("vm.img").write_bytes(b"kept")
    os.link(image, place.path / "other-name")
    with qmp.connect(daemon) as control:
        for name in ("base.qcow2", "other-name"):
            with pytest.raises(QmpError) as failure:
                control("blockdev-snapshot-sync", device="base", snapshot_file=name)
            assert "this graph uses the file" in failure.value.desc
    assert daemon.file("vm.img").read_bytes()[:4] == b"kept"
    daemon.stop()
    assert qcow2.content(place, image)[:4] == b"kept"


def test_node_names_can_be_written_in_a_graph_file(place):
    """That of the overlay is made from a file's name, which may be anything."""
    qcow2.create(place, "base.qcow2", "", 4 * MiB)
    daemon = place.mount("[node base]\ndriver = qcow2\nfile.driver = file\nfile.filename = base.qcow2\n"
                         "[export #vm]\nnode = base\nwritable = on\n")
    place.client("snapshot", "create", "--external", daemon.mountpoints[0], "a] b")
    conf = place.client("graph", "--format=conf", daemon.mountpoints[0]).stdout
    assert "[node _vm.a_ b.qcow2]" in conf
    daemon.stop()
