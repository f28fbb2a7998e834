"""HTTP and FTP servers for the tests: nginx, lighttpd, python's, pyftpdlib's, and one that misbehaves as told.

Each is started in a directory of the test's, on a free port of 127.0.0.1, and ended by its process id.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import harness
from system import free_port

BASE_CONF = """\
daemon off;
pid {dir}/pid;
error_log {dir}/error.log;
user root;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
    access_log {dir}/access.log combined;
    client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3;
    uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;
    keepalive_requests 100000;
    server {{
        listen 127.0.0.1:{port} {listen};
        {tls}
        root {root};
        location /plain/ {{ alias {root}/; max_ranges 0; }}
        location /auth/ {{ alias {root}/; auth_basic "here"; auth_basic_user_file {dir}/users; }}
        location /cookie/ {{ if ($http_cookie != "session=42") {{ return 403; }} rewrite ^/cookie/(.*)$ /$1 last; }}
        location /header/ {{ if ($http_x_test != "a:b") {{ return 403; }} rewrite ^/header/(.*)$ /$1 last; }}
        location /moved/ {{ rewrite ^/moved/(.*)$ /$1 redirect; }}
        location /loop/ {{ return 302 /loop/x; }}
        location /tofile/ {{ return 302 file:///etc/passwd; }}
        location /toftp/ {{ return 302 ftp://127.0.0.1/x; }}
        location /busy/ {{ return 503; }}
        {extra}
    }}
}}
"""


class Server:
    """A server's process. `command()` says how to start it; start() again after a kill() keeps the port."""

    def __init__(self, directory):
        self.dir = directory
        directory.mkdir(exist_ok=True)
        self.port = free_port()
        self.process = None

    def start(self):
        with open(self.dir / "said", "ab") as said:
            self.process = subprocess.Popen(self.command(), cwd=self.dir, stdin=subprocess.DEVNULL, stdout=said,
                                            stderr=said, start_new_session=True)
        harness.wait_for_port(self.port, self.process, self.dir / "said")
        return self

    def _signal(self, number):
        # With its workers, which are in its session; by their group, which is ours alone.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self):
        self._signal(signal.SIGKILL)
        self.process.wait()

    def hang(self):
        self._signal(signal.SIGSTOP)

    def resume(self):
        self._signal(signal.SIGCONT)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.kill()


class Nginx(Server):
    def __init__(self, directory, root, certificate=None, extra=""):
        super().__init__(directory)
        tls = f"ssl_certificate {certificate}.pem; ssl_certificate_key {certificate}.key;" if certificate else ""
        (directory / "users").write_text("user:{PLAIN}open sesame\n")
        (directory / "nginx.conf").write_text(BASE_CONF.format(
            dir=directory, port=self.port, root=root, tls=tls, listen="ssl http2" if certificate else "",
            extra=extra))

    def command(self):
        return ["nginx", "-c", str(self.dir / "nginx.conf"), "-p", f"{self.dir}/"]

    def requests(self):
        return (self.dir / "access.log").read_text().splitlines()


class Lighttpd(Server):
    def __init__(self, directory, root):
        super().__init__(directory)
        (directory / "lighttpd.conf").write_text(
            f'server.document-root = "{root}"\nserver.port = {self.port}\nserver.bind = "127.0.0.1"\n'
            f'server.errorlog = "{directory}/error.log"\n')

    def command(self):
        return ["lighttpd", "-D", "-f", str(self.dir / "lighttpd.conf")]


class PythonServer(Server):
    """Without ranges."""

    def __init__(self, directory, root):
        super().__init__(directory)
        self.root = root

    def command(self):
        return [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(self.root),
                str(self.port)]


class FtpServer(Server):
    def __init__(self, directory, root):
        super().__init__(directory)
        self.root = root

    def command(self):
        code = ("import sys\n"
                "from pyftpdlib.authorizers import DummyAuthorizer\n"
                "from pyftpdlib.handlers import FTPHandler\n"
                "from pyftpdlib.servers import FTPServer\n"
                "a = DummyAuthorizer(); a.add_user('user', 'open sesame', sys.argv[2]); a.add_anonymous(sys.argv[2])\n"
                "FTPHandler.authorizer = a\n"
                "FTPServer(('127.0.0.1', int(sys.argv[1])), FTPHandler).serve_forever()\n")
        return ["/usr/bin/python3", "-W", "ignore", "-c", code, str(self.port), str(self.root)]


# ---- Certificates

def make_certificates(place, directory):
    """A CA, and certificates it signed: "good" for 127.0.0.1, "other" for another host. `directory` is for
    tls-creds-x509."""
    directory.mkdir()
    place.run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test CA",
              "-keyout", directory / "ca-key.pem", "-out", directory / "ca-cert.pem")
    for name, host in (("good", "IP:127.0.0.1"), ("other", "DNS:elsewhere.example")):
        (directory / f"{name}.ext").write_text(f"subjectAltName={host}\n")
        place.run("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
                  "-keyout", directory / f"{name}.key", "-out", directory / f"{name}.csr")
        place.run("openssl", "x509", "-req", "-in", directory / f"{name}.csr", "-days", "2", "-CAcreateserial",
                  "-CA", directory / "ca-cert.pem", "-CAkey", directory / "ca-key.pem",
                  "-extfile", directory / f"{name}.ext", "-out", directory / f"{name}.pem")


# ---- The one that misbehaves

class Request:
    def __init__(self, head):
        lines = head.decode("latin-1").split("\r\n")
        self.method, self.path, _ = lines[0].split(" ", 2)
        self.headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        self.range = (int(found[1]), int(found[2]) + 1) if found else None


class Evil:
    """Serves `data` with ranges, but does to each request what behave(evil, connection, request) does first: it
    returns True where it has answered. A probe of one byte is told by request.range == (0, 1)."""

    def __init__(self, data, etag='"1"', behave=None):
        self.data = data
        self.etag = etag
        self.behave = behave
        self.requests = []
        self.closing = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/disk"
        self.connections = []
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self.threads.append(thread)
            thread.start()

    def _serve(self, connection):
        buffer = b""
        with contextlib.suppress(OSError), connection:
            while not self.closing.is_set():
                while b"\r\n\r\n" not in buffer:
                    more = connection.recv(65536)
                    if not more:
                        return
                    buffer += more
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                request = Request(head)
                self.requests.append(request)
                if not (self.behave and self.behave(self, connection, request)):
                    self.answer(connection, request)

    def answer(self, connection, request, **changes):
        start, end = request.range
        end = min(end, len(self.data))
        self.send(connection, 206, self.data[start:end],
                  **{"Content-Range": f"bytes {start}-{end - 1}/{len(self.data)}", **changes})

    def send(self, connection, status, body=b"", length=None, **headers):
        head = {"ETag": self.etag, "Content-Length": len(body) if length is None else length, **headers}
        lines = [f"HTTP/1.1 {status} x"] + [f"{k.replace('_', '-')}: {v}" for k, v in head.items() if v is not None]
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def close(self):
        self.closing.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def digest(data):
    return hashlib.sha256(data).hexdigest()
