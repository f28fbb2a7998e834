"""The driver nbd with real servers: nbdkit, qemu-nbd and nbd-server.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import concurrent.futures
import errno
import os
import re
import socket
import threading
import time

import pytest

import fileio
import qmp
import servers_nbd
from fileio import opened, pattern, punch_hole
from relay import Relay
from servers_nbd import nbdkit
from system import KiB, MiB, free_port

SIZE = 16 * MiB


def raw(server, extra="", name="disk"):
    return f"[node {name}]\ndriver = raw\n{server.node()}{extra}\n"


def write_and_check(daemon, image=None):
    data = pattern(3 * MiB + 777)
    with opened(daemon.file("disk")) as fd:
        assert os.pwrite(fd, data, 4321) == len(data)
        os.fsync(fd)
        assert os.pread(fd, len(data), 4321) == data
        assert os.pread(fd, 100, SIZE - 50) == bytes(50)
    if image is not None:
        assert image.read_bytes()[4321:4321 + len(data)] == data


# ---- servers


@pytest.mark.parametrize("tcp", [False, True])
def test_nbdkit(place, tcp):
    image = place.image()
    daemon = place.mount(raw(nbdkit(place, "file", f"file={image}", tcp=tcp)))
    write_and_check(daemon, image)


def test_qemu_nbd(place):
    image = place.image()
    write_and_check(place.mount(raw(servers_nbd.qemu_nbd(place, image))), image)


def test_reads_that_come_in_pieces(place):
    """qemu-nbd answers with a chunk for each hole and each piece of data."""
    image = place.image()
    data = bytearray(SIZE)
    with open(image, "r+b") as file:
        for at in range(0, SIZE, 256 * KiB):
            file.seek(at)
            file.write(pattern(64 * KiB, at))
            data[at:at + 64 * KiB] = pattern(64 * KiB, at)
    daemon = place.mount(raw(servers_nbd.qemu_nbd(place, image)))
    assert daemon.file("disk").read_bytes() == data


def test_nbd_server(place):
    image = place.image()
    server = servers_nbd.nbd_server(place, image)
    daemon = place.mount("[node disk]\ndriver = raw\nfile.driver = nbd\nfile.server.type = inet\n"
                         f"file.server.host = 127.0.0.1\nfile.server.port = {server.address[1]}\n"
                         "file.export = disk\n")
    write_and_check(daemon, image)


def test_options_of_qemu(place):
    """On the command line, as JSON, with a socket relative to the graph file."""
    image = place.image()
    server = nbdkit(place, "file", f"file={image}")
    daemon = place.mount("""{"nodes": [{"driver": "nbd", "node-name": "disk",
                             "server": {"type": "unix", "path": "nbd.sock"}}]}""")
    write_and_check(daemon, image)
    daemon.stop()
    mountpoint = place.directory("again")
    daemon = place.start("--blockdev", f"nbd,node-name=n,server.type=unix,server.path={server.address}",
                         "--export", "fuse,id=disk,node-name=n,writable=on", "none", mountpoint,
                         mountpoints=[mountpoint])
    write_and_check(daemon, image)


def test_host_name_is_looked_up(place):
    server = nbdkit(place, "memory", "16M", tcp=True)
    daemon = place.mount("[node disk]\ndriver = nbd\n"
                         f"uri = nbd://localhost:{server.address[1]}/\n")
    write_and_check(daemon)


def test_uri_as_source(place):
    image = place.image()
    server = nbdkit(place, "file", f"file={image}")
    mountpoint = place.directory("mnt")
    place.start("--format=raw", server.uri, mountpoint, mountpoints=[mountpoint])
    name = os.listdir(mountpoint)[0]
    (mountpoint / name).open("r+b").write(b"hello")
    assert image.read_bytes()[:5] == b"hello"


def test_qcow2_on_top(place):
    image = place.path / "disk.qcow2"
    place.run("qemu-img", "create", "-q", "-f", "qcow2", image, "64M")
    with open(image, "r+b") as file:
        file.truncate(80 * MiB)
    server = nbdkit(place, "file", f"file={image}")
    daemon = place.mount(f"[node disk]\ndriver = qcow2\n{server.node()}")
    place.run("fio", "--name=v", f"--filename={daemon.file('disk')}", "--rw=randwrite", "--bsrange=512-64k",
              "--size=16M", "--verify=crc32c", "--verify_fatal=1", "--allow_file_create=0",
              "--fallocate=none", "--end_fsync=1")
    daemon.stop()
    place.run("qemu-img", "check", "-q", image)


# ---- what reaches the server


def log_of(path):
    return path.read_text(errors="replace") if path.exists() else ""


def count_in_log(path, request):
    return len(re.findall(rf"connection=\d+ {request} id=", log_of(path)))


@pytest.fixture
def logged(place):
    """A node on nbdkit's memory, whose log filter writes to server.txt."""
    log = place.path / "server.txt"
    server = nbdkit(place, "--filter=log", "memory", "16M", f"logfile={log}")
    return place.mount(raw(server)), log


