/*
 * qcow2: refcounts, and clusters taken by them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "backends/format/qcow2/qcow2.h"

/* Cluster numbers stay below this, so that offsets fit L1 and L2 entries. */
#define MAX_OFFSET (UINT64_C(1) << 56)

/* ---- One block */

uint64_t qcow2_refcount_load(const uint8_t *block, uint32_t order, uint64_t i)
{
    switch (order) {
    case 3:
        return block[i];
    case 4:
        return (uint64_t)block[2 * i] << 8 | block[2 * i + 1];
    case 5:
        return qcow2_load32(block + 4 * i);
    case 6:
        return qcow2_load64(block + 8 * i);
    default: {
        unsigned bits = 1u << order, per_byte = 8 / bits;
        return block[i / per_byte] >> (i % per_byte * bits) & ((1u << bits) - 1);
    }
    }
}

void qcow2_refcount_store(uint8_t *block, uint32_t order, uint64_t i, uint64_t value)
{
    switch (order) {
    case 3:
        block[i] = (uint8_t)value;
        break;
    case 4:
        block[2 * i] = (uint8_t)(value >> 8);
        block[2 * i + 1] = (uint8_t)value;
        break;
    case 5:
        qcow2_store32(block + 4 * i, (uint32_t)value);
        break;
    case 6:
        qcow2_store64(block + 8 * i, value);
        break;
    default: {
        unsigned bits = 1u << order, per_byte = 8 / bits, shift = i % per_byte * bits;
        unsigned mask = ((1u << bits) - 1) << shift;
        uint8_t *byte = &block[i / per_byte];
        *byte = (uint8_t)((*byte & ~mask) | ((value << shift) & mask));
        break;
    }
    }
}

/* ---- Finding the block */

static uint64_t block_offset(const Qcow2State *s, uint64_t cluster)
{
    uint64_t i = cluster >> s->refblock_bits;
    return i < s->reftable.n ? s->reftable.entries[i] & ~UINT64_C(511) : 0;
}

static uint64_t index_in_block(const Qcow2State *s, uint64_t cluster)
{
    return cluster & ((UINT64_C(1) << s->refblock_bits) - 1);
}

/* The block that holds the cluster's refcount, pinned; NULL where there is none: the refcount is 0. */
static int coroutine_fn get_block(Qcow2State *s, uint64_t cluster, Qcow2Table **block)
{
    uint64_t offset = block_offset(s, cluster);
    *block = NULL;
    return offset ? qcow2_cache_get_locked(s, &s->refcount_cache, offset, block) : 0;
}

int coroutine_fn qcow2_refcount_get_locked(Qcow2State *s, uint64_t cluster, uint64_t *out)
{
    Qcow2Table *block;
    int ret = get_block(s, cluster, &block);
    *out = 0;
    if (ret == 0 && block) {
        *out = qcow2_refcount_load(block->data, s->refcount_order, index_in_block(s, cluster));
        qcow2_cache_put(block);
    }
    return ret;
}

/* ---- Taking clusters */

typedef struct FreeRun {
    uint64_t next;       /* cluster to look at */
    uint64_t length;     /* of the run that ends before it */
    uint64_t first_free; /* the first free cluster seen */
} FreeRun;

static void count_cluster(FreeRun *r, bool is_free)
{
    if (is_free) {
        r->first_free = MIN(r->first_free, r->next);
    }
    r->length = is_free ? r->length + 1 : 0;
    r->next++;
}

/* Go on with the run, to the end of one block at most. */
static int coroutine_fn scan_block(Qcow2State *s, FreeRun *r, uint64_t n)
{
    Qcow2Table *block;
    int ret = get_block(s, r->next, &block);
    if (ret < 0) {
        return ret;
    }
    uint64_t i = index_in_block(s, r->next), per_block = UINT64_C(1) << s->refblock_bits;
    for (; i < per_block && r->length < n; i++) {
        count_cluster(r, !block || qcow2_refcount_load(block->data, s->refcount_order, i) == 0);
    }
    if (block) {
        qcow2_cache_put(block);
    }
    return 0;
}

/* The first run of n clusters without references, from the hint on. */
static int coroutine_fn find_free(Qcow2State *s, uint64_t n, uint64_t *first)
{
    FreeRun run = {.next = s->free_hint, .first_free = UINT64_MAX};
    while (run.length < n) {
        int ret = run.next + n > MAX_OFFSET >> s->cluster_bits ? -EFBIG : scan_block(s, &run, n);
        if (ret < 0) {
            return ret;
        }
    }
    *first = run.next - n;
    s->free_hint = run.first_free; /* shorter runs before it remain to be used */
    return 0;
}

