/*
 * The thread pool.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "aio-fixture.h"

#include <errno.h>
#include <semaphore.h>

typedef struct Jobs {
    GThread *own_thread;
    _Atomic unsigned run;
    unsigned done;
    unsigned cancelled;
    unsigned sum;
} Jobs;

static int add_one(void *opaque)
{
    Jobs *jobs = opaque;

    g_assert_false(g_thread_self() == jobs->own_thread);
    return (int)atomic_fetch_add(&jobs->run, 1);
}

static void job_done(void *opaque, int ret)
{
    Jobs *jobs = opaque;

    g_assert_true(g_thread_self() == jobs->own_thread);
    jobs->done++;
    if (ret == -ECANCELED) {
        jobs->cancelled++;
    } else {
        g_assert_cmpint(ret, >=, 0);
        jobs->sum += (unsigned)ret;
    }
}

static void pool_submit_many(AioContext *ctx)
{
    Jobs jobs = {.own_thread = g_thread_self()};
    unsigned n = aio_test_scaled(2000);

    for (unsigned i = 0; i < n; i++) {
        thread_pool_submit(add_one, &jobs, job_done, &jobs);
    }
    g_assert_cmpuint(jobs.done, ==, 0); /* never inside of the call */
    RUN_UNTIL(ctx, jobs.done == n);
    g_assert_cmpuint(jobs.sum, ==, n * (n - 1) / 2);
    g_assert_cmpuint(jobs.cancelled, ==, 0);
}

typedef struct Gate {
    sem_t open;
    _Atomic unsigned inside;
} Gate;

static int wait_at_gate(void *opaque)
{
    Gate *gate = opaque;

    atomic_fetch_add(&gate->inside, 1);
    while (sem_wait(&gate->open) < 0) {
    }
    return 0;
}

/* All 64 workers are made to block, so that the jobs behind them stay in the queue. */
static void pool_cancel(AioContext *ctx)
{
    enum { WORKERS = 64, QUEUED = 100 };
    Jobs jobs = {.own_thread = g_thread_self()};
    ThreadPoolJob *running[WORKERS], *queued[QUEUED];
    Gate gate = {.inside = 0};

    sem_init(&gate.open, 0, 0);
    for (int i = 0; i < WORKERS; i++) {
        running[i] = thread_pool_submit(wait_at_gate, &gate, job_done, &jobs);
    }
    while (atomic_load(&gate.inside) < WORKERS) {
        g_usleep(100);
    }
    for (int i = 0; i < QUEUED; i++) {
        queued[i] = thread_pool_submit(add_one, &jobs, job_done, &jobs);
    }
    for (int i = 0; i < WORKERS; i++) {
        g_assert_false(thread_pool_cancel(running[i]));
    }
    for (int i = 0; i < QUEUED; i += 2) {
        g_assert_true(thread_pool_cancel(queued[i]));
        g_assert_false(thread_pool_cancel(queued[i]));
    }
    g_assert_cmpuint(jobs.done, ==, 0);
    RUN_UNTIL(ctx, jobs.done == QUEUED / 2);
    g_assert_cmpuint(jobs.cancelled, ==, QUEUED / 2);
    g_assert_cmpuint(atomic_load(&gate.inside), ==, WORKERS);
    g_assert_cmpuint(atomic_load(&jobs.run), ==, 0);
    for (int i = 0; i < WORKERS; i++) {
        sem_post(&gate.open);
    }
    RUN_UNTIL(ctx, jobs.done == WORKERS + QUEUED);
    g_assert_cmpuint(atomic_load(&jobs.run), ==, QUEUED / 2);
    g_assert_cmpuint(jobs.cancelled, ==, QUEUED / 2);
    sem_destroy(&gate.open);
}

static void pool_entry(void *opaque)
{
    Jobs *jobs = opaque;

    for (unsigned i = 0; i < 100; i++) {
        g_assert_cmpint(thread_pool_co_run(add_one, jobs), ==, i);
    }
}

static void pool_coroutine(AioContext *ctx)
{
    Jobs jobs = {.own_thread = g_thread_self()};

    aio_context_run_coroutine(ctx, pool_entry, &jobs);
    /* Ended and started anew. */
    thread_pool_shutdown();
    jobs.run = 0;
    aio_context_run_coroutine(ctx, pool_entry, &jobs);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    aio_test_add("thread-pool/submit-many", pool_submit_many);
    aio_test_add("thread-pool/cancel", pool_cancel);
    aio_test_add("thread-pool/coroutine", pool_coroutine);
    return g_test_run();
}
