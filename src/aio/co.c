/*
 * Coroutines and contexts: scheduling, waking, moving, sleeping.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "aio/aio.h"

#include <sched.h>

#include "aio/aio-internal.h"
#include "coroutine/coroutine-internal.h"
#include "util/log.h"

bool aio_co_work_run(AioWork *work)
{
    Coroutine *co = bg_container_of(work, Coroutine, work);

    if (bg_unlikely(!coroutine_can_enter(co))) {
        /* Scheduled here by others just before it yields in another thread: look again in the next round. */
        sched_yield();
        aio_work_push(aio_context_current(), work);
        return false;
    }
    coroutine_clear_scheduled(co);
    coroutine_enter(co);
    return true;
}

void aio_co_schedule(AioContext *ctx, Coroutine *co)
{
    coroutine_mark_scheduled(co);
    if (co_thread()->current == co) {
        co->schedule_to = ctx; /* queued once it has yielded: no other thread may find it half-way */
    } else {
        aio_work_push(ctx, &co->work);
    }
}

void aio_co_wake(Coroutine *co)
{
    AioContext *ctx = coroutine_context(co);
    CoThread *t = co_thread();

    if (bg_unlikely(!ctx)) {
        bg_fatal("internal error: a coroutine was woken that never ran in an event loop");
    }
    if (t->context != ctx) {
        coroutine_mark_scheduled(co);
        aio_work_push(ctx, &co->work);
    } else if (t->current) {
        coroutine_mark_scheduled(co);
        coroutine_ready(t, co);
    } else {
        coroutine_enter(co);
    }
}

void aio_co_enter(AioContext *ctx, Coroutine *co)
{
    if (aio_context_current() == ctx) {
        coroutine_enter(co);
    } else {
        aio_co_schedule(ctx, co);
    }
}

void aio_co_reschedule_self(AioContext *ctx)
{
    if (aio_context_current() != ctx) {
        aio_co_schedule(ctx, coroutine_self());
        coroutine_yield();
    }
}

static void sleep_over(void *opaque)
{
    aio_co_wake(opaque);
}

void aio_co_sleep_ns(int64_t ns)
{
    AioTimer timer;

    aio_timer_init(&timer, aio_context_current(), sleep_over, coroutine_self());
    aio_timer_mod(&timer, aio_clock_ns() + MAX(ns, 0));
    coroutine_yield();
}

/* ---- A coroutine run to its end from the top level */

typedef struct RunState {
    AioContext *ctx;
    CoroutineEntry *entry;
    void *opaque;
    _Atomic bool done;
} RunState;

static void run_entry(void *opaque)
{
    RunState *run = opaque;
    AioContext *ctx = aio_context_ref(run->ctx);

    run->entry(run->opaque);
    /* It may have moved to another thread: `run` is gone as soon as `done` is seen there. */
    atomic_store(&run->done, true);
    aio_context_notify(ctx);
    aio_context_unref(ctx);
}

void aio_context_run_coroutine(AioContext *ctx, CoroutineEntry *entry, void *opaque)
{
    RunState run = {.ctx = ctx, .entry = entry, .opaque = opaque};

    /* Checked before the coroutine runs; the rounds below check for themselves. */
    aio_context_enter_round(ctx);
    aio_context_leave_round(ctx);
    coroutine_enter(coroutine_create(run_entry, &run));
    while (!atomic_load(&run.done)) {
        aio_context_run_once(ctx, true);
    }
}
