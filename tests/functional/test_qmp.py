"""The control socket against a real mount: protocol, queries, the graph as a file, the socket itself.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import json
import os
import re
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

import harness
import qcow2
import qmp
from fileio import opened
from qmp import Qmp, QmpError
from system import KiB, MiB

GRAPH = """
[node host]
driver = file
filename = disk.img
cache.no-flush = on

[node disk]
driver = raw
file = host
offset = 1M
size = 4M

[node image]
driver = qcow2
l2-cache-size = 1M
discard = ignore
file.driver = file
file.filename = image.qcow2
file.locking = off
backing.node-name = below
backing.driver = raw
backing.file.driver = file
backing.file.filename = a \\\\ strange = name.img

[iothread io1]

[export vm.img]
node = disk
writable = on

[export image]
node = image
writable = on
growable = on
"""


@pytest.fixture
def daemon(place):
    place.image("disk.img", 16 * MiB, b"content")
    place.image("a \\ strange = name.img", 2 * MiB, b"below")
    qcow2.create(place, "image.qcow2", "", 3 * MiB)
    return place.mount(GRAPH)


def refused(control, command, /, **arguments):
    with pytest.raises(QmpError) as failure:
        control(command, **arguments)
    return failure.value


# ---- Protocol

def test_greeting_and_negotiation(daemon):
    with qmp.connect(daemon, negotiate=False) as control:
        version = control.greeting["QMP"]["version"]
        assert set(version["qemu"]) == {"major", "minor", "micro"} and "blockgraph" in version["package"]
        assert control.greeting["QMP"]["capabilities"] == []
        assert refused(control, "query-version").error_class == "CommandNotFound"
        refused(control, "qmp_capabilities", enable=["oob"])
        assert control("qmp_capabilities", enable=[]) == {}
        assert control("query-version") == version


def test_commands_and_help(daemon):
    with qmp.connect(daemon) as control:
        names = {command["name"] for command in control("query-commands")}
        assert {"qmp_capabilities", "quit", "query-named-block-nodes", "transaction"} <= names
        text = control("x-blockgraph-help")
        assert all(f"\n{name} {{" in "\n" + text for name in names)
        manual = (Path(__file__).resolve().parents[2] / "docs/control.md").read_text()
        assert all(f"`{name}`" in manual for name in names)
        assert control("x-blockgraph-help", command="quit").startswith("quit {}")
        error = refused(control, "query-named-block-node")
        assert error.error_class == "CommandNotFound" and "query-named-block-nodes" in error.desc


def test_same_as_in_qemu(place, daemon):
    """What both have is the same: members and types of answers, classes of errors."""
    place.image("peer.img", 16 * MiB)
    mountpoint = place.image("peer-mount", 0)
    path = place.path / "peer.sock"
    peer = subprocess.Popen(
        ["qemu-storage-daemon", "--blockdev", "driver=file,node-name=host,filename=peer.img",
         "--blockdev", "driver=raw,node-name=disk,file=host",
         "--export", f"type=fuse,id=vm.img,node-name=disk,mountpoint={mountpoint},writable=on",
         "--chardev", f"socket,id=c,path={path},server=on,wait=off", "--monitor", "chardev=c"], cwd=place.path)
    try:
        while not path.exists():
            assert peer.poll() is None
            time.sleep(0.01)
        with Qmp(path) as theirs, qmp.connect(daemon) as ours:
            compare_answers(ours, theirs)
            theirs("quit")
        peer.wait(timeout=20 * harness.TIME_SCALE)
    finally:
        peer.kill()
        peer.wait()


def compare_answers(ours, theirs):
    def disk(control):
        return next(n for n in control("query-named-block-nodes", flat=True) if n["node-name"] == "disk")

    # What says nothing without the feature that it is about may be missing here.
    missing = {"format-specific", "dirty-flag"}
    mine, peer = disk(ours), disk(theirs)
    assert {k: type(v) for k, v in mine.items()} == {k: type(v) for k, v in peer.items()}
    assert set(mine["image"]) >= set(peer["image"]) - missing
    assert mine["cache"] == peer["cache"]
    assert ours("query-block-exports")[0] == theirs("query-block-exports")[0]
    mine, peer = ours("x-debug-query-block-graph"), theirs("x-debug-query-block-graph")
    assert {frozenset(node) for node in mine["nodes"]} == {frozenset(node) for node in peer["nodes"]}
    assert {frozenset(edge) for edge in mine["edges"]} == {frozenset(edge) for edge in peer["edges"]}
    for message in (b"{'execute': 'no-such'}", b"{'execute': 1}", b"{}", b"[1]", b"{'execute': 'quit', 'x': 1}",
                    b"{'execute': 'query-named-block-nodes', 'arguments': {'flat': 1}, 'id': {'a': [1]}}",
                    b"{'execute': 'query-named-block-nodes', 'arguments': {'falt': true}}",
                    b"{'execute': 'blockdev-snapshot-sync', 'arguments': {}}",
                    b"{'execute': 'blockdev-snapshot', 'arguments': {'node': 'a', 'overlay': 'b'}}",
                    b"{'execute': 'transaction', 'arguments': {'actions': [{'type': 'abort', 'data': {}}]}}",
                    b"{'execute': 'transaction', 'arguments': {'actions': []}}",
                    b"{'execute': 'qmp_capabilities'}", b"{'a': \xff"):
        mine, peer = ours.raw(message), theirs.raw(message)
        assert set(mine) == set(peer), message
        assert mine.get("id") == peer.get("id")
        assert mine.get("error", {}).get("class") == peer.get("error", {}).get("class"), message


def test_hostile_input(daemon):
    """Too long and too deep are errors, and memory stays where it was."""
    def resident():
        fields = open(f"/proc/{daemon.pid}/statm", encoding="ascii").read().split()
        return int(fields[1]) * 4096

    with qmp.connect(daemon) as control:
        before = resident()
        size = harness.count(64, 1024)
        control.socket.sendall(b"{'execute': '")
        piece = b"x" * MiB
        for _ in range(size):
            control.socket.sendall(piece)
        assert "long" in control.answer()["error"]["desc"]
        control.socket.sendall(b"\n" + b"[" * 100000)
        assert "nested" in control.answer()["error"]["desc"]
        assert "control" in control.raw(b"\xff")["error"]["desc"]
        assert control("query-block-exports")
        assert resident() < before + 32 * MiB


def test_several_clients(daemon):
    """Commands of each are answered in order, whatever others do."""
    errors = []

    def client(number):
        try:
            with qmp.connect(daemon) as control:
                for i in range(50):
                    message = json.dumps({"execute": "query-block-exports", "id": [number, i]})
                    control.socket.sendall(message.encode())
                for i in range(50):
                    assert control.answer()["id"] == [number, i]
        except Exception as error:  # pylint: disable=broad-except
            errors.append(error)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_hangs_up_in_the_middle(daemon):
    for data in (b"", b"{", b"{'execute': 'query-named-block-nodes'}" * 200, b"\xff"):
        control = qmp.connect(daemon)
        control.socket.sendall(data)
        control.close()
    with qmp.connect(daemon) as control:
        assert control("query-block-exports")


# ---- The socket

def test_socket_is_private(daemon):
    path = qmp.socket_path(daemon.mountpoints[0])
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    assert "user.blockgraph.control" in os.listxattr(daemon.mountpoints[0])
    daemon.stop()
    assert not os.path.exists(path)


@pytest.mark.parametrize("options", [
    ["--qmp", "unix:q.sock"],
    ["--monitor", "chardev=c", "--chardev", "socket,id=c,path=q.sock,server=on,wait=off"],
])
def test_socket_of_the_users(place, options):
    place.image()
    path = place.path / "q.sock"
    daemon = place.mount(harness.DISK, *options)
    assert qmp.socket_path(daemon.mountpoints[0]) == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Qmp(path) as control:
        assert control("x-blockgraph-status")["pid"] == daemon.pid
    daemon.crash()
    place.run("umount", "-l", daemon.mountpoints[0])
    assert path.exists()
    again = place.mount(harness.DISK, *options, at="again")  # takes the place of the dead one
    with Qmp(path) as control:
        assert control("x-blockgraph-status")["pid"] == again.pid
    place.image("other.img")
    third = place.run(place.binary, "-f", *options, "--format=raw", "other.img", place.directory("third"),
                      check=False)
    assert third.returncode == 1 and "q.sock' is in use" in third.stderr
    again.umount()
    assert not path.exists()


def test_socket_never_replaces_a_file(place):
    place.image()
    place.write("q.sock", "precious")
    message = place.refuse("--qmp", "unix:q.sock", "--format=raw", "disk.img", place.directory())
    assert "q.sock" in message
    assert (place.path / "q.sock").read_text() == "precious"


def test_over_a_file(place):
    """Without a MOUNTPOINT: as qemu-storage-daemon; the file itself names the socket."""
    place.image()
    mountpoint = place.image("vm.img", 0)
    daemon = place.start("--blockdev", "file,node-name=d,filename=disk.img", "--export",
                         f"fuse,id=e,node-name=d,mountpoint={mountpoint},writable=on", mountpoints=[mountpoint])
    with qmp.connect(daemon) as control:
        status = control("x-blockgraph-status")["exports"][0]
        assert status["mountpoint"] == str(mountpoint) and status["own-mountpoint"]


def test_export_deleted(place):
    """One of two mounts goes: an event, and the other stays."""
    place.image()
    first, second = place.image("a", 0), place.image("b", 0)
    daemon = place.start("--blockdev", "file,node-name=d,filename=disk.img",
                         "--export", f"fuse,id=a,node-name=d,mountpoint={first}",
                         "--export", f"fuse,id=b,node-name=d,mountpoint={second}", mountpoints=[first, second])
    with qmp.connect(daemon) as control:
        place.run("umount", second)
        event = control.wait_event("BLOCK_EXPORT_DELETED")
        assert event["data"] == {"id": "b"}
        assert set(event["timestamp"]) == {"seconds", "microseconds"}
        assert [e["id"] for e in control("query-block-exports")] == ["a"]


def test_quit(daemon):
    """Answered, then the mount goes, and what was written is there."""
    with opened(daemon.file("vm.img")) as fd, qmp.connect(daemon) as control:
        os.pwrite(fd, b"last words", 0)
        assert control("quit") == {}
        assert control.answer() is None
    daemon.wait_exit()
    assert (daemon.place.path / "disk.img").read_bytes()[MiB:MiB + 10] == b"last words"


def test_stop_while_clients_are_connected(daemon):
    idle, half = qmp.connect(daemon), qmp.connect(daemon, negotiate=False)
    half.socket.sendall(b"{'execute': ")
    daemon.stop()
    for control in (idle, half):
        assert control.answer() is None
        control.close()


# ---- Queries

def test_nodes(daemon):
    with qmp.connect(daemon) as control:
        nodes = {node["node-name"]: node for node in control("query-named-block-nodes")}
        assert {"host", "disk", "image", "below"} <= set(nodes)
        image = nodes["image"]
        assert (image["drv"], image["ro"], image["backing_file_depth"]) == ("qcow2", False, 1)
        assert image["image"]["virtual-size"] == 3 * MiB
        assert image["image"]["backing-image"]["format"] == "raw"
        assert nodes["below"]["ro"] and nodes["host"]["cache"]["no-flush"]
        flat = control("query-named-block-nodes", flat=True)
        assert not any("backing-image" in node["image"] for node in flat)


def test_status(daemon):
    with qmp.connect(daemon) as control:
        status = control("x-blockgraph-status")
        exports = {export["id"]: export for export in status["exports"]}
        assert exports["vm.img"]["size"] == 4 * MiB and exports["vm.img"]["durable"] == "no"
        assert exports["image"]["node-name"] == "image" and exports["image"]["writable"]


# ---- The graph file of the running graph

def lines_of(picture):
    """In any order."""
    return sorted(picture.splitlines())


def test_graph_round_trip(place, daemon):
    with qmp.connect(daemon) as control:
        graph = control("x-blockgraph-graph", format="conf")
        picture = control("x-blockgraph-graph", format="text")
        edges = control("x-debug-query-block-graph")
        assert json.loads(control("x-blockgraph-graph", format="json"))["exports"]
        assert control("x-blockgraph-graph", format="dot").startswith("digraph")
    content = {name: daemon.file(name).read_bytes() for name in ("vm.img", "image")}
    daemon.stop()
    again = place.mount(graph, at="again")
    with qmp.connect(again) as control:
        assert control("x-blockgraph-graph", format="conf") == graph
        assert lines_of(control("x-blockgraph-graph", format="text")) == lines_of(picture)
        assert len(control("x-debug-query-block-graph")["edges"]) == len(edges["edges"])
    assert {name: again.file(name).read_bytes() for name in content} == content
    assert "locking = off" in graph and "l2-cache-size = 1M" in graph and "[iothread io1]" in graph
    with opened(again.file("image")) as fd:
        os.ftruncate(fd, 5 * MiB)
    assert again.file("image").stat().st_size == 5 * MiB


@pytest.mark.parametrize("name, why", [("a]b", "a]b"), (" blank", " blank")])
def test_graph_that_no_file_can_say(place, name, why):
    place.image()
    source = json.dumps({"nodes": [{"node-name": name, "driver": "file", "filename": "disk.img"}]})
    daemon = place.mount(source)
    with qmp.connect(daemon) as control:
        assert why in refused(control, "x-blockgraph-graph", format="conf").desc


def test_while_a_command_waits(place, daemon):
    """A client whose command is slow holds up no other's."""
    with qmp.connect(daemon) as slow, qmp.connect(daemon) as quick:
        for i in range(5):
            slow.socket.sendall(json.dumps({"execute": "x-blockgraph-snapshot-create", "arguments": {
                "name": f"s{i}", "exports": ["image"]}}).encode())
        assert quick("query-block-exports")
        for _ in range(5):
            assert slow.answer() == {"return": {}}
        assert [s["name"] for s in quick("x-blockgraph-snapshot-list")] == [f"s{i}" for i in range(5)]


def test_internal_snapshots(place, daemon):
    """QEMU's commands for them, and what qemu-img sees."""
    with opened(daemon.file("image")) as fd, qmp.connect(daemon) as control:
        os.pwrite(fd, b"first", 64 * KiB)
        assert control("blockdev-snapshot-internal-sync", device="image", name="one") == {}
        os.pwrite(fd, b"other", 64 * KiB)
        assert "one" in refused(control, "blockdev-snapshot-internal-sync", device="image", name="one").desc
        control("blockdev-snapshot-internal-sync", device="image", name="two")
        refused(control, "blockdev-snapshot-delete-internal-sync", device="image")
        refused(control, "blockdev-snapshot-delete-internal-sync", device="image", name="three")
        info = control("blockdev-snapshot-delete-internal-sync", device="image", name="two")
        assert set(info) >= {"id", "name", "vm-state-size", "date-sec", "date-nsec", "vm-clock-sec"}
        assert info["name"] == "two"
    daemon.stop()
    listed = place.run("qemu-img", "snapshot", "-l", "image.qcow2").stdout
    assert "one" in listed and "two" not in listed
