/*
 * BlockBackend: requests from outside, and where they park.
 *
 *   request   ARRIVED --nothing quiesced, nobody parked--> RUNNING --done--> gone
 *             ARRIVED --else--> PARKED --section ends--> RESUMED --its context enters it--> RUNNING
 *
 * Invariants: a request counts in in_flight in RUNNING and RESUMED only; the resumer counts for it, so a
 * section that begins between RESUMED and RUNNING waits for it. While some are PARKED or RESUMED, newcomers
 * park behind them, so requests of one context run in the order they came.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "aio/aio.h"
#include "block/block-internal.h"
#include "util/error.h"

struct ParkedRequest {
    Coroutine *co;
    ParkedRequest *next;
};

/* ---- Life */

BlockBackend *block_backend_new(BlockGraph *graph, const char *name, BlockPerm perm, BlockPerm shared)
{
    bg_assert_main_thread();
    BlockBackend *blk = aligned_alloc(BG_CACHE_LINE, sizeof *blk);
    g_assert(blk);
    *blk = (BlockBackend){.graph = graph, .name = g_strdup(name), .perm = perm, .shared = shared};
    bg_mutex_init(&blk->park_lock);
    blk->park_last = &blk->park_first;
    g_ptr_array_add(graph->backends, blk);
    block_drain_graph_changed(graph);
    return blk;
}

int block_backend_insert(BlockBackend *blk, BlockNode *node, GError **errp)
{
    bg_assert_main_thread();
    g_assert(!blk->root);
    BlockChild *edge = block_child_new("root", BLOCK_ROLE_FILTERED, node);
    edge->backend = blk;
    edge->new_perm = blk->perm;
    edge->new_shared = blk->shared;
    block_child_link(edge);
    int ret = block_perms_update(&node, 1, errp);
    if (ret < 0) {
        block_node_unref_later(block_child_unlink(edge));
        block_child_free(edge);
        return ret;
    }
    blk->root = edge;
    block_drain_graph_changed(blk->graph);
    return 0;
}

void coroutine_fn block_backend_co_remove(BlockBackend *blk)
{
    bg_assert_main_thread();
    BlockChild *edge = blk->root;
    if (!edge) {
        return;
    }
    BlockDrain *section = block_drain_co_begin(edge->node);
    blk->root = NULL;
    block_child_co_detach(edge);
    block_drain_end(section);
}

void coroutine_fn block_backend_co_free(BlockBackend *blk)
{
    if (blk->view) {
        block_view_co_close(blk);
    }
    block_backend_co_remove(blk);
    bool found = g_ptr_array_remove(blk->graph->backends, blk);
    g_assert(found);
    block_drain_graph_changed(blk->graph);
    g_assert(atomic_load(&blk->in_flight) == 0 && atomic_load(&blk->n_parked) == 0);
    bg_mutex_destroy(&blk->park_lock);
    g_free(blk->name);
    free(blk);
}

BlockNode *block_backend_node(BlockBackend *blk)
{
    /* Pairs with block_child_move_edges. */
    return blk->root ? g_atomic_pointer_get(&blk->root->node) : NULL;
}

const char *block_backend_name(const BlockBackend *blk)
{
    return blk->name;
}

int block_backend_set_perm(BlockBackend *blk, BlockPerm perm, BlockPerm shared, GError **errp)
{
    bg_assert_main_thread();
    if (blk->root) {
        blk->root->new_perm = perm;
        blk->root->new_shared = shared;
        int ret = block_perms_update(&blk->root->node, 1, errp);
        if (ret < 0) {
            return ret;
        }
    }
    blk->perm = perm;
    blk->shared = shared;
    return 0;
}

int64_t block_backend_length(BlockBackend *blk)
{
    if (blk->view) {
        return blk->view->length;
    }
    BlockNode *node = block_backend_node(blk);
    return node ? block_node_length(node) : 0;
}

unsigned block_backend_parked(BlockBackend *blk)
{
    return atomic_load(&blk->n_parked);
}

/* ---- Parking */

static void backend_dec_in_flight(BlockBackend *blk)
{
    block_drain_count_down(blk->graph, &blk->in_flight);
}

