"""Driver iscsi against tgt and istgt: what it reads and writes, what it is told, what it refuses.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import errno
import os
import random
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

import harness
from fileio import aligned, opened, pattern, punch_hole
from servers_iscsi import NAME, Istgt, Tgt
from system import KiB, MiB, free_port

SIZE = 64 * MiB


@pytest.fixture
def tgt(place):
    target = Tgt(place)
    yield target
    target.stop_daemons_and_end()


@pytest.fixture(params=[Tgt, Istgt])
def target(place, request):
    server = request.param(place)
    yield server
    server.stop_daemons_and_end()


def refused(place, graph, *words):
    """The message of a daemon that must refuse the graph, which must have all the words."""
    message = place.refuse(place.write("bad.conf", graph), place.directory())
    for word in words:
        assert word in message, message
    return message


def cpu_ticks(daemon):
    fields = open(f"/proc/{daemon.pid}/stat").read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def assert_idle(daemon):
    before = cpu_ticks(daemon)
    time.sleep(1)
    assert cpu_ticks(daemon) - before <= 3  # of 10 ms


# ---- reading and writing


def test_random_requests(place, target):
    daemon = place.mount(target.graph())
    mirror = bytearray(SIZE)
    choose = random.Random(11)
    assert os.stat(daemon.file("disk")).st_size == SIZE
    with opened(daemon.file("disk")) as fd:
        for i in range(harness.count(200, 2000)):
            length = choose.choice((1, 511, 512, 4096, 4097, 70000, 3 * MiB))
            offset = choose.randrange(SIZE - length)
            if choose.random() < 0.5:
                data = pattern(length, i)
                assert os.pwrite(fd, data, offset) == length
                mirror[offset:offset + length] = data
            else:
                assert os.pread(fd, length, offset) == mirror[offset:offset + length]
        os.fsync(fd)
    daemon.umount()
    assert target.image.read_bytes() == mirror


def test_direct_io(place, target):
    daemon = place.mount(target.graph())
    with opened(daemon.file("disk"), os.O_RDWR | os.O_DIRECT) as fd:
        data = aligned(pattern(256 * KiB))
        os.pwrite(fd, data, SIZE - 256 * KiB)
        buffer = aligned(256 * KiB)
        assert os.preadv(fd, [buffer], SIZE - 256 * KiB) == 256 * KiB
        assert buffer[:] == data[:]


def test_beyond_the_end(place, tgt):
    daemon = place.mount(tgt.graph())
    with opened(daemon.file("disk")) as fd:
        assert os.pread(fd, 10, SIZE) == b""
        with pytest.raises(OSError) as error:
            os.pwrite(fd, b"x", SIZE)
        assert error.value.errno == errno.ENOSPC


def test_durable_and_named(place, target):
    daemon = place.mount(target.graph())
    assert os.getxattr(daemon.file("disk"), "user.blockgraph.durable") == b"yes"
    assert f"iscsi, 64 MiB, {target.url()}" in daemon.graph("graph.txt")


def test_strict_sync(place, tgt):
    place.mount(tgt.graph(), "-o", "strict-sync")


def test_zeroes_and_holes(place, tgt):
    """On a thin LUN of tgt, whose holes are those of its file."""
    daemon = place.mount(tgt.graph())
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, pattern(8 * MiB), 0)
        os.fsync(fd)
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 8 * MiB
        assert os.lseek(fd, 8 * MiB, os.SEEK_HOLE) == 8 * MiB
        punch_hole(fd, MiB, MiB)
        assert os.lseek(fd, 0, os.SEEK_HOLE) == MiB
        assert os.lseek(fd, MiB, os.SEEK_DATA) == 2 * MiB
        assert os.pread(fd, MiB, MiB) == bytes(MiB)
        place.run("fallocate", "--zero-range", "-o", 4 * MiB, "-l", MiB, daemon.file("disk"))
        assert os.pread(fd, MiB + 2, 4 * MiB - 1) == \
            pattern(8 * MiB)[4 * MiB - 1:4 * MiB] + bytes(MiB) + pattern(8 * MiB)[5 * MiB:5 * MiB + 1]
    daemon.umount()
    assert os.stat(tgt.image).st_blocks * 512 <= 7 * MiB


def test_zeroes_where_nothing_is_thin(place):
    tgt = Tgt(place, thin=False)
    try:
        daemon = place.mount(tgt.graph())
        with opened(daemon.file("disk")) as fd:
            os.pwrite(fd, pattern(4 * MiB), 0)
            place.run("fallocate", "--zero-range", "-o", MiB, "-l", MiB, daemon.file("disk"))
            punch_hole(fd, 2 * MiB, MiB)
            assert os.lseek(fd, 0, os.SEEK_HOLE) == SIZE
            assert os.pread(fd, 2 * MiB, MiB) == bytes(2 * MiB)
            assert os.pread(fd, MiB, 3 * MiB) == pattern(4 * MiB)[3 * MiB:]
    finally:
        tgt.stop_daemons_and_end()


def test_zeroes_of_istgt(place):
    """It knows neither UNMAP nor GET LBA STATUS."""
    istgt = Istgt(place)
    try:
        daemon = place.mount(istgt.graph())
        with opened(daemon.file("disk")) as fd:
            os.pwrite(fd, pattern(2 * MiB), 0)
            punch_hole(fd, MiB, MiB)
            assert os.pread(fd, 2 * MiB, 0) == pattern(2 * MiB)[:MiB] + bytes(MiB)
            assert os.lseek(fd, 0, os.SEEK_HOLE) == SIZE
    finally:
        istgt.stop_daemons_and_end()


def test_qcow2_on_top(place, target):
    """Made by qemu-img in the LUN's file, written through the mount, and sound for qemu-img after."""
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "inside.qcow2", "32M")
    with opened(target.image) as fd:
        os.pwrite(fd, (place.path / "inside.qcow2").read_bytes(), 0)
    (place.path / "inside.qcow2").unlink()
    daemon = place.mount(target.node() + "[node disk]\ndriver = qcow2\nfile = host\n")
    with opened(daemon.file("disk")) as fd:
        for i in range(40):
            os.pwrite(fd, pattern(100000, i), i * 500000)
        os.fsync(fd)
    (daemon.mountpoints[0] / ".snap" / "one").mkdir()
    daemon.umount()
    assert "No errors" in place.run("qemu-img", "check", "-f", "qcow2", target.image).stdout
    assert "one" in place.run("qemu-img", "snapshot", "-l", target.image).stdout
    place.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", target.image, "out.raw")
    out = (place.path / "out.raw").read_bytes()
    assert all(out[i * 500000:i * 500000 + 100000] == pattern(100000, i) for i in range(40))


