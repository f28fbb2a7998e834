"""Driver iscsi when its target dies, hangs, is cut off or comes back as another one.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import concurrent.futures
import contextlib
import errno
import os
import random
import subprocess
import threading
import time

import pytest

import harness
import hung_server
from fileio import aligned, opened, pattern
from relay import TO_CLIENT, TO_SERVER, Relay
from servers_iscsi import Istgt, Tgt
from system import KiB, MiB
from test_iscsi import assert_idle

OUTAGE = "requests (wait|fail)"


@pytest.fixture
def tgt(place):
    target = Tgt(place)
    yield target
    target.stop_daemons_and_end()


@pytest.fixture
def relay(tgt):
    with Relay(("127.0.0.1", tgt.port)) as between:
        yield between
        between.resume()
        between.accept()
        tgt.stop_daemons_and_end()


def error_of(function, *args):
    with pytest.raises(OSError) as caught:
        function(*args)
    return caught.value.errno


def wait_until(condition, timeout=30):
    deadline = time.monotonic() + timeout * harness.TIME_SCALE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def works(fd):
    try:
        return os.pread(fd, 4096, random.randrange(1000) * 4096) is not None
    except OSError as error:
        assert error.errno == errno.EIO
        return False


def settle(fd):
    """What was written before an outage and not flushed: one flush says so."""
    try:
        os.fsync(fd)
    except OSError as error:
        assert error.errno == errno.EIO
    os.fsync(fd)


def in_thread(function, *args):
    pool = concurrent.futures.ThreadPoolExecutor(1)
    task = pool.submit(function, *args)
    pool.shutdown(wait=False)
    return task


# ---- the target dies


@pytest.mark.limit(240)
def test_killed_in_mid_write(place, tgt):
    """fio writes and verifies; no error reaches it, no byte is wrong."""
    daemon = place.mount(tgt.graph(more="on-outage = pause"), stderr_allowed=OUTAGE)
    for i in range(harness.count(3, 20)):
        fio = subprocess.Popen(
            ["fio", "--name=w", f"--filename={daemon.file('disk')}", "--rw=randwrite", "--bs=4k-64k", "--size=48M",
             "--io_size=64M", "--ioengine=libaio", "--direct=1", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1",
             f"--randseed={i}", "--serialize_overlap=1", "--output", f"fio-{i}.txt"], cwd=place.path)
        time.sleep(random.uniform(0.1, 0.6))
        tgt.kill()
        time.sleep(random.uniform(0, 0.5))
        tgt.start()
        assert fio.wait(timeout=60 * harness.PATIENCE) == 0, (place.path / f"fio-{i}.txt").read_text()
    assert daemon.is_running()
    with opened(daemon.file("disk")) as fd:
        settle(fd)


@pytest.mark.parametrize("server", [Tgt, Istgt])
def test_dead_target_uses_no_cpu(place, server):
    target = server(place)
    try:
        daemon = place.mount(target.graph(more="reconnect-delay = 0"), stderr_allowed=OUTAGE)
        with opened(daemon.file("disk"), os.O_RDONLY) as fd:
            os.pread(fd, MiB, 0)
            target.kill()
            assert_idle(daemon)
            assert error_of(os.pread, fd, 4096, 10 * MiB) == errno.EIO
            assert_idle(daemon)
            assert "host connect" in daemon.graph("errors")
            assert f"127.0.0.1:{target.port}" in daemon.graph("errors")
            target.start()
            wait_until(lambda: works(fd))
            assert os.pread(fd, 4096, 10 * MiB) == bytes(4096)
        assert len([line for line in daemon.said().splitlines() if "requests fail" in line]) == 1
    finally:
        target.stop_daemons_and_end()


def test_requests_wait(place, tgt):
    daemon = place.mount(tgt.graph(), stderr_allowed=OUTAGE)
    with opened(daemon.file("disk")) as fd:
        tgt.kill()
        task = in_thread(os.pwrite, fd, pattern(MiB), 0)
        time.sleep(0.3)
        assert not task.done()
        tgt.start()
        assert task.result(60 * harness.PATIENCE) == MiB
        os.fsync(fd)
    daemon.umount()
    assert tgt.image.read_bytes()[:MiB] == pattern(MiB)


def test_what_the_target_forgot_is_written_again(place, tgt):
    """A crash of a target with a cache: what was acknowledged and not flushed is not on its disk."""
    daemon = place.mount(tgt.graph(), stderr_allowed=OUTAGE)
    with opened(daemon.file("disk"), os.O_RDWR | os.O_DIRECT) as fd:
        os.pwrite(fd, aligned(pattern(MiB)), 0)
        tgt.kill()
        with open(tgt.image, "r+b") as disk:
            disk.write(bytes(MiB))
        tgt.start()
        os.fsync(fd)
        assert os.pread(fd, MiB, 0) == pattern(MiB)
    assert tgt.image.read_bytes()[:MiB] == pattern(MiB)


def test_unflushed_writes_are_reported(place, tgt):
    """Where they are not kept: once, and then never more."""
    daemon = place.mount(tgt.graph(more="resend-buffer = 0\n"), stderr_allowed=OUTAGE)
    with opened(daemon.file("disk"), os.O_RDWR | os.O_DIRECT) as fd:
        os.pwrite(fd, aligned(pattern(MiB)), 0)
        tgt.kill()
        tgt.start()
        assert error_of(os.fsync, fd) == errno.EIO
        os.pwrite(fd, aligned(pattern(MiB)), 0)
        os.fsync(fd)


def test_another_disk_is_not_touched(place, tgt):
    """Smaller than before."""
    daemon = place.mount(tgt.graph(), stderr_allowed=".")
    with opened(daemon.file("disk")) as fd:
        tgt.kill()
        os.truncate(tgt.image, 32 * MiB)
        tgt.start()
        wait_until(lambda: "blocks, not" in daemon.said())
        assert error_of(os.pread, fd, 4096, 0) == errno.ESTALE


def test_another_identity_is_not_touched(place, tgt):
    daemon = place.mount(tgt.graph(), stderr_allowed=".")
    with opened(daemon.file("disk")) as fd:
        tgt.kill()
        tgt.params.append("scsi_id=other")
        tgt.start()
        wait_until(lambda: "another disk" in daemon.said())
        assert error_of(os.pwrite, fd, b"x", 0) == errno.ESTALE
    daemon.stop()


def test_grown_meanwhile(place, tgt):
    daemon = place.mount(f"[node disk]\ndriver = iscsi\nurl = {tgt.url()}\n", stderr_allowed=OUTAGE + "|has grown")
    with opened(daemon.file("disk")) as fd:
        tgt.kill()
        os.truncate(tgt.image, 96 * MiB)
        tgt.start()
        os.pread(fd, 4096, 0)
        wait_until(lambda: os.stat(daemon.file("disk")).st_size == 96 * MiB)
        os.pwrite(fd, pattern(MiB), 95 * MiB)
        assert os.pread(fd, MiB, 95 * MiB) == pattern(MiB)


# ---- the target hangs


def other_disk(place):
    place.image("other.img", MiB)
    return "[node other]\ndriver = raw\nfile.driver = file\nfile.filename = other.img\n"


@pytest.mark.parametrize("command", ["snapshot", "graph"])
def test_hung_target_and_a_drained_section(place, tgt, command):
    """The section waits for it, others serve on, and all completes when it goes on."""
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "inside.qcow2", "32M")
    with opened(tgt.image) as fd:
        os.pwrite(fd, (place.path / "inside.qcow2").read_bytes(), 0)
    (place.path / "inside.qcow2").unlink()
    daemon = place.mount(tgt.node(more="timeout = 60") + "[node disk]\ndriver = qcow2\nfile = host\n")
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, pattern(MiB), 0)
        os.fsync(fd)
        tgt.hang()
        writer = in_thread(os.pwrite, fd, pattern(MiB, 2), 2 * MiB)
        syncer = in_thread(os.fsync, fd)
        time.sleep(0.2)
        section = in_thread(os.mkdir, daemon.file(".snap") / "one") if command == "snapshot" else in_thread(
            place.client, "graph", daemon.mountpoints[0])
        time.sleep(0.5)
        if command == "snapshot":
            assert not section.done()
        assert "host: iscsi" in daemon.graph("graph.txt")
        tgt.resume()
        section.result(60 * harness.PATIENCE)
        assert writer.result(60 * harness.PATIENCE) == MiB
        syncer.result(60 * harness.PATIENCE)
        assert os.pread(fd, MiB, 2 * MiB) == pattern(MiB, 2)
    daemon.umount()


@pytest.mark.parametrize("section", hung_server.SECTIONS)
def test_hung_target_below_a_drained_section(place, tgt, section):
    data = pattern(64 * MiB)
    tgt.image.write_bytes(data)
    remote = f"[node remote]\ndriver = iscsi\nurl = {tgt.url()}\ntimeout = 60\n"
    daemon = place.mount(hung_server.graph(place, remote, size=64 * MiB), stderr_allowed=OUTAGE)
    hung_server.check(daemon, section, tgt.hang, tgt.resume, data)
    daemon.umount()


def test_others_serve_on(place, tgt):
    daemon = place.mount(tgt.graph(more="timeout = 60") + other_disk(place))
    with opened(daemon.file("disk")) as fd, opened(daemon.file("other")) as other:
        tgt.hang()
        reader = in_thread(os.pread, fd, 4096, 0)
        for i in range(100):
            os.pwrite(other, pattern(4096, i), i * 4096)
        os.fsync(other)
        assert not reader.done()
        assert_idle(daemon)
        tgt.resume()
        assert reader.result(60 * harness.PATIENCE) == bytes(4096)


def test_hung_target_and_sigterm(place, tgt):
    """The daemon ends within the deadline of a request."""
    daemon = place.mount(tgt.graph(more="timeout = 2"), stderr_allowed=".")
    fd = os.open(daemon.file("disk"), os.O_RDONLY)
    tgt.hang()
    reader = in_thread(error_of, os.pread, fd, 4096, 0)
    time.sleep(0.2)
    started = time.monotonic()
    daemon.stop()
    assert time.monotonic() - started < 12 * harness.TIME_SCALE
    reader.result(10)
    with contextlib.suppress(OSError):  # the mount has gone
        os.close(fd)


def test_sigterm_in_an_outage(place, tgt):
    daemon = place.mount(tgt.graph(more="on-outage = pause\ntimeout = 2"), stderr_allowed=".")
    fd = os.open(daemon.file("disk"), os.O_RDONLY)
    tgt.kill()
    reader = in_thread(error_of, os.pread, fd, 4096, 0)
    time.sleep(0.2)
    daemon.stop()
    reader.result(10)
    with contextlib.suppress(OSError):  # the mount has gone
        os.close(fd)


def test_deadline_of_a_request(place, tgt):
    """Then the connection counts as lost; when the target goes on, all is well, and nothing is done twice too late."""
    daemon = place.mount(tgt.graph(more="timeout = 1\non-outage = pause"), stderr_allowed=OUTAGE)
    with opened(daemon.file("disk"), os.O_RDWR) as fd:
        tgt.hang()
        writer = in_thread(os.pwrite, fd, pattern(64 * KiB), 0)
        wait_until(lambda: "no answer within 1 s" in daemon.said())
        assert not writer.done()
        tgt.resume()
        assert writer.result(60 * harness.PATIENCE) == 64 * KiB
        os.pwrite(fd, pattern(64 * KiB, 2), 0)
        assert os.pread(fd, 64 * KiB, 0) == pattern(64 * KiB, 2)


def test_keep_alive_finds_a_hung_target(place, tgt):
    """Also where nobody asks for anything."""
    daemon = place.mount(tgt.graph(more="timeout = 1"), stderr_allowed=OUTAGE)
    tgt.hang()
    wait_until(lambda: "does not answer pings" in daemon.said())
    tgt.resume()
    daemon.file("disk").read_bytes()


# ---- the network


@pytest.mark.limit(240)
def test_cut_anywhere(place, tgt, relay):
    """At random bytes, in both directions: no error, no wrong byte."""
    daemon = place.mount(tgt.graph(port=relay.address[1], more="on-outage = pause"), stderr_allowed=OUTAGE)
    choose = random.Random(5)
    mirror = bytearray(8 * MiB)
    stop = threading.Event()

    def cut():
        done = 0
        while not stop.is_set() and done < harness.count(20, 500):
            relay.cut_after(choose.randrange(400 * KiB), choose.choice((TO_SERVER, TO_CLIENT)))
            before = relay.accepted
            while relay.accepted == before and not stop.wait(0.005):
                pass
            done += relay.accepted > before
        return done

    cutter = in_thread(cut)
    i = 0
    with opened(daemon.file("disk"), os.O_RDWR) as fd:
        while not cutter.done():
            offset = choose.randrange(8 * MiB - 128 * KiB)
            data = pattern(choose.randrange(1, 128 * KiB), i)
            assert os.pwrite(fd, data, offset) == len(data)
            mirror[offset:offset + len(data)] = data
            offset = choose.randrange(8 * MiB - 128 * KiB)
            assert os.pread(fd, 128 * KiB, offset) == mirror[offset:offset + 128 * KiB]
            i += 1
        stop.set()
        assert cutter.result() == harness.count(20, 500)
        assert os.pread(fd, 8 * MiB, 0) == mirror
        settle(fd)


@pytest.mark.parametrize("reset", [False, True], ids=["eof", "reset"])
def test_cut_while_idle(place, tgt, reset):
    with Relay(("127.0.0.1", tgt.port), reset=reset) as relay:
        daemon = place.mount(tgt.graph(port=relay.address[1]), stderr_allowed=OUTAGE)
        relay.refuse()
        relay.cut()
        wait_until(lambda: "requests fail" in daemon.said())
        assert_idle(daemon)
        relay.accept()
        with opened(daemon.file("disk"), os.O_RDONLY) as fd:
            assert os.pread(fd, 4096, 0) == bytes(4096)
        tgt.stop_daemons_and_end()


def test_slow_loris(place, tgt, relay):
    """Bytes come, but an answer never: the deadline counts answers."""
    daemon = place.mount(tgt.graph(port=relay.address[1], more="timeout = 2\nreconnect-delay = 0"),
                         stderr_allowed=OUTAGE)
    with opened(daemon.file("disk"), os.O_RDONLY) as fd:
        relay.rate = 40
        assert error_of(os.pread, fd, MiB, 0) == errno.EIO
        assert "no answer within 2 s" in daemon.said()
        relay.cut()
        relay.rate = 0
        wait_until(lambda: works(fd))
        assert os.pread(fd, MiB, 0) == bytes(MiB)


def test_delay(place, tgt, relay):
    relay.delay = 0.02
    daemon = place.mount(tgt.graph(port=relay.address[1]))
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, pattern(4 * MiB), 0)
        os.fsync(fd)
        assert os.pread(fd, 4 * MiB, 0) == pattern(4 * MiB)