def test_fsync_reaches_the_server(logged):
    daemon, log = logged
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, b"x", 0)
        before = count_in_log(log, "Flush")
        os.fsync(fd)
        assert count_in_log(log, "Flush") == before + 1
        os.fsync(fd)  # nothing was written since
        assert count_in_log(log, "Flush") == before + 1
    with opened(daemon.file("disk"), os.O_RDWR | os.O_DSYNC) as fd:
        os.pwrite(fd, b"y" * 4096, 0)
    assert re.search(r"Write id=\d+ offset=0x0 count=0x1000 fua=1", log_of(log))


def test_zeroes_and_holes_go_without_data(logged):
    daemon, log = logged
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, pattern(4 * MiB), 0)
        writes = count_in_log(log, "Write")
        punch_hole(fd, MiB, MiB)
        fileio.fallocate(fd, fileio.FALLOC_FL_ZERO_RANGE, 3 * MiB, MiB)
        assert os.pread(fd, MiB, MiB) == bytes(MiB)
        assert os.pread(fd, MiB, 3 * MiB) == bytes(MiB)
        assert os.pread(fd, MiB, 2 * MiB) == pattern(4 * MiB)[2 * MiB:3 * MiB]
    assert count_in_log(log, "Write") == writes
    assert count_in_log(log, "Zero") + count_in_log(log, "Trim") >= 2


def test_data_and_holes_are_found(place):
    image = place.image()
    with open(image, "r+b") as file:
        file.seek(4 * MiB)
        file.write(b"x" * MiB)
    daemon = place.mount(raw(nbdkit(place, "file", f"file={image}")))
    with opened(daemon.file("disk"), os.O_RDONLY) as fd:
        assert os.lseek(fd, 0, os.SEEK_DATA) == 4 * MiB
        assert os.lseek(fd, 4 * MiB, os.SEEK_HOLE) == 5 * MiB


def test_without_extents_all_is_data(place):
    daemon = place.mount(raw(nbdkit(place, "--filter=noextents", "memory", "16M")))
    with opened(daemon.file("disk"), os.O_RDONLY) as fd:
        assert os.lseek(fd, 0, os.SEEK_HOLE) == SIZE


def connections_in(log):
    return set(re.findall(r"connection=(\d+) (?:Read|Write) id=", log_of(log)))


def test_all_connections_carry_requests(place):
    """Of one thread; those of several threads are in tests/unit/test-drivers-nbd.c, where it is known who runs where."""
    log = place.path / "server.txt"
    server = nbdkit(place, "--filter=log", "memory", "16M", f"logfile={log}")
    daemon = place.mount(raw(server, "file.connections = 3\n"), "-o", "queues=1")
    data = pattern(SIZE)
    with opened(daemon.file("disk")) as fd:
        for at in range(0, SIZE, MiB):
            os.pwrite(fd, data[at:at + MiB], at)
        os.fsync(fd)
    assert daemon.file("disk").read_bytes() == data
    assert len(connections_in(log)) == 3


