/*
 * qcow2 check: a new refcount table with new blocks, behind all that is in the file.
 *
 * Blocks and table are written and flushed before the header points to them: until then the old ones are
 * untouched. After, nobody refers to the old ones, and they are free, as nothing was counted for them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "backends/format/qcow2/check.h"
#include "util/error.h"

typedef struct Rebuild {
    Qcow2Check *c;
    GArray *entries;            /* uint64_t: the new table. NEEDED: its block has no place yet */
    uint64_t first;             /* cluster number of the new structure: the table, then the blocks */
    uint64_t n_table, n_blocks; /* clusters */
    uint64_t uncountable;       /* clusters with more references than refcounts of this width can say */
} Rebuild;

#define NEEDED UINT64_C(1)

static uint64_t max_entries(void)
{
    return (uint64_t)QCOW2_MAX_REFTABLE_BYTES / 8;
}

/* ---- Layout */

static bool need_block(Rebuild *r, uint64_t cluster)
{
    uint64_t i = cluster >> r->c->s->refblock_bits;
    if (i >= max_entries()) {
        return false;
    }
    if (i >= r->entries->len) {
        g_array_set_size(r->entries, (guint)i + 1); /* cleared */
    }
    uint64_t *entry = &g_array_index(r->entries, uint64_t, i);
    r->n_blocks += !*entry;
    *entry = NEEDED;
    return true;
}

/* Blocks for what was counted in this window. */
static bool need_counted(Rebuild *r)
{
    g_autoptr(GPtrArray) pages = qcow2_counts_sorted(&r->c->refs);
    for (guint i = 0; i < pages->len; i++) {
        const Qcow2CountPage *page = pages->pdata[i];
        if (!need_block(r, page->number * QCOW2_COUNTS_PER_PAGE)) {
            return false;
        }
    }
    return true;
}

static int coroutine_fn find_needed(Rebuild *r)
{
    uint64_t lo = 0;
    do {
        int ret = qcow2_check_count(r->c, lo);
        if (ret == 0 && !need_counted(r)) {
            ret = -EFBIG;
        }
        if (ret < 0) {
            return ret;
        }
        lo = r->c->refs.hi;
    } while (lo != UINT64_MAX);
    return 0;
}

/* The new structure needs blocks for itself. */
static int plan(Rebuild *r)
{
    Qcow2Check *c = r->c;
    uint64_t per_cluster = (uint64_t)c->s->cluster_size / 8, total = 0;
    r->first = c->n_clusters;
    for (;;) {
        r->n_table = MAX((r->entries->len + per_cluster - 1) / per_cluster, 1);
        if (r->n_table + r->n_blocks <= total) {
            break;
        }
        total = r->n_table + r->n_blocks;
        for (uint64_t i = 0; i < total; i++) {
            if (!need_block(r, r->first + i)) {
                return -EFBIG;
            }
        }
    }
    g_array_set_size(r->entries, (guint)(r->n_table * per_cluster));
    uint64_t next = r->first + r->n_table;
    for (guint i = 0; i < r->entries->len; i++) {
        uint64_t *entry = &g_array_index(r->entries, uint64_t, i);
        *entry = *entry ? next++ << c->s->cluster_bits : 0;
    }
    c->extra_first = r->first;
    c->extra_n = next - r->first;
    return 0;
}

/* ---- Writing */

static int coroutine_fn clear_blocks(Rebuild *r)
{
    memset(r->c->block, 0, (size_t)r->c->s->cluster_size);
    for (guint i = 0; i < r->entries->len; i++) {
        uint64_t offset = g_array_index(r->entries, uint64_t, i);
        int ret = offset ? qcow2_check_write_cluster(r->c, offset, r->c->block) : 0;
        if (ret < 0) {
            return ret;
        }
    }
    return 0;
}

static void store_page(Rebuild *r, const Qcow2CountPage *page)
{
    const Qcow2State *s = r->c->s;
    uint64_t at = page->number * QCOW2_COUNTS_PER_PAGE & ((UINT64_C(1) << s->refblock_bits) - 1);
    for (unsigned i = 0; i < QCOW2_COUNTS_PER_PAGE; i++) {
        uint64_t value = MIN(page->counts[i], qcow2_check_max_refcount(s));
        r->uncountable += value != page->counts[i];
        qcow2_refcount_store(r->c->block, s->refcount_order, at + i, value);
    }
}

