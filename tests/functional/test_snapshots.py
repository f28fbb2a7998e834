"""Snapshots by mkdir in .snap: read while the image is written, kept across remounts, whole or not at all.

After each test qemu-img finds no fault in the images, lists the snapshots, and reads the same bytes from them.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import concurrent.futures
import contextlib
import errno
import os
import random
import threading
import time

import pytest

import fileio
import harness
import qcow2
from fileio import opened
from qcow2 import NODE, VARIANTS
from system import KiB, MiB

SIZE = 4 * MiB + 1536
# Of the variants those whose refcounts can count two snapshots.
COUNTING = [name for name in VARIANTS if "refcount1" not in name or "refcount16" in name]
TWO = """\
[node a]
driver = qcow2
file.driver = file
file.filename = a.qcow2

[node b]
driver = {driver}
file.driver = file
file.filename = b.img
"""


def random_writes(daemon, name, mirror, seed, number=25):
    return bytearray(qcow2.random_operations(daemon.file(name), 0, bytearray(mirror), seed, number,
                                             holes="v2" not in str(daemon.place.path)))


def snapshot_path(daemon, snapshot, name):
    return daemon.file(".snap") / snapshot / name


def read_snapshot(daemon, snapshot, name):
    return snapshot_path(daemon, snapshot, name).read_bytes()


def check_snapshots(place, image, kept):
    """What qemu-img says: no fault, these snapshots, these bytes."""
    qcow2.check(place, image)
    listed = place.run("qemu-img", "snapshot", "-l", image).stdout
    assert {line.split()[1] for line in listed.splitlines()[2:]} == set(kept)
    for name, data in kept.items():
        assert qcow2.content(place, image, "-l", f"snapshot.name={name}") == data, name


@pytest.mark.limit(120)
@pytest.mark.parametrize("variant", COUNTING)
def test_content_stays(place, variant):
    """Taken, read, written over, remounted, deleted in another order."""
    image = qcow2.create(place, "disk.qcow2", VARIANTS[variant], SIZE)
    qcow2.fill(place, image, SIZE, seed=len(variant), number=20)
    mirror, kept = bytearray(qcow2.content(place, image)), {}
    daemon = place.mount(NODE.format(image=image))
    names = ("one", "two")
    for number in range(harness.count(3, 40)):
        name = names[number % 2]
        if name in kept:
            daemon.file(".snap").joinpath(name).rmdir()
            del kept[name]
        mirror = random_writes(daemon, "disk", mirror, seed=number)
        daemon.file(".snap").joinpath(name).mkdir()
        kept[name] = bytes(mirror)
        mirror = random_writes(daemon, "disk", mirror, seed=number + 1000)
        for known, data in kept.items():
            assert read_snapshot(daemon, known, "disk") == data, known
        assert sorted(os.listdir(daemon.file(".snap"))) == sorted(kept)
        daemon.stop()
        check_snapshots(place, image, kept)
        qcow2.compare(place, image, mirror)
        daemon = place.mount(NODE.format(image=image), at=f"mnt{number}")
    for name in list(kept):
        assert read_snapshot(daemon, name, "disk") == kept.pop(name)
        daemon.file(".snap").joinpath(name).rmdir()
    assert daemon.file("disk").read_bytes() == mirror
    daemon.stop()
    check_snapshots(place, image, {})
    qcow2.compare(place, image, mirror)


@pytest.mark.limit(120)
def test_of_a_peer(place):
    """Snapshots that qemu-img made, which share L2 tables with the current state."""
    image = qcow2.create(place, "disk.qcow2", "", SIZE)
    kept = {}
    for name in ("first", "second", "third"):
        qcow2.fill(place, image, SIZE, seed=len(kept))
        place.run("qemu-img", "snapshot", "-c", name, image)
        kept[name] = qcow2.content(place, image)
    mirror = qcow2.content(place, image)
    daemon = place.mount(NODE.format(image=image))
    for name, data in kept.items():
        assert read_snapshot(daemon, name, "disk") == data
    daemon.file(".snap").joinpath("ours").mkdir()
    kept["ours"] = mirror
    daemon.file(".snap").joinpath("second").rmdir()
    del kept["second"]
    mirror = random_writes(daemon, "disk", mirror, seed=1)
    for name, data in kept.items():
        assert read_snapshot(daemon, name, "disk") == data
    daemon.stop()
    check_snapshots(place, image, kept)
    qcow2.compare(place, image, mirror)
    place.run("qemu-img", "snapshot", "-d", "ours", image)
    place.run("qemu-img", "snapshot", "-a", "first", image)
    del kept["ours"]
    check_snapshots(place, image, kept)


def test_over_a_backing(place):
    base = qcow2.create(place, "base.qcow2", "", SIZE)
    qcow2.fill(place, base, SIZE, seed=1)
    image = qcow2.create(place, "disk.qcow2", "", SIZE, "base.qcow2")
    mirror = qcow2.content(place, image)
    daemon = place.mount(NODE.format(image=image) + "backing.driver = qcow2\nbacking.file.driver = file\n"
                         "backing.file.filename = base.qcow2\n")
    daemon.file(".snap").joinpath("s").mkdir()
    changed = random_writes(daemon, "disk", mirror, seed=3)
    assert read_snapshot(daemon, "s", "disk") == mirror
    daemon.stop()
    check_snapshots(place, image, {"s": mirror})
    qcow2.compare(place, image, changed)


def numbered_writer(paths, stop):
    """Writes one number after the other to a place in the first file, then to the same place in the second."""
    with opened(paths[0]) as first, opened(paths[1]) as second:
        for number in range(1, 1 << 30):
            if stop.is_set():
                return
            at = number % 512 * 4 * KiB
            for fd in (first, second):
                os.pwrite(fd, number.to_bytes(8, "big") * 512, at)


@pytest.mark.limit(120)
def test_one_point_in_time_under_load(place):
    """What a writer wrote to one image before another is in the snapshots of both, or of the first alone."""
    qcow2.create(place, "a.qcow2", "", SIZE)
    qcow2.create(place, "b.img", "", SIZE)
    daemon = place.mount(TWO.format(driver="qcow2"))
    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        writer = pool.submit(numbered_writer, (daemon.file("a"), daemon.file("b")), stop)
        try:
            for round_number in range(harness.count(5, 50)):
                time.sleep(0.1)
                daemon.file(".snap").joinpath("now").mkdir()
                a, b = (read_snapshot(daemon, "now", name) for name in "ab")
                highest = [max(int.from_bytes(data[i:i + 8], "big") for i in range(0, 2 * MiB, 4 * KiB))
                           for data in (a, b)]
                assert highest[0] - highest[1] in (0, 1), f"round {round_number}"
                daemon.file(".snap").joinpath("now").rmdir()
        finally:
            stop.set()
        writer.result()
    daemon.stop()
    for image in ("a.qcow2", "b.img"):
        check_snapshots(place, place.path / image, {})


@pytest.mark.limit(120)
def test_survives_kill(place):
    """What mkdir has made is there after kill -9 at once."""
    image = qcow2.create(place, "disk.qcow2", "cluster_size=4096", SIZE)
    kept, mirror = {}, bytes(SIZE)
    for number in range(harness.count(3, 30)):
        daemon = place.mount(NODE.format(image=image), at=f"mnt{number}")
        mirror = daemon.file("disk").read_bytes()
        mirror = bytes(random_writes(daemon, "disk", mirror, seed=number))
        daemon.file(".snap").joinpath(f"s{number}").mkdir()
        kept[f"s{number}"] = mirror
        daemon.crash()
        place.run("umount", "-l", daemon.mountpoints[0])
        done = place.run("qemu-img", "check", "-f", "qcow2", image, check=False)
        assert done.returncode in (0, 3), done.stdout + done.stderr
        for name, data in kept.items():
            assert qcow2.content(place, image, "-l", f"snapshot.name={name}") == data, name


def expect(error, function, *arguments):
    with pytest.raises(OSError) as caught:
        function(*arguments)
    assert caught.value.errno == error


def test_names(place):
    image = qcow2.create(place, "disk.qcow2", "", SIZE)
    daemon = place.mount(NODE.format(image=image))
    snap = daemon.file(".snap")
    for name in ("before upgrade", "ünïcode", "x" * 255, "-rf", "..."):
        (snap / name).mkdir()
        expect(errno.EEXIST, (snap / name).mkdir)
    expect(errno.EINVAL, os.mkdir, os.fsencode(snap) + b"/\xff\xfe")
    expect(errno.EINVAL, os.mkdir, snap / "two\nlines")
    expect(errno.ENAMETOOLONG, (snap / ("x" * 256)).mkdir)
    expect(errno.ENOENT, (snap / "absent").rmdir)
    expect(errno.ENOENT, os.listdir, snap / "absent")
    expect(errno.ENOENT, open, snap / "..." / "other", "rb")
    expect(errno.EPERM, (snap / "file").touch)
    expect(errno.EROFS, (snap / "..." / "disk").unlink)
    expect(errno.EROFS, open, snap / "..." / "disk", "r+b")
    assert len(os.listdir(snap)) == 5
    stat = os.stat(snap / "..." / "disk")
    assert stat.st_size == SIZE and abs(stat.st_mtime - time.time()) < 600
    assert ".snap" not in os.listdir(daemon.mountpoints[0])


def test_busy_while_read(place):
    image = qcow2.create(place, "disk.qcow2", "", SIZE)
    daemon = place.mount(NODE.format(image=image))
    mirror = bytes(random_writes(daemon, "disk", bytes(SIZE), seed=1))
    daemon.file(".snap").joinpath("s").mkdir()
    random_writes(daemon, "disk", mirror, seed=2)
    with open(snapshot_path(daemon, "s", "disk"), "rb") as reader:
        expect(errno.EBUSY, daemon.file(".snap").joinpath("s").rmdir)
        assert reader.read() == mirror
        assert "is being read" in daemon.file(".graph/errors").read_text()
        # Another one comes and goes meanwhile, and moves all tables.
        daemon.file(".snap").joinpath("t").mkdir()
        daemon.file(".snap").joinpath("t").rmdir()
        reader.seek(0)
        assert reader.read() == mirror
        data = os.lseek(reader.fileno(), 0, os.SEEK_DATA)
        hole = os.lseek(reader.fileno(), data, os.SEEK_HOLE)
        assert not any(mirror[:data]) and data < hole
    deadline = time.monotonic() + 10  # the kernel sends RELEASE when it likes
    while os.path.exists(daemon.file(".snap") / "s"):
        try:
            daemon.file(".snap").joinpath("s").rmdir()
        except OSError as error:
            assert error.errno == errno.EBUSY and time.monotonic() < deadline
            time.sleep(0.05)
    daemon.stop()
    check_snapshots(place, image, {})


@pytest.mark.parametrize("second", ("null-co", "raw"))
def test_whole_or_nothing(place, second):
    """One export of a mount cannot: none gets a snapshot, and the reason is told."""
    image = qcow2.create(place, "a.qcow2", "", SIZE)
    (place.path / "b.img").write_bytes(bytes(SIZE))
    other = "[node c]\ndriver = null-co\nsize = 1M\n" if second == "null-co" else \
        "[node c]\ndriver = raw\noffset = 512\nfile.driver = file\nfile.filename = b.img\n"
    daemon = place.mount(NODE.format(image=image) + other)
    expect(errno.EOPNOTSUPP, daemon.file(".snap").joinpath("s").mkdir)
    assert f"'{second}' has no snapshots" in daemon.file(".graph/errors").read_text()
    assert os.listdir(daemon.file(".snap")) == []
    daemon.stop()
    check_snapshots(place, image, {})


@contextlib.contextmanager
def xfs(place):
    """A file system with reflinks in a loop device."""
    image = place.image("xfs.img", 320 * MiB)
    place.run("mkfs.xfs", "-q", "-m", "reflink=1", image)
    with place.loop(image) as device, place.mounted(device, at="xfs") as path:
        yield path
        for daemon in place.daemons:
            if daemon.is_running():
                daemon.stop()


@pytest.mark.limit(60)
def test_raw_files_by_reflink(place):
    """Raw and qcow2 images together: one snapshot of both."""
    with xfs(place) as directory:
        mirror = random.Random(1).randbytes(SIZE)
        (directory / "disk.img").write_bytes(mirror)
        image = qcow2.create(place, "xfs/a.qcow2", "", SIZE)
        graph = NODE.format(image=image) + "[node b]\ndriver = raw\nfile.driver = file\n" \
            "file.filename = xfs/disk.img\n"
        daemon = place.mount(graph)
        before = os.stat(daemon.file("b")).st_blocks
        daemon.file(".snap").joinpath("s").mkdir()
        assert sorted(os.listdir(daemon.file(".snap") / "s")) == ["b", "disk"]
        changed = random_writes(daemon, "b", mirror, seed=1)
        assert read_snapshot(daemon, "s", "b") == mirror and read_snapshot(daemon, "s", "disk") == bytes(SIZE)
        assert (directory / "disk.img.snapshots" / "s").read_bytes() == mirror
        daemon.file(".snap").joinpath("t").mkdir()
        daemon.stop()
        daemon = place.mount(graph, at="again")
        assert sorted(os.listdir(daemon.file(".snap"))) == ["s", "t"]
        assert read_snapshot(daemon, "t", "b") == changed and before
        with open(snapshot_path(daemon, "s", "b"), "rb") as reader:
            assert os.lseek(reader.fileno(), 0, os.SEEK_DATA) == 0
            assert reader.read() == mirror
        for name in "st":
            daemon.file(".snap").joinpath(name).rmdir()
        assert os.listdir(directory / "disk.img.snapshots") == []
        daemon.stop()
        check_snapshots(place, image, {})


@pytest.mark.limit(60)
@pytest.mark.parametrize("length", (MiB, MiB + 512))
def test_revert_of_a_raw_file(place, length):
    """Longer and shorter meanwhile, and of a length that is none of whole blocks."""
    with xfs(place) as directory:
        mirror = random.Random(1).randbytes(length)
        (directory / "disk.img").write_bytes(mirror)
        daemon = place.mount("[node disk]\ndriver = raw\nfile.driver = file\nfile.filename = xfs/disk.img\n"
                             "[export disk]\nnode = disk\nwritable = on\ngrowable = on\n")
        daemon.file(".snap").joinpath("s").mkdir()
        client = place.binary.with_name("blockgraph")
        for other in (2 * MiB, 4096):
            os.truncate(daemon.file("disk"), other)
            with opened(daemon.file("disk")) as fd:
                os.pwrite(fd, b"x" * 100, 0)
            place.run(client, "snapshot", "revert", daemon.mountpoints[0], "s")
            assert daemon.file("disk").read_bytes() == mirror
        daemon.stop()
        assert (directory / "disk.img").read_bytes() == mirror


def test_raw_file_without_reflinks(place):
    tmpfs = place.directory("tmpfs")
    place.run("mount", "-t", "tmpfs", "tmpfs", tmpfs)
    try:
        (tmpfs / "disk.img").write_bytes(bytes(SIZE))
        daemon = place.mount("[node disk]\ndriver = raw\nfile.driver = file\nfile.filename = tmpfs/disk.img\n")
        expect(errno.EOPNOTSUPP, daemon.file(".snap").joinpath("s").mkdir)
        assert "reflink" in daemon.file(".graph/errors").read_text()
        daemon.stop()
        assert os.listdir(tmpfs) == ["disk.img"]
    finally:
        place.run("umount", tmpfs)


def test_a_name_that_one_image_has(place):
    """The second image has it already: the first is left alone."""
    first = qcow2.create(place, "a.qcow2", "", SIZE)
    second = qcow2.create(place, "b.img", "", SIZE)
    place.run("qemu-img", "snapshot", "-c", "s", second)
    daemon = place.mount(TWO.format(driver="qcow2"))
    expect(errno.EEXIST, daemon.file(".snap").joinpath("s").mkdir)
    assert os.listdir(daemon.file(".snap")) == ["s"] and os.listdir(daemon.file(".snap") / "s") == ["b"]
    daemon.stop()
    check_snapshots(place, first, {})


def test_refcounts_too_narrow(place):
    image = qcow2.create(place, "disk.qcow2", VARIANTS["1k-refcount1"], SIZE)
    daemon = place.mount(NODE.format(image=image))
    mirror = random_writes(daemon, "disk", bytes(SIZE), seed=1)
    expect(errno.EOPNOTSUPP, daemon.file(".snap").joinpath("s").mkdir)
    assert "refcounts of 1 bits cannot count" in daemon.file(".graph/errors").read_text()
    mirror = random_writes(daemon, "disk", mirror, seed=2)
    daemon.stop()
    check_snapshots(place, image, {})
    qcow2.compare(place, image, mirror)


@pytest.mark.parametrize("options", ("-oro", "node"))
def test_read_only(place, options):
    """Snapshots of what cannot be written are there to read."""
    image = qcow2.create(place, "disk.qcow2", "", SIZE)
    place.run("qemu-img", "snapshot", "-c", "s", image)
    node = NODE.format(image=image) + ("read-only = on\n" if options == "node" else "")
    daemon = place.mount(node, *([options] if options != "node" else []))
    assert read_snapshot(daemon, "s", "disk") == bytes(SIZE)
    expect(errno.EROFS, daemon.file(".snap").joinpath("t").mkdir)
    expect(errno.EROFS, daemon.file(".snap").joinpath("s").rmdir)


@pytest.mark.limit(60)
def test_no_room(place):
    """The file system below is full: no snapshot, no harm."""
    small = place.directory("small")
    place.run("mount", "-t", "tmpfs", "-o", "size=6M", "small", small)
    try:
        image = qcow2.create(place, "small/disk.qcow2", "", 64 * MiB)
        daemon = place.mount(NODE.format(image=image), stderr_allowed=".")
        with opened(daemon.file("disk")) as fd:
            data = b""
            with pytest.raises(OSError) as full:
                for at in range(0, 64 * MiB, 64 * KiB):
                    os.pwrite(fd, fileio.pattern(64 * KiB, at), at)
                    data += fileio.pattern(64 * KiB, at)
            assert full.value.errno == errno.ENOSPC
            expect(errno.ENOSPC, daemon.file(".snap").joinpath("s").mkdir)
            assert os.pread(fd, len(data), 0) == data
        assert os.listdir(daemon.file(".snap")) == []
        daemon.expected_status = 1  # the last flush needs room, too
        daemon.stop()
        done = place.run("qemu-img", "check", "-f", "qcow2", image, check=False)
        assert done.returncode in (0, 3), done.stdout + done.stderr
    finally:
        place.run("umount", "-l", small)


@pytest.mark.limit(60)
def test_many_at_once(place):
    """Snapshots made, read and deleted by several threads while others write."""
    image = qcow2.create(place, "disk.qcow2", "cluster_size=4096", SIZE)
    daemon = place.mount(NODE.format(image=image))

    def churn(number):
        for i in range(harness.count(4, 60)):
            path = daemon.file(".snap") / f"{number}-{i}"
            path.mkdir()
            with open(path / "disk", "rb") as reader:
                reader.seek(random.randrange(SIZE))
                reader.read(100000)
            try:
                path.rmdir()
            except OSError as error:
                assert error.errno == errno.EBUSY

    def write(number):
        part = SIZE // 2 // 512 * 512
        qcow2.random_operations(daemon.file("disk"), number * part, bytearray(part), number, 100)

    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        for task in [pool.submit(churn, i) for i in range(3)] + [pool.submit(write, i) for i in range(2)]:
            task.result()
    daemon.stop()
    qcow2.check(place, image)