def test_read_only_lun(place):
    tgt = Tgt(place, params=["readonly=1"])
    try:
        refused(place, tgt.graph(), "host", "write-protected", "read-only")
        daemon = place.mount(tgt.graph(more="read-only = on"))
        assert daemon.file("disk").read_bytes()[:512] == bytes(512)
        with pytest.raises(OSError):
            os.open(daemon.file("disk"), os.O_RDWR)
        daemon.umount()
        daemon = place.mount("[node disk]\ndriver = raw\nfile.driver = iscsi\nfile.auto-read-only = on\n"
                             f"file.url = {tgt.url()}\nread-only = on\n")
        assert daemon.file("disk").read_bytes()[:512] == bytes(512)
    finally:
        tgt.stop_daemons_and_end()


# ---- options


def test_qemu_names(place, tgt):
    daemon = place.mount(f"[node disk]\ndriver = iscsi\ntransport = tcp\nportal = 127.0.0.1:{tgt.port}\n"
                         f"target = {NAME}\nlun = 1\ninitiator-name = iqn.2026-11.org.example:me\n"
                         "header-digest = crc32c\ntimeout = 20\n")
    assert len(daemon.file("disk").read_bytes()) == SIZE


@pytest.mark.parametrize("digest", ["none", "crc32c", "none-crc32c", "crc32c-none"])
def test_header_digests(place, tgt, digest):
    daemon = place.mount(tgt.graph(more=f"header-digest = {digest}"))
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, pattern(MiB), 12345)
        os.fsync(fd)
    daemon.umount()
    daemon = place.mount(tgt.graph(more=f"header-digest = {digest}"))
    with opened(daemon.file("disk"), os.O_RDONLY) as fd:
        assert os.pread(fd, MiB, 12345) == pattern(MiB)


