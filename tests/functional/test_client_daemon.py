"""blockgraph with a running daemon: status, tree, graph, snapshot.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import json
import os
import re

import pytest

import harness
import qcow2
from fileio import opened
from system import MiB

TWO = """
[node vm]
driver = qcow2
file.driver = file
file.filename = vm.qcow2

[node data]
driver = qcow2
file.driver = file
file.filename = data.qcow2

[export vm.img]
node = vm
writable = on

[export data.img]
node = data
writable = on

[export view]
node = data
"""


@pytest.fixture
def daemon(place):
    qcow2.create(place, "vm.qcow2", "", 8 * MiB)
    qcow2.create(place, "data.qcow2", "", 4 * MiB)
    return place.mount(TWO)


@pytest.fixture
def client(place, daemon):
    """Run the client on the mount; what it said."""
    def run(*words, status=0):
        words = [daemon.mountpoints[0] if word == "MNT" else word for word in words]
        done = place.client(*words, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        assert (done.stderr == "") == (status == 0)
        return done.stdout if status == 0 else done.stderr
    return run


def put(daemon, name, data, at=0):
    with opened(daemon.file(name)) as fd:
        os.pwrite(fd, data, at)


def get(daemon, name, size, at=0):
    with open(daemon.file(name), "rb", buffering=0) as file:
        return os.pread(file.fileno(), size, at)


def test_status(daemon, client):
    lines = client("status", "MNT").splitlines()
    assert lines[0].startswith(f"{daemon.mountpoints[0]}: blockgraphfs ") and f"process {daemon.pid}," in lines[0]
    assert lines[1].split() == ["EXPORT", "SIZE", "ACCESS", "DURABLE", "NODE"]
    assert [line.split() for line in lines[2:]] == [
        ["vm.img", "8", "MiB", "writable", "yes", "vm", "(qcow2)"],
        ["data.img", "4", "MiB", "writable", "yes", "data", "(qcow2)"],
        ["view", "4", "MiB", "read-only", "yes", "data", "(qcow2)"]]
    status = json.loads(client("status", "--json", "MNT"))
    assert [export["id"] for export in status["exports"]] == ["vm.img", "data.img", "view"]


def test_by_a_file_of_its_own(place):
    place.image()
    mountpoint = place.image("vm.img", 0)
    place.start("--blockdev", "file,node-name=d,filename=disk.img", "--export",
                f"fuse,id=e,node-name=d,mountpoint={mountpoint}", mountpoints=[mountpoint])
    assert str(mountpoint) in place.client("status", mountpoint).stdout.splitlines()[2]


def test_pretty_socket(place):
    """A monitor that indents what it says."""
    place.image()
    daemon = place.mount(harness.DISK, "--chardev", "socket,id=c,path=q,server=on,wait=off",
                         "--monitor", "chardev=c,pretty=on")
    assert json.loads(place.client("status", "--json", daemon.mountpoints[0]).stdout)["pid"] == daemon.pid


def test_tree_and_graph(daemon, client):
    assert client("tree", "MNT") == daemon.graph("graph.txt") == client("graph", "MNT")
    assert client("graph", "--format=dot", "MNT") == daemon.graph("graph.dot")
    pictures = [json.loads(client(*words, "MNT")) for words in (
        ["tree", "--json"], ["graph", "--json"], ["graph", "--format=json"])]
    assert all(set(picture) == {"exports", "nodes"} for picture in pictures)
    assert client("graph", "--format", "conf", "MNT").startswith("[node vm]\ndriver = qcow2\n")
    assert "did you mean 'conf'" in client("graph", "--format=cnof", "MNT", status=1)


def test_snapshots_inside(daemon, client):
    put(daemon, "vm.img", b"old")
    put(daemon, "data.img", b"old")
    assert client("snapshot", "create", "MNT", "first") == ""
    put(daemon, "vm.img", b"new")
    assert client("snapshot", "create", "MNT", "second", "vm.img") == ""
    rows = [line.split()[:2] for line in client("snapshot", "list", "MNT", "vm.img", "data.img").splitlines()]
    assert rows == [["EXPORT", "SNAPSHOT"], ["vm.img", "first"], ["vm.img", "second"], ["data.img", "first"]]
    listed = json.loads(client("snapshot", "list", "--json", "MNT", "vm.img"))
    assert [(s["export"], s["name"], s["size"]) for s in listed] == [
        ("vm.img", "first", 8 * MiB), ("vm.img", "second", 8 * MiB)]
    assert sorted(os.listdir(daemon.mountpoints[0] / ".snap")) == ["first", "second"]
    assert "already" in client("snapshot", "create", "MNT", "first", status=1)
    put(daemon, "data.img", b"new")
    assert client("snapshot", "revert", "MNT", "first", "vm.img") == ""
    assert get(daemon, "vm.img", 3) == b"old" and get(daemon, "data.img", 3) == b"new"
    assert client("snapshot", "delete", "MNT", "second") == ""
    assert client("snapshot", "delete", "MNT", "first") == ""
    assert client("snapshot", "list", "MNT") == ""
    assert "no writable export has a snapshot 'first'" in client("snapshot", "delete", "MNT", "first", status=1)


def test_external(place, daemon, client):
    with opened(daemon.file("vm.img")) as fd:
        os.pwrite(fd, b"old", 0)
        said = client("snapshot", "create", "--external", "MNT", "s1")
        assert "blockgraph graph --format=conf" in said
        os.pwrite(fd, b"new", 0)
        client("snapshot", "create", "--external=%d/%s-of-%e", "--json", "MNT", "s2", "vm.img")
        os.pwrite(fd, b"NEW", 0)
    assert {"vm.img.s1.qcow2", "data.img.s1.qcow2", "s2-of-vm.img"} <= set(os.listdir(place.path))
    graph = client("graph", "--format=conf", "MNT")
    daemon.stop()
    again = place.mount(graph, at="again")
    assert get(again, "vm.img", 3) == b"NEW"
    for image, start in (("vm.qcow2", b"old"), ("vm.img.s1.qcow2", b"new"), ("s2-of-vm.img", b"NEW")):
        assert qcow2.content(place, image)[:3] == start
    again.stop()
    for image in ("vm.qcow2", "vm.img.s1.qcow2", "s2-of-vm.img"):
        qcow2.check(place, image)


def test_where_external_files_go(place, daemon, client):
    directory = place.path / "elsewhere"
    directory.mkdir()
    client("snapshot", "create", f"--external={directory}/%%%e", "MNT", "s", "vm.img")
    assert os.listdir(directory) == ["%vm.img"]
    client("snapshot", "create", "--external=elsewhere/2", "MNT", "s", "vm.img")  # from where the client is
    assert (directory / "2").exists()
    assert "'/%x'" in client("snapshot", "create", "--external=/%x", "MNT", "s", "vm.img", status=1)
    before = client("graph", "--format=conf", "MNT")
    assert "exist" in client("snapshot", "create", "--external=elsewhere/2", "MNT", "s", status=1)
    assert "cannot make" in client("snapshot", "create", "--external=/nowhere/%e", "MNT", "s", status=1)
    assert client("graph", "--format=conf", "MNT") == before


@pytest.mark.parametrize("words, message", [
    (["snapshot", "crate", "MNT", "x"], "expected create, list, delete or revert, not 'crate'"),
    (["snapshot", "create", "MNT"], "NAME is missing"),
    (["snapshot", "delete", "--external", "MNT", "x"], "--external goes with create"),
    (["snapshot", "list"], "too few arguments"),
    (["status"], "too few arguments"),
    (["graph", "MNT", "x"], "too many arguments"),
])
def test_bad_usage(client, words, message):
    assert message in client(*words, status=2)


@pytest.mark.parametrize("words, message", [
    (["snapshot", "create", "MNT", "a/b"], "contains '/'"),
    (["snapshot", "create", "MNT", "x", "vm.igm"], "there is no export 'vm.igm', did you mean 'vm.img'?"),
    (["snapshot", "revert", "MNT", "x", "vm.img"], "no snapshot 'x'"),
])
def test_refused_by_the_daemon(client, words, message):
    said = client(*words, status=1)
    assert said.startswith(f"blockgraph: snapshot {words[1]}: ") and message in said


def test_no_daemon(place):
    assert "not the mountpoint" in place.client("status", place.path, check=False).stderr
    assert "No such file" in place.client("status", place.path / "nothing", check=False).stderr


def test_terminal_is_safe(place):
    """A name in an image of others' is no way to a terminal's escapes."""
    qcow2.create(place, "vm.qcow2", "", 1 * MiB)
    place.run("qemu-img", "snapshot", "-c", "evil\x1b[31m", "vm.qcow2")
    daemon = place.start("--format=qcow2", "vm.qcow2", place.directory(), mountpoints=[place.path / "mnt"])
    text = place.client("snapshot", "list", daemon.mountpoints[0]).stdout
    assert "\x1b" not in text and re.search(r"evil\?\[31m", text)
