"""Random operations by tests/stress/fsx, with remounts and snapshots in between, against a mirror.

After each: qemu-img finds neither corruption nor leaks, and reads the same bytes as the mirror has.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import random
import re

import pytest

import harness
import qcow2
from system import KiB, MiB

SIZE = 5 * MiB + 1536
MOST = 8 * MiB
COMMON = "read,write,direct-read,direct-write,map-read,map-write,punch,zero,allocate,sync,seek,copy"
BACKING = "backing.driver = qcow2\nbacking.file.driver = file\nbacking.file.filename = base.qcow2\n"
RAW = "[node disk]\ndriver = raw\nfile.driver = file\nfile.filename = {image}\n"

# Name: options of qemu-img create. A million operations in the long run over the first four.
CLUSTERS = {"512": "cluster_size=512", "4k": "cluster_size=4k", "64k": "cluster_size=64k", "2M": "cluster_size=2M"}
OTHERS = {"extended": "extended_l2=on", "extended-16k": "extended_l2=on,cluster_size=16k"}


class Run:
    """fsx on an export and its mirror, from mount to mount."""

    def __init__(self, place, graph, mirror):
        self.place, self.graph = place, graph
        self.mirror = place.path / "mirror"
        self.mirror.write_bytes(mirror)
        self.choose = random.Random(os.environ.get("BG_SEED", place.path.name))
        self.done = {}
        self.daemon = None
        self.kept = {}

    def mount(self):
        self.daemon = self.place.mount(self.graph, at=f"mnt{len(self.place.daemons)}")

    def fsx(self, number, *options, operations=COMMON, pairs=None):
        program = self.place.binary.parent / "tests" / "stress" / "fsx"
        assert program.exists(), f"{program} is not built"
        pairs = pairs or [(self.daemon.file("disk"), self.mirror)]
        words = [word for pair in pairs for word in pair]
        finished = self.place.run(program, "-n", number, "-s", 1 + self.choose.randrange(1 << 40), "-o", operations,
                                  *options, *words, check=False, timeout=3600 if harness.LONG else 100)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        for name, count in re.findall(r"(\S+)=(\d+)", finished.stdout):
            self.done[name] = self.done.get(name, 0) + int(count)

    def snapshot(self):
        name = f"s{len(self.kept)}"
        os.mkdir(self.daemon.file(".snap") / name)
        self.kept[name] = self.mirror.read_bytes()

    def check_snapshots(self):
        for name, data in self.kept.items():
            assert (self.daemon.file(".snap") / name / "disk").read_bytes() == data, name

    def drop_snapshots(self):
        while self.kept:
            name, _ = self.kept.popitem()
            os.rmdir(self.daemon.file(".snap") / name)

    def check_operations(self, operations=COMMON, but=()):
        """Each kind was done at least once, where there were enough operations for that not to depend on chance."""
        enough = sum(self.done.values()) > 100 * len(self.done)
        wanted = operations.split(",") if enough else ["read", "write"]
        missing = [name for name in wanted if name not in but and not self.done.get(name)]
        assert not missing, f"not one of {missing} was done"


def run_qcow2(place, image, number, extra="", snapshots=True, refused=()):
    """Rounds with a remount after each: some change the length, or have a snapshot below them."""
    run = Run(place, qcow2.NODE.format(image=image) + extra, qcow2.content(place, image))
    rounds = 4 if not harness.LONG else 20
    for i in range(rounds):
        run.mount()
        run.check_snapshots()
        resizes = i % 2 == 1
        run.fsx(number // rounds, "-L", MOST if resizes else 1,
                operations=f"{COMMON},grow,shrink" if resizes else COMMON)
        run.check_snapshots()
        if snapshots and i % 4 in (0, 1):
            run.snapshot()
        elif i % 4 == 3:
            run.drop_snapshots()
        run.daemon.umount() if i % 2 else run.daemon.stop()
        qcow2.check(place, image)
        mirror = run.mirror.read_bytes()
        qcow2.compare(place, image, mirror[:len(mirror) // 512 * 512])  # QEMU counts whole sectors
    run.check_operations(f"{COMMON},grow,shrink", but=refused)


@pytest.mark.limit(240)
@pytest.mark.parametrize("variant", CLUSTERS)
def test_cluster_sizes(place, variant):
    image = qcow2.create(place, "disk.qcow2", CLUSTERS[variant], SIZE)
    run_qcow2(place, image, harness.count(1000, 250_000), refused=("allocate",))


@pytest.mark.limit(240)
@pytest.mark.parametrize("variant", {**CLUSTERS, **OTHERS})
def test_over_a_backing(place, variant):
    options = {**CLUSTERS, **OTHERS}[variant]
    base = qcow2.create(place, "base.qcow2", options, SIZE - 700 * KiB)
    qcow2.fill(place, base, SIZE - 700 * KiB, seed=1)
    image = qcow2.create(place, "disk.qcow2", options, SIZE, "base.qcow2")
    qcow2.fill(place, image, SIZE, seed=2, number=15)
    run_qcow2(place, image, harness.count(500, 20_000), BACKING, refused=("allocate",))
    qcow2.check(place, base)


@pytest.mark.limit(240)
@pytest.mark.parametrize("variant", OTHERS)
def test_subclusters(place, variant):
    image = qcow2.create(place, "disk.qcow2", OTHERS[variant], SIZE)
    run_qcow2(place, image, harness.count(500, 20_000), refused=("allocate",))


@pytest.mark.limit(240)
def test_raw(place):
    image = place.image("disk.img", SIZE)
    run = Run(place, RAW.format(image=image) + "\n[export disk]\nnode = disk\nwritable = on\ngrowable = on\n",
              image.read_bytes())
    operations = f"{COMMON},grow,shrink,append"
    for _ in range(3):
        run.mount()
        run.fsx(harness.count(500, 20_000), "-L", MOST, operations=operations)
        run.daemon.stop()
        assert image.read_bytes() == run.mirror.read_bytes()
    run.check_operations(operations)


@pytest.mark.limit(240)
def test_copies_between_exports(place):
    """A raw and a qcow2 export of one mount."""
    image = qcow2.create(place, "disk.qcow2", "cluster_size=4k", SIZE)
    raw = place.image("other.img", 3 * MiB + 512)
    graph = qcow2.NODE.format(image=image) + RAW.format(image=raw).replace("node disk", "node other")
    run = Run(place, graph, qcow2.content(place, image))
    other_mirror = place.path / "other-mirror"
    other_mirror.write_bytes(raw.read_bytes())
    run.mount()
    run.fsx(harness.count(1000, 20_000), "-c", operations="copy,write,punch,read,seek",
            pairs=[(run.daemon.file("disk"), run.mirror), (run.daemon.file("other"), other_mirror)])
    run.check_operations("copy")
    run.daemon.stop()
    assert raw.read_bytes() == other_mirror.read_bytes()
    qcow2.check(place, image)
    qcow2.compare(place, image, run.mirror.read_bytes())


def test_a_difference_is_found(place, disk):
    """A byte changed behind its back ends fsx with a report."""
    mirror = place.path / "mirror"
    mirror.write_bytes(bytes(16 * MiB - 1) + b"x")
    program = place.binary.parent / "tests" / "stress" / "fsx"
    finished = place.run(program, disk.file("disk"), mirror, check=False)
    assert finished.returncode == 1
    assert "0xffffff: expected 78, got 00" in finished.stdout