def test_host_name(place, tgt):
    """One that may stand for more addresses than the target listens on."""
    place.mount(tgt.graph().replace("127.0.0.1", "localhost"))


@pytest.mark.parametrize("line, words", [
    ("url = iscsi://joe%hunter2@127.0.0.1/iqn.a:b/1", ["url", "password-secret"]),
    ("url = iscsi://joe:hunter2@127.0.0.1/iqn.a:b/1", ["url", "password-secret"]),
    ("url = iscsi://127.0.0.1/iqn.a:b/1?target_user=a&target_password=hunter2", ["url", "target-password-secret"]),
    ("url = iscsi://127.0.0.1/iqn.a:b", ["url", "LUN"]),
    ("url = iscsi://127.0.0.1/iqn.a:b/x", ["url", "LUN"]),
    ("url = iscsi://127.0.0.1/iqn.a:b/256", ["url", "LUN"]),
    ("url = iscsi://127.0.0.1:99999/iqn.a:b/1", ["url", "port"]),
    ("url = iscsi:///iqn.a:b/1", ["url", "host"]),
    ("url = iser://127.0.0.1/iqn.a:b/1", ["url", "iser"]),
    ("url = http://127.0.0.1/", ["url", "iscsi://"]),
    ("url = iscsi://127.0.0.1/iqn.a:b/1\nlun = 1", ["lun", "url"]),
    ("url = iscsi://127.0.0.1/iqn.a:b/1\ntransport = iser", ["transport", "iser"]),
    ("url = iscsi://127.0.0.1/iqn.a:b/1\ntransport = udp", ["transport", "udp"]),
    ("url = iscsi://127.0.0.1/iqn.a:b/1\nheader-digest = md5", ["header-digest", "md5"]),
    ("url = iscsi://127.0.0.1/iqn.a:b/1\ninitiator-name =", ["initiator-name"]),
    ("url = iscsi://127.0.0.1/iqn.a:b/1\nuser = joe", ["user", "password-secret"]),
    ("url = iscsi://joe@127.0.0.1/iqn.a:b/1", ["user", "password-secret"]),
    ("url = iscsi://127.0.0.1/iqn.a:b/1\nuser = joe\npassword-secret = none", ["password-secret", "none"]),
    ("url = iscsi://127.0.0.1/iqn.a:b/1\ntarget-user = joe", ["target-user", "target-password-secret"]),
    ("url = iscsi://127.0.0.1/iqn.a:b/1\nresend-buffer = -1", ["resend-buffer"]),
    ("target = iqn.a:b", ["portal"]),
    ("portal = 127.0.0.1", ["target"]),
    ("portal = 127.0.0.1:x\ntarget = iqn.a:b", ["portal"]),
])
def test_bad_options(place, line, words):
    message = refused(place, f"[node n]\ndriver = iscsi\n{line}\n", "n", *words)
    assert "hunter2" not in message.split("bad.conf")[-1]  # before: the test's own name


def test_unknown_option(place, tgt):
    refused(place, tgt.graph(more="timeuot = 3"), "host", "timeuot", "'timeout'")


def test_nobody_listens(place):
    refused(place, f"[node n]\ndriver = iscsi\nurl = iscsi://127.0.0.1:{free_port()}/iqn.a:b/1\n", "'n'", "refused")


def test_no_such_host(place):
    refused(place, "[node n]\ndriver = iscsi\nurl = iscsi://nowhere.invalid/iqn.a:b/1\n", "'n'", "nowhere.invalid")


