/*
 * Reads, writes and flushes of the drivers file and host_device.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/uio.h>
#include <unistd.h>

#include "aio/aio.h"
#include "aio/thread-pool.h"
#include "backends/protocol/file/file.h"
#include "block/graph.h"
#include "block/io.h"

/* Vectors of up to this many pieces are sliced on the stack. */
#define STACK_PIECES 16
/* How often a read that meets the end of the file too early looks again. */
#define END_SEEN_MAX 4

/* One transfer: `bytes` of the vector from `skip` on, at `offset` of the file. */
typedef struct Transfer {
    BlockNode *node;
    bool write;
    int flags; /* RWF_* */
    const IoVector *qiov;
    size_t skip;
    int64_t offset;
    int64_t bytes;
} Transfer;

/* ---- One system call */

typedef struct ThreadTransfer {
    const Transfer *t;
    const struct iovec *iov;
    int niov;
} ThreadTransfer;

static int transfer_in_thread(void *opaque)
{
    ThreadTransfer *job = opaque;
    const Transfer *t = job->t;
    FileState *s = t->node->opaque;
    ssize_t ret;
    do {
        ret = t->write ? pwritev2(s->fd, job->iov, job->niov, t->offset, t->flags)
                       : preadv2(s->fd, job->iov, job->niov, t->offset, t->flags);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : ret;
}

static ssize_t coroutine_fn transfer_iov(const Transfer *t, const struct iovec *iov, int niov)
{
    FileState *s = t->node->opaque;
    if (bg_unlikely(s->use_threads)) {
        ThreadTransfer job = {.t = t, .iov = iov, .niov = niov};
        return thread_pool_co_run(transfer_in_thread, &job);
    }
    return t->write ? aio_co_pwritev(s->fd, iov, niov, t->offset, t->flags)
                    : aio_co_preadv(s->fd, iov, niov, t->offset, t->flags);
}

/* Bytes done, possibly short, or -errno. */
static ssize_t coroutine_fn transfer_once(const Transfer *t)
{
    const IoVector *v = t->qiov;
    if (bg_likely(t->skip == 0 && (size_t)t->bytes == v->size)) {
        return transfer_iov(t, v->iov, v->niov);
    }
    if (v->niov <= STACK_PIECES) {
        struct iovec pieces[STACK_PIECES];
        return transfer_iov(t, pieces, io_vector_slice(v, t->skip, t->bytes, pieces));
    }
    g_autofree struct iovec *pieces = g_new(struct iovec, v->niov);
    return transfer_iov(t, pieces, io_vector_slice(v, t->skip, t->bytes, pieces));
}

static void transfer_advance(Transfer *t, int64_t n)
{
    t->skip += n;
    t->offset += n;
    t->bytes -= n;
}

/* ---- Reading */

/* Log that the file is shorter than the node. */
static int report_shrunk(const Transfer *t, int64_t size)
{
    BlockNode *node = t->node;
    g_autofree char *text =
        g_strdup_printf("file shrank from %" PRId64 " to %" PRId64 " bytes", block_node_length(node), size);
    block_graph_log_error(node->graph, node->name, BLOCK_OP_READ, t->offset, t->bytes, EIO, text);
    return -EIO;
}

/*
 * The file has no byte at t->offset. Past the node's length that is right: its last block is padded, or we
 * cut the file meanwhile; the rest reads as zeroes. Else someone else has cut it, unless it is growing again:
 * that is decided after looking a few times. 0: the transfer is done; 1: read again; -errno.
 */
static int coroutine_fn read_at_end(Transfer *t, int times)
{
    if (t->offset >= block_node_length(t->node)) {
        io_vector_memset(t->qiov, t->skip, 0, t->bytes);
        return 0;
    }
    if (times < END_SEEN_MAX) {
        return 1;
    }
    int64_t size = file_co_size(t->node->opaque);
    return size < 0 ? size : report_shrunk(t, size);
}

static int coroutine_fn read_all(Transfer *t)
{
    const uint32_t align = t->node->limits.request_alignment;
    int end_seen = 0;
    while (t->bytes > 0) {
        ssize_t n = transfer_once(t);
        if (n < 0) {
            return n;
        }
        transfer_advance(t, n);
        /* With O_DIRECT a read that stops between two multiples of the alignment has met the end. */
        if (t->bytes > 0 && (n == 0 || t->offset % align != 0)) {
            int ret = read_at_end(t, ++end_seen);
            if (ret <= 0) {
                return ret;
            }
            transfer_advance(t, -(t->offset % align));
        }
    }
    return 0;
}

/* ---- Writing */

static int coroutine_fn write_all(Transfer *t)
{
    while (t->bytes > 0) {
        ssize_t n = transfer_once(t);
        if (n <= 0) {
            return n ? n : -EIO;
        }
        transfer_advance(t, n);
    }
    return 0;
}

/* Remember a failed flush; see FileState.flush_error. */
static void flush_failed(BlockNode *node, int errnum)
{
    FileState *s = node->opaque;
    if (node->cache_direct) {
        return; /* nothing of ours was in the page cache */
    }
    int none = 0;
    if (atomic_compare_exchange_strong(&s->flush_error, &none, errnum)) {
        block_graph_log_error(node->graph, node->name, BLOCK_OP_FLUSH, -1, 0, errnum,
                              "writes since the last flush may be lost; every flush fails until the node is "
                              "opened again");
    }
}

/*
 * A write with RWF_DSYNC failed: if the write itself works now, its flush had failed, and the kernel has
 * forgotten that it ever did.
 */
static int coroutine_fn fua_failed(Transfer *t, int ret)
{
    t->flags = 0;
    if (!t->node->cache_direct && transfer_once(t) > 0) {
        flush_failed(t->node, -ret);
    }
    return ret;
}

/* ---- Callbacks */

int coroutine_fn file_co_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                size_t qiov_offset, BlockRequestFlags flags)
{
    Transfer t = {.node = node, .qiov = qiov, .skip = qiov_offset, .offset = offset, .bytes = bytes};
    return read_all(&t);
}

int coroutine_fn file_co_pwritev(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                 size_t qiov_offset, BlockRequestFlags flags)
{
    Transfer t = {.node = node,
                  .write = true,
                  .flags = flags & BLOCK_REQ_FUA && !node->cache_no_flush ? RWF_DSYNC : 0,
                  .qiov = qiov,
                  .skip = qiov_offset,
                  .offset = offset,
                  .bytes = bytes};
    int ret = write_all(&t);
    return bg_unlikely(ret < 0 && (t.flags & RWF_DSYNC)) ? fua_failed(&t, ret) : ret;
}

static int flush_in_thread(void *opaque)
{
    FileState *s = opaque;
    int ret;
    do {
        ret = fdatasync(s->fd);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : 0;
}

int coroutine_fn file_co_flush(BlockNode *node)
{
    FileState *s = node->opaque;
    int before = atomic_load(&s->flush_error);
    if (before) {
        return -before;
    }
    int ret = s->use_threads ? thread_pool_co_run(flush_in_thread, s) : aio_co_fsync(s->fd, true);
    if (ret < 0) {
        flush_failed(node, -ret);
    }
    return ret;
}
