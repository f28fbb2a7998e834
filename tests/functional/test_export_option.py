"""--blockdev and --export on the command line, as qemu-storage-daemon(1) has them.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import json
import os
import signal
import time

import pytest

import fileio
import qcow2
import qmp
import system
from fileio import opened
from system import MiB


def point(place, name="export.img"):
    """A regular file to mount over."""
    return place.write(name, "what lies below\n")


@pytest.mark.valgrind
def test_export_over_a_file(place):
    image, target = place.image("disk.img", 4 * MiB), point(place)
    daemon = place.start("--blockdev", f"driver=file,node-name=disk,filename={image}",
                         "--export", f"type=fuse,id=exp,node-name=disk,mountpoint={target},writable=on",
                         mountpoints=[target])
    assert os.stat(target).st_size == 4 * MiB
    with opened(target) as fd:
        os.pwrite(fd, b"through the export", 1000)
        os.fsync(fd)
    daemon.stop()
    assert target.read_text() == "what lies below\n"
    assert image.read_bytes()[1000:1018] == b"through the export"


def test_short_first_value(place):
    image, target = place.image("disk.img", MiB, b"short"), point(place)
    place.start("--blockdev", f"file,node-name=f,filename={image}", "--blockdev", "raw,node-name=r,file=f",
                "--export", f"fuse,id=exp,node-name=r,mountpoint={target}", mountpoints=[target])
    assert target.read_bytes()[:5] == b"short"


def test_equals_signs_and_inline_child(place):
    image, target = place.image("disk.img", MiB, b"inline"), point(place)
    place.start(f"--blockdev=driver=raw,node-name=r,file.driver=file,file.filename={image}",
                f"--export=type=fuse,id=exp,node-name=r,mountpoint={target}", mountpoints=[target])
    assert target.read_bytes()[:6] == b"inline"


def test_json(place):
    image, target = place.image("disk.img", MiB, b"json"), point(place)
    blockdev = {"driver": "raw", "node-name": "r", "file": {"driver": "file", "filename": str(image)}}
    export = {"type": "fuse", "id": "exp", "node-name": "r", "mountpoint": str(target), "writable": True}
    place.start("--blockdev", json.dumps(blockdev), "--export", json.dumps(export), mountpoints=[target])
    with opened(target) as fd:
        assert os.pread(fd, 4, 0) == b"json"
        os.pwrite(fd, b"JSON", 0)
    assert image.read_bytes()[:4] == b"JSON"


def test_comma_in_a_file_name(place):
    image, target = place.image("a,b.img", MiB, b"comma"), point(place)
    name = str(image).replace(",", ",,")
    place.start("--blockdev", f"driver=file,node-name=disk,filename={name}",
                "--export", f"type=fuse,id=exp,node-name=disk,mountpoint={target}", mountpoints=[target])
    assert target.read_bytes()[:5] == b"comma"


def test_json_file_name(place):
    image = place.image("disk.img", MiB, b"pseudo")
    mountpoint = place.directory("mnt")
    name = "json:" + json.dumps({"driver": "raw", "file": {"driver": "file", "filename": str(image)}})
    daemon = place.start(name, mountpoint, mountpoints=[mountpoint])
    [export] = os.listdir(mountpoint)
    assert daemon.file(export).read_bytes()[:6] == b"pseudo"


def test_not_writable_by_default(place):
    image, target = place.image("disk.img", MiB), point(place)
    place.start("--blockdev", f"driver=file,node-name=disk,filename={image}",
                "--export", f"type=fuse,id=exp,node-name=disk,mountpoint={target}", mountpoints=[target])
    with pytest.raises(OSError):
        with opened(target) as fd:
            os.pwrite(fd, b"x", 0)
    assert image.read_bytes() == bytes(MiB)


def test_growable(place):
    image, target = place.image("disk.img", MiB), point(place)
    options = f"type=fuse,id=exp,node-name=disk,mountpoint={target},writable=on,growable=on"
    place.start("--blockdev", f"driver=file,node-name=disk,filename={image}", "--export", options,
                mountpoints=[target])
    with opened(target) as fd:
        assert os.pwrite(fd, b"grown", 3 * MiB) == 5
    assert image.stat().st_size == 3 * MiB + 5


def test_growable_image(place):
    """A format grows as well, though its node does not do so by itself; also one that an overlay has become."""
    place.image("disk.img", MiB)
    qcow2.create(place, "disk.qcow2", "", MiB)
    daemon = place.mount("[node a]\ndriver = qcow2\nfile.driver = file\nfile.filename = disk.qcow2\n"
                         "[node b]\ndriver = file\nfilename = disk.img\n"
                         "[export a]\nnode = a\nwritable = on\ngrowable = on\n"
                         "[export b]\nnode = b\nwritable = on\ngrowable = on\n")
    with opened(daemon.file("a")) as a, opened(daemon.file("b")) as b:
        assert os.pwrite(a, b"grown", 3 * MiB) == 5
        assert os.pread(a, 10, 3 * MiB - 5) == bytes(5) + b"grown"
        with qmp.connect(daemon) as control:
            control("x-blockgraph-snapshot-create", name="top", external=True, exports=["b"])
        for fd in a, b:
            end = os.lseek(fd, 0, os.SEEK_END)
            assert os.pwrite(fd, b"appended", end) == 8
            assert os.copy_file_range(fd, fd, 5, end + 3, end + 8) == 5
            assert os.pread(fd, 100, end) == b"appendedended"
            assert os.fstat(fd).st_size == end + 13
    assert not daemon.graph("errors")
    daemon.stop()
    qcow2.check(place, "disk.qcow2")


@pytest.mark.parametrize("allow_other", ["on", "off", "auto"])
def test_allow_other(place, allow_other):
    image, target = place.image("disk.img", MiB), point(place)
    options = f"type=fuse,id=exp,node-name=disk,mountpoint={target},allow-other={allow_other}"
    place.start("--blockdev", f"driver=file,node-name=disk,filename={image}", "--export", options,
                mountpoints=[target])
    [entry] = [line.split() for line in open("/proc/self/mounts", encoding="utf-8") if str(target) in line]
    assert ("allow_other" in entry[3].split(",")) == (allow_other != "off")


def test_two_exports_and_an_iothread(place):
    one, two = place.image("one.img", MiB, b"one"), place.image("two.img", MiB, b"two")
    first, second = point(place, "first"), point(place, "second")
    daemon = place.start(
        "--object", "iothread,id=io0",
        "--blockdev", f"driver=file,node-name=n1,filename={one}",
        "--blockdev", f"driver=file,node-name=n2,filename={two}",
        "--export", f"type=fuse,id=e1,node-name=n1,mountpoint={first},writable=on,iothread=io0",
        "--export", f"type=fuse,id=e2,node-name=n2,mountpoint={second}",
        mountpoints=[first, second])
    assert first.read_bytes()[:3] == b"one" and second.read_bytes()[:3] == b"two"
    daemon.stop()


def test_umount_of_one_export_leaves_the_other(place):
    image = place.image("disk.img", MiB, b"shared")
    first, second = point(place, "first"), point(place, "second")
    daemon = place.start(
        "--blockdev", f"driver=file,node-name=n,filename={image}",
        "--export", f"type=fuse,id=e1,node-name=n,mountpoint={first}",
        "--export", f"type=fuse,id=e2,node-name=n,mountpoint={second}",
        mountpoints=[first, second])
    place.run("umount", first)
    assert second.read_bytes()[:6] == b"shared"
    assert daemon.is_running()
    place.run("umount", second)
    daemon.wait_exit()


def test_export_into_the_mounted_directory(place):
    """Without a mountpoint of its own an export appears under its id; SOURCE is then `none`."""
    image, mountpoint = place.image("disk.img", MiB, b"none"), place.directory("mnt")
    daemon = place.start("--blockdev", f"driver=file,node-name=disk,filename={image}",
                         "--export", "type=fuse,id=named.img,node-name=disk,writable=on",
                         "none", mountpoint, mountpoints=[mountpoint])
    assert os.listdir(mountpoint) == ["named.img"]
    assert daemon.file("named.img").read_bytes()[:4] == b"none"


@pytest.mark.timing
def test_up_within_300_ms_and_silent(place):
    image, target = place.image("disk.img", MiB), point(place)
    times = []
    for _ in range(3):
        started = time.monotonic()
        daemon = place.start("--blockdev", f"driver=file,node-name=disk,filename={image}",
                             "--export", f"type=fuse,id=exp,node-name=disk,mountpoint={target},writable=on",
                             mountpoints=[target])
        times.append(time.monotonic() - started)
        stopped = time.monotonic()
        daemon.stop(signal.SIGTERM)
        assert time.monotonic() - stopped < 1.0
        assert daemon.said() == ""
    assert min(times) < 0.3, times


@pytest.mark.parametrize("what, arguments", [
    ("no such node", ["--blockdev", "driver=null-co,node-name=n,size=1048576",
                      "--export", "type=fuse,id=e,node-name=absent,mountpoint={target}"]),
    ("no mountpoint file", ["--blockdev", "driver=null-co,node-name=n,size=1048576",
                            "--export", "type=fuse,id=e,node-name=n,mountpoint={target}.absent"]),
    ("unknown type", ["--blockdev", "driver=null-co,node-name=n,size=1048576",
                      "--export", "type=fusee,id=e,node-name=n,mountpoint={target}"]),
    ("unknown option", ["--blockdev", "driver=null-co,node-name=n,size=1048576",
                        "--export", "type=fuse,id=e,node-name=n,mountpoint={target},writeable=on"]),
    ("no id", ["--blockdev", "driver=null-co,node-name=n,size=1048576",
               "--export", "type=fuse,node-name=n,mountpoint={target}"]),
    ("same id twice", ["--blockdev", "driver=null-co,node-name=n,size=1048576",
                       "--export", "type=fuse,id=e,node-name=n,mountpoint={target}",
                       "--export", "type=fuse,id=e,node-name=n,mountpoint={target}"]),
], ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "")
def test_refused(place, what, arguments):
    target = point(place)
    message = place.refuse(*[word.format(target=target) for word in arguments])
    culprit = {"no such node": "absent", "no mountpoint file": ".absent", "unknown type": "fusee",
               "unknown option": "writeable", "no id": "id", "same id twice": "e"}[what]
    assert culprit in message
    assert target.read_text() == "what lies below\n"


def test_loop_device_over_an_exported_file(place):
    image, target = place.image("disk.img", 64 * MiB), point(place)
    place.start("--blockdev", f"driver=file,node-name=disk,filename={image}",
                "--export", f"type=fuse,id=exp,node-name=disk,mountpoint={target},writable=on",
                mountpoints=[target])
    with place.loop(target) as device:
        place.run("mkfs.ext4", "-q", device)
        with place.mounted(device) as vm:
            (vm / "file").write_bytes(fileio.pattern(MiB))
            os.sync()
    place.run("e2fsck", "-fn", target)


def test_kill_9_leaves_what_fusermount_clears(place):
    image, target = place.image("disk.img", MiB), point(place)
    daemon = place.start("--blockdev", f"driver=file,node-name=disk,filename={image}",
                         "--export", f"type=fuse,id=exp,node-name=disk,mountpoint={target}",
                         mountpoints=[target])
    daemon.crash()
    place.run("fusermount3", "-u", target)
    assert not system.is_mounted(target)
    assert target.read_text() == "what lies below\n"
