/*
 * qcow2: the way of a cluster from "not referred to any more" to "free".
 *
 *   IN USE --dropped from the tables in memory--> DROPPED --tables stable in the file--> STABLE
 *   STABLE --new requests count in the other epoch--> DRAINING --older requests have ended--> refcount - 1
 *
 * Two dangers are kept away. If its refcount fell first, another table entry could take the cluster and reach
 * the file before the old entry left it: after a power cut two entries would share it. And a request that
 * looked the cluster up before it was dropped may still read or write there.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "backends/format/qcow2/qcow2.h"

/* Ranges that wait; beyond it requests that drop some write the tables out. */
#define MAX_DROPPED 4096u

unsigned qcow2_io_enter_locked(Qcow2State *s)
{
    atomic_fetch_add(&s->io[s->io_epoch], 1);
    return s->io_epoch;
}

void qcow2_io_leave(Qcow2State *s, unsigned epoch)
{
    atomic_fetch_sub(&s->io[epoch], 1);
}

void qcow2_drop_locked(Qcow2State *s, uint64_t offset, uint64_t bytes)
{
    uint64_t first = offset >> s->cluster_bits, end = ((offset + bytes - 1) >> s->cluster_bits) + 1;
    GArray *a = s->dropped;
    Qcow2Range *last = a->len ? &g_array_index(a, Qcow2Range, a->len - 1) : NULL;
    if (last && last->first + last->count == first) {
        last->count += end - first;
        return;
    }
    Qcow2Range range = {first, end - first};
    g_array_append_val(a, range);
}

bool qcow2_should_sync(Qcow2State *s)
{
    return s->dropped->len >= MAX_DROPPED;
}

/* Lower the refcounts; tell the file of what became free. A discard that fails costs only room. */
static int coroutine_fn release_ranges(Qcow2State *s, GArray *ranges)
{
    g_autoptr(GArray) freed = g_array_new(false, false, sizeof(Qcow2Range));
    int ret = 0;
    for (guint i = 0; i < ranges->len && ret == 0; i++) {
        Qcow2Range *r = &g_array_index(ranges, Qcow2Range, i);
        ret = qcow2_unref_locked(s, r->first, r->count, freed);
    }
    g_array_set_size(ranges, 0); /* after an error the rest is leaked, not freed twice */
    for (guint i = 0; i < freed->len && s->node->discard_unmap; i++) {
        Qcow2Range *r = &g_array_index(freed, Qcow2Range, i);
        block_child_co_pdiscard(s->node->file, (int64_t)(r->first << s->cluster_bits),
                                (int64_t)(r->count << s->cluster_bits));
    }
    return ret;
}

static bool older_requests_ended(Qcow2State *s)
{
    return atomic_load(&s->io[!s->io_epoch]) == 0;
}

int coroutine_fn qcow2_release_locked(Qcow2State *s)
{
    int ret = 0;
    if (s->draining->len && older_requests_ended(s)) {
        ret = release_ranges(s, s->draining);
    }
    if (ret == 0 && !s->draining->len && s->stable->len && older_requests_ended(s)) {
        GArray *empty = s->draining;
        s->draining = s->stable;
        s->stable = empty;
        s->io_epoch = !s->io_epoch;
        if (older_requests_ended(s)) {
            ret = release_ranges(s, s->draining);
        }
    }
    return ret;
}
