"""A relay between a client and a server, which does to the bytes what bad networks do.

    with Relay(("127.0.0.1", port)) as relay:              # or Relay("/path/of/socket")
        host, port = relay.address                         # give this to the client
        relay.cut_after(1000, TO_SERVER)                   # forward 1000 more bytes, then cut that connection
        relay.cut()                                        # all connections, now
        relay.hang(); relay.resume()                       # forward nothing for a while; nothing is lost
        relay.delay = 0.020                                # seconds, each way; does not limit the throughput
        relay.rate = 1000                                  # bytes per second, each way and connection; 0: no limit
        relay.refuse(); relay.accept()                     # new connections; those that are there go on

By default it listens on a free TCP port of 127.0.0.1, with listen="/path" on a Unix socket; the address stays the
same after refuse() and accept(). All methods and settings may be used from any thread, at any time; they return
when what they ask for is done. The relay runs in a thread of its own, which ends with close() or the with block.
`accepted` counts connections since the start, `active` those that are there, `forwarded[TO_SERVER]` and
`forwarded[TO_CLIENT]` bytes.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import asyncio
import contextlib
import os
import socket
import struct
import threading

TO_SERVER, TO_CLIENT = "to server", "to client"
CHUNK = 256 * 1024
IN_FLIGHT = 64  # chunks that one direction keeps at most, for its delay


def listen_on(address):
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    if family == socket.AF_INET:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(64)
    listener.setblocking(False)
    return listener


class Connection:
    """A client, the server, and two directions between them."""

    def __init__(self, relay, client):
        self.relay = relay
        self.client = client
        self.server = None
        self.task = asyncio.ensure_future(self.run())

    async def run(self):
        try:
            with contextlib.suppress(OSError):
                target = self.relay.target
                family = socket.AF_UNIX if isinstance(target, str) else socket.AF_INET
                self.server = socket.socket(family, socket.SOCK_STREAM)
                self.server.setblocking(False)
                await asyncio.get_running_loop().sock_connect(self.server, target)
                for end in (self.client, self.server):
                    if end.family == socket.AF_INET:
                        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await self.both_directions()
        finally:
            self.close()

    async def both_directions(self):
        tasks = []
        for source, sink, direction in ((self.client, self.server, TO_SERVER),
                                        (self.server, self.client, TO_CLIENT)):
            chunks = asyncio.Queue(IN_FLIGHT)
            tasks += [asyncio.ensure_future(self.receive(source, chunks)),
                      asyncio.ensure_future(self.send(sink, chunks, direction))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def receive(self, source, chunks):
        loop = asyncio.get_running_loop()
        data = True
        while data:
            data = await loop.sock_recv(source, CHUNK)
            await chunks.put((loop.time() + self.relay.delay, data))

    async def send(self, sink, chunks, direction):
        loop = asyncio.get_running_loop()
        while True:
            due, data = await chunks.get()
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            if not data:
                await self.relay.running.wait()
                sink.shutdown(socket.SHUT_WR)
                return
            view = memoryview(data)
            while view:
                view = view[await self.send_some(sink, view, direction):]

    async def send_some(self, sink, view, direction):
        relay = self.relay
        await relay.running.wait()
        rate, left = relay.rate, relay.cuts.get(direction)
        size = len(view)
        if rate:
            size = min(size, max(1, int(rate / 20)))
        if left is not None:
            size = min(size, left)
            relay.cuts[direction] -= size
        if size:
            relay.forwarded[direction] += size  # before the other end can have it
            await asyncio.get_running_loop().sock_sendall(sink, view[:size])
        if left is not None and left == size:
            relay.cuts.pop(direction)
            raise ConnectionAbortedError
        if rate:
            await asyncio.sleep(size / rate)
        return size

    def close(self):
        self.relay.connections.discard(self)
        for end in (self.client, self.server):
            if end is not None:
                with contextlib.suppress(OSError):
                    if end.family == socket.AF_INET and self.relay.reset:
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.close()


class Relay:
    def __init__(self, target, listen=None, reset=False):
        """`reset`: TCP connections end with a reset instead of an end of file."""
        self.target = target
        self.reset = reset
        self.delay = 0
        self.rate = 0
        self.accepted = 0
        self.forwarded = {TO_SERVER: 0, TO_CLIENT: 0}
        self.cuts = {}  # direction: bytes until the cut
        self.connections = set()
        self.listener = None
        self.address = listen or ("127.0.0.1", 0)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="relay", daemon=True)
        self.thread.start()
        self._do(self._start())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def active(self):
        return len(self.connections)

    def cut_after(self, count, direction):
        self._do(self._cut_after(count, direction))

    def cut(self):
        self._do(self._cut())

    def hang(self):
        self._do(self._hang(True))

    def resume(self):
        self._do(self._hang(False))

    def refuse(self):
        self._do(self._refuse())

    def accept(self):
        self._do(self._accept())

    def close(self):
        if self.loop.is_closed():
            return
        self._do(self._close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    # ---- in the relay's thread

    def _do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    async def _start(self):
        self.running = asyncio.Event()
        self.running.set()
        await self._accept()

    async def _cut_after(self, count, direction):
        self.cuts[direction] = count

    async def _cut(self):
        tasks = [connection.task for connection in self.connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _hang(self, hang):
        if hang:
            self.running.clear()
        else:
            self.running.set()

    async def _accept(self):
        if self.listener is None:
            self.listener = listen_on(self.address)
            self.address = self.listener.getsockname()
            self.loop.add_reader(self.listener, self._accept_all)

    def _accept_all(self):
        with contextlib.suppress(BlockingIOError):
            while True:
                client, _ = self.listener.accept()
                client.setblocking(False)
                self.accepted += 1
                self.connections.add(Connection(self, client))

    async def _refuse(self):
        if self.listener is not None:
            self._accept_all()  # for those who wait, the connection is there already
            self.loop.remove_reader(self.listener)
            self.listener.close()
            self.listener = None
            if isinstance(self.address, str):
                os.unlink(self.address)

    async def _close(self):
        await self._refuse()
        await self._cut()
