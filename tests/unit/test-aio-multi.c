/*
 * Several threads: coroutines that move, CoMutex between contexts, iothreads.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "aio-fixture.h"

#include <errno.h>
#include <semaphore.h>
#include <unistd.h>

#include "coroutine/lock.h"

#define N_THREADS 4

typedef struct Crew {
    AioContext *main;
    IoThread *threads[N_THREADS];
    AioContext *ctx[N_THREADS];
    _Atomic unsigned finished;
} Crew;

static void crew_start(Crew *crew, AioContext *main)
{
    *crew = (Crew){.main = main};
    for (int i = 0; i < N_THREADS; i++) {
        g_autofree char *id = g_strdup_printf("io%d", i);

        crew->threads[i] = aio_test_iothread(id);
        crew->ctx[i] = iothread_context(crew->threads[i]);
        g_assert_cmpstr(iothread_id(crew->threads[i]), ==, id);
        g_assert_cmpstr(aio_context_name(crew->ctx[i]), ==, id);
    }
}

static void crew_stop(Crew *crew)
{
    for (int i = 0; i < N_THREADS; i++) {
        iothread_free(crew->threads[i]);
    }
}

static void crew_finished(Crew *crew)
{
    atomic_fetch_add(&crew->finished, 1);
    aio_context_notify(crew->main);
}

/* Run one coroutine for each thread, and wait for all. */
static void crew_run(Crew *crew, CoroutineEntry *entry, unsigned per_thread, void *opaque)
{
    atomic_store(&crew->finished, 0);
    for (unsigned i = 0; i < N_THREADS * per_thread; i++) {
        aio_co_enter(crew->ctx[i % N_THREADS], coroutine_create(entry, opaque));
    }
    RUN_UNTIL(crew->main, atomic_load(&crew->finished) == N_THREADS * per_thread);
}

/* ---- Coroutines in loops */

typedef struct Chain {
    Coroutine **co;
    unsigned n;
    unsigned started;
    unsigned finished;
} Chain;

/* Each one wakes the next and ends: none runs on top of another. */
static void chain_link(void *opaque)
{
    Chain *chain = opaque;
    unsigned me = chain->started++;

    coroutine_yield();
    g_assert_cmpuint(chain->finished, ==, me);
    if (me + 1 < chain->n) {
        aio_co_wake(chain->co[me + 1]);
        g_assert_cmpuint(chain->finished, ==, me); /* not before this one is out */
    }
    chain->finished++;
}

static void run_chain(AioContext *ctx)
{
    Chain chain = {.n = 2000};
    g_autofree Coroutine **co = g_new(Coroutine *, chain.n);

    chain.co = co;
    for (unsigned i = 0; i < chain.n; i++) {
        co[i] = coroutine_create(chain_link, &chain);
        aio_co_enter(ctx, co[i]);
    }
    g_assert_cmpuint(chain.started, ==, chain.n);
    g_assert_cmpuint(chain.finished, ==, 0);
    aio_co_wake(co[0]);
    aio_test_run_ready(ctx);
    g_assert_cmpuint(chain.finished, ==, chain.n);
}

static void queue_chaining(AioContext *ctx)
{
    for (unsigned i = aio_test_scaled(1); i > 0; i--) {
        run_chain(ctx);
    }
}

typedef struct Remote {
    AioContext *ctx;
    Coroutine *co;
    bool done;
} Remote;

static void remote_entry(void *opaque)
{
    Remote *r = opaque;

    g_assert_true(aio_context_current() == r->ctx);
    r->done = true;
}

static void *remote_thread(void *opaque)
{
    Remote *r = opaque;

    g_assert_null(aio_context_current());
    aio_co_enter(r->ctx, r->co);
    return NULL;
}

/* A thread without a loop starts a coroutine in one. */
static void worker_thread_co_enter(AioContext *ctx)
{
    Remote r = {.ctx = ctx};

    r.co = coroutine_create(remote_entry, &r);
    GThread *thread = g_thread_new("worker", remote_thread, &r);

    g_thread_join(thread);
    g_assert_false(r.done);
    aio_test_run_ready(ctx);
    g_assert_true(r.done);
}

static void *wake_thread(void *opaque)
{
    aio_co_wake(opaque);
    return NULL;
}

static void woken_entry(void *opaque)
{
    Remote *r = opaque;
    GThread *thread = g_thread_new("wake", wake_thread, coroutine_self());

    g_thread_join(thread); /* the wake-up comes before the yield */
    g_assert_false(r->done);
    coroutine_yield();
    g_assert_true(aio_context_current() == r->ctx);
    r->done = true;
}

static void wake_before_yield(AioContext *ctx)
{
    Remote r = {.ctx = ctx};

    aio_context_run_coroutine(ctx, woken_entry, &r);
    g_assert_true(r.done);
}

