"""A loop device on an exported file: what most people do with a mounted image.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import json
import os

import pytest

import fileio
import harness
import system
from system import MiB

pytestmark = pytest.mark.every_storage


def fill(mountpoint, files=20):
    for i in range(files):
        (mountpoint / f"file{i}").write_bytes(fileio.pattern(100_000 + i, i))
    os.sync()


def check(mountpoint, files=20):
    for i in range(files):
        assert (mountpoint / f"file{i}").read_bytes() == fileio.pattern(100_000 + i, i)


@pytest.fixture
def big(place, storage):
    place.image("disk.img", 128 * MiB)
    return place.mount(storage.node())


@pytest.mark.parametrize("direct", ["on", "off"])
def test_file_system_in_an_image(place, big, direct):
    with place.loop(big.file("disk"), f"--direct-io={direct}") as device:
        place.run("mkfs.ext4", "-q", device)
        with place.mounted(device) as vm:
            fill(vm)
            check(vm)
        place.run("e2fsck", "-fn", device)
        with place.mounted(device) as vm:
            check(vm)
    big.stop()
    place.run("e2fsck", "-fn", place.path / "disk.img")
    with place.loop(place.path / "disk.img", "--read-only") as device:
        with place.mounted(device, options="ro") as vm:
            check(vm)


def test_mount_with_loop_option(place, big):
    place.run("mkfs.ext4", "-q", big.file("disk"))
    with place.mounted(big.file("disk"), options="loop") as vm:
        fill(vm)
    place.run("e2fsck", "-fn", big.file("disk"))
    assert not system.loop_devices(place.path)


def test_direct_io_is_really_on(place, big):
    with place.loop(big.file("disk"), "--direct-io=on") as device:
        name = os.path.basename(device)
        with open(f"/sys/block/{name}/loop/dio", encoding="ascii") as dio:
            assert dio.read().strip() == "1"


def test_discard_reaches_the_image(place, big):
    image = place.path / "disk.img"
    with place.loop(big.file("disk")) as device:
        place.run("mkfs.ext4", "-q", device)
        with place.mounted(device) as vm:
            (vm / "big").write_bytes(fileio.pattern(32 * MiB))
            os.sync()
            full = image.stat().st_blocks * 512
            assert full > 32 * MiB
            (vm / "big").unlink()
            os.sync()
            place.run("fstrim", vm)
            os.sync()
            assert image.stat().st_blocks * 512 < full - 30 * MiB
        place.run("blkdiscard", "-f", device)
        assert image.stat().st_blocks * 512 < MiB


def test_read_only_export_gives_a_read_only_device(place):
    place.image("disk.img", 32 * MiB)
    place.run("mkfs.ext4", "-q", place.path / "disk.img")
    daemon = place.mount(harness.DISK + "read-only = on\n")
    with place.loop(daemon.file("disk"), "--read-only") as device:
        with place.mounted(device, options="ro") as vm:
            assert "lost+found" in os.listdir(vm)
        done = place.run("dd", "if=/dev/zero", f"of={device}", "count=1", check=False)
        assert done.returncode != 0


def test_fio_on_a_loop_device(place, big):
    with place.loop(big.file("disk"), "--direct-io=on") as device:
        place.run("fio", "--name=loop", f"--filename={device}", "--ioengine=io_uring", "--direct=1",
                  "--rw=randwrite", "--bsrange=4k-128k", "--iodepth=16", "--size=128M", "--io_size=64M",
                  "--verify=crc32c", "--verify_fatal=1", "--allow_file_create=0", timeout=120)


def test_partition_table(place, big):
    """sfdisk on the export, on a loop device over it and on the image see the same."""
    place.run("sh", "-c", f"printf 'label: gpt\\n,64M\\n,32M\\n' | sfdisk -q '{big.file('disk')}'")
    with place.loop(big.file("disk")) as device:
        dumps = [json.loads(place.run("sfdisk", "--json", path).stdout)["partitiontable"]["partitions"]
                 for path in (big.file("disk"), device, place.path / "disk.img")]
    sizes = [[(p["start"], p["size"]) for p in dump] for dump in dumps]
    assert sizes[0] == sizes[1] == sizes[2]
    assert [size for _, size in sizes[0]] == [64 * MiB // 512, 32 * MiB // 512]


def test_losing_the_daemon_gives_io_errors(place, big):
    """kill -9 under a loop device: errors, not hangs, and the loop device can be detached."""
    with place.loop(big.file("disk"), "--direct-io=on") as device:
        big.crash()
        done = place.run("dd", f"if={device}", "of=/dev/null", "bs=1M", "count=1", "iflag=direct", check=False)
        assert done.returncode != 0 and "rror" in done.stderr
    place.run("umount", "-l", big.mountpoints[0])
