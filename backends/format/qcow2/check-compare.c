/*
 * qcow2 check: what the refcount blocks say against the references that were counted.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>

#include "backends/format/qcow2/check.h"

typedef struct Compare {
    Qcow2Check *c;
    BlockCheckFix fix;
    bool tell;    /* else what is found was told and counted before */
    bool changed; /* c->block */
} Compare;

uint64_t qcow2_check_max_refcount(const Qcow2State *s)
{
    return s->refcount_order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << s->refcount_order)) - 1;
}

static void note_used(Qcow2Check *c, uint64_t cluster)
{
    int64_t end = (int64_t)((cluster + 1) << c->s->cluster_bits);
    c->result->image_end_offset = MAX(c->result->image_end_offset, end);
}

/* ---- One cluster */

static void tell_difference(Compare *m, uint64_t cluster, uint64_t have, uint64_t want)
{
    Qcow2Check *c = m->c;
    if (want < have) {
        c->result->leaks++;
        qcow2_check_problem(
            c, "cluster %" PRIu64 " leaks: its refcount is %" PRIu64 ", and there are %" PRIu64 " references",
            cluster, have, want);
    } else {
        c->refcount_corruptions++;
        qcow2_check_corrupt(
            c, "cluster %" PRIu64 ": its refcount is %" PRIu64 ", but there are %" PRIu64 " references",
            cluster, have, want);
    }
}

/* Too low is mended before anything is freed, and what somebody might still mean is not freed at all. */
static bool may_fix(const Compare *m, uint64_t have, uint64_t want)
{
    if (want > have) {
        return m->fix & BLOCK_CHECK_FIX_ERRORS && want <= qcow2_check_max_refcount(m->c->s);
    }
    return m->fix & BLOCK_CHECK_FIX_LEAKS && !m->c->bad_entries;
}

static void compare_cluster(Compare *m, uint64_t cluster, uint64_t i, uint64_t want)
{
    Qcow2Check *c = m->c;
    uint64_t have = qcow2_refcount_load(c->block, c->s->refcount_order, i);
    if (have || want) {
        note_used(c, cluster);
    }
    if (have == want) {
        return;
    }
    if (m->tell) {
        tell_difference(m, cluster, have, want);
    }
    if (may_fix(m, have, want)) {
        qcow2_refcount_store(c->block, c->s->refcount_order, i, want);
        m->changed = true;
        *(want < have ? &c->result->leaks_fixed : &c->result->corruptions_fixed) += 1;
    }
}

/* ---- One block */

static int coroutine_fn compare_block(Compare *m, uint32_t index)
{
    Qcow2Check *c = m->c;
    const Qcow2State *s = c->s;
    uint64_t offset = s->reftable.entries[index], base = (uint64_t)index << s->refblock_bits;
    uint64_t first = MAX(base, c->refs.lo), end = base + (UINT64_C(1) << s->refblock_bits);
    end = MIN(MIN(end, c->refs.hi), c->n_clusters);
    if (first >= end) {
        return 0;
    }
    int ret = qcow2_check_read_cluster(c, offset, c->block);
    if (ret < 0) {
        return ret;
    }
    m->changed = false;
    for (uint64_t at = first; at < end; at += QCOW2_COUNTS_PER_PAGE) {
        const Qcow2CountPage *page = qcow2_counts_page(&c->refs, at);
        uint64_t n = MIN(end - at, QCOW2_COUNTS_PER_PAGE);
        for (uint64_t i = 0; i < n && (page || ret == 0); i++) {
            compare_cluster(m, at + i, at + i - base, page ? page->counts[i] : 0);
        }
    }
    return m->changed ? qcow2_check_write_cluster(c, offset, c->block) : 0;
}

static bool has_block(const Qcow2Check *c, uint64_t cluster)
{
    const Qcow2Directory *d = &c->s->reftable;
    uint64_t i = cluster >> c->s->refblock_bits;
    return i < d->n && d->entries[i] && !c->bad_blocks[i];
}

/* Referenced clusters for which there is no block. */
static void compare_missing(Compare *m)
{
    Qcow2Check *c = m->c;
    g_autoptr(GPtrArray) pages = qcow2_counts_sorted(&c->refs);
    for (guint i = 0; i < pages->len; i++) {
        const Qcow2CountPage *page = pages->pdata[i];
        uint64_t first = page->number * QCOW2_COUNTS_PER_PAGE;
        for (unsigned j = 0; j < QCOW2_COUNTS_PER_PAGE && !has_block(c, first); j++) {
            if (page->counts[j]) {
                c->rebuild = true;
                note_used(c, first + j);
                if (m->tell) {
                    tell_difference(m, first + j, 0, page->counts[j]);
                }
            }
        }
    }
}

/* A block that something else uses as well cannot be trusted, or written to. */
static void find_shared_blocks(Qcow2Check *c)
{
    const Qcow2Directory *d = &c->s->reftable;
    for (uint32_t i = 0; i < d->n; i++) {
        uint64_t cluster = d->entries[i] >> c->s->cluster_bits;
        bool known = d->entries[i] && !c->bad_blocks[i] && cluster >= c->refs.lo && cluster < c->refs.hi;
        if (known && qcow2_counts_get(&c->refs, cluster) != 1) {
            c->bad_blocks[i] = 1;
            c->rebuild = true;
            c->refcount_corruptions++;
            qcow2_check_corrupt(c,
                                "refcount table, entry %" PRIu32 ": the block at 0x%" PRIx64
                                " is in use for something else, too",
                                i, d->entries[i]);
        }
    }
}

static int coroutine_fn compare_window(Compare *m)
{
    Qcow2Check *c = m->c;
    const Qcow2State *s = c->s;
    if (m->tell) {
        find_shared_blocks(c);
    }
    uint64_t first = c->refs.lo >> s->refblock_bits;
    uint64_t last = (MIN(c->refs.hi, c->n_clusters) - 1) >> s->refblock_bits;
    int ret = 0;
    for (uint64_t i = first; i <= last && i < s->reftable.n && ret == 0; i++) {
        if (s->reftable.entries[i] && !c->bad_blocks[i]) {
            ret = compare_block(m, (uint32_t)i);
        }
    }
    if (ret == 0) {
        compare_missing(m);
    }
    return ret;
}

/* Counters that stand for everything are still good from the pass before. */
static bool counted_already(const Qcow2Check *c, const Compare *m)
{
    return !m->tell && c->refs.lo == 0 && c->refs.hi == UINT64_MAX;
}

int coroutine_fn qcow2_check_compare(Qcow2Check *c, BlockCheckFix fix)
{
    Compare m = {.c = c, .fix = fix, .tell = !fix};
    uint64_t lo = 0;
    do {
        int ret = counted_already(c, &m) ? 0 : qcow2_check_count(c, lo);
        ret = ret < 0 ? ret : compare_window(&m);
        if (ret < 0) {
            return ret;
        }
        lo = c->refs.hi;
    } while (lo < c->n_clusters);
    return 0;
}
