"""The drivers file, host_device and raw under a mount: what they refuse, locks, O_DIRECT, devices, errors.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import errno
import os
import socket
import subprocess
import time

import pytest

import fileio
import harness
import system
from fileio import opened
from system import KiB, MiB


def graph_of(filename, *options, driver="file"):
    return "\n".join(["[node disk]", f"driver = {driver}", f"filename = {filename}", *options]) + "\n"


def refusal(place, *graph):
    """What a daemon says that refuses this graph; the message names the node."""
    source = place.write("refused.conf", graph_of(*graph))
    mountpoint = place.directory("refused")
    done = place.run(place.binary, "-f", source, mountpoint, check=False, timeout=20)
    assert done.returncode == 1, done.stderr
    assert "node 'disk'" in done.stderr, done.stderr
    assert not system.is_mounted(mountpoint)
    return done.stderr


# ---- what is no image

def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    # The path may be too long for an address; a relative one is not.
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize("make, words", [
    (lambda path: None, "No such file"),
    (os.mkdir, "is a directory"),
    (make_fifo, "is a FIFO"),
    (make_socket, "is a socket"),
    (lambda path: os.symlink("/dev/zero", path), "is a character device"),
    (lambda path: os.symlink(path.name, path), "Too many levels"),
], ids=["missing", "directory", "fifo", "socket", "character device", "symlink loop"])
def test_refused(place, make, words):
    make(place.path / "image")
    message = refusal(place, "image")
    assert words in message and "image" in message and "'filename'" in message


@pytest.mark.parametrize("option, words", [
    ("aio = native", ["'aio'", "io_uring", "threads"]),
    ("aio = iouring", ["io_uring"]),
    ("locking = maybe", ["'locking'"]),
    ("cache.direct = perhaps", ["direct"]),
    ("lockign = off", ["locking"]),
    ("offset = 0", ["offset"]),
    ("force-share = on", ["'force-share'", "not supported"]),
    ("drop-cache = off", ["'drop-cache'", "not supported"]),
    ("pr-manager = pr0", ["'pr-manager'", "not supported"]),
    ("x-check-cache-dropped = on", ["'x-check-cache-dropped'", "not supported"]),
    ("aio-max-batch = 8", ["'aio-max-batch'", "not supported"]),
    ("aio-max-batch = many", ["'aio-max-batch'", "whole number"]),
    ("drop-cache = maybe", ["'drop-cache'", "maybe"]),
    ("drop-cach = on", ["'drop-cach'", "unknown option"]),
])
def test_refused_option(place, option, words):
    place.image("image")
    message = refusal(place, "image", option)
    assert all(word in message for word in words), message


def test_defaults_of_options_that_are_not_supported(place):
    place.image("image", data=b"x")
    options = ["force-share = off", "drop-cache = on", "x-check-cache-dropped = off", "aio-max-batch = 0"]
    assert place.mount(graph_of("image", *options)).file("disk").read_bytes()[:1] == b"x"


def test_image_without_permission(place):
    """Even root may not write to an immutable file; read-only=on is the message's advice."""
    image = place.image("image")
    if place.run("chattr", "+i", image, check=False).returncode != 0:
        pytest.skip("no immutable files here")
    try:
        assert "read-only=on" in refusal(place, "image")
        for option in ("read-only = on", "auto-read-only = on"):
            daemon = place.mount(graph_of("image", option))
            assert os.stat(daemon.file("disk")).st_mode & 0o222 == 0
            with pytest.raises(OSError):
                os.open(daemon.file("disk"), os.O_RDWR)
            daemon.stop()
    finally:
        place.run("chattr", "-i", image)


# ---- a graph on top of itself

def test_image_inside_a_mount_of_ours(place, disk):
    """Also by way of a link; .graph is inside as well."""
    os.symlink(disk.file("disk"), place.path / "link")
    for name in ("mnt/disk", "link", "mnt/.graph/nodes/disk/data"):
        for option in ("read-only = on", "read-only = off"):
            message = refusal(place, name, option)
            assert "mounted blockgraphfs" in message and name in message
    # Not inside: the image below, read by both.
    other = place.mount(graph_of("disk.img", "read-only = on", "locking = off"), at="other")
    with opened(other.file("disk"), os.O_RDONLY) as fd:
        os.pread(fd, 4096, 0)


