/*
 * ThreadPool: worker threads for blocking calls.
 *
 * A job:   QUEUED --worker takes it--> RUNNING --func returned--> FINISHED --loop--> done() called
 *          QUEUED --thread_pool_cancel()--------------------------> FINISHED
 *
 * A finished job travels to its context as a node of the context's work list; nobody but the context's
 * thread touches it after that. An idle worker waits for pool.work and ends after a while.
 * A thread that has ended is joined by the next one to end, or by thread_pool_shutdown().
 *
 * Lock order: pool.lock is innermost and is not held while a job runs.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "aio/thread-pool.h"

#include <errno.h>
#include <time.h>

#include "aio/aio-internal.h"
#include "util/log.h"
#include "util/thread.h"

#define MAX_THREADS  64
#define IDLE_SECONDS 10

typedef enum JobState {
    JOB_QUEUED,
    JOB_RUNNING,
    JOB_FINISHED,
} JobState;

struct ThreadPoolJob {
    AioWork work;
    AioContext *ctx; /* a reference: a job in flight keeps its context */
    ThreadPoolFunc *func;
    void *arg;
    ThreadPoolCompletion *done;
    void *opaque;
    int ret;
    bool allocated;
    JobState state;             /* guarded by pool.lock */
    ThreadPoolJob *prev, *next; /* guarded by pool.lock */
};

static struct {
    BgMutex lock;
    pthread_once_t once;
    pthread_cond_t work; /* a job was queued, or `stopping` */
    pthread_cond_t gone; /* a worker has ended */
    ThreadPoolJob *first BG_GUARDED_BY(lock);
    ThreadPoolJob *last BG_GUARDED_BY(lock);
    unsigned n_queued BG_GUARDED_BY(lock);
    unsigned n_idle BG_GUARDED_BY(lock); /* also those signalled but not yet awake */
    unsigned n_threads BG_GUARDED_BY(lock);
    bool stopping BG_GUARDED_BY(lock);
    bool has_ended BG_GUARDED_BY(lock);
    pthread_t ended BG_GUARDED_BY(lock); /* to be joined */
} pool = {.lock = BG_MUTEX_INIT, .once = PTHREAD_ONCE_INIT};

static void pool_init(void)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&pool.work, &attr);
    pthread_cond_init(&pool.gone, &attr);
    pthread_condattr_destroy(&attr);
}

/* ---- Queue */

static void queue_append_locked(ThreadPoolJob *job) BG_REQUIRES(pool.lock)
{
    job->state = JOB_QUEUED;
    job->prev = pool.last;
    job->next = NULL;
    *(pool.last ? &pool.last->next : &pool.first) = job;
    pool.last = job;
    pool.n_queued++;
}

static void queue_remove_locked(ThreadPoolJob *job) BG_REQUIRES(pool.lock)
{
    *(job->prev ? &job->prev->next : &pool.first) = job->next;
    *(job->next ? &job->next->prev : &pool.last) = job->prev;
    pool.n_queued--;
}

/* ---- Completion */

static bool job_completed(AioWork *work)
{
    ThreadPoolJob *job = bg_container_of(work, ThreadPoolJob, work);
    ThreadPoolCompletion *done = job->done;
    AioContext *ctx = job->ctx;
    bool allocated = job->allocated; /* one on a coroutine's stack is gone after done() */

    done(job->opaque, job->ret);
    if (allocated) {
        g_free(job);
    }
    aio_context_unref(ctx);
    return true;
}

static void job_finish(ThreadPoolJob *job, int ret)
{
    job->ret = ret;
    aio_work_push(job->ctx, &job->work);
}

/* ---- Workers */

/* Wait for a job. NULL: none came for long, or the pool stops. */
static ThreadPoolJob *next_job_locked(void) BG_REQUIRES(pool.lock)
{
    struct timespec until;
    int errnum = 0;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += IDLE_SECONDS;
    while (!pool.first && !pool.stopping && errnum != ETIMEDOUT) {
        pool.n_idle++;
        errnum = pthread_cond_timedwait(&pool.work, &pool.lock.m, &until);
        pool.n_idle--;
    }
    ThreadPoolJob *job = pool.first;

    if (job) {
        queue_remove_locked(job);
        job->state = JOB_RUNNING;
    }
    return job;
}

