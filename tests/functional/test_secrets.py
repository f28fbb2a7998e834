"""Objects of type secret: where they come from, what is refused, and that nobody sees them.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import base64
import os

import pytest

import qmp
from servers_http import Nginx

PASSWORD = "open sesame"  # servers_http's


def secret_file(place, content=PASSWORD + "\n", mode=0o600, name="password"):
    path = place.path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


@pytest.fixture
def server(place):
    root = place.path / "www"
    root.mkdir()
    (root / "disk").write_bytes(b"content" * 1000)
    with Nginx(place.path / "nginx", root) as running:
        yield running


def start(place, server, secret, **more):
    graph = place.write("lab.conf", f"[node disk]\ndriver = http\nurl = http://127.0.0.1:{server.port}/auth/disk\n"
                                    f"username = user\npassword-secret = pw\n[secret pw]\n{secret}")
    mountpoint = place.directory()
    return place.start(graph, mountpoint, mountpoints=[mountpoint], **more)


@pytest.mark.parametrize("content, options", [
    (PASSWORD, ""), (PASSWORD + "\n", ""), (PASSWORD + "\r\n", "format = raw\n"),
    (base64.b64encode(PASSWORD.encode()), "format = base64\n"),
], ids=["plain", "newline", "crlf", "base64"])
def test_file(place, server, content, options):
    secret_file(place, content)
    daemon = start(place, server, "file = password\n" + options)
    assert daemon.file("disk").read_bytes() == b"content" * 1000
    daemon.stop()


def test_systemd_credential(place, server, monkeypatch):
    place.directory("credentials")
    secret_file(place, name="credentials/http-password")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(place.path / "credentials"))
    daemon = start(place, server, "credential = http-password\n")
    assert daemon.file("disk").read_bytes() == b"content" * 1000
    daemon.stop()


def test_wrong_password(place, server):
    secret_file(place, "letmein")
    graph = place.write("lab.conf", f"[node disk]\ndriver = http\nurl = http://127.0.0.1:{server.port}/auth/disk\n"
                                    "username = user\npassword-secret = pw\n[secret pw]\nfile = password\n")
    message = place.refuse(graph, place.directory())
    assert "401" in message and "letmein" not in message


def test_a_file_for_everybody(place, server):
    secret_file(place, mode=0o644)
    daemon = start(place, server, "file = password\n", stderr_allowed="everybody may read '.*/password'")
    daemon.stop()


def test_nobody_sees_it(place, server):
    secret_file(place)
    daemon = start(place, server, "file = password\n")
    daemon.file("disk").read_bytes()
    seen = [open(f"/proc/{daemon.pid}/{name}", "rb").read() for name in ("cmdline", "environ")]
    seen.append(open("/proc/self/mounts", "rb").read())
    graph = daemon.file("disk").parent / ".graph"
    for directory, _, names in os.walk(graph):
        seen += [open(os.path.join(directory, name), "rb").read() for name in names if name != "data"]
    with qmp.connect(daemon) as control:
        for command in ("query-named-block-nodes", "query-block-exports", "x-debug-query-block-graph"):
            seen.append(repr(control(command)).encode())
        for form in ("conf", "json", "text", "dot"):
            seen.append(control("x-blockgraph-graph", format=form).encode())
    assert len(seen) > 10 and not [text for text in seen if PASSWORD.encode() in text]
    daemon.stop()


@pytest.mark.parametrize("content, options, cause", [
    (None, "file = password\n", "No such file"),
    (b"a\0b", "file = password\n", "zero byte"),
    (b"x" * 70000, "file = password\n", "longer than 65536 bytes"),
    (b"%%%", "file = password\nformat = base64\n", "not base64"),
    (b"x", "file = .\n", "directory"),
    (b"x", "credential = x\n", "CREDENTIALS_DIRECTORY"),
], ids=lambda value: None)
def test_refused(place, content, options, cause):
    if content is not None:
        secret_file(place, content)
    graph = place.write("lab.conf", "[node n]\ndriver = null-co\n[secret pw]\n" + options)
    message = place.refuse(graph, place.directory())
    assert "'pw'" in message and cause in message, message


@pytest.mark.parametrize("option", ["password-secret = other", "password-secret = pww"])
def test_no_such_secret(place, option):
    secret_file(place)
    graph = place.write("lab.conf", "[node disk]\ndriver = http\nurl = http://127.0.0.1:1/x\nusername = user\n"
                                    f"{option}\n[secret pw]\nfile = password\n")
    message = place.refuse(graph, place.directory())
    assert "lab.conf:5" in message and "no secret object is named" in message, message
