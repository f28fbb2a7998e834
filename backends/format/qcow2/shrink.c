/*
 * qcow2: cutting an image short.
 *
 *   1. The rest of the last cluster becomes zero bytes, entries behind it let go of what they refer to: they
 *      say "zero" or, where nothing lies below, nothing.
 *   2. sync.c: that is stable
 *   3. The header has the new length; flush
 *   4. L2 tables that lie behind the end as a whole leave L1
 *
 * A power cut before 3 leaves the old length, and zeroes behind the new one (in version 2, which cannot say
 * zero, the backing shows there). What is dropped is freed by release.c, as ever. Growing finds nothing old.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "backends/format/qcow2/qcow2.h"

#define ALL_SUBS UINT64_C(0xffffffff)

static bool has_place(const Qcow2State *s, Qcow2L2Entry e)
{
    return (e.entry & QCOW2_ENTRY_COMPRESSED) || qcow2_entry_has_place(s, e.entry);
}

/* Entries without a place stay: nothing of theirs comes to light when the image grows. */
static Qcow2L2Entry cleared_entry(const Qcow2State *s)
{
    if (s->version < 3 || !(s->node->backing || s->names_backing)) {
        return (Qcow2L2Entry){0};
    }
    return s->extended ? (Qcow2L2Entry){0, ALL_SUBS << 32} : (Qcow2L2Entry){QCOW2_ENTRY_ZERO, 0};
}

/* Whether the table has such entries from i on. */
static int coroutine_fn find_places_locked(Qcow2State *s, uint64_t l2_offset, uint32_t i, bool *found)
{
    Qcow2Table *t;
    int ret = qcow2_cache_get_locked(s, &s->l2_cache, l2_offset, &t);
    *found = false;
    if (ret < 0) {
        return ret;
    }
    for (; i < 1u << s->l2_bits && !*found; i++) {
        *found = has_place(s, qcow2_l2_load(s, t, i));
    }
    qcow2_cache_put(t);
    return 0;
}

/* The entries of one table, from that of `offset` on. */
static int coroutine_fn clear_table_locked(Qcow2State *s, int64_t offset)
{
    uint64_t l1_entry = s->l1.entries[offset >> (s->cluster_bits + s->l2_bits)];
    uint32_t i = qcow2_l2_index(s, offset);
    bool found;
    if (!(l1_entry & QCOW2_ENTRY_OFFSET)) {
        return 0;
    }
    int ret = find_places_locked(s, l1_entry & QCOW2_ENTRY_OFFSET, i, &found);
    if (ret < 0 || !found) {
        return ret;
    }
    Qcow2Table *t;
    ret = qcow2_l2_writable_locked(s, offset, &t);
    if (ret < 0) {
        return ret;
    }
    for (; i < 1u << s->l2_bits; i++) {
        Qcow2L2Entry e = qcow2_l2_load(s, t, i);
        if (!has_place(s, e)) {
            continue;
        }
        if (qcow2_l2_type(s, e, 0) == QCOW2_INVALID) {
            ret = qcow2_mark_corrupt_locked(s, e.entry & QCOW2_ENTRY_OFFSET, "impossible L2 entry");
            break;
        }
        qcow2_drop_entry_locked(s, e.entry);
        qcow2_l2_store(s, t, i, cleared_entry(s));
    }
    qcow2_cache_put(t);
    return ret;
}

/* Nobody writes there: the core keeps writers away from what a truncate cuts off. */
static int coroutine_fn clear_tables(Qcow2State *s, int64_t from)
{
    int64_t span = INT64_C(1) << (s->cluster_bits + s->l2_bits);
    int64_t end = (int64_t)s->l1.n * span;
    int ret = 0;
    for (int64_t at = from; at < end && ret == 0; at = (at / span + 1) * span) {
        co_mutex_lock(&s->lock);
        ret = clear_table_locked(s, at);
        bool should_sync = qcow2_should_sync(s);
        co_mutex_unlock(&s->lock);
        if (ret == 0 && should_sync) {
            ret = qcow2_sync(s);
        }
    }
    return ret;
}

static int coroutine_fn clear_last_cluster(Qcow2State *s, int64_t from, int64_t to)
{
    Qcow2Mapping m;
    int ret = 0;
    while (from < to && ret == 0) {
        co_mutex_lock(&s->lock);
        ret = qcow2_lookup_locked(s, from, to - from, &m);
        co_mutex_unlock(&s->lock);
        if (ret == 0 && (m.type == QCOW2_NORMAL || m.type == QCOW2_COMPRESSED)) {
            ret = qcow2_write_zero_bytes(s->node, from, from + m.bytes);
        }
        from += m.bytes;
    }
    return ret;
}

static void drop_tables_locked(Qcow2State *s, int64_t length)
{
    for (uint64_t i = qcow2_l1_entries(s, length); i < s->l1.n; i++) {
        uint64_t l2_offset = s->l1.entries[i] & QCOW2_ENTRY_OFFSET;
        if (l2_offset) {
            qcow2_directory_set(&s->l1, (uint32_t)i, 0);
            qcow2_drop_locked(s, l2_offset, (uint64_t)s->cluster_size);
        }
    }
}

int coroutine_fn qcow2_shrink(Qcow2State *s, int64_t length)
{
    int64_t cluster_end = qcow2_cluster_end(s, length);
    co_mutex_lock(&s->lock);
    int ret = qcow2_begin_change_locked(s);
    co_mutex_unlock(&s->lock);
    ret = ret < 0 ? ret : clear_last_cluster(s, length, MIN(cluster_end, s->length));
    ret = ret < 0 ? ret : clear_tables(s, cluster_end);
    ret = ret < 0 ? ret : qcow2_write_length(s, length);
    if (ret == 0) {
        co_mutex_lock(&s->lock);
        drop_tables_locked(s, length);
        co_mutex_unlock(&s->lock);
        qcow2_data_file_cut(s, length);
    }
    return ret;
}
