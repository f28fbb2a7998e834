"""Images for the qcow2 tests, made and looked at by qemu-img and qemu-io.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import json
import os
import random
import signal

import fileio
from fileio import opened
from system import KiB, MiB

# Name, options of qemu-img create. Each is read and written.
VARIANTS = {
    "v2": "compat=0.10",
    "v3": "",
    "v2-4k": "compat=0.10,cluster_size=4k",
    "512": "cluster_size=512",
    "512-refcount64": "cluster_size=512,refcount_bits=64",
    "1k-refcount1": "cluster_size=1k,refcount_bits=1",
    "4k-refcount2": "cluster_size=4k,refcount_bits=2",
    "8k-refcount4": "cluster_size=8k,refcount_bits=4",
    "refcount8": "refcount_bits=8",
    "refcount32": "refcount_bits=32",
    "2M": "cluster_size=2M",
    "extended": "extended_l2=on",
    "extended-16k": "extended_l2=on,cluster_size=16k",
    "extended-2M": "extended_l2=on,cluster_size=2M",
    "zstd": "compression_type=zstd",
    "zstd-extended": "compression_type=zstd,extended_l2=on,cluster_size=32k",
    "lazy": "lazy_refcounts=on",
    "metadata": "preallocation=metadata",
    "falloc": "preallocation=falloc",
    "full": "preallocation=full",
    "metadata-extended": "preallocation=metadata,extended_l2=on",
    "metadata-512": "preallocation=metadata,cluster_size=512",
}

# What can be under an overlay with a backing: no preallocation for old clusters sizes' sake.
BACKED = [name for name in VARIANTS if "preallocation" not in VARIANTS[name]]

NODE = """
[node disk]
driver = qcow2
file.driver = file
file.filename = {image}
"""


def create(place, name, options="", size=6 * MiB, backing=None, backing_format="qcow2"):
    words = ["qemu-img", "create", "-q", "-f", "qcow2"]
    words += ["-o", options] if options else []
    words += ["-u", "-b", backing, "-F", backing_format] if backing else []
    place.run(*words, name, size)
    return place.path / name


def refuse(place, graph):
    """The message with which the graph is refused."""
    return place.refuse(place.write("graph.conf", graph), place.directory("mnt"))


def fill(place, image, size, seed, number=40):
    """Random data, zeroes, discards and compressed clusters, by qemu-io."""
    choose = random.Random(seed)
    info = json.loads(place.run("qemu-img", "info", "--output=json", "-U", image).stdout)
    cluster = info["cluster-size"]
    commands = []
    for _ in range(number):
        length = min(choose.choice((512, 4 * KiB, 20 * KiB, 200 * KiB)), size)
        at = choose.randrange((size - length) // 512 + 1) * 512
        kind = choose.choice(("write", "write", "write", "zero", "unmap", "discard", "compressed"))
        if kind == "write":
            commands.append(f"write -q -P {choose.randrange(1, 256)} {at} {length}")
        elif kind == "zero":
            commands.append(f"write -q -z {at} {length}")
        elif kind == "unmap":
            commands.append(f"write -q -z -u {at} {length}")
        elif kind == "discard":
            commands.append(f"discard -q {at} {length}")
        elif size >= cluster:
            # Only whole clusters, and only where nothing is yet, can be written compressed.
            commands.append(f"write -q -c -P {choose.randrange(1, 256)} "
                            f"{choose.randrange(size // cluster) * cluster} {cluster}")
    words = [word for command in commands for word in ("-c", command)]
    # A compressed write to a cluster in use fails, and the rest goes on.
    place.run("qemu-io", "-f", "qcow2", *words, image, check=False)


def content(place, image, *options):
    """What qemu-img reads there."""
    place.run("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", *options, image, "convert.raw")
    return (place.path / "convert.raw").read_bytes()


def snapshots(place, image):
    """The names of those that qemu-img lists."""
    info = json.loads(place.run("qemu-img", "info", "--output=json", "-U", image).stdout)
    return [snapshot["name"] for snapshot in info.get("snapshots", ())]


def check(place, image):
    """Neither corruption nor leaks."""
    done = place.run("qemu-img", "check", "-f", "qcow2", image, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def check_what_is_left(place):
    """After every test: no image in its place is corrupt, nor has leaks, unless a daemon was killed."""
    killed = any(daemon.expected_status == -signal.SIGKILL for daemon in place.daemons)
    for image in sorted(place.path.iterdir()):
        if image.is_file() and image.open("rb").read(8) in (b"QFI\xfb\0\0\0\2", b"QFI\xfb\0\0\0\3"):
            # Without what lies below, which may not be there.
            options = {"driver": "qcow2", "file.driver": "file", "file.filename": str(image), "backing": None}
            done = place.run("qemu-img", "check", f"json:{json.dumps(options)}", check=False)
            assert done.returncode in ((0, 3) if killed else (0,)), done.stdout + done.stderr


def compare(place, image, mirror):
    """qemu-img and we agree on the content."""
    (place.path / "mirror.raw").write_bytes(mirror)
    place.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", "mirror.raw", image)


def random_operations(path, start, mirror, seed, number, largest=300 * KiB, holes=True):
    """Change the file, and the mirror of its bytes from `start` on, in the same way; compare what is read."""
    choose = random.Random(seed)
    length = len(mirror)
    with opened(path) as fd:
        for i in range(number):
            size = choose.randrange(1, choose.choice((600, 5000, 70000, largest)))
            size = min(size, length - 1)
            at = choose.randrange(length - size)
            kinds = ("read", "read", "write", "write", "write", "fsync", "punch", "zero")
            kind = choose.choice(kinds if holes else kinds[:-2])
            if kind == "read":
                got = os.pread(fd, size, start + at)
                assert got == mirror[at:at + size], f"seed {seed}, operation {i}: {at}+{size} differs"
            elif kind == "write":
                data = choose.randbytes(size)
                os.pwrite(fd, data, start + at)
                mirror[at:at + size] = data
            elif kind == "punch":
                fileio.punch_hole(fd, start + at, size)
                mirror[at:at + size] = bytes(size)
            elif kind == "zero":
                fileio.fallocate(fd, fileio.FALLOC_FL_ZERO_RANGE, start + at, size)
                mirror[at:at + size] = bytes(size)
            elif choose.randrange(4) == 0:
                os.fsync(fd)
        assert os.pread(fd, length, start) == mirror, f"seed {seed}: differs at the end"
    return mirror
