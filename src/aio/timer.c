/*
 * Timers of a context: a binary heap by expiry.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "aio/aio.h"

#include <time.h>

#include "aio/aio-internal.h"

int64_t aio_clock_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* ---- The heap: timers[0] expires first, no timer before its parent (i - 1) / 2. */

static void heap_put_locked(AioContext *ctx, int i, AioTimer *timer) BG_REQUIRES(ctx->timer_lock)
{
    ctx->timers[i] = timer;
    timer->heap_index = i;
}

static void heap_rise_locked(AioContext *ctx, int i, AioTimer *timer) BG_REQUIRES(ctx->timer_lock)
{
    while (i > 0) {
        int parent = (i - 1) / 2;

        if (ctx->timers[parent]->expire_ns <= timer->expire_ns) {
            break;
        }
        heap_put_locked(ctx, i, ctx->timers[parent]);
        i = parent;
    }
    heap_put_locked(ctx, i, timer);
}

static void heap_sink_locked(AioContext *ctx, int i, AioTimer *timer) BG_REQUIRES(ctx->timer_lock)
{
    for (;;) {
        int child = 2 * i + 1;

        if (child + 1 < ctx->n_timers && ctx->timers[child + 1]->expire_ns < ctx->timers[child]->expire_ns) {
            child++;
        }
        if (child >= ctx->n_timers || timer->expire_ns <= ctx->timers[child]->expire_ns) {
            break;
        }
        heap_put_locked(ctx, i, ctx->timers[child]);
        i = child;
    }
    heap_put_locked(ctx, i, timer);
}

static void heap_remove_locked(AioContext *ctx, AioTimer *timer) BG_REQUIRES(ctx->timer_lock)
{
    int i = timer->heap_index;
    AioTimer *last = ctx->timers[--ctx->n_timers];

    timer->heap_index = -1;
    if (last == timer) {
        return;
    }
    heap_sink_locked(ctx, i, last);
    if (last->heap_index == i) {
        heap_rise_locked(ctx, i, last);
    }
}

static void heap_insert_locked(AioContext *ctx, AioTimer *timer) BG_REQUIRES(ctx->timer_lock)
{
    if (ctx->n_timers == ctx->max_timers) {
        ctx->max_timers = MAX(16, ctx->max_timers * 2);
        ctx->timers = g_renew(AioTimer *, ctx->timers, ctx->max_timers);
    }
    heap_rise_locked(ctx, ctx->n_timers++, timer);
}

/* Returns whether the next expiry came nearer. */
static bool update_next_locked(AioContext *ctx) BG_REQUIRES(ctx->timer_lock)
{
    int64_t old = atomic_load_explicit(&ctx->next_expire_ns, memory_order_relaxed);
    int64_t next = ctx->n_timers > 0 ? ctx->timers[0]->expire_ns : INT64_MAX;

    /* Sequentially consistent: stored before aio_context_notify() looks whether the loop sleeps. */
    atomic_store(&ctx->next_expire_ns, next);
    return next < old;
}

/* ---- Interface */

void aio_timer_init(AioTimer *timer, AioContext *ctx, AioHandler *cb, void *opaque)
{
    *timer = (AioTimer){.ctx = ctx, .cb = cb, .opaque = opaque, .heap_index = -1};
}

void aio_timer_mod(AioTimer *timer, int64_t expire_ns)
{
    AioContext *ctx = timer->ctx;
    bool own_thread = aio_context_current() == ctx;

    if (!own_thread) {
        aio_context_ref(ctx); /* the timer may fire, and ctx be freed, before the notify below */
    }
    bg_mutex_lock(&ctx->timer_lock);
    if (timer->heap_index >= 0) {
        heap_remove_locked(ctx, timer);
    }
    /* INT64_MAX stands for "no timer" in next_expire_ns, and is 292 years away in any case. */
    timer->expire_ns = MIN(expire_ns, INT64_MAX - 1);
    heap_insert_locked(ctx, timer);
    bool sooner = update_next_locked(ctx);

    bg_mutex_unlock(&ctx->timer_lock);
    if (!own_thread) {
        if (sooner) {
            aio_context_notify(ctx);
        }
        aio_context_unref(ctx);
    }
}

void aio_timer_del(AioTimer *timer)
{
    AioContext *ctx = timer->ctx;

    bg_mutex_lock(&ctx->timer_lock);
    if (timer->heap_index >= 0) {
        heap_remove_locked(ctx, timer);
        update_next_locked(ctx);
    }
    bg_mutex_unlock(&ctx->timer_lock);
}

bool aio_timer_pending(AioTimer *timer)
{
    bg_mutex_lock(&timer->ctx->timer_lock);
    bool pending = timer->heap_index >= 0;

    bg_mutex_unlock(&timer->ctx->timer_lock);
    return pending;
}

/* Take the first timer out if it has expired; its callback and argument by copy: it may be freed any time. */
static bool pop_expired(AioContext *ctx, int64_t now_ns, AioHandler **cb, void **opaque)
{
    bool expired = false;

    bg_mutex_lock(&ctx->timer_lock);
    if (ctx->n_timers > 0 && ctx->timers[0]->expire_ns <= now_ns) {
        AioTimer *timer = ctx->timers[0];

        *cb = timer->cb;
        *opaque = timer->opaque;
        heap_remove_locked(ctx, timer);
        update_next_locked(ctx);
        expired = true;
    }
    bg_mutex_unlock(&ctx->timer_lock);
    return expired;
}

static int count_timers(AioContext *ctx)
{
    bg_mutex_lock(&ctx->timer_lock);
    int n = ctx->n_timers;

    bg_mutex_unlock(&ctx->timer_lock);
    return n;
}

bool aio_timers_run(AioContext *ctx)
{
    bool progress = false;
    AioHandler *cb;
    void *opaque;

    if (atomic_load_explicit(&ctx->next_expire_ns, memory_order_relaxed) == INT64_MAX) {
        return false;
    }
    int64_t now_ns = aio_clock_ns();

    /* A callback that arms a timer in the past gets it in the next round: hence the limit. */
    for (int left = count_timers(ctx); left > 0 && pop_expired(ctx, now_ns, &cb, &opaque); left--) {
        cb(opaque);
        progress = true;
    }
    return progress;
}
