/*
 * Busy polling before the loop sleeps.
 *
 * To put a thread to sleep and wake it costs more than many a request: where the next event comes within
 * microseconds, the loop looks for it a little while instead. It learns by what its waits have been like:
 *
 *   wait                               | score (0 to SCORE_MAX)
 *   -----------------------------------+------------------------
 *   short: at most 2 * poll_max_ns     | + 1
 *   longer                             | - LONG_WAIT_COSTS
 *
 * and polls, for at most poll_max_ns, while the score is SCORE_POLLS or more. A sleep that lasts poll_max_ns
 * seems about twice as long, as the wake-up is part of it. A loop without traffic has long waits, and so uses
 * no CPU.
 *
 * Whoever polls takes a CPU from the threads that would bring the next event: never more loops poll at a time
 * than half of the CPUs, and none where there is one CPU.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <sched.h>

#include "aio/aio-internal.h"

#define SCORE_POLLS     4
#define SCORE_MAX       8
#define LONG_WAIT_COSTS 3

static _Atomic int n_polling;

static int max_polling(void)
{
    static _Atomic int cached = -1;
    int n = atomic_load_explicit(&cached, memory_order_relaxed);

    if (bg_unlikely(n < 0)) {
        cpu_set_t set;

        n = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) / 2 : 0;
        atomic_store_explicit(&cached, n, memory_order_relaxed);
    }
    return n;
}

static bool something_came(AioContext *ctx)
{
    return ctx->monitor->ops->ready(ctx->monitor) ||
           atomic_load_explicit(&ctx->wake_state, memory_order_relaxed) == AIO_NOTIFIED;
}

/* Until something came or `until_ns`; when that was. */
static int64_t spin(AioContext *ctx, int64_t now_ns, int64_t until_ns)
{
    while (!something_came(ctx) && now_ns < until_ns) {
        bg_cpu_relax();
        now_ns = aio_clock_ns();
    }
    return now_ns;
}

int64_t aio_poll_before_wait(AioContext *ctx, int64_t timeout_ns)
{
    int64_t max_ns = atomic_load_explicit(&ctx->poll_max_ns, memory_order_relaxed);

    ctx->wait_started_ns = 0;
    if (timeout_ns == 0 || max_ns == 0 || !ctx->monitor->ops->ready) {
        return timeout_ns;
    }
    ctx->wait_started_ns = aio_clock_ns();
    if (ctx->poll_score < SCORE_POLLS) {
        return timeout_ns;
    }
    int64_t spent_ns = 0;

    if (atomic_fetch_add_explicit(&n_polling, 1, memory_order_relaxed) < max_polling() &&
        !ctx->monitor->ops->flush(ctx->monitor)) {
        int64_t span_ns = timeout_ns < 0 ? max_ns : MIN(timeout_ns, max_ns);

        spent_ns = spin(ctx, ctx->wait_started_ns, ctx->wait_started_ns + span_ns) - ctx->wait_started_ns;
        /* What is beyond, the thread was not running. */
        ctx->polled_ns += MIN(spent_ns, span_ns);
    }
    atomic_fetch_sub_explicit(&n_polling, 1, memory_order_relaxed);
    return timeout_ns < 0 ? timeout_ns : MAX(timeout_ns - spent_ns, 0);
}

void aio_poll_after_wait(AioContext *ctx)
{
    if (ctx->wait_started_ns == 0) {
        return;
    }
    int64_t max_ns = atomic_load_explicit(&ctx->poll_max_ns, memory_order_relaxed);

    if (aio_clock_ns() - ctx->wait_started_ns <= 2 * max_ns) {
        ctx->poll_score = MIN(ctx->poll_score + 1, SCORE_MAX);
    } else {
        ctx->poll_score = MAX(ctx->poll_score - LONG_WAIT_COSTS, 0);
    }
}

void aio_context_set_poll_max(AioContext *ctx, int64_t ns)
{
    atomic_store_explicit(&ctx->poll_max_ns, ns, memory_order_relaxed);
}

int64_t aio_context_polled_ns(const AioContext *ctx)
{
    return ctx->polled_ns;
}
