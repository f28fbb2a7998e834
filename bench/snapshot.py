"""How long writers wait while snapshots are taken, here and in qemu-storage-daemon.

fio writes 4 KiB blocks at random to an image that is allocated throughout, and logs the latency of every
request. Meanwhile snapshots are taken by QMP, the same commands for both daemons. A snapshot's stall is the
longest latency of the requests that were in flight between its begin and a little after its end.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import json
import socket
import statistics
import subprocess
import threading
import time
from dataclasses import dataclass

import subjects

MIB = 1 << 20
SNAPSHOTS = 8  # per round
PAUSE = 0.25  # s between them
TAIL = 0.02  # s after the end that still count


class Monitor:
    """A QMP client; just enough."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        deadline = time.monotonic() + 10
        while True:
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        self.lines = self.socket.makefile("r", encoding="utf-8")
        self.lines.readline()
        self.call("qmp_capabilities")

    def call(self, command, **arguments):
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            reply = json.loads(self.lines.readline())
            if "error" in reply:
                raise SystemExit(f"bench: {command}: {reply['error']['desc']}")
            if "return" in reply:
                return reply["return"]

    def close(self):
        self.socket.close()


@dataclass(frozen=True)
class Stall:
    """Milliseconds."""
    stall: float  # the worst latency around one snapshot
    took: float  # from the command to its answer


def internal(monitor, _directory, number):
    monitor.call("blockdev-snapshot-internal-sync", device="n", name=f"s{number}")


def external(monitor, directory, number):
    top = "n" if number == 0 else f"o{number - 1}"
    monitor.call("blockdev-snapshot-sync", **{"node-name": top, "snapshot-file": f"{directory}-{number}.qcow2",
                                              "snapshot-node-name": f"o{number}", "format": "qcow2"})


GIB = 1 << 30

# How, clusters, length where it is more than what is written. An image of 64 GiB has 128 L2 tables of 64 KiB, one as
# long as the load has one; clusters of 4 KiB make as many tables as 256 times the length does.
KINDS = {"internal": (internal, "64k", 64 * GIB), "internal, one L2 table": (internal, "64k", None),
         "internal, clusters of 4 KiB": (internal, "4k", None), "external": (external, "64k", None)}


def latencies(log):
    """(end, latency) in seconds of each request that fio logged."""
    with open(log, encoding="ascii") as lines:
        for line in lines:
            fields = line.split(",")
            yield int(fields[0]) / 1000, int(fields[1]) / 1e9


def measure(subject, monitor, kind, size, overlays, work):
    """Take snapshots under a load that writes to the first `size` bytes; a Stall for each.

    Not beyond: of each cluster that is written a copy is made after a snapshot, and they would fill the disk.
    """
    log, seconds = work / f"load-{subject.name}", SNAPSHOTS * (PAUSE + 0.3) + 1
    fio = subprocess.Popen(
        ["fio", "--name=load", f"--filename={subject.path}", f"--size={size}", "--rw=randwrite", "--bs=4k",
         "--iodepth=8", "--ioengine=io_uring", "--direct=1", "--thread", "--time_based", f"--runtime={seconds}",
         f"--write_lat_log={log}", "--norandommap", "--allow_file_create=0", "--fallocate=none", "--invalidate=0",
         "--unlink=0", "--log_unix_epoch=1"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    reader = threading.Thread(target=fio.communicate)
    reader.start()
    time.sleep(1)
    times = []
    for number in range(SNAPSHOTS):
        begin = time.time()
        KINDS[kind][0](monitor, overlays, number)
        times.append((begin, time.time()))
        time.sleep(PAUSE)
    fio.terminate()  # it ends in order, and writes its log
    reader.join(60)
    logged = list(latencies(f"{log}_clat.1.log"))
    return [Stall(1000 * max((latency for end, latency in logged
                              if end + 0.001 >= begin and end - latency <= done + TAIL), default=0),
                  1000 * (done - begin)) for begin, done in times]


def run_round(make, fast, kind, size, work):
    """One daemon on a fresh image; its snapshots' stalls."""
    monitor_path = work / "monitor.sock"
    monitor_path.unlink(missing_ok=True)
    image = fast.directory / "snapshot.qcow2"
    subjects.make_qcow2(image, size, options=f"cluster_size={KINDS[kind][1]}", length=KINDS[kind][2])
    node = {"node-name": "n", **subjects.qcow2_blockdev(image, fast.direct, 0)}
    try:
        with make(json.dumps(node), monitor_path) as subject:
            monitor = Monitor(monitor_path)
            try:
                return measure(subject, monitor, kind, size, fast.directory / "overlay", work)
            finally:
                monitor.close()
    finally:
        for path in [image, *fast.directory.glob("overlay-*.qcow2")]:
            path.unlink(missing_ok=True)


def measure_all(arguments, work, fast, progress):
    """{(kind, daemon): [Stall, …]}, in interleaved rounds."""
    size, results = arguments.size * MIB, {}
    makers = {"blockgraphfs": lambda node, path: subjects.blockgraphfs(arguments, work, size, node, path),
              "qemu-storage-daemon": lambda node, path: subjects.qemu_storage_daemon(work, size, node, path)}
    for number in range(arguments.rounds):
        for kind in KINDS:
            for name in list(makers)[::1 if number % 2 else -1]:
                progress(f"snapshot: round {number + 1} of {arguments.rounds}, {kind}, {name}")
                results.setdefault((kind, name), []).extend(run_round(makers[name], fast, kind, size, work))
    return results


def percentile(values, percent):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


def rows(results):
    """The table: each daemon's stalls in ms, and the ratio of the worst ones."""
    table = [["snapshot", "daemon", "p50", "p99", "worst", "took (median)", "ratio of the worst"]]
    for (kind, name), stalls in sorted(results.items()):
        values = [s.stall for s in stalls]
        peer = max(s.stall for s in results[(kind, "qemu-storage-daemon")])
        ratio = max(values) / peer if name == "blockgraphfs" and peer else None
        table.append([kind, name, *(f"{v:.1f}" for v in (percentile(values, 50), percentile(values, 99), max(values),
                                                         statistics.median(s.took for s in stalls))),
                      f"{ratio:.2f} (≤ 0.5: {'yes' if ratio <= 0.5 else 'NO'})" if ratio is not None else ""])
    return table
