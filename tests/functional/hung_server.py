"""A drained section while a node's server hangs: what every driver of remote storage has to do then.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import concurrent.futures
import os
import time

import harness
import qmp
from fileio import opened, pattern
from system import KiB, MiB

SECTIONS = ["mkdir", "qmp"]


def in_thread(function, *args):
    pool = concurrent.futures.ThreadPoolExecutor(1)
    task = pool.submit(function, *args)
    pool.shutdown(wait=False)
    return task


def graph(place, remote, size=16 * MiB):
    """
    `remote`: the section of the node `remote`, of `size` bytes. It lies below an image that is written: a snapshot
    flushes that before its section begins, and would wait for the server there already if that had the image itself.
    With a local image, and one that nobody writes.
    """
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "layer.qcow2", str(size))
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "local.qcow2", "16M")
    place.image("fixed.img", MiB, pattern(MiB, 9))
    return (f"{remote}\nread-only = on\n"
            "[node disk]\ndriver = qcow2\nfile.driver = file\nfile.filename = layer.qcow2\nbacking = remote\n"
            "[node local]\ndriver = qcow2\nfile.driver = file\nfile.filename = local.qcow2\n"
            "[node fixed]\ndriver = raw\nread-only = on\nfile.driver = file\nfile.filename = fixed.img\n")


def read_fresh(path, offset, size):
    """Past the kernel's cache."""
    with opened(path, os.O_RDONLY | os.O_DIRECT) as fd:
        return os.pread(fd, size, offset)


def _write_synced(path, data, offset):
    with opened(path) as fd:
        os.pwrite(fd, data, offset)
        os.fsync(fd)


def _begin(daemon, section):
    """Snapshots of all writable images, or of `disk` alone."""
    if section == "mkdir":
        os.mkdir(daemon.mountpoints[0] / ".snap" / "one")
        return
    with qmp.connect(daemon) as control:
        control.socket.settimeout(None)
        control("blockdev-snapshot-internal-sync", device="disk", name="one")


def _wait_until_drained(daemon):
    deadline = time.monotonic() + 30 * harness.TIME_SCALE
    while ", drained" not in daemon.graph("graph.txt"):
        assert time.monotonic() < deadline, "no drained section: " + daemon.graph("graph.txt")
        time.sleep(0.01)


def _others_serve(daemon, section):
    for name in ("graph.txt", "graph.json", "metrics"):
        assert daemon.graph(name)
    with qmp.connect(daemon) as control:
        assert {"disk", "local", "fixed"} <= {n["node-name"] for n in control("query-named-block-nodes")}
    for at in range(0, MiB, 64 * KiB):
        assert read_fresh(daemon.file("fixed"), at, 64 * KiB) == pattern(MiB, 9)[at:at + 64 * KiB]
    if section == "qmp":  # mkdir's is over `local` as well: there who writes waits
        for i in range(16):
            _write_synced(daemon.file("local"), pattern(64 * KiB, i), i * 64 * KiB)
            assert read_fresh(daemon.file("local"), i * 64 * KiB, 64 * KiB) == pattern(64 * KiB, i)


def check(daemon, section, hang, resume, data):
    """`data`: what the server has. It hangs from hang() to resume()."""
    patience = 60 * harness.PATIENCE
    disk = daemon.file("disk")
    _write_synced(disk, b"before", MiB)
    _write_synced(daemon.file("local"), b"before", 8 * MiB)
    hang()
    try:
        reader = in_thread(read_fresh, disk, 3 * MiB, 64 * KiB)
        writer = in_thread(_write_synced, disk, b"during", 4 * MiB)  # reads the rest of its cluster
        time.sleep(0.2)
        section_ends = in_thread(_begin, daemon, section)
        _wait_until_drained(daemon)
        _others_serve(daemon, section)
        assert not any(task.done() for task in (reader, writer, section_ends))
    finally:
        resume()
    section_ends.result(patience)
    writer.result(patience)
    assert reader.result(patience) == data[3 * MiB:3 * MiB + 64 * KiB]
    _write_synced(disk, b"after!", MiB)
    assert read_fresh(disk, MiB, 4 * KiB) == b"after!" + data[MiB + 6:MiB + 4 * KiB]
    assert read_fresh(disk, 4 * MiB, 4 * KiB) == b"during" + data[4 * MiB + 6:4 * MiB + 4 * KiB]
    then = daemon.mountpoints[0] / ".snap" / "one" / "disk"
    assert read_fresh(then, MiB, 4 * KiB) == b"before" + data[MiB + 6:MiB + 4 * KiB]
