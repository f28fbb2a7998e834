/*
 * qcow2 check: all L1 tables, and each L2 table that they refer to, once.
 *
 * Snapshots share L2 tables: how many entries refer to each is counted first.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "backends/format/qcow2/check.h"

#define L1_CHUNK 8192u /* entries read at once */

/* ---- Reading */

/* A hostile file has tables in large holes: one question for all of these. */
static bool coroutine_fn is_hole(Qcow2Check *c, uint64_t offset, uint64_t bytes)
{
    if (offset >= c->hole && offset + bytes <= c->hole_end) {
        return true;
    }
    uint64_t end = c->n_clusters << c->s->cluster_bits;
    if (offset >= end) {
        return false;
    }
    int64_t pnum = 0, rest = (int64_t)(end - offset);
    int status = block_child_co_block_status(c->s->node->file, (int64_t)offset, rest, &pnum);
    if (status < 0 || !(status & BLOCK_STATUS_ZERO) || pnum < (int64_t)bytes) {
        return false;
    }
    c->hole = offset;
    c->hole_end = offset + (uint64_t)pnum;
    return true;
}

int coroutine_fn qcow2_check_read_cluster(Qcow2Check *c, uint64_t offset, uint8_t *buf)
{
    uint64_t bytes = (uint64_t)c->s->cluster_size;
    if (is_hole(c, offset, bytes)) {
        memset(buf, 0, bytes);
        return 1;
    }
    return block_child_co_pread(c->s->node->file, (int64_t)offset, (int64_t)bytes, buf);
}

int coroutine_fn qcow2_check_write_cluster(Qcow2Check *c, uint64_t offset, const uint8_t *buf)
{
    c->hole_end = 0;
    return block_child_co_pwrite(c->s->node->file, (int64_t)offset, c->s->cluster_size, buf, 0);
}

bool qcow2_check_l1_usable(const Qcow2Check *c, uint64_t entry)
{
    uint64_t offset = entry & QCOW2_ENTRY_OFFSET;
    return offset && !(offset & (uint64_t)(c->s->cluster_size - 1)) &&
           qcow2_check_in_file(c, offset, (uint64_t)c->s->cluster_size);
}

/* ---- L1 tables */

static int compare_l1s(const void *a, const void *b)
{
    const Qcow2L1 *x = a, *y = b;
    if (x->offset != y->offset) {
        return x->offset < y->offset ? -1 : 1;
    }
    return x->n < y->n ? -1 : x->n > y->n;
}

/* Tables at one place become one. */
static void merge_equal(GArray *l1s)
{
    g_array_sort(l1s, compare_l1s);
    guint kept = 0;
    for (guint i = 1; i < l1s->len; i++) {
        Qcow2L1 *last = &g_array_index(l1s, Qcow2L1, kept);
        const Qcow2L1 *next = &g_array_index(l1s, Qcow2L1, i);
        if (compare_l1s(last, next) == 0) {
            last->times += next->times;
        } else {
            g_array_index(l1s, Qcow2L1, ++kept) = *next;
        }
    }
    g_array_set_size(l1s, MIN(l1s->len, kept + 1));
}

/*
 * L1 tables that overlap contradict each other, and reading each would take for ever: thousands can lie in
 * one place, a few bytes apart. Only the first is followed.
 */
static void drop_overlapping(Qcow2Check *c)
{
    uint64_t end = 0;
    guint kept = 0;
    for (guint i = 0; i < c->l1s->len; i++) {
        const Qcow2L1 l1 = g_array_index(c->l1s, Qcow2L1, i);
        if (l1.offset < end) {
            c->bad_entries = true;
            qcow2_check_corrupt(c, "the L1 table of a snapshot at 0x%" PRIx64 " overlaps another", l1.offset);
            continue;
        }
        end = l1.offset + l1.n * UINT64_C(8);
        g_array_index(c->l1s, Qcow2L1, kept++) = l1;
    }
    g_array_set_size(c->l1s, kept);
}

/* Its L1 table, where it can be read; else n is 0. */
static Qcow2L1 l1_of_snapshot(Qcow2Check *c, const Qcow2Snapshot *p)
{
    const Qcow2State *s = c->s;
    uint64_t bytes = p->l1_size * UINT64_C(8);
    Qcow2L1 l1 = {.offset = p->l1_offset, .n = p->l1_size, .times = 1};
    if (bytes > (uint64_t)QCOW2_MAX_L1_BYTES || p->l1_offset & (uint64_t)(s->cluster_size - 1) ||
        !qcow2_check_in_file(c, p->l1_offset, bytes)) {
        c->bad_entries = true;
        qcow2_check_corrupt(c,
                            "snapshot '%s': its L1 table at 0x%" PRIx64 " is not in the file, or too large",
                            p->name, p->l1_offset);
        l1.n = 0;
    } else if (p->length > BLOCK_MAX_LENGTH || (p->length >= 0 && qcow2_l1_entries(s, p->length) > l1.n)) {
        qcow2_check_corrupt(c, "snapshot '%s': its L1 table is too small for the disk's length", p->name);
    }
    return l1;
}

