"""cache.file of the driver http: blocks in a local file, for later mounts and several at a time.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import errno
import os
import random
import time

import pytest

import harness
from fileio import opened, pattern
from servers_http import Nginx
from system import KiB, MiB

SIZE = 4 * MiB + 99


@pytest.fixture
def root(place):
    path = place.path / "www"
    path.mkdir()
    (path / "disk").write_bytes(pattern(SIZE))
    return path


@pytest.fixture
def nginx(place, root):
    with Nginx(place.path / "nginx", root) as server:
        yield server


def graph_of(nginx, *options, cache="cache.blocks", name="disk"):
    return "\n".join(["[node disk]", "driver = http", f"url = http://127.0.0.1:{nginx.port}/{name}",
                      f"cache.file = {cache}", *options]) + "\n"


def bodies(nginx):
    """Bytes of the resource that were sent, but for the one of each probe."""
    sent = [int(line.split('" ')[1].split()[1]) for line in nginx.requests() if '" 206 ' in line]
    return sum(n for n in sent if n > 1)


def wait_until_kept(place, size, name="cache.blocks"):
    deadline = time.monotonic() + 20 * harness.TIME_SCALE
    while os.stat(place.path / name).st_blocks * 512 < size:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_second_mount_asks_for_nothing(place, root, nginx):
    data = (root / "disk").read_bytes()
    daemon = place.mount(graph_of(nginx))
    assert daemon.file("disk").read_bytes() == data
    daemon.stop()
    assert bodies(nginx) >= SIZE
    before = bodies(nginx)
    daemon = place.mount(graph_of(nginx))
    assert daemon.file("disk").read_bytes() == data
    with opened(daemon.file("disk"), os.O_RDONLY | os.O_DIRECT) as fd:
        nginx.kill()  # what is kept needs no server
        assert os.pread(fd, 64 * KiB, MiB) == data[MiB:MiB + 64 * KiB]
    nginx.start()
    daemon.stop()
    assert bodies(nginx) == before


def test_shared_at_the_same_time(place, root, nginx):
    data = (root / "disk").read_bytes()
    one = place.mount(graph_of(nginx), at="one")
    two = place.mount(graph_of(nginx), at="two")
    assert one.file("disk").read_bytes() == data
    wait_until_kept(place, SIZE)
    before = bodies(nginx)
    assert two.file("disk").read_bytes() == data
    assert bodies(nginx) == before


def test_in_use_for_another_resource(place, root, nginx):
    (root / "other").write_bytes(pattern(SIZE, 3))
    daemon = place.mount(graph_of(nginx))
    source = place.write("refused.conf", graph_of(nginx, name="other"))
    done = place.run(place.binary, "-f", source, place.directory("refused"), check=False)
    assert done.returncode == 1 and "option 'cache.file'" in done.stderr and "in use" in done.stderr
    daemon.stop()
    daemon = place.mount(graph_of(nginx, name="other"), at="later")  # nobody uses it: made anew
    assert daemon.file("disk").read_bytes() == pattern(SIZE, 3)


def test_changed_resource_is_not_served_from_before(place, root, nginx):
    daemon = place.mount(graph_of(nginx))
    daemon.file("disk").read_bytes()
    daemon.stop()
    (root / "disk").write_bytes(pattern(SIZE, 9))
    os.utime(root / "disk", (1, 1))
    daemon = place.mount(graph_of(nginx))
    assert daemon.file("disk").read_bytes() == pattern(SIZE, 9)


def test_a_file_that_is_something_else(place, nginx):
    precious = place.write("cache.blocks", "mine" * 2000)
    source = place.write("refused.conf", graph_of(nginx))
    assert "something else" in place.refuse(source, place.directory("refused"))
    assert precious.read_text() == "mine" * 2000


@pytest.mark.parametrize("options, words", [(["cache.size = 1k"], "cache.size"), (["cache.files = x"], "cache.files")])
def test_bad_options(place, nginx, options, words):
    source = place.write("refused.conf", graph_of(nginx, *options))
    assert words in place.refuse(source, place.directory("refused"))


def test_bound(place, root, nginx):
    data = (root / "disk").read_bytes()
    daemon = place.mount(graph_of(nginx, "cache.size = 1M"))
    with opened(daemon.file("disk"), os.O_RDONLY | os.O_DIRECT) as fd:
        rng = random.Random(2)
        for _ in range(100):
            offset = rng.randrange(SIZE // 4096) * 4096
            assert os.pread(fd, 64 * KiB, offset) == data[offset:offset + 64 * KiB]
    daemon.stop()
    assert 512 * KiB < os.stat(place.path / "cache.blocks").st_blocks * 512 <= MiB


def test_full_disk(place, root, nginx):
    data = (root / "disk").read_bytes()
    with place.mounted("tmpfs", at="small", options="size=1M"):
        for _ in range(2):
            daemon = place.mount(graph_of(nginx, cache="small/cache"))
            assert daemon.file("disk").read_bytes() == data
            with opened(daemon.file("disk"), os.O_RDONLY | os.O_DIRECT) as fd:
                for offset in range(0, SIZE, 256 * KiB):
                    assert os.pread(fd, 64 * KiB, offset) == data[offset:offset + 64 * KiB]
            daemon.stop()


def test_damage_is_noticed(place, root, nginx):
    """Whatever stands in the file, no wrong byte is served."""
    data = (root / "disk").read_bytes()
    rng = random.Random(5)
    daemon = place.mount(graph_of(nginx))
    assert daemon.file("disk").read_bytes() == data
    daemon.stop()
    for _ in range(harness.count(3, 30)):
        with opened(place.path / "cache.blocks") as fd:
            length = os.fstat(fd).st_size
            for _ in range(30):
                os.pwrite(fd, rng.randbytes(rng.choice((1, 8, 4096))), rng.randrange(4096, length - 4096))
        daemon = place.mount(graph_of(nginx))
        assert daemon.file("disk").read_bytes() == data
        daemon.stop()


def test_killed_while_it_keeps(place, root, nginx):
    data = (root / "disk").read_bytes()
    for i in range(harness.count(3, 30)):
        daemon = place.mount(graph_of(nginx), at=f"mnt{i}")
        with opened(daemon.file("disk"), os.O_RDONLY | os.O_DIRECT) as fd:
            for offset in range(0, (i + 1) * 256 * KiB, 64 * KiB):
                assert os.pread(fd, 64 * KiB, offset) == data[offset:offset + 64 * KiB]
        daemon.crash()
    daemon = place.mount(graph_of(nginx))
    assert daemon.file("disk").read_bytes() == data


def test_no_validator(place):
    from servers_http import Evil  # pylint: disable=import-outside-toplevel
    with Evil(pattern(SIZE), etag=None) as evil:
        source = place.write("refused.conf", f"[node disk]\ndriver = http\nurl = {evil.url}\ncache.file = c\n")
        assert "neither ETag nor time" in place.refuse(source, place.directory("refused"))
        assert errno.ENOTSUP