/* Enter a new block at cluster `at` as number `index` of the refcount table. */
static int coroutine_fn add_block(Qcow2State *s, uint64_t index, uint64_t at, bool describes_itself)
{
    Qcow2Table *block;
    uint64_t offset = at << s->cluster_bits;
    int ret = qcow2_overlap_check_locked(s, QCOW2_CLASS_DATA, offset, (uint64_t)s->cluster_size);
    ret = ret < 0 ? ret : qcow2_cache_new_locked(s, &s->refcount_cache, offset, &block);
    if (ret < 0) {
        return ret;
    }
    if (describes_itself) {
        qcow2_refcount_store(block->data, s->refcount_order, index_in_block(s, at), 1);
    }
    qcow2_cache_put(block);
    qcow2_overlap_add(s, offset);
    qcow2_directory_set(&s->reftable, (uint32_t)index, offset);
    return 0;
}

static int coroutine_fn set_refcount(Qcow2State *s, uint64_t cluster, uint64_t value)
{
    Qcow2Table *block;
    int ret = get_block(s, cluster, &block);
    if (ret < 0) {
        return ret;
    }
    g_assert(block);
    qcow2_refcount_store(block->data, s->refcount_order, index_in_block(s, cluster), value);
    qcow2_cache_dirty(&s->refcount_cache, block);
    qcow2_cache_put(block);
    return 0;
}

/*
 * Make the block for `cluster`. It lies in a free cluster, whose own refcount is in a block that exists, or
 * in the new one; where it would be in a third, that one is made instead, and the caller asks again.
 */
static int coroutine_fn make_block(Qcow2State *s, uint64_t cluster)
{
    uint64_t index = cluster >> s->refblock_bits, at;
    int ret = find_free(s, 1, &at);
    if (ret < 0) {
        return ret;
    }
    uint64_t covering = at >> s->refblock_bits;
    if (MAX(index, covering) >= s->reftable.n) {
        return qcow2_reftable_grow_locked(s, MAX(index, covering) + 1);
    }
    if (covering == index || !block_offset(s, at)) {
        return add_block(s, covering, at, true);
    }
    ret = set_refcount(s, at, 1);
    if (ret == 0) {
        ret = add_block(s, index, at, false);
        if (ret < 0) {
            set_refcount(s, at, 0);
        }
    }
    return ret;
}

/* The first cluster of the run whose block does not exist; first + n where all do. */
static uint64_t first_without_block(const Qcow2State *s, uint64_t first, uint64_t n)
{
    uint64_t per_block = UINT64_C(1) << s->refblock_bits;
    for (uint64_t c = first; c < first + n; c = (c / per_block + 1) * per_block) {
        if (!block_offset(s, c)) {
            return c;
        }
    }
    return first + n;
}

int coroutine_fn qcow2_alloc_locked(Qcow2State *s, uint64_t n, uint64_t *offset)
{
    uint64_t first, missing;
    int ret;
    for (;;) {
        ret = find_free(s, n, &first);
        if (ret < 0) {
            return ret;
        }
        missing = first_without_block(s, first, n);
        if (missing == first + n) {
            break;
        }
        ret = make_block(s, missing); /* may take a cluster of the run: look again */
        if (ret < 0) {
            return ret;
        }
    }
    *offset = first << s->cluster_bits;
    ret = qcow2_overlap_check_locked(s, QCOW2_CLASS_DATA, *offset, n << s->cluster_bits);
    for (uint64_t i = 0; i < n && ret == 0; i++) {
        ret = set_refcount(s, first + i, 1);
    }
    if (ret == 0 && s->free_hint >= first) {
        s->free_hint = first + n;
    }
    return ret;
}

/* ---- Giving them back */

void qcow2_range_add(GArray *ranges, uint64_t cluster)
{
    Qcow2Range *last = ranges->len ? &g_array_index(ranges, Qcow2Range, ranges->len - 1) : NULL;
    if (last && last->first + last->count == cluster) {
        last->count++;
        return;
    }
    Qcow2Range range = {cluster, 1};
    g_array_append_val(ranges, range);
}

int coroutine_fn qcow2_unref_locked(Qcow2State *s, uint64_t first, uint64_t count, GArray *freed)
{
    for (uint64_t c = first; c < first + count; c++) {
        uint64_t refcount;
        int ret = qcow2_refcount_get_locked(s, c, &refcount);
        if (ret == 0 && refcount == 0) {
            ret = qcow2_mark_corrupt_locked(s, c << s->cluster_bits, "a cluster in use has refcount 0");
        }
        if (ret == 0 && refcount == 1) { /* it is to be free, and may be discarded */
            ret = qcow2_overlap_check_locked(s, QCOW2_CLASS_DATA, c << s->cluster_bits,
                                             (uint64_t)s->cluster_size);
        }
        ret = ret < 0 ? ret : set_refcount(s, c, refcount - 1);
        if (ret < 0) {
            return ret;
        }
        if (refcount == 1) {
            s->free_hint = MIN(s->free_hint, c);
            qcow2_cache_forget(&s->l2_cache, c << s->cluster_bits);
            if (freed) {
                qcow2_range_add(freed, c);
            }
        }
    }
    return 0;
}
