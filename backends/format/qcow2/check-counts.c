/*
 * qcow2: counters of clusters in bounded memory.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "backends/format/qcow2/check.h"

/* What a page takes, with its place in the hash table. */
#define PAGE_BYTES (sizeof(Qcow2CountPage) + 64)

void qcow2_counts_init(Qcow2Counts *c, size_t max_bytes)
{
    c->pages = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, g_free);
    c->max_pages = (unsigned)MAX(max_bytes / PAGE_BYTES, 2);
    qcow2_counts_begin(c, 0);
}

void qcow2_counts_free(Qcow2Counts *c)
{
    g_clear_pointer(&c->pages, g_hash_table_unref);
}

void qcow2_counts_begin(Qcow2Counts *c, uint64_t lo)
{
    g_hash_table_remove_all(c->pages);
    c->lo = lo;
    c->hi = UINT64_MAX;
}

static int compare_pages(gconstpointer a, gconstpointer b)
{
    const Qcow2CountPage *x = *(Qcow2CountPage *const *)a, *y = *(Qcow2CountPage *const *)b;
    return x->number < y->number ? -1 : x->number > y->number;
}

GPtrArray *qcow2_counts_sorted(const Qcow2Counts *c)
{
    GPtrArray *pages = g_ptr_array_sized_new(g_hash_table_size(c->pages));
    GHashTableIter iter;
    gpointer page;
    g_hash_table_iter_init(&iter, c->pages);
    while (g_hash_table_iter_next(&iter, NULL, &page)) {
        g_ptr_array_add(pages, page);
    }
    g_ptr_array_sort(pages, compare_pages);
    return pages;
}

/* Leave the upper half to a later pass. */
static void narrow(Qcow2Counts *c)
{
    g_autoptr(GPtrArray) pages = qcow2_counts_sorted(c);
    guint keep = pages->len / 2;
    c->hi = ((Qcow2CountPage *)pages->pdata[keep])->number * QCOW2_COUNTS_PER_PAGE;
    for (guint i = keep; i < pages->len; i++) {
        uint64_t number = ((Qcow2CountPage *)pages->pdata[i])->number;
        g_hash_table_remove(c->pages, &number);
    }
}

static uint32_t *counter(Qcow2Counts *c, uint64_t cluster)
{
    uint64_t number = cluster / QCOW2_COUNTS_PER_PAGE;
    Qcow2CountPage *page = g_hash_table_lookup(c->pages, &number);
    if (!page) {
        page = g_new0(Qcow2CountPage, 1);
        page->number = number;
        g_hash_table_insert(c->pages, &page->number, page);
    }
    return &page->counts[cluster % QCOW2_COUNTS_PER_PAGE];
}

void qcow2_counts_add(Qcow2Counts *c, uint64_t first, uint64_t n, uint32_t times)
{
    for (uint64_t i = first; i < first + n; i++) {
        if (i < c->lo || i >= c->hi) {
            continue;
        }
        uint32_t *count = counter(c, i);
        *count = times > UINT32_MAX - *count ? UINT32_MAX : *count + times;
        if (g_hash_table_size(c->pages) > c->max_pages) {
            narrow(c);
        }
    }
}

const Qcow2CountPage *qcow2_counts_page(const Qcow2Counts *c, uint64_t cluster)
{
    uint64_t number = cluster / QCOW2_COUNTS_PER_PAGE;
    return g_hash_table_lookup(c->pages, &number);
}

uint32_t qcow2_counts_get(const Qcow2Counts *c, uint64_t cluster)
{
    const Qcow2CountPage *page = qcow2_counts_page(c, cluster);
    return page ? page->counts[cluster % QCOW2_COUNTS_PER_PAGE] : 0;
}

uint32_t qcow2_counts_take(Qcow2Counts *c, uint64_t cluster)
{
    uint32_t count = qcow2_counts_get(c, cluster);
    if (count) {
        *counter(c, cluster) = 0;
    }
    return count;
}
