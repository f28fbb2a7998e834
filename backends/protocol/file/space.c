/*
 * Space of the drivers file and host_device: zeroes, discards, length, copies inside the kernel.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "aio/aio.h"
#include "aio/thread-pool.h"
#include "backends/protocol/file/file.h"
#include "block/io.h"
#include "util/error.h"

/* A call for a worker thread; the meaning of the numbers is the function's. */
typedef struct RangeCall {
    int fd, fd_in;
    int mode;
    int64_t offset, offset_in;
    int64_t bytes;
} RangeCall;

/* ---- fallocate */

static int fallocate_in_thread(void *opaque)
{
    RangeCall *c = opaque;
    int ret;
    do {
        ret = fallocate(c->fd, c->mode, c->offset, c->bytes);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : 0;
}

/* 0, -ENOTSUP where the file cannot do that (remembered in *unsupported unless only for this range), -errno.
 */
static int coroutine_fn try_fallocate(FileState *s, int mode, int64_t offset, int64_t bytes,
                                      _Atomic bool *unsupported)
{
    if (atomic_load_explicit(unsupported, memory_order_relaxed)) {
        return -ENOTSUP;
    }
    RangeCall c = {.fd = s->fd, .mode = mode, .offset = offset, .bytes = bytes};
    int ret = s->use_threads ? thread_pool_co_run(fallocate_in_thread, &c)
                             : aio_co_fallocate(s->fd, mode, offset, bytes);
    switch (ret) {
    case -EOPNOTSUPP:
    case -ENOSYS:
    case -ENODEV:
        atomic_store_explicit(unsupported, true, memory_order_relaxed);
        return -ENOTSUP;
    case -EINVAL: /* not at this alignment */
        return -ENOTSUP;
    default:
        return ret;
    }
}

static int coroutine_fn punch_hole(FileState *s, int64_t offset, int64_t bytes)
{
    return try_fallocate(s, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes, &s->no_punch_hole);
}

/* ---- Zeroes */

static int coroutine_fn zero_range(BlockNode *node, int64_t offset, int64_t bytes, bool may_unmap)
{
    FileState *s = node->opaque;
    /* A hole past the end would not make the file longer. */
    bool inside = offset + bytes <= block_node_length(node);
    int ret = -ENOTSUP;
    if (may_unmap && inside) {
        ret = punch_hole(s, offset, bytes);
    }
    if (ret == -ENOTSUP) {
        int keep_size = inside ? FALLOC_FL_KEEP_SIZE : 0;
        ret = try_fallocate(s, FALLOC_FL_ZERO_RANGE | keep_size, offset, bytes, &s->no_zero_range);
    }
    if (ret == -ENOTSUP && !s->is_device) {
        /* tmpfs: a hole, then space for it. */
        ret = punch_hole(s, offset, bytes);
        if (ret == 0) {
            ret = try_fallocate(s, 0, offset, bytes, &s->no_allocate);
        }
    }
    return ret;
}

int coroutine_fn file_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                       BlockRequestFlags flags)
{
    FileState *s = node->opaque;
    if (flags & BLOCK_REQ_ALLOCATE) {
        return try_fallocate(s, 0, offset, bytes, &s->no_allocate);
    }
    return zero_range(node, offset, bytes, flags & BLOCK_REQ_MAY_UNMAP);
}

/* ---- Discard */

static int blkdiscard_in_thread(void *opaque)
{
    RangeCall *c = opaque;
    uint64_t range[2] = {c->offset, c->bytes};
    return ioctl(c->fd, BLKDISCARD, range) < 0 ? -errno : 0;
}

int coroutine_fn file_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    FileState *s = node->opaque;
    if (!s->is_device) {
        return punch_hole(s, offset, bytes);
    }
    if (atomic_load_explicit(&s->no_discard, memory_order_relaxed)) {
        return -ENOTSUP;
    }
    RangeCall c = {.fd = s->fd, .offset = offset, .bytes = bytes};
    int ret = thread_pool_co_run(blkdiscard_in_thread, &c);
    if (ret == -EOPNOTSUPP || ret == -ENOTTY) {
        atomic_store_explicit(&s->no_discard, true, memory_order_relaxed);
        return -ENOTSUP;
    }
    return ret;
}

/* ---- Length */

static int ftruncate_in_thread(void *opaque)
{
    RangeCall *c = opaque;
    int ret;
    do {
        ret = ftruncate(c->fd, c->bytes);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : 0;
}

int coroutine_fn file_co_truncate(BlockNode *node, int64_t length, GError **errp)
{
    FileState *s = node->opaque;
    if (s->is_device) {
        if (length == block_node_length(node)) {
            return 0;
        }
        return bg_error_set(errp, ENOTSUP,
                            "node '%s': '%s' is a block device: its length is fixed at %" PRId64, node->name,
                            s->filename, block_node_length(node));
    }
    RangeCall c = {.fd = s->fd, .bytes = length};
    int ret = thread_pool_co_run(ftruncate_in_thread, &c);
    if (ret < 0) {
        bg_error_set_errno(errp, -ret, "node '%s': cannot change the length of '%s' to %" PRId64, node->name,
                           s->filename, length);
    }
    return ret;
}

/* ---- Copy */

static int copy_in_thread(void *opaque)
{
    RangeCall *c = opaque;
    while (c->bytes > 0) {
        off_t in = c->offset_in, out = c->offset;
        ssize_t n = copy_file_range(c->fd_in, &in, c->fd, &out, c->bytes, 0);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            /* 0: the source is shorter than it was; reading it tells more. */
            return n ? -errno : -ENOTSUP;
        }
        c->offset_in += n;
        c->offset += n;
        c->bytes -= n;
    }
    return 0;
}

int coroutine_fn file_co_copy_range(BlockNode *src, int64_t src_offset, BlockNode *dst, int64_t dst_offset,
                                    int64_t bytes)
{
    FileState *from = src->opaque, *to = dst->opaque;
    if (from->is_device || to->is_device || atomic_load_explicit(&to->no_copy_range, memory_order_relaxed)) {
        return -ENOTSUP;
    }
    RangeCall c = {
        .fd = to->fd, .fd_in = from->fd, .offset = dst_offset, .offset_in = src_offset, .bytes = bytes};
    int ret = thread_pool_co_run(copy_in_thread, &c);
    switch (ret) {
    case -EOPNOTSUPP:
    case -ENOSYS:
        atomic_store_explicit(&to->no_copy_range, true, memory_order_relaxed);
        return -ENOTSUP;
    case -EXDEV:
    case -EINVAL:
    case -EBADF: /* one end is open for appending, or in a way that a file system refuses */
        return -ENOTSUP;
    default:
        return ret;
    }
}
