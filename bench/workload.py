"""The fio jobs of the benchmark, and running one of them.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Target:
    """What is promised: a ratio to qemu-storage-daemon, or to who stands in its place (report.PEERS), per kind of node."""
    null: float = None
    file: float = None
    qcow2: float = None
    chain: float = None
    nbd: float = None
    iscsi: float = None
    http: float = None
    link: float = None


@dataclass(frozen=True)
class Cell:
    name: str
    rw: str
    block: int
    depth: int = 1
    jobs: int = 1
    fsync: int = 0
    buffered: bool = False  # once through the page cache, with the kernel's own reading ahead
    allocating: bool = False  # once over the whole image, which is emptied before
    target: Target = Target()
    kinds: tuple = ("null", "file")
    nbdfuse: float = None  # promised ratio to nbdfuse, of nbd nodes

    @property
    def unit(self):
        return "MiB/s" if self.block >= 1 << 18 else "IOPS"


KIB, MIB = 1 << 10, 1 << 20

ALL = ("null", "file", "qcow2", "chain", "nbd", "iscsi")

CELLS = (
    Cell("randread-4k-depth1", "randread", 4 * KIB, target=Target(1.0, 1.0)),
    Cell("randread-4k-depth1-2jobs", "randread", 4 * KIB, jobs=2, target=Target(1.0, 1.0)),
    Cell("randread-4k-depth32", "randread", 4 * KIB, depth=32, target=Target(1.3, 1.5, 2.0, 1.5, 1.5, 1.2),
         kinds=ALL, nbdfuse=2.0),
    Cell("randread-4k-depth32-2jobs", "randread", 4 * KIB, depth=32, jobs=2, target=Target(1.3, 1.5)),
    Cell("randwrite-4k-depth32", "randwrite", 4 * KIB, depth=32, target=Target(1.5, 1.5, 1.5),
         kinds=("null", "file", "qcow2", "iscsi")),
    Cell("write-256k-allocating", "write", 256 * KIB, depth=4, allocating=True, target=Target(qcow2=1.2),
         kinds=("qcow2",)),
    Cell("read-1M", "read", MIB, depth=4, target=Target(1.2, 1.2, nbd=1.3), kinds=("null", "file", "nbd", "iscsi"),
         nbdfuse=1.3),
    Cell("read-1M-depth1", "read", MIB, buffered=True, target=Target(http=0.9, link=5.0), kinds=("http", "link")),
    Cell("write-1M", "write", MIB, depth=4, target=Target(1.2, 1.2), kinds=("null", "file", "iscsi")),
    Cell("randwrite-4k-fsync", "randwrite", 4 * KIB, fsync=1, kinds=("file",)),
)


@dataclass(frozen=True)
class Measurement:
    rate: float  # in the cell's unit
    latency_99: float  # µs, worst direction
    cpu: float  # the daemon's µs per request, None where there is no daemon


def cpu_seconds(pid):
    """User and system time of all threads of a process, ended ones included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def empty(subject):
    """Punch out the whole file, so that writing it allocates again."""
    done = subprocess.run(["fallocate", "--punch-hole", "--offset=0", f"--length={subject.size}", subject.path],
                          capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise SystemExit(f"bench: {subject.name}: {done.stderr}")


def run_cell(cell, subject, runtime):
    """Run one job on one subject; None where it is not for this one."""
    if subject.measure:
        rate = subject.measure(cell, runtime)
        return None if rate is None else Measurement(rate, 0, None)
    if cell.allocating:
        empty(subject)
    command = ["fio", "--output-format=json", f"--name={cell.name}", f"--filename={subject.path}",
               "--ioengine=io_uring", f"--direct={int(subject.direct and not cell.buffered)}", "--thread", "--group_reporting",
               f"--rw={cell.rw}", f"--bs={cell.block}", f"--iodepth={cell.depth}", f"--numjobs={cell.jobs}",
               f"--size={subject.size}", f"--fsync={cell.fsync}",
               *([] if cell.allocating or cell.buffered else ["--time_based", f"--runtime={runtime}"]),
               "--norandommap", "--randrepeat=0", "--allow_file_create=0", "--fallocate=none",
               "--invalidate=0", "--unlink=0"]
    before = cpu_seconds(subject.pid) if subject.pid else 0
    done = subprocess.run(command, capture_output=True, text=True, timeout=runtime * 10 + 120, check=False)
    if done.returncode != 0:
        raise SystemExit(f"bench: fio failed on {subject.name}: {done.stdout[-2000:]}{done.stderr}")
    spent = cpu_seconds(subject.pid) - before if subject.pid else None
    # Messages may come before the JSON.
    job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    both = [job["read"], job["write"]]
    requests = sum(d["total_ios"] for d in both)
    if cell.unit == "MiB/s":
        rate = sum(d["bw_bytes"] for d in both) / MIB
    else:
        rate = sum(d["iops"] for d in both)
    latency = max(d.get("clat_ns", {}).get("percentile", {}).get("99.000000", 0) for d in both) / 1000
    cpu = spent * 1e6 / requests if spent is not None and requests else None
    return Measurement(rate, latency, cpu)
