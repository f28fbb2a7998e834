"""iSCSI targets for the tests: tgt, istgt, and a relay that changes what a target answers.

Each server listens on a free port of 127.0.0.1, keeps its files in the test's place, and is ended by its process id.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import threading

import harness
from system import free_port

NAME = "iqn.2026-11.org.blockgraph.test:disk"


class Target:
    """What tgt and istgt have in common."""

    lun = 1  # of the disk

    def __init__(self, place):
        self.place = place
        self.port = free_port()
        self.process = None

    def url(self, lun=None, port=None):
        return f"iscsi://127.0.0.1:{port or self.port}/{NAME}/{self.lun if lun is None else lun}"

    def node(self, lun=None, port=None, more=""):
        """A section of a graph file: node `host`."""
        return f"[node host]\ndriver = iscsi\nurl = {self.url(lun, port)}\n{more}\n"

    def graph(self, lun=None, port=None, more=""):
        """The disk as a raw node, exported as `disk`."""
        return self.node(lun, port, more) + "[node disk]\ndriver = raw\nfile = host\n"

    def _start(self, argv, log, env=None):
        with open(log, "ab") as out:
            self.process = subprocess.Popen(argv, cwd=self.place.path, stdin=subprocess.DEVNULL,
                                            stdout=out, stderr=out, env={**os.environ, **(env or {})})
        harness.wait_for_port(self.port, self.process, log)

    def kill(self):
        """As a power cut of the target's host, but for what the kernel has in its cache."""
        self.process.kill()
        self.process.wait()

    def hang(self):
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self):
        os.kill(self.process.pid, signal.SIGCONT)

    def end(self):
        if self.process and self.process.poll() is None:
            self.resume()
            self.kill()

    stop = end  # as servers of a place have it

    def stop_daemons_and_end(self):
        """The daemons first: without their target they would rightly complain."""
        try:
            for daemon in self.place.daemons:
                if not daemon.finished and daemon.is_running():
                    daemon.stop()
        except AssertionError:
            self.place.bundle("the daemon did not end well")
            raise
        finally:
            self.end()


class Tgt(Target):
    """tgtd with one target, and lun.img as LUN 1."""

    def __init__(self, place, size=64 << 20, thin=True, params=(), image=None, name="tgt"):
        super().__init__(place)
        self.image = image or place.image("lun.img", size)
        self.params = [f"thin_provisioning={int(thin)}", *params]
        self.accounts = []
        self.env = {"TGT_IPC_SOCKET": str(place.path / name)}
        self.start()

    def admin(self, *words):
        self.place.run("tgtadm", "--lld", "iscsi", *words, env=self.env)

    def start(self):
        log = self.place.path / "tgtd.log"
        self._start(["tgtd", "-f", "--iscsi", f"portal=127.0.0.1:{self.port}", "-C", "0"], log, self.env)
        self.admin("--op", "new", "--mode", "target", "--tid", "1", "-T", NAME)
        self.add_lun(1, self.image)
        for params in self.params:
            self.admin("--op", "update", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "--params", params)
        for account in self.accounts:
            self._add_account(*account)
        self.admin("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")

    def add_lun(self, lun, image):
        self.admin("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", str(lun), "-b", str(image))

    def add_account(self, user, password, outgoing=False):
        """Before logins: who may log in, or (outgoing) who the target says to be."""
        self.accounts.append((user, password, outgoing))
        self._add_account(user, password, outgoing)

    def _add_account(self, user, password, outgoing):
        self.admin("--op", "new", "--mode", "account", "--user", user, "--password", password)
        self.admin("--op", "bind", "--mode", "account", "--tid", "1", "--user", user,
                   *(["--outgoing"] if outgoing else []))


ISTGT = """\
[Global]
  NodeBase "{base}"
  PidFile {path}/istgt.pid
  AuthFile {path}/istgt-auth.conf
  MediaDirectory {path}
  LogFacility "local7"
  Timeout 30
  NopInInterval 20
  MaxSessions 16
  MaxConnections 4
  FirstBurstLength 262144
  MaxBurstLength 1048576
  MaxRecvDataSegmentLength 262144
  DiscoveryAuthMethod Auto
[UnitControl]
  AuthMethod None
  Portal UC1 127.0.0.1:{control}
  Netmask 127.0.0.1
[PortalGroup1]
  Portal DA1 127.0.0.1:{port}
[InitiatorGroup1]
  InitiatorName "ALL"
  Netmask 127.0.0.1/8
[LogicalUnit1]
  TargetName {name}
  Mapping PortalGroup1 InitiatorGroup1
  AuthMethod Auto
  UnitType Disk
  LUN0 Storage {image} Auto
"""


