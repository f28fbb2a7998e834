"""The drivers http, https and ftp under a mount, with real servers.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import base64
import errno
import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

import harness
import hung_server
import servers_http
from fileio import opened, pattern
from relay import Relay, TO_CLIENT
from servers_http import FtpServer, Lighttpd, Nginx, PythonServer
from system import KiB, MiB

SIZE = 5 * MiB + 123


def graph_of(url, *options, driver=None):
    driver = driver or url.partition(":")[0]
    return "\n".join(["[node disk]", f"driver = {driver}", f"url = {url}", *options]) + "\n"


def secret(place, name, text):
    path = place.write(name, text)
    path.chmod(0o600)
    return ["--object", f"secret,id={name},file={path}"]


def refusal(place, url, *options, driver=None, args=()):
    source = place.write("refused.conf", graph_of(url, *options, driver=driver))
    message = place.refuse(*args, source, place.directory("refused"))
    assert "node 'disk'" in message
    return message


@pytest.fixture
def root(place):
    path = place.path / "www"
    path.mkdir()
    (path / "disk").write_bytes(pattern(SIZE))
    return path


@pytest.fixture
def data(root):
    return (root / "disk").read_bytes()


@pytest.fixture
def nginx(place, root):
    with Nginx(place.path / "nginx", root) as server:
        yield server


def url_of(server, path="disk"):
    return f"http://127.0.0.1:{server.port}/{path}"


def check_content(path, data, seed=1, reads=200):
    """Reads at random offsets, then all of it in order."""
    rng = random.Random(seed)
    with opened(path, os.O_RDONLY) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(reads):
            offset = rng.randrange(len(data))
            n = rng.choice((1, 512, 4 * KiB, 64 * KiB, MiB))
            assert os.pread(fd, n, offset) == data[offset:offset + n], f"{n} bytes at {offset}"
    assert path.read_bytes() == data


# ---- Content

@pytest.mark.parametrize("kind", [Nginx, Lighttpd])
@pytest.mark.parametrize("options", [[], ["readahead = 0"], ["connections = 1"], ["connections = 64", "readahead = 4M"]])
def test_content(place, root, data, kind, options):
    with kind(place.path / "server", root) as server:
        daemon = place.mount(graph_of(url_of(server), *options))
        assert os.stat(daemon.file("disk")).st_size == SIZE
        check_content(daemon.file("disk"), data)
        assert url_of(server) in daemon.graph("graph.txt")
        daemon.stop()


def test_many_readers(place, nginx, data):
    daemon = place.mount(graph_of(url_of(nginx)), "-o", "queues=4")
    problems = []

    def read(seed):
        try:
            check_content(daemon.file("disk"), data, seed, reads=50)
        except BaseException as error:  # pylint: disable=broad-except
            problems.append(error)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_empty_and_tiny(place, root, nginx):
    for name, content in (("empty", b""), ("one", b"x")):
        (root / name).write_bytes(content)
        daemon = place.mount(graph_of(url_of(nginx, name)), at=name)
        assert daemon.file("disk").read_bytes() == content
        daemon.stop()


def test_qcow2_on_top(place, root, nginx, data):
    place.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", root / "disk", root / "image.qcow2")
    daemon = place.mount("[node disk]\ndriver = qcow2\nread-only = on\nfile.driver = http\n"
                         f"file.url = {url_of(nginx, 'image.qcow2')}\n")
    content = daemon.file("disk").read_bytes()
    assert content[:SIZE] == data and not any(content[SIZE:])


def test_ftp(place, root, data):
    with FtpServer(place.path / "ftp", root) as server:
        daemon = place.mount(graph_of(f"ftp://127.0.0.1:{server.port}/disk"))
        check_content(daemon.file("disk"), data, reads=30)
        os.utime(root / "disk", (1, 1))
        with opened(daemon.file("disk"), os.O_RDONLY | os.O_DIRECT) as fd:
            with pytest.raises(OSError) as error:
                os.preadv(fd, [bytearray(4096)], 0)
        assert error.value.errno == errno.ESTALE
        daemon.stderr_allowed = "has changed"


def test_ftp_password(place, root, data):
    with FtpServer(place.path / "ftp", root) as server:
        url = f"ftp://user@127.0.0.1:{server.port}/disk"
        daemon = place.mount(graph_of(url, "password-secret = s"), *secret(place, "s", "open sesame"))
        check_content(daemon.file("disk"), data, reads=10)
        daemon.stop()
        assert "denied" in refusal(place, url).lower()


# ---- What is refused

@pytest.mark.parametrize("path, words", [
    ("nothing", "404"), ("busy/disk", "503"), ("auth/disk", "401"), ("cookie/disk", "403"), ("header/disk", "403"),
    ("loop/disk", "redirects"), ("tofile/x", "file"), ("toftp/x", "ftp"), ("plain/disk", "no ranges"),
])
def test_refused_by_the_server(place, nginx, path, words):
    assert words in refusal(place, url_of(nginx, path), "timeout = 2")


def test_a_server_without_ranges_is_refused(place, root):
    with PythonServer(place.path / "server", root) as server:
        assert "no ranges" in refusal(place, url_of(server))


@pytest.mark.parametrize("options, words", [
    (["url = http://user:open@127.0.0.1/x"], "password in a URL"),
    (["url = https://127.0.0.1/x"], "'http' takes URLs that begin with http://"),
    (["url = http://"], "option 'url'"),
    (["url = http://127.0.0.1:1/x"], "127.0.0.1"),
    (["url = http://127.0.0.1/x", "connections = 0"], "connections"),
    (["url = http://127.0.0.1/x", "connections = 65"], "connections"),
    (["url = http://127.0.0.1/x", "readahead = 1G"], "readahead"),
    (["url = http://127.0.0.1/x", "readahead = x"], "readahead"),
    (["url = http://127.0.0.1/x", "password-secret = none"], "password-secret"),
    (["url = http://127.0.0.1/x", "cookie-secret = none"], "cookie-secret"),
    (["url = http://127.0.0.1/x", "header = nothing"], "header"),
    (["url = http://127.0.0.1/x", "tls-creds = none"], "tls-creds"),
    (["url = http://127.0.0.1/x", "sslverify = maybe"], "sslverify"),
    (["url = http://127.0.0.1/x", "read-only = off"], "cannot write"),
    (["url = http://127.0.0.1/x", "cookies = 1"], "cookie"),
    (["url = http://127.0.0.1/x", "timeout = -1"], "timeout"),
    (["url = http://127.0.0.1/x", "resend-buffer = 1M"], "resend-buffer"),
    ([], "url"),
])
def test_bad_options(place, options, words):
    source = place.write("refused.conf", "\n".join(["[node disk]", "driver = http", *options]) + "\n")
    message = place.refuse(source, place.directory("refused"))
    assert words in message and "node 'disk'" in message and "open@" not in message


# ---- Who is asking

def test_credentials_cookie_header(place, nginx, data):
    secrets = secret(place, "p", "open sesame") + secret(place, "c", "session=42")
    for path, options in (("auth/disk", ["username = user", "password-secret = p"]),
                          ("cookie/disk", ["cookie-secret = c"]), ("cookie/disk", ["cookie = session=42"]),
                          ("header/disk", ["header = X-Test: a:b"]), ("moved/disk", [])):
        daemon = place.mount(graph_of(url_of(nginx, path), *options), *secrets)
        assert daemon.file("disk").read_bytes() == data
        everything = "".join(daemon.graph(name) for name in
                             ("graph.txt", "graph.json", "graph.dot", "nodes/disk/options.json"))
        assert "sesame" not in everything
        daemon.stop()
    message = refusal(place, url_of(nginx, "auth/disk?token=geheim"), "username = user", "password-secret = c", args=secrets)
    assert "401" in message and "session" not in message and "geheim" not in message


def test_netrc(place, nginx, data):
    (place.path / ".netrc").write_text("machine 127.0.0.1 login user password \"open sesame\"\n")
    daemon = place.mount(graph_of(url_of(nginx, "auth/disk")), env={"HOME": str(place.path)})
    assert daemon.file("disk").read_bytes() == data


def test_proxy_of_the_environment(place, nginx, data):
    # nginx takes the whole URL in the request line, as a proxy has it.
    daemon = place.mount(graph_of("http://host.invalid/disk"), env={"http_proxy": f"http://127.0.0.1:{nginx.port}"})
    assert daemon.file("disk").read_bytes() == data


def test_password_of_a_proxy(place, root, data):
    word = base64.b64encode(b"user:geheim").decode()
    extra = f'if ($http_proxy_authorization != "Basic {word}") {{ return 407; }}'
    with Nginx(place.path / "proxy", root, extra=extra) as proxy:
        def env(password):
            return {"http_proxy": f"http://user:{password}@127.0.0.1:{proxy.port}"}

        url = "http://host.invalid/disk"
        daemon = place.mount(graph_of(url, "timeout = 5", "reconnect-delay = 0"), env=env("geheim"),
                             stderr_allowed="requests fail")
        assert daemon.file("disk").read_bytes() == data
        proxy.kill()
        with pytest.raises(OSError):
            read_direct(daemon.file("disk"), 0, 4096)
        seen = "".join(daemon.graph(name) for name in ("graph.txt", "graph.json", "graph.dot", "errors", "metrics",
                                                       "nodes/disk/options.json"))
        seen += daemon.said() + Path(f"/proc/{daemon.pid}/cmdline").read_text()
        assert "host.invalid" in seen and "geheim" not in seen and word not in seen
        daemon.stop()
        proxy.start()
        source = place.write("wrong.conf", graph_of(url))
        message = place.run(place.binary, "-f", source, place.directory("wrong"), env=env("falsch"), check=False).stderr
        assert "407" in message and "falsch" not in message


# ---- TLS

@pytest.fixture
def certificates(place):
    directory = place.path / "tls"
    servers_http.make_certificates(place, directory)
    return directory


def test_https(place, root, data, certificates):
    creds = ["--object", f"tls-creds-x509,id=t,dir={certificates},endpoint=client"]
    with Nginx(place.path / "nginx", root, certificates / "good") as server:
        url = f"https://127.0.0.1:{server.port}/disk"
        daemon = place.mount(graph_of(url, "tls-creds = t"), *creds)
        check_content(daemon.file("disk"), data)
        daemon.stop()
        assert "HTTP/2.0" in server.requests()[-1]
        assert "certificate" in refusal(place, url)  # of a CA that is not known
        daemon = place.mount(graph_of(url, "sslverify = off"))
        assert daemon.file("disk").read_bytes() == data
        assert "not verified" in daemon.graph("graph.txt")
        daemon.stop()
    with Nginx(place.path / "nginx2", root, certificates / "other") as server:
        url = f"https://127.0.0.1:{server.port}/disk"
        assert "name" in refusal(place, url, "tls-creds = t", args=creds)


def test_client_certificate(place, root, data, certificates):
    ours = place.directory("ours")
    shutil.copy(certificates / "ca-cert.pem", ours)
    extra = f"ssl_client_certificate {certificates}/ca-cert.pem; ssl_verify_client on;"
    creds = ["--object", f"tls-creds-x509,id=t,dir={ours},endpoint=client"]
    with Nginx(place.path / "nginx", root, certificates / "good", extra=extra) as server:
        url = f"https://127.0.0.1:{server.port}/disk"
        assert "400" in refusal(place, url, "tls-creds = t", args=creds)
        shutil.copy(certificates / "other.pem", ours / "client-cert.pem")
        shutil.copy(certificates / "other.key", ours / "client-key.pem")
        daemon = place.mount(graph_of(url, "tls-creds = t"), *creds)
        assert daemon.file("disk").read_bytes() == data
        daemon.stop()


def test_qcow2_on_https(place, root, data, certificates):
    place.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", root / "disk", root / "image.qcow2")
    with Nginx(place.path / "nginx", root, certificates / "good") as server:
        daemon = place.mount("[node disk]\ndriver = qcow2\nread-only = on\nfile.driver = https\n"
                             f"file.url = https://127.0.0.1:{server.port}/image.qcow2\nfile.tls-creds = t\n",
                             "--object", f"tls-creds-x509,id=t,dir={certificates},endpoint=client")
        assert daemon.file("disk").read_bytes()[:SIZE] == data
        daemon.stop()


# ---- Outages

def read_direct(path, offset, n):
    """Past the kernel's cache."""
    with opened(path, os.O_RDONLY | os.O_DIRECT) as fd:
        return os.pread(fd, n, offset)


