"""The driver nbd while its server dies, hangs, or lies behind a bad network.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import errno
import os
import random
import re
import signal
import threading
import time

import pytest

import harness
import hung_server
from fileio import opened, pattern
from relay import TO_CLIENT, TO_SERVER, Relay
from servers_nbd import Pause, nbdkit
from system import KiB, MiB

OUTAGE = r"requests (fail|wait)|\bis back\b|flush|connection"


def raw(uri, extra="", name="disk"):
    return f"[node {name}]\ndriver = raw\nfile.driver = nbd\nfile.uri = {uri}\n{extra}\n"


def in_thread(function, *args):
    """Starts it; the returned function waits and gives the result, or raises."""
    result = []

    def run():
        try:
            result.append(function(*args))
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def join():
        thread.join()
        if isinstance(result[0], BaseException):
            raise result[0]
        return result[0]

    join.is_alive = thread.is_alive
    return join


def settle(path):
    """What was written before an outage and not flushed may be lost: one fsync says so. The next is good."""
    with opened(path) as fd:
        try:
            os.pwrite(fd, b"", 0)
            os.fsync(fd)
        except OSError as error:
            assert error.errno == errno.EIO
        os.fsync(fd)


@pytest.mark.limit(600)
def test_server_killed_in_mid_write(place):
    image = place.image(size=64 * MiB)
    server = nbdkit(place, "file", f"file={image}")
    daemon = place.mount(raw(server.uri, "file.reconnect-delay = 300\n"), stderr_allowed=OUTAGE)
    fio = in_thread(lambda: place.run(
        "fio", "--name=v", f"--filename={daemon.file('disk')}", "--rw=randwrite", "--bsrange=4k-64k", "--direct=1",
        "--ioengine=libaio", "--iodepth=16", "--size=32M", "--io_size=256M", "--time_based=0", "--verify=crc32c",
        "--verify_fatal=1", "--allow_file_create=0", "--fallocate=none", timeout=500))
    for _ in range(harness.count(3, 20)):
        time.sleep(random.uniform(0.05, 0.5))
        server.kill()
        time.sleep(random.uniform(0, 0.3))
        server.start()
    fio()
    settle(daemon.file("disk"))
    assert "connect" in daemon.graph("errors")


def test_what_the_server_forgot_is_written_again(place):
    """Over two connections, in order."""
    server = nbdkit(place, "memory", "16M")
    daemon = place.mount(raw(server.uri, "file.connections = 2\n"), stderr_allowed=OUTAGE)
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, pattern(4 * MiB), 0)
        os.pwrite(fd, b"newer", 1000)
        server.kill()
        server.start()
        os.fsync(fd)
        assert os.pread(fd, 4 * MiB, 0) == pattern(4 * MiB)[:1000] + b"newer" + pattern(4 * MiB)[1005:]


def test_flush_after_an_outage_tells_of_lost_writes(place):
    """Where they are not kept."""
    server = nbdkit(place, "memory", "16M")
    daemon = place.mount(raw(server.uri, "file.resend-buffer = 0\n"), stderr_allowed=OUTAGE)
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, b"gone with the server's memory", 0)
        server.kill()
        server.start()
        os.pread(fd, 1, MiB)
        with pytest.raises(OSError) as caught:
            os.fsync(fd)
        assert caught.value.errno == errno.EIO
        os.pwrite(fd, b"again", 0)
        os.fsync(fd)


def test_requests_fail_after_reconnect_delay(place):
    server = nbdkit(place, "memory", "16M")
    daemon = place.mount(raw(server.uri, "file.reconnect-delay = 1\n"), stderr_allowed=OUTAGE)
    with opened(daemon.file("disk")) as fd:
        server.kill()
        with pytest.raises(OSError) as caught:
            os.pread(fd, 4096, 0)
        assert caught.value.errno == errno.EIO
        server.start()
        deadline = time.monotonic() + 30 * harness.TIME_SCALE
        while True:
            try:
                assert os.pread(fd, 4096, 0) == bytes(4096)
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)


def test_other_size_after_reconnect(place):
    image = place.image()
    server = nbdkit(place, "file", f"file={image}")
    daemon = place.mount(raw(server.uri), stderr_allowed=".")
    with opened(daemon.file("disk")) as fd:
        os.pread(fd, 1, 0)
        server.kill()
        os.truncate(image, 8 * MiB)
        server.start()
        with pytest.raises(OSError) as caught:
            os.pread(fd, 4096, MiB)
        assert caught.value.errno == errno.ESTALE
    assert str(16 * MiB) in daemon.graph("errors")


@pytest.fixture
def paused(place):
    """A node on a server that can be paused, and one on a file."""
    pause = Pause(place)
    server = nbdkit(place, *pause.argv, "memory", "16M", pause.parameter)
    place.image("other.img")
    daemon = place.mount(raw(server.uri) + "[node other]\ndriver = raw\nfile.driver = file\n"
                         "file.filename = other.img\n", "-o", "queues=2", stderr_allowed=OUTAGE)
    return daemon, pause


def write(path, data, at=0, sync=False):
    with opened(path) as fd:
        os.pwrite(fd, data, at)
        if sync:
            os.fsync(fd)


def test_hang_lets_other_files_go_on(paused):
    daemon, pause = paused
    pause.pause()
    writer = in_thread(write, daemon.file("disk"), b"later", 0, True)
    for i in range(20):
        write(daemon.file("other"), b"now", i * 4096, True)
    assert "disk" in daemon.graph("graph.txt")
    assert writer.is_alive()
    pause.resume()
    writer()
    assert daemon.file("disk").read_bytes()[:5] == b"later"


@pytest.mark.parametrize("how", ["pause", "stop"])
@pytest.mark.parametrize("section", hung_server.SECTIONS)
def test_hang_under_drain(place, section, how):
    data = pattern(16 * MiB)
    image = place.image(data=data)
    pause = Pause(place)
    server = nbdkit(place, *pause.argv, "file", f"file={image}", pause.parameter)
    daemon = place.mount(hung_server.graph(
        place, f"[node remote]\ndriver = nbd\nuri = {server.uri}\ntimeout = 0\n"))
    hang, resume = (pause.pause, pause.resume) if how == "pause" else (server.hang, server.resume)
    hung_server.check(daemon, section, hang, resume, data)


@pytest.mark.faulty
def test_hang_under_snapshot(place):
    image = place.path / "disk.qcow2"
    place.run("qemu-img", "create", "-q", "-f", "qcow2", image, "16M")
    os.truncate(image, 32 * MiB)
    pause = Pause(place)
    server = nbdkit(place, *pause.argv, "file", f"file={image}", pause.parameter)
    daemon = place.mount(f"[node disk]\ndriver = qcow2\n{server.node()}")
    write(daemon.file("disk"), b"before", 0, True)
    pause.pause()
    snapshot = in_thread(os.mkdir, daemon.mountpoints[0] / ".snap" / "one")
    time.sleep(0.5)
    assert snapshot.is_alive()
    assert "disk" in place.client("graph", daemon.mountpoints[0]).stdout
    pause.resume()
    snapshot()
    write(daemon.file("disk"), b"after!", 0, True)
    assert (daemon.mountpoints[0] / ".snap" / "one" / "disk").read_bytes()[:6] == b"before"
    daemon.stop()
    place.run("qemu-img", "check", "-q", image)


def test_hang_under_sigterm(place):
    pause = Pause(place)
    server = nbdkit(place, *pause.argv, "memory", "16M", pause.parameter)
    daemon = place.mount(raw(server.uri, "file.timeout = 2\n"), stderr_allowed=".")
    pause.pause()
    writer = in_thread(write, daemon.file("disk"), b"never", 0)
    time.sleep(0.3)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.wait(timeout=20 * harness.TIME_SCALE)
    daemon.expected_status = daemon.process.returncode
    with pytest.raises(OSError):
        writer()
    pause.resume()


@pytest.mark.limit(900)
def test_cuts_at_any_byte(place):
    image = place.image()
    server = nbdkit(place, "file", f"file={image}")
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    choose = random.Random(seed)
    mirror = bytearray(2 * MiB)
    with Relay(server.address, listen=str(place.path / "relay.sock")) as relay:
        daemon = place.mount(raw(f"nbd+unix:///?socket={relay.address}"), stderr_allowed=OUTAGE)
        with opened(daemon.file("disk")) as fd:
            for i in range(harness.count(20, 500)):
                relay.cut_after(choose.randrange(300 * KiB), choose.choice((TO_SERVER, TO_CLIENT)))
                before = relay.accepted
                while relay.accepted == before:
                    at, length = choose.randrange(MiB), choose.randrange(1, 256 * KiB)
                    data = pattern(length, i)
                    os.pwrite(fd, data, at)
                    mirror[at:at + length] = data
                    at = choose.randrange(MiB)
                    assert os.pread(fd, 128 * KiB, at) == mirror[at:at + 128 * KiB]
            assert os.pread(fd, len(mirror), 0) == mirror
        settle(daemon.file("disk"))
        daemon.stop()


def test_slow_loris(place):
    """A server that trickles: the deadline of requests ends it, and others are not disturbed."""
    server = nbdkit(place, "memory", "16M", tcp=True)
    place.image("other.img")
    with Relay(server.address) as relay:
        daemon = place.mount(raw(f"nbd://127.0.0.1:{relay.address[1]}/",
                                 "file.timeout = 1\nfile.reconnect-delay = 0\n")
                             + "[node other]\ndriver = raw\nfile.driver = file\nfile.filename = other.img\n",
                             stderr_allowed=OUTAGE)
        relay.rate = 1000
        with opened(daemon.file("disk")) as fd:
            reader = in_thread(os.pread, fd, 64 * KiB, 0)
            write(daemon.file("other"), b"now", 0, True)
            with pytest.raises(OSError) as caught:
                reader()
            assert caught.value.errno == errno.EIO
        daemon.stop()


def test_delay(place):
    server = nbdkit(place, "--filter=delay", "memory", "16M", "rdelay=50ms", "wdelay=50ms")
    daemon = place.mount(raw(server.uri))
    write(daemon.file("disk"), pattern(MiB), 0, True)
    assert daemon.file("disk").read_bytes()[:MiB] == pattern(MiB)


def test_a_dead_server_uses_no_cpu(place):
    server = nbdkit(place, "memory", "16M")
    daemon = place.mount(raw(server.uri, "file.reconnect-delay = 0\n"), stderr_allowed=OUTAGE)
    server.kill()

    def ticks():
        with open(f"/proc/{daemon.pid}/stat", encoding="ascii") as stat:
            fields = stat.read().rsplit(") ", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    time.sleep(2)  # the first attempts come quickly
    before = ticks()
    time.sleep(1)
    assert ticks() - before <= 3
    assert re.search(r"nbd, .*, down for [1-9]\d* s", daemon.graph("graph.txt"))
