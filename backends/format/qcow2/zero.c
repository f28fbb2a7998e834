/*
 * qcow2: write-zeroes and discard, by L2 entries alone.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "backends/format/qcow2/qcow2.h"

#define ALL_SUBS UINT64_C(0xffffffff)

typedef enum ZeroKind {
    ZERO_KEEP,    /* read as zeroes, keep the room */
    ZERO_UNMAP,   /* read as zeroes, free the room */
    ZERO_DISCARD, /* free the room; must not show the backing's content either */
} ZeroKind;

/* Whether something lies, or could come to lie, below unallocated clusters. */
static bool has_below(const Qcow2State *s)
{
    return s->node->backing || s->names_backing;
}

/* Subclusters of the cluster at `start` in the range, as bits. */
static uint64_t subs_in(const Qcow2State *s, int64_t start, int64_t offset, int64_t end)
{
    int64_t from = MAX(offset, start) - start, to = MIN(end, start + s->cluster_size) - start;
    return ((UINT64_C(1) << (to >> s->sub_bits)) - 1) & ~((UINT64_C(1) << (from >> s->sub_bits)) - 1);
}

static Qcow2L2Entry zeroed_entry(const Qcow2State *s, Qcow2L2Entry e, ZeroKind kind, uint64_t subs)
{
    bool compressed = e.entry & QCOW2_ENTRY_COMPRESSED;
    if (compressed) {
        e = (Qcow2L2Entry){0};
    }
    if (s->extended) {
        e.bitmap = (e.bitmap & ~subs) | subs << 32;
        if (kind != ZERO_KEEP && !(e.bitmap & ALL_SUBS)) {
            e.entry = 0;
        }
    } else {
        e.entry = kind == ZERO_KEEP ? e.entry | QCOW2_ENTRY_ZERO : QCOW2_ENTRY_ZERO;
    }
    bool may_be_nothing = kind != ZERO_KEEP && !has_below(s) && e.entry <= QCOW2_ENTRY_ZERO &&
                          (!s->extended || e.bitmap == ALL_SUBS << 32);
    return may_be_nothing || s->version < 3 ? (Qcow2L2Entry){0} : e;
}

int coroutine_fn qcow2_write_zero_bytes(BlockNode *node, int64_t offset, int64_t end)
{
    size_t size = (size_t)MIN(end - offset, INT64_C(1) << 20);
    g_autofree uint8_t *buf = g_malloc0(MAX(size, 1));
    int ret = 0;
    for (; offset < end && ret == 0; offset += (int64_t)size) {
        struct iovec iov = {buf, MIN(size, (size_t)(end - offset))};
        IoVector v = {&iov, 1, iov.iov_len};
        ret = qcow2_co_pwritev(node, offset, (int64_t)iov.iov_len, &v, 0, 0);
    }
    return ret;
}

/*
 * Cluster by cluster up to the end of the table; *end becomes where it stopped. -ENOTSUP: the part up to *end
 * must be written, as a part of a compressed cluster cannot be zeroed otherwise.
 */
static int zero_in_table_locked(Qcow2State *s, Qcow2Table *t, int64_t offset, int64_t *end, ZeroKind kind)
{
    int64_t span = INT64_C(1) << (s->cluster_bits + s->l2_bits);
    *end = MIN(*end, (offset / span + 1) * span);
    for (int64_t start = qcow2_cluster_start(s, offset); start < *end; start += s->cluster_size) {
        uint32_t i = qcow2_l2_index(s, start);
        Qcow2L2Entry old = qcow2_l2_load(s, t, i);
        uint64_t subs = s->extended ? subs_in(s, start, offset, *end) : 0;
        if ((old.entry & QCOW2_ENTRY_COMPRESSED) && s->extended && subs != ALL_SUBS) {
            bool is_first = start <= offset;
            *end = is_first ? MIN(*end, start + s->cluster_size) : start;
            return is_first ? -ENOTSUP : 0;
        }
        Qcow2L2Entry new = zeroed_entry(s, old, kind, subs);
        if (new.entry == old.entry &&new.bitmap == old.bitmap) {
            continue;
        }
        if ((old.entry & QCOW2_ENTRY_COMPRESSED) || ((old.entry ^ new.entry) & QCOW2_ENTRY_OFFSET)) {
            qcow2_drop_entry_locked(s, old.entry);
        }
        qcow2_l2_store(s, t, i, new);
    }
    return 0;
}

