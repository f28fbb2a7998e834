"""Answers of iSCSI targets that good ones give seldom: a relay puts them in place of tgt's.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import errno
import os
import time

import pytest

from fileio import aligned, opened, pattern, punch_hole
from servers_iscsi import (BUSY, CAPACITY16, CHECK_CONDITION, READ10, RESERVATION_CONFLICT, SYNC10, TASK_SET_FULL,
                           UNMAP, WRITE10, WRITE_SAME16, Faults, Tgt, sense)
from system import MiB

SIZE = 64 * MiB
RECOVERED, NOT_READY, MEDIUM, ILLEGAL, ATTENTION, PROTECT, ABORTED = 0x1, 0x2, 0x3, 0x5, 0x6, 0x7, 0xb


@pytest.fixture
def tgt(place):
    target = Tgt(place)
    yield target
    target.stop_daemons_and_end()


@pytest.fixture
def faults(place, tgt):
    with Faults(tgt) as relay:
        yield relay
        tgt.stop_daemons_and_end()


@pytest.fixture
def disk(place, tgt, faults):
    return place.mount(tgt.graph(port=faults.port, more="header-digest = none\ntimeout = 3"))


def error_of(function, *args):
    with pytest.raises(OSError) as caught:
        function(*args)
    return caught.value.errno


# ---- what goes away by itself


@pytest.mark.parametrize("status, data", [
    (BUSY, b""),
    (TASK_SET_FULL, b""),
    (CHECK_CONDITION, sense(NOT_READY, 0x0401)),
    (CHECK_CONDITION, sense(ATTENTION, 0x2900)),
    (CHECK_CONDITION, sense(ATTENTION, 0x2a01)),
    (CHECK_CONDITION, sense(ABORTED, 0x4400)),
], ids=["busy", "full", "becoming-ready", "reset", "mode-changed", "aborted"])
@pytest.mark.parametrize("opcode", [READ10, WRITE10, SYNC10])
def test_tried_again(disk, faults, opcode, status, data):
    with opened(disk.file("disk")) as fd:
        os.pwrite(fd, pattern(MiB), 0)
        os.fsync(fd)
        before = faults.count(opcode)
        faults.fail(opcode, status, data, times=3)
        os.pwrite(fd, pattern(MiB, 2), MiB)
        os.fsync(fd)
        assert os.pread(fd, 2 * MiB, 0) == pattern(MiB) + pattern(MiB, 2)
        assert faults.left(opcode) == 0
        assert faults.count(opcode) - before > 3
    assert disk.graph("errors") == ""


def test_busy_for_ever(disk, faults):
    """Until the deadline of a request, with pauses; the connection stays."""
    faults.fail(READ10, BUSY, times=1000000)
    with opened(disk.file("disk"), os.O_RDONLY) as fd:
        started = time.monotonic()
        assert error_of(os.pread, fd, 4096, 0) == errno.EBUSY
        assert time.monotonic() - started > 1
        assert faults.count(READ10) < 40
        faults.fail(READ10, BUSY, times=0)
        assert os.pread(fd, 4096, MiB) == bytes(4096)
    assert "busy" in disk.graph("errors") and " connect " not in disk.graph("errors")


def test_attention_for_ever(disk, faults):
    faults.fail(READ10, CHECK_CONDITION, sense(ATTENTION, 0x2900), times=1000000)
    with opened(disk.file("disk"), os.O_RDONLY) as fd:
        assert error_of(os.pread, fd, 4096, 0) == errno.EIO


# ---- what does not


@pytest.mark.parametrize("opcode, status, data, number, text", [
    (READ10, CHECK_CONDITION, sense(MEDIUM, 0x1100), errno.EIO, "medium error"),
    (READ10, CHECK_CONDITION, sense(ILLEGAL, 0x2100), errno.EIO, "illegal request"),
    (READ10, CHECK_CONDITION, sense(NOT_READY, 0x3a00), errno.ENOMEDIUM, "0x3a00"),
    (READ10, RESERVATION_CONFLICT, b"", errno.EBUSY, "reservation"),
    (WRITE10, CHECK_CONDITION, sense(PROTECT, 0x2700), errno.EROFS, "0x2700"),
    (WRITE10, CHECK_CONDITION, sense(PROTECT, 0x2707), errno.ENOSPC, "0x2707"),
    (WRITE10, RESERVATION_CONFLICT, b"", errno.EBUSY, "reservation"),
    (SYNC10, CHECK_CONDITION, sense(MEDIUM, 0x0c00), errno.EIO, "medium error"),
])
def test_error_reaches_the_user(disk, faults, opcode, status, data, number, text):
    with opened(disk.file("disk")) as fd:
        faults.fail(opcode, status, data)
        if opcode == READ10:
            assert error_of(os.pread, fd, 512, 0) == number
        elif opcode == WRITE10:
            assert error_of(os.pwrite, fd, bytes(512), 0) == number
        else:
            os.pwrite(fd, bytes(512), 0)
            assert error_of(os.fsync, fd) == number
        assert text in disk.graph("errors"), disk.graph("errors")
        assert os.pread(fd, 512, 0) == bytes(512)


def test_deferred_error(disk, faults):
    """It tells of an earlier write: whoever flushes hears of it, once; the read is done."""
    with opened(disk.file("disk"), os.O_RDWR | os.O_DIRECT) as fd:
        os.pwrite(fd, aligned(pattern(4096)), 0)
        faults.fail(READ10, CHECK_CONDITION, sense(MEDIUM, 0x0c00, code=0x71))
        buffer = aligned(4096)
        assert os.preadv(fd, [buffer], 0) == 4096
        assert buffer[:] == pattern(4096)
        assert "deferred" in disk.graph("errors")
        assert error_of(os.fsync, fd) == errno.EIO
        os.pwrite(fd, aligned(pattern(4096)), 0)
        os.fsync(fd)


def test_recovered_error(disk, faults):
    """Done, with some trouble: no error."""
    with opened(disk.file("disk")) as fd:
        faults.fail(WRITE10, CHECK_CONDITION, sense(RECOVERED, 0x1700))
        os.pwrite(fd, pattern(512), 0)
        os.fsync(fd)
        assert faults.left(WRITE10) == 0
        assert os.pread(fd, 512, 0) == pattern(512)


def test_short_answer(disk, faults):
    """GOOD, but fewer bytes than asked for: the rest of the buffer is nobody's."""
    with opened(disk.file("disk"), os.O_RDONLY) as fd:
        faults.short = 1
        assert error_of(os.pread, fd, 4096, 0) == errno.EIO
        assert "did not transfer all" in disk.graph("errors")


