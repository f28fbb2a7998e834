"""The running graph as files (.graph) and as extended attributes.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import errno
import json
import os
import re

import pytest

import fileio
from fileio import opened
from system import MiB

GRAPH = """
[node host]
driver = file
filename = disk.img

[node disk]
driver = raw
file = host

[node zeroes]
driver = null-co
size = 1M
read-zeroes = on

[export vm.img]
node = disk
writable = on

[export zeroes]
node = zeroes
"""


@pytest.fixture
def daemon(place):
    place.image("disk.img", 16 * MiB, b"content")
    return place.mount(GRAPH)


def xattr(path, name):
    return os.getxattr(path, f"user.blockgraph.{name}").decode()


def test_is_hidden_but_there(daemon):
    root = daemon.mountpoints[0]
    assert sorted(os.listdir(root)) == ["vm.img", "zeroes"]
    assert {"graph.json", "graph.dot", "graph.txt", "metrics", "errors", "nodes"} <= set(
        os.listdir(root / ".graph"))
    assert sorted(os.listdir(root / ".graph/nodes")) == ["disk", "host", "zeroes"]


def test_graph_txt(daemon):
    text = daemon.graph("graph.txt")
    lines = text.splitlines()
    assert any(line.startswith("vm.img") and "writable" in line for line in lines)
    disk = next(i for i, line in enumerate(lines) if "disk: raw, 16 MiB" in line)
    assert "host: file, 16 MiB" in lines[disk + 1] and "disk.img" in lines[disk + 1]
    assert "zeroes: null-co, 1 MiB" in text


def test_graph_json(daemon):
    graph = json.loads(daemon.graph("graph.json"))
    nodes = {node["node-name"]: node for node in graph["nodes"]}
    assert set(nodes) == {"host", "disk", "zeroes"}
    assert nodes["disk"]["driver"] == "raw"
    assert nodes["disk"]["size"] == 16 * MiB
    assert [(c["name"], c["node-name"]) for c in nodes["disk"]["children"]] == [("file", "host")]
    assert "write" in nodes["disk"]["children"][0]["perm"]
    exports = {export["id"]: export for export in graph["exports"]}
    assert exports["vm.img"]["node-name"] == "disk" and exports["vm.img"]["writable"]
    assert not exports["zeroes"]["writable"]


def test_graph_dot(place, daemon):
    dot = daemon.mountpoints[0] / ".graph/graph.dot"
    picture = place.run("dot", "-Tsvg", dot).stdout
    assert "<svg" in picture
    for name in ("host", "disk", "zeroes", "vm.img", "null"):
        assert name in picture


def parse_metrics(text):
    """{(name, labels): value}, having checked every line against Prometheus' text format."""
    samples, types = {}, {}
    sample = re.compile(r'([a-zA-Z_:][\w:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (\S+)$')
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in types, f"two TYPE lines for {name}"
            types[name] = kind
        elif not line.startswith("#"):
            match = sample.match(line)
            assert match, f"not in the format: {line}"
            name, labels, value = match.groups()
            family = re.sub(r"_(bucket|sum|count)$", "", name) if name not in types else name
            assert family in types, f"no TYPE before {line}"
            key = (name, tuple(sorted(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels or ""))))
            assert key not in samples, f"twice: {line}"
            samples[key] = float(value)
    return samples


def metric(daemon, name, **labels):
    return parse_metrics(daemon.graph("metrics"))[(name, tuple(sorted(labels.items())))]


def test_metrics_count(daemon):
    operations = {"node": "disk", "operation": "write"}
    before = metric(daemon, "blockgraph_node_operations_total", **operations)
    with opened(daemon.file("vm.img")) as fd:
        for i in range(10):
            os.pwrite(fd, bytes(4096), i * 4096)
    assert metric(daemon, "blockgraph_node_operations_total", **operations) == before + 10
    assert metric(daemon, "blockgraph_node_bytes_total", **operations) == 10 * 4096
    assert metric(daemon, "blockgraph_node_errors_total", **operations) == 0
    assert metric(daemon, "blockgraph_node_size_bytes", node="disk") == 16 * MiB
    assert metric(daemon, "blockgraph_errors_total") == 0


def test_metrics_histograms_add_up(daemon):
    with opened(daemon.file("vm.img")) as fd:
        for i in range(50):
            os.pread(fd, 4096, i * 4096)
    samples = parse_metrics(daemon.graph("metrics"))
    name = "blockgraph_node_latency_seconds"
    labels = (("node", "disk"), ("operation", "read"))
    buckets = sorted((float(dict(key[1])["le"]), value) for key, value in samples.items()
                     if key[0] == f"{name}_bucket" and set(labels) <= set(key[1]))
    counts = [value for _, value in buckets]
    assert counts == sorted(counts), "buckets are not cumulative"
    assert buckets[-1][0] == float("inf")
    assert buckets[-1][1] == samples[(f"{name}_count", labels)] >= 50
    assert samples[(f"{name}_sum", labels)] > 0