void qcow2_check_find_l1s(Qcow2Check *c)
{
    const Qcow2State *s = c->s;
    Qcow2L1 active = {.offset = s->l1.offset, .n = s->l1.n, .times = 1, .active = true};
    c->l1s = g_array_new(false, false, sizeof(Qcow2L1));
    for (guint i = 0; i < s->snapshots->len; i++) {
        Qcow2L1 l1 = l1_of_snapshot(c, s->snapshots->pdata[i]);
        if (l1.n) {
            g_array_append_val(c->l1s, l1);
        }
    }
    merge_equal(c->l1s);
    drop_overlapping(c);
    g_array_prepend_val(c->l1s, active);
    for (guint i = 0; i < c->l1s->len; i++) {
        c->l1_total += g_array_index(c->l1s, Qcow2L1, i).n;
    }
}

typedef int coroutine_fn EachEntry(Qcow2Check *c, const Qcow2L1 *l1, uint32_t i, uint64_t entry,
                                   const Qcow2Visit *v);

uint32_t coroutine_fn qcow2_check_empty_entries(Qcow2Check *c, uint64_t offset, uint32_t n)
{
    int64_t pnum = 0;
    int status = block_child_co_block_status(c->s->node->file, (int64_t)offset, n * INT64_C(8), &pnum);
    return status >= 0 && (status & BLOCK_STATUS_ZERO) ? (uint32_t)(pnum / 8) : 0;
}

static int coroutine_fn each_entry(Qcow2Check *c, const Qcow2Visit *v, bool progress, EachEntry *each)
{
    g_autofree uint64_t *chunk = g_new(uint64_t, L1_CHUNK);
    guint n_l1s = v->only_active ? 1 : c->l1s->len;
    for (guint k = 0; k < n_l1s; k++) {
        const Qcow2L1 l1 = g_array_index(c->l1s, Qcow2L1, k);
        for (uint32_t at = 0, n; at < l1.n; at += n) {
            uint64_t offset = l1.offset + at * UINT64_C(8);
            int ret = 0;
            n = qcow2_check_empty_entries(c, offset, l1.n - at);
            c->l1_done += progress ? n : 0;
            if (n) {
                continue;
            }
            n = MIN(l1.n - at, L1_CHUNK);
            ret = block_child_co_pread(c->s->node->file, (int64_t)offset, n * 8, chunk);
            for (uint32_t i = 0; i < n && ret == 0; i++) {
                c->l1_done += progress;
                ret = chunk[i] ? each(c, &l1, at + i, GUINT64_FROM_BE(chunk[i]), v) : 0;
            }
            if (ret < 0) {
                return ret;
            }
        }
    }
    return 0;
}

/* ---- The two rounds */

static int coroutine_fn count_table(Qcow2Check *c, const Qcow2L1 *l1, uint32_t i, uint64_t entry,
                                    const Qcow2Visit *v)
{
    int ret = v->l1_entry && c->tables.lo == 0 ? v->l1_entry(c, l1, i, entry) : 0;
    if (qcow2_check_l1_usable(c, entry)) {
        qcow2_counts_add(&c->tables, (entry & QCOW2_ENTRY_OFFSET) >> c->s->cluster_bits, 1, l1->times);
    }
    return ret;
}

static int coroutine_fn visit_table(Qcow2Check *c, const Qcow2L1 *l1, uint32_t i, uint64_t entry,
                                    const Qcow2Visit *v)
{
    uint64_t offset = entry & QCOW2_ENTRY_OFFSET;
    uint32_t times =
        qcow2_check_l1_usable(c, entry) ? qcow2_counts_take(&c->tables, offset >> c->s->cluster_bits) : 0;
    if (!times) {
        return 0;
    }
    qcow2_check_progress(c);
    int ret = qcow2_check_read_cluster(c, offset, c->l2);
    c->l2_empty = ret > 0;
    c->l2_index = i;
    return ret < 0 ? ret : v->l2_table(c, offset, times, l1->active);
}

int coroutine_fn qcow2_check_walk(Qcow2Check *c, const Qcow2Visit *v)
{
    uint64_t lo = 0;
    do {
        qcow2_counts_begin(&c->tables, lo);
        int ret = each_entry(c, v, false, count_table);
        ret = ret < 0 ? ret : each_entry(c, v, lo == 0, visit_table);
        if (ret < 0) {
            return ret;
        }
        lo = c->tables.hi;
    } while (lo != UINT64_MAX);
    return 0;
}