def test_unmap_unknown(disk, faults):
    """Advisory: no error, and not asked again."""
    faults.fail(UNMAP, CHECK_CONDITION, sense(ILLEGAL, 0x2000))
    faults.fail(WRITE_SAME16, CHECK_CONDITION, sense(ILLEGAL, 0x2400))
    with opened(disk.file("disk")) as fd:
        os.pwrite(fd, pattern(4 * MiB), 0)
        punch_hole(fd, MiB, MiB)
        assert os.pread(fd, 3 * MiB, 0) == pattern(4 * MiB)[:MiB] + bytes(MiB) + pattern(4 * MiB)[2 * MiB:3 * MiB]


def test_write_same_unknown(disk, faults):
    """Zero bytes are written instead."""
    faults.fail(WRITE_SAME16, CHECK_CONDITION, sense(ILLEGAL, 0x2000), times=1000)
    with opened(disk.file("disk")) as fd:
        os.pwrite(fd, pattern(4 * MiB), 0)
        punch_hole(fd, MiB, MiB)
        punch_hole(fd, 2 * MiB, MiB)
        assert os.pread(fd, 2 * MiB, MiB) == bytes(2 * MiB)
    assert faults.count(WRITE_SAME16) <= 2


# ---- capacity


def test_grown(place, tgt, faults):
    """Told by a unit attention: the node is longer at once."""
    faults.blocks = 64 * 1024  # 32 MiB of 64
    disk = place.mount(f"[node disk]\ndriver = iscsi\nheader-digest = none\nurl = {tgt.url(port=faults.port)}\n")
    with opened(disk.file("disk")) as fd:
        assert os.fstat(fd).st_size == 32 * MiB
        faults.blocks = 128 * 1024
        faults.fail(READ10, CHECK_CONDITION, sense(ATTENTION, 0x2a09))
        assert os.pread(fd, 512, 0) == bytes(512)
        assert os.stat(disk.file("disk")).st_size == 64 * MiB
        os.pwrite(fd, pattern(MiB), 63 * MiB)
        assert os.pread(fd, MiB, 63 * MiB) == pattern(MiB)
    assert faults.count(CAPACITY16) >= 2


def test_shrunk(place, tgt, faults):
    """The length stays, so that nothing that is gone reads as zeroes or as an end of the file."""
    disk = place.mount(f"[node disk]\ndriver = iscsi\nheader-digest = none\nurl = {tgt.url(port=faults.port)}\n",
                       stderr_allowed="shrank")
    with opened(disk.file("disk")) as fd:
        faults.blocks = 64 * 1024
        faults.fail(READ10, CHECK_CONDITION, sense(ATTENTION, 0x2a09))
        assert os.pread(fd, 512, 0) == bytes(512)
        assert os.fstat(fd).st_size == 64 * MiB
        assert "shrank from 131072 to 65536" in disk.graph("errors")
        faults.fail(READ10, CHECK_CONDITION, sense(ILLEGAL, 0x2100))
        assert error_of(os.pread, fd, 512, 63 * MiB) == errno.EIO
