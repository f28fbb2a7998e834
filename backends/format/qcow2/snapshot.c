/*
 * qcow2: internal snapshots, as the block layer sees them. transition.c makes and removes them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "backends/format/qcow2/qcow2.h"
#include "util/error.h"

static int64_t length_of(const Qcow2State *s, const Qcow2Snapshot *p)
{
    return p->length >= 0 ? p->length : s->length;
}

static int coroutine_fn co_list(BlockNode *node, GPtrArray *infos, GError **errp)
{
    Qcow2State *s = node->opaque;
    for (guint i = 0; i < s->snapshots->len; i++) {
        const Qcow2Snapshot *p = s->snapshots->pdata[i];
        BlockSnapshotInfo *info = block_snapshot_info_new(p->id, p->name);
        info->date_ns = p->date_ns;
        info->length = length_of(s, p);
        info->vm_state_size = p->vm_state_size;
        g_ptr_array_add(infos, info);
    }
    return 0;
}

/* ---- Changes */

/* Tables written out, and those that the change reads in the cache. */
static void coroutine_fn co_warm_up(BlockNode *node)
{
    Qcow2State *s = node->opaque;
    bool more = qcow2_sync(s) == 0 && qcow2_file_flush(s) == 0;
    for (uint32_t i = 0; more; i++) {
        Qcow2Table *t;
        co_mutex_lock(&s->lock);
        more = i < MIN(s->l1.n, s->l2_cache.max_tables);
        uint64_t offset = more ? s->l1.entries[i] & QCOW2_ENTRY_OFFSET : 0;
        if (offset && qcow2_cache_get_locked(s, &s->l2_cache, offset, &t) == 0) {
            qcow2_cache_put(t);
        }
        co_mutex_unlock(&s->lock);
    }
}

static int coroutine_fn co_prepare(BlockNode *node, const BlockSnapshotChange *change, void **state,
                                   GError **errp)
{
    Qcow2State *s = node->opaque;
    const Qcow2Snapshot *p = qcow2_snapshot_find(s, change->name);
    if (s->external) {
        return bg_error_set(errp, EOPNOTSUPP,
                            "node '%s': an image with an external data file has no snapshots", node->name);
    }
    if (change->action == BLOCK_SNAPSHOT_CREATE && s->external) {
        return bg_error_set(errp, ENOTSUP,
                            "node '%s': a qcow2 image with an external data file cannot have snapshots",
                            node->name);
    }
    if (change->action == BLOCK_SNAPSHOT_DELETE && p->views) {
        return bg_error_set(errp, EBUSY, "node '%s': snapshot '%s' is being read", node->name, change->name);
    }
    return qcow2_transition_prepare(s, change, (Qcow2Transition **)state, errp);
}

static int coroutine_fn co_commit(BlockNode *node, void *state, GError **errp)
{
    return qcow2_transition_commit(node->opaque, state, errp);
}

static void coroutine_fn co_abort(BlockNode *node, void *state)
{
    qcow2_transition_abort(node->opaque, state);
}

/* ---- Reading */

/* All views of a snapshot share its L1 table, which does not change as long as the snapshot exists. */
static int coroutine_fn hold_l1(Qcow2State *s, Qcow2Snapshot *p)
{
    uint64_t bytes = p->l1_size * UINT64_C(8);
    if (p->views++) {
        return 0;
    }
    s->view_bytes += bytes;
    return s->view_bytes > (uint64_t)QCOW2_MAX_VIEW_BYTES
               ? -EMFILE
               : qcow2_directory_read(s, &p->l1, p->l1_offset, p->l1_size);
}

static void release_l1(Qcow2State *s, Qcow2Snapshot *p)
{
    if (--p->views == 0) {
        s->view_bytes -= p->l1_size * UINT64_C(8);
        qcow2_directory_free(&p->l1);
    }
}

static int coroutine_fn co_view_open(BlockNode *node, const char *name, void **view, int64_t *length,
                                     GError **errp)
{
    Qcow2State *s = node->opaque;
    Qcow2Snapshot *p = qcow2_snapshot_find(s, name);
    if (!p) {
        return bg_error_set(errp, ENOENT, "node '%s' has no snapshot '%s'", node->name, name);
    }
    int ret = hold_l1(s, p);
    if (ret < 0) {
        release_l1(s, p);
        return bg_error_set_errno(errp, -ret, "node '%s': reading snapshot '%s'", node->name, name);
    }
    *view = p;
    *length = length_of(s, p);
    return 0;
}

static void coroutine_fn co_view_close(BlockNode *node, void *view)
{
    release_l1(node->opaque, view);
}

static int coroutine_fn co_view_preadv(BlockNode *node, void *view, int64_t offset, int64_t bytes,
                                       const IoVector *qiov, size_t qiov_offset)
{
    const Qcow2Snapshot *p = view;
    return qcow2_read_range(node->opaque, &p->l1, offset, bytes, qiov, qiov_offset);
}

static int coroutine_fn co_view_block_status(BlockNode *node, void *view, int64_t offset, int64_t bytes,
                                             int64_t *pnum)
{
    const Qcow2Snapshot *p = view;
    BlockChild *child;
    int64_t child_offset;
    int ret = qcow2_block_status_in(node->opaque, &p->l1, offset, bytes, pnum, &child, &child_offset);
    if (ret < 0 || !(ret & BLOCK_STATUS_RECURSE)) {
        return ret;
    }
    int below = block_child_co_block_status(child, child_offset, *pnum, pnum);
    return below < 0 ? below : (ret & ~BLOCK_STATUS_RECURSE) | below;
}

const BlockSnapshotOps qcow2_snapshot_ops = {
    .co_list = co_list,
    .co_warm_up = co_warm_up,
    .co_prepare = co_prepare,
    .co_commit = co_commit,
    .co_abort = co_abort,
    .co_view_open = co_view_open,
    .co_view_close = co_view_close,
    .co_view_preadv = co_view_preadv,
    .co_view_block_status = co_view_block_status,
};
