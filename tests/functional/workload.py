"""Random changes of a file whose every sector can be judged later, after a power cut or a kill -9.

Each worker has a range of the file for itself and fills sectors with numbers of its own. It notes, each with a
position in time: what it is about to change, and what has become durable. From that follows for any moment
which content each sector must have, or may have.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import concurrent.futures
import errno
import os
import random
import struct

import fileio
from fileio import opened

SECTOR = 512
GONE = (errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT)  # of system calls when the daemon has been killed


def filled(value, sectors=1):
    return struct.pack(">Q", value) * (sectors * SECTOR // 8)


class Worker:
    """`position` says where in time we are: events before have happened, events from there on have not."""

    def __init__(self, number, start, initial, position=lambda: 0, holes=True, seed=None):
        self.number = number
        self.start = start
        self.initial = bytes(initial)
        self.sectors = len(initial) // SECTOR
        self.position = position
        self.choose = random.Random(number if seed is None else seed)
        self.kinds = ["write"] * 16 + ["fsync", "dsync"] + ["zero"] * 2 + ["punch"] * 3 * holes
        self.history = []  # (position, kind, first sector, content)
        self.step = 0

    def touch(self, first, content):
        self.history.append((self.position(), "touch", first, content))

    def durable(self, first=None, content=None):
        """Of what is given, or of all that came before."""
        kind = "synced" if content is None else "durable"
        self.history.append((self.position(), kind, first, content))

    # ---- Changing

    def operate(self, fd, dsync_fd):
        kind = self.choose.choice(self.kinds)
        if kind == "fsync":
            os.fsync(fd)
            self.durable()
            return
        self.step += 1
        first = self.choose.randrange(self.sectors)
        most = min(self.choose.choice((3, 3, 20, 80, 300)), self.sectors - first)
        number = self.choose.randrange(most) + 1
        at, length = self.start + first * SECTOR, number * SECTOR
        content = filled(self.number << 32 | self.step if kind in ("write", "dsync") else 0, number)
        self.touch(first, content)
        if kind == "punch":
            fileio.punch_hole(fd, at, length)
        elif kind == "zero":
            fileio.fallocate(fd, fileio.FALLOC_FL_ZERO_RANGE, at, length)
        else:
            os.pwrite(fd if kind == "write" else dsync_fd, content, at)
        if kind == "dsync":
            self.durable(first, content)

    def run(self, path, operations):
        with opened(path) as fd, opened(path, os.O_RDWR | os.O_DSYNC) as dsync_fd:
            for _ in range(operations):
                self.operate(fd, dsync_fd)

    def run_until_killed(self, path):
        try:
            self.run(path, 1 << 30)
        except OSError as error:
            assert error.errno in GONE, error

    # ---- Judging

    def content(self):
        """Of the range, after all that has been done."""
        data = bytearray(self.initial)
        for _, kind, first, content in self.history:
            if kind == "touch":
                data[first * SECTOR:first * SECTOR + len(content)] = content
        return bytes(data)

    def at_moment(self, moment):
        """What judge() takes: events that are durable then, events that have happened by then"""
        happened = sum(event[0] <= moment for event in self.history)
        synced = [i for i in range(happened) if self.history[i][1] == "synced"]
        return (synced[-1] if synced else 0), happened, True

    def expected(self, certain, possible, keep_durable):
        """The content after so many events, and {sector: [others that may be]} if more may have happened.

        keep_durable: the others have happened, and of them those that were durable at once are certain."""
        data, maybe = bytearray(self.initial), {}
        for i, (_, kind, first, content) in enumerate(self.history[:possible]):
            if kind != "synced" and i < certain or kind == "durable" and keep_durable:
                data[first * SECTOR:first * SECTOR + len(content)] = content
                for sector in range(len(content) // SECTOR):
                    maybe.pop(first + sector, None)
            elif kind == "touch":
                for sector in range(len(content) // SECTOR):
                    maybe.setdefault(first + sector, []).append(content[:SECTOR])
        return bytes(data), maybe

    def judge(self, image, certain, possible, keep_durable=False):
        """Check the range in the image; see expected(). How many sectors had to be as they are."""
        got = image[self.start:self.start + len(self.initial)]
        want, maybe = self.expected(certain, possible, keep_durable)
        for sector in range(self.sectors if got != want else 0):
            part = slice(sector * SECTOR, (sector + 1) * SECTOR)
            if got[part] != want[part] and got[part] not in maybe.get(sector, ()):
                raise AssertionError(
                    f"worker {self.number}, sector {sector} (byte {self.start + sector * SECTOR}): found "
                    f"{got[part][:8].hex()}, certain was {want[part][:8].hex()}, written since "
                    f"{[content[:8].hex() for content in maybe.get(sector, ())]}")
        return self.sectors - len(maybe)


class Snapshots:
    """Snapshots of the file that the workers change, taken and deleted meanwhile or not."""

    def __init__(self, mountpoint, workers, position=lambda: 0):
        self.directory = mountpoint / ".snap"
        self.workers = workers
        self.position = position
        self.taken = {}  # name: {"begun", "complete", "deleting", "deleted": moments, "events": [...]}

    def take(self, name):
        one = self.taken[name] = {"begun": self.position()}
        # Of each worker's events, the last before may be under way yet.
        certain = [max(len(worker.history) - 1, 0) for worker in self.workers]
        os.mkdir(self.directory / name)
        one["events"] = [(worker, first, len(worker.history)) for worker, first in zip(self.workers, certain)]
        one["complete"] = self.position()

    def delete(self, name):
        one = self.taken[name]
        one["deleting"] = self.position()
        os.rmdir(self.directory / name)
        one["deleted"] = self.position()

    def judge(self, names, content_of, moment=0):
        """Check which there are, and what they hold."""
        for name, one in self.taken.items():
            if name in names:
                assert one["begun"] <= moment and one.get("deleted", moment + 1) > moment, f"{name} is there"
            else:
                is_due = one.get("complete", moment + 1) <= moment and one.get("deleting", moment + 1) > moment
                assert not is_due, f"{name} is not there"
        for name in set(names) & set(self.taken):
            content = content_of(name)
            for worker, certain, possible in self.taken[name].get("events", ()):
                worker.judge(content, certain, possible)


def run_all(workers, path, operations, meanwhile=None):
    """All at once, each in a thread."""
    with concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:
        tasks = [pool.submit(worker.run, path, operations) for worker in workers]
        if meanwhile:
            meanwhile()
        for task in tasks:
            task.result()
