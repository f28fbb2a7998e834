/*
 * Writing: alignment by read-modify-write, zeroes, discard, truncate, copy.
 *
 * Every change of a node runs between node_write_begin and node_write_end: it is tracked against overlapping
 * serialising requests, and counts in the epoch that a flush waits for.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "block/block-internal.h"
#include "block/flush.h"
#include "block/io-internal.h"
#include "block/serialise.h"
#include "util/error.h"

typedef struct NodeWrite {
    NodeRequest req;
    TrackedRequest tracked;
    unsigned epoch;
    bool grows; /* reaches beyond the end that the node has */
} NodeWrite;

/* ---- Begin, end */

/* Whether the edge may write, and up to `end`: 0, -EROFS, -ENOSPC. */
static int check_write(const BlockChild *child, int64_t end)
{
    const BlockNode *node = child->node;
    BlockPerm perm = atomic_load_explicit(&child->perm, memory_order_relaxed);
    if (!(perm & (BLOCK_PERM_WRITE | BLOCK_PERM_WRITE_UNCHANGED)) || node->read_only) {
        return -EROFS;
    }
    if (end > block_node_length(child->node) && !(node->growable && (perm & BLOCK_PERM_RESIZE))) {
        return -ENOSPC;
    }
    return 0;
}

static void coroutine_fn node_write_begin(NodeWrite *w, BlockNode *node, BlockOp op, int64_t offset,
                                          int64_t bytes)
{
    int64_t align = node_alignment(node);
    int64_t start = ROUND_DOWN(offset, align), end = ROUND_UP(offset + bytes, align);
    bool serialising = ((offset | bytes) & (align - 1)) != 0;
    w->epoch = flush_write_begin(node->flush); /* before the way to the node's home: accepted is accepted */
    node_request_begin(&w->req, node, op, offset, bytes);
    for (;;) {
        /* Such a one cuts the last block back to the length: nobody may append meanwhile. */
        bool to_the_end = serialising && end > block_node_length(node);
        request_tracker_begin(node->tracker, &w->tracked, start, (to_the_end ? INT64_MAX : end) - start,
                              serialising);
        if (!serialising || to_the_end || end <= block_node_length(node)) {
            break;
        }
        request_tracker_end(node->tracker, &w->tracked); /* the node was cut while we waited */
    }
    w->grows = offset + bytes > block_node_length(node);
}

/* Track everything from MIN(length, the node's length) on; returns where that is. */
static int64_t coroutine_fn track_tail(BlockNode *node, TrackedRequest *tracked, int64_t length)
{
    for (;;) {
        int64_t now = block_node_length(node), from = MIN(length, now);
        request_tracker_begin(node->tracker, tracked, from, INT64_MAX - from, true);
        if (block_node_length(node) >= from) {
            return from;
        }
        request_tracker_end(node->tracker, tracked); /* the node was cut while we waited */
    }
}

/* A write beyond the end has failed, maybe half-way: what it left there must not come to light when the node
 * grows. */
static void coroutine_fn cut_leftovers(BlockNode *node)
{
    TrackedRequest tracked;
    if (node->driver->co_truncate) {
        track_tail(node, &tracked, INT64_MAX);
        node->driver->co_truncate(node, block_node_length(node), NULL);
        request_tracker_end(node->tracker, &tracked);
    }
}

static int coroutine_fn node_write_end(NodeWrite *w, int ret)
{
    BlockNode *node = w->req.node;
    request_tracker_end(node->tracker, &w->tracked);
    if (bg_unlikely(ret < 0 && w->grows)) {
        cut_leftovers(node);
    }
    flush_write_end(node->flush, w->epoch);
    if (ret == 0) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME_COARSE, &now);
        atomic_store_explicit(&node->last_write_ns, now.tv_sec * 1000000000LL + now.tv_nsec,
                              memory_order_relaxed);
    }
    return node_request_end(&w->req, ret);
}

/* The node now reaches at least to `end`. */
static void length_grow(BlockNode *node, int64_t end)
{
    int64_t old = atomic_load(&node->length);
    while (end > old && !atomic_compare_exchange_weak(&node->length, &old, end)) {
    }
}

/* ---- Writing */

static int coroutine_fn write_piece(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                    size_t qiov_offset, BlockRequestFlags flags)
{
    if (node->driver->co_pwritev) {
        return node->driver->co_pwritev(node, offset, bytes, qiov, qiov_offset,
                                        flags & node->supported_write_flags);
    }
    if (node->driver->is_filter && node->file) {
        return block_child_co_pwritev(node->file, offset, bytes, qiov, qiov_offset,
                                      flags & node->supported_write_flags);
    }
    return -ENOTSUP;
}