/*
 * Let everything parked go, in order. One batch at a time: were a second one let go by another thread before
 * all of the first have run, it could overtake it on the way to a third.
 */
static void resume_parked(BlockBackend *blk)
{
    bg_mutex_lock(&blk->park_lock);
    ParkedRequest *p = NULL;
    if (atomic_load(&blk->quiesce) == 0 && atomic_load(&blk->n_resumed) == 0) {
        p = blk->park_first;
        blk->park_first = NULL;
        blk->park_last = &blk->park_first;
        for (ParkedRequest *q = p; q; q = q->next) {
            atomic_fetch_add(&blk->in_flight, 1);
            atomic_fetch_add(&blk->n_resumed, 1);
        }
    }
    bg_mutex_unlock(&blk->park_lock);
    while (p) {
        ParkedRequest *next = p->next; /* p lies on the stack of the coroutine that is woken */
        aio_co_wake(p->co);
        p = next;
    }
}

void block_backend_quiesce(BlockBackend *blk)
{
    atomic_fetch_add(&blk->quiesce, 1);
}

void block_backend_unquiesce(BlockBackend *blk)
{
    if (atomic_fetch_sub(&blk->quiesce, 1) == 1) {
        resume_parked(blk);
    }
}

static void coroutine_fn park(BlockBackend *blk)
{
    ParkedRequest self = {.co = coroutine_self()};
    bg_mutex_lock(&blk->park_lock);
    if (atomic_load(&blk->quiesce) == 0 && atomic_load(&blk->n_parked) == 0) {
        bg_mutex_unlock(&blk->park_lock);
        return; /* the section ended meanwhile; still counted in in_flight */
    }
    *blk->park_last = &self;
    blk->park_last = &self.next;
    atomic_fetch_add(&blk->n_parked, 1);
    bg_mutex_unlock(&blk->park_lock);

    backend_dec_in_flight(blk);
    coroutine_yield(); /* resume_parked has counted us again */

    atomic_fetch_sub(&blk->n_parked, 1);
    if (atomic_fetch_sub(&blk->n_resumed, 1) == 1) {
        resume_parked(blk); /* those who came while the batch was on the way */
    }
}

static inline void coroutine_fn backend_begin(BlockBackend *blk)
{
    atomic_fetch_add(&blk->in_flight, 1);
    if (bg_unlikely(atomic_load(&blk->quiesce) > 0 ||
                    atomic_load_explicit(&blk->n_parked, memory_order_relaxed) > 0)) {
        park(blk);
    }
}

static inline int backend_end(BlockBackend *blk, int ret)
{
    backend_dec_in_flight(blk);
    return ret;
}

/* ---- I/O */

/* Between begin and end the root does not change. */
#define BACKEND_CALL(blk, call)                                                                              \
    ({                                                                                                       \
        backend_begin(blk);                                                                                  \
        int ret_ = (blk)->root ? (call) : -ENOMEDIUM;                                                        \
        backend_end(blk, ret_);                                                                              \
    })

int coroutine_fn block_backend_co_preadv(BlockBackend *blk, int64_t offset, int64_t bytes,
                                         const IoVector *qiov, BlockRequestFlags flags)
{
    return BACKEND_CALL(blk, bg_unlikely(blk->view != NULL)
                                 ? block_view_co_preadv(blk, offset, bytes, qiov)
                                 : block_child_co_preadv(blk->root, offset, bytes, qiov, 0, flags));
}

int coroutine_fn block_backend_co_pwritev(BlockBackend *blk, int64_t offset, int64_t bytes,
                                          const IoVector *qiov, BlockRequestFlags flags)
{
    return BACKEND_CALL(blk, block_child_co_pwritev(blk->root, offset, bytes, qiov, 0, flags));
}

int coroutine_fn block_backend_co_pread(BlockBackend *blk, int64_t offset, int64_t bytes, void *buf)
{
    if (bytes < 0) {
        return -EINVAL;
    }
    struct iovec iov = {buf, (size_t)bytes};
    IoVector v = {&iov, 1, (size_t)bytes};
    return block_backend_co_preadv(blk, offset, bytes, &v, 0);
}

