/*
 * qcow2: checking and repairing.
 *
 *   1. all references are counted, and entries that lead nowhere found       (check-refs.c, check-walk.c)
 *   2. refcounts are compared with them                                      (check-compare.c)
 *   3. they are mended in place, or all refcount blocks are made anew; flush (check-compare.c, -rebuild.c)
 *   4. COPIED flags are compared with the refcounts, and mended; flush       (check-copied.c)
 *   5. where nothing is wrong any more, the header's dirty and corrupt bits go; flush
 *
 * A cut after any step leaves an image that is not worse than before: a refcount is set to the number of
 * references that there are, so no cluster in use is freed; COPIED is set where the refcount in the file is
 * one already. Entries that lead nowhere stay as they are, since what they meant is not known, and as long as
 * there are any, no refcount falls.
 *
 * Memory is bounded, whatever the tables say: MAX_COUNTS_BYTES and two clusters; where the counters do not
 * fit, steps 1 to 3 are done for one part of the file after another (check-counts.c).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "backends/format/qcow2/check.h"
#include "util/error.h"

#define MAX_REFS_BYTES   ((size_t)24 << 20)
#define MAX_TABLES_BYTES ((size_t)8 << 20)
#define MAX_COUNTS_BYTES (MAX_REFS_BYTES + MAX_TABLES_BYTES)

/* ---- For all steps */

static void say(Qcow2Check *c, const char *format, va_list args)
{
    if (!c->listener || !c->listener->problem || c->lines >= BLOCK_CHECK_MAX_LINES) {
        return;
    }
    c->lines++;
    g_autofree char *text = c->lines < BLOCK_CHECK_MAX_LINES ? g_strdup_vprintf(format, args)
                                                             : g_strdup("... and more of that kind");
    c->listener->problem(c->listener->opaque, text);
}

void qcow2_check_problem(Qcow2Check *c, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say(c, format, args);
    va_end(args);
}

void qcow2_check_corrupt(Qcow2Check *c, const char *format, ...)
{
    va_list args;
    c->result->corruptions++;
    va_start(args, format);
    say(c, format, args);
    va_end(args);
}

void qcow2_check_progress(Qcow2Check *c)
{
    if (c->listener && c->listener->progress) {
        double part = (double)MIN(c->l1_done, c->l1_total) / (double)MAX(c->l1_total, 1);
        c->listener->progress(c->listener->opaque, (c->pass + part) / c->n_passes);
    }
}

static void begin_pass(Qcow2Check *c)
{
    c->pass = MIN(c->pass + 1, c->n_passes - 1);
    c->l1_done = 0;
    qcow2_check_progress(c);
}

bool qcow2_check_in_file(const Qcow2Check *c, uint64_t offset, uint64_t bytes)
{
    uint64_t end = c->n_clusters << c->s->cluster_bits;
    return offset < end && bytes <= end - offset;
}

/* ---- The refcount table */

static int compare_entries(const void *a, const void *b)
{
    uint64_t x = **(uint64_t *const *)a, y = **(uint64_t *const *)b;
    return x < y ? -1 : x > y;
}

static void bad_block(Qcow2Check *c, uint32_t i, const char *what)
{
    c->bad_blocks[i] = 1;
    c->rebuild = true;
    c->refcount_corruptions++;
    qcow2_check_corrupt(c, "refcount table, entry %" PRIu32 ": 0x%" PRIx64 " %s", i,
                        c->s->reftable.entries[i], what);
}

static void check_table_entries(Qcow2Check *c)
{
    const Qcow2Directory *d = &c->s->reftable;
    uint64_t in_cluster = (uint64_t)(c->s->cluster_size - 1);
    for (uint32_t i = 0; i < d->n; i++) {
        uint64_t entry = d->entries[i];
        if (entry & in_cluster) {
            bad_block(c, i, "is not where a cluster begins");
        } else if (entry && !qcow2_check_in_file(c, entry, (uint64_t)c->s->cluster_size)) {
            bad_block(c, i, "is not in the file");
        }
    }
}

/* Two entries for one block: neither is right. */
static void check_table_twins(Qcow2Check *c)
{
    const Qcow2Directory *d = &c->s->reftable;
    g_autofree uint64_t **sorted = g_new(uint64_t *, MAX(d->n, 1));
    uint32_t n = 0;
    for (uint32_t i = 0; i < d->n; i++) {
        sorted[n] = &d->entries[i];
        n += d->entries[i] != 0;
    }
    qsort(sorted, n, sizeof *sorted, compare_entries);
    for (uint32_t i = 1; i < n; i++) {
        uint32_t at = (uint32_t)(sorted[i] - d->entries);
        if (*sorted[i] == *sorted[i - 1] && !c->bad_blocks[at]) {
            bad_block(c, at, "is there twice");
        }
    }
}