def test_no_such_target(place, tgt):
    refused(place, tgt.graph().replace(NAME, NAME + "x"), "host", "Target not found")


class Pointer:
    """A portal that answers every login with the address of another."""

    def __init__(self, address):
        self.text = f"TargetAddress={address}\0".encode()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.logins = 0
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                with client:
                    header = client.recv(48, socket.MSG_WAITALL)
                    client.recv((int.from_bytes(header[5:8], "big") + 3) // 4 * 4, socket.MSG_WAITALL)
                    self.logins += 1
                    answer = bytes([0x23, header[1] & 0x0c, 0, 0]) + struct.pack(">I", len(self.text)) \
                        + header[8:20] + bytes(4) + struct.pack(">III", 0, 1, 2) + bytes([1, 1]) + bytes(10)
                    client.sendall(answer + self.text + bytes(-len(self.text) % 4))
                    client.recv(1)  # until it closes

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def test_redirected(place, tgt):
    """A portal may say that the target is elsewhere for now."""
    pointer = Pointer(f"127.0.0.1:{tgt.port},1")
    daemon = place.mount(tgt.graph(port=pointer.port))
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, b"here", 0)
        os.fsync(fd)
    assert pointer.logins == 1
    assert tgt.image.read_bytes()[:4] == b"here"
    pointer.close()


def test_redirected_for_ever(place, tgt):
    pointer = Pointer("x")
    pointer.text = f"TargetAddress=127.0.0.1:{pointer.port},1\0".encode()
    refused(place, tgt.graph(port=pointer.port), "host", "for ever")
    assert pointer.logins == 5
    pointer.text = b"TargetAddress=:,\0"
    refused(place, tgt.graph(port=pointer.port), "host", "no address")
    pointer.close()


def test_no_such_lun(place, tgt):
    refused(place, tgt.graph(lun=7), "host", "no LUN 7")


def test_not_a_disk(place, tgt):
    """LUN 0 of tgt is a controller."""
    refused(place, tgt.graph(lun=0), "host", "LUN 0 is not a disk")


def test_silent_server(place, tgt):
    """It accepts and says nothing: the deadline of an attempt is ours."""
    tgt.hang()
    refused(place, tgt.graph(more="timeout = 1"), "host", "no answer within 1 s")


# ---- passwords


CHAP = {"LIBISCSI_CHAP_USERNAME": "joe", "LIBISCSI_CHAP_PASSWORD": "hunter2hunter2"}
MUTUAL = {"LIBISCSI_CHAP_TARGET_USERNAME": "disk", "LIBISCSI_CHAP_TARGET_PASSWORD": "mutualmutual"}


def test_chap_by_environment(place, tgt):
    tgt.add_account("joe", "hunter2hunter2")
    daemon = place.mount(tgt.graph(), env=CHAP)
    assert daemon.file("disk").read_bytes()[:512] == bytes(512)


def test_chap_both_ways_by_environment(place, tgt):
    tgt.add_account("joe", "hunter2hunter2")
    tgt.add_account("disk", "mutualmutual", outgoing=True)
    daemon = place.mount(tgt.graph(), env={**CHAP, **MUTUAL})
    assert daemon.file("disk").read_bytes()[:512] == bytes(512)


def refused_login(place, tgt, env):
    config = place.write("bad.conf", tgt.graph())
    done = place.run(place.binary, "-f", config, place.directory(), env=env, check=False)
    assert done.returncode == 1 and "host" in done.stderr, done.stderr
    assert "hunter2" not in done.stderr and "mutual" not in done.stderr
    return done.stderr


def test_chap_refused(place, tgt):
    tgt.add_account("joe", "hunter2hunter2")
    assert "uth" in refused_login(place, tgt, {})  # authentication, authorization
    assert "uth" in refused_login(place, tgt, {**CHAP, "LIBISCSI_CHAP_PASSWORD": "wrongwrongwrong"})


