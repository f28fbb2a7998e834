"""The graph files in examples/ do what they say.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import re
import shutil
from pathlib import Path

import pytest

import servers_nbd
from fileio import opened
from system import MiB

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EXPORTS_OF_JSON = {"lab.json": "vm.img zeroes"}

# Those that need a server are run by the tests that have one.
LOCAL = sorted(p.name for p in EXAMPLES.iterdir() if "# Server: " not in p.read_text())


@pytest.mark.parametrize("name", LOCAL)
def test_example(place, name):
    text = (EXAMPLES / name).read_text()
    for image in set(re.findall(r'filename"?\s*[=:]\s*"?([\w.-]+)', text)):
        place.image(image, 64 * MiB)
    said = re.search(r"^# Exports: (.*)$", text, re.MULTILINE)
    expected = (said.group(1) if said else EXPORTS_OF_JSON[name]).split()
    options = re.search(r"^# Options: (.*)$", text, re.MULTILINE)
    server = re.search(r"^# Server: nbdkit -f -U (\S+) (.*)$", text, re.MULTILINE)
    if server:
        servers_nbd.nbdkit(place, *server.group(2).split(), name=server.group(1).removesuffix(".sock"))
    source = place.path / name
    shutil.copy(EXAMPLES / name, source)
    mountpoint = place.directory("mnt")
    daemon = place.start(*(options.group(1).split() if options else ()), source, mountpoint,
                         mountpoints=[mountpoint])
    assert sorted(os.listdir(mountpoint)) == sorted(expected)
    for export in expected:
        path = daemon.file(export)
        writable = os.stat(path).st_mode & 0o200
        with opened(path, os.O_RDWR if writable else os.O_RDONLY) as fd:
            assert len(os.pread(fd, 4096, 0)) == 4096
            if writable:
                os.pwrite(fd, b"example", 0)
                os.fsync(fd)
                assert os.pread(fd, 7, 0) == b"example"
