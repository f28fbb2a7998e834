/*
 * qcow2: tables that nobody has used for a while leave the caches.
 *
 *   IDLE --co_open--> WAITING --timer--> CLEANING --done--> WAITING, or IDLE in a drained section
 *   WAITING --drain_begin, co_close--> IDLE --drain_end--> WAITING
 *
 * CLEANING counts as a request in flight. All in the main thread.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "backends/format/qcow2/qcow2.h"

static void wait_for_next(Qcow2State *s)
{
    if (s->clean_interval_ns && !s->clean_paused) {
        aio_timer_mod(&s->clean_timer, aio_clock_ns() + s->clean_interval_ns);
    }
}

static void coroutine_fn clean(void *opaque)
{
    Qcow2State *s = opaque;
    co_mutex_lock(&s->lock);
    qcow2_cache_clean(&s->l2_cache);
    qcow2_cache_clean(&s->refcount_cache);
    co_mutex_unlock(&s->lock);
    wait_for_next(s);
    block_node_dec_in_flight(s->node);
}

static void timer_expired(void *opaque)
{
    Qcow2State *s = opaque;
    block_node_inc_in_flight(s->node);
    aio_co_enter(block_graph_main_context(s->node->graph), coroutine_create(clean, s));
}

void qcow2_clean_start(Qcow2State *s)
{
    aio_timer_init(&s->clean_timer, block_graph_main_context(s->node->graph), timer_expired, s);
    wait_for_next(s);
}

void qcow2_clean_stop(Qcow2State *s)
{
    aio_timer_del(&s->clean_timer);
}

void qcow2_drain_begin(BlockNode *node)
{
    Qcow2State *s = node->opaque;
    s->clean_paused = true;
    qcow2_clean_stop(s);
}

void qcow2_drain_end(BlockNode *node)
{
    Qcow2State *s = node->opaque;
    s->clean_paused = false;
    wait_for_next(s);
}