static void check_reftable(Qcow2Check *c)
{
    c->bad_blocks = g_malloc0(MAX(c->s->reftable.n, 1));
    if (!c->s->reftable.n) {
        c->rebuild = true;
        c->refcount_corruptions++;
        qcow2_check_corrupt(c, "the refcount table is not in the file");
    }
    check_table_entries(c);
    check_table_twins(c);
}

/* ---- Repair */

static int coroutine_fn repair_refcounts(Qcow2Check *c, BlockCheckFix fix, GError **errp)
{
    BlockCheckResult *r = c->result;
    if (!c->refcount_corruptions && !r->leaks) {
        return 0;
    }
    if (!c->rebuild) {
        int ret = qcow2_check_compare(c, fix);
        ret = ret < 0 ? ret : qcow2_file_flush(c->s);
        return ret < 0
                   ? bg_error_set_errno(errp, -ret, "node '%s': repairing qcow2 refcounts", c->s->node->name)
                   : 0;
    }
    /* A new structure frees what nobody refers to. */
    if ((fix & BLOCK_CHECK_FIX_ALL) != BLOCK_CHECK_FIX_ALL || c->bad_entries) {
        return 0;
    }
    return qcow2_check_rebuild(c, errp);
}

static int coroutine_fn clear_marks(Qcow2Check *c, GError **errp)
{
    Qcow2State *s = c->s;
    uint64_t bits = s->incompatible & ~(QCOW2_INCOMPATIBLE_DIRTY | QCOW2_INCOMPATIBLE_CORRUPT);
    if (bits == s->incompatible) {
        return 0;
    }
    uint64_t be = GUINT64_TO_BE(bits);
    int ret = qcow2_header_write_locked(s, QCOW2_HEADER_INCOMPATIBLE, &be, sizeof be);
    ret = ret < 0 ? ret : qcow2_file_flush(s);
    if (ret < 0) {
        return bg_error_set_errno(errp, -ret, "node '%s': writing the qcow2 header", s->node->name);
    }
    s->incompatible = bits;
    return 0;
}

/* ---- All of it */

static int coroutine_fn find_problems(Qcow2Check *c, GError **errp)
{
    c->tell = true;
    check_reftable(c);
    int ret = qcow2_check_compare(c, 0);
    return ret < 0 ? bg_error_set_errno(errp, -ret, "node '%s': reading the qcow2 tables", c->s->node->name)
                   : 0;
}

static int coroutine_fn check_flags(Qcow2Check *c, bool fix, GError **errp)
{
    int ret = qcow2_check_copied(c, fix);
    ret = ret < 0 || !fix ? ret : qcow2_file_flush(c->s);
    return ret < 0 ? bg_error_set_errno(errp, -ret, "node '%s': checking the flags of the qcow2 tables",
                                        c->s->node->name)
                   : 0;
}

static int coroutine_fn run(Qcow2Check *c, BlockCheckFix fix, GError **errp)
{
    const BlockCheckResult *r = c->result;
    int ret = find_problems(c, errp);
    begin_pass(c);
    if (ret == 0 && fix) {
        ret = repair_refcounts(c, fix, errp);
        begin_pass(c);
    }
    ret = ret < 0 ? ret : check_flags(c, fix & BLOCK_CHECK_FIX_ERRORS, errp);
    if (ret == 0 && fix && r->corruptions == r->corruptions_fixed && r->leaks == r->leaks_fixed) {
        ret = clear_marks(c, errp);
    }
    return ret;
}

int coroutine_fn qcow2_co_check(BlockNode *node, BlockCheckFix fix, const BlockCheckListener *listener,
                                BlockCheckResult *result, GError **errp)
{
    Qcow2State *s = node->opaque;
    uint64_t size = (uint64_t)s->cluster_size, length = (uint64_t)block_node_length(node->file->node);
    g_autofree uint8_t *l2 = g_malloc(size), *block = g_malloc(size);
    Qcow2Check c = {.s = s,
                    .listener = listener,
                    .result = result,
                    .n_clusters = (length + size - 1) >> s->cluster_bits,
                    .l2 = l2,
                    .block = block,
                    .n_passes = fix ? 3 : 2};
    result->total_clusters = ((uint64_t)s->length + size - 1) >> s->cluster_bits;
    qcow2_counts_init(&c.refs, MAX_REFS_BYTES);
    qcow2_counts_init(&c.tables, MAX_TABLES_BYTES);
    qcow2_check_find_l1s(&c);
    int ret = run(&c, fix, errp);
    qcow2_counts_free(&c.refs);
    qcow2_counts_free(&c.tables);
    g_array_unref(c.l1s);
    g_free(c.bad_blocks);
    return ret;
}
