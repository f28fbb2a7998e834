"""The driver http with a server that has no ranges: the whole is fetched to a local file.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import errno
import os
import re
import threading
import time

import pytest

import harness
from fileio import opened, pattern
from relay import Relay, TO_CLIENT
from servers_http import Evil, PythonServer
from system import KiB, MiB

SIZE = 6 * MiB + 77


def whole(evil, connection, request):
    """No ranges here."""
    evil.send(connection, 200, evil.data)
    return True


def mount(place, url, *options, **kwargs):
    lines = ["[node disk]", "driver = http", f"url = {url}", "spool = auto", "timeout = 3", *options]
    return place.mount("\n".join(lines) + "\n", **kwargs)


def wait_for(condition):
    deadline = time.monotonic() + 30 * harness.TIME_SCALE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def spooled(daemon):
    return int(re.search(r"spooled (\d+) %", daemon.graph("graph.txt"))[1])


@pytest.mark.parametrize("spool", ["auto", "spool.file"])
def test_spool(place, spool):
    root = place.path / "www"
    root.mkdir()
    data = pattern(SIZE)
    (root / "disk").write_bytes(data)
    with PythonServer(place.path / "server", root) as server:
        daemon = place.mount(f"[node disk]\ndriver = http\nurl = http://127.0.0.1:{server.port}/disk\nspool = {spool}\n")
        with opened(daemon.file("disk"), os.O_RDONLY) as fd:
            assert os.pread(fd, 4096, SIZE - 4096) == data[-4096:]
        assert daemon.file("disk").read_bytes() == data
        wait_for(lambda: spooled(daemon) == 100)
        server.kill()
        with opened(daemon.file("disk"), os.O_RDONLY | os.O_DIRECT) as fd:
            assert os.pread(fd, 4096, MiB) == data[MiB:MiB + 4096]
        daemon.stop()
    assert not (place.path / "spool.file").exists()


def test_file_that_is_there(place):
    with Evil(pattern(SIZE), behave=whole) as evil:
        precious = place.write("precious", "mine")
        source = place.write("refused.conf", f"[node disk]\ndriver = http\nurl = {evil.url}\nspool = precious\n")
        message = place.refuse(source, place.directory("refused"))
        assert "'spool'" in message and "exists" in message and precious.read_text() == "mine"


def test_reads_wait_for_their_offset(place):
    gate = threading.Event()

    def half(evil, connection, request):
        if request.range != (0, 1):
            evil.send(connection, 200, evil.data[:SIZE // 2], length=SIZE)
            gate.wait()
            connection.sendall(evil.data[SIZE // 2:])
            return True
        return whole(evil, connection, request)

    with Evil(pattern(SIZE), behave=half) as evil:
        daemon = mount(place, evil.url)
        with opened(daemon.file("disk"), os.O_RDONLY | os.O_DIRECT) as fd:
            assert os.pread(fd, 4096, 0) == evil.data[:4096]
            got = []
            reader = threading.Thread(target=lambda: got.append(os.pread(fd, 4096, SIZE // 4096 * 4096)))
            reader.start()
            wait_for(lambda: 30 < spooled(daemon) < 60)
            assert not got
            gate.set()
            reader.join()
        assert got == [evil.data[SIZE // 4096 * 4096:]]
        daemon.stop()


def test_cut_and_compared(place):
    """After a cut it is fetched again from the beginning, and what is there stays as it is."""
    with Evil(pattern(SIZE), behave=whole) as evil, Relay(("127.0.0.1", evil.port)) as relay:
        relay.rate = 8 * MiB
        relay.cut_after(3 * MiB, TO_CLIENT)
        daemon = mount(place, f"http://127.0.0.1:{relay.address[1]}/disk", stderr_allowed="requests fail if")
        assert daemon.file("disk").read_bytes() == evil.data
        assert len(evil.requests) >= 3
        daemon.stop()


def test_changed_without_a_validator(place):
    """The server tells neither ETag nor time: the bytes tell."""
    with Evil(pattern(SIZE), etag=None, behave=whole) as evil, Relay(("127.0.0.1", evil.port)) as relay:
        relay.rate = 4 * MiB
        daemon = mount(place, f"http://127.0.0.1:{relay.address[1]}/disk", stderr_allowed="has changed|requests fail if")
        with opened(daemon.file("disk"), os.O_RDONLY | os.O_DIRECT) as fd:
            assert os.pread(fd, 64 * KiB, 0) == evil.data[:64 * KiB]
            evil.data = pattern(SIZE, 5)
            relay.cut()
            with pytest.raises(OSError) as error:
                os.pread(fd, 4096, SIZE // 4096 * 4096)
            assert error.value.errno == errno.ESTALE
        assert "other bytes" in daemon.graph("errors")
        daemon.stop()


def test_snapshot_while_it_spools(place):
    """A drained section pauses the transfer, which then goes on."""
    place.image("local.img", MiB)
    with Evil(pattern(SIZE), behave=whole) as evil, Relay(("127.0.0.1", evil.port)) as relay:
        relay.rate = 4 * MiB
        daemon = mount(place, f"http://127.0.0.1:{relay.address[1]}/disk",
                       "[node local]", "driver = raw", "file.driver = file", "file.filename = local.img")
        for i in range(3):
            place.run("mkdir", daemon.mountpoints[0] / ".snap" / f"s{i}", check=False)
        assert daemon.file("disk").read_bytes() == evil.data
        assert len(evil.requests) == 2  # the probe, and one transfer
        daemon.stop()


def test_stopped_while_it_spools(place):
    with Evil(pattern(SIZE), behave=whole) as evil, Relay(("127.0.0.1", evil.port)) as relay:
        relay.rate = MiB
        daemon = mount(place, f"http://127.0.0.1:{relay.address[1]}/disk")
        daemon.stop()


def test_opening_fails_while_it_spools(place):
    """An option that is not known is found after the driver has opened."""
    with Evil(pattern(SIZE), behave=whole) as evil:
        source = place.write("refused.conf", f"[node disk]\ndriver = http\nurl = {evil.url}\nspool = auto\nnonsense = 1\n")
        for _ in range(5):
            assert "nonsense" in place.refuse(source, place.directory("refused"))
