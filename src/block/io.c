/*
 * The one wrapper around drivers' I/O callbacks: reading, flushing, block status, and what all requests
 * share.
 *
 *   request on a node   BEGUN (counted in in_flight, moved to the node's home) --driver--> ENDED (moved back,
 *                       statistics, error log) --in_flight dropped--> gone
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "aio/aio.h"
#include "block/block-internal.h"
#include "block/flush.h"
#include "block/io-internal.h"

/* ---- One request */

int block_check_range(int64_t offset, int64_t bytes)
{
    return offset < 0 || bytes < 0 || offset > BLOCK_MAX_LENGTH || bytes > BLOCK_MAX_LENGTH - offset ? -EINVAL
                                                                                                     : 0;
}

/*
 * A node that moves is drained, but the main thread's own requests come all the same (a parent that opens).
 * The mover sets `moving`, then waits for in_flight; a request counts itself, then looks at `moving`: one of
 * them sees the other.
 */
static void coroutine_fn wait_while_moving(BlockNode *node)
{
    BlockGraph *graph = node->graph;
    while (atomic_load(&node->moving)) {
        block_node_dec_in_flight(node);
        bg_mutex_lock(&graph->move_lock);
        while (atomic_load(&node->moving)) {
            co_queue_wait_locked(&graph->moved, &graph->move_lock);
        }
        bg_mutex_unlock(&graph->move_lock);
        block_node_inc_in_flight(node);
    }
}

/* Count, and go to the node's home. Returns where to go back to; NULL: it did not move. */
static AioContext *coroutine_fn enter_node(BlockNode *node)
{
    block_node_inc_in_flight(node); /* from here on neither home nor edges change */
    if (bg_unlikely(node->driver->co_attach_aio_context != NULL)) {
        AioContext *here = aio_context_current();
        wait_while_moving(node);
        if (node->aio_context && here != node->aio_context) {
            aio_co_reschedule_self(node->aio_context);
            return here;
        }
    }
    return NULL;
}

void coroutine_fn node_request_begin(NodeRequest *req, BlockNode *node, BlockOp op, int64_t offset,
                                     int64_t bytes)
{
    *req =
        (NodeRequest){.node = node, .op = op, .offset = offset, .bytes = bytes, .start_ns = aio_clock_ns()};
    req->origin = enter_node(node);
}

int coroutine_fn node_request_end(NodeRequest *req, int ret)
{
    BlockNode *node = req->node;
    if (bg_unlikely(req->origin != NULL)) {
        aio_co_reschedule_self(req->origin);
    }
    block_stats_add(node->stats, req->op, req->bytes, aio_clock_ns() - req->start_ns,
                    ret < 0 && ret != -ENOTSUP);
    /* Errors are logged where they arise: at the leaf. */
    if (bg_unlikely(ret < 0 && ret != -ENOTSUP && node->children->len == 0)) {
        block_graph_log_error(node->graph, node->name, req->op, req->offset, req->bytes, -ret, NULL);
    }
    block_node_dec_in_flight(node);
    return ret;
}

void *node_bounce_new(const BlockNode *node, size_t bytes)
{
    size_t align = MAX(MAX(node->limits.memory_alignment, node->limits.request_alignment), 4096);
    return aligned_alloc(align, ROUND_UP(MAX(bytes, 1), align));
}

/* The largest n of `bytes` whose memory has no more elements than the driver takes; aligned where it is less.
 */
static int64_t within_max_iov(const BlockNode *node, int64_t n, const IoVector *qiov, size_t skip)
{
    int max_iov = node->limits.max_iov;
    if (!max_iov || qiov->niov <= max_iov) {
        return n;
    }
    const struct iovec *v = qiov->iov;
    while (skip >= v->iov_len) {
        skip -= (v++)->iov_len;
    }
    int64_t room = (int64_t)v->iov_len - (int64_t)skip;
    for (int i = 1; i < max_iov && room < n; i++) {
        room += (int64_t)(++v)->iov_len;
    }
    return room < n ? ROUND_DOWN(room, node_alignment(node)) : n;
}