def test_node_data_is_its_content(daemon):
    nodes = daemon.mountpoints[0] / ".graph/nodes"
    for name in ("host", "disk"):
        status = os.stat(nodes / name / "data")
        assert status.st_size == 16 * MiB
        with opened(nodes / name / "data", os.O_RDONLY) as fd:
            assert os.pread(fd, 7, 0) == b"content"
    with opened(daemon.file("vm.img")) as fd:
        os.pwrite(fd, b"changed", 0)
        with opened(nodes / "host/data", os.O_RDONLY) as data:
            assert os.pread(data, 7, 0) == b"changed"


def test_node_options_and_stats(daemon):
    nodes = daemon.mountpoints[0] / ".graph/nodes"
    options = json.loads((nodes / "host/options.json").read_text())
    assert options["driver"] == "file"
    assert options["filename"].endswith("disk.img")
    stats = json.loads((nodes / "disk/stats.json").read_text())
    assert stats["node-name"] == "disk"
    assert {"operations", "bytes", "errors", "latency-histogram-us"} <= set(stats["read"])


def test_children_are_links(daemon):
    nodes = daemon.mountpoints[0] / ".graph/nodes"
    assert os.readlink(nodes / "disk/children/file") == "../../host"
    assert sorted(os.listdir(nodes / "disk/children/file")) == sorted(os.listdir(nodes / "host"))
    assert os.listdir(nodes / "host/children") == []


def test_is_read_only(daemon):
    graph = daemon.mountpoints[0] / ".graph"
    for path in (graph / "graph.txt", graph / "nodes/disk/data", graph / "metrics"):
        with pytest.raises(OSError) as caught:
            os.open(path, os.O_RDWR)
        assert caught.value.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
    for attempt in (lambda: os.unlink(graph / "graph.txt"), lambda: os.mkdir(graph / "new"),
                    lambda: os.truncate(graph / "nodes/disk/data", 0), lambda: os.rmdir(graph / "nodes")):
        with pytest.raises(OSError):
            attempt()
    assert os.stat(graph / "nodes/disk/data").st_size == 16 * MiB


def test_reading_in_pieces(daemon):
    """A reader with a small buffer sees one state of the file, not a mixture."""
    path = daemon.mountpoints[0] / ".graph/metrics"
    with opened(path, os.O_RDONLY) as fd:
        pieces = []
        while piece := os.read(fd, 100):
            pieces.append(piece)
            with opened(daemon.file("vm.img")) as export:
                os.pwrite(export, b"x", 0)
    parse_metrics(b"".join(pieces).decode())


def test_shell_tools_read_it(place, daemon):
    graph = daemon.mountpoints[0] / ".graph"
    assert "disk: raw" in place.run("cat", graph / "graph.txt").stdout
    assert "disk" in place.run("grep", "-r", "node-name", graph / "nodes/disk/stats.json").stdout
    found = place.run("find", graph).stdout
    assert f"{graph}/nodes/disk/data" in found
    place.run("wc", "-c", graph / "graph.json")


def test_extended_attributes(place, daemon):
    path = daemon.file("vm.img")
    names = {f"user.blockgraph.{n}" for n in ("driver", "node", "filename", "allocated", "durable")}
    assert names <= set(os.listxattr(path))
    assert xattr(path, "driver") == "raw"
    assert xattr(path, "node") == "disk"
    assert xattr(path, "filename").endswith("disk.img")
    assert xattr(path, "durable") == "yes"
    assert int(xattr(path, "allocated")) == (place.path / "disk.img").stat().st_blocks * 512
    assert xattr(daemon.file("zeroes"), "driver") == "null-co"
    place.run("getfattr", "-d", path)


def test_unknown_attributes(daemon):
    path = daemon.file("vm.img")
    for name in ("user.blockgraph.nothing", "user.other", "security.capability"):
        with pytest.raises(OSError) as caught:
            os.getxattr(path, name)
        assert caught.value.errno == errno.ENODATA
    with pytest.raises(OSError):
        os.setxattr(path, "user.blockgraph.driver", b"x")
    assert xattr(path, "driver") == "raw"


def test_allocated_follows(place, daemon):
    path = daemon.file("vm.img")
    before = int(xattr(path, "allocated"))
    with opened(path) as fd:
        os.pwrite(fd, fileio.pattern(4 * MiB), 8 * MiB)
        os.fsync(fd)
    assert int(xattr(path, "allocated")) >= before + 4 * MiB


def test_names_that_need_escapes(place):
    place.image('quote".img', MiB)
    daemon = place.mount(r"""
        [node odd]
        driver = file
        filename = quote".img
        """)
    graph = json.loads(daemon.graph("graph.json"))
    assert graph["nodes"][0]["filename"].endswith('quote".img')
    place.run("dot", "-Tsvg", daemon.mountpoints[0] / ".graph/graph.dot")
    parse_metrics(daemon.graph("metrics"))