class Istgt(Target):
    """istgt with lun.img as LUN 0."""

    lun = 0

    def __init__(self, place, size=64 << 20):
        super().__init__(place)
        self.image = place.image("lun.img", size)
        base, name = NAME.split(":")
        auth = place.write("istgt-auth.conf", "")
        auth.chmod(0o600)
        self.config = place.write("istgt.conf", ISTGT.format(path=place.path, base=base, name=name, port=self.port,
                                                             control=free_port(), image=self.image))
        self.config.chmod(0o600)
        self.start()

    def start(self):
        self._start(["istgt", "-D", "-c", str(self.config)], self.place.path / "istgt.log")


# ---- Answers that good targets give seldom

COMMAND, RESPONSE, DATA_IN = 0x01, 0x21, 0x25
READ10, WRITE10, WRITE_SAME16, UNMAP, SYNC10, CAPACITY16 = 0x28, 0x2a, 0x93, 0x42, 0x35, 0x9e
GOOD, CHECK_CONDITION, BUSY, RESERVATION_CONFLICT, TASK_SET_FULL = 0x00, 0x02, 0x08, 0x18, 0x28


def sense(key, ascq, code=0x70):
    """Sense data of fixed format; code 0x71: of an earlier command."""
    data = bytes([code, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, ascq >> 8, ascq & 0xff, 0, 0, 0, 0])
    return struct.pack(">H", len(data)) + data


class Faults:
    """A relay before a target that understands iSCSI (without digests) and changes answers.

    fail(opcode, status, data, times): the next `times` commands with that first byte are answered so; the target
    does them nevertheless. `seen` counts commands by their first byte. `blocks`: what READ CAPACITY (16) says.
    """

    def __init__(self, target):
        self.target = target
        self.lock = threading.Lock()
        self.rules = {}
        self.seen = {}
        self.blocks = None
        self.short = 0  # this many reads say that they were cut
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.sockets = [self.listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for s in self.sockets:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()

    def fail(self, opcode, status, data=b"", times=1):
        with self.lock:
            self.rules[opcode] = [status, data, times]

    def left(self, opcode):
        """How many of fail()'s are still to come."""
        with self.lock:
            return self.rules[opcode][2]

    def count(self, opcode):
        with self.lock:
            return self.seen.get(opcode, 0)

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target.port))
                self.sockets += [client, server]
                marked = {}
                for source, sink, handle in ((client, server, self._command), (server, client, self._answer)):
                    threading.Thread(target=self._forward, args=(source, sink, handle, marked), daemon=True).start()

    @staticmethod
    def _receive(source, size):
        data = b""
        while len(data) < size:
            more = source.recv(size - len(data))
            if not more:
                raise ConnectionError
            data += more
        return data

    def _forward(self, source, sink, handle, marked):
        try:
            while True:
                header = bytearray(self._receive(source, 48))
                size = int.from_bytes(header[5:8], "big")
                data = bytearray(self._receive(source, header[4] * 4 + (size + 3) // 4 * 4))
                out = handle(header, data, marked)
                if out:
                    sink.sendall(out)
        except OSError:
            pass
        finally:
            for s in (source, sink):
                with contextlib.suppress(OSError):
                    s.shutdown(socket.SHUT_RDWR)

    def _command(self, header, data, marked):
        if header[0] & 0x3f == COMMAND:
            opcode, itt = header[32], bytes(header[16:20])
            with self.lock:
                self.seen[opcode] = self.seen.get(opcode, 0) + 1
                rule = self.rules.get(opcode)
                if rule and rule[2] > 0:
                    rule[2] -= 1
                    marked[itt] = (rule[0], rule[1])
                elif opcode == CAPACITY16 and header[33] & 0x1f == 0x10 and self.blocks:
                    marked[itt] = None
                elif opcode == READ10 and self.short > 0:
                    self.short -= 1
                    marked[itt] = (GOOD, b"")
        return header + data

    def _answer(self, header, data, marked):
        opcode, itt = header[0] & 0x3f, bytes(header[16:20])
        if opcode not in (RESPONSE, DATA_IN) or itt not in marked:
            return header + data
        if marked[itt] is None:
            if opcode == DATA_IN:
                data[0:8] = struct.pack(">Q", self.blocks - 1)
            return header + data
        if opcode == DATA_IN and not header[1] & 0x01:
            return b""  # without a status: more is to come
        status, text = marked.pop(itt)
        flags = 0x82 if status == GOOD else 0x80  # 2: fewer bytes were transferred than asked for
        new = bytes([RESPONSE, flags, 0, status]) + struct.pack(">I", len(text)) + bytes(8) + itt + bytes(4) \
            + bytes(header[24:36]) + bytes(8) + struct.pack(">I", 512 if status == GOOD else 0)
        return new + text + bytes(-len(text) % 4)
