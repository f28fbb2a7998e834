/*
 * IoThread: a thread that runs one AioContext.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "aio/iothread.h"

#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/prctl.h>

#include "aio/aio-internal.h"
#include "util/error.h"
#include "util/thread.h"

struct IoThread {
    char *id;
    AioBackend backend;
    pthread_t thread;
    _Atomic bool stopping;

    /* Handed from the thread to iothread_new() under `lock`. */
    BgMutex lock;
    pthread_cond_t started_cond;
    bool started BG_GUARDED_BY(lock);
    AioContext *ctx;
    GError *error;
};

/* The ring belongs to the thread that makes it: so the context is made here. */
static bool start_loop(IoThread *t)
{
    AioContext *ctx = aio_context_new_for_use(t->id, t->backend, FDMON_OWN_THREAD, &t->error);

    if (ctx) {
        aio_context_set_current(ctx);
        aio_context_set_poll_max(ctx, IOTHREAD_POLL_DEFAULT_NS);
    }
    bg_mutex_lock(&t->lock);
    t->ctx = ctx;
    t->started = true;
    pthread_cond_signal(&t->started_cond);
    bg_mutex_unlock(&t->lock);
    return ctx != NULL;
}

static void *iothread_run(void *opaque)
{
    IoThread *t = opaque;

    if (!start_loop(t)) {
        return NULL;
    }
    AioContext *ctx = t->ctx;

    prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL); /* ns; the default of 50 us makes short timers late */
    while (!atomic_load(&t->stopping)) {
        aio_context_run_once(ctx, true);
    }
    /* What was queued before iothread_free() still runs. */
    while (aio_context_run_once(ctx, false)) {
    }
    aio_context_thread_exit(ctx);
    coroutine_pool_drain();
    return NULL;
}

static void wait_until_started(IoThread *t)
{
    bg_mutex_lock(&t->lock);
    while (!t->started) {
        pthread_cond_wait(&t->started_cond, &t->lock.m);
    }
    bg_mutex_unlock(&t->lock);
}

static int create_thread(IoThread *t, int cpu)
{
    pthread_attr_t attr;
    int ret = 0;

    pthread_attr_init(&attr);
    if (cpu >= 0) {
        cpu_set_t *cpus = CPU_ALLOC((size_t)cpu + 1);
        size_t size = CPU_ALLOC_SIZE((size_t)cpu + 1);

        CPU_ZERO_S(size, cpus);
        CPU_SET_S((size_t)cpu, size, cpus);
        ret = -pthread_attr_setaffinity_np(&attr, size, cpus);
        CPU_FREE(cpus);
    }
    if (ret == 0) {
        ret = bg_thread_create(&t->thread, &attr, t->id, iothread_run, t);
    }
    pthread_attr_destroy(&attr);
    return ret;
}

static void iothread_destroy(IoThread *t)
{
    pthread_cond_destroy(&t->started_cond);
    bg_mutex_destroy(&t->lock);
    g_clear_error(&t->error);
    g_free(t->id);
    g_free(t);
}

IoThread *iothread_new(const char *id, AioBackend backend, int cpu, GError **errp)
{
    IoThread *t = g_new0(IoThread, 1);

    t->id = g_strdup(id);
    t->backend = backend;
    bg_mutex_init(&t->lock);
    pthread_cond_init(&t->started_cond, NULL);
    int ret = create_thread(t, cpu);

    if (ret < 0) {
        if (cpu >= 0) {
            bg_error_set_errno(errp, -ret, "iothread '%s': cannot start a thread on CPU %d", id, cpu);
        } else {
            bg_error_set_errno(errp, -ret, "iothread '%s': cannot start a thread", id);
        }
        iothread_destroy(t);
        return NULL;
    }
    wait_until_started(t);
    if (!t->ctx) {
        pthread_join(t->thread, NULL);
        g_propagate_prefixed_error(errp, g_steal_pointer(&t->error), "iothread '%s': ", id);
        iothread_destroy(t);
        return NULL;
    }
    return t;
}

void iothread_free(IoThread *t)
{
    if (!t) {
        return;
    }
    atomic_store(&t->stopping, true);
    aio_context_notify(t->ctx);
    pthread_join(t->thread, NULL);
    aio_context_unref(t->ctx);
    iothread_destroy(t);
}

const char *iothread_id(const IoThread *t)
{
    return t->id;
}

AioContext *iothread_context(const IoThread *t)
{
    return t->ctx;
}
