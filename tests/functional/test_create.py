"""blockgraph create: qemu-img and qemu-io take what it makes for what it should be.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import json
import os
import signal
import subprocess
import time

import pytest

import qcow2
from system import KiB, MiB

SIZE = 6 * MiB + 1536


def info(place, image):
    return json.loads(place.run("qemu-img", "info", "--output=json", image).stdout)


def refused(place, *words, status=1):
    done = place.client("create", *words, check=False)
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("blockgraph: ") and done.stdout == ""
    return done.stderr


def use(place, image, size):
    """Written and read by qemu-io, at the start, across clusters, and at the end."""
    for at, length, byte in ((0, 4 * KiB, 1), (size // 2 - 70 * KiB, 200 * KiB, 2), (size - 1536, 1536, 3)):
        place.run("qemu-io", "-f", "qcow2", "-c", f"write -P {byte} {at} {length}", image)
        done = place.run("qemu-io", "-f", "qcow2", "-c", f"read -P {byte} {at} {length}", image)
        assert "Pattern verification failed" not in done.stdout
    qcow2.check(place, image)


@pytest.mark.parametrize("variant", qcow2.VARIANTS)
def test_variants(place, variant):
    """The options of qemu-img, in its own words; the properties are those of its own image."""
    options = qcow2.VARIANTS[variant]
    image = place.path / "disk.qcow2"
    place.client("create", *(["-o", options] if options else []), "qcow2", image, SIZE)
    theirs = qcow2.create(place, "theirs.qcow2", options, SIZE)
    qcow2.check(place, image)
    mine, other = info(place, image), info(place, theirs)
    assert mine["virtual-size"] == other["virtual-size"]
    assert mine["cluster-size"] == other["cluster-size"]
    assert mine["format-specific"] == other["format-specific"]
    if "full" in options or "falloc" in options:
        assert image.stat().st_blocks * 512 >= SIZE
    place.run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", image, theirs)
    use(place, image, SIZE)


@pytest.mark.parametrize("size, options", [
    ("0", ""), ("1", ""), ("512", "cluster-size=512"), ("3T", ""), ("60T", "cluster-size=2M"),
    ("1G", "cluster-size=512"), ("64G", "preallocation=metadata"),
    ("300M", "preallocation=metadata,cluster-size=512,refcount-bits=64"),
])
def test_sizes(place, size, options):
    """Refcount tables and L1 tables of several clusters; no size; sizes to be rounded up to sectors."""
    place.client("create", *(["-o", options] if options else []), "qcow2", "disk.qcow2", size)
    qcow2.check(place, "disk.qcow2")
    want = {"0": 0, "1": 512, "512": 512}.get(size)
    assert want is None or info(place, "disk.qcow2")["virtual-size"] == want


def test_options_by_the_names_of_blockdev_create(place):
    place.client("create", "-o", "version=v3,cluster-size=4k,refcount-bits=2", "-olazy-refcounts=on",
                 "qcow2", "disk.qcow2", "1M", "-o", "compression-type=zstd")
    data = info(place, "disk.qcow2")
    assert data["cluster-size"] == 4096
    assert data["format-specific"]["data"] == {
        "compat": "1.1", "compression-type": "zstd", "lazy-refcounts": True, "refcount-bits": 2,
        "corrupt": False, "extended-l2": False}


@pytest.mark.parametrize("options", ["", "compat=0.10", "cluster_size=512", "extended_l2=on,preallocation=metadata"])
def test_backing(place, options):
    base = qcow2.create(place, "base,1.qcow2", "", SIZE)
    qcow2.fill(place, base, SIZE, seed=3)
    options += "," if options else ""
    place.client("create", "-o", f"{options}backing_file=base,,1.qcow2,backing_fmt=qcow2", "qcow2",
                 "disk.qcow2", SIZE)
    data = info(place, "disk.qcow2")
    assert data["backing-filename"] == "base,1.qcow2" and data["backing-filename-format"] == "qcow2"
    place.run("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", "disk.qcow2", base)
    use(place, place.path / "disk.qcow2", SIZE)


@pytest.mark.parametrize("options", ["", "data_file_raw=on", "preallocation=metadata", "preallocation=falloc",
                                     "preallocation=full,data_file_raw=on", "extended_l2=on,data_file_raw=on",
                                     "cluster_size=512,data_file_raw=on"])
def test_external_data_file(place, options):
    options += "," if options else ""
    place.client("create", "-o", f"{options}data_file=data.raw", "qcow2", "disk.qcow2", SIZE)
    theirs = qcow2.create(place, "theirs.qcow2", f"{options}data_file=theirs.raw", SIZE)
    data, other = info(place, "disk.qcow2")["format-specific"], info(place, theirs)["format-specific"]
    assert data["data"].pop("data-file") == "data.raw" and other["data"].pop("data-file") == "theirs.raw"
    assert data == other
    assert (place.path / "data.raw").read_bytes() == bytes(SIZE)
    if "falloc" in options or "full" in options:
        assert (place.path / "data.raw").stat().st_blocks * 512 >= SIZE
    qcow2.check(place, "disk.qcow2")
    use(place, place.path / "disk.qcow2", SIZE)
    if "raw=on" in options:
        place.run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "disk.qcow2", "data.raw")


def test_existing_data_file_is_kept(place):
    data = place.image("data.raw", data=b"precious")
    before = data.read_bytes()
    assert "File exists" in refused(place, "-o", "data_file=data.raw", "qcow2", "disk.qcow2", "1M")
    assert data.read_bytes() == before and not (place.path / "disk.qcow2").exists()
    place.client("create", "--force", "-o", "data_file=data.raw", "qcow2", "disk.qcow2", "1M")
    assert data.read_bytes() == bytes(MiB)


def test_made_here_used_here(place):
    place.client("create", "qcow2", "disk.qcow2", SIZE)
    daemon = place.mount(qcow2.NODE.format(image="disk.qcow2"))
    mirror = qcow2.random_operations(daemon.file("disk"), 0, bytearray(SIZE), 1, 60)
    daemon.stop()
    qcow2.check(place, "disk.qcow2")
    qcow2.compare(place, "disk.qcow2", mirror)


@pytest.mark.parametrize("preallocation", ["off", "falloc", "full"])
@pytest.mark.parametrize("format_name", ["raw", "file"])
def test_raw(place, format_name, preallocation):
    place.client("create", "-o", f"preallocation={preallocation}", format_name, "disk.img", "3M")
    image = place.path / "disk.img"
    assert image.read_bytes() == bytes(3 * MiB)
    assert (image.stat().st_blocks * 512 >= 3 * MiB) == (preallocation != "off")
    assert image.stat().st_mode & 0o777 == 0o644


def test_raw_keeps_its_length(place):
    place.client("create", "raw", "disk.img", "1001")
    assert (place.path / "disk.img").stat().st_size == 1001


# ---- Files that are there

def test_existing_file_is_kept(place):
    image = place.image("disk.img", data=b"precious")
    before = image.read_bytes()
    for words in (("raw", image, "1M"), ("qcow2", image, "1M")):
        assert "File exists" in refused(place, *words)
        assert image.read_bytes() == before


def test_force(place):
    image = place.image("disk.img", data=b"x" * MiB)
    place.client("create", "--force", "qcow2", image, SIZE)
    qcow2.check(place, image)
    use(place, image, SIZE)
    place.client("create", "--force", "raw", image, "2M")
    assert image.read_bytes() == bytes(2 * MiB)


def test_force_with_a_wrong_option_changes_nothing(place):
    image = place.image("disk.img", data=b"precious")
    before = image.read_bytes()
    refused(place, "--force", "-o", "cluster-size=3", "qcow2", image, "1M")
    refused(place, "--force", "-o", "preallocation=metadata", "raw", image, "1M")
    assert image.read_bytes() == before


def test_force_on_an_image_in_use(place):
    image = qcow2.create(place, "disk.qcow2")
    before = image.read_bytes()
    daemon = place.mount(qcow2.NODE.format(image=image))
    assert "another process" in refused(place, "--force", "qcow2", image, "1M")
    daemon.stop()
    assert image.read_bytes() == before


def test_block_device(place):
    image = place.image("disk.img", 8 * MiB, data=os.urandom(8 * MiB))
    with place.loop(image) as device:
        refused(place, "qcow2", device, SIZE)
        assert "needs" in refused(place, "--force", "-o", "preallocation=metadata", "qcow2", device, "8M")
        place.client("create", "--force", "-o", "preallocation=metadata", "qcow2", device, SIZE)
        qcow2.check(place, device)
        assert qcow2.content(place, device) == bytes(SIZE)


# ---- Failure leaves nothing

def test_full_file_system(place):
    """falloc and full meet ENOSPC; the file is gone after."""
    small = place.directory("small")
    place.run("mount", "-t", "tmpfs", "-o", "size=1M", "none", small)
    try:
        for format_name in ("raw", "qcow2"):
            for how in ("falloc", "full"):
                assert "No space" in refused(place, "-o", f"preallocation={how}", format_name,
                                             small / "disk", "4M")
                assert not os.listdir(small)
    finally:
        place.run("umount", small)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(place, number):
    """Held up by strace, so that it is certain to be at work."""
    argv = ["strace", "-f", "-o", place.path / "trace", "-e",
            "inject=fsync,fdatasync,io_uring_enter:delay_enter=500000",
            place.binary.with_name("blockgraph"), "create", "qcow2", "disk.qcow2", "1M"]
    with subprocess.Popen(argv, cwd=place.path) as process:
        deadline = time.monotonic() + 20
        while not (place.path / "disk.qcow2").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (place.path / "disk.qcow2").exists()
        client = int((place.path / "trace").read_text().split()[0])
        os.kill(client, number)
        process.wait(timeout=20)
    assert not (place.path / "disk.qcow2").exists()


@pytest.mark.parametrize("words, message", [
    (("qcow2", "d", "1M", "-o", "cluster_size=3k"), "power of two from 512 to 2M"),
    (("qcow2", "d", "1M", "-o", "cluster_size=4M"), "power of two from 512 to 2M"),
    (("qcow2", "d", "1M", "-o", "refcount_bits=3"), "power of two from 1 to 64"),
    (("qcow2", "d", "1M", "-o", "refcount_bits=128"), "refcount-bits"),
    (("qcow2", "d", "1M", "-o", "compat=0.10,refcount_bits=1"), "'refcount-bits': needs version v3"),
    (("qcow2", "d", "1M", "-o", "compat=0.10,lazy_refcounts=on"), "'lazy-refcounts': needs version v3"),
    (("qcow2", "d", "1M", "-o", "compat=0.10,extended_l2=on"), "'extended-l2': needs version v3"),
    (("qcow2", "d", "1M", "-o", "compat=0.10,compression_type=zstd"), "'compression-type': needs version v3"),
    (("qcow2", "d", "1M", "-o", "extended_l2=on,cluster_size=8k"), "16k or more"),
    (("qcow2", "d", "1M", "-o", "preallocation=some"), "preallocation"),
    (("qcow2", "d", "1M", "-o", "preallocation=full,backing_file=b,backing_fmt=raw"), "hide the backing-file"),
    (("qcow2", "d", "1M", "-o", "backing_fmt=raw"), "there is no backing-file"),
    (("qcow2", "d", "1M", "-o", "cluster_size=512,backing_fmt=raw,backing_file=" + "b" * 500), "does not fit"),
    (("qcow2", "d", "1M", "-o", "data_file_raw=on"), "there is no data-file"),
    (("qcow2", "d", "1M", "-o", "data_file=x,compat=0.10"), "'data-file': needs version v3"),
    (("qcow2", "d", "1M", "-o", "data_file=x,data_file_raw=on,backing_file=b,backing_fmt=raw"),
     "cannot be with a backing-file"),
    (("qcow2", "d", "1M", "-o", "data_file=none/x"), "No such file"),
    (("qcow2", "d", "1M", "-o", "data_file=d"), "File exists"),
    (("qcow2", "d", "1M", "-o", "cluster_size=512,data_file=" + 200 * "./" + "x"), "does not fit"),
    (("qcow2", "d", "1M", "-o", "encrypt.format=luks"), "encrypt"),
    (("qcow2", "d", "1M", "-o", "clustersize=4k"), "did you mean 'cluster-size'"),
    (("qcow2", "d", "4E"), "too large for this cluster-size"),
    (("raw", "d", "1M", "-o", "preallocation=metadata"), "preallocation"),
    (("raw", "d", "1M", "-o", "cluster_size=4k"), "cluster-size"),
    (("raw", "none/d", "1M"), "No such file"),
    (("qcow3", "d", "1M"), "did you mean 'qcow2'"),
    (("null-co", "d", "1M"), "cannot make images"),
])
def test_refused(place, words, message):
    assert message in refused(place, *words)
    assert not (place.path / "d").exists() and not (place.path / "x").exists()


@pytest.mark.parametrize("words, message", [
    (("qcow2", "d"), "too few arguments"),
    (("qcow2", "d", "much"), "not a size"),
    (("qcow2", "d", "-1"), "unknown option '-1'"),
    (("qcow2", "d", "20E"), "out of range"),
    (("qcow2", "d", "1M", "-o"), "needs a value"),
    (("qcow2", "d", "1M", "-o", "compat=2"), "neither 0.10 nor 1.1"),
    (("qcow2", "d", "1M", "-o", "compat=1.1,version=v2"), "more than once"),
    (("qcow2", "d", "1M", "-o", "size=4k"), "more than once, or set by an argument"),
    (("qcow2", "d", "1M", "-o", "backing_file=x"), "formats are not guessed"),
    (("qcow2", "d", "1M", "--froce"), "did you mean '--force'"),
])
def test_bad_usage(place, words, message):
    assert message in refused(place, *words, status=2)
    assert not (place.path / "d").exists()
