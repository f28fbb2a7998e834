/*
 * qcow2: bounded caches of L2 tables and of refcount blocks.
 *
 *   ABSENT --get--> CLEAN --changed--> DIRTY --written--> CLEAN --least recently used--> ABSENT
 *
 * A pinned table stays. A dirty refcount block is written whenever its room is needed, as what it says is
 * safe at any time (release.c). A dirty L2 table needs refcounts and data on stable storage before; so when
 * the oldest is dirty, all are written together, for the price of one flush.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/format/qcow2/qcow2.h"

void qcow2_cache_init(Qcow2Cache *c, unsigned max_tables, bool is_l2)
{
    unsigned n = 16;
    while (n < max_tables && n < (1u << 20)) {
        n *= 2;
    }
    *c = (Qcow2Cache){
        .max_tables = max_tables, .n_buckets = n, .buckets = g_new0(Qcow2Table *, n), .is_l2 = is_l2};
}

static Qcow2Table **bucket(Qcow2Cache *c, uint64_t offset)
{
    uint64_t hash = (offset >> 9) * UINT64_C(0x9e3779b97f4a7c15);
    return &c->buckets[(hash >> 32) & (c->n_buckets - 1)];
}

static Qcow2Table *find(Qcow2Cache *c, uint64_t offset)
{
    Qcow2Table *t = *bucket(c, offset);
    while (t && t->offset != offset) {
        t = t->next_in_bucket;
    }
    return t;
}

/* ---- Order of use */

static void use(Qcow2Cache *c, Qcow2Table *t)
{
    t->last_use = ++c->uses;
}

static void unlink_use(Qcow2Cache *c, Qcow2Table *t)
{
    *(t->older ? &t->older->newer : &c->oldest) = t->newer;
    *(t->newer ? &t->newer->older : &c->newest) = t->older;
}

static void link_newest(Qcow2Cache *c, Qcow2Table *t)
{
    t->newer = NULL;
    t->older = c->newest;
    *(c->newest ? &c->newest->newer : &c->oldest) = t;
    c->newest = t;
}

/* ---- Coming and going */

static void remove_table(Qcow2Cache *c, Qcow2Table *t)
{
    Qcow2Table **p = bucket(c, t->offset);
    while (*p != t) {
        p = &(*p)->next_in_bucket;
    }
    *p = t->next_in_bucket;
    unlink_use(c, t);
    c->n_tables--;
    c->n_dirty -= t->dirty;
    free(t->data);
    g_free(t);
}

void qcow2_cache_free(Qcow2Cache *c)
{
    while (c->oldest) {
        remove_table(c, c->oldest);
    }
    g_free(c->buckets);
    *c = (Qcow2Cache){0};
}

void qcow2_cache_forget(Qcow2Cache *c, uint64_t offset)
{
    Qcow2Table *t = find(c, offset);
    if (t && t->pins == 0) {
        remove_table(c, t);
    } else if (t && t->dirty) { /* an image whose tables overlap: at least do not write it */
        t->dirty = false;
        c->n_dirty--;
    }
}

void qcow2_cache_clear(Qcow2Cache *c)
{
    while (c->oldest) {
        g_assert(c->oldest->pins == 0);
        remove_table(c, c->oldest);
    }
}

Qcow2Table *qcow2_cache_peek(Qcow2Cache *c, uint64_t offset)
{
    return find(c, offset);
}

void qcow2_cache_move(Qcow2Cache *c, uint64_t from, uint64_t to)
{
    Qcow2Table *t = find(c, from);
    if (!t) {
        return;
    }
    qcow2_cache_forget(c, to);
    Qcow2Table **p = bucket(c, from), **b = bucket(c, to);
    while (*p != t) {
        p = &(*p)->next_in_bucket;
    }
    *p = t->next_in_bucket;
    t->offset = to;
    t->next_in_bucket = *b;
    *b = t;
}