def test_loop_device_over_a_mount_of_ours(place, disk):
    with place.loop(disk.file("disk")) as device:
        message = refusal(place, device)
        assert "mounted blockgraphfs" in message and device in message
    with place.loop(place.image("other.img")) as device:
        place.mount(graph_of(device), at="other").stop()


def test_image_inside_a_dead_mount(place, disk):
    disk.crash()
    message = refusal(place, "mnt/disk")
    assert "daemon is gone" in message
    place.run("umount", "-l", disk.mountpoints[0])


# ---- locks

@contextlib.contextmanager
def qemu_nbd(place, image):
    address = place.path / "nbd.sock"
    with subprocess.Popen(["qemu-nbd", "-t", "-k", address, "-f", "raw", image], cwd=place.path) as server:
        try:
            deadline = time.monotonic() + 10
            while not address.exists():
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            yield server
        finally:
            server.kill()


def test_image_in_qemu_nbd(place):
    place.image("image")
    with qemu_nbd(place, "image"):
        message = refusal(place, "image")
        assert '"write" lock' in message or 'nobody else "write"' in message
        assert "is a VM or qemu-nbd using it?" in message
        # Reading it is refused as well, unless one asks for it.
        place.mount(graph_of("image", "read-only = on", "locking = off"), at="unlocked").stop()
    place.mount(graph_of("image")).stop()


def test_two_daemons_on_one_image(place, disk):
    """The second writer is refused, and named the cause; the first goes on."""
    message = refusal(place, "disk.img")
    assert "disk.img" in message and "lock" in message
    with opened(disk.file("disk")) as fd:
        os.pwrite(fd, b"still here", 0)
        os.fsync(fd)
    disk.stop()
    second = place.mount(graph_of("disk.img"), at="second")
    with opened(second.file("disk")) as fd:
        assert os.pread(fd, 10, 0) == b"still here"


def test_resize_by_qemu_img_is_kept_out(place, disk):
    done = place.run("qemu-img", "resize", "-f", "raw", "disk.img", "32M", check=False)
    assert done.returncode != 0 and "lock" in done.stderr
    assert os.stat(place.path / "disk.img").st_size == 16 * MiB


# ---- O_DIRECT

def open_flags(pid, path):
    """The flags with which a process has a file open, one per descriptor."""
    found = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{number}") == str(path):
                with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii") as info:
                    found.append(int(dict(line.split(":", 1) for line in info)["flags"], 8))
    return found


@pytest.mark.parametrize("aio", ["io_uring", "threads"])
@pytest.mark.parametrize("direct", ["on", "off"])
def test_cache_direct(place, direct, aio):
    """Odd offsets and lengths, an odd length of the image: all is as without O_DIRECT."""
    length = 300 * KiB + 77
    image = place.image("image", length, data=fileio.pattern(length))
    daemon = place.mount(graph_of("image", f"cache.direct = {direct}", f"aio = {aio}"))
    flags = open_flags(daemon.pid, image)
    assert flags and all(bool(f & os.O_DIRECT) == (direct == "on") for f in flags)
    expected = bytearray(fileio.pattern(length))
    with opened(daemon.file("disk")) as fd:
        assert os.fstat(fd).st_size == length
        for offset, size in ((0, 1), (511, 2), (4095, 8193), (length - 5, 5), (100001, 99999)):
            data = fileio.pattern(size, offset)
            assert os.pwrite(fd, data, offset) == size
            expected[offset:offset + size] = data
        fileio.punch_hole(fd, 10001, 20000)
        expected[10001:30001] = bytes(20000)
        assert os.pread(fd, length + 1, 0) == expected
        os.fsync(fd)
    assert image.read_bytes() == expected
    assert len(image.read_bytes()) == length


def test_cache_direct_where_there_is_none(place):
    """ramfs has no O_DIRECT, and says so."""
    directory = place.directory("ram")
    place.run("mount", "-t", "ramfs", "ramfs", directory)
    try:
        (directory / "image").write_bytes(bytes(MiB))
        daemon = place.mount(graph_of("ram/image"))
        assert os.getxattr(daemon.file("disk"), "user.blockgraph.durable") == b"no"
        daemon.stop()
        try:
            os.close(os.open(directory / "image", os.O_RDWR | os.O_DIRECT))
        except OSError:
            assert "'cache.direct'" in refusal(place, "ram/image", "cache.direct = on")
    finally:
        place.run("umount", directory)


# ---- block devices