/* ---- multi/... */

static void multi_lifecycle(AioContext *ctx)
{
    for (unsigned i = aio_test_scaled(10); i > 0; i--) {
        Crew crew;
        _Atomic int dummy = 0;

        crew_start(&crew, ctx);
        if (i % 2) {
            aio_context_notify(crew.ctx[0]);
            atomic_fetch_add(&dummy, 1);
        }
        crew_stop(&crew);
    }
}

static unsigned hop_count;

static AioContext *random_context(Crew *crew)
{
    gint32 i = g_random_int_range(-1, N_THREADS);

    return i < 0 ? crew->main : crew->ctx[i];
}

static void hop(void *opaque)
{
    Crew *crew = opaque;

    for (unsigned i = 0; i < hop_count; i++) {
        AioContext *to = random_context(crew);

        aio_co_reschedule_self(to);
        g_assert_true(aio_context_current() == to);
        g_assert_true(coroutine_context(coroutine_self()) == to);
    }
    crew_finished(crew);
}

/* Coroutines that hop between contexts at random. */
static void multi_schedule(AioContext *ctx)
{
    Crew crew;

    crew_start(&crew, ctx);
    hop_count = aio_test_scaled(200);
    crew_run(&crew, hop, 16, &crew);
    crew_stop(&crew);
}

static int idle_job(void *opaque)
{
    return 0;
}

/* Between any two of: its own yields, timers, jobs, file I/O, moves. */
static void busy(void *opaque)
{
    Crew *crew = opaque;
    char c;
    struct iovec iov = {&c, 1};

    for (unsigned i = 0; i < hop_count; i++) {
        switch (g_random_int_range(0, 4)) {
        case 0:
            aio_co_reschedule_self(random_context(crew));
            break;
        case 1:
            aio_co_sleep_ns(g_random_int_range(0, 50000));
            break;
        case 2:
            g_assert_cmpint(thread_pool_co_run(idle_job, NULL), ==, 0);
            break;
        default:
            g_assert_cmpint(aio_co_preadv(-1, &iov, 1, 0, 0), ==, -EBADF);
        }
    }
    crew_finished(crew);
}

static void multi_mixed(AioContext *ctx)
{
    Crew crew;

    crew_start(&crew, ctx);
    hop_count = aio_test_scaled(50);
    crew_run(&crew, busy, 8, &crew);
    crew_stop(&crew);
}

typedef struct Thrown {
    Crew *crew;
    sem_t thrown;
    Coroutine *co;
    AioContext *to;
    bool over;
} Thrown;

/* Another thread schedules a coroutine elsewhere while it is still on its way into the yield. */
static void *thrower(void *opaque)
{
    Thrown *t = opaque;

    for (;;) {
        while (sem_wait(&t->thrown) < 0) {
        }
        if (t->over) {
            return NULL;
        }
        aio_co_schedule(t->to, t->co);
    }
}

static void thrown_entry(void *opaque)
{
    Thrown *t = opaque;

    t->co = coroutine_self();
    for (unsigned i = 0; i < hop_count; i++) {
        AioContext *to = random_context(t->crew);

        t->to = to;
        sem_post(&t->thrown);
        coroutine_yield();
        g_assert_true(aio_context_current() == to);
    }
    t->over = true;
    sem_post(&t->thrown);
    crew_finished(t->crew);
}

static void multi_schedule_by_others(AioContext *ctx)
{
    Crew crew;
    Thrown t = {.crew = &crew};

    crew_start(&crew, ctx);
    sem_init(&t.thrown, 0, 0);
    hop_count = aio_test_scaled(2000);
    GThread *thread = g_thread_new("thrower", thrower, &t);

    aio_co_enter(crew.ctx[0], coroutine_create(thrown_entry, &t));
    RUN_UNTIL(ctx, atomic_load(&crew.finished) == 1);
    g_thread_join(thread);
    sem_destroy(&t.thrown);
    crew_stop(&crew);
}

/* ---- CoMutex between contexts */

typedef struct Contended {
    Crew crew;
    CoMutex mutex;
    unsigned rounds;
    unsigned counter; /* under mutex; not atomic, so that TSan has something to say */
    bool inside;
} Contended;

static void contend(void *opaque)
{
    Contended *c = opaque;

    for (unsigned i = 0; i < c->rounds; i++) {
        co_mutex_lock(&c->mutex);
        g_assert_false(c->inside);
        c->inside = true;
        if (i % 64 == 0) {
            aio_co_sleep_ns(0); /* held across a yield */
        }
        c->counter++;
        c->inside = false;
        co_mutex_unlock(&c->mutex);
    }
    crew_finished(&c->crew);
}

