"""Fast storage that every machine has: ext4 on a zram device of our own, or else a tmpfs.

A disk would hide what the software costs.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import os
import subprocess
import time
from pathlib import Path

os.environ["PATH"] += ":/usr/sbin:/sbin"


def run(*command, check=True):
    return subprocess.run([str(word) for word in command], check=check, capture_output=True, text=True)


class Fast:
    def __init__(self, directory, description, direct):
        self.directory = directory
        self.description = description
        self.direct = direct  # whether files there can be opened with O_DIRECT


@contextlib.contextmanager
def fast_directory(work, mebibytes):
    directory = work / "fast"
    directory.mkdir()
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(zram_device(mebibytes))
        if device:
            run("mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=0,nodiscard", device)
            run("mount", "-o", "noatime", device, directory)
            description = "ext4 on zram"
        else:
            run("mount", "-t", "tmpfs", "-o", f"size={mebibytes + 64}m", "tmpfs", directory)
            description = "tmpfs"
        try:
            yield Fast(directory, description, can_direct(directory))
        finally:
            unmount(directory)


def unmount(directory):
    for _ in range(50):
        if run("umount", directory, check=False).returncode == 0:
            return
        time.sleep(0.1)
    run("umount", "-l", directory, check=False)


@contextlib.contextmanager
def zram_device(mebibytes):
    """A zram device that nobody else uses; None where there is none."""
    run("modprobe", "zram", check=False) if not Path("/sys/class/zram-control").exists() and which("modprobe") \
        else None
    try:
        number = int(Path("/sys/class/zram-control/hot_add").read_text())
    except (OSError, ValueError):
        yield None
        return
    device, control = Path(f"/dev/zram{number}"), Path(f"/sys/block/zram{number}")
    try:
        try:
            (control / "disksize").write_text(f"{mebibytes + 128}M")
            wait_for(device)
        except OSError:
            device = None
        yield device
    finally:
        with contextlib.suppress(OSError):
            (control / "reset").write_text("1")
        with contextlib.suppress(OSError):
            Path("/sys/class/zram-control/hot_remove").write_text(str(number))


def which(program):
    return any(os.access(os.path.join(d, program), os.X_OK) for d in os.environ["PATH"].split(":"))


def wait_for(path):
    for _ in range(100):
        if path.exists():
            return
        time.sleep(0.02)
    raise OSError(f"{path} did not appear")


def can_direct(directory):
    probe = directory / "probe"
    try:
        os.close(os.open(probe, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600))
        return True
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)