static void run_job(ThreadPoolJob *job)
{
    int ret = job->func(job->arg);

    bg_mutex_lock(&pool.lock);
    job->state = JOB_FINISHED; /* before the loop may free it */
    bg_mutex_unlock(&pool.lock);
    job_finish(job, ret);
}

static void *worker_run(void *opaque)
{
    ThreadPoolJob *job;
    pthread_t predecessor;
    bool has_predecessor;

    bg_mutex_lock(&pool.lock);
    while ((job = next_job_locked())) {
        bg_mutex_unlock(&pool.lock);
        run_job(job);
        bg_mutex_lock(&pool.lock);
    }
    predecessor = pool.ended;
    has_predecessor = pool.has_ended;
    pool.ended = pthread_self();
    pool.has_ended = true;
    pool.n_threads--;
    pthread_cond_signal(&pool.gone);
    bg_mutex_unlock(&pool.lock);
    if (has_predecessor) {
        pthread_join(predecessor, NULL);
    }
    return NULL;
}

/* One more worker where all are busy. Returns false where there is none at all and none can be started. */
static bool ensure_worker_locked(void) BG_REQUIRES(pool.lock)
{
    pthread_t thread;

    if (pool.n_queued <= pool.n_idle || pool.n_threads >= MAX_THREADS) {
        return true;
    }
    int ret = bg_thread_create(&thread, NULL, "worker", worker_run, NULL);

    if (ret == 0) {
        pool.n_threads++;
    }
    return pool.n_threads > 0;
}

/* ---- Interface */

static void submit(ThreadPoolJob *job)
{
    pthread_once(&pool.once, pool_init);
    job->work.run = job_completed;
    job->ctx = aio_context_current();
    if (bg_unlikely(!job->ctx)) {
        bg_fatal("internal error: a thread without event loop submitted to the thread pool");
    }
    aio_context_ref(job->ctx);
    bg_mutex_lock(&pool.lock);
    queue_append_locked(job);
    bool accepted = ensure_worker_locked();

    if (accepted) {
        pthread_cond_signal(&pool.work);
    } else {
        queue_remove_locked(job);
        job->state = JOB_FINISHED;
    }
    bg_mutex_unlock(&pool.lock);
    if (!accepted) {
        job_finish(job, -ENOMEM);
    }
}

ThreadPoolJob *thread_pool_submit(ThreadPoolFunc *func, void *arg, ThreadPoolCompletion *done, void *opaque)
{
    ThreadPoolJob *job = g_new(ThreadPoolJob, 1);

    *job = (ThreadPoolJob){.func = func, .arg = arg, .done = done, .opaque = opaque, .allocated = true};
    submit(job);
    return job;
}

bool thread_pool_cancel(ThreadPoolJob *job)
{
    bg_mutex_lock(&pool.lock);
    bool queued = job->state == JOB_QUEUED;

    if (queued) {
        queue_remove_locked(job);
        job->state = JOB_FINISHED;
    }
    bg_mutex_unlock(&pool.lock);
    if (queued) {
        job_finish(job, -ECANCELED);
    }
    return queued;
}

typedef struct CoRun {
    Coroutine *co;
    int ret;
} CoRun;

static void co_run_done(void *opaque, int ret)
{
    CoRun *run = opaque;

    run->ret = ret;
    aio_co_wake(run->co);
}

int thread_pool_co_run(ThreadPoolFunc *func, void *arg)
{
    CoRun run = {.co = coroutine_self()};
    ThreadPoolJob job = {.func = func, .arg = arg, .done = co_run_done, .opaque = &run};

    submit(&job);
    coroutine_yield();
    return run.ret;
}

void thread_pool_shutdown(void)
{
    pthread_once(&pool.once, pool_init);
    bg_mutex_lock(&pool.lock);
    pool.stopping = true;
    pthread_cond_broadcast(&pool.work);
    while (pool.n_threads > 0) {
        pthread_cond_wait(&pool.gone, &pool.lock.m);
    }
    bool has_ended = pool.has_ended;
    pthread_t ended = pool.ended;

    pool.has_ended = false;
    pool.stopping = false;
    bg_mutex_unlock(&pool.lock);
    if (has_ended) {
        pthread_join(ended, NULL); /* which has joined its predecessor, and so on */
    }
}