/* Whether the memory suits a driver that cares (direct I/O): addresses, and lengths in whole blocks. */
static bool memory_is_aligned(const BlockNode *node, int64_t n, const IoVector *qiov, size_t skip)
{
    uintptr_t mask = node->limits.memory_alignment - 1, len_mask = node_alignment(node) - 1;
    const struct iovec *v = qiov->iov;
    while (skip >= v->iov_len) {
        skip -= (v++)->iov_len;
    }
    for (; n > 0; v++, skip = 0) {
        size_t len = MIN(v->iov_len - skip, (size_t)n);
        if ((((uintptr_t)v->iov_base + skip) & mask) || (len & len_mask)) {
            return false;
        }
        n -= (int64_t)len;
    }
    return true;
}

/*
 * How much of [qiov_offset, +bytes) the driver takes in one call; a multiple of the alignment. *bounce: only
 * through memory of our own, as the caller's lies too scattered or at the wrong addresses.
 */
int64_t node_piece_length(const BlockNode *node, int64_t bytes, const IoVector *qiov, size_t qiov_offset,
                          bool *bounce)
{
    const BlockLimits *l = &node->limits;
    int64_t most = l->max_transfer ? MIN(bytes, l->max_transfer) : bytes;
    int64_t n = within_max_iov(node, most, qiov, qiov_offset);
    *bounce = n == 0 || (l->memory_alignment > 1 && !memory_is_aligned(node, n, qiov, qiov_offset));
    if (bg_unlikely(*bounce)) {
        n = MIN(most, MAX(ROUND_DOWN(BOUNCE_MAX, node_alignment(node)), node_alignment(node)));
    }
    return n;
}

/* ---- Reading */

static int coroutine_fn read_piece(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                   size_t qiov_offset)
{
    if (node->driver->co_preadv) {
        return node->driver->co_preadv(node, offset, bytes, qiov, qiov_offset, 0);
    }
    if (node->driver->is_filter && node->file) {
        return block_child_co_preadv(node->file, offset, bytes, qiov, qiov_offset, 0);
    }
    return -ENOTSUP;
}

/* Through memory of our own. */
static int coroutine_fn read_bounced(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                     size_t qiov_offset)
{
    void *buf = node_bounce_new(node, (size_t)bytes);
    if (!buf) {
        return -ENOMEM;
    }
    struct iovec iov = {buf, (size_t)bytes};
    IoVector v = {&iov, 1, (size_t)bytes};
    int ret = read_piece(node, offset, bytes, &v, 0);
    if (ret == 0) {
        io_vector_from_buf(qiov, qiov_offset, buf, (size_t)bytes);
    }
    free(buf);
    return ret;
}

int coroutine_fn node_co_driver_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                       size_t qiov_offset)
{
    int ret = 0;
    while (bytes > 0 && ret == 0) {
        bool bounce;
        int64_t n = node_piece_length(node, bytes, qiov, qiov_offset, &bounce);
        if (bg_unlikely(bounce)) {
            ret = read_bounced(node, offset, n, qiov, qiov_offset);
        } else {
            ret = read_piece(node, offset, n, qiov, qiov_offset);
        }
        offset += n;
        qiov_offset += (size_t)n;
        bytes -= n;
    }
    return ret;
}

/* Read the aligned blocks around the range, a bounded buffer at a time. */
static int coroutine_fn read_unaligned(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                       size_t qiov_offset)
{
    int64_t align = node_alignment(node), most = MAX(BOUNCE_MAX, align);
    int64_t around = ROUND_UP(offset + bytes, align) - ROUND_DOWN(offset, align);
    size_t size = (size_t)MIN(around, most);
    void *buf = node_bounce_new(node, size);
    if (!buf) {
        return -ENOMEM;
    }
    int ret = 0;
    while (bytes > 0 && ret == 0) {
        int64_t start = ROUND_DOWN(offset, align),
                end = MIN(ROUND_UP(offset + bytes, align), start + (int64_t)size);
        struct iovec iov = {buf, (size_t)(end - start)};
        IoVector v = {&iov, 1, iov.iov_len};
        ret = node_co_driver_preadv(node, start, end - start, &v, 0);
        int64_t n = MIN(bytes, end - offset);
        if (ret == 0) {
            io_vector_from_buf(qiov, qiov_offset, (char *)buf + (offset - start), (size_t)n);
        }
        offset += n;
        qiov_offset += (size_t)n;
        bytes -= n;
    }
    free(buf);
    return ret;
}

