"""What is measured: each subject is a context manager with a path for fio and, mostly, a daemon's PID.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from storage import run, unmount

MIB = 1 << 20


class Subject:
    """Base: a path to read and write, served by the daemon with that PID (None: by the kernel)."""
    name = None
    pid = None
    direct = True
    measure = None  # a function of cell and runtime, where fio is not the one to ask: the rate, or None

    def __init__(self, size):
        self.size = size
        self.path = None

    def __enter__(self):
        try:
            self.start()
            return self
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_):
        self.stop()

    def start(self):
        pass

    def stop(self):
        pass


class PlainFile(Subject):
    name = "plain file"

    def __init__(self, image, direct):
        super().__init__(image.stat().st_size)
        self.path = image
        self.direct = direct


class LoopDevice(Subject):
    name = "loop"
    device = None

    def __init__(self, image, direct):
        super().__init__(image.stat().st_size)
        self.image = image
        self.loop_direct = direct

    def start(self):
        done = run("losetup", "--find", "--show", f"--direct-io={'on' if self.loop_direct else 'off'}", self.image)
        self.device = self.path = done.stdout.strip()

    def stop(self):
        if self.device:
            run("losetup", "--detach", self.device, check=False)


class FuseDaemon(Subject):
    """A daemon that mounts over a regular file, given by its command line."""

    def __init__(self, name, work, size, command):
        super().__init__(size)
        self.name = name
        self.path = work / f"{name.replace(' ', '-')}-{size}.mnt"
        self.command = command
        self.process = None

    def start(self):
        self.path.touch()
        command = [str(word).replace("@MOUNTPOINT@", str(self.path)) for word in self.command]
        self.log = open(f"{self.path}.log", "w+", encoding="utf-8")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        self.pid = self.process.pid
        deadline = time.monotonic() + 20
        while not any(line.split()[1] == str(self.path) for line in open("/proc/self/mounts", encoding="utf-8")):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.log.seek(0)
                raise SystemExit(f"bench: {self.name} did not mount: {' '.join(command)}\n{self.log.read()}")
            time.sleep(0.01)
        self.size = os.stat(self.path).st_size

    def stop(self):
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            if any(str(self.path) in line for line in open("/proc/self/mounts", encoding="utf-8")):
                unmount(self.path)


def monitor_words(path):
    return ["--chardev", f"socket,id=c,path={path},server=on,wait=off", "--monitor", "chardev=c"] if path else []


def blockgraphfs(arguments, work, size, blockdev, monitor=None):
    options = [f"transport={arguments.transport}", *arguments.option]
    return FuseDaemon("blockgraphfs", work, size,
                      [arguments.blockgraphfs, "-f", *[w for o in options for w in ("-o", o)],
                       *monitor_words(monitor), "--blockdev", blockdev,
                       "--export", "type=fuse,id=e,node-name=n,mountpoint=@MOUNTPOINT@,writable=on"])


def qemu_storage_daemon(work, size, blockdev, monitor=None):
    return FuseDaemon("qemu-storage-daemon", work, size,
                      ["qemu-storage-daemon", *monitor_words(monitor), "--blockdev", blockdev,
                       "--export", "type=fuse,id=e,node-name=n,mountpoint=@MOUNTPOINT@,writable=on"])


def nbdfuse(work, size, *plugin):
    # The client's CPU only: nbdkit is its child.
    return FuseDaemon("nbdfuse", work, size, ["nbdfuse", "@MOUNTPOINT@", "--command", "nbdkit", "-s", *plugin])


def make_image(path, size):
    """Allocated throughout, with content that does not compress away to nothing on zram."""
    block = os.urandom(MIB)
    with open(path, "wb") as image:
        for _ in range(size // MIB):
            image.write(block)
        image.flush()
        os.fsync(image.fileno())
    return path


CHAIN = 8  # backings below the image
CLUSTER = 64 << 10


def make_qcow2(path, size, level=None, options="cluster_size=64k", length=None):
    """All clusters allocated, up to `size`; of a chain's level, those that are this level's share.

    An image longer than that has all of its tables, and nothing in the rest of the clusters.
    """
    backing = ["-u", "-b", f"{path}.{level + 1}", "-F", "qcow2"] if level is not None and level < CHAIN else []
    here = f"{path}.{level}" if level else path
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, *(["-o", "preallocation=metadata"] if length else []),
        *backing, here, str(length or size))
    offsets = range(0, size, CLUSTER) if level is None else \
        range(level * CLUSTER, size, (CHAIN + 1) * CLUSTER)
    commands = [f"write -q -P {1 + offset // CLUSTER % 255} {offset} {CLUSTER}" for offset in offsets]
    for first in range(0, len(commands), 1000):
        words = [word for command in commands[first:first + 1000] for word in ("-c", command)]
        # The chain is opened without its backings: whole clusters are written.
        run("qemu-io", "--image-opts", *words, f"driver=qcow2,file.filename={here}"
            + (",backing=" if backing else ""))


def qcow2_blockdev(path, direct, depth, level=0):
    """The image, over `depth` backings, as JSON for --blockdev."""
    node = {"driver": "qcow2", "discard": "unmap",
            "file": {"driver": "file", "filename": f"{path}.{level}" if level else str(path), "aio": "io_uring",
                     "discard": "unmap", "cache": {"direct": direct}}}
    if level:
        node["read-only"] = True
    if level < depth:
        node["backing"] = qcow2_blockdev(path, direct, depth, level + 1)
    elif depth:
        node["backing"] = None
    return node


def of_qcow2(kind, arguments, work, fast):
    size, chosen = arguments.size * MIB, []
    for make, name in ((lambda *a: blockgraphfs(arguments, *a), "blockgraphfs"), (qemu_storage_daemon, "qsd")):
        image = fast.directory / f"{kind}-{name}.qcow2"
        for level in range(CHAIN, -1, -1) if kind == "chain" else [None]:
            make_qcow2(image, size, level)
        node = qcow2_blockdev(image, fast.direct, CHAIN if kind == "chain" else 0)
        chosen.append(make(work, size, json.dumps({"node-name": "n", **node})))
    return chosen


def of_kind(kind, arguments, work, fast):
    """The subjects for one kind of node that needs no server; of the others: remote.KINDS."""
    if kind in ("qcow2", "chain"):
        return of_qcow2(kind, arguments, work, fast)
    with_nbdfuse = arguments.nbdfuse and shutil.which("nbdfuse") and shutil.which("nbdkit")
    if kind == "null":
        size = 1 << 30
        blockdev = f"driver=null-co,node-name=n,size={size}"
        chosen = [blockgraphfs(arguments, work, size, blockdev), qemu_storage_daemon(work, size, blockdev)]
        return chosen + ([nbdfuse(work, size, "null", str(size))] if with_nbdfuse else [])
    size = arguments.size * MIB
    images = {name: make_image(fast.directory / f"{name}.img", size)
              for name in ("blockgraphfs", "qsd", "loop", "plain")}
    direct = "on" if fast.direct else "off"
    options = f"driver=file,node-name=n,cache.direct={direct},aio=io_uring"
    chosen = [blockgraphfs(arguments, work, size, f"{options},filename={images['blockgraphfs']}"),
              qemu_storage_daemon(work, size, f"{options},filename={images['qsd']}"),
              LoopDevice(images["loop"], fast.direct),
              PlainFile(images["plain"], fast.direct)]
    if with_nbdfuse:
        image = make_image(fast.directory / "nbd.img", size)
        chosen.append(nbdfuse(work, size, "file", str(image)))
    return chosen