static int coroutine_fn write_bounced(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                      size_t qiov_offset, BlockRequestFlags flags)
{
    void *buf = node_bounce_new(node, (size_t)bytes);
    if (!buf) {
        return -ENOMEM;
    }
    struct iovec iov = {buf, (size_t)bytes};
    IoVector v = {&iov, 1, (size_t)bytes};
    io_vector_to_buf(qiov, qiov_offset, buf, (size_t)bytes);
    int ret = write_piece(node, offset, bytes, &v, 0, flags);
    free(buf);
    return ret;
}

/* An aligned write, cut to the driver's limits. */
static int coroutine_fn write_aligned(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                      size_t qiov_offset, BlockRequestFlags flags)
{
    int ret = 0;
    while (bytes > 0 && ret == 0) {
        bool bounce;
        int64_t n = node_piece_length(node, bytes, qiov, qiov_offset, &bounce);
        if (bg_unlikely(bounce)) {
            ret = write_bounced(node, offset, n, qiov, qiov_offset, flags);
        } else {
            ret = write_piece(node, offset, n, qiov, qiov_offset, flags);
        }
        offset += n;
        qiov_offset += (size_t)n;
        bytes -= n;
    }
    return ret;
}

/*
 * Write a part of one block: read it, change it, write it. What lies beyond the old and the new end of the
 * node is cut off again where the driver can.
 */
static int coroutine_fn write_in_block(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                       size_t qiov_offset, BlockRequestFlags flags)
{
    int64_t align = node_alignment(node), start = ROUND_DOWN(offset, align), length = block_node_length(node);
    char *buf = node_bounce_new(node, (size_t)align);
    if (!buf) {
        return -ENOMEM;
    }
    struct iovec iov = {buf, (size_t)align};
    IoVector v = {&iov, 1, (size_t)align};
    int ret = 0;
    memset(buf, 0, (size_t)align);
    if (start < length) {
        ret = node_co_driver_preadv(node, start, align, &v, 0);
    }
    if (ret == 0) {
        if (length - start < align && length > start) {
            memset(buf + (length - start), 0, (size_t)(align - (length - start)));
        }
        io_vector_to_buf(qiov, qiov_offset, buf + (offset - start), (size_t)bytes);
        ret = write_aligned(node, start, align, &v, 0, flags);
    }
    free(buf);
    int64_t end = MAX(length, offset + bytes);
    if (ret == 0 && start + align > end && node->driver->co_truncate) {
        ret = node->driver->co_truncate(node, end, NULL);
    }
    return ret;
}

/* Any alignment: partial first block, whole blocks, partial last block. The caller is serialising where it
 * must be. */
static int coroutine_fn write_any(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                  size_t qiov_offset, BlockRequestFlags flags)
{
    int64_t align = node_alignment(node);
    while (bytes > 0) {
        int64_t in_block = offset & (align - 1);
        bool partial = in_block || bytes < align;
        int64_t n = partial ? MIN(bytes, align - in_block) : ROUND_DOWN(bytes, align);
        int ret = partial ? write_in_block(node, offset, n, qiov, qiov_offset, flags)
                          : write_aligned(node, offset, n, qiov, qiov_offset, flags);
        if (ret < 0) {
            return ret;
        }
        length_grow(node, offset + n);
        offset += n;
        qiov_offset += (size_t)n;
        bytes -= n;
    }
    return 0;
}

/* Where the driver has no FUA of its own, a flush after the write gives it. Outside of the write: a flush
 * waits for writes. */
static int coroutine_fn finish_fua(BlockNode *node, BlockRequestFlags flags, BlockRequestFlags supported,
                                   int ret)
{
    bool needs_flush = ret == 0 && (flags & BLOCK_REQ_FUA) && !(supported & BLOCK_REQ_FUA);
    return needs_flush ? node_co_flush(node) : ret;
}

