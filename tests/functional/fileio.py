"""System calls on files that Python's library lacks or makes clumsy.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import random
import struct

F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38
FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_COLLAPSE_RANGE = 0x08
FALLOC_FL_ZERO_RANGE = 0x10
FALLOC_FL_INSERT_RANGE = 0x20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def fallocate(fd, mode, offset, length):
    if _libc.fallocate(fd, mode, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def punch_hole(fd, offset, length):
    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)


@contextlib.contextmanager
def opened(path, flags=os.O_RDWR):
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        try:
            os.close(fd)
        except OSError as error:
            # The file is closed, though its daemon was not there to be told.
            if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
                raise


def aligned(data_or_size):
    """A page-aligned buffer, as O_DIRECT wants it."""
    size = data_or_size if isinstance(data_or_size, int) else len(data_or_size)
    buffer = mmap.mmap(-1, size)
    if not isinstance(data_or_size, int):
        buffer[:] = data_or_size
    return buffer


def pattern(size, seed=1):
    return random.Random(seed).randbytes(size)


def ofd_lock(fd, kind, start=0, length=0, wait=False):
    """Take (F_RDLCK, F_WRLCK) or drop (F_UNLCK) a lock that belongs to the open file description."""
    lock = struct.pack("hhqqi", kind, os.SEEK_SET, start, length, 0)
    fcntl.fcntl(fd, F_OFD_SETLKW if wait else F_OFD_SETLK, lock)


def extents(fd, size):
    """[(start, end)] of the data, by SEEK_DATA and SEEK_HOLE."""
    found, offset = [], 0
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != 6:  # ENXIO: nothing but a hole from here on
                raise
            break
        offset = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, offset))
    return found