static int coroutine_fn node_co_read(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                     size_t qiov_offset)
{
    int64_t length = block_node_length(node);
    if (bg_unlikely(offset + bytes > length)) {
        int64_t inside = CLAMP(length - offset, 0, bytes);
        io_vector_memset(qiov, qiov_offset + (size_t)inside, 0, (size_t)(bytes - inside));
        bytes = inside;
    }
    if ((offset | bytes) & (node_alignment(node) - 1)) {
        return read_unaligned(node, offset, bytes, qiov, qiov_offset);
    }
    return node_co_driver_preadv(node, offset, bytes, qiov, qiov_offset);
}

int coroutine_fn block_child_co_preadv(BlockChild *child, int64_t offset, int64_t bytes, const IoVector *qiov,
                                       size_t qiov_offset, BlockRequestFlags flags)
{
    int ret = block_check_range(offset, bytes);
    if (ret < 0) {
        return ret;
    }
    g_assert(qiov_offset <= qiov->size && (size_t)bytes <= qiov->size - qiov_offset);
    NodeRequest req;
    node_request_begin(&req, child->node, BLOCK_OP_READ, offset, bytes);
    ret = node_co_read(child->node, offset, bytes, qiov, qiov_offset);
    return node_request_end(&req, ret);
}

int coroutine_fn block_child_co_pread(BlockChild *child, int64_t offset, int64_t bytes, void *buf)
{
    if (bytes < 0) {
        return -EINVAL;
    }
    struct iovec iov = {buf, (size_t)bytes};
    IoVector v = {&iov, 1, (size_t)bytes};
    return block_child_co_preadv(child, offset, bytes, &v, 0, 0);
}

/* ---- Flushing */

/* What is read-only is not flushed, nor looked at. */
static BlockFlushError flush_error_below(const BlockNode *node)
{
    BlockFlushError newest = 0;
    for (guint i = 0; i < node->children->len; i++) {
        const BlockChild *edge = node->children->pdata[i];
        BlockFlushError error = edge->node->read_only ? 0 : node_flush_error(edge->node);
        newest = MAX(newest, error);
    }
    return newest;
}

BlockFlushError node_flush_error(const BlockNode *node)
{
    BlockFlushError here = flush_state_error(node->flush), below = flush_error_below(node);
    return MAX(here, below); /* a macro: a call in it would be made twice */
}

/* A flush failed here, and not below, where it would have its number already. */
static void note_flush_error(BlockNode *node, int errnum)
{
    uint64_t number = atomic_fetch_add(&node->graph->flush_errors, 1) + 1;
    flush_state_set_error(node->flush, number << BLOCK_FLUSH_ERRNO_BITS | (BlockFlushError)errnum);
    if (node->children->len > 0) { /* a leaf's are in the log as all its errors */
        block_graph_log_error(node->graph, node->name, BLOCK_OP_FLUSH, -1, 0, errnum, NULL);
    }
}

static int coroutine_fn flush_once(BlockNode *node)
{
    BlockFlushError before = flush_error_below(node);
    NodeRequest req;
    node_request_begin(&req, node, BLOCK_OP_FLUSH, -1, 0);
    int ret = node->driver->co_flush ? node->driver->co_flush(node) : 0;
    /* All children, also after an error: what can be made durable is. */
    for (guint i = 0; i < node->children->len; i++) {
        BlockChild *edge = node->children->pdata[i];
        int child_ret = edge->node->read_only ? 0 : block_child_co_flush(edge);
        ret = ret < 0 ? ret : child_ret;
    }
    if (bg_unlikely(ret < 0 && flush_error_below(node) == before)) {
        note_flush_error(node, -ret);
    }
    return node_request_end(&req, ret);
}