/* The counters of this window; a block may lie in two windows. */
static int coroutine_fn write_window(Rebuild *r)
{
    Qcow2Check *c = r->c;
    g_autoptr(GPtrArray) pages = qcow2_counts_sorted(&c->refs);
    int ret = 0;
    for (guint i = 0; i < pages->len && ret >= 0;) {
        const Qcow2CountPage *page = pages->pdata[i];
        uint64_t index = page->number * QCOW2_COUNTS_PER_PAGE >> c->s->refblock_bits;
        uint64_t offset = g_array_index(r->entries, uint64_t, index);
        ret = qcow2_check_read_cluster(c, offset, c->block);
        for (; ret >= 0 && i < pages->len; i++) {
            page = pages->pdata[i];
            if (page->number * QCOW2_COUNTS_PER_PAGE >> c->s->refblock_bits != index) {
                break;
            }
            store_page(r, page);
        }
        ret = ret < 0 ? ret : qcow2_check_write_cluster(c, offset, c->block);
    }
    return MIN(ret, 0);
}

static int coroutine_fn write_blocks(Rebuild *r)
{
    uint64_t lo = 0;
    int ret = clear_blocks(r);
    while (ret == 0 && lo != UINT64_MAX) {
        ret = qcow2_check_count(r->c, lo);
        ret = ret < 0 ? ret : write_window(r);
        lo = r->c->refs.hi;
    }
    return ret;
}

static int coroutine_fn write_table(Rebuild *r)
{
    uint64_t n = r->entries->len;
    g_autofree uint64_t *image = g_new(uint64_t, n);
    for (uint64_t i = 0; i < n; i++) {
        image[i] = GUINT64_TO_BE(g_array_index(r->entries, uint64_t, i));
    }
    return block_child_co_pwrite(r->c->s->node->file, (int64_t)(r->first << r->c->s->cluster_bits),
                                 (int64_t)n * 8, image, 0);
}

static int coroutine_fn point_header(Rebuild *r)
{
    uint8_t field[12];
    qcow2_store64(field, r->first << r->c->s->cluster_bits);
    qcow2_store32(field + 8, (uint32_t)r->n_table);
    int ret = qcow2_header_write_locked(r->c->s, QCOW2_HEADER_REFTABLE, field, sizeof field);
    return ret < 0 ? ret : qcow2_file_flush(r->c->s);
}

/* ---- All of it */

/* From now on the state in memory is that of the new structure. */
static int coroutine_fn take_over(Rebuild *r)
{
    Qcow2Check *c = r->c;
    Qcow2State *s = c->s;
    qcow2_directory_free(&s->reftable);
    int ret = qcow2_directory_read(s, &s->reftable, r->first << s->cluster_bits, r->entries->len);
    qcow2_cache_clear(&s->refcount_cache);
    for (uint32_t i = 0; i < s->reftable.n; i++) {
        qcow2_overlap_add(s, s->reftable.entries[i]);
    }
    g_free(c->bad_blocks);
    c->bad_blocks = g_malloc0(MAX(s->reftable.n, 1));
    c->n_clusters = MAX(c->n_clusters, c->extra_first + c->extra_n);
    c->result->image_end_offset = (int64_t)((c->extra_first + c->extra_n) << s->cluster_bits);
    s->free_hint = 0;
    return ret;
}

static int coroutine_fn rebuild(Rebuild *r)
{
    int ret = find_needed(r);
    ret = ret < 0 ? ret : plan(r);
    ret = ret < 0 ? ret : write_blocks(r);
    ret = ret < 0 ? ret : write_table(r);
    ret = ret < 0 ? ret : qcow2_file_flush(r->c->s);
    ret = ret < 0 ? ret : point_header(r);
    return ret < 0 ? ret : take_over(r);
}

int coroutine_fn qcow2_check_rebuild(Qcow2Check *c, GError **errp)
{
    Rebuild r = {.c = c, .entries = g_array_new(false, true, sizeof(uint64_t))};
    c->skip_refcounts = true;
    int ret = rebuild(&r);
    c->skip_refcounts = false;
    c->extra_n = 0;
    g_array_unref(r.entries);
    if (ret == 0) {
        c->result->corruptions_fixed += c->refcount_corruptions - MIN(r.uncountable, c->refcount_corruptions);
        c->result->leaks_fixed += c->result->leaks;
    }
    return ret < 0 ? bg_error_set_errno(errp, -ret, "node '%s': writing a new qcow2 refcount table",
                                        c->s->node->name)
                   : 0;
}
