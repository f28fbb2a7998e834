/*
 * qcow2: the two tables that are wholly in memory, L1 and refcount table.
 *
 * Changes are kept until sync.c writes them, in its order.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/format/qcow2/qcow2.h"

static uint32_t chunks(uint32_t n)
{
    return n / QCOW2_DIRECTORY_CHUNK + 1;
}

bool qcow2_directory_new(Qcow2Directory *d, uint64_t offset, uint32_t n)
{
    uint64_t *entries = g_try_malloc0_n(MAX(n, 1), 8);
    if (!entries) {
        return false;
    }
    *d = (Qcow2Directory){
        .entries = entries, .n = n, .offset = offset, .dirty = g_malloc0(chunks(n)), .any_dirty = false};
    return true;
}

void qcow2_directory_free(Qcow2Directory *d)
{
    g_free(d->entries);
    g_free(d->dirty);
    *d = (Qcow2Directory){0};
}

int coroutine_fn qcow2_directory_read(Qcow2State *s, Qcow2Directory *d, uint64_t offset, uint32_t n)
{
    if (!qcow2_directory_new(d, offset, n)) {
        return -ENOMEM;
    }
    int ret = block_child_co_pread(s->node->file, (int64_t)offset, (int64_t)n * 8, d->entries);
    for (uint32_t i = 0; i < n; i++) {
        d->entries[i] = GUINT64_FROM_BE(d->entries[i]);
    }
    return ret;
}

void qcow2_directory_set(Qcow2Directory *d, uint32_t i, uint64_t value)
{
    g_assert(i < d->n);
    d->entries[i] = value;
    d->dirty[i / QCOW2_DIRECTORY_CHUNK] = 1;
    d->any_dirty = true;
}

static Qcow2Class class_of(const Qcow2State *s, const Qcow2Directory *d)
{
    return d == &s->l1 ? QCOW2_CLASS_L1 : QCOW2_CLASS_REFTABLE;
}

static int coroutine_fn write_chunk(Qcow2State *s, const Qcow2Directory *d, uint32_t chunk)
{
    uint64_t buf[QCOW2_DIRECTORY_CHUNK];
    uint32_t first = chunk * QCOW2_DIRECTORY_CHUNK, n = MIN(QCOW2_DIRECTORY_CHUNK, d->n - first);
    for (uint32_t i = 0; i < n; i++) {
        buf[i] = GUINT64_TO_BE(d->entries[first + i]);
    }
    uint64_t at = d->offset + first * UINT64_C(8);
    int ret = qcow2_overlap_check_locked(s, class_of(s, d), at, n * 8);
    return ret < 0 ? ret : block_child_co_pwrite(s->node->file, (int64_t)at, n * 8, buf, 0);
}

int coroutine_fn qcow2_directory_write_dirty_locked(Qcow2State *s, Qcow2Directory *d)
{
    if (!d->any_dirty) {
        return 0;
    }
    for (uint32_t c = 0; c < chunks(d->n); c++) {
        if (!d->dirty[c]) {
            continue;
        }
        int ret = write_chunk(s, d, c);
        if (ret < 0) {
            return ret;
        }
        d->dirty[c] = 0;
    }
    d->any_dirty = false;
    return 0;
}

int coroutine_fn qcow2_directory_move_locked(Qcow2State *s, Qcow2Directory *d, uint64_t offset, uint32_t n)
{
    Qcow2Directory moved;
    uint64_t bytes = (n * UINT64_C(8) + s->cluster_size - 1) & ~(uint64_t)(s->cluster_size - 1);
    uint64_t *image = g_try_malloc0(bytes);
    if (!image || !qcow2_directory_new(&moved, offset, n)) {
        g_free(image);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < d->n; i++) {
        moved.entries[i] = d->entries[i];
        image[i] = GUINT64_TO_BE(d->entries[i]);
    }
    int ret = qcow2_overlap_check_locked(s, class_of(s, d), offset, bytes);
    ret = ret < 0 ? ret : block_child_co_pwrite(s->node->file, (int64_t)offset, (int64_t)bytes, image, 0);
    g_free(image);
    if (ret < 0) {
        qcow2_directory_free(&moved);
        return ret;
    }
    qcow2_directory_free(d);
    *d = moved;
    return 0;
}
