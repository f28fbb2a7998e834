"""Every operation that an exported file supports, and those that it refuses.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import errno
import fcntl
import filecmp
import mmap
import os
import random
import stat
import subprocess
import sys
import time

import pytest

import fileio
import harness
from fileio import aligned, opened, pattern, punch_hole
from system import KiB, MiB

SIZE = 16 * MiB


def content(disk):
    """The image itself, not through the mount."""
    return (disk.place.path / "disk.img").read_bytes()


def error_of(function, *args):
    with pytest.raises(OSError) as caught:
        function(*args)
    return caught.value.errno


# ---- reading and writing


@pytest.mark.valgrind
def test_any_alignment(disk):
    mirror = bytearray(SIZE)
    choose = random.Random(7)
    with opened(disk.file("disk")) as fd:
        for i in range(harness.count(400, 4000)):
            length = choose.choice((1, 3, 511, 512, 513, 4095, 4096, 4097, 70000))
            offset = choose.randrange(SIZE - length)
            if choose.random() < 0.5:
                data = pattern(length, i)
                assert os.pwrite(fd, data, offset) == length
                mirror[offset:offset + length] = data
            else:
                assert os.pread(fd, length, offset) == mirror[offset:offset + length]
        os.fsync(fd)
    assert content(disk) == mirror


@pytest.mark.parametrize("unit", [512, 4096])
def test_direct_io(disk, unit):
    data = pattern(unit * 3, unit)
    with opened(disk.file("disk"), os.O_RDWR | os.O_DIRECT) as fd:
        assert os.pwritev(fd, [aligned(data)], unit * 5) == len(data)
        buffer = aligned(len(data))
        assert os.preadv(fd, [buffer], unit * 5) == len(data)
        assert buffer[:] == data
    assert content(disk)[unit * 5:][:len(data)] == data


def test_large_and_vectored(disk):
    data = pattern(9 * MiB + 1234)
    with opened(disk.file("disk")) as fd:
        parts = [data[:1], data[1:5000], data[5000:3 * MiB], data[3 * MiB:]]
        assert os.pwritev(fd, parts, 777) == len(data)
        back = [bytearray(100), bytearray(5 * MiB), bytearray(len(data) - 5 * MiB - 100)]
        assert os.preadv(fd, back, 777) == len(data)
        assert b"".join(back) == data
    assert content(disk)[777:777 + len(data)] == data


def test_through_shell_tools(place, disk):
    source = place.path / "source"
    source.write_bytes(pattern(SIZE))
    place.run("dd", f"if={source}", f"of={disk.file('disk')}", "bs=1M", "conv=notrunc,fsync")
    place.run("cmp", source, disk.file("disk"))
    place.run("cp", disk.file("disk"), place.path / "copy")
    place.run("cmp", source, place.path / "copy")
    with opened(disk.file("disk"), os.O_RDONLY) as fd, open(place.path / "sent", "wb") as out:
        assert os.sendfile(out.fileno(), fd, 4096, MiB) == MiB
    assert (place.path / "sent").read_bytes() == source.read_bytes()[4096:4096 + MiB]


@pytest.mark.parametrize("engine, direct", [("psync", 0), ("psync", 1), ("libaio", 0), ("libaio", 1),
                                            ("io_uring", 0), ("io_uring", 1), ("posixaio", 1), ("mmap", 0)])
def test_fio_verifies(place, disk, engine, direct):
    place.run("fio", "--name=verify", f"--filename={disk.file('disk')}", f"--ioengine={engine}",
              f"--direct={direct}", "--rw=randwrite", "--bsrange=4k-64k", "--iodepth=16", "--size=16M",
              "--io_size=" + ("256M" if harness.LONG else "32M"), "--verify=crc32c", "--verify_fatal=1",
              "--allow_file_create=0", "--fallocate=none", "--end_fsync=1", timeout=120)


def test_mmap(disk):
    data = pattern(100 * KiB)
    with opened(disk.file("disk")) as fd:
        with mmap.mmap(fd, SIZE, mmap.MAP_SHARED) as mapping:
            assert mapping[:4096] == bytes(4096)
            mapping[5000:5000 + len(data)] = data
            mapping.flush()
        assert os.pread(fd, len(data), 5000) == data
        os.pwrite(fd, b"written beside", 8 * MiB)
        with mmap.mmap(fd, SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapping:
            assert mapping[8 * MiB:8 * MiB + 14] == b"written beside"
    assert content(disk)[5000:5000 + len(data)] == data


# ---- the end of the file


def test_reads_beyond_the_end(disk):
    with opened(disk.file("disk")) as fd:
        assert os.pread(fd, 4096, SIZE) == b""
        assert os.pread(fd, 4096, SIZE + 123456789) == b""
        assert os.pread(fd, 8192, SIZE - 100) == bytes(100)
        assert os.pread(fd, 0, 0) == b""


def test_writes_beyond_the_end(disk):
    with opened(disk.file("disk")) as fd:
        assert error_of(os.pwrite, fd, b"x", SIZE) == errno.ENOSPC
        assert error_of(os.pwrite, fd, b"x" * 4096, SIZE + MiB) == errno.ENOSPC
        # As on a block device: what fits is written.
        assert os.pwrite(fd, b"end" * 1000, SIZE - 30) == 30
        assert os.fstat(fd).st_size == SIZE
        assert os.pread(fd, 100, SIZE - 30) == b"end" * 10
        os.lseek(fd, 0, os.SEEK_SET)
        assert os.write(fd, b"still fine") == 10
    assert len(content(disk)) == SIZE


def test_append_to_a_fixed_length(disk):
    with opened(disk.file("disk"), os.O_WRONLY | os.O_APPEND) as fd:
        assert error_of(os.write, fd, b"more") == errno.ENOSPC


def test_growable(place):
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
    with opened(daemon.file("disk")) as fd:
        assert os.pwrite(fd, b"beyond", 2 * MiB) == 6
        assert os.fstat(fd).st_size == 2 * MiB + 6
        assert os.pread(fd, 100, 2 * MiB - 4) == bytes(4) + b"beyond"
    with opened(daemon.file("disk"), os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b" and appended")
    daemon.stop()
    assert (place.path / "disk.img").read_bytes()[2 * MiB:] == b"beyond and appended"


def test_truncate(place):
    image = place.image("disk.img", 4 * MiB, pattern(4 * MiB))
    daemon = place.mount("[node disk]\ndriver = file\nfilename = disk.img\n")
    path = daemon.file("disk")
    os.truncate(path, MiB)
    assert os.stat(path).st_size == image.stat().st_size == MiB
    os.truncate(path, 3 * MiB)
    assert os.stat(path).st_size == image.stat().st_size == 3 * MiB
    with opened(path) as fd:
        assert os.pread(fd, 3 * MiB, 0) == pattern(4 * MiB)[:MiB] + bytes(2 * MiB)
        os.ftruncate(fd, 5000)
        assert os.fstat(fd).st_size == 5000
        assert error_of(os.ftruncate, fd, 1 << 62) in (errno.EFBIG, errno.EINVAL, errno.ENOSPC)
        assert os.fstat(fd).st_size == 5000


def test_truncate_of_a_window_is_refused(place):
    image = place.image("disk.img", 4 * MiB)
    daemon = place.mount("""
        [node part]
        driver = raw
        offset = 1M
        size = 1M
        file.driver = file
        file.filename = disk.img
        """)
    assert os.stat(daemon.file("part")).st_size == MiB
    error_of(os.truncate, daemon.file("part"), 2 * MiB)
    with opened(daemon.file("part")) as fd:
        error_of(os.ftruncate, fd, 0)
    os.truncate(daemon.file("part"), 0)  # cannot be told from O_TRUNC, and is ignored like it
    assert os.stat(daemon.file("part")).st_size == MiB
    assert image.stat().st_size == 4 * MiB


def test_window_shows_its_part(place):
    image = place.image("disk.img", 4 * MiB, pattern(4 * MiB))
    daemon = place.mount("""
        [node part]
        driver = raw
        offset = 1M
        size = 1536K
        file.driver = file
        file.filename = disk.img
        """)
    expected = bytearray(pattern(4 * MiB))
    with opened(daemon.file("part")) as fd:
        assert os.pread(fd, 4 * MiB, 0) == expected[MiB:MiB + 1536 * KiB]
        assert os.pwrite(fd, b"window" * 1000, 1536 * KiB - 12) == 12
    expected[MiB + 1536 * KiB - 12:MiB + 1536 * KiB] = b"windowwindow"
    daemon.stop()
    assert image.read_bytes() == expected


# ---- allocation


def test_punch_hole(disk):
    with opened(disk.file("disk")) as fd:
        os.pwrite(fd, pattern(4 * MiB), 0)
        os.fsync(fd)
        before = os.stat(disk.place.path / "disk.img").st_blocks
        punch_hole(fd, MiB, 2 * MiB)
        assert os.pread(fd, 4 * MiB, 0) == pattern(4 * MiB)[:MiB] + bytes(2 * MiB) + pattern(4 * MiB)[3 * MiB:]
        assert os.stat(disk.place.path / "disk.img").st_blocks <= before - 2 * MiB // 512 + 16
        punch_hole(fd, 3 * MiB + 1, 5)  # within a block
        assert os.pread(fd, 7, 3 * MiB) == pattern(4 * MiB)[3 * MiB:3 * MiB + 1] + bytes(5) \
            + pattern(4 * MiB)[3 * MiB + 6:3 * MiB + 7]
        punch_hole(fd, 15 * MiB, 100 * MiB)  # to beyond the end: what is there
        os.pwrite(fd, b"end", SIZE - 3)
        punch_hole(fd, SIZE - 2, (1 << 63) - 1 - SIZE)  # as far as a file can be
        assert os.pread(fd, 3, SIZE - 3) == b"e" + bytes(2)
        fileio.fallocate(fd, fileio.FALLOC_FL_ZERO_RANGE | fileio.FALLOC_FL_KEEP_SIZE, SIZE - 3, (1 << 63) - 1 - SIZE)
        assert os.pread(fd, 3, SIZE - 3) == bytes(3)
        assert os.fstat(fd).st_size == SIZE


def test_zero_range(disk):
    zero = fileio.FALLOC_FL_ZERO_RANGE
    with opened(disk.file("disk")) as fd:
        os.pwrite(fd, pattern(MiB), 0)
        fileio.fallocate(fd, zero, 1000, 100000)
        assert os.pread(fd, MiB, 0) == pattern(MiB)[:1000] + bytes(100000) + pattern(MiB)[101000:]
        fileio.fallocate(fd, zero | fileio.FALLOC_FL_KEEP_SIZE, 0, 4096)
        assert os.pread(fd, 4096, 0) == bytes(4096)
        assert os.fstat(fd).st_size == SIZE


def test_allocate(disk):
    with opened(disk.file("disk")) as fd:
        os.pwrite(fd, b"kept", 5 * MiB)
        os.posix_fallocate(fd, 4 * MiB, 4 * MiB)
        assert os.pread(fd, 4, 5 * MiB) == b"kept"
        assert os.pread(fd, 4096, 7 * MiB) == bytes(4096)
        fileio.fallocate(fd, fileio.FALLOC_FL_KEEP_SIZE, 0, MiB)
    assert os.stat(disk.place.path / "disk.img").st_blocks * 512 >= 5 * MiB


def test_allocate_beyond_a_fixed_end(disk):
    with opened(disk.file("disk")) as fd:
        assert error_of(fileio.fallocate, fd, 0, SIZE, MiB) in (errno.ENOSPC, errno.EFBIG, errno.EOPNOTSUPP)
        assert os.fstat(fd).st_size == SIZE


@pytest.mark.parametrize("mode", [fileio.FALLOC_FL_COLLAPSE_RANGE, fileio.FALLOC_FL_INSERT_RANGE])
def test_shifting_ranges_is_refused(disk, mode):
    with opened(disk.file("disk")) as fd:
        os.pwrite(fd, b"here", MiB)
        assert error_of(fileio.fallocate, fd, mode, 0, MiB) == errno.EOPNOTSUPP
        assert os.pread(fd, 4, MiB) == b"here"


def test_seek_data_and_hole(place):
    image = place.image("disk.img")
    with opened(image) as fd:
        os.pwrite(fd, pattern(MiB), MiB)
        os.pwrite(fd, pattern(64 * KiB), 8 * MiB)
        os.fsync(fd)
        expected = fileio.extents(fd, SIZE)
    assert len(expected) == 2
    daemon = place.mount(harness.DISK)
    with opened(daemon.file("disk"), os.O_RDONLY) as fd:
        assert fileio.extents(fd, SIZE) == expected
        assert os.lseek(fd, MiB + 5, os.SEEK_DATA) == MiB + 5
        assert os.lseek(fd, 5, os.SEEK_HOLE) == 5
        assert os.lseek(fd, 15 * MiB, os.SEEK_HOLE) == 15 * MiB
        assert error_of(os.lseek, fd, 15 * MiB, os.SEEK_DATA) == errno.ENXIO
        assert error_of(os.lseek, fd, SIZE, os.SEEK_DATA) == errno.ENXIO
        assert error_of(os.lseek, fd, SIZE + 1, os.SEEK_HOLE) == errno.ENXIO


def test_allocation_of_the_file(place):
    image = place.image("disk.img")
    with opened(image) as fd:
        os.pwrite(fd, pattern(3 * MiB), 0)
        os.fsync(fd)
    daemon = place.mount(harness.DISK)
    assert os.stat(daemon.file("disk")).st_blocks == image.stat().st_blocks
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, pattern(2 * MiB), 8 * MiB)
        os.fsync(fd)
    deadline = time.monotonic() + 10
    while os.stat(daemon.file("disk")).st_blocks != image.stat().st_blocks:
        assert time.monotonic() < deadline, "st_blocks does not follow the image"
        time.sleep(0.1)
    assert image.stat().st_blocks * 512 >= 5 * MiB


# ---- copies


def test_copy_file_range(place):
    place.image("a.img", 8 * MiB, pattern(8 * MiB, 1))
    place.image("b.img", 8 * MiB)
    daemon = place.mount("[node a]\ndriver = file\nfilename = a.img\n"
                         "[node b]\ndriver = raw\nfile.driver = file\nfile.filename = b.img\n")
    expected = bytearray(8 * MiB)
    with opened(daemon.file("a")) as a, opened(daemon.file("b")) as b:
        for source, target, length in ((0, 4096, 65536), (12345, 77777, 3 * MiB), (7 * MiB, 100, 100)):
            done = 0
            while done < length:
                copied = os.copy_file_range(a, b, length - done, source + done, target + done)
                assert copied > 0
                done += copied
            expected[target:target + length] = pattern(8 * MiB, 1)[source:source + length]
        assert os.pread(b, 8 * MiB, 0) == expected
        # Within one file.
        assert os.copy_file_range(b, b, 4096, 4096, 7 * MiB) == 4096
        expected[7 * MiB:7 * MiB + 4096] = expected[4096:8192]
        # From the last bytes: what is there.
        assert os.copy_file_range(a, b, 4096, 8 * MiB - 10, 0) == 10
        expected[:10] = pattern(8 * MiB, 1)[-10:]
        assert os.copy_file_range(a, b, 4096, 8 * MiB, 0) == 0
    daemon.stop()
    assert (place.path / "b.img").read_bytes() == expected
    assert (place.path / "a.img").read_bytes() == pattern(8 * MiB, 1)


# ---- attributes


def test_stat(disk):
    status = os.stat(disk.file("disk"))
    assert stat.S_ISREG(status.st_mode) and status.st_mode & 0o777 == 0o600
    assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
    assert status.st_nlink == 1
    root = os.stat(disk.mountpoints[0])
    assert stat.S_ISDIR(root.st_mode)
    assert root.st_ino != status.st_ino


def test_mode_and_owner_are_kept_until_unmount(place, disk):
    path = disk.file("disk")
    os.chmod(path, 0o640)
    os.chown(path, 1234, 4321)
    status = os.stat(path)
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o640, 1234, 4321)
    place.run("ls", "-l", disk.mountpoints[0])
    time.sleep(1.2)  # beyond any attribute cache of a second
    assert os.stat(path).st_mode & 0o7777 == 0o640
    disk.stop()
    again = place.mount(harness.DISK)
    assert os.stat(again.file("disk")).st_mode & 0o7777 == 0o600


def test_mtime_is_that_of_the_last_write(disk):
    path = disk.file("disk")
    first = os.stat(path).st_mtime_ns
    time.sleep(1.2)
    assert os.stat(path).st_mtime_ns == first, "mtime moves by itself"
    with opened(path) as fd:
        os.pread(fd, 4096, 0)
        assert os.fstat(fd).st_mtime_ns == first, "reading changed mtime"
        before = time.time_ns()
        os.pwrite(fd, b"x", 0)
        os.fsync(fd)
        after = time.time_ns()
    time.sleep(1.2)
    written = os.stat(path).st_mtime_ns
    assert before - 50_000_000 <= written <= after + 50_000_000
    time.sleep(0.3)
    assert os.stat(path).st_mtime_ns == written


def test_statfs(disk):
    for path in (disk.mountpoints[0], disk.file("disk")):
        status = os.statvfs(path)
        assert status.f_bsize >= 512
        assert status.f_namemax >= 255
    disk.place.run("df", "-h", disk.mountpoints[0])
    assert os.statvfs(disk.file("disk")).f_frsize * os.statvfs(disk.file("disk")).f_blocks >= SIZE


# ---- locks

LOCK_HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "r+b", buffering=0)
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def test_flock_between_processes(disk):
    with subprocess.Popen([sys.executable, "-c", LOCK_HOLDER, disk.file("disk")], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"locked\n"
        with opened(disk.file("disk")) as fd:
            assert error_of(fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB) == errno.EWOULDBLOCK
            assert error_of(fcntl.flock, fd, fcntl.LOCK_SH | fcntl.LOCK_NB) == errno.EWOULDBLOCK
            holder.stdin.close()
            fcntl.flock(fd, fcntl.LOCK_EX)
        assert holder.wait(timeout=10) == 0


def test_ofd_locks(disk):
    with opened(disk.file("disk")) as one, opened(disk.file("disk")) as two:
        fileio.ofd_lock(one, fcntl.F_WRLCK, 100, 50)
        assert error_of(fileio.ofd_lock, two, fcntl.F_WRLCK, 149, 1) in (errno.EAGAIN, errno.EACCES)
        assert error_of(fileio.ofd_lock, two, fcntl.F_RDLCK, 0, 0) in (errno.EAGAIN, errno.EACCES)
        fileio.ofd_lock(two, fcntl.F_WRLCK, 150, 10)
        fileio.ofd_lock(one, fcntl.F_UNLCK, 100, 50)
        fileio.ofd_lock(two, fcntl.F_RDLCK, 0, 200)


# ---- what a directory of exports is not


def test_changing_the_directory_is_refused(disk):
    root, path = disk.mountpoints[0], disk.file("disk")
    refused = (errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV)
    assert error_of(os.unlink, path) in refused
    assert error_of(os.rename, path, root / "other") in refused
    assert error_of(os.mkdir, root / "directory") in refused
    assert error_of(os.symlink, "disk", root / "symlink") in refused
    assert error_of(os.link, path, root / "link") in refused
    assert error_of(os.mknod, root / "fifo", stat.S_IFIFO | 0o600) in refused
    assert error_of(os.open, root / "new", os.O_CREAT | os.O_RDWR) in refused
    assert os.listdir(root) == ["disk"]
    assert error_of(os.stat, root / "absent") == errno.ENOENT
    assert error_of(os.stat, path / "below") == errno.ENOTDIR
    assert error_of(os.rmdir, path) == errno.ENOTDIR
    assert error_of(os.listdir, path) == errno.ENOTDIR
    assert error_of(os.stat, root / ("n" * 300)) == errno.ENAMETOOLONG


def test_copies_are_equal(place, disk):
    with opened(disk.file("disk")) as fd:
        os.pwrite(fd, pattern(MiB), 3 * MiB)
        os.fsync(fd)
    place.run("cp", "--sparse=always", disk.file("disk"), place.path / "sparse")
    assert filecmp.cmp(place.path / "sparse", place.path / "disk.img", shallow=False)
    assert os.stat(place.path / "sparse").st_blocks * 512 < 4 * MiB
    place.run("find", disk.mountpoints[0], "-ls")


# ---- O_TRUNC


@pytest.mark.parametrize("node", ["driver=file\nfilename=d.img", "driver=null-co\nsize=16M",
                                  "driver=raw\noffset=1M\nsize=8M\nfile.driver=file\nfile.filename=d.img"],
                         ids=["file", "null", "window"])
@pytest.mark.parametrize("tool", ["cp", "dd"])
def test_copying_onto_a_fixed_length_export(place, node, tool):
    """O_TRUNC is as on a block device: an image that could not grow again is not emptied first."""
    place.image("d.img", size=SIZE)
    length = 8 * MiB if "offset" in node else SIZE
    data = pattern(length, 3)
    source = place.path / "source"
    source.write_bytes(data)
    mount = place.mount(f"[node d]\n{node}\n")
    if tool == "cp":
        place.run("cp", source, mount.file("d"))
    else:
        place.run("dd", f"if={source}", f"of={mount.file('d')}", "bs=1M", "status=none")
    assert os.stat(mount.file("d")).st_size == length
    if "null" not in node:
        assert mount.file("d").read_bytes() == data
    mount.stop()
    assert (place.path / "d.img").stat().st_size == SIZE


def test_o_trunc_empties_a_growable_export(place):
    place.image("d.img", size=SIZE)
    mount = place.mount("[node d]\ndriver=file\nfilename=d.img\n[export d]\nnode=d\nwritable=on\ngrowable=on\n")
    mount.file("d").write_bytes(b"new")
    assert mount.file("d").read_bytes() == b"new"
    mount.stop()
    assert (place.path / "d.img").read_bytes() == b"new"
