/*
 * qcow2: from guest offsets to places in the file, by L1 and L2 tables.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "backends/format/qcow2/qcow2.h"

/* ---- One entry */

Qcow2L2Entry qcow2_l2_load(const Qcow2State *s, const Qcow2Table *t, uint32_t i)
{
    if (!s->extended) {
        return (Qcow2L2Entry){.entry = qcow2_load64(t->data + i * 8)};
    }
    return (Qcow2L2Entry){qcow2_load64(t->data + i * 16), qcow2_load64(t->data + i * 16 + 8)};
}

void qcow2_l2_store(Qcow2State *s, Qcow2Table *t, uint32_t i, Qcow2L2Entry e)
{
    qcow2_store64(t->data + i * (s->extended ? 16 : 8), e.entry);
    if (s->extended) {
        qcow2_store64(t->data + i * 16 + 8, e.bitmap);
    }
    qcow2_cache_dirty(&s->l2_cache, t);
}

static Qcow2Type type_by_bitmap(const Qcow2State *s, Qcow2L2Entry e, uint32_t sub)
{
    bool allocated = e.bitmap >> sub & 1, zero = e.bitmap >> (sub + 32) & 1;
    if (e.entry & QCOW2_ENTRY_ZERO || (allocated && zero) ||
        (allocated && !qcow2_entry_has_place(s, e.entry))) {
        return QCOW2_INVALID;
    }
    return allocated ? QCOW2_NORMAL : zero ? QCOW2_ZERO : QCOW2_UNALLOCATED;
}

Qcow2Type qcow2_l2_type(const Qcow2State *s, Qcow2L2Entry e, uint32_t sub)
{
    if (e.entry & QCOW2_ENTRY_COMPRESSED) {
        return e.entry & QCOW2_ENTRY_COPIED || s->external ? QCOW2_INVALID : QCOW2_COMPRESSED;
    }
    if ((e.entry & QCOW2_ENTRY_OFFSET) & (uint64_t)(s->cluster_size - 1)) {
        return QCOW2_INVALID;
    }
    if (s->extended) {
        return type_by_bitmap(s, e, sub);
    }
    if (e.entry & QCOW2_ENTRY_ZERO) {
        return s->version >= 3 ? QCOW2_ZERO : QCOW2_INVALID;
    }
    return qcow2_entry_has_place(s, e.entry) ? QCOW2_NORMAL : QCOW2_UNALLOCATED;
}

/* The offset has 62 - (cluster_bits - 8) bits; above it, the number of 512-byte sectors after the first. */
Qcow2Extent qcow2_compressed_extent(const Qcow2State *s, uint64_t entry)
{
    uint32_t shift = 62 - (s->cluster_bits - 8);
    uint64_t offset = entry & ((UINT64_C(1) << shift) - 1);
    uint64_t sectors = (entry >> shift & ((UINT64_C(1) << (s->cluster_bits - 8)) - 1)) + 1;
    return (Qcow2Extent){offset, sectors * 512 - (offset & 511)};
}

void qcow2_drop_entry_locked(Qcow2State *s, uint64_t entry)
{
    if (s->external) {
        return; /* no refcounts there */
    }
    if (entry & QCOW2_ENTRY_COMPRESSED) {
        Qcow2Extent e = qcow2_compressed_extent(s, entry);
        qcow2_drop_locked(s, e.offset, e.bytes);
    } else if (entry & QCOW2_ENTRY_OFFSET) {
        qcow2_drop_locked(s, entry & QCOW2_ENTRY_OFFSET, (uint64_t)s->cluster_size);
    }
}

/* ---- Looking up */

/* The L2 table of a guest offset, pinned; NULL where there is none. */
static int coroutine_fn l2_get(Qcow2State *s, const Qcow2Directory *l1, int64_t offset, Qcow2Table **out)
{
    uint64_t i = (uint64_t)offset >> (s->cluster_bits + s->l2_bits);
    *out = NULL;
    uint64_t l2_offset = i < l1->n ? l1->entries[i] & QCOW2_ENTRY_OFFSET : 0;
    return l2_offset ? qcow2_cache_get_locked(s, &s->l2_cache, l2_offset, out) : 0;
}

static int64_t to_end_of_table(const Qcow2State *s, int64_t offset)
{
    int64_t span = INT64_C(1) << (s->cluster_bits + s->l2_bits);
    return span - (offset & (span - 1));
}

static uint64_t host_of(const Qcow2State *s, uint64_t entry, int64_t offset)
{
    return (entry & QCOW2_ENTRY_OFFSET) + (uint64_t)(offset & (s->cluster_size - 1));
}

