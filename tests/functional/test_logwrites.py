"""The driver blklogwrites: its log is one that QEMU's driver would write, and gives the content back.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import errno
import os
import shutil

import pytest

import fileio
import powercut
import qcow2
from fileio import opened
from system import KiB, MiB

RAW = """\
[node disk]
driver = blklogwrites
file.driver = file
file.filename = disk.img
log.driver = file
log.filename = log
"""
QCOW2 = """\
[node disk]
driver = qcow2
file.driver = blklogwrites
file.file.driver = file
file.file.filename = disk.qcow2
file.log.driver = file
file.log.filename = log
"""
QEMU = "driver=blklogwrites,file.driver=file,file.filename=disk.img,log.driver=file,log.filename=log"


def qemu_io(place, commands, options=""):
    words = [word for command in commands for word in ("-c", command)]
    place.run("qemu-io", "-t", "writeback", *words, "--image-opts", QEMU + options)


def without_last_flushes(entries):
    while entries and entries[-1][2] == powercut.FLUSH:
        entries.pop()
    return [entry[:3] for entry in entries]


@pytest.mark.parametrize("sector", (512, 4096))
def test_same_log_as_qemu(place, sector):
    """The same writes and flushes, through QEMU's driver and through ours: the same bytes of log."""
    writes = [(i * 3 * sector, (i % 4 + 1) * sector) for i in range(12)]
    commands = [f"write -q -P 1 {at} {length}" for at, length in writes]
    commands[3:3] = commands[8:8] = ["flush"]
    place.image("disk.img", MiB)
    place.image("log", 0)
    qemu_io(place, commands, f",log-sector-size={sector}")
    theirs = without_last_flushes(powercut.entries(place, place.path / "log"))
    their_log = (place.path / "log").read_bytes()

    place.image("disk.img", MiB)
    place.image("log", 0)
    daemon = place.mount(RAW + f"log-sector-size = {sector}\n")
    with opened(daemon.file("disk")) as fd:
        for command in commands:
            if command == "flush":
                os.fsync(fd)
            else:
                at, length = map(int, command.split()[4:])
                os.pwrite(fd, b"\x01" * length, at)
    daemon.stop()
    ours = without_last_flushes(powercut.entries(place, place.path / "log"))
    assert ours == theirs and len(ours) == 12 + 2
    our_log = (place.path / "log").read_bytes()
    # Apart from the number of flushes at the end, and the inline data of our flushes.
    at = sector
    for _, sectors, flags in ours:
        header = 24 if flags == powercut.FLUSH else 32
        size = (1 + sectors) * sector
        assert our_log[at:at + header] == their_log[at:at + header]
        if flags != powercut.FLUSH:
            assert our_log[at + header:at + size] == their_log[at + header:at + size]
        at += size


def test_qemu_goes_on_with_our_log_and_we_with_theirs(place):
    base = place.image("base.img", MiB, fileio.pattern(MiB, 1))
    shutil.copy(base, place.path / "disk.img")
    place.image("log", 0)
    for turn in range(4):
        if turn % 2:
            qemu_io(place, [f"write -q -P {turn} {turn}k 512", "discard -q 512k 4k", "write -q -z 600k 64k"],
                    ",log-append=on")
        else:
            daemon = place.mount(RAW + "log-append = on\n", at=f"mnt{turn}")
            with opened(daemon.file("disk")) as fd:
                os.pwrite(fd, fileio.pattern(70000, turn), turn * 12345)
                os.fsync(fd)
                fileio.punch_hole(fd, 300 * KiB + turn, 64 * KiB)
                fileio.fallocate(fd, fileio.FALLOC_FL_ZERO_RANGE, 400 * KiB, 10000)
            daemon.stop()
    powercut.replay_all(place, "log", base, "replayed")
    assert (place.path / "replayed").read_bytes() == (place.path / "disk.img").read_bytes()


def test_length_of_a_growing_file(place):
    place.image("base.img", 0)
    place.image("disk.img", 0)
    place.image("log", 0)
    daemon = place.mount(RAW + "[export disk]\nnode = disk\nwritable = on\ngrowable = on\n")
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, fileio.pattern(100000), 500)
        os.ftruncate(fd, 50001)
        os.ftruncate(fd, 200000)
        os.pwrite(fd, b"end", 199000)
        assert os.fstat(fd).st_size == 200000
        content = os.pread(fd, 200000, 0)
    daemon.stop()
    assert (place.path / "disk.img").read_bytes() == content
    powercut.replay_all(place, "log", "base.img", "replayed")
    # The log knows whole sectors.
    assert (place.path / "replayed").read_bytes() == content + bytes(-len(content) % 512)


@pytest.mark.parametrize("variant", ("v3", "512", "extended-16k"))
def test_replay_gives_the_image(place, variant):
    """Random changes of a qcow2 image, from start to end."""
    image = qcow2.create(place, "disk.qcow2", qcow2.VARIANTS[variant], 4 * MiB)
    shutil.copy(image, place.path / "base.img")
    place.image("log", 0)
    daemon = place.mount(QCOW2)
    mirror = qcow2.random_operations(daemon.file("disk"), 0, bytearray(4 * MiB), 1, 100)
    daemon.stop()
    powercut.replay_all(place, "log", "base.img", "replayed.qcow2")
    # A discard leaves zeroes in the copy, and what it likes in the image, so that only qcow2's content counts.
    qcow2.check(place, "replayed.qcow2")
    qcow2.compare(place, "replayed.qcow2", mirror)
    assert any(entry[2] & powercut.DISCARD for entry in powercut.entries(place, "log"))


def test_snapshots_below_are_out_of_reach(place):
    """A return to one would change the content without the log."""
    qcow2.create(place, "disk.qcow2", "", MiB)
    place.image("log", 0)
    daemon = place.mount("[node disk]\ndriver = blklogwrites\nfile.driver = qcow2\nfile.file.driver = file\n"
                         "file.file.filename = disk.qcow2\nlog.driver = file\nlog.filename = log\n")
    with pytest.raises(OSError) as refused:
        os.mkdir(daemon.file(".snap") / "one")
    assert refused.value.errno == errno.EOPNOTSUPP


def test_a_log_that_is_full(place):
    """A log of fixed length: the write fails that has no place, and all after it."""
    place.image("disk.img", MiB)
    log = place.image("log", 64 * KiB)
    with place.loop(log) as device:
        daemon = place.mount(RAW.replace("log.driver = file", "log.driver = host_device")
                             .replace("log.filename = log", f"log.filename = {device}"),
                             stderr_allowed="No space left on device")
        with opened(daemon.file("disk")) as fd:
            os.pwrite(fd, bytes(32 * KiB), 0)
            for size in (64 * KiB, 512):
                with pytest.raises(OSError):
                    os.pwrite(fd, b"x" * size, 0)
        daemon.expected_status = 1  # the last flush fails
        daemon.stop()
