"""The instrument relay.py itself: a test of outages is worth what it is worth.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import socket
import threading
import time

import pytest

from relay import Relay, TO_CLIENT, TO_SERVER


@pytest.fixture
def echo():
    """An echo server; yields its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(client):
        with client:
            try:
                while data := client.recv(65536):
                    client.sendall(data)
            except OSError:
                pass

    def accept():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def receive(client, count):
    """Up to count bytes, fewer at the end, which is a reset where the relay had not read all that was sent."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while len(data) < count and (more := client.recv(count - len(data))):
            data += more
    return data


def test_forwards_all_and_counts(echo, tmp_path):
    with Relay(echo) as inner, Relay(inner.address, listen=str(tmp_path / "s")) as relay:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(relay.address)
            data = bytes(range(256)) * 4000
            threading.Thread(target=client.sendall, args=(data,)).start()
            assert receive(client, len(data)) == data
            assert inner.forwarded == {TO_SERVER: len(data), TO_CLIENT: len(data)}
            client.shutdown(socket.SHUT_WR)
            assert receive(client, 1) == b""
        assert relay.accepted == 1


@pytest.mark.parametrize("direction", [TO_SERVER, TO_CLIENT])
def test_cuts_after_so_many_bytes(echo, direction):
    with Relay(echo) as relay, socket.create_connection(relay.address) as client:
        relay.cut_after(1000, direction)
        client.sendall(bytes(5000))
        assert len(receive(client, 5000)) <= 1000
        assert relay.forwarded[direction] == 1000
        with socket.create_connection(relay.address) as again:
            again.sendall(b"x")
            assert receive(again, 1) == b"x"
            relay.cut()
            assert receive(again, 1) == b""
            assert relay.active == 0


def test_hangs_and_loses_nothing(echo):
    with Relay(echo) as relay, socket.create_connection(relay.address) as client:
        relay.hang()
        client.sendall(b"hello")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(None)
        relay.resume()
        assert receive(client, 5) == b"hello"


def test_refuses_and_accepts_at_the_same_address(echo):
    with Relay(echo) as relay, socket.create_connection(relay.address) as client:
        relay.refuse()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(relay.address)
        client.sendall(b"x")
        assert receive(client, 1) == b"x"
        relay.accept()
        with socket.create_connection(relay.address) as again:
            again.sendall(b"y")
            assert receive(again, 1) == b"y"


def test_delays_each_way_and_limits_the_rate(echo):
    with Relay(echo) as relay, socket.create_connection(relay.address) as client:
        relay.delay = 0.05
        start = time.monotonic()
        client.sendall(b"x")
        assert receive(client, 1) == b"x"
        assert time.monotonic() - start >= 0.1
        relay.delay = 0
        relay.rate = 1000
        start = time.monotonic()
        client.sendall(bytes(200))
        assert len(receive(client, 200)) == 200
        assert time.monotonic() - start >= 0.15