@pytest.mark.parametrize("driver", ["file", "host_device"])
@pytest.mark.parametrize("direct", ["on", "off"])
def test_block_device(place, driver, direct):
    backing = place.image("backing", 8 * MiB)
    with place.loop(backing) as device:
        daemon = place.mount(graph_of(device, f"cache.direct = {direct}", driver=driver))
        path = daemon.file("disk")
        assert os.stat(path).st_size == 8 * MiB
        with opened(path) as fd:
            os.pwrite(fd, fileio.pattern(MiB), 12345)
            fileio.fallocate(fd, fileio.FALLOC_FL_ZERO_RANGE, 100 * KiB, 64 * KiB)
            os.fsync(fd)
            with pytest.raises(OSError) as caught:
                os.pwrite(fd, b"beyond", 8 * MiB)
            assert caught.value.errno == errno.ENOSPC
            with pytest.raises(OSError):
                os.ftruncate(fd, 9 * MiB)
        expected = bytearray(8 * MiB)
        expected[12345:12345 + MiB] = fileio.pattern(MiB)
        expected[100 * KiB:164 * KiB] = bytes(64 * KiB)
        daemon.stop()
        place.run("sync", device)
        assert backing.read_bytes() == expected


def test_host_device_is_no_file(place):
    place.image("image")
    source = place.write("refused.conf", graph_of("image", driver="host_device"))
    message = place.refuse(source, place.directory("refused"))
    assert "is a regular file, not a block device" in message


def test_failed_fsync_is_not_forgotten(place):
    """
    What the kernel could not write it may drop, and says so once. No later fsync may claim success,
    though the device has room again; a daemon started anew can be believed.
    """
    small = place.directory("small")
    place.run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small)
    try:
        (small / "filler").write_bytes(bytes(6 * MiB))
        with open(small / "backing", "wb") as backing:
            backing.truncate(16 * MiB)
        with place.loop(small / "backing") as device:
            daemon = place.mount(graph_of(device))
            with opened(daemon.file("disk")) as fd:
                os.pwrite(fd, fileio.pattern(4 * MiB), 0)
                for _ in range(2):
                    with pytest.raises(OSError) as caught:
                        os.fsync(fd)
                    assert caught.value.errno == errno.EIO
                    if (small / "filler").exists():
                        (small / "filler").unlink()
                        os.pwrite(fd, fileio.pattern(4 * MiB), 0)
            assert "may be lost" in daemon.graph("errors")
            # The end flushes once more, and has to say that this failed.
            daemon.expected_status, daemon.stderr_allowed = 1, "Input/output error"
            daemon.stop()
            assert "Input/output error" in daemon.said()
            daemon = place.mount(graph_of(device), at="again")
            with opened(daemon.file("disk")) as fd:
                os.pwrite(fd, fileio.pattern(4 * MiB), 0)
                os.fsync(fd)
            daemon.stop()
    finally:
        place.run("umount", "-l", small)


# ---- errors from below

def test_enospc_of_a_disk_file_system(place):
    """A sparse image on a full ext4: the writer gets ENOSPC, and .graph/errors says where."""
    backing = place.image("backing", 8 * MiB)
    place.run("mkfs.ext4", "-q", "-F", "-m", "0", backing)
    with place.loop(backing) as device, place.mounted(device, at="small") as small:
        with open(small / "image", "wb") as image:
            image.truncate(64 * MiB)
        daemon = place.mount(graph_of("small/image"))
        with opened(daemon.file("disk")) as fd:
            written = 0
            with pytest.raises(OSError) as caught:
                while written < 64 * MiB:
                    written += os.pwrite(fd, fileio.pattern(64 * KiB, written), written)
            assert caught.value.errno == errno.ENOSPC
            assert written > 2 * MiB
            line = [line for line in daemon.graph("errors").splitlines() if "ENOSPC" in line][-1]
            assert "disk" in line and str(written) in line
            with pytest.raises(OSError) as caught:
                fileio.fallocate(fd, 0, 0, 64 * MiB)
            assert caught.value.errno == errno.ENOSPC
            # It serves on: what is there can be read, synced, freed and written.
            assert os.pread(fd, 64 * KiB, 0) == fileio.pattern(64 * KiB, 0)
            os.fsync(fd)
            fileio.punch_hole(fd, 0, MiB)
            os.pwrite(fd, fileio.pattern(256 * KiB), 32 * MiB)
            os.fsync(fd)
        daemon.stop()


