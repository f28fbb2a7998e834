/*
 * qcow2: growing an image. shrink.c cuts it short.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "backends/format/qcow2/qcow2.h"
#include "util/error.h"

uint64_t qcow2_l1_entries(const Qcow2State *s, int64_t length)
{
    uint32_t bits = s->cluster_bits + s->l2_bits;
    return ((uint64_t)length + (UINT64_C(1) << bits) - 1) >> bits;
}

static int coroutine_fn point_header(Qcow2State *s, uint32_t entries, uint64_t offset)
{
    uint8_t field[12];
    qcow2_store32(field, entries);
    qcow2_store64(field + 4, offset);
    int ret = qcow2_header_write_locked(s, QCOW2_HEADER_L1_SIZE, field, sizeof field);
    return ret < 0 ? ret : qcow2_file_flush(s);
}

/*
 * A larger L1 table at a new place. It takes along entries that the old one does not have in the file yet, so
 * the L2 tables go first.
 */
static int coroutine_fn grow_l1_locked(Qcow2State *s, uint64_t n)
{
    uint64_t offset, bytes = n * 8, old = s->l1.offset, old_bytes = s->l1.n * UINT64_C(8);
    uint64_t clusters = (bytes + (uint64_t)s->cluster_size - 1) >> s->cluster_bits;
    int ret = qcow2_alloc_locked(s, clusters, &offset);
    if (ret < 0) {
        return ret;
    }
    ret = qcow2_write_l2_locked(s);
    ret = ret < 0 ? ret : qcow2_file_flush(s);
    ret = ret < 0 ? ret : qcow2_directory_move_locked(s, &s->l1, offset, (uint32_t)n);
    if (ret < 0) {
        qcow2_unref_locked(s, offset >> s->cluster_bits, clusters, NULL);
        return ret;
    }
    ret = qcow2_file_flush(s);
    ret = ret < 0 ? ret : point_header(s, (uint32_t)n, offset);
    if (ret < 0) {
        return qcow2_give_up_locked(s, ret, "qcow2: the header could not be pointed to a new L1 table");
    }
    if (old_bytes) {
        qcow2_drop_locked(s, old, old_bytes);
    }
    return 0;
}

static int coroutine_fn make_room_locked(Qcow2State *s, int64_t length)
{
    uint64_t n = qcow2_l1_entries(s, length);
    int ret = qcow2_begin_change_locked(s);
    if (ret == 0 && n * 8 > (uint64_t)QCOW2_MAX_L1_BYTES) {
        ret = -EFBIG;
    }
    return ret == 0 && n > s->l1.n ? grow_l1_locked(s, n) : ret;
}

/*
 * What lies between the old and the new end must read as zeroes: the rest of the last cluster may hold
 * anything, and a backing longer than the image would show.
 */
static int coroutine_fn clear_new_range(BlockNode *node, int64_t from, int64_t to)
{
    Qcow2State *s = node->opaque;
    int64_t cluster_end = MIN(qcow2_cluster_end(s, from), to);
    int64_t below_end = node->backing ? MIN(block_node_length(node->backing->node), to) : 0;
    Qcow2Mapping m = {.type = QCOW2_UNALLOCATED};
    int ret = 0;
    if (from < cluster_end) {
        co_mutex_lock(&s->lock);
        ret = qcow2_lookup_locked(s, from, cluster_end - from, &m);
        co_mutex_unlock(&s->lock);
    }
    if (ret == 0 && (m.type != QCOW2_UNALLOCATED || m.bytes < cluster_end - from || below_end > from)) {
        ret = qcow2_write_zero_bytes(node, from, cluster_end);
    }
    if (ret == 0 && below_end > cluster_end) {
        ret = qcow2_co_pwrite_zeroes(node, cluster_end, qcow2_cluster_end(s, below_end) - cluster_end,
                                     BLOCK_REQ_MAY_UNMAP);
        ret = ret == -ENOTSUP ? qcow2_write_zero_bytes(node, cluster_end, below_end) : ret;
    }
    return ret;
}

static int coroutine_fn grow(Qcow2State *s, int64_t length)
{
    co_mutex_lock(&s->sync_lock);
    co_mutex_lock(&s->lock);
    int ret = make_room_locked(s, length);
    co_mutex_unlock(&s->lock);
    co_mutex_unlock(&s->sync_lock);
    /* The length last: until then nobody sees what had to be cleared. */
    ret = ret < 0 ? ret : qcow2_data_file_grow(s, s->length, length);
    ret = ret < 0 ? ret : clear_new_range(s->node, s->length, length);
    return ret < 0 ? ret : qcow2_write_length(s, length);
}

int coroutine_fn qcow2_write_length(Qcow2State *s, int64_t length)
{
    uint64_t be = GUINT64_TO_BE((uint64_t)length);
    int ret = qcow2_sync(s);
    ret = ret < 0 ? ret : qcow2_file_flush(s);
    co_mutex_lock(&s->lock);
    ret = ret < 0 ? ret : qcow2_header_write_locked(s, QCOW2_HEADER_SIZE, &be, sizeof be);
    co_mutex_unlock(&s->lock);
    ret = ret < 0 ? ret : qcow2_file_flush(s);
    if (ret == 0) {
        s->length = length;
    }
    return ret;
}

int coroutine_fn qcow2_co_truncate(BlockNode *node, int64_t length, GError **errp)
{
    Qcow2State *s = node->opaque;
    if (s->version < 3 && s->snapshots->len) {
        return bg_error_set(errp, ENOTSUP,
                            "node '%s': a qcow2 image of version 2 with snapshots cannot be resized",
                            node->name);
    }
    bool shrinks = length < s->length;
    int ret = shrinks ? qcow2_shrink(s, length) : grow(s, length);
    return ret < 0 ? bg_error_set_errno(errp, -ret, "node '%s': %s the qcow2 image", node->name,
                                        shrinks ? "shrinking" : "growing")
                   : 0;
}