int coroutine_fn block_backend_co_pwrite(BlockBackend *blk, int64_t offset, int64_t bytes, const void *buf,
                                         BlockRequestFlags flags)
{
    return BACKEND_CALL(blk, block_child_co_pwrite(blk->root, offset, bytes, buf, flags));
}

int coroutine_fn block_backend_co_flush(BlockBackend *blk)
{
    return BACKEND_CALL(blk, block_child_co_flush(blk->root));
}

int coroutine_fn block_backend_co_flush_report(BlockBackend *blk, BlockFlushError *newest)
{
    int ret = -ENOMEDIUM;
    *newest = 0;
    backend_begin(blk);
    if (blk->root) {
        ret = block_child_co_flush(blk->root);
        *newest = node_flush_error(blk->root->node);
    }
    return backend_end(blk, ret);
}

BlockFlushError coroutine_fn block_backend_co_flush_error(BlockBackend *blk)
{
    backend_begin(blk);
    BlockFlushError error = blk->root ? node_flush_error(blk->root->node) : 0;
    backend_dec_in_flight(blk);
    return error;
}

int coroutine_fn block_backend_co_pwrite_zeroes(BlockBackend *blk, int64_t offset, int64_t bytes,
                                                BlockRequestFlags flags)
{
    return BACKEND_CALL(blk, block_child_co_pwrite_zeroes(blk->root, offset, bytes, flags));
}

int coroutine_fn block_backend_co_pdiscard(BlockBackend *blk, int64_t offset, int64_t bytes)
{
    return BACKEND_CALL(blk, block_child_co_pdiscard(blk->root, offset, bytes));
}

int coroutine_fn block_backend_co_block_status(BlockBackend *blk, int64_t offset, int64_t bytes,
                                               int64_t *pnum)
{
    return BACKEND_CALL(blk, bg_unlikely(blk->view != NULL)
                                 ? block_view_co_block_status(blk, offset, bytes, pnum)
                                 : block_child_co_block_status(blk->root, offset, bytes, pnum));
}

int coroutine_fn block_backend_co_truncate(BlockBackend *blk, int64_t length, GError **errp)
{
    backend_begin(blk);
    int ret = blk->root ? block_child_co_truncate(blk->root, length, errp)
                        : bg_error_set(errp, ENOMEDIUM, "'%s' has no node", blk->name);
    return backend_end(blk, ret);
}

/*
 * As backend_begin, but false, with nothing held, where a section stops the backend. Does not line up behind
 * requests on their way out of the park: many copies that did so for two backends could send each other back
 * to the ends of the lines for ever.
 */
static bool backend_try_begin(BlockBackend *blk)
{
    atomic_fetch_add(&blk->in_flight, 1);
    if (atomic_load(&blk->quiesce) > 0) {
        backend_dec_in_flight(blk);
        return false;
    }
    return true;
}

/* Begin on both. Never parks on one while counting on the other: a section over both would wait for ever. */
static void coroutine_fn backend_begin_both(BlockBackend *a, BlockBackend *b)
{
    backend_begin(a);
    while (!backend_try_begin(b)) {
        backend_dec_in_flight(a);
        BlockBackend *t = a;
        a = b;
        b = t;
        backend_begin(a);
    }
}

int coroutine_fn block_backend_co_copy_range(BlockBackend *src, int64_t src_offset, BlockBackend *dst,
                                             int64_t dst_offset, int64_t bytes)
{
    backend_begin_both(src, dst);
    int ret = -ENOMEDIUM;
    if (src->root && dst->root) {
        ret = block_child_co_copy_range(src->root, src_offset, dst->root, dst_offset, bytes);
    }
    backend_dec_in_flight(src);
    return backend_end(dst, ret);
}

int64_t coroutine_fn block_backend_co_get_allocated(BlockBackend *blk)
{
    backend_begin(blk);
    int64_t ret = blk->root ? block_node_co_get_allocated(blk->root->node) : -ENOMEDIUM;
    backend_dec_in_flight(blk);
    return ret;
}