@pytest.mark.limit(120)
def test_server_killed_while_reading(place, nginx, data):
    daemon = place.mount(graph_of(url_of(nginx), "timeout = 10"), stderr_allowed="requests fail if")
    stop, problems, rounds = threading.Event(), [], [0]

    def read():
        rng = random.Random(1)
        try:
            while not stop.is_set():
                offset = rng.randrange(SIZE // 4096) * 4096
                assert read_direct(daemon.file("disk"), offset, 64 * KiB) == data[offset:offset + 64 * KiB]
                rounds[0] += 1
        except BaseException as error:  # pylint: disable=broad-except
            problems.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(harness.count(3, 20)):
        before = rounds[0]
        while rounds[0] < before + 10 and thread.is_alive():
            time.sleep(0.01)
        nginx.kill()
        time.sleep(0.2)
        nginx.start()
    before = rounds[0]
    while rounds[0] < before + 10 and thread.is_alive():
        time.sleep(0.01)
    stop.set()
    thread.join()
    assert not problems
    assert "requests fail if it is not back" in daemon.said()


def test_dead_server_fails_reads_after_the_delay_and_takes_no_cpu(place, nginx, data):
    daemon = place.mount(graph_of(url_of(nginx), "timeout = 5", "reconnect-delay = 1"),
                         stderr_allowed="requests fail if")
    assert daemon.file("disk").read_bytes() == data
    idle = ticks_in_a_second(daemon)
    nginx.kill()
    with pytest.raises(OSError) as error:
        read_direct(daemon.file("disk"), 0, 4096)
    assert error.value.errno == errno.EIO
    dead = ticks_in_a_second(daemon)
    assert idle <= 2 and dead <= 4  # of 10 ms
    assert "connect" in daemon.graph("errors")
    nginx.start()
    deadline = time.monotonic() + 30 * harness.TIME_SCALE
    while True:
        try:
            assert read_direct(daemon.file("disk"), 0, 4096) == data[:4096]
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def cpu_ticks(daemon):
    with open(f"/proc/{daemon.pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def ticks_in_a_second(daemon):
    before = cpu_ticks(daemon)
    time.sleep(1)
    return cpu_ticks(daemon) - before


@pytest.mark.parametrize("section", hung_server.SECTIONS)
def test_hung_server_and_a_drained_section(place, nginx, data, section):
    remote = f"[node remote]\ndriver = http\nurl = {url_of(nginx)}\nreadahead = 0\ntimeout = 0\n"
    daemon = place.mount(hung_server.graph(place, remote, SIZE))
    hung_server.check(daemon, section, nginx.hang, nginx.resume, data)


def test_sigterm_while_the_server_hangs(place, nginx):
    daemon = place.mount(graph_of(url_of(nginx), "timeout = 2", "on-outage = pause"),
                         stderr_allowed="requests wait|the daemon is to end")
    nginx.hang()
    failed = []

    def read():
        try:
            read_direct(daemon.file("disk"), 0, 4096)
        except OSError as error:
            failed.append(error.errno)

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.2)
    daemon.stop(signal.SIGTERM)
    reader.join()
    assert failed
    nginx.resume()


@pytest.mark.limit(300)
def test_cuts(place, nginx, data):
    """The connection breaks at random bytes of the replies."""
    rng = random.Random(7)
    with Relay(("127.0.0.1", nginx.port)) as relay:
        daemon = place.mount(graph_of(f"http://127.0.0.1:{relay.address[1]}/disk"), stderr_allowed="requests fail if")
        for _ in range(harness.count(20, 500)):
            offset = rng.randrange(SIZE // 4096) * 4096
            n = rng.choice((4 * KiB, 128 * KiB, MiB))
            relay.cut_after(rng.randrange(n + 300), TO_CLIENT)
            assert read_direct(daemon.file("disk"), offset, n) == data[offset:offset + n]
        daemon.stop()


@pytest.mark.limit(300)
def test_cuts_within_the_headers(place, nginx, data):
    """What is not there cannot be wrong: the reply is asked for again."""
    with Relay(("127.0.0.1", nginx.port)) as relay:
        daemon = place.mount(graph_of(f"http://127.0.0.1:{relay.address[1]}/disk", "readahead = 0", "connections = 1"),
                             stderr_allowed="requests fail if")
        for after in range(0, 400, 400 // harness.count(40, 400)):
            relay.cut_after(after, TO_CLIENT)
            assert read_direct(daemon.file("disk"), 0, 4 * KiB) == data[:4 * KiB]
        daemon.stop()


def test_slow_loris(place, nginx):
    with Relay(("127.0.0.1", nginx.port)) as relay:
        daemon = place.mount(graph_of(f"http://127.0.0.1:{relay.address[1]}/disk", "timeout = 2", "reconnect-delay = 1"),
                             stderr_allowed="no answer within 2 s")
        relay.rate = 20
        with pytest.raises(OSError) as error:
            read_direct(daemon.file("disk"), 0, 64 * KiB)
        assert error.value.errno == errno.EIO
        relay.rate = 0
        daemon.stop()


def test_changed_for_ever(place, root, nginx, data):
    daemon = place.mount(graph_of(url_of(nginx)), stderr_allowed="has changed")
    assert read_direct(daemon.file("disk"), 0, 4096) == data[:4096]
    other = pattern(SIZE, 2)
    (root / "new").write_bytes(other)
    os.utime(root / "new", (1, 1))
    os.rename(root / "new", root / "disk")
    for _ in range(3):
        with pytest.raises(OSError) as error:
            read_direct(daemon.file("disk"), MiB, 4096)
        assert error.value.errno == errno.ESTALE
    assert "has changed" in daemon.graph("errors")
    daemon.stop()


def test_changed_during_an_outage(place, root, nginx):
    daemon = place.mount(graph_of(url_of(nginx)), stderr_allowed="has changed|requests fail if")
    read_direct(daemon.file("disk"), 0, 4096)
    nginx.kill()
    with open(root / "disk", "ab") as more:
        more.write(b"x")
    got = []

    def read():
        try:
            read_direct(daemon.file("disk"), MiB, 4096)
        except OSError as error:
            got.append(error.errno)

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.3)
    nginx.start()
    reader.join()
    assert got == [errno.ESTALE]


def test_example(place, root, nginx, data):
    """examples/web.conf, with our server's address."""
    text = (Path(__file__).resolve().parents[2] / "examples" / "web.conf").read_text()
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"backing_file={root}/disk,backing_fmt=raw",
              "layer.qcow2")
    daemon = place.mount(text.replace("http://127.0.0.1:8080/base.raw", url_of(nginx)))
    assert sorted(os.listdir(daemon.mountpoints[0])) == ["base", "vm.img"]
    with opened(daemon.file("vm.img")) as fd:
        assert os.pread(fd, 4096, MiB) == data[MiB:MiB + 4096]
        os.pwrite(fd, b"mine", MiB)
        os.fsync(fd)
    assert daemon.file("base").read_bytes() == data
    daemon.stop()