int coroutine_fn node_co_flush(BlockNode *node)
{
    if (node->cache_no_flush) {
        return 0;
    }
    /* A leaf knows whether there is anything to do; above one, others may have written to what is shared. */
    return flush_state_co_run(node->flush, flush_once, node, node->children->len > 0);
}

int coroutine_fn block_child_co_flush(BlockChild *child)
{
    BlockNode *node = child->node;
    block_node_inc_in_flight(node);
    int ret = node_co_flush(node);
    block_node_dec_in_flight(node);
    return ret;
}

/* ---- Block status */

static int coroutine_fn status_of_driver(BlockNode *node, int64_t offset, int64_t bytes, int64_t *pnum,
                                         BlockChild **child, int64_t *child_offset)
{
    *pnum = bytes;
    *child = node->file;
    *child_offset = offset;
    if (!node->driver->co_block_status) {
        bool pass = node->driver->is_filter && node->file;
        return pass ? BLOCK_STATUS_RECURSE : BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED;
    }
    /* Ask for whole blocks; the answer is cut to what was asked for. */
    int64_t align = node_alignment(node), start = ROUND_DOWN(offset, align);
    int ret = node->driver->co_block_status(node, start, ROUND_UP(offset + bytes, align) - start, pnum, child,
                                            child_offset);
    if (ret < 0) {
        return ret;
    }
    *pnum = CLAMP(*pnum - (offset - start), 1, bytes);
    *child_offset += offset - start;
    return ret;
}

static int coroutine_fn node_co_status(BlockNode *node, int64_t offset, int64_t bytes, int64_t *pnum)
{
    int64_t length = block_node_length(node);
    if (offset >= length) {
        *pnum = bytes;
        return BLOCK_STATUS_ZERO;
    }
    bytes = MIN(bytes, length - offset);
    BlockChild *child;
    int64_t child_offset;
    int ret = status_of_driver(node, offset, bytes, pnum, &child, &child_offset);
    if (ret < 0 || !(ret & BLOCK_STATUS_RECURSE)) {
        return ret;
    }
    int64_t n = *pnum;
    int below = block_child_co_block_status(child, child_offset, n, pnum);
    return below < 0 ? below : (ret & ~BLOCK_STATUS_RECURSE) | below;
}

int coroutine_fn block_child_co_block_status(BlockChild *child, int64_t offset, int64_t bytes, int64_t *pnum)
{
    *pnum = 0;
    int ret = block_check_range(offset, bytes);
    if (ret < 0 || bytes == 0) {
        return ret < 0 ? ret : -EINVAL;
    }
    NodeRequest req;
    node_request_begin(&req, child->node, BLOCK_OP_BLOCK_STATUS, offset, bytes);
    ret = node_co_status(child->node, offset, bytes, pnum);
    return node_request_end(&req, ret);
}

/* ---- Allocated size */

int64_t coroutine_fn block_node_co_get_allocated(BlockNode *node)
{
    int64_t sum = -ENOTSUP;
    AioContext *origin = enter_node(node);
    if (node->driver->co_get_allocated) {
        sum = node->driver->co_get_allocated(node);
    } else {
        for (guint i = 0; i < node->children->len; i++) {
            BlockChild *edge = node->children->pdata[i];
            if (edge->role & BLOCK_ROLE_COW) {
                continue;
            }
            int64_t n = block_node_co_get_allocated(edge->node);
            if (n < 0) {
                sum = n;
                break;
            }
            sum = MAX(sum, 0) + n;
        }
    }
    if (origin) {
        aio_co_reschedule_self(origin);
    }
    block_node_dec_in_flight(node);
    return sum;
}