static void multi_mutex_contended(AioContext *ctx)
{
    const unsigned per_thread[] = {1, 4};

    for (unsigned i = 0; i < G_N_ELEMENTS(per_thread); i++) {
        Contended c = {.rounds = aio_test_scaled(1000)};

        crew_start(&c.crew, ctx);
        co_mutex_init(&c.mutex);
        crew_run(&c.crew, contend, per_thread[i], &c);
        g_assert_cmpuint(c.counter, ==, N_THREADS * per_thread[i] * c.rounds);
        co_mutex_destroy(&c.mutex);
        crew_stop(&c.crew);
    }
}

typedef struct Line {
    Crew crew;
    CoMutex mutex;
    _Atomic unsigned queued;
    unsigned served;
} Line;

static void stand_in_line(void *opaque)
{
    Line *line = opaque;
    unsigned me = atomic_fetch_add(&line->queued, 1);

    co_mutex_lock(&line->mutex);
    g_assert_cmpuint(line->served, ==, me);
    line->served++;
    co_mutex_unlock(&line->mutex);
    crew_finished(&line->crew);
}

/* Locks in ways that the thread-safety analysis does not follow. */
static BG_NO_TSA void hold_while_they_queue(void *opaque)
{
    Line *line = opaque;
    unsigned n = 5 * N_THREADS;

    co_mutex_lock(&line->mutex);
    for (unsigned i = 0; i < n; i++) {
        aio_co_schedule(line->crew.ctx[i % N_THREADS], coroutine_create(stand_in_line, line));
        /* The holder and i + 1 waiters are counted. */
        while (atomic_load(&line->mutex.locked) != i + 2) {
            aio_co_sleep_ns(10000);
        }
    }
    g_assert_false(co_mutex_trylock(&line->mutex));
    co_mutex_unlock(&line->mutex);
    /* It went straight to the first in line: this one cannot get in between. */
    if (!co_mutex_trylock(&line->mutex)) {
        co_mutex_lock(&line->mutex);
    }
    g_assert_cmpuint(line->served, ==, n);
    co_mutex_unlock(&line->mutex);
}

static void multi_mutex_handoff(AioContext *ctx)
{
    for (unsigned i = aio_test_scaled(20); i > 0; i--) {
        Line line = {.queued = 0};

        crew_start(&line.crew, ctx);
        co_mutex_init(&line.mutex);
        aio_context_run_coroutine(ctx, hold_while_they_queue, &line);
        RUN_UNTIL(ctx, atomic_load(&line.crew.finished) == 5 * N_THREADS);
        co_mutex_destroy(&line.mutex);
        crew_stop(&line.crew);
    }
}

/* ---- CoQueue between threads */

typedef struct Mailbox {
    Crew crew;
    BgMutex lock;
    CoQueue queue;
    unsigned mail; /* under lock */
    unsigned each;
} Mailbox;

static void receive(void *opaque)
{
    Mailbox *box = opaque;

    for (unsigned i = 0; i < box->each; i++) {
        bg_mutex_lock(&box->lock);
        while (box->mail == 0) {
            co_queue_wait_locked(&box->queue, &box->lock);
        }
        box->mail--;
        bg_mutex_unlock(&box->lock);
    }
    crew_finished(&box->crew);
}

static void *postman(void *opaque)
{
    Mailbox *box = opaque;

    for (unsigned i = 0; i < box->each * N_THREADS * 2; i++) {
        bg_mutex_lock(&box->lock);
        box->mail++;
        co_queue_next(&box->queue); /* with the lock held: must not enter anybody */
        bg_mutex_unlock(&box->lock);
    }
    return NULL;
}

static void multi_queue(AioContext *ctx)
{
    Mailbox box = {.lock = BG_MUTEX_INIT, .each = aio_test_scaled(500)};

    crew_start(&box.crew, ctx);
    co_queue_init(&box.queue);
    GThread *thread = g_thread_new("postman", postman, &box);

    crew_run(&box.crew, receive, 2, &box);
    g_thread_join(thread);
    g_assert_cmpuint(box.mail, ==, 0);
    co_queue_destroy(&box.queue);
    crew_stop(&box.crew);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    aio_test_add("coroutine/queue-chaining", queue_chaining);
    aio_test_add("coroutine/worker-thread-co-enter", worker_thread_co_enter);
    aio_test_add("coroutine/wake-before-yield", wake_before_yield);
    aio_test_add("multi/lifecycle", multi_lifecycle);
    aio_test_add("multi/schedule", multi_schedule);
    aio_test_add("multi/schedule-by-others", multi_schedule_by_others);
    aio_test_add("multi/mixed", multi_mixed);
    aio_test_add("multi/mutex/contended", multi_mutex_contended);
    aio_test_add("multi/mutex/handoff", multi_mutex_handoff);
    aio_test_add("multi/queue", multi_queue);
    return g_test_run();
}