int coroutine_fn block_child_co_pwritev(BlockChild *child, int64_t offset, int64_t bytes,
                                        const IoVector *qiov, size_t qiov_offset, BlockRequestFlags flags)
{
    BlockNode *node = child->node;
    int ret = block_check_range(offset, bytes);
    if (ret == 0) {
        ret = check_write(child, offset + bytes);
    }
    if (ret < 0 || bytes == 0) {
        return ret;
    }
    g_assert(qiov_offset <= qiov->size && (size_t)bytes <= qiov->size - qiov_offset);
    if (node->detect_zeroes && io_vector_is_zero(qiov, qiov_offset, (size_t)bytes)) {
        BlockRequestFlags zero_flags = (flags & BLOCK_REQ_FUA) | BLOCK_REQ_NO_FALLBACK |
                                       (node->detect_zeroes_unmap ? BLOCK_REQ_MAY_UNMAP : 0);
        ret = block_child_co_pwrite_zeroes(child, offset, bytes, zero_flags);
        if (ret != -ENOTSUP) {
            return ret;
        }
    }
    block_node_inc_in_flight(node);
    NodeWrite w;
    node_write_begin(&w, node, BLOCK_OP_WRITE, offset, bytes);
    ret = check_write(child, offset + bytes); /* again: a truncate may have come first */
    if (ret == 0) {
        ret = write_any(node, offset, bytes, qiov, qiov_offset, flags);
    }
    ret = node_write_end(&w, ret);
    ret = finish_fua(node, flags, node->supported_write_flags, ret);
    block_node_dec_in_flight(node);
    return ret;
}

int coroutine_fn block_child_co_pwrite(BlockChild *child, int64_t offset, int64_t bytes, const void *buf,
                                       BlockRequestFlags flags)
{
    if (bytes < 0) {
        return -EINVAL;
    }
    struct iovec iov = {(void *)buf, (size_t)bytes};
    IoVector v = {&iov, 1, (size_t)bytes};
    return block_child_co_pwritev(child, offset, bytes, &v, 0, flags);
}

/* ---- Zeroes */

/* Zero bytes, written. */
static int coroutine_fn zero_by_writing(BlockNode *node, int64_t offset, int64_t bytes,
                                        BlockRequestFlags flags)
{
    size_t size = (size_t)MIN(bytes, BOUNCE_MAX);
    void *buf = node_bounce_new(node, size);
    if (!buf) {
        return -ENOMEM;
    }
    memset(buf, 0, size);
    struct iovec iov = {buf, size};
    IoVector v = {&iov, 1, size};
    int ret = 0;
    while (bytes > 0 && ret == 0) {
        /* Full buffers end on block borders, so that only the first and the last write are partial. */
        int64_t n = bytes;
        if (n > (int64_t)size) {
            n = (int64_t)size - (offset & (node_alignment(node) - 1));
        }
        ret = write_any(node, offset, n, &v, 0, flags & BLOCK_REQ_FUA);
        offset += n;
        bytes -= n;
    }
    free(buf);
    return ret;
}

static int coroutine_fn zero_piece(BlockNode *node, int64_t offset, int64_t bytes, BlockRequestFlags flags)
{
    if (node->driver->co_pwrite_zeroes) {
        return node->driver->co_pwrite_zeroes(node, offset, bytes, flags & node->supported_zero_flags);
    }
    if (node->driver->is_filter && node->file) {
        return block_child_co_pwrite_zeroes(node->file, offset, bytes, flags & node->supported_zero_flags);
    }
    return -ENOTSUP;
}

/* Whole blocks of the driver's zeroing, cut to its limit; -ENOTSUP falls back unless told otherwise. */
static int coroutine_fn zero_aligned(BlockNode *node, int64_t offset, int64_t bytes, BlockRequestFlags flags)
{
    int64_t most = node->limits.max_pwrite_zeroes ? node->limits.max_pwrite_zeroes : bytes;
    int ret = 0;
    while (bytes > 0 && ret == 0) {
        int64_t n = MIN(bytes, most);
        ret = zero_piece(node, offset, n, flags);
        if (ret == -ENOTSUP && !(flags & BLOCK_REQ_NO_FALLBACK)) {
            return zero_by_writing(node, offset, bytes, flags);
        }
        if (ret == 0) {
            length_grow(node, offset + n);
        }
        offset += n;
        bytes -= n;
    }
    return ret;
}