@pytest.mark.parametrize("minimum, maximum", [(512, 65536), (4096, 131072)])
def test_block_sizes_of_the_server_are_obeyed(place, minimum, maximum):
    server = nbdkit(place, "--filter=blocksize-policy", "memory", "16M", f"blocksize-minimum={minimum}",
                    f"blocksize-maximum={maximum}", "blocksize-preferred=4096", "blocksize-error-policy=error")
    write_and_check(place.mount(raw(server)))


def test_read_only_export(place):
    server = nbdkit(place, "-r", "memory", "16M")
    assert "read-only=on" in place.refuse(place.write("a.conf", raw(server)), place.directory("mnt"))
    daemon = place.mount(raw(server, "read-only = on\n"))
    assert daemon.file("disk").read_bytes() == bytes(SIZE)
    daemon.stop()
    daemon = place.mount(raw(server, "auto-read-only = on\n"), at="auto")
    with pytest.raises(OSError):
        os.open(daemon.file("disk"), os.O_RDWR)


def test_an_idle_node_uses_no_cpu(place):
    daemon = place.mount(raw(nbdkit(place, "memory", "16M")))
    write_and_check(daemon)
    time.sleep(0.2)

    def ticks():
        fields = open(f"/proc/{daemon.pid}/stat", encoding="ascii").read().rsplit(") ", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(1)
    assert ticks() - before <= 2


# ---- errors


@pytest.mark.parametrize("name, number", [("EPERM", errno.EPERM), ("EIO", errno.EIO), ("ENOSPC", errno.ENOSPC),
                                          ("EINVAL", errno.EINVAL)])
def test_errors_of_the_server(place, name, number):
    trigger = place.path / "fail"
    server = nbdkit(place, "--filter=error", "memory", "16M", f"error={name}", "error-rate=100%",
                    f"error-file={trigger}")
    daemon = place.mount(raw(server), stderr_allowed=".")
    with opened(daemon.file("disk")) as fd:
        os.pwrite(fd, b"x" * 4096, 0)
        trigger.touch()
        with pytest.raises(OSError) as caught:
            os.pwrite(fd, b"y" * 4096, 4096)
        assert caught.value.errno == number
        with pytest.raises(OSError) as caught:
            os.pread(fd, 4096, 0)
        assert caught.value.errno == number
        trigger.unlink()
        assert os.pread(fd, 1, 0) == b"x"
        os.fsync(fd)
    assert "write" in daemon.graph("errors")


def refused(place, options):
    return place.refuse(place.write("bad.conf", f"[node disk]\ndriver = nbd\n{options}\n"), place.directory("mnt"))


def test_no_server_no_export_other_protocol(place):
    message = refused(place, f"uri = nbd://127.0.0.1:{free_port()}/")
    assert "node 'disk'" in message and "refused" in message
    server = nbdkit(place, "--filter=exportname", "memory", "1M", "exportname-strict=true", "exportname=there")
    message = refused(place, f"uri = nbd+unix:///gone?socket={server.address}")
    assert "gone" in message and "export" in message
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def greet():
            client, _ = listener.accept()
            client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            client.close()

        threading.Thread(target=greet).start()
        assert "magic" in refused(place, f"uri = nbd://127.0.0.1:{port}/")


def test_a_silent_server_is_given_up(place):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        message = refused(place, f"uri = nbd://127.0.0.1:{listener.getsockname()[1]}/\ntimeout = 1")
    assert "no answer within 1 s" in message


def test_open_timeout_waits_for_the_server(place):
    server = nbdkit(place, "memory", "16M")
    with Relay(server.address, listen=str(place.path / "relay.sock")) as relay:
        relay.refuse()
        timer = threading.Timer(1, relay.accept)
        timer.start()
        daemon = place.mount(f"[node disk]\ndriver = nbd\nuri = nbd+unix:///?socket={relay.address}\n"
                             "open-timeout = 60\n")
        timer.join()
        write_and_check(daemon)
        daemon.stop()


def test_open_timeout_waits_for_a_server_that_starts_late(place):
    server = nbdkit(place, "memory", "16M", tcp=True)
    server.kill()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:  # nbdkit ends with the thread that starts it
        mounting = pool.submit(place.mount, f"[node disk]\ndriver = nbd\nuri = {server.uri}\nopen-timeout = 60\n")
        time.sleep(1)
        assert not mounting.done()
        server.start()
        write_and_check(mounting.result())


@pytest.mark.parametrize("options, words", [
    ("", ["'uri'", "required"]),
    ("uri = http://x/", ["'uri'", "nbd+unix"]),
    ("uri = nbd://a/\nserver.type = unix\nserver.path = x", ["exclude"]),
    ("server.type = fd", ["server.type", "inet"]),
    ("server.type = inet", ["server.host", "required"]),
    ("server.type = inet\nserver.host = a\nserver.too = 1", ["server.too"]),
    ("uri = nbd://a/b\nexport = c", ["'export'", "URI"]),
    ("uri = nbd://a/\nx-dirty-bitmap = b", ["x-dirty-bitmap", "not supported"]),
    ("uri = nbd://a/\nconnections = 17", ["connections"]),
    ("uri = nbd://a/\nresend-buffer = -1", ["resend-buffer"]),
    ("uri = nbd://a/\ntls-creds = none", ["tls-creds", "none"]),
    ("uri = nbd://a/\ntls-hostname = b", ["tls-hostname"]),
    ("uri = nbd://u:hunter2@a/", ["password"]),
])
def test_bad_options(place, options, words):
    message = refused(place, options)
    assert all(word in message for word in words), message
    assert "hunter2" not in message.replace(str(place.path), "")


def test_connections_need_multi_conn(place):
    server = nbdkit(place, "--filter=multi-conn", "memory", "16M", "multi-conn-mode=disable")
    assert "multi-conn" in refused(place, f"uri = {server.uri}\nconnections = 2")
    write_and_check(place.mount(raw(server)))


# ---- TLS


def make_x509(place, name, server_name="localhost"):
    """A CA, a server's and a client's certificate, in the directory `name`."""
    folder = place.directory(name)
    templates = {"ca": "cn = Test CA\nca\ncert_signing_key\n",
                 "server": f"cn = {server_name}\ndns_name = {server_name}\ntls_www_server\nencryption_key\nsigning_key\n",
                 "client": "cn = client\ntls_www_client\nencryption_key\nsigning_key\n"}
    for who, text in templates.items():
        (folder / f"{who}.info").write_text(text)
        place.run("certtool", "--generate-privkey", "--key-type=ecdsa", "--outfile", folder / f"{who}-key.pem")
        signer = ["--load-ca-certificate", folder / "ca-cert.pem", "--load-ca-privkey", folder / "ca-key.pem"]
        kind = ["--generate-self-signed"] if who == "ca" else ["--generate-certificate", *signer]
        place.run("certtool", *kind, "--load-privkey", folder / f"{who}-key.pem", "--template",
                  folder / f"{who}.info", "--outfile", folder / f"{who}-cert.pem")
    return folder


def x509_server(place, folder, name="tls"):
    return nbdkit(place, "--tls=require", f"--tls-certificates={folder}", "--tls-verify-peer", "memory", "16M",
                  tcp=True, name=name)


def x509_args(folder, port, host="localhost", more=""):
    return ["--object", f"tls-creds-x509,id=t,dir={folder},endpoint=client{more}",
            "--blockdev", f"nbd,node-name=disk,server.type=inet,server.host={host},server.port={port},tls-creds=t"]


def test_tls_x509(place):
    folder = make_x509(place, "pki")
    port = x509_server(place, folder).address[1]
    mountpoint = place.directory("mnt")
    export = ["--export", "fuse,id=disk,node-name=disk,writable=on", "none", mountpoint]
    daemon = place.start(*x509_args(folder, port), *export, mountpoints=[mountpoint])
    write_and_check(daemon)
    daemon.stop()
    other = make_x509(place, "other")
    # A server of another CA; a client that the server does not know; a name that is not the certificate's.
    assert "certificate" in place.refuse(*x509_args(other, port), *export)
    wrong_name = x509_server(place, make_x509(place, "named", "elsewhere.example"), "named").address[1]
    assert "certificate" in place.refuse(*x509_args(place.path / "named", wrong_name), *export)
    # Without verification the name does not matter.
    daemon = place.start(*x509_args(place.path / "named", wrong_name, more=",verify-peer=off"), *export,
                         mountpoints=[mountpoint])
    write_and_check(daemon)
    with qmp.connect(daemon) as control:
        assert "certificates are not verified" in control("x-blockgraph-graph", format="text")


def test_tls_by_uri(place):
    folder, other = make_x509(place, "pki"), make_x509(place, "other")
    uri = f"nbds://localhost:{x509_server(place, folder).address[1]}/"
    node = f"[node disk]\ndriver = nbd\nuri = {uri}\n"
    creds = ["--object", f"tls-creds-x509,id=t,dir={folder},endpoint=client"]
    daemon = place.mount(node + "tls-creds = t\n", *creds)
    write_and_check(daemon)
    daemon.stop()
    # libnbd would take any certificate where no CA is named.
    open_to_all = nbdkit(place, "--tls=require", f"--tls-certificates={folder}", "memory", "16M", tcp=True, name="all")
    uri_of_all = f"nbds://localhost:{open_to_all.address[1]}/"
    assert "verifies a certificate by the CA" in refused(place, f"uri = {uri_of_all}")
    source = place.write("nodir.conf", f"[node disk]\ndriver = nbd\nuri = {uri_of_all}\ntls-creds = t\n")
    assert "verifies a certificate by the CA" in place.refuse("--object", "tls-creds-x509,id=t,endpoint=client", source,
                                                              place.directory("mnt"))
    source = place.write("other.conf", node + "tls-creds = t\n")
    wrong = ["--object", f"tls-creds-x509,id=t,dir={other},endpoint=client"]
    assert "certificate" in place.refuse(*wrong, source, place.directory("mnt"))


def test_tls_over_a_unix_socket(place):
    """There libnbd verifies no certificate, so it has to be said that nobody need."""
    folder = make_x509(place, "pki")
    server = nbdkit(place, "--tls=require", f"--tls-certificates={folder}", "memory", "16M")
    creds = f"tls-creds-x509,id=t,dir={folder},endpoint=client"
    for scheme in ("nbds+unix", "nbd+unix"):
        text = f"[node disk]\ndriver = nbd\nuri = {scheme}:///?socket={server.address}\ntls-creds = t\n"
        source = place.write("refused.conf", text)
        assert "verifies no certificate" in place.refuse("--object", creds, source, place.directory("mnt"))
        daemon = place.mount(text, "--object", f"{creds},verify-peer=off")
        write_and_check(daemon)
        assert "certificates are not verified" in daemon.graph("graph.txt")
        daemon.stop()
    assert "verifies no certificate" in refused(place, f"uri = nbds+unix:///?socket={server.address}")
    assert "verifies no certificate" in refused(place, "uri = nbds+vsock://1:1/")


def test_nobody_listens_on_vsock(place):
    assert "nbd+vsock://1:1/" in refused(place, "uri = nbd+vsock://1:1/\ntimeout = 5")


def test_tls_is_not_given_up(place):
    """A server without TLS is refused."""
    folder = make_x509(place, "pki")
    server = nbdkit(place, "memory", "16M", tcp=True)
    message = place.refuse(*x509_args(folder, server.address[1]), "none", place.directory("mnt"))
    assert "TLS" in message


def test_tls_psk(place):
    folder = place.directory("psk")
    place.run("psktool", "-u", "alice", "-p", folder / "keys.psk")
    server = nbdkit(place, "--tls=require", f"--tls-psk={folder}/keys.psk", "memory", "16M")
    node = f"nbd,node-name=disk,server.type=unix,server.path={server.address},tls-creds=t"
    mountpoint = place.directory("mnt")
    rest = ["--blockdev", node, "--export", "fuse,id=disk,node-name=disk,writable=on", "none", mountpoint]
    daemon = place.start("--object", f"tls-creds-psk,id=t,dir={folder},username=alice,endpoint=client", *rest,
                         mountpoints=[mountpoint])
    write_and_check(daemon)
    daemon.stop()
    place.refuse("--object", f"tls-creds-psk,id=t,dir={folder},username=bob,endpoint=client", *rest)
