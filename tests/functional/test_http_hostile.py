"""The driver http against a server that misbehaves: no wrong byte, no hang, an error that says why.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import errno
import os
import threading
import time

import pytest

import harness
from fileio import opened, pattern
from servers_http import Evil
from system import KiB, MiB

SIZE = 2 * MiB


@pytest.fixture
def evil(place):
    with Evil(pattern(SIZE)) as server:
        yield server


def mount(place, evil, *options, stderr_allowed=None, **kwargs):
    lines = ["[node disk]", "driver = http", f"url = {evil.url}", "timeout = 3", "reconnect-delay = 1", *options]
    return place.mount("\n".join(lines) + "\n", stderr_allowed=stderr_allowed, **kwargs)


def read(daemon, offset=0, n=64 * KiB):
    with opened(daemon.file("disk"), os.O_RDONLY | os.O_DIRECT) as fd:
        return os.pread(fd, n, offset)


def fails(daemon, code=errno.EIO):
    with pytest.raises(OSError) as error:
        read(daemon)
    assert error.value.errno == code, error.value
    return daemon.graph("errors")


def after_the_probe(answer):
    """behave() that leaves the first request, of one byte, alone."""
    return lambda evil, connection, request: request.range != (0, 1) and answer(evil, connection, request)


def wrong_start(evil, connection, request):
    start, end = request.range
    evil.answer(connection, request, **{"Content-Range": f"bytes {start + 1}-{end}/{SIZE}"})
    return True


def wrong_end(evil, connection, request):
    start, end = request.range
    evil.send(connection, 206, evil.data[start:end - 1], **{"Content-Range": f"bytes {start}-{end - 2}/{SIZE}"})
    return True


def no_range_told(evil, connection, request):
    evil.answer(connection, request, **{"Content-Range": None})
    return True


def nonsense_range(evil, connection, request):
    evil.answer(connection, request, **{"Content-Range": "bytes 99999999999999999999999-x/y"})
    return True


def whole_body(evil, connection, request):
    evil.send(connection, 200, evil.data)
    return True


def no_such_range(evil, connection, request):
    evil.send(connection, 416, **{"Content-Range": f"bytes */{SIZE}"})
    return True


def server_error(evil, connection, request):
    evil.send(connection, 500, b"oops")
    return True


def compressed(evil, connection, request):
    evil.answer(connection, request, **{"Content-Encoding": "gzip"})
    return True


def without_validator(evil, connection, request):
    evil.answer(connection, request, ETag=None)
    return True


@pytest.mark.parametrize("answer, words", [
    (wrong_start, "were asked for"), (wrong_end, "were asked for"), (no_range_told, "which part"),
    (nonsense_range, "which part"), (whole_body, "the whole resource"), (no_such_range, "no such range"),
    (server_error, "status 500"), (compressed, "encoded"), (without_validator, "leaves out"),
], ids=lambda value: getattr(value, "__name__", ""))
def test_wrong_answers(place, evil, answer, words):
    daemon = mount(place, evil)
    evil.behave = after_the_probe(answer)
    assert words in fails(daemon)
    evil.behave = None  # and it is not held against the server
    assert read(daemon) == evil.data[:64 * KiB]


def other_etag(evil, connection, request):
    evil.answer(connection, request, ETag='"2"')
    return True


def other_total(evil, connection, request):
    start, end = request.range
    evil.answer(connection, request, **{"Content-Range": f"bytes {start}-{end - 1}/{SIZE + 1}"})
    return True


def precondition_failed(evil, connection, request):
    assert request.headers["if-match"] == request.headers["if-range"] == '"1"'
    evil.send(connection, 412, ETag='"2"')
    return True


def whole_new_body(evil, connection, request):
    evil.send(connection, 200, bytes(SIZE), ETag='"2"')
    return True


def shorter(evil, connection, request):
    evil.send(connection, 416, **{"Content-Range": "bytes */100"})
    return True


@pytest.mark.parametrize("answer", [other_etag, other_total, precondition_failed, whole_new_body, shorter])
def test_changed(place, evil, answer):
    daemon = mount(place, evil, stderr_allowed="has changed")
    evil.behave = after_the_probe(answer)
    assert "has changed" in fails(daemon, errno.ESTALE)
    evil.behave = None
    fails(daemon, errno.ESTALE)  # for ever
    assert len(daemon.said().splitlines()) == 1


def test_short_bodies(place, evil):
    """Each reply ends early, at another place: the rest is asked for again."""
    daemon = mount(place, evil)

    def short(evil, connection, request):
        start, end = request.range
        n = max((end - start) // 2, 1)
        evil.send(connection, 206, evil.data[start:start + n], length=end - start,
                  **{"Content-Range": f"bytes {start}-{end - 1}/{SIZE}"})
        raise OSError

    evil.behave = after_the_probe(short)
    assert read(daemon, 0, MiB) == evil.data[:MiB]


def test_nothing_but_headers(place, evil):
    daemon = mount(place, evil, stderr_allowed="requests fail if")

    def nothing(evil, connection, request):
        evil.send(connection, 206, b"", length=request.range[1] - request.range[0],
                  **{"Content-Range": f"bytes {request.range[0]}-{request.range[1] - 1}/{SIZE}"})
        raise OSError

    evil.behave = nothing
    fails(daemon)


def test_endless_body(place, evil):
    """What was asked for is taken, the rest is not waited for."""
    daemon = mount(place, evil)
    dropped = threading.Event()

    def endless(evil, connection, request):
        start, end = request.range
        connection.sendall(f"HTTP/1.1 206 x\r\nETag: \"1\"\r\nContent-Range: bytes {start}-{end - 1}/{SIZE}\r\n\r\n".encode())
        connection.sendall(evil.data[start:end])
        try:
            while True:
                connection.sendall(bytes(64 * KiB))
        except OSError:
            dropped.set()
            raise

    evil.behave = after_the_probe(endless)
    assert read(daemon) == evil.data[:64 * KiB]
    assert dropped.wait(20 * harness.TIME_SCALE)
    assert read(daemon, MiB) == evil.data[MiB:MiB + 64 * KiB]


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after(place, evil, status):
    daemon = mount(place, evil)
    times = []

    def busy_once(evil, connection, request):
        times.append(time.monotonic())
        if len(times) > 1:
            return False
        evil.send(connection, status, b"later", Retry_After=1)
        return True

    evil.behave = busy_once
    assert read(daemon) == evil.data[:64 * KiB]
    assert times[1] - times[0] > 0.9  # as told


def test_retry_after_too_long(place, evil):
    daemon = mount(place, evil)
    evil.behave = after_the_probe(lambda e, connection, r: e.send(connection, 503, b"later", Retry_After=3600) or True)
    before = time.monotonic()
    assert "503" in fails(daemon, errno.EBUSY)
    assert time.monotonic() - before < 60


def test_busy_at_open(place):
    with Evil(pattern(SIZE)) as evil:
        answers = []

        def busy_once(evil, connection, request):
            answers.append(request)
            if len(answers) == 1:
                evil.send(connection, 503, b"later", Retry_After=1)
                return True
            return False

        evil.behave = busy_once
        daemon = mount(place, evil)
        assert read(daemon) == evil.data[:64 * KiB]
        daemon.stop()


@pytest.mark.parametrize("answer", [
    b"HTTP/1.1 206 x\r\nContent-Range: bytes 0-0/*\r\nContent-Length: 1\r\n\r\nx",
    b"HTTP/1.1 206 x\r\nContent-Range: bytes 0-0/9223372036854775807\r\nContent-Length: 1\r\n\r\nx",
    b"HTTP/1.1 206 x\r\nContent-Range: bytes 0-0/99999999999999999999\r\nContent-Length: 1\r\n\r\nx",
    b"HTTP/1.1 204 x\r\n\r\n",
    b"nonsense\r\n\r\n",
    b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    b"",
], ids=range(7))
def test_bad_first_answers(place, answer):
    def behave(evil, connection, request):
        connection.sendall(answer)
        raise OSError

    with Evil(b"x", behave=behave) as evil:
        source = place.write("refused.conf", f"[node disk]\ndriver = http\nurl = {evil.url}\ntimeout = 3\n")
        assert "node 'disk'" in place.refuse(source, place.directory("refused"))


def test_a_hung_first_answer(place):
    def behave(evil, connection, request):
        evil.closing.wait()
        return True

    with Evil(b"x", behave=behave) as evil:
        source = place.write("refused.conf", f"[node disk]\ndriver = http\nurl = {evil.url}\ntimeout = 1\n")
        assert "no answer within 1 s" in place.refuse(source, place.directory("refused"))


def test_conditions_and_headers_are_sent_with_each_range(place, evil):
    daemon = mount(place, evil, "header = X-One: 1")
    assert read(daemon, 0, MiB) == evil.data[:MiB]
    ranges = [r for r in evil.requests if r.range != (0, 1)]
    assert ranges and all(r.headers["if-range"] == r.headers["if-match"] == '"1"' and r.headers["x-one"] == "1"
                          for r in ranges)


def test_credentials_stay_with_the_host(place):
    """A redirect leads elsewhere: neither password nor cookie goes there."""
    place.write("password", "sesame").chmod(0o600)
    with Evil(pattern(SIZE)) as target, Evil(b"") as origin:
        origin.behave = lambda e, connection, r: e.send(connection, 302, Location=target.url) or True
        daemon = mount(place, origin, "username = user", "password-secret = p", "cookie = a=b", "readahead = 0\n[secret p]\nfile = password")
        assert read(daemon) == target.data[:64 * KiB]
        assert "authorization" in origin.requests[0].headers and origin.requests[0].headers["cookie"] == "a=b"
        for request in target.requests:
            assert not {"authorization", "cookie"} & set(request.headers)
        daemon.stop()
