/*
 * qcow2: a copy of all refcount blocks, changed in memory, for the tables of transition.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/format/qcow2/qcow2.h"
#include "util/error.h"

/*
 * The most that the blocks may take, in bytes. A sparse file can have any number of them at little cost; so
 * more than the lower limit (512 GiB in clusters of 64 KiB with refcounts of 16 bits) only in proportion to
 * what the file takes of its storage, up to the higher one.
 */
#define LOWER_LIMIT     (UINT64_C(16) << 20)
#define HIGHER_LIMIT    (UINT64_C(256) << 20)
#define STORED_PER_BYTE 128

/* ---- Life */

void qcow2_shadow_free(Qcow2Shadow *shadow)
{
    for (uint32_t i = 0; shadow->blocks && i < shadow->n; i++) {
        g_free(shadow->blocks[i]);
    }
    g_free(shadow->blocks);
    if (shadow->freed) {
        g_array_unref(shadow->freed);
    }
    *shadow = (Qcow2Shadow){0};
}

static uint64_t coroutine_fn max_bytes(Qcow2State *s)
{
    int64_t stored = block_node_co_get_allocated(s->node->file->node);
    uint64_t most = stored > 0 ? (uint64_t)stored / STORED_PER_BYTE : 0;
    return CLAMP(most, LOWER_LIMIT, HIGHER_LIMIT);
}

/* A block that counts nothing is left out of the new table. */
static int coroutine_fn load_block(Qcow2State *s, uint64_t offset, uint8_t **out)
{
    Qcow2Table *t;
    size_t size = (size_t)s->cluster_size;
    int ret = qcow2_cache_get_locked(s, &s->refcount_cache, offset, &t);
    if (ret == 0) {
        bool empty = t->data[0] == 0 && !memcmp(t->data, t->data + 1, size - 1);
        *out = empty ? NULL : g_memdup2(t->data, size);
        qcow2_cache_put(t);
    }
    return ret;
}

int coroutine_fn qcow2_shadow_load_locked(Qcow2State *s, Qcow2Shadow *shadow, GError **errp)
{
    uint64_t bytes = 0, most = max_bytes(s);
    *shadow = (Qcow2Shadow){.n = s->reftable.n,
                            .blocks = g_new0(uint8_t *, s->reftable.n),
                            .freed = g_array_new(false, false, sizeof(Qcow2Range))};
    for (uint32_t i = 0; i < shadow->n; i++) {
        uint64_t offset = s->reftable.entries[i] & ~UINT64_C(511);
        if (!offset) {
            continue;
        }
        int ret = load_block(s, offset, &shadow->blocks[i]);
        if (ret < 0) {
            return bg_error_set_errno(errp, -ret, "node '%s': reading refcounts", s->node->name);
        }
        bytes += shadow->blocks[i] ? (uint64_t)s->cluster_size : 0;
        if (bytes > most) {
            return bg_error_set(errp, EFBIG, "node '%s': refcount blocks of more than %d MiB", s->node->name,
                                (int)(most >> 20));
        }
    }
    return 0;
}

/* ---- Counts */

static uint8_t *block_of(const Qcow2State *s, const Qcow2Shadow *shadow, uint64_t cluster)
{
    uint64_t i = cluster >> s->refblock_bits;
    return i < shadow->n ? shadow->blocks[i] : NULL;
}

static uint64_t index_in_block(const Qcow2State *s, uint64_t cluster)
{
    return cluster & ((UINT64_C(1) << s->refblock_bits) - 1);
}

uint64_t qcow2_shadow_get(const Qcow2State *s, const Qcow2Shadow *shadow, uint64_t cluster)
{
    const uint8_t *block = block_of(s, shadow, cluster);
    return block ? qcow2_refcount_load(block, s->refcount_order, index_in_block(s, cluster)) : 0;
}

static int add_one(Qcow2State *s, Qcow2Shadow *shadow, uint64_t cluster, int delta)
{
    uint64_t count = qcow2_shadow_get(s, shadow, cluster);
    uint64_t most = s->refcount_order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << s->refcount_order)) - 1;
    if (count == 0) {
        return -EIO; /* what is referred to is counted */
    }
    if (delta > 0 && count == most) {
        return -ERANGE;
    }
    count += (uint64_t)(int64_t)delta;
    qcow2_refcount_store(block_of(s, shadow, cluster), s->refcount_order, index_in_block(s, cluster), count);
    if (count == 0) {
        qcow2_range_add(shadow->freed, cluster);
    }
    return 0;
}

int qcow2_shadow_add(Qcow2State *s, Qcow2Shadow *shadow, uint64_t offset, uint64_t bytes, int delta)
{
    int ret = 0;
    if (!bytes) {
        return 0; /* what is not there can be said to lie anywhere */
    }
    uint64_t end = (offset + bytes + (uint64_t)s->cluster_size - 1) >> s->cluster_bits;
    for (uint64_t c = offset >> s->cluster_bits; c < end && ret == 0; c++) {
        ret = add_one(s, shadow, c, delta);
    }
    return ret;
}

/* ---- Trees */

static int add_entry(Qcow2State *s, Qcow2Shadow *shadow, uint64_t entry, int delta)
{
    if (entry & QCOW2_ENTRY_COMPRESSED) {
        Qcow2Extent e = qcow2_compressed_extent(s, entry);
        return qcow2_shadow_add(s, shadow, e.offset, e.bytes, delta);
    }
    uint64_t offset = entry & QCOW2_ENTRY_OFFSET;
    if (offset & (uint64_t)(s->cluster_size - 1)) {
        return -EIO;
    }
    return offset ? qcow2_shadow_add(s, shadow, offset, 1, delta) : 0;
}

static int coroutine_fn add_table(Qcow2State *s, Qcow2Shadow *shadow, uint64_t offset, int delta)
{
    Qcow2Table *t;
    int ret = qcow2_cache_get_locked(s, &s->l2_cache, offset, &t);
    if (ret < 0) {
        return ret;
    }
    for (uint32_t i = 0; i < 1u << s->l2_bits && ret == 0; i++) {
        ret = add_entry(s, shadow, qcow2_l2_load(s, t, i).entry, delta);
    }
    qcow2_cache_put(t);
    return ret < 0 ? ret : qcow2_shadow_add(s, shadow, offset, 1, delta);
}

static int compare_entries(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* An image can say that one table is there a million times; going through it as often would take for ever. */
static bool has_twins(const Qcow2Directory *l1)
{
    uint32_t n = 0;
    g_autofree uint64_t *sorted = g_new(uint64_t, MAX(l1->n, 1));
    for (uint32_t i = 0; i < l1->n; i++) {
        sorted[n] = l1->entries[i] & QCOW2_ENTRY_OFFSET;
        n += sorted[n] != 0;
    }
    qsort(sorted, n, sizeof *sorted, compare_entries);
    for (uint32_t i = 1; i < n; i++) {
        if (sorted[i] == sorted[i - 1]) {
            return true;
        }
    }
    return false;
}

int coroutine_fn qcow2_shadow_add_tree_locked(Qcow2State *s, Qcow2Shadow *shadow, const Qcow2Directory *l1,
                                              int delta)
{
    int ret = has_twins(l1) ? -EIO : 0;
    for (uint32_t i = 0; i < l1->n && ret == 0; i++) {
        uint64_t offset = l1->entries[i] & QCOW2_ENTRY_OFFSET;
        ret = offset ? add_table(s, shadow, offset, delta) : 0;
    }
    return ret;
}
