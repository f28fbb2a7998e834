"""A client of the control socket, independent of the program's own.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import json
import os
import socket

import harness


class QmpError(Exception):
    """An answer with "error" in it."""

    def __init__(self, error):
        super().__init__(f"{error['class']}: {error['desc']}")
        self.error_class = error["class"]
        self.desc = error["desc"]


class Qmp:
    """A connection that has negotiated, unless told otherwise."""

    def __init__(self, path, negotiate=True):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30 * harness.TIME_SCALE)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("rb")
        self.greeting = self.read()
        self.events = []
        self.next_id = 0
        if negotiate:
            self("qmp_capabilities")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.lines.close()
        self.socket.close()

    def read(self):
        line = self.lines.readline()
        return json.loads(line) if line else None

    def raw(self, data):
        """Send bytes; the next answer."""
        self.socket.sendall(data)
        return self.answer()

    def answer(self):
        while (message := self.read()) is not None and "event" in message:
            self.events.append(message)
        return message

    def wait_event(self, name):
        while not any(event["event"] == name for event in self.events):
            message = self.read()
            assert message is not None and "event" in message, f"waited for {name}, got {message}"
            self.events.append(message)
        return next(event for event in self.events if event["event"] == name)

    def __call__(self, command, /, **arguments):
        """Run a command; underscores in the arguments' names are dashes."""
        self.next_id += 1
        message = {"execute": command, "id": self.next_id}
        if arguments:
            message["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        answer = self.raw(json.dumps(message).encode())
        assert answer is not None, f"hung up at {command}"
        assert answer.pop("id") == self.next_id
        if "error" in answer:
            raise QmpError(answer["error"])
        assert list(answer) == ["return"]
        return answer["return"]


def socket_path(mountpoint):
    return os.getxattr(mountpoint, "user.blockgraph.control").decode()


def connect(daemon, **kwargs):
    return Qmp(socket_path(daemon.mountpoints[0]), **kwargs)