def test_target_that_cannot_prove_itself(place, tgt):
    """A wrong password of the target's, and a target that is not asked to have one."""
    tgt.add_account("joe", "hunter2hunter2")
    refused_login(place, tgt, {**CHAP, **MUTUAL})
    tgt.add_account("disk", "wrongwrongwrong", outgoing=True)
    refused_login(place, tgt, {**CHAP, **MUTUAL})


SECRETS = "[secret mine]\nfile = mine.secret\n[secret theirs]\nfile = theirs.secret\n"


def write_secrets(place, mine="hunter2hunter2", theirs="mutualmutual"):
    for name, text in (("mine", mine), ("theirs", theirs)):
        place.write(f"{name}.secret", text).chmod(0o600)


def with_secrets(tgt, more=""):
    return SECRETS + tgt.graph(more="user = joe\npassword-secret = mine\n" + more)


def test_chap_by_secrets(place, tgt):
    """Both ways; and nobody can read the passwords where people look."""
    tgt.add_account("joe", "hunter2hunter2")
    tgt.add_account("disk", "mutualmutual", outgoing=True)
    write_secrets(place)
    daemon = place.mount(with_secrets(tgt, "target-user = disk\ntarget-password-secret = theirs\n"),
                         stderr_allowed="requests fail")
    with opened(daemon.file("disk"), os.O_RDONLY) as fd:
        assert os.pread(fd, 512, 0) == bytes(512)
        tgt.kill()
        tgt.start()
        assert os.pread(fd, 512, MiB) == bytes(512)  # it can log in again
    seen = [daemon.said(), open(f"/proc/{daemon.pid}/cmdline").read(), open("/proc/self/mounts").read()]
    seen += [daemon.graph(name) for name in
             ("graph.txt", "graph.json", "graph.dot", "errors", "metrics", "nodes/host/options.json",
              "nodes/host/stats.json")]
    assert not any(word in text for text in seen for word in ("hunter2", "mutualmutual"))
    assert "password-secret" in daemon.graph("nodes/host/options.json")


def test_wrong_secrets(place, tgt):
    tgt.add_account("joe", "hunter2hunter2")
    tgt.add_account("disk", "mutualmutual", outgoing=True)
    write_secrets(place, mine="wrongwrongwrong")
    refused(place, with_secrets(tgt), "host", "uth")
    write_secrets(place, theirs="wrongwrongwrong")
    refused(place, with_secrets(tgt, "target-user = disk\ntarget-password-secret = theirs\n"), "host")
    refused(place, with_secrets(tgt).replace("password-secret = mine", "password-secret = mime"),
            "host", "password-secret", "mine")


def test_example(place, tgt):
    tgt.add_account("backup", "hunter2hunter2")
    tgt.add_account("disk", "mutualmutual", outgoing=True)
    write_secrets(place)
    for name, example in (("mine", "chap"), ("theirs", "chap-target")):
        (place.path / f"{name}.secret").rename(place.path / f"{example}.secret")
    text = (Path(__file__).resolve().parents[2] / "examples" / "iscsi.conf").read_text()
    assert "127.0.0.1:3260" in text and NAME in text
    daemon = place.mount(text.replace("127.0.0.1:3260", f"127.0.0.1:{tgt.port}"))
    with opened(daemon.file("disk.img")) as fd:
        os.pwrite(fd, b"example", 0)
        os.fsync(fd)
    assert tgt.image.read_bytes()[:7] == b"example"


def test_source_on_the_command_line(place, tgt):
    mountpoint = place.directory()
    daemon = place.start("--format=raw", tgt.url(), mountpoint, mountpoints=[mountpoint])
    names = os.listdir(mountpoint)
    assert len(names) == 1 and os.stat(daemon.file(names[0])).st_size == SIZE


# ---- quiet


def test_an_idle_mount_uses_no_cpu(place, target):
    daemon = place.mount(target.graph())
    assert_idle(daemon)
    daemon.file("disk").read_bytes()
    assert_idle(daemon)
