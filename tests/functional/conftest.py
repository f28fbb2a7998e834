"""Fixtures of the functional tests, their time limit, and the bundle that a failure leaves.

Environment:
  BLOCKGRAPHFS    the daemon to test (default: build/blockgraphfs)
  BG_TEST_DIR     where the tests' files go (default: the first place that is on a disk's file system)
  BG_RESULTS      where failures leave their bundles (default: test-results/functional)
  BG_TIME_SCALE   factor on all time limits
  BG_LONG=1       many more repetitions
  BG_WRAPPER      a command to run the daemon under, such as valgrind
  BG_KEEP=1       keep the tests' files

SPDX-License-Identifier: GPL-2.0-or-later
"""

import faulthandler
import os
import re
import shutil
import signal
import tempfile
import threading
from pathlib import Path

import pytest

import harness
import qcow2
import storage as storages
import system

DEFAULT_LIMIT = 60  # seconds for one test


class TimeLimitExceeded(pytest.fail.Exception):
    """Not an Exception, so that no test swallows it, but known to pytest, which must tear down after it."""


def pytest_configure(config):
    config.addinivalue_line("markers", f"limit(seconds): time limit of the test (default {DEFAULT_LIMIT})")
    config.addinivalue_line("markers", "faulty: qcow2 images of the test have faults, of its own or of qemu-io's making, and are not checked at its end")
    config.addinivalue_line("markers", "every_storage: tests with the fixture `storage` run on each, see storage.py")
    config.addinivalue_line("markers", "valgrind: also run with the daemon under valgrind")
    config.addinivalue_line("markers", "timing: measures time; not meant for sanitizers")
    # As Ctrl-C: the fixtures still take down what they set up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    system.become_subreaper()
    system.allow_core_dumps()


def pytest_generate_tests(metafunc):
    if "storage" in metafunc.fixturenames and metafunc.definition.get_closest_marker("every_storage"):
        metafunc.parametrize("storage", list(storages.KINDS), indirect=True)


def pytest_collection_modifyitems(config, items):
    if harness.TIME_SCALE > 1:
        timing = [item for item in items if item.get_closest_marker("timing")]
        config.hook.pytest_deselected(items=timing)
        items[:] = [item for item in items if item not in timing]


@pytest.fixture(scope="session")
def binary():
    path = Path(os.environ.get("BLOCKGRAPHFS", harness.default_binary())).absolute()
    assert os.access(path, os.X_OK), f"no daemon at {path}: build it, or set BLOCKGRAPHFS"
    return path


@pytest.fixture(scope="session")
def disk_directory():
    """A directory on a file system that behaves like a disk's."""
    given = os.environ.get("BG_TEST_DIR")
    here = harness.default_binary().parent
    candidates = [given] if given else ["/var/tmp", here, "/tmp"]
    for candidate in candidates:
        if os.path.isdir(candidate) and os.access(candidate, os.W_OK) \
                and system.keeps_holes_and_direct_io(candidate) \
                and (given or system.file_system_of(candidate) != "tmpfs"):
            path = Path(tempfile.mkdtemp(prefix="blockgraph-test-", dir=candidate)).resolve()
            yield path
            if not os.environ.get("BG_KEEP"):
                shutil.rmtree(path, ignore_errors=True)
            return
    pytest.fail(f"none of {candidates} is on a file system with O_DIRECT and holes: set BG_TEST_DIR")


@pytest.fixture
def results(request):
    base = os.environ.get("BG_RESULTS", Path(__file__).resolve().parents[2] / "test-results" / "functional")
    return Path(base) / re.sub(r"[^\w.-]+", "-", request.node.nodeid.split("/")[-1])


@pytest.fixture
def place(request, binary, disk_directory, results):
    """The test's work place; see harness.Place."""
    shutil.rmtree(results, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=re.sub(r"\W+", "-", request.node.name)[:40] + "-",
                                 dir=disk_directory))
    here = harness.Place(path, results, binary)
    request.node.place = here
    limit = TimeLimit(here, request.node)
    try:
        yield here
        here.finish()
        if not request.node.get_closest_marker("faulty"):
            check_images(here)
    finally:
        limit.end()
        here.emergency_stop()
        if not os.environ.get("BG_KEEP") and not system.mounts(path):
            shutil.rmtree(path, ignore_errors=True)


def check_images(place):
    try:
        qcow2.check_what_is_left(place)
    except AssertionError:
        place.bundle("an image is not sound at the end of the test")
        raise


@pytest.fixture
def storage(request, place):
    """What a raw node lies on: a file, or where the test is marked every_storage, each of storage.KINDS."""
    return storages.Storage(place, getattr(request, "param", "file"))


@pytest.fixture
def disk(place, storage):
    """A daemon with a 16 MiB image, disk.img, exported as "disk"."""
    place.image("disk.img", 16 * system.MiB)
    return place.mount(storage.node())


class TimeLimit:
    """Ends a test that takes too long, also where it hangs in a system call on a mount.

    Kills the daemons and aborts their connections, which ends any system call in their mounts,
    then interrupts the test.
    """

    def __init__(self, place, node):
        marker = node.get_closest_marker("limit")
        self.seconds = (marker.args[0] if marker else DEFAULT_LIMIT) * harness.PATIENCE
        self.place = place
        self.previous = signal.signal(signal.SIGALRM, self.interrupt)
        self.timer = threading.Timer(self.seconds, self.expire)
        self.timer.daemon = True
        self.timer.start()

    def interrupt(self, *_):
        raise TimeLimitExceeded(f"time limit of {self.seconds} s exceeded")

    def expire(self):
        self.place.results.mkdir(parents=True, exist_ok=True)
        with open(self.place.results / "python-stacks.txt", "w", encoding="utf-8") as out:
            faulthandler.dump_traceback(file=out)
        self.place.bundle("time limit exceeded")
        # The test gets the signal when its system call ends, and that ends when the daemon is gone.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
        self.place.emergency_stop()

    def end(self):
        self.timer.cancel()
        signal.signal(signal.SIGALRM, self.previous)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    place = getattr(item, "place", None)
    if report.failed and place is not None:
        place.bundle(f"{call.when} failed")
        report.sections.append(("blockgraph", f"logs, stacks and a script: {place.results}"))