static int coroutine_fn write_table(Qcow2State *s, Qcow2Cache *c, Qcow2Table *t)
{
    int ret = qcow2_overlap_check_locked(s, c->is_l2 ? QCOW2_CLASS_L2 : QCOW2_CLASS_REFBLOCK, t->offset,
                                         (uint64_t)s->cluster_size);
    ret =
        ret < 0 ? ret : block_child_co_pwrite(s->node->file, (int64_t)t->offset, s->cluster_size, t->data, 0);
    if (ret == 0) {
        t->dirty = false;
        c->n_dirty--;
    }
    return ret;
}

int coroutine_fn qcow2_cache_write_dirty_locked(Qcow2State *s, Qcow2Cache *c)
{
    int ret = 0;
    for (Qcow2Table *t = c->oldest; t && c->n_dirty && ret == 0; t = t->newer) {
        if (t->dirty) {
            ret = write_table(s, c, t);
        }
    }
    return ret;
}

/* Room for one more. Where all are pinned, which takes few, the cache is over its size for a while. */
static int coroutine_fn make_room(Qcow2State *s, Qcow2Cache *c)
{
    while (c->n_tables >= c->max_tables) {
        Qcow2Table *t = c->oldest;
        while (t && t->pins) {
            t = t->newer;
        }
        if (!t) {
            return 0;
        }
        int ret = 0;
        if (t->dirty) {
            ret = c->is_l2 ? qcow2_write_l2_locked(s) : write_table(s, c, t);
        }
        if (ret < 0) {
            return ret;
        }
        remove_table(c, t);
    }
    return 0;
}

static Qcow2Table *add_table(Qcow2State *s, Qcow2Cache *c, uint64_t offset)
{
    void *data = aligned_alloc(4096, MAX((size_t)s->cluster_size, 4096));
    if (!data) {
        return NULL;
    }
    Qcow2Table *t = g_new(Qcow2Table, 1);
    Qcow2Table **b = bucket(c, offset);
    *t = (Qcow2Table){.offset = offset, .data = data, .pins = 1, .next_in_bucket = *b};
    *b = t;
    link_newest(c, t);
    use(c, t);
    c->n_tables++;
    return t;
}

int coroutine_fn qcow2_cache_get_locked(Qcow2State *s, Qcow2Cache *c, uint64_t offset, Qcow2Table **out)
{
    Qcow2Table *t = find(c, offset);
    if (bg_likely(t != NULL)) {
        if (t != c->newest) {
            unlink_use(c, t);
            link_newest(c, t);
        }
        use(c, t);
        t->pins++;
        *out = t;
        return 0;
    }
    int64_t length = block_node_length(s->node->file->node);
    if (offset % (uint64_t)s->cluster_size || offset > (uint64_t)length) {
        return qcow2_mark_corrupt_locked(s, offset, "a table is not aligned, or not in the file");
    }
    int ret = make_room(s, c);
    if (ret < 0) {
        return ret;
    }
    t = add_table(s, c, offset);
    if (!t) {
        return -ENOMEM;
    }
    ret = block_child_co_pread(s->node->file, (int64_t)offset, s->cluster_size, t->data);
    if (ret < 0) {
        remove_table(c, t);
        return ret;
    }
    *out = t;
    return 0;
}

int coroutine_fn qcow2_cache_new_locked(Qcow2State *s, Qcow2Cache *c, uint64_t offset, Qcow2Table **out)
{
    qcow2_cache_forget(c, offset);
    int ret = make_room(s, c);
    if (ret < 0) {
        return ret;
    }
    Qcow2Table *t = add_table(s, c, offset);
    if (!t) {
        return -ENOMEM;
    }
    memset(t->data, 0, (size_t)s->cluster_size);
    qcow2_cache_dirty(c, t);
    *out = t;
    return 0;
}

void qcow2_cache_put(Qcow2Table *t)
{
    g_assert(t->pins > 0);
    t->pins--;
}

void qcow2_cache_clean(Qcow2Cache *c)
{
    Qcow2Table *newer;
    for (Qcow2Table *t = c->oldest; t && t->last_use <= c->cleaned; t = newer) {
        newer = t->newer;
        if (!t->pins && !t->dirty) {
            remove_table(c, t);
        }
    }
    c->cleaned = c->uses;
}

void qcow2_cache_dirty(Qcow2Cache *c, Qcow2Table *t)
{
    c->n_dirty += !t->dirty;
    t->dirty = true;
}
