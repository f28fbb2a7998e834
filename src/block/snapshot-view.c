/*
 * Reading snapshots: a backend whose reads go to a snapshot of its root.
 *
 * Requests park and count as those on the current content do.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "block/block-internal.h"
#include "block/snapshot.h"
#include "util/error.h"

/* ---- I/O */

int coroutine_fn block_view_co_preadv(BlockBackend *blk, int64_t offset, int64_t bytes, const IoVector *qiov)
{
    const BlockView *view = blk->view;
    int ret = block_check_range(offset, bytes);
    if (ret < 0) {
        return ret;
    }
    int64_t inside = CLAMP(view->length - offset, 0, bytes);
    io_vector_memset(qiov, (size_t)inside, 0, (size_t)(bytes - inside));
    NodeRequest req;
    node_request_begin(&req, blk->root->node, BLOCK_OP_READ, offset, bytes);
    if (inside > 0) {
        ret = view->ops->co_view_preadv(blk->root->node, view->opaque, offset, inside, qiov, 0);
    }
    return node_request_end(&req, ret);
}

int coroutine_fn block_view_co_block_status(BlockBackend *blk, int64_t offset, int64_t bytes, int64_t *pnum)
{
    const BlockView *view = blk->view;
    *pnum = 0;
    int ret = block_check_range(offset, bytes);
    if (ret < 0 || bytes == 0) {
        return ret < 0 ? ret : -EINVAL;
    }
    *pnum = bytes;
    if (offset >= view->length) {
        return BLOCK_STATUS_ZERO;
    }
    NodeRequest req;
    node_request_begin(&req, blk->root->node, BLOCK_OP_BLOCK_STATUS, offset, bytes);
    ret = view->ops->co_view_block_status(blk->root->node, view->opaque, offset,
                                          MIN(bytes, view->length - offset), pnum);
    return node_request_end(&req, ret);
}

/* ---- Life */

void coroutine_fn block_view_co_close(BlockBackend *blk)
{
    bg_assert_main_thread();
    BlockDrain *section = block_drain_co_begin(blk->root->node);
    blk->view->ops->co_view_close(blk->root->node, blk->view->opaque);
    block_drain_end(section);
    g_clear_pointer(&blk->view, g_free);
}

/* With the lock: an overlay that took the node's place now would take the backend along, without its view. */
static int coroutine_fn open_locked(BlockBackend *blk, BlockNode *target, const char *name, GError **errp)
{
    BlockView view = {.ops = target->driver->snapshots};
    int ret = block_backend_insert(blk, target, errp);
    ret = ret < 0 ? ret : view.ops->co_view_open(target, name, &view.opaque, &view.length, errp);
    if (ret == 0) {
        blk->view = g_memdup2(&view, sizeof view);
    }
    return ret;
}

BlockBackend *coroutine_fn block_snapshot_co_open(BlockNode *node, const char *name, const char *user,
                                                  GError **errp)
{
    bg_assert_main_thread();
    BlockNode *target = block_snapshot_target(node, errp);
    if (!target) {
        return NULL;
    }
    BlockBackend *blk = block_backend_new(target->graph, user, BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL);
    co_mutex_lock(&target->graph->snapshot_lock);
    int ret = open_locked(blk, target, name, errp);
    co_mutex_unlock(&target->graph->snapshot_lock);
    if (ret < 0) {
        block_backend_co_free(blk);
        return NULL;
    }
    return blk;
}
