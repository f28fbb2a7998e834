/*
 * qcow2: no write may hit metadata that it is not meant for, however wrong the image's tables are.
 *
 * A filter of one bit per hash of a cluster that is, or was, an L2 table or a refcount block answers nearly
 * always. Where it says "maybe", the tables of tables are searched.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "backends/format/qcow2/qcow2.h"

#define FILTER_BITS 20u

static uint32_t filter_hash(uint64_t cluster)
{
    return (uint32_t)((cluster * UINT64_C(0x9e3779b97f4a7c15)) >> (64 - FILTER_BITS));
}

void qcow2_overlap_add(Qcow2State *s, uint64_t offset)
{
    uint32_t h = filter_hash(offset >> s->cluster_bits);
    s->overlap_filter[h / 8] |= (uint8_t)(1u << h % 8);
}

static bool filter_has(const Qcow2State *s, uint64_t cluster)
{
    uint32_t h = filter_hash(cluster);
    return s->overlap_filter[h / 8] >> h % 8 & 1;
}

void qcow2_overlap_init(Qcow2State *s)
{
    s->overlap_filter = g_malloc0((1u << FILTER_BITS) / 8);
    for (uint32_t i = 0; i < s->l1.n; i++) {
        qcow2_overlap_add(s, s->l1.entries[i] & QCOW2_ENTRY_OFFSET);
    }
    for (uint32_t i = 0; i < s->reftable.n; i++) {
        qcow2_overlap_add(s, s->reftable.entries[i] & ~UINT64_C(511));
    }
}

static bool overlaps(uint64_t offset, uint64_t bytes, uint64_t other, uint64_t other_bytes)
{
    return offset < other + other_bytes && other < offset + bytes;
}

static bool hits_table(const Qcow2State *s, const Qcow2Directory *d, uint64_t mask, uint64_t offset)
{
    for (uint32_t i = 0; i < d->n; i++) {
        uint64_t table = d->entries[i] & mask;
        if (table && table >> s->cluster_bits == offset >> s->cluster_bits) {
            return true;
        }
    }
    return false;
}

/* What is there besides tables' tables; NULL: nothing. */
static const char *hits_fixed(const Qcow2State *s, Qcow2Class class, uint64_t offset, uint64_t bytes)
{
    if (offset < (uint64_t)s->cluster_size) {
        return "a write would hit the header";
    }
    if (class != QCOW2_CLASS_L1 && overlaps(offset, bytes, s->l1.offset, s->l1.n * UINT64_C(8))) {
        return "a write would hit the L1 table";
    }
    if (class != QCOW2_CLASS_REFTABLE &&
        overlaps(offset, bytes, s->reftable.offset, s->reftable.n * UINT64_C(8))) {
        return "a write would hit the refcount table";
    }
    if (s->bitmaps_marked && overlaps(offset, bytes, s->bitmaps.offset, s->bitmaps.bytes)) {
        return "a write would hit the bitmap directory";
    }
    for (guint i = 0; i < s->snapshot_extents->len; i++) {
        const Qcow2Extent *e = &g_array_index(s->snapshot_extents, Qcow2Extent, i);
        if (overlaps(offset, bytes, e->offset, e->bytes)) {
            return "a write would hit a snapshot's table";
        }
    }
    return NULL;
}

int coroutine_fn qcow2_overlap_check_locked(Qcow2State *s, Qcow2Class class, uint64_t offset, uint64_t bytes)
{
    if (atomic_load(&s->corrupt)) {
        return -EIO;
    }
    const char *what = hits_fixed(s, class, offset, bytes);
    uint64_t last = (offset + bytes - 1) >> s->cluster_bits;
    for (uint64_t c = offset >> s->cluster_bits; c <= last && !what; c++) {
        if (!filter_has(s, c)) {
            continue;
        }
        if (class != QCOW2_CLASS_L2 && hits_table(s, &s->l1, QCOW2_ENTRY_OFFSET, c << s->cluster_bits)) {
            what = "a write would hit an L2 table";
        } else if (class != QCOW2_CLASS_REFBLOCK &&
                   hits_table(s, &s->reftable, ~UINT64_C(511), c << s->cluster_bits)) {
            what = "a write would hit a refcount block";
        }
    }
    return what ? qcow2_mark_corrupt_locked(s, offset, what) : 0;
}
