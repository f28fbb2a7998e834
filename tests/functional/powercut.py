"""Logs of writes, and what a power cut leaves by them: the driver blklogwrites and tests/powercut/replay-log.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import struct

FLUSH, FUA, DISCARD = 1, 2, 4


def entries_so_far(log):
    """How many entries the log's super block counts; at an interval of 1, all that are complete."""
    fd = os.open(log, os.O_RDONLY)
    try:
        return struct.unpack("<Q", os.pread(fd, 8, 16))[0]
    finally:
        os.close(fd)


def _tool(place):
    path = place.binary.parent / "tests" / "powercut" / "replay-log"
    assert os.access(path, os.X_OK), f"no {path}: make builds it beside the daemon"
    return path


def entries(place, log):
    """[(sector, sectors, flags, covered)]"""
    lines = place.run(_tool(place), "list", log).stdout.splitlines()
    return [tuple(map(int, line.split()[1:])) for line in lines]


def replay_all(place, log, base, out):
    place.run(_tool(place), "all", log, base, out)


def cut(place, log, base, out, complete, seed):
    """Make `out` what is left when that many entries were complete. How many changes were lost, and torn."""
    words = place.run(_tool(place), "cut", log, base, out, complete, seed).stdout.split()
    return int(words[words.index("lost") + 1]), int(words[words.index("torn") + 1])