/* How far type and place go on from m, which describes the first subcluster. */
static int64_t extend(const Qcow2State *s, const Qcow2Table *t, int64_t offset, int64_t bytes,
                      const Qcow2Mapping *m)
{
    int64_t sub_size = INT64_C(1) << s->sub_bits;
    int64_t done = sub_size - (offset & (sub_size - 1));
    if (m->type == QCOW2_COMPRESSED) {
        return MIN(bytes, s->cluster_size - (offset & (s->cluster_size - 1)));
    }
    while (done < bytes) {
        int64_t at = offset + done;
        Qcow2L2Entry e = qcow2_l2_load(s, t, qcow2_l2_index(s, at));
        Qcow2Type type = qcow2_l2_type(s, e, (uint32_t)(at >> s->sub_bits) & (s->subs - 1));
        bool same = type == m->type;
        if (same && type == QCOW2_NORMAL) {
            same = host_of(s, e.entry, at) == m->host + (uint64_t)done &&
                   !((e.entry ^ m->entry) & QCOW2_ENTRY_COPIED);
        }
        if (!same) {
            break;
        }
        done += sub_size;
    }
    return MIN(bytes, done);
}

int coroutine_fn qcow2_lookup_in_locked(Qcow2State *s, const Qcow2Directory *l1, int64_t offset,
                                        int64_t bytes, Qcow2Mapping *m)
{
    Qcow2Table *t;
    bytes = MIN(bytes, to_end_of_table(s, offset));
    *m = (Qcow2Mapping){.type = QCOW2_UNALLOCATED, .bytes = bytes};
    int ret = l2_get(s, l1, offset, &t);
    if (ret < 0 || !t) {
        return ret;
    }
    Qcow2L2Entry e = qcow2_l2_load(s, t, qcow2_l2_index(s, offset));
    m->entry = e.entry;
    m->type = qcow2_l2_type(s, e, (uint32_t)(offset >> s->sub_bits) & (s->subs - 1));
    m->host = m->type == QCOW2_NORMAL ? host_of(s, e.entry, offset) : 0;
    if (m->type == QCOW2_NORMAL && s->external && m->host != (uint64_t)offset) {
        m->type = QCOW2_INVALID;
    }
    m->bytes = extend(s, t, offset, bytes, m);
    qcow2_cache_put(t);
    if (m->type == QCOW2_INVALID) {
        return qcow2_mark_corrupt_locked(s, e.entry & QCOW2_ENTRY_OFFSET, "impossible L2 entry");
    }
    return 0;
}

int coroutine_fn qcow2_lookup_locked(Qcow2State *s, int64_t offset, int64_t bytes, Qcow2Mapping *m)
{
    return qcow2_lookup_in_locked(s, &s->l1, offset, bytes, m);
}

/* ---- Tables for writing */

/* A new table in a cluster of its own, with the content of `old` where not 0. */
static int coroutine_fn l2_new(Qcow2State *s, uint32_t l1_index, uint64_t old, Qcow2Table **out)
{
    Qcow2Table *from = NULL, *t;
    uint64_t offset;
    int ret = qcow2_alloc_locked(s, 1, &offset);
    if (ret < 0) {
        return ret;
    }
    if (old) {
        ret = qcow2_cache_get_locked(s, &s->l2_cache, old, &from);
    }
    ret = ret < 0 ? ret : qcow2_cache_new_locked(s, &s->l2_cache, offset, &t);
    if (ret == 0 && from) {
        memcpy(t->data, from->data, (size_t)s->cluster_size);
    }
    if (from) {
        qcow2_cache_put(from);
    }
    if (ret < 0) {
        qcow2_unref_locked(s, offset >> s->cluster_bits, 1, NULL);
        return ret;
    }
    s->link_count++;
    qcow2_overlap_add(s, offset);
    qcow2_directory_set(&s->l1, l1_index, offset | QCOW2_ENTRY_COPIED);
    if (old) {
        qcow2_drop_locked(s, old, (uint64_t)s->cluster_size);
    }
    *out = t;
    return 0;
}

int coroutine_fn qcow2_l2_writable_locked(Qcow2State *s, int64_t offset, Qcow2Table **out)
{
    uint64_t i = (uint64_t)offset >> (s->cluster_bits + s->l2_bits);
    if (i >= s->l1.n) {
        return -EIO;
    }
    uint64_t entry = s->l1.entries[i], l2_offset = entry & QCOW2_ENTRY_OFFSET;
    if (l2_offset && (entry & QCOW2_ENTRY_COPIED)) {
        return qcow2_cache_get_locked(s, &s->l2_cache, l2_offset, out);
    }
    return l2_new(s, (uint32_t)i, l2_offset, out);
}
