"""NBD servers for tests: nbdkit, qemu-nbd and nbd-server, on Unix sockets of the test's place or on free ports.

Servers end after the daemons of a place, see harness.Place.servers.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import os
import signal
import socket
import subprocess
import time

import harness
from system import free_port


def answers(address):
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as client, contextlib.suppress(OSError):
        client.settimeout(1)
        client.connect(address)
        return True
    return False


def is_listening(port):
    """Without connecting: some servers take only one client."""
    with open("/proc/net/tcp", encoding="ascii") as sockets:
        return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in sockets)


class Server:
    """A process that listens on `address`: a path, or (host, port). May be killed and started again."""

    def __init__(self, place, argv, address, pidfile=None):
        self.place = place
        self.argv = [str(word) for word in argv]
        self.address = address
        self.pidfile = pidfile
        self.log = place.path / f"server-{len(place.servers)}.log"
        self.process = None
        place.servers.append(self)
        self.start()

    def start(self):
        if isinstance(self.address, str) and os.path.exists(self.address):
            os.unlink(self.address)
        if self.pidfile is not None and self.pidfile.exists():
            self.pidfile.unlink()
        self.place.record(self.argv, background=True)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.argv, cwd=self.place.path, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log)
        deadline = time.monotonic() + 20 * harness.TIME_SCALE
        while not self.is_up():
            assert self.process.poll() is None, f"server ended: {self.log.read_text()}"
            assert time.monotonic() < deadline, f"server does not answer: {self.log.read_text()}"
            time.sleep(0.005)
        return self

    def is_up(self):
        """To connect counts as a client for some servers: those write a file when they listen."""
        if self.pidfile is not None:
            return self.pidfile.exists()
        return answers(self.address) if isinstance(self.address, str) else is_listening(self.address[1])

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.place.note(f"kill -{number} the server")
            self.process.send_signal(number)
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self):
        self.place.note("kill -9 the server")
        self.process.kill()
        self.process.wait()

    def hang(self):
        self.place.note("kill -STOP the server")
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    @property
    def uri(self):
        if isinstance(self.address, str):
            return f"nbd+unix:///?socket={self.address}"
        return f"nbd://{self.address[0]}:{self.address[1]}/"

    def node(self, prefix="file."):
        """Its options in a graph file."""
        return f"{prefix}driver = nbd\n{prefix}uri = {self.uri}\n"


def nbdkit(place, *argv, tcp=False, name="nbd"):
    """`argv`: options, a plugin and its parameters. Filters come with --filter=."""
    pidfile = place.path / f"{name}.pid"
    address = ("127.0.0.1", free_port()) if tcp else str(place.path / f"{name}.sock")
    where = ["-i", "127.0.0.1", "-p", address[1]] if tcp else ["-U", address]
    return Server(place, ["nbdkit", "-f", "--exit-with-parent", "-P", pidfile, *where, *argv], address, pidfile)


def qemu_nbd(place, image, *argv, form="raw", name="qemu"):
    address = str(place.path / f"{name}.sock")
    return Server(place, ["qemu-nbd", "-t", "-k", address, "-f", form, "-e", "8", *argv, image], address)


def nbd_server(place, image, export="disk", options=""):
    port = free_port()
    config = place.write("nbd-server.conf", f"[generic]\nlistenaddr = 127.0.0.1\nport = {port}\n"
                                            f"user = root\n[{export}]\nexportname = {image}\n{options}")
    server = Server(place, ["nbd-server", "-d", "-C", config, "-p", place.path / "nbd-server.pid"],
                    ("127.0.0.1", port))
    return server


class Pause:
    """The control socket of nbdkit's filter `pause`: argv for nbdkit, then pause() and resume()."""

    def __init__(self, place):
        self.path = str(place.path / "pause.sock")
        self.argv = ["--filter=pause"]
        self.parameter = f"pause-control={self.path}"

    def _say(self, letter, answer):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.path)
            client.sendall(letter)
            assert client.recv(1) == answer

    def pause(self):
        self._say(b"p", b"P")

    def resume(self):
        self._say(b"r", b"R")
