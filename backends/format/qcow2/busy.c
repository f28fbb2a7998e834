/*
 * qcow2: guest clusters that some request is giving a new place, so that others wait for the outcome.
 *
 * Nobody waits while being in the list, so there is no circle.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "backends/format/qcow2/qcow2.h"

static Qcow2Busy *find_overlap(Qcow2State *s, int64_t start, int64_t end)
{
    Qcow2Busy *first = NULL;
    for (Qcow2Busy *b = s->busy; b; b = b->next) {
        if (b->start < end && start < b->end && (!first || b->start < first->start)) {
            first = b;
        }
    }
    return first;
}

void coroutine_fn qcow2_busy_wait_locked(Qcow2State *s, int64_t offset, int64_t *bytes)
{
    for (;;) {
        int64_t start = qcow2_cluster_start(s, offset);
        Qcow2Busy *b = find_overlap(s, start, qcow2_cluster_end(s, offset + *bytes));
        if (!b) {
            return;
        }
        if (b->start > start) {
            *bytes = b->start - offset;
            return;
        }
        co_queue_wait(&b->waiters, &s->lock); /* b is gone when this returns */
    }
}

void qcow2_busy_begin_locked(Qcow2State *s, Qcow2Busy *b, int64_t start, int64_t end)
{
    *b = (Qcow2Busy){.start = start, .end = end, .next = s->busy};
    co_queue_init(&b->waiters);
    s->busy = b;
}

void qcow2_busy_end_locked(Qcow2State *s, Qcow2Busy *b)
{
    Qcow2Busy **p = &s->busy;
    while (*p != b) {
        p = &(*p)->next;
    }
    *p = b->next;
    co_queue_restart_all(&b->waiters);
    co_queue_destroy(&b->waiters);
}
