"""Subjects whose node is on a server: nbdkit, tgtd, nginx.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import subjects
from storage import run

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "functional"))

from relay import Relay  # noqa: E402

MIB = 1 << 20
LINK_DELAY = 0.020  # s, there and back


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for_port(port):
    for _ in range(500):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise SystemExit(f"bench: nobody listens on port {port}")


class BehindTgt(subjects.FuseDaemon):
    """A daemon whose node is LUN 1 of a tgtd of its own, on loopback. The CPU time is the daemon's alone."""

    NAME = "iqn.2026-11.org.blockgraph.bench:disk"

    def __init__(self, daemon, image, port):
        super().__init__(daemon.name, daemon.path.parent, daemon.size, daemon.command)
        self.path = daemon.path
        self.image = image
        self.port = port
        self.tgtd = None

    @classmethod
    def node(cls, port):
        return f"driver=iscsi,node-name=n,transport=tcp,portal=127.0.0.1:{port},target={cls.NAME},lun=1"

    def start(self):
        env = {**os.environ, "TGT_IPC_SOCKET": f"{self.path}.tgt"}
        with open(f"{self.path}.tgt.log", "w", encoding="utf-8") as log:
            self.tgtd = subprocess.Popen(["tgtd", "-f", "--iscsi", f"portal=127.0.0.1:{self.port}", "-C", "0"],
                                         stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        wait_for_port(self.port)
        for words in (f"target --op new --tid 1 -T {self.NAME}",
                      f"logicalunit --op new --tid 1 --lun 1 -b {self.image}",
                      "target --op bind --tid 1 -I ALL"):
            subprocess.run(["tgtadm", "--lld", "iscsi", "--mode", *words.split()], check=True, env=env)
        super().start()

    def stop(self):
        super().stop()
        if self.tgtd:
            self.tgtd.kill()
            self.tgtd.wait()


def of_iscsi(arguments, work, fast, _stack):
    size, chosen = arguments.size * MIB, []
    for make, name in ((lambda *a: subjects.blockgraphfs(arguments, *a), "blockgraphfs"), (subjects.qemu_storage_daemon, "qsd")):
        image, port = subjects.make_image(fast.directory / f"iscsi-{name}.img", size), free_port()
        chosen.append(BehindTgt(make(work, size, BehindTgt.node(port)), image, port))
    return chosen


class BehindServer:
    """A subject with a server of its own, nbdkit's memory plugin on a Unix socket."""

    def __init__(self, work, size, make):
        self.socket = work / f"nbd-{len(list(work.glob('nbd-*.taken')))}.sock"
        self.command = ["nbdkit", "-f", "-U", self.socket, "memory", str(size)]
        self.work = work
        self.subject = make(f"nbd+unix:///?socket={self.socket}")
        self.socket.with_suffix(".taken").touch()  # for the next one's number
        self.server = None
        self.name = self.subject.name

    def __enter__(self):
        self.server = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not self.socket.exists():
            if self.server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("bench: nbdkit did not start")
            time.sleep(0.01)
        return self.subject.__enter__()

    def __exit__(self, *exception):
        self.subject.__exit__(*exception)
        self.server.terminate()
        self.server.wait()


def of_nbd(arguments, work, _fast, _stack):
    size = arguments.size * MIB

    def nbd_blockdev(uri):
        return f"driver=nbd,node-name=n,server.type=unix,server.path={uri.split('socket=')[1]}"

    return [BehindServer(work, size, lambda uri: subjects.blockgraphfs(arguments, work, size, nbd_blockdev(uri))),
            BehindServer(work, size, lambda uri: subjects.qemu_storage_daemon(work, size, nbd_blockdev(uri))),
            BehindServer(work, size, lambda uri: subjects.FuseDaemon("nbdfuse", work, size, ["nbdfuse", "@MOUNTPOINT@", uri]))]


NGINX = """\
daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log; user root;
events {{ worker_connections 256; }}
http {{ access_log off; sendfile on; keepalive_requests 100000000;
client_body_temp_path {dir}/1; proxy_temp_path {dir}/2; fastcgi_temp_path {dir}/3; uwsgi_temp_path {dir}/4;
scgi_temp_path {dir}/5;
server {{ listen 127.0.0.1:{port}; root {root}; }} }}
"""


class Nginx:
    """Serves a directory on a free port of the loopback interface."""

    def __init__(self, work, root):
        self.port = free_port()
        self.dir = work / f"nginx-{self.port}"
        self.dir.mkdir()
        (self.dir / "nginx.conf").write_text(NGINX.format(dir=self.dir, port=self.port, root=root))

    def __enter__(self):
        self.process = subprocess.Popen(["nginx", "-c", self.dir / "nginx.conf", "-p", f"{self.dir}/"],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(self.port)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


class Curl(subjects.Subject):
    """What the server gives to one who reads once, in order, and keeps nothing."""
    name = "curl -o /dev/null"

    def __init__(self, url, size):
        super().__init__(size)
        self.url = url

    def measure(self, cell, runtime):
        if cell.rw != "read":
            return None
        start, done = time.monotonic(), 0
        while time.monotonic() - start < runtime:
            run("curl", "-s", "-o", "/dev/null", self.url)
            done += self.size
        return done / MIB / (time.monotonic() - start)


def http_daemon(arguments, work, size, port, name, *options):
    node = ["driver=http,node-name=n,read-only=on", f"url=http://127.0.0.1:{port}/http.img", *options]
    subject = subjects.blockgraphfs(arguments, work, size, ",".join(node))
    subject.command = [str(word).replace("writable=on", "writable=off") for word in subject.command]
    if name:
        subject.name, subject.path = name, work / f"{name.replace(' ', '-')}.mnt"
    return subject


def of_http(arguments, work, fast, stack):
    """QEMU's http driver is not among them: version 7.2 stops to answer as soon as several reads are under way."""
    size = arguments.size * MIB
    subjects.make_image(fast.directory / "http.img", size)
    port = stack.enter_context(Nginx(work, fast.directory)).port
    return [http_daemon(arguments, work, size, port, None), Curl(f"http://127.0.0.1:{port}/http.img", size)]


def of_link(arguments, work, fast, stack):
    """The same behind a delay, against what one request at a time gives."""
    size = arguments.size * MIB
    subjects.make_image(fast.directory / "http.img", size)
    server = stack.enter_context(Nginx(work, fast.directory))
    relay = stack.enter_context(Relay(("127.0.0.1", server.port)))
    relay.delay = LINK_DELAY / 2
    port = relay.address[1]
    return [http_daemon(arguments, work, size, port, None),
            http_daemon(arguments, work, size, port, "one request at a time", "readahead=0", "connections=1")]


KINDS = {"nbd": of_nbd, "iscsi": of_iscsi, "http": of_http, "link": of_link}
