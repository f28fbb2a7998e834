"""QEMU's tools on exported files: they see what they see in the image itself.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import json
import os
import subprocess
import time

import pytest

import fileio
import harness
import system
from fileio import opened
from system import KiB, MiB


def qemu_io(place, path, *commands, options=("-f", "raw")):
    words = [word for command in commands for word in ("-c", command)]
    done = place.run("qemu-io", *options, *words, path)
    # It reports a failed pattern check on stdout, with exit status 0 in some versions.
    assert "failed" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done.stdout


def test_qemu_img_compare(place, disk):
    with opened(disk.file("disk")) as fd:
        os.pwrite(fd, fileio.pattern(3 * MiB), 5 * MiB + 12345)
    # -U: the daemon holds the image's locks.
    place.run("qemu-img", "compare", "-U", "-f", "raw", "-F", "raw", disk.file("disk"), place.path / "disk.img")
    with opened(disk.file("disk")) as fd:
        os.pwrite(fd, b"!", 5 * MiB)
    place.run("cp", place.path / "disk.img", place.path / "copy.img")
    with opened(place.path / "copy.img") as fd:
        os.pwrite(fd, b"?", 5 * MiB)
    done = place.run("qemu-img", "compare", "-f", "raw", "-F", "raw", disk.file("disk"),
                     place.path / "copy.img", check=False)
    assert done.returncode == 1, "a difference went unseen"


def test_qemu_io(place, disk):
    qemu_io(place, disk.file("disk"), "write -P 0xab 1M 64k", "write -P 0xcd 1500 700", "write -z 1100k 8k",
            "read -P 0xab 1M 64k", "read -P 0xcd 1500 700", "read -P 0 1100k 8k", "flush")
    qemu_io(place, place.path / "disk.img", "read -P 0xab 1M 64k", "read -P 0xcd 1500 700",
            "read -P 0 1100k 8k", options=("-U", "-r", "-f", "raw"))
    qemu_io(place, disk.file("disk"), "discard 1M 64k", "read -P 0 1M 64k")


@pytest.mark.parametrize("aio", ["threads", "native", "io_uring"])
def test_qemu_io_without_cache(place, disk, aio):
    cache = "none"  # O_DIRECT
    qemu_io(place, disk.file("disk"), "aio_write -P 0x11 0 1M", "aio_write -P 0x22 1M 1M",
            "aio_write -P 0x33 2M 1M", "aio_flush", "read -P 0x11 0 1M", "read -P 0x22 1M 1M",
            "read -P 0x33 2M 1M", options=("-f", "raw", "-t", cache, "-i", aio))


def test_qemu_img_map(place):
    image = place.image("disk.img")
    with opened(image) as fd:
        for offset, length in ((0, 64 * KiB), (3 * MiB, MiB), (12 * MiB, 4 * MiB)):
            os.pwrite(fd, fileio.pattern(length), offset)
        os.fsync(fd)
    command = ("qemu-img", "map", "-U", "--output=json", "-f", "raw")
    direct = json.loads(place.run(*command, image).stdout)
    daemon = place.mount(harness.DISK)
    through = json.loads(place.run(*command, daemon.file("disk")).stdout)
    assert [(e["start"], e["length"], e["zero"]) for e in through] \
        == [(e["start"], e["length"], e["zero"]) for e in direct]


def test_qemu_img_convert_into_and_out_of(place, disk):
    source = place.image("source.img", data=fileio.pattern(8 * MiB) + bytes(8 * MiB))
    place.run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, disk.file("disk"))
    place.run("cmp", source, disk.file("disk"))
    place.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk.file("disk"), place.path / "out.qcow2")
    place.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, place.path / "out.qcow2")


def test_qcow2_inside_an_export(place):
    """A format layer on top of ours: QEMU's, in a resizable export."""
    place.image("disk.img", MiB)
    daemon = place.mount("""
        [node disk]
        driver = file
        filename = disk.img

        [export disk]
        node = disk
        writable = on
        growable = on
        """)
    path = daemon.file("disk")
    place.run("qemu-img", "create", "-q", "-f", "qcow2", path, "64M")
    qemu_io(place, path, "write -P 0x5a 10M 3M", "write -P 0xa5 60M 1M", options=("-f", "qcow2"))
    place.run("qemu-img", "snapshot", "-c", "one", path)
    qemu_io(place, path, "write -P 0x77 10M 1M", "read -P 0x5a 11M 2M", options=("-f", "qcow2"))
    place.run("qemu-img", "check", path)
    daemon.stop()
    done = place.run("qemu-img", "check", "--output=json", "-f", "qcow2", place.path / "disk.img")
    report = json.loads(done.stdout)
    assert report.get("corruptions", 0) == 0 and report.get("leaks", 0) == 0
    qemu_io(place, place.path / "disk.img", "read -P 0x77 10M 1M", "read -P 0xa5 60M 1M",
            options=("-r", "-f", "qcow2"))


def test_locks_of_the_image_keep_qemu_out(place, disk):
    """The daemon holds QEMU's locks on the image it has open for writing, and lets go of them."""
    image = place.path / "disk.img"
    assert os.listdir(disk.mountpoints[0]) == ["disk"]
    done = place.run("qemu-io", "-f", "raw", "-c", "write 0 4k", image, check=False)
    assert done.returncode != 0 and "lock" in done.stderr
    disk.stop()
    place.run("qemu-io", "-f", "raw", "-c", "write 0 4k", image)


def test_image_locked_by_qemu_is_refused(place):
    image = place.image("disk.img")
    socket = place.path / "qsd.sock"
    with subprocess.Popen(["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=f,filename={image}",
                           "--nbd-server", f"addr.type=unix,addr.path={socket}",
                           "--export", "type=nbd,id=e,node-name=f,writable=on"], cwd=place.path) as qsd:
        try:
            deadline = time.monotonic() + 20 * harness.TIME_SCALE
            while not socket.exists():
                assert qsd.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            message = place.refuse(place.write("graph.conf", harness.DISK), place.directory("mnt"))
            assert "lock" in message and "disk.img" in message
        finally:
            qsd.terminate()
            qsd.wait(timeout=10)
    daemon = place.mount(harness.DISK)
    assert system.is_mounted(daemon.mountpoints[0])


def test_qemu_storage_daemon_on_top(place, disk):
    """Its export of our exported file: two FUSE daemons in a row."""
    target = place.write("top", "")
    with subprocess.Popen(["qemu-storage-daemon",
                           "--blockdev", f"driver=file,node-name=f,filename={disk.file('disk')}",
                           "--export", f"type=fuse,id=e,node-name=f,mountpoint={target},writable=on"],
                          cwd=place.path) as qsd:
        try:
            deadline = time.monotonic() + 20 * harness.TIME_SCALE
            while not system.is_mounted(target):
                assert qsd.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            with opened(target) as fd:
                os.pwrite(fd, fileio.pattern(MiB), 777)
                os.fsync(fd)
                assert os.pread(fd, MiB, 777) == fileio.pattern(MiB)
        finally:
            qsd.terminate()
            assert qsd.wait(timeout=20) == 0
    assert (place.path / "disk.img").read_bytes()[777:777 + MiB] == fileio.pattern(MiB)
