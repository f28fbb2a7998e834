"""kill -9 at any moment: the image is sound, holds what was synced, and is mounted again.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import concurrent.futures
import os
import random
import time

import pytest

import harness
import qcow2
from fileio import opened
from workload import GONE, SECTOR, Snapshots, Worker

WORKERS = 3
REGION = 2011 * SECTOR  # of each, so that neighbours share clusters
SIZE = WORKERS * REGION

# Options of qemu-img create, and of the node.
CASES = {
    "64k": ("", ""),
    "512": ("cluster_size=512,refcount_bits=64", ""),
    "4k": ("cluster_size=4k,refcount_bits=8", "l2-cache-size = 16k\n"),
    "extended": ("extended_l2=on,cluster_size=16k", "l2-cache-size = 1\nrefcount-cache-size = 1\n"),
    "v2": ("compat=0.10", ""),
}


def kill_while(daemon, jobs):
    """Each job in a thread, until the daemon has been killed."""
    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        tasks = [pool.submit(job) for job in jobs]
        time.sleep(random.uniform(0.02, 0.4))
        daemon.crash()
        for task in tasks:
            task.result()
    daemon.place.run("umount", "-l", daemon.mountpoints[0])


def workers_on(data):
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    return [Worker(seed + i, i * REGION, data[i * REGION:(i + 1) * REGION]) for i in range(WORKERS)]


def take_and_delete(snapshots, prefix):
    """One after the other, each deleted when the next is there."""
    try:
        for i in range(1 << 30):
            snapshots.take(f"{prefix}-{i}")
            if i:
                snapshots.delete(f"{prefix}-{i - 1}")
            time.sleep(0.005)
    except OSError as error:
        assert error.errno in GONE, error


@pytest.mark.limit(120)
def test_raw(place):
    """Of a file, every write that returned is there."""
    image = place.image("disk.img", SIZE)
    for number in range(harness.count(2, 40)):
        data = image.read_bytes()
        daemon = place.mount(harness.DISK, "-o", "queues=3", at=f"mnt{number}")
        workers = workers_on(data)
        kill_while(daemon, [lambda worker=worker: worker.run_until_killed(daemon.file("disk"))
                            for worker in workers])
        data = image.read_bytes()
        assert len(data) == SIZE
        for worker in workers:
            events = len(worker.history)
            worker.judge(data, max(events - 1, 0), events)
        assert any(worker.history for worker in workers)


@pytest.mark.limit(240)
@pytest.mark.parametrize("case", CASES)
def test_qcow2(place, case):
    options, graph = CASES[case]
    image = qcow2.create(place, "disk.qcow2", options, SIZE)
    qcow2.fill(place, image, SIZE, seed=1, number=20)
    data, kept = qcow2.content(place, image), {}
    for number in range(harness.count(1, 33)):
        daemon = place.mount(qcow2.NODE.format(image=image) + graph, "-o", "queues=3", at=f"mnt{number}")
        with opened(daemon.file("disk"), os.O_RDONLY) as fd:
            assert os.pread(fd, SIZE + 1, 0) == data
        workers = workers_on(data)
        snapshots = Snapshots(daemon.mountpoints[0], workers)
        jobs = [lambda worker=worker: worker.run_until_killed(daemon.file("disk")) for worker in workers]
        kill_while(daemon, jobs + [lambda: take_and_delete(snapshots, number)])
        data = check_killed(place, image, workers, snapshots, kept)


def check_killed(place, image, workers, snapshots, kept):
    """The image is sound, with its snapshots; returns the content. Keeps one snapshot for the next round."""
    done = place.run("qemu-img", "check", "-f", "qcow2", image, check=False)
    assert done.returncode in (0, 3), done.stdout + done.stderr  # 3: leaks
    data = qcow2.content(place, image)
    for worker in workers:
        worker.judge(data, *worker.at_moment(0))
    names = qcow2.snapshots(place, image)
    contents = {name: qcow2.content(place, image, "-l", f"snapshot.name={name}") for name in names}
    snapshots.judge(names, contents.get)
    for name, content in kept.items():
        assert contents[name] == content
    for name in names[:-1]:
        place.run("qemu-img", "snapshot", "-d", name, image)
    kept.clear()
    kept.update({name: contents[name] for name in names[-1:]})
    return data
