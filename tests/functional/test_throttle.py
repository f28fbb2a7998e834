"""The driver throttle and its groups: options, turns, snapshots and ends that do not wait, the rate.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import os
import threading
import time

import pytest

import qcow2
from fileio import aligned
from system import KiB, MiB

# One request, and the next after more than an hour.
STOPPED = "[throttle-group g]\nlimits.bps-total = 1\n"
NODE = """
[node {name}]
driver = throttle
throttle-group = g
file.driver = {driver}
file.file.driver = file
file.file.filename = {name}.img
"""


class Writer(threading.Thread):
    """Write blocks to a file, past the page cache, until told to stop; counts those that were taken."""

    def __init__(self, path):
        super().__init__()
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.taken = 0
        self.stopped = False
        self.start()

    def run(self):
        block = aligned(b"x" * 4 * KiB)
        with contextlib.suppress(OSError):  # the mount may go
            while not self.stopped:
                self.taken += os.pwrite(self.fd, block, 0) == len(block)

    def finish(self):
        self.stopped = True
        self.join(60)
        assert not self.is_alive()
        with contextlib.suppress(OSError):
            os.close(self.fd)


def wait_for_text(daemon, text):
    deadline = time.monotonic() + 20
    while text not in daemon.graph("graph.txt"):
        assert time.monotonic() < deadline, daemon.graph("graph.txt")
        time.sleep(0.01)


@pytest.mark.parametrize("limits, culprits", [
    ("limits.iops-total = 5\nlimits.iops-write = 5\n", ["'limits.iops-total'", "iops-write"]),
    ("limits.bps-read = 5\nlimits.bps-read-max = 4\n", ["'limits.bps-read-max'", "less"]),
    ("limits.bps-read-max = 4\n", ["'limits.bps-read-max'", "needs bps-read"]),
    ("limits.bps-read = 5\nlimits.bps-read-max-length = 4\n", ["'limits.bps-read-max-length'", "needs"]),
    ("limits.bps-read-max-length = 0\n", ["'limits.bps-read-max-length'", "0"]),
    ("limits.iops-size = 4096\n", ["'limits.iops-size'", "needs"]),
    ("limits.iops-read = 1000000000000001\n", ["'limits.iops-read'"]),
    ("limits.iops-read = -1\n", ["'limits.iops-read'"]),
    ("limits = 5\n", ["'limits'"]),
], ids=lambda value: value.splitlines()[0] if isinstance(value, str) else "")
def test_bad_limits(place, limits, culprits):
    place.write("lab.conf", "[throttle-group g]\n" + limits + "[node n]\ndriver = null-co\n")
    message = place.refuse("lab.conf", place.directory())
    assert all(word in message for word in ["lab.conf:", "'g'", *culprits]), message


def test_group_is_shared(place):
    """What one node has used, the other waits for; the first end waits for nothing."""
    place.image("a.img", MiB)
    place.image("b.img", MiB)
    daemon = place.mount(STOPPED + NODE.format(name="a", driver="raw") + NODE.format(name="b", driver="raw"))
    a = Writer(daemon.file("a"))
    wait_for_text(daemon, "1 requests wait for throttle group 'g'")
    b = Writer(daemon.file("b"))
    deadline = time.monotonic() + 20
    while daemon.graph("graph.txt").count("requests wait") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (a.taken, b.taken) == (1, 0)
    daemon.process.send_signal(15)
    a.stopped = b.stopped = True
    daemon.wait_exit()
    a.finish()
    b.finish()


def test_snapshot_does_not_wait(place):
    """The section lets the request through that waits; after it the limit holds."""
    qcow2.create(place, "a.img", "", MiB)
    daemon = place.mount(STOPPED + NODE.format(name="a", driver="qcow2"))
    writer = Writer(daemon.file("a"))
    wait_for_text(daemon, "1 requests wait")
    os.mkdir(daemon.file(".snap") / "x")
    wait_for_text(daemon, "1 requests wait")
    assert writer.taken == 2
    writer.stopped = True
    os.mkdir(daemon.file(".snap") / "y")
    writer.finish()
    assert writer.taken == 3
    daemon.umount()


@pytest.mark.timing
def test_rate_and_fairness(place):
    """Four writers to two nodes: 100 requests a second in all, half of them to each."""
    place.image("a.img", MiB)
    place.image("b.img", MiB)
    daemon = place.mount("[throttle-group g]\nlimits.iops-total = 100\n" +
                         NODE.format(name="a", driver="raw") + NODE.format(name="b", driver="raw"))
    writers = [Writer(daemon.file(name)) for name in "aabb"]
    time.sleep(1)  # what the buckets hold at first is gone
    before, started = [w.taken for w in writers], time.monotonic()
    time.sleep(10)
    taken, passed = [w.taken - n for w, n in zip(writers, before)], time.monotonic() - started
    for writer in writers:
        writer.stopped = True
    for writer in writers:
        writer.finish()
    a, b = sum(taken[:2]), sum(taken[2:])
    place.note(f"{taken} in {passed:.3f} s")
    assert abs((a + b) / passed / 100 - 1) < 0.03, (taken, passed)
    assert abs(a - b) / (a + b) < 0.1, (taken, passed)
    daemon.stop()
