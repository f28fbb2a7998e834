/*
 * qcow2: a larger refcount table.
 *
 * The new table lies behind all clusters that the old one could describe, together with the blocks for that
 * area, which describe themselves and the table. So nothing has to be allocated for it. Order: blocks, table,
 * flush, header, flush; then the old table's clusters lose their reference. A power cut leaks one of the two.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "backends/format/qcow2/qcow2.h"

typedef struct GrowPlan {
    uint64_t first;  /* cluster number: the blocks, then the table */
    uint64_t blocks; /* new ones */
    uint64_t table;  /* clusters of the new table */
    uint64_t entries;
} GrowPlan;

static uint64_t div_up(uint64_t n, uint64_t by)
{
    return (n + by - 1) / by;
}

/* More blocks need a larger table and the other way round: go on until both are enough. */
static GrowPlan plan_growth(const Qcow2State *s, uint64_t min_entries)
{
    uint64_t per_block = UINT64_C(1) << s->refblock_bits, per_cluster = (uint64_t)s->cluster_size / 8;
    GrowPlan p = {.first = s->reftable.n * per_block, .blocks = 1};
    for (;;) {
        uint64_t entries = MAX(min_entries, s->reftable.n + p.blocks);
        p.table = div_up(entries + entries / 2, per_cluster);
        p.entries = p.table * per_cluster;
        uint64_t blocks = div_up(p.blocks + p.table, per_block);
        if (blocks <= p.blocks) {
            return p;
        }
        p.blocks = blocks;
    }
}

static int coroutine_fn add_blocks(Qcow2State *s, const GrowPlan *p, uint64_t old_entries)
{
    uint64_t per_block = UINT64_C(1) << s->refblock_bits, used = p->blocks + p->table;
    for (uint64_t b = 0; b < p->blocks; b++) {
        uint64_t offset = (p->first + b) << s->cluster_bits;
        Qcow2Table *block;
        int ret = qcow2_cache_new_locked(s, &s->refcount_cache, offset, &block);
        if (ret < 0) {
            return ret;
        }
        for (uint64_t i = 0; i < per_block && b * per_block + i < used; i++) {
            qcow2_refcount_store(block->data, s->refcount_order, i, 1);
        }
        qcow2_cache_put(block);
        qcow2_overlap_add(s, offset);
        qcow2_directory_set(&s->reftable, (uint32_t)(old_entries + b), offset);
    }
    return 0;
}

static int coroutine_fn point_header(Qcow2State *s, uint64_t offset, uint64_t clusters)
{
    uint8_t field[12];
    qcow2_store64(field, offset);
    qcow2_store32(field + 8, (uint32_t)clusters);
    int ret = qcow2_header_write_locked(s, QCOW2_HEADER_REFTABLE, field, sizeof field);
    return ret < 0 ? ret : qcow2_file_flush(s);
}

/* The new table did not come about: the old one, which has no change to write, is the table again. */
static void go_back(Qcow2State *s, const GrowPlan *p, uint64_t old_offset, uint32_t old_n)
{
    Qcow2Directory *d = &s->reftable;
    for (uint64_t b = 0; b < p->blocks; b++) {
        qcow2_cache_forget(&s->refcount_cache, (p->first + b) << s->cluster_bits);
    }
    memset(d->dirty, 0, d->n / QCOW2_DIRECTORY_CHUNK + 1);
    d->any_dirty = false;
    d->offset = old_offset;
    d->n = old_n;
}

int coroutine_fn qcow2_reftable_grow_locked(Qcow2State *s, uint64_t min_entries)
{
    Qcow2Directory *d = &s->reftable;
    GrowPlan p = plan_growth(s, min_entries);
    uint64_t old_offset = d->offset, old_n = d->n, table_offset = (p.first + p.blocks) << s->cluster_bits;
    if (p.table << s->cluster_bits > (uint64_t)QCOW2_MAX_REFTABLE_BYTES) {
        return -EFBIG;
    }
    /* What the old table has not said yet must be there before its copy says it. */
    int ret = qcow2_write_refcounts_locked(s);
    ret = ret < 0 ? ret : qcow2_directory_move_locked(s, d, table_offset, (uint32_t)p.entries);
    if (ret < 0) {
        return ret;
    }
    ret = add_blocks(s, &p, old_n);
    ret = ret < 0 ? ret : qcow2_write_refcounts_locked(s);
    ret = ret < 0 ? ret : qcow2_file_flush(s);
    if (ret < 0) {
        go_back(s, &p, old_offset, (uint32_t)old_n);
        return ret;
    }
    ret = point_header(s, table_offset, p.table);
    if (ret < 0) {
        return qcow2_give_up_locked(s, ret, "qcow2: the header could not be pointed to a new refcount table");
    }
    return qcow2_unref_locked(s, old_offset >> s->cluster_bits, div_up(old_n * 8, (uint64_t)s->cluster_size),
                              NULL);
}
