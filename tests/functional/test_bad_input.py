"""Bad input: a message that names the culprit, exit status 1, nothing mounted, no process left.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import shutil
import subprocess
import time

import pytest

import harness
import system
from harness import DISK
from system import MiB

FILE = "[node disk]\ndriver = file\nfilename = disk.img\n"


@pytest.fixture
def refuse_graph(place):
    """refuse_graph(text, *culprits): the daemon refuses the graph, quickly, and names the culprits."""

    def refuse(text, *culprits, name="lab.conf"):
        source = place.write(name, text)
        mountpoint = place.directory()
        started = time.monotonic()
        message = place.refuse(name, mountpoint)
        assert time.monotonic() - started < 10
        for culprit in culprits:
            assert culprit in message, message
        assert message.startswith("blockgraphfs: ") and len(message.splitlines()) == 1
        assert not system.children(mountpoint)
        assert os.listdir(mountpoint) == []
        source.unlink()
        return message

    place.image("disk.img", MiB)
    return refuse


@pytest.mark.parametrize("text, culprits", [
    ("[node a]\ndriver = fil\nfilename = disk.img\n", ["lab.conf:2", "'a'", "driver", "'file'"]),
    ("[node a]\nfilename = disk.img\n", ["lab.conf:1", "'a'", "driver", "required"]),
    ("[node a]\ndriver = file\nfilname = disk.img\n", ["lab.conf:3", "'filname'", "'filename'"]),
    ("[node a]\ndriver = file\n", ["lab.conf:1", "'filename'", "required"]),
    ("[node a]\ndriver = file\nfilename =\n", ["lab.conf:3", "'filename'", "empty"]),
    ("[node a]\ndriver = raw\n", ["lab.conf:1", "'file'", "required"]),
    ("[node a]\ndriver = file\nfilename = absent.img\n", ["lab.conf:3", "'filename'", "absent.img", "No such file"]),
    ("[node a]\ndriver = raw\nfile.driver = file\nfile.filename = absent.img\n",
     ["lab.conf:4", "'file.filename'", "absent.img"]),
    (FILE + "read-only = maybe\n", ["lab.conf:4", "'read-only'", "maybe"]),
    (FILE + "aio = io_ring\n", ["lab.conf:4", "'aio'", "'io_uring'"]),
    (FILE + "discard = unmpa\n", ["lab.conf:4", "'discard'", "'unmap'"]),
    (FILE + "detect-zeroes = unmap\ndiscard = ignore\n", ["lab.conf:4", "detect-zeroes", "contradicts"]),
    (FILE + "cache.dirct = on\n", ["lab.conf:4", "'cache.dirct'", "direct"]),
    (FILE + "[export x]\nnode = dsik\n", ["lab.conf:5", "'dsik'", "'disk'"]),
    (FILE + "[exprt x]\nnode = disk\n", ["lab.conf:4", "'exprt'", "'export'"]),
    (FILE + "[export x]\nnode = disk\nwriteable = on\n", ["lab.conf:6", "'writeable'", "'writable'"]),
    (FILE + "[export a/b]\nnode = disk\n", ["lab.conf:4", "a/b", "/"]),
    (FILE + "[export .]\nnode = disk\n", ["lab.conf:4", "'.'"]),
    (FILE + "[export ..]\nnode = disk\n", ["lab.conf:4", "'..'"]),
    (FILE + "[export ]\nnode = disk\n", ["lab.conf:4", "name"]),
    (FILE + "[export .graph]\nnode = disk\n", ["lab.conf:4", ".graph"]),
    (FILE + "[export .snap]\nnode = disk\n", ["lab.conf:4", ".snap"]),
    (FILE + "[export " + 256 * "x" + "]\nnode = disk\n", ["lab.conf:4", "255"]),
    (FILE + "[node disk]\ndriver = null-co\n", ["lab.conf:4", "'disk'", "lab.conf:1"]),
    (FILE + "filename = other.img\n", ["lab.conf:4", "'filename'", "line 3"]),
    (FILE + "[throttle-group slow]\nlimits.iops-totl = 500\n", ["lab.conf:5", "'slow'", "'limits.iops-total'"]),
    (FILE + "[node t]\ndriver = throttle\nfile = disk\nthrottle-group = solw\n[throttle-group slow]\n",
     ["lab.conf:7", "'t'", "'throttle-group'", "'solw'", "'slow'"]),
    (FILE + "[secret s]\nfile = x\n", ["secret 's'", "/x'", "No such file"]),
    (FILE + "[secret s]\ndata = letmein\n", ["lab.conf:5", "'data'"]),
    (FILE + "[throttle-group ]\n", ["lab.conf:4", "name"]),
    ("[node a]\ndriver = null-co\nsize = -1\n", ["lab.conf:3", "'size'", "-1"]),
    ("[node a]\ndriver = null-co\nsize = 9E\n", ["lab.conf:3", "'size'", "9E"]),
    ("[node a]\ndriver = null-co\nsize = 99999999999999999999999\n", ["lab.conf:3", "'size'"]),
    ("[node a]\ndriver = null-co\nsize = 1X\n", ["lab.conf:3", "'size'", "1X"]),
    ("[node a]\ndriver = null-co\nlatency-ns = 1e9\n", ["lab.conf:3", "'latency-ns'"]),
    ("[node a]\ndriver = null-co\nlatency-ns = 18446744073709551616\n", ["lab.conf:3", "'latency-ns'"]),
    (FILE + "[node w]\ndriver = raw\nfile = disk\noffset = 2M\n", ["lab.conf:7", "'offset'"]),
    (FILE + "[node w]\ndriver = raw\nfile = disk\noffset = 1k\nsize = 1M\n", ["'size'"]),
    ("[node a]\ndriver = raw\nfile = a\n", ["lab.conf:3", "a -> a"]),
    ("[node a]\ndriver = raw\nfile = b\n[node b]\ndriver = raw\nfile = c\n[node c]\ndriver = raw\nfile = a\n",
     ["lab.conf:9", "a -> b -> c -> a"]),
    ("[node a]\ndriver = raw\nfile = bsae\n[node base]\ndriver = null-co\n", ["lab.conf:3", "'bsae'", "'base'"]),
    ("", ["lab.conf", "no node"]),
    ("driver = file\n", ["lab.conf:1", "section"]),
    ("{}\n", ["lab.conf:1"]),
    ("[node a\n", ["lab.conf:1", "']'"]),
], ids=lambda value: value[:60].replace("\n", ";") if isinstance(value, str) else "")
def test_graph(refuse_graph, text, culprits):
    refuse_graph(text, *culprits)


@pytest.mark.parametrize("text, culprits", [
    ('{"nodes": [}', ["lab.json:1"]),
    ('{\n"nodes": [\n{"driver": "file",\n}]}', ["lab.json:4"]),
    ('{"nodes": [{"node-name": "a", "driver": "file", "filename": "absent.img"}]}', ["lab.json:1", "absent.img"]),
    ('{"nodes": [{"node-name": "a", "driver": "file",\n "filename": "absent.img"}]}', ["lab.json:2", "absent.img"]),
    ('{"nodes": [{"node-name": "a", "driver": "null-co",\n "size": -5}]}', ["lab.json:2", "-5"]),
    ('{"nodes": [{"node-name": "a", "driver": "null-co",\n "size": 1e400}]}', ["lab.json:2", "1e400"]),
    ('{"nodes": [{"node-name": "a", "driver": "null-co",\n "size": true}]}', ["lab.json:2", "'size'"]),
    ('{"nodes": [{"node-name": "a", "driver": "null-co",\n "driver": "file"}]}', ["lab.json:2", "twice"]),
    ('{"nodes": [{"driver": "null-co"}]}', ["lab.json:1", "node-name"]),
    ('{"node": []}', ["lab.json:1", "'node'", "'nodes'"]),
    ('[]', ["lab.json", "object"]),
    ('', ["lab.json:1"]),
    (100000 * '[', ["lab.json:1", "deep"]),
    ('{"nodes": ' + 100000 * '{"a":', ["lab.json:1", "deep"]),
], ids=lambda value: value[:60].replace("\n", ";") if isinstance(value, str) else "")
def test_graph_in_json(refuse_graph, text, culprits):
    refuse_graph(text, *culprits, name="lab.json")


def test_graph_with_nul_and_latin_1(place):
    place.image("disk.img", MiB)
    for content, culprits in ((FILE.encode() + b"x = \0\n", ["lab.conf:4", "NUL"]),
                              (FILE.encode() + b"# \xe4\n", ["lab.conf:4", "UTF-8"])):
        (place.path / "lab.conf").write_bytes(content)
        message = place.refuse("lab.conf", place.directory())
        assert all(culprit in message for culprit in culprits), message


def test_graph_file_that_is_none(place):
    mountpoint = place.directory()
    os.mkfifo(place.path / "fifo.conf")
    place.directory("directory.conf")
    os.symlink("loop.conf", place.path / "loop.conf")
    os.symlink("/dev/zero", place.path / "zero.conf")
    with open(place.path / "huge.conf", "wb") as huge:
        huge.truncate(1 << 40)
    for name, why in (("fifo.conf", "FIFO"), ("directory.conf", "directory"), ("loop.conf", "symbolic links"),
                      ("zero.conf", "character device"), ("huge.conf", "MiB"), ("absent.conf", "No such file"),
                      ("absent/lab.conf", "No such file"), (300 * "x" + ".conf", "too long")):
        message = place.refuse(name, mountpoint)
        assert name in message and why in message, message


def test_image_that_is_none(place):
    mountpoint = place.directory()
    os.mkfifo(place.path / "fifo")
    place.directory("directory")
    for name, why in (("fifo", "FIFO"), ("directory", "directory"), ("/dev/null", "character device"),
                      ("absent.img", "No such file")):
        for words in ([name], ["--format=raw", name],
                      ["--blockdev", f"file,node-name=n,filename={name}", "none"]):
            message = place.refuse(*words, mountpoint)
            assert name in message, message
    for name in ("fifo", "directory"):
        text = f"[node n]\ndriver = file\nfilename = {name}\n"
        place.write("lab.conf", text)
        message = place.refuse("lab.conf", mountpoint)
        assert "lab.conf:3" in message and name in message, message


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")
@pytest.mark.parametrize("fmt", ["qcow", "vmdk", "vdi", "vhdx", "vpc", "qed", "parallels"])
def test_probed_format_without_driver(place, fmt):
    place.run("qemu-img", "create", "-q", "-f", fmt, "x.img", "4M")
    message = place.refuse("x.img", place.directory())
    assert "x.img" in message and fmt in message and "--format=raw" in message


@pytest.mark.parametrize("uri", ["rbd:pool/image", "ssh://user:password@host/x.img", "nfs://host/x", "nbd:unix:/x"])
def test_uri_without_driver(place, uri):
    message = place.refuse(uri, place.directory())
    assert uri.split(":", maxsplit=1)[0] in message and "password" not in message


@pytest.mark.parametrize("uri, cause", [
    ("nbd+unix:///?socket=/nowhere/sock", "No such file"), ("nbd://127.0.0.1:1/export", "refused"),
    ("http://127.0.0.1:1/x", "127.0.0.1:1"), ("http://user:letmein@127.0.0.1:1/x", "password-secret")])
def test_uri_of_no_server(place, uri, cause):
    message = place.refuse(uri, place.directory(), timeout=30)
    assert cause in message and "letmein" not in message, message


@pytest.mark.parametrize("words, culprit", [
    (["--blokdev", "x"], "--blockdev"),
    (["-o", "roo"], "'ro'"),
    (["-o", "queues=0"], "queues=0"),
    (["-o", "queues=-1"], "queues=-1"),
    (["-o", "queues=1000000000"], "queues=1000000000"),
    (["-o", "queues=4", "-s"], "queues=4"),
    (["-o", "transport=uring"], "transport=uring"),
    (["-o", "cache=writeback"], "cache=writeback"),
    (["-o", "event-loop=select"], "event-loop=select"),
    (["-o", "allow_root"], "allow_root"),
    (["-o", "auto_unmount,event-loop=io_uring"], "contradicts auto_unmount"),
    (["-o", "uid=5"], "uid=5"),
    (["--daemonize"], "--daemonize"),
    (["--format", "rwa"], "'raw'"),
    (["-o", "format=rwa"], "'raw'"),
    (["-o", "format="], "-o format="),
    (["--format", "raw", "-o", "format=null-co"], "--format raw contradicts -o format=null-co"),
    (["--monitor", "chardev=c"], "--monitor"),
    (["--chardev", "socket,id=c,path=x"], "--chardev"),
    (["--object", "secret,id=s,file=/dev/null"], "secret 's'"),
    (["--object", "secret,id=s,data=letmein"], "option 'data'"),
    (["--object", "throttle-group,id=s,limits.bps-total=fast"], "option 'limits.bps-total'"),
    (["--object", "iothread,id=a", "--object", "iothread,id=b", "-o", "queues=1"], "queues"),
    (["--object", "iothred,id=a"], "iothread"),
    (["--object", "iothread,id=a,poll-max-ns=1000001"], "option 'poll-max-ns'"),
    (["--object", "iothread,id=a,poll-max-ns=often"], "option 'poll-max-ns'"),
    (["--object", "iothread,id=a,poll-grow=2"], "option 'poll-grow': is not supported"),
    (["--blockdev", "raw"], "node-name"),
    (["--blockdev", "help"], "no driver is named 'help'; there are blklogwrites, file, "),
    (["--blockdev", "fil"], "no driver is named 'fil'; did you mean 'file'?"),
    (["--blockdev", "raw,node-name=disk,file=x"], "disk"),
    (["--blockdev", "{"], "JSON"),
    (["--export", "fuse,id=e,node-name=disk,iothread=io"], "iothread"),
    (["extra"], "extra"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_command_line(place, words, culprit):
    place.image("disk.img", MiB)
    place.write("lab.conf", DISK)
    message = place.refuse("lab.conf", place.directory(), *words)
    assert culprit in message and len(message.splitlines()) == 1, message


def test_mountpoint(place):
    place.image("disk.img", MiB)
    place.write("lab.conf", DISK)
    place.write("file", "")
    for name in ("absent", "file", "absent/below"):
        message = place.refuse("lab.conf", name)
        assert name in message, message
    assert "MOUNTPOINT" in place.refuse("lab.conf")


def test_busy_mountpoint(place, disk):
    mountpoint = disk.mountpoints[0]
    place.image("other.img", MiB)
    place.write("other.conf", DISK.replace("disk.img", "other.img"))
    command = [*place.wrapper, place.binary, "-f", "other.conf", mountpoint]
    done = place.run(*command, check=False)
    assert done.returncode == 1 and str(mountpoint) in done.stderr
    assert len(system.mounts(mountpoint)) == 1
    assert os.listdir(mountpoint) == ["disk"]


def test_second_mount_fails_first_is_taken_down(place):
    """The last of three mounts is impossible: the two before are gone as well."""
    image = place.image("disk.img", MiB)
    mountpoint, first = place.directory(), place.write("first", "below")
    message = place.refuse("--blockdev", f"file,node-name=n,filename={image}",
                           "--export", "fuse,id=dir,node-name=n",
                           "--export", f"fuse,id=one,node-name=n,mountpoint={first}",
                           "--export", f"fuse,id=two,node-name=n,mountpoint={place.path}/absent",
                           "none", mountpoint)
    assert "'two'" in message and "absent" in message
    assert first.read_text() == "below" and os.listdir(mountpoint) == []


def test_two_writers_of_one_image(place):
    image = place.image("disk.img", MiB)
    message = place.refuse("--blockdev", f"file,node-name=a,filename={image}",
                           "--blockdev", f"file,node-name=b,filename={image}",
                           "--export", "fuse,id=a,node-name=a,writable=on",
                           "--export", "fuse,id=b,node-name=b,writable=on", "none", place.directory())
    assert "disk.img" in message


def test_writable_export_of_a_read_only_node(place):
    place.image("disk.img", MiB)
    place.write("lab.conf", FILE + "read-only = on\n[export e]\nnode = disk\nwritable = on\n")
    message = place.refuse("lab.conf", place.directory())
    assert "'e'" in message and "read-only" in message


def test_unwritable_image(place):
    """Even root cannot write what is immutable or on a read-only file system; users meet EACCES."""
    image = place.image("disk.img", MiB)
    target = place.directory("ro")
    place.run("mount", "--bind", place.path, target)
    try:
        place.run("mount", "-o", "remount,ro,bind", target)
        message = place.run(place.binary, "-f", "--format=raw", target / image.name, place.directory(), check=False)
        assert message.returncode == 1 and "disk.img" in message.stderr
    finally:
        place.run("umount", target)


def test_strict_sync(place):
    place.image("disk.img", MiB)
    place.write("lab.conf", FILE + "cache.no-flush = on\n")
    message = place.refuse("-o", "strict-sync", "lab.conf", place.directory())
    assert "'disk'" in message


def test_file_inside_our_own_mount(place, disk):
    other = place.directory("other")
    done = place.run(place.binary, "-f", "--format=raw", disk.file("disk"), other, check=False)
    assert done.returncode == 1 and str(disk.file("disk")) in done.stderr
    assert not system.is_mounted(other)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes the device away, in a mount namespace of its own")
def test_no_dev_fuse(place):
    image = place.image("disk.img", MiB)
    mountpoint = place.directory()
    script = 'mount -t tmpfs none /dev && exec "$@"'
    done = place.run("unshare", "-m", "sh", "-c", script, "sh", place.binary, "-f", "--format=raw", image, mountpoint,
                     check=False)
    assert done.returncode == 1 and "/dev/fuse" in done.stderr, done.stderr


def test_failed_start_in_the_background(place):
    """The command that waits says what the daemon said, and no process stays."""
    mountpoint = place.directory()
    place.write("lab.conf", DISK)
    done = place.run(place.binary, "lab.conf", mountpoint, check=False)
    assert done.returncode == 1
    assert "lab.conf:4" in done.stderr and "disk.img" in done.stderr
    assert not system.children(mountpoint) and not system.is_mounted(mountpoint)


def test_closed_standard_streams(place):
    """Started with 0, 1 and 2 closed, no descriptor of ours may become one of them."""
    place.image("disk.img", MiB, b"closed")
    place.write("lab.conf", DISK)
    mountpoint = place.directory()
    command = [place.binary, "lab.conf", mountpoint]
    subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], cwd=place.path, timeout=20, check=True)
    found = system.children(mountpoint)
    assert len(found) == 1
    assert (mountpoint / "disk").read_bytes()[:6] == b"closed"
    place.run("umount", mountpoint)
    assert system.AdoptedProcess(found[0].pid).wait(timeout=20) == 0


@pytest.mark.limit(200)
def test_out_of_descriptors(place):
    """With any limit the daemon either comes up, and goes, or leaves nothing; which of the two is said."""
    place.image("disk.img", MiB)
    mountpoint, failures = place.directory(), []
    for limit in range(8, 64):
        done = place.run("prlimit", f"--nofile={limit}:{limit}", place.binary, "--format=raw", "-o", "queues=2",
                         "disk.img", mountpoint, check=False)
        if done.returncode == 0:
            [process] = system.children(mountpoint)
            place.run("umount", mountpoint)
            assert system.AdoptedProcess(process.pid).wait(timeout=20 * harness.TIME_SCALE) == 0
            break
        assert not system.mounts(place.path), f"limit {limit} left a mount: {done.stderr}"
        assert done.returncode == 1
        failures.append(done.stderr)
    assert done.returncode == 0
    assert any("Too many open files" in message for message in failures)
    assert not any("iothread 'queue0': iothread" in message for message in failures)


def test_descriptor_limit_is_raised(place):
    place.image("disk.img", MiB)
    mountpoint = place.directory()
    daemon = place.start("--format=raw", "disk.img", mountpoint, mountpoints=[mountpoint])
    [line] = [line for line in open(f"/proc/{daemon.pid}/limits", encoding="ascii") if line.startswith("Max open files")]
    soft, hard = line.split()[3:5]
    assert soft == hard
