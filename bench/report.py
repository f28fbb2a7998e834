"""The benchmark's tables, on the terminal and in docs/performance.md.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import platform
import re
import statistics
import subprocess
from pathlib import Path

US, PEER = "blockgraphfs", "qemu-storage-daemon"
PEERS = {"http": "curl -o /dev/null", "link": "one request at a time"}  # where it is not qemu-storage-daemon
CPU_TARGET = 0.7
BEGIN, END = "<!-- bench/run: begin -->", "<!-- bench/run: end -->"


def median_of(measurements, field):
    values = [getattr(m, field) for m in measurements if getattr(m, field) is not None]
    return statistics.median(values) if values else None


def number(value):
    if value is None:
        return "–"
    if value >= 10000:
        return f"{value / 1000:.1f}k"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def verdict(ratio, target, at_least=True):
    if ratio is None:
        return "–"
    if target is None:
        return f"{ratio:.2f}"
    reached = ratio >= target if at_least else ratio <= target
    return f"{ratio:.2f} ({'≥' if at_least else '≤'} {target:.1f}: {'yes' if reached else 'NO'})"


def ratio_of(results, cell, field, peer=PEER):
    ours = median_of(results.get((cell, US), []), field)
    theirs = median_of(results.get((cell, peer), []), field)
    return ours / theirs if ours is not None and theirs else None


def layout(rows):
    """A Markdown table that is aligned for reading as text, too."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(row, widths))) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 2) if i == 0 else "-" * (width + 1) + ":"
                          for i, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def table(kind, results, fast):
    cells = list(dict.fromkeys(cell for cell, _ in results))
    names = list(dict.fromkeys(name for _, name in results))
    rounds = max(len(measurements) for measurements in results.values())
    nodes = {"file": "file", "qcow2": "qcow2, allocated throughout", "chain": "qcow2 over a chain of 8 backings"}
    peer = PEERS.get(kind, PEER)
    plain = {"null": "null-co", "http": "http, from nginx on the loopback interface, buffered",
             "link": "http, from nginx behind a delay of 20 ms there and back, buffered",
             "nbd": "nbd, nbdkit's memory plugin on a Unix socket",
             "iscsi": f"iscsi, tgt on loopback, {fast and fast.description}"}
    where = plain[kind] if kind in plain else \
        f"{nodes[kind]} on {fast.description}, cache.direct={'on' if fast.direct else 'off'}, aio=io_uring"
    others = ["nbdfuse"] if kind == "nbd" and "nbdfuse" in names else []
    rows = [["job", "unit", *names, f"ratio to {peer}", *[f"to {other}" for other in others], f"CPU µs per request: {US}", peer, "ratio"]]
    for cell in cells:
        rows.append([cell.name, cell.unit,
                     *[number(median_of(results.get((cell, name), []), "rate")) for name in names],
                     verdict(ratio_of(results, cell, "rate", peer), getattr(cell.target, kind)),
                     *[verdict(ratio_of(results, cell, "rate", other), cell.nbdfuse) for other in others],
                     number(median_of(results.get((cell, US), []), "cpu")),
                     number(median_of(results.get((cell, peer), []), "cpu")),
                     verdict(ratio_of(results, cell, "cpu", peer), CPU_TARGET if kind in ("null", "file") else None,
                             at_least=False)])
    return f"**{where}**, medians of {rounds} round{'s' if rounds > 1 else ''}\n\n{layout(rows)}\n"


def snapshot_table(rows, fast, size):
    return (f"**snapshots of a qcow2 image of {size} MiB on {fast.description}**: how long requests of a load of 4k random "
            f"writes, depth 8, waited, in ms\n\n{layout(rows)}\n")


def version_of(*command):
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        return (done.stdout or done.stderr).splitlines()[0].strip()
    except (OSError, IndexError):
        return f"{command[0]}: not found"


def machine(arguments):
    """What the numbers were measured with, without naming the machine."""
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    peer = re.sub(r" \(.*", "", version_of("qemu-storage-daemon", "--version"))
    return (f"{version_of(arguments.blockgraphfs, '-V')} (transport={arguments.transport}); {peer}; "
            f"{version_of('fio', '--version')}, ioengine=io_uring, O_DIRECT, {arguments.runtime:g} s a job; "
            f"Linux {platform.release().split('-')[0]}, {os.cpu_count()} CPUs, {gibibytes:.0f} GiB of memory; "
            "nothing pinned.\n")


def as_json(everything):
    return {kind: [{"job": cell.name, "unit": cell.unit, "subject": name,
                    "rounds": [vars(m) for m in measurements]}
                   for (cell, name), measurements in results.items()]
            for kind, results in everything.items()}


def write_docs(path, parts):
    """Replace what stands between the markers; the text around them is for people to write."""
    text = path.read_text() if path.exists() else f"# Performance\n\n{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    path.parent.mkdir(exist_ok=True)
    Path(path).write_text(f"{before}{BEGIN}\n" + "\n".join(parts) + f"{END}{after}")
