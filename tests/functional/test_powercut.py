"""Power cuts under qcow2: at every moment, whatever of the unflushed writes is lost or torn, the image is sound
and holds what was synced.

A daemon works on an image whose writes, flushes and discards are logged where they reach the file. Then the log is
played back up to random points (see powercut.py), and what is left is given to qemu-img and to us.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import random
import shutil

import pytest

import harness
import powercut
import qcow2
from fileio import opened
from workload import SECTOR, Snapshots, Worker, filled, run_all

WORKERS = 3
REGION = 1021 * SECTOR  # of each, so that neighbours share clusters
SIZE = WORKERS * REGION
GROWN = SIZE + REGION

GRAPH = """\
[node disk]
driver = qcow2
file.driver = blklogwrites
file.log-super-update-interval = 1
file.file.driver = file
file.file.filename = disk.qcow2
file.log.driver = file
file.log.filename = log
"""
SMALL_CACHES = "l2-cache-size = 1\nrefcount-cache-size = 1\n"
BACKING = "backing.driver = qcow2\nbacking.file.driver = file\nbacking.file.filename = base.qcow2\n"

# What qemu-img creates; further options of the node; what there is beside.
CASES = {
    "512": ("cluster_size=512,refcount_bits=64", SMALL_CACHES, ()),
    "512-backing": ("cluster_size=512", "", ("backing",)),
    "4k": ("cluster_size=4k,refcount_bits=2", "", ()),
    "4k-snapshot": ("cluster_size=4k", SMALL_CACHES, ("used", "snapshot")),
    "64k": ("", "", ()),
    "64k-backing": ("", "", ("backing", "used")),
    "64k-snapshot": ("", "", ("used", "snapshot")),
    "v2": ("compat=0.10", "", ("used",)),
    "v2-1k-backing": ("compat=0.10,cluster_size=1k", SMALL_CACHES, ("backing",)),
    "v2-4k-snapshot": ("compat=0.10,cluster_size=4k", "", ("used", "snapshot")),
    "extended-16k": ("extended_l2=on,cluster_size=16k", SMALL_CACHES, ("used",)),
    "extended-backing": ("extended_l2=on", "", ("backing", "used")),
    "extended-16k-snapshot": ("extended_l2=on,cluster_size=16k", "", ("used", "snapshot")),
}


class Run:
    """An image, a load on it, and the log of what reached the file."""

    def __init__(self, place, case):
        self.place = place
        self.options, self.graph, self.beside = CASES[case]
        self.is_v2 = "compat=0.10" in self.options
        self.seed = random.randrange(1 << 30)
        print(f"seed {self.seed}")  # of the load and of the cuts; threads add their own chance
        self.choose = random.Random(self.seed)
        self.kept = {}  # {name: content} of snapshots that were there before
        self.grown = None  # [moment before, moment when it was durable]
        self.make_image()

    def make_image(self):
        place = self.place
        backing = None
        if "backing" in self.beside:
            backing = qcow2.create(place, "base.qcow2", "", SIZE - 100 * SECTOR).name
            qcow2.fill(place, backing, SIZE - 100 * SECTOR, seed=1)
            self.graph += BACKING
        self.image = qcow2.create(place, "disk.qcow2", self.options, SIZE, backing)
        if "used" in self.beside:
            qcow2.fill(place, self.image, SIZE, seed=2, number=20)
        if "snapshot" in self.beside:
            place.run("qemu-img", "snapshot", "-c", "before", self.image)
            self.kept["before"] = qcow2.content(place, self.image)
            qcow2.fill(place, self.image, SIZE, seed=3, number=10)
        shutil.copy(self.image, place.path / "start.qcow2")
        place.image("log", 0)

    def position(self):
        return powercut.entries_so_far(self.place.path / "log")

    def worker(self, number, initial):
        holes = not (self.is_v2 and "backing" in self.beside)  # else nothing can say "zero"
        return Worker(number, number * REGION, initial, self.position, holes, self.seed + number)

    # ---- The load

    def work(self, operations):
        """Changes; longer; changes; a snapshot; one more among changes; and one goes among changes."""
        content = qcow2.content(self.place, self.image)
        self.workers = [self.worker(i, content[i * REGION:(i + 1) * REGION]) for i in range(WORKERS)]
        daemon = self.place.mount(GRAPH + self.graph, "-o", "queues=3")
        disk = daemon.file("disk")
        self.snapshots = Snapshots(daemon.mountpoints[0], self.workers, self.position)
        run_all(self.workers, disk, operations)
        if not (self.is_v2 and self.kept):
            self.grow(disk)
        run_all(self.workers, disk, operations)
        self.snapshots.take("quiet")
        run_all(self.workers, disk, operations, lambda: self.snapshots.take("live"))
        run_all(self.workers, disk, operations, lambda: self.snapshots.delete("quiet"))
        daemon.stop()
        self.entries = powercut.entries(self.place, "log")

    def grow(self, path):
        before = self.position()
        with opened(path) as fd:
            os.ftruncate(fd, GROWN)
            os.fsync(fd)
        self.grown = [before, self.position()]
        self.workers.append(self.worker(WORKERS, bytes(REGION)))

    # ---- The cuts

    def at_stake(self, moment):
        """Entries that no flush before covers."""
        covered = [entry[3] for entry in self.entries[:moment] if entry[2] & powercut.FLUSH]
        return moment - (covered[-1] if covered else 0)

    def moment(self, tries=3):
        """Any, but rather one when much can be lost."""
        return max((self.choose.randrange(len(self.entries) + 1) for _ in range(tries)), key=self.at_stake)

    def moment_of_snapshot(self):
        """While one is made or deleted: any, or right before a flush ends."""
        one = self.snapshots.taken[self.choose.choice(("quiet", "live"))]
        spans = [("begun", "complete")] + [("deleting", "deleted")] * ("deleted" in one)
        begin, end = self.choose.choice(spans)
        moments = range(one[begin], one[end] + 1)
        flushes = [i for i in moments[:-1] if self.entries[i][2] & powercut.FLUSH]
        if flushes and self.choose.randrange(3):
            return max(self.choose.choices(flushes, k=2), key=self.at_stake)
        return self.choose.choice(moments)

    def cut(self, moment):
        seed = self.choose.randrange(1 << 30)
        print(f"cut at {moment} of {len(self.entries)}, seed {seed}")
        return powercut.cut(self.place, "log", "start.qcow2", "cut.qcow2", moment, seed)

    def check_length(self, length, moment):
        possible = {GROWN if self.grown and moment >= self.grown[1] else SIZE}
        if self.grown and self.grown[0] <= moment:
            possible.add(GROWN)
        assert length in possible

    def judge(self, moment):
        """How many sectors were known for certain, and the content."""
        done = self.place.run("qemu-img", "check", "-f", "qcow2", "cut.qcow2", check=False)
        assert done.returncode in (0, 3), done.stdout + done.stderr  # 3: leaks
        data = qcow2.content(self.place, "cut.qcow2")
        self.check_length(len(data), moment)
        known = sum(worker.judge(data.ljust(GROWN, b"\0"), *worker.at_moment(moment)) for worker in self.workers)
        names = qcow2.snapshots(self.place, "cut.qcow2")
        self.snapshots.judge(names, self.content_of_snapshot, moment)
        for name, content in self.kept.items():
            # qemu-img makes a snapshot as long as the image is now.
            assert self.content_of_snapshot(name) == content.ljust(len(data), b"\0")
        return known, data

    def content_of_snapshot(self, name):
        return qcow2.content(self.place, "cut.qcow2", "-l", f"snapshot.name={name}")

    def open_again(self, data, number):
        """We read the same as qemu-img, and can go on with the image."""
        node = qcow2.NODE.format(image="cut.qcow2") + (BACKING if "backing" in self.beside else "")
        daemon = self.place.mount(node, at=f"again{number}")
        with opened(daemon.file("disk")) as fd:
            assert os.pread(fd, len(data) + 1, 0) == data
            data = bytearray(data)
            for i in range(20):
                at = self.choose.randrange(len(data) // SECTOR - 8) * SECTOR
                data[at:at + 8 * SECTOR] = filled(i, 8)
                os.pwrite(fd, data[at:at + 8 * SECTOR], at)
        daemon.stop()
        done = self.place.run("qemu-img", "check", "-f", "qcow2", "cut.qcow2", check=False)
        assert done.returncode in (0, 3), done.stdout + done.stderr
        assert qcow2.content(self.place, "cut.qcow2") == data


@pytest.mark.faulty  # what a cut leaves may have leaks
@pytest.mark.limit(120)
@pytest.mark.parametrize("case", CASES)
def test_power_cut(place, case):
    run = Run(place, case)
    run.work(operations=harness.count(30, 100))
    lost = torn = known = 0
    for number in range(harness.count(5, 170)):
        moment = run.moment_of_snapshot() if number % 2 else run.moment(tries=3 if number else 50)
        missing, damaged = run.cut(moment)
        certain, data = run.judge(moment)
        lost, torn, known = lost + missing, torn + damaged, known + certain
        if number % 25 == 0:
            run.open_again(data, number)
    # The test tests something.
    assert lost + torn > 0 and known > 1000


def test_raw(place):
    """Without a format: every synced sector, and in others nothing that was not written there."""
    place.image("start.img", SIZE)
    place.image("disk.img", SIZE)
    log = place.image("log", 0)
    daemon = place.mount("[node disk]\ndriver = blklogwrites\nlog-super-update-interval = 1\n"
                         "file.driver = file\nfile.filename = disk.img\n"
                         "log.driver = file\nlog.filename = log\n", "-o", "queues=3")
    workers = [Worker(i, i * REGION, bytes(REGION), lambda: powercut.entries_so_far(log)) for i in range(WORKERS)]
    run_all(workers, daemon.file("disk"), harness.count(100, 400))
    daemon.stop()
    complete = len(powercut.entries(place, log))
    lost = 0
    for _ in range(harness.count(10, 200)):
        moment, seed = random.randrange(complete + 1), random.randrange(1 << 30)
        print(f"cut at {moment} of {complete}, seed {seed}")
        lost += sum(powercut.cut(place, log, "start.img", "cut.img", moment, seed))
        data = (place.path / "cut.img").read_bytes()
        for worker in workers:
            worker.judge(data, *worker.at_moment(moment))
    assert lost > 0


def test_the_whole_log(place):
    """Nothing lost: no leaks, and the last content."""
    run = Run(place, "4k-snapshot")
    run.work(operations=40)
    powercut.replay_all(place, "log", "start.qcow2", "cut.qcow2")
    qcow2.check(place, "cut.qcow2")
    data = qcow2.content(place, "cut.qcow2")
    for worker in run.workers:
        assert data[worker.start:worker.start + REGION] == worker.content()
