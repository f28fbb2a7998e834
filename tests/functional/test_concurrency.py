"""Many users at once: several jobs with verification, load during umount and signals.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import concurrent.futures
import contextlib
import os
import random
import subprocess
import threading
import time

import pytest

import fileio
import harness
import system
from fileio import opened
from system import MiB

pytestmark = pytest.mark.every_storage

FILES = """
[node a]
driver = raw
file.driver = file
file.filename = a.img

[node b]
driver = file
filename = b.img
aio = threads

[node c]
driver = file
filename = c.img
cache.direct = on
"""
NAMES = "abc"


def make_images(place):
    for name in NAMES:
        place.image(f"{name}.img", 64 * MiB)


@pytest.fixture
def files(place, storage):
    """A daemon with three images; as files they take different ways: io_uring, threads, O_DIRECT."""
    make_images(place)
    if storage.kind == "file":
        return place.mount(FILES)
    return place.mount("\n".join(storage.node(name, place.path / f"{name}.img") for name in NAMES))


def fio_verify(place, jobs, timeout=120):
    """fio with one section per (name, file, further options); any difference is an error."""
    io_size = "512M" if harness.LONG else "48M"
    text = ["[global]", "verify=crc32c", "verify_fatal=1", "allow_file_create=0", "fallocate=none",
            f"io_size={io_size}", "size=16M", "bsrange=512-64k", "bs_unaligned=0"]
    for number, (name, path, options) in enumerate(jobs):
        text += [f"[{name}]", f"filename={path}", f"offset={number % 4 * 16}M", *options]
    job_file = place.write("verify.fio", "\n".join(text) + "\n")
    place.run("fio", job_file, timeout=timeout)


def test_several_jobs_on_one_file(place, files):
    fio_verify(place, [(f"job{i}", files.file("a"), options) for i, options in enumerate((
        ["ioengine=io_uring", "iodepth=16", "rw=randwrite"],
        ["ioengine=libaio", "iodepth=8", "direct=1", "rw=randwrite"],
        ["ioengine=psync", "rw=randrw"],
        ["ioengine=psync", "rw=write", "fsync=50"],
    ))])


def test_several_files_at_once(place, files):
    fio_verify(place, [(f"job{i}", files.file(NAMES[i % 3]), ["ioengine=io_uring", "iodepth=16", "rw=randwrite"])
                       for i in range(4)])


@pytest.mark.parametrize("queues", [1, 2, 4])
def test_queues(place, queues):
    make_images(place)
    daemon = place.mount(FILES, "-o", f"queues={queues}")
    fio_verify(place, [(f"job{i}", daemon.file(NAMES[i % 3]), ["ioengine=io_uring", "iodepth=8", "rw=randwrite",
                                                             "direct=1"]) for i in range(4)])


def random_operations(path, start, length, seed, number):
    """Random operations on a region of our own, against a mirror of it. Returns the mirror."""
    choose = random.Random(seed)
    mirror = bytearray(length)
    with opened(path) as fd:
        for i in range(number):
            size = choose.randrange(1, 65536)
            at = choose.randrange(length - size)
            kind = choose.choice(("read", "read", "write", "write", "punch", "zero", "copy", "fsync"))
            if kind == "read":
                assert os.pread(fd, size, start + at) == mirror[at:at + size], f"seed {seed}, operation {i}"
            elif kind == "write":
                data = choose.randbytes(size)
                assert os.pwrite(fd, data, start + at) == size
                mirror[at:at + size] = data
            elif kind == "punch":
                fileio.punch_hole(fd, start + at, size)
                mirror[at:at + size] = bytes(size)
            elif kind == "zero":
                fileio.fallocate(fd, fileio.FALLOC_FL_ZERO_RANGE, start + at, size)
                mirror[at:at + size] = bytes(size)
            elif kind == "copy":
                to = choose.randrange(length - size)
                if abs(to - at) >= size:
                    copied = os.copy_file_range(fd, fd, size, start + at, start + to)
                    mirror[to:to + copied] = mirror[at:at + copied]
            else:
                os.fsync(fd)
    return mirror


@pytest.mark.limit(300)
def test_random_operations_against_a_mirror(place, files):
    region, threads = 8 * MiB, 6
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    number = harness.count(250, 10000)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(random_operations, files.file(NAMES[i % 3]), i // 3 * region, region, seed + i, number)
                   for i in range(threads)]
        mirrors = [future.result() for future in futures]
    files.stop()
    for i, mirror in enumerate(mirrors):
        image = place.path / f"{NAMES[i % 3]}.img"
        with opened(image, os.O_RDONLY) as fd:
            assert os.pread(fd, region, i // 3 * region) == mirror, f"seed {seed}: region {i} differs"


@pytest.mark.parametrize("name", ["b", "c"], ids=["buffered", "direct"])
def test_unaligned_neighbours(files, name):
    """Threads write adjacent bytes of the same sectors: no read-modify-write may lose one of them."""
    threads, rounds, stride = 8, harness.count(30, 600), 8

    def write(number):
        with opened(files.file(name)) as fd:
            for i in range(rounds):
                for at in range(number, 2048, stride):
                    os.pwrite(fd, bytes([number * 16 + i % 16]), at)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, range(threads)))
    last = (rounds - 1) % 16
    with opened(files.file(name), os.O_RDONLY) as fd:
        assert os.pread(fd, 2048, 0) == bytes((at % stride) * 16 + last for at in range(2048))


@pytest.mark.limit(180)
def test_umount_under_load_is_refused_and_harmless(place, files):
    # Slowed down, so that it lasts for some seconds on any machine; it verifies at its end.
    with subprocess.Popen(["fio", "--name=load", f"--filename={files.file('a')}", "--ioengine=io_uring",
                           "--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=64M", "--verify=crc32c",
                           "--verify_fatal=1", "--allow_file_create=0", "--io_size=48M", "--rate=16m"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=place.path) as load:
        wait_until_open(load.pid, files.file("a"))
        refused = 0
        while load.poll() is None:
            done = place.run("umount", files.mountpoints[0], check=False)
            if done.returncode == 0:
                break
            assert "busy" in done.stderr
            refused += 1
            time.sleep(0.05)
        output = load.communicate(timeout=120)[0]
        assert refused > 0
        assert load.returncode == 0, output


def wait_until_open(pid, path):
    """Until a process, or one of its children, has a file open."""
    deadline = time.monotonic() + 20 * harness.TIME_SCALE
    while True:
        family = [pid] + [p.pid for p in system.processes() if p.parent == pid]
        for member in family:
            with contextlib.suppress(OSError):
                if any(os.readlink(fd.path) == str(path) for fd in os.scandir(f"/proc/{member}/fd")):
                    return
        assert time.monotonic() < deadline, f"process {pid} did not open {path}"
        time.sleep(0.02)


@pytest.mark.limit(120)
def test_sigterm_under_load(place, files):
    """The load gets errors; the daemon drains, flushes and leaves no mount; what was written is there."""
    written = []
    stop = threading.Event()

    def load(number):
        data = bytes([number + 1]) * 4096
        with opened(files.file("a")) as fd:
            for i in range(number, 64 * MiB // 4096, 4):
                if stop.is_set():
                    break
                try:
                    os.pwrite(fd, data, i * 4096)
                except OSError:
                    break
                written.append((i, number + 1))

    threads = [threading.Thread(target=load, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    files.stop()
    stop.set()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    assert len(written) > 100
    image = (place.path / "a.img").read_bytes()
    wrong = [i for i, value in written if image[i * 4096] != value or image[i * 4096 + 4095] != value]
    assert not wrong


def test_metadata_storm(files):
    """stat, open, readdir and xattrs from many threads beside I/O."""
    until = time.monotonic() + harness.count(2, 20)

    def storm(number):
        rounds = 0
        while time.monotonic() < until:
            path = files.file(NAMES[number % 3])
            assert os.stat(path).st_size == 64 * MiB
            assert sorted(os.listdir(files.mountpoints[0])) == list(NAMES)
            with opened(path) as fd:
                os.pwrite(fd, bytes([number]) * 512, number * 512)
                assert os.pread(fd, 512, number * 512) == bytes([number]) * 512
            os.getxattr(path, "user.blockgraph.driver")
            os.chmod(path, 0o600)
            rounds += 1
        return rounds

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(rounds > 3 for rounds in pool.map(storm, range(8)))


@pytest.mark.limit(120)
def test_reading_the_graph_under_load(place, files):
    with subprocess.Popen(["fio", "--name=load", f"--filename={files.file('a')}", "--ioengine=io_uring",
                           "--rw=randrw", "--bs=4k", "--iodepth=16", "--size=64M", "--time_based",
                           "--runtime=" + ("30" if harness.LONG else "3"), "--allow_file_create=0"],
                          stdout=subprocess.DEVNULL, cwd=place.path) as load:
        reads = 0
        while load.poll() is None:
            for name in ("graph.txt", "graph.json", "graph.dot", "metrics", "errors"):
                files.graph(name)
            reads += 1
        assert load.returncode == 0
        assert reads > 3


def test_mounting_in_parallel(place):
    """Daemons that start and stop beside each other do not get into each other's way."""
    def cycle(number):
        place.image(f"{number}.img", MiB, bytes([number + 1]) * 10)
        for _ in range(harness.count(3, 20)):
            daemon = place.mount(f"[node n]\ndriver = file\nfilename = {number}.img\n", at=f"mnt{number}")
            assert daemon.file("n").read_bytes()[:10] == bytes([number + 1]) * 10
            daemon.stop()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(cycle, range(4)))
