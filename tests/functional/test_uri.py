"""One image on another machine, named by its URI.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import urllib.parse

import pytest

import servers_nbd
from fileio import opened, pattern
from servers_http import Nginx
from system import MiB


def start(place, *words, **more):
    mountpoint = place.directory()
    return place.start(*words, mountpoint, mountpoints=[mountpoint], **more)


@pytest.fixture
def raw(place):
    image = place.path / "raw.img"
    image.write_bytes(pattern(4 * MiB))
    return image


@pytest.fixture
def qcow2(place, raw):
    image = place.path / "disk.qcow2"
    place.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image)
    return image


def test_raw_as_told_is_writable(place, raw):
    server = servers_nbd.qemu_nbd(place, raw)
    daemon = start(place, "--format=raw", server.uri)
    with opened(daemon.file("nbd")) as fd:
        assert os.pread(fd, 4 * MiB, 0) == pattern(4 * MiB)
        os.pwrite(fd, b"new", 1000)
    daemon.stop()
    assert raw.read_bytes()[1000:1003] == b"new"


def test_what_looks_raw_is_read_only(place, raw):
    server = servers_nbd.qemu_nbd(place, raw)
    daemon = start(place, server.uri, stderr_allowed="--format=raw makes it writable")
    assert daemon.file("nbd").read_bytes() == pattern(4 * MiB)
    with pytest.raises(OSError):
        os.open(daemon.file("nbd"), os.O_RDWR)


def test_a_format_is_found(place, qcow2):
    server = servers_nbd.qemu_nbd(place, qcow2, "-x", "vm one")
    daemon = start(place, f"nbd+unix:///{urllib.parse.quote('vm one')}?socket={server.address}")
    with opened(daemon.file("vm one")) as fd:
        assert os.pread(fd, 4 * MiB, 0) == pattern(4 * MiB)
        os.pwrite(fd, b"new", 1000)
    daemon.stop()
    server.stop()
    place.run("qemu-img", "check", qcow2)


def test_read_only_servers(place, qcow2):
    """The image can be written to, its server does not."""
    with Nginx(place.path / "nginx", place.path) as server:
        daemon = start(place, f"http://127.0.0.1:{server.port}/disk.qcow2")
        assert daemon.file("disk.qcow2").read_bytes() == pattern(4 * MiB)
        with pytest.raises(OSError):
            os.open(daemon.file("disk.qcow2"), os.O_RDWR)
        daemon.stop()


def test_read_only_by_option(place, raw):
    server = servers_nbd.qemu_nbd(place, raw)
    daemon = start(place, "-o", "ro", server.uri)
    assert daemon.file("nbd").read_bytes() == pattern(4 * MiB)
    with pytest.raises(OSError):
        os.open(daemon.file("nbd"), os.O_RDWR)


def test_another_image_than_probed(place, qcow2):
    server = servers_nbd.qemu_nbd(place, qcow2)
    message = place.refuse("--format=qcow", server.uri, place.directory())
    assert "--format qcow" in message