static int coroutine_fn node_co_zero(BlockNode *node, int64_t offset, int64_t bytes, BlockRequestFlags flags)
{
    int64_t align = MAX(node_alignment(node), (int64_t)node->limits.pwrite_zeroes_alignment);
    int64_t start = ROUND_UP(offset, align), end = ROUND_DOWN(offset + bytes, align);
    if (offset + bytes == block_node_length(node)) {
        end = MAX(offset + bytes, start); /* the end of the node needs no alignment */
        end -= (end - start) % node_alignment(node);
    }
    if (start >= end) {
        return zero_by_writing(node, offset, bytes, flags);
    }
    /* The middle first: should it not be supported, nothing has been changed yet. */
    int ret = zero_aligned(node, start, end - start, flags);
    if (ret == 0 && start > offset) {
        ret = zero_by_writing(node, offset, start - offset, flags);
    }
    if (ret == 0 && offset + bytes > end) {
        ret = zero_by_writing(node, end, offset + bytes - end, flags);
    }
    return ret;
}

/* Reserve space without changing what the range reads as. */
static int coroutine_fn node_co_allocate(BlockNode *node, int64_t offset, int64_t bytes,
                                         BlockRequestFlags flags)
{
    if (!(node->supported_zero_flags & BLOCK_REQ_ALLOCATE)) {
        return -ENOTSUP;
    }
    int64_t align = node_alignment(node), start = ROUND_DOWN(offset, align);
    int64_t padded = ROUND_UP(offset + bytes, align), end = MAX(block_node_length(node), offset + bytes);
    int ret = zero_piece(node, start, padded - start, flags);
    if (ret == 0 && padded > end && node->driver->co_truncate) {
        ret = node->driver->co_truncate(node, end, NULL);
    }
    if (ret == 0) {
        length_grow(node, offset + bytes);
    }
    return ret;
}

int coroutine_fn block_child_co_pwrite_zeroes(BlockChild *child, int64_t offset, int64_t bytes,
                                              BlockRequestFlags flags)
{
    BlockNode *node = child->node;
    int ret = block_check_range(offset, bytes);
    if (ret == 0) {
        ret = check_write(child, offset + bytes);
    }
    if (ret < 0 || bytes == 0) {
        return ret;
    }
    if (!node->discard_unmap) {
        flags &= ~BLOCK_REQ_MAY_UNMAP;
    }
    block_node_inc_in_flight(node);
    NodeWrite w;
    node_write_begin(&w, node, BLOCK_OP_WRITE_ZEROES, offset, bytes);
    ret = check_write(child, offset + bytes);
    if (ret == 0) {
        ret = flags & BLOCK_REQ_ALLOCATE ? node_co_allocate(node, offset, bytes, flags)
                                         : node_co_zero(node, offset, bytes, flags);
    }
    ret = node_write_end(&w, ret);
    ret = finish_fua(node, flags, node->supported_write_flags & node->supported_zero_flags, ret);
    block_node_dec_in_flight(node);
    return ret;
}

/* ---- Discard */

static int coroutine_fn discard_piece(BlockNode *node, int64_t offset, int64_t bytes)
{
    if (node->driver->co_pdiscard) {
        int ret = node->driver->co_pdiscard(node, offset, bytes);
        return ret == -ENOTSUP ? 0 : ret;
    }
    if (node->driver->is_filter && node->file) {
        return block_child_co_pdiscard(node->file, offset, bytes);
    }
    return 0;
}

int coroutine_fn block_child_co_pdiscard(BlockChild *child, int64_t offset, int64_t bytes)
{
    BlockNode *node = child->node;
    int ret = block_check_range(offset, bytes);
    if (ret == 0) {
        ret = check_write(child, 0);
    }
    if (ret < 0 || !node->discard_unmap) {
        return ret;
    }
    bytes = MIN(bytes, block_node_length(node) - offset);
    int64_t align = MAX(node_alignment(node), (int64_t)node->limits.pdiscard_alignment);
    int64_t start = ROUND_UP(offset, align), end = ROUND_DOWN(offset + bytes, align);
    if (start >= end) {
        return 0;
    }
    int64_t most = node->limits.max_pdiscard ? node->limits.max_pdiscard : end - start;
    NodeWrite w;
    node_write_begin(&w, node, BLOCK_OP_DISCARD, start, end - start);
    end = MIN(end, ROUND_DOWN(block_node_length(node), align)); /* a truncate may have come first */
    while (start < end && ret == 0) {
        int64_t n = MIN(end - start, most);
        ret = discard_piece(node, start, n);
        start += n;
    }
    return node_write_end(&w, ret);
}

/* ---- Truncate */