def test_image_that_shrinks_is_named(place, disk):
    os.truncate(place.path / "disk.img", 5000)
    with opened(disk.file("disk")) as fd:
        with pytest.raises(OSError) as caught:
            os.pread(fd, 4096, 8 * MiB)
        assert caught.value.errno == errno.EIO
    assert f"file shrank from {16 * MiB} to 5000 bytes" in disk.graph("errors")


def test_read_error_of_a_device(place):
    backing = place.image("backing", 4 * MiB, data=fileio.pattern(4 * MiB))
    with place.loop(backing) as device:
        os.truncate(backing, MiB)
        daemon = place.mount(graph_of(device, "cache.direct = on"))
        with opened(daemon.file("disk"), os.O_RDONLY) as fd:
            assert os.pread(fd, 4096, 0) == fileio.pattern(4 * MiB)[:4096]
            with pytest.raises(OSError) as caught:
                os.pread(fd, 4096, 2 * MiB)
            assert caught.value.errno == errno.EIO
            assert f"{2 * MiB}" in daemon.graph("errors")
        daemon.stop()


# ---- windows

def test_two_windows_of_one_image(place):
    """Two partitions, both with a writer, neither sees or changes the other."""
    image = place.image("image", 3 * MiB, data=fileio.pattern(3 * MiB))
    window = "[node {0}]\ndriver = raw\nfile = whole\noffset = {1}\nsize = 1M\n"
    daemon = place.mount("[node whole]\ndriver = file\nfilename = image\n"
                         + window.format("one", "512") + window.format("two", "2M"))
    expected = bytearray(fileio.pattern(3 * MiB))
    with opened(daemon.file("one")) as one, opened(daemon.file("two")) as two:
        for fd, start in ((one, 512), (two, 2 * MiB)):
            assert os.fstat(fd).st_size == MiB
            assert os.pread(fd, 2 * MiB, 0) == expected[start:start + MiB]
            data = fileio.pattern(MiB, start)
            os.pwrite(fd, data, 0)
            expected[start:start + MiB] = data
            with pytest.raises(OSError) as caught:
                os.pwrite(fd, b"x", MiB)
            assert caught.value.errno == errno.ENOSPC
            os.fsync(fd)
    assert image.read_bytes() == expected


@pytest.mark.parametrize("options, words", [
    (["offset = 17M"], ["offset", str(17 * MiB), str(16 * MiB)]),
    (["offset = 8M", "size = 9M"], ["size", str(9 * MiB), str(16 * MiB)]),
    (["size = -1"], ["size"]),
    (["offset = 99999999999999999999"], ["offset"]),
])
def test_window_refused(place, options, words):
    place.image("image")
    source = place.write("refused.conf", "\n".join(
        ["[node disk]", "driver = raw", "file.driver = file", "file.filename = image", *options]) + "\n")
    message = place.refuse(source, place.directory("refused"))
    assert "node 'disk'" in message
    assert all(word in message for word in words), message


def test_windows_that_overlap_are_refused(place):
    place.image("image")
    window = "[node {0}]\ndriver = raw\nfile = whole\noffset = {1}\nsize = 1M\n"
    source = place.write("refused.conf", "[node whole]\ndriver = file\nfilename = image\n"
                         + window.format("one", "512k") + window.format("two", "1M"))
    message = place.refuse(source, place.directory("refused"))
    assert "overlaps" in message and "'one'" in message and "'two'" in message


# ---- null-co

@pytest.mark.parametrize("read_zeroes", ["on", "off"])
def test_null_shows_nobody_elses_bytes(place, read_zeroes):
    """Reads of null-co are zeroes, also where the daemon's buffers held something else before."""
    place.image("disk.img", data=b"\xa5" * 4 * MiB)
    daemon = place.mount(harness.DISK + f"[node null]\ndriver = null-co\nread-zeroes = {read_zeroes}\n")
    with opened(daemon.file("disk"), os.O_RDONLY) as disk, opened(daemon.file("null")) as null:
        for i in range(64):
            assert os.pread(disk, 64 * KiB, i % 4 * 64 * KiB) == b"\xa5" * 64 * KiB
            assert os.pread(null, 64 * KiB, i * 64 * KiB) == bytes(64 * KiB)
        os.pwrite(null, b"gone", 0)
        assert os.pread(null, 4, 0) == bytes(4)
    assert os.getxattr(daemon.file("null"), "user.blockgraph.durable") == b"no"
