/*
 * qcow2: the order in which changed tables reach the file.
 *
 *   1. refcount blocks; flush; refcount table       (counts too high are leaks, never corruption)
 *   2. flush: the above, and the data of all linked clusters, are stable
 *   3. L2 tables
 *   4. flush; L1 table                              (only where new L2 tables were made)
 *   5. flush; refcounts of dropped clusters fall    (release.c)
 *
 * The long flush of step 2 runs without the lock; what was linked meanwhile makes a second, short one
 * necessary.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "backends/format/qcow2/qcow2.h"

int coroutine_fn qcow2_file_flush(Qcow2State *s)
{
    return block_child_co_flush(s->node->file);
}

int coroutine_fn qcow2_data_flush(Qcow2State *s)
{
    int ret = s->external ? block_child_co_flush(s->data) : 0;
    return ret < 0 ? ret : qcow2_file_flush(s);
}

int coroutine_fn qcow2_write_refcounts_locked(Qcow2State *s)
{
    int ret = qcow2_cache_write_dirty_locked(s, &s->refcount_cache);
    if (ret == 0 && s->reftable.any_dirty) {
        ret = qcow2_file_flush(s); /* a new block, before the table points to it */
        ret = ret < 0 ? ret : qcow2_directory_write_dirty_locked(s, &s->reftable);
    }
    return ret;
}

int coroutine_fn qcow2_write_l2_locked(Qcow2State *s)
{
    int ret = qcow2_write_refcounts_locked(s);
    ret = ret < 0 ? ret : qcow2_data_flush(s);
    return ret < 0 ? ret : qcow2_cache_write_dirty_locked(s, &s->l2_cache);
}

static int coroutine_fn write_l1_locked(Qcow2State *s)
{
    if (!s->l1.any_dirty) {
        return 0;
    }
    int ret = qcow2_file_flush(s);
    return ret < 0 ? ret : qcow2_directory_write_dirty_locked(s, &s->l1);
}

/* Steps 1 to 4. Called with the lock; lets it go meanwhile. */
static int coroutine_fn write_tables(Qcow2State *s) BG_NO_TSA
{
    int ret = qcow2_write_refcounts_locked(s);
    if (ret < 0 || (!s->l2_cache.n_dirty && !s->l1.any_dirty)) {
        return ret;
    }
    uint64_t links = s->link_count;
    co_mutex_unlock(&s->lock);
    ret = qcow2_data_flush(s);
    co_mutex_lock(&s->lock);
    if (ret == 0 && s->link_count != links) {
        ret = qcow2_write_l2_locked(s);
    } else if (ret == 0) {
        ret = qcow2_cache_write_dirty_locked(s, &s->l2_cache);
    }
    return ret < 0 ? ret : write_l1_locked(s);
}

/* Step 5, as above. */
static int coroutine_fn release_dropped(Qcow2State *s) BG_NO_TSA
{
    int ret = 0;
    if (s->dropped->len) {
        g_autoptr(GArray) batch = s->dropped;
        s->dropped = g_array_new(false, false, sizeof(Qcow2Range));
        co_mutex_unlock(&s->lock);
        ret = qcow2_file_flush(s);
        co_mutex_lock(&s->lock);
        g_array_append_vals(ret < 0 ? s->dropped : s->stable, batch->data, batch->len);
    }
    ret = ret < 0 ? ret : qcow2_release_locked(s);
    return ret < 0 ? ret : qcow2_write_refcounts_locked(s);
}

int coroutine_fn qcow2_sync(Qcow2State *s) BG_NO_TSA
{
    co_mutex_lock(&s->sync_lock);
    co_mutex_lock(&s->lock);
    int ret = write_tables(s);
    ret = ret < 0 ? ret : release_dropped(s);
    co_mutex_unlock(&s->lock);
    co_mutex_unlock(&s->sync_lock);
    return ret;
}

int coroutine_fn qcow2_co_flush(BlockNode *node)
{
    return qcow2_sync(node->opaque);
}