static int coroutine_fn truncate_node(BlockNode *node, int64_t length, GError **errp)
{
    if (node->driver->co_truncate) {
        return node->driver->co_truncate(node, length, errp);
    }
    if (node->driver->is_filter && node->file) {
        return block_child_co_truncate(node->file, length, errp);
    }
    return bg_error_set(errp, ENOTSUP, "node '%s': driver '%s' cannot change its length", node->name,
                        node->driver->name);
}

int coroutine_fn block_child_co_truncate(BlockChild *child, int64_t length, GError **errp)
{
    BlockNode *node = child->node;
    if (length < 0 || length > BLOCK_MAX_LENGTH) {
        return bg_error_set(errp, length < 0 ? EINVAL : EFBIG,
                            "node '%s': impossible length %" G_GINT64_FORMAT, node->name, length);
    }
    if (!(child->perm & BLOCK_PERM_RESIZE) || node->read_only) {
        return bg_error_set(errp, EACCES, "node '%s' may not be resized by its user", node->name);
    }
    NodeWrite w = {0};
    w.epoch = flush_write_begin(node->flush);
    node_request_begin(&w.req, node, BLOCK_OP_TRUNCATE, length, 0);
    track_tail(node, &w.tracked, length);
    /* A reader that finds the storage cut must find the length cut as well, or it takes that for an error. */
    int64_t old = block_node_length(node);
    if (length < old) {
        atomic_store(&node->length, length);
    }
    int ret = truncate_node(node, length, errp);
    atomic_store(&node->length, ret == 0 ? length : old);
    return node_write_end(&w, ret);
}

/* ---- Copy */

/* Read and write through a buffer, each chunk a request of its own. */
static int coroutine_fn copy_bounced(BlockChild *src, int64_t src_offset, BlockChild *dst, int64_t dst_offset,
                                     int64_t bytes)
{
    size_t size = (size_t)MIN(bytes, BOUNCE_MAX);
    void *buf = node_bounce_new(dst->node, size);
    if (!buf) {
        return -ENOMEM;
    }
    int ret = 0;
    while (bytes > 0 && ret == 0) {
        int64_t n = MIN(bytes, (int64_t)size);
        ret = block_child_co_pread(src, src_offset, n, buf);
        if (ret == 0) {
            ret = block_child_co_pwrite(dst, dst_offset, n, buf, 0);
        }
        src_offset += n;
        dst_offset += n;
        bytes -= n;
    }
    free(buf);
    return ret;
}

static bool drivers_can_copy(const BlockNode *src, const BlockNode *dst, int64_t src_offset,
                             int64_t dst_offset, int64_t bytes)
{
    int64_t align = MAX(node_alignment(src), node_alignment(dst));
    return src->driver == dst->driver && src->driver->co_copy_range && !src->aio_context &&
           !dst->aio_context && !((src_offset | dst_offset | bytes) & (align - 1)) &&
           src_offset + bytes <= block_node_length((BlockNode *)src);
}

static int coroutine_fn copy_by_driver(BlockNode *src, int64_t src_offset, BlockChild *dst,
                                       int64_t dst_offset, int64_t bytes)
{
    BlockNode *node = dst->node;
    NodeWrite w;
    block_node_inc_in_flight(src);
    node_write_begin(&w, node, BLOCK_OP_COPY_RANGE, dst_offset, bytes);
    int ret = check_write(dst, dst_offset + bytes);
    if (ret == 0) {
        ret = node->driver->co_copy_range(src, src_offset, node, dst_offset, bytes);
    }
    if (ret == 0) {
        length_grow(node, dst_offset + bytes);
    }
    ret = node_write_end(&w, ret);
    block_node_dec_in_flight(src);
    return ret;
}

int coroutine_fn block_child_co_copy_range(BlockChild *src, int64_t src_offset, BlockChild *dst,
                                           int64_t dst_offset, int64_t bytes)
{
    if (block_check_range(src_offset, bytes) < 0 || block_check_range(dst_offset, bytes) < 0) {
        return -EINVAL;
    }
    if (src->node == dst->node && src_offset < dst_offset + bytes && dst_offset < src_offset + bytes) {
        return -EINVAL;
    }
    int ret = check_write(dst, dst_offset + bytes);
    if (ret < 0 || bytes == 0) {
        return ret;
    }
    if (drivers_can_copy(src->node, dst->node, src_offset, dst_offset, bytes)) {
        ret = copy_by_driver(src->node, src_offset, dst, dst_offset, bytes);
        if (ret != -ENOTSUP) {
            return ret;
        }
    }
    return copy_bounced(src, src_offset, dst, dst_offset, bytes);
}