/* A first part of the range; *end becomes where it stopped. */
static int coroutine_fn zero_some_locked(Qcow2State *s, int64_t offset, int64_t *end, ZeroKind kind)
{
    int64_t bytes = *end - offset;
    Qcow2Mapping m;
    qcow2_busy_wait_locked(s, offset, &bytes);
    int ret = qcow2_begin_change_locked(s);
    ret = ret < 0 ? ret : qcow2_lookup_locked(s, offset, bytes, &m);
    if (ret < 0) {
        return ret;
    }
    *end = offset + bytes;
    if (m.type == QCOW2_UNALLOCATED && !(m.entry & QCOW2_ENTRY_OFFSET) && !has_below(s)) {
        *end = offset + m.bytes;
        return 0;
    }
    Qcow2Table *t;
    ret = qcow2_l2_writable_locked(s, offset, &t);
    if (ret == 0) {
        ret = zero_in_table_locked(s, t, offset, end, kind);
        qcow2_cache_put(t);
    }
    return ret;
}

static int coroutine_fn zero_range(Qcow2State *s, int64_t offset, int64_t end, ZeroKind kind)
{
    bool should_sync = false;
    while (offset < end) {
        int64_t done = end;
        co_mutex_lock(&s->lock);
        int ret = zero_some_locked(s, offset, &done, kind);
        should_sync |= qcow2_should_sync(s);
        co_mutex_unlock(&s->lock);
        ret = ret == -ENOTSUP ? qcow2_write_zero_bytes(s->node, offset, done) : ret;
        if (ret < 0) {
            return ret;
        }
        offset = done;
    }
    return should_sync ? qcow2_sync(s) : 0;
}

int coroutine_fn qcow2_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                        BlockRequestFlags flags)
{
    Qcow2State *s = node->opaque;
    bool unmap = flags & BLOCK_REQ_MAY_UNMAP;
    if (s->data_raw) {
        return qcow2_data_file_zero_raw(s, offset, bytes, flags);
    }
    if (s->version < 3 && (has_below(s) || !unmap)) {
        return -ENOTSUP; /* version 2 has no entry that says zero */
    }
    /* At the end of the node the last cluster may be zeroed as a whole. */
    int64_t end = offset + bytes, sub = INT64_C(1) << s->sub_bits;
    if (end == block_node_length(node)) {
        end = (end + sub - 1) & ~(sub - 1);
    }
    if ((offset | end) & (sub - 1)) {
        return -ENOTSUP;
    }
    int ret = zero_range(s, offset, end, unmap ? ZERO_UNMAP : ZERO_KEEP);
    if (ret == 0 && unmap && s->external) {
        /* Zeroes rather than a discard: the entries may not be stable yet. Where it fails, only room is lost.
         */
        block_child_co_pwrite_zeroes(s->data, offset, bytes, BLOCK_REQ_MAY_UNMAP | BLOCK_REQ_NO_FALLBACK);
    }
    return ret;
}

int coroutine_fn qcow2_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    Qcow2State *s = node->opaque;
    if (s->version < 3 && has_below(s)) {
        return -ENOTSUP;
    }
    if (s->data_raw) {
        return qcow2_data_file_zero_raw(s, offset, bytes, BLOCK_REQ_MAY_UNMAP);
    }
    int ret = zero_range(s, offset, offset + bytes, ZERO_DISCARD);
    if (ret == 0 && s->external) {
        block_child_co_pdiscard(s->data, offset, bytes);
    }
    return ret;
}
