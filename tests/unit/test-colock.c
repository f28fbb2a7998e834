/*
 * CoMutex, CoQueue and CoRwlock among the coroutines of one thread: who gets in, and in what order.
 * CoRwlock among several threads. (The others among several threads: test-aio-multi.c.)
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "aio-fixture.h"

#include <unistd.h>

#include "coroutine/lock.h"

/* ---- CoMutex */

typedef struct MutexTest {
    CoMutex mutex;
    GString *log;
} MutexTest;

typedef struct Locker {
    MutexTest *test;
    char name;
    Coroutine *co;
} Locker;

/* Lower case: waits. Upper case: has it. '-': gives it up. */
static void lock_and_hold(void *opaque)
{
    Locker *l = opaque;

    g_string_append_c(l->test->log, l->name);
    co_mutex_lock(&l->test->mutex);
    g_string_append_c(l->test->log, g_ascii_toupper(l->name));
    coroutine_yield();
    g_string_append_c(l->test->log, '-');
    co_mutex_unlock(&l->test->mutex);
}

static void co_mutex(AioContext *ctx)
{
    MutexTest test = {.log = g_string_new(NULL)};
    Locker l[3];

    co_mutex_init(&test.mutex);
    for (int i = 0; i < 3; i++) {
        l[i] = (Locker){&test, (char)('a' + i), NULL};
        l[i].co = coroutine_create(lock_and_hold, &l[i]);
        coroutine_enter(l[i].co);
    }
    g_assert_cmpstr(test.log->str, ==, "aAbc");
    coroutine_enter(l[0].co); /* on its end the next one runs, handed the lock */
    g_assert_cmpstr(test.log->str, ==, "aAbc-B");
    coroutine_enter(l[1].co);
    coroutine_enter(l[2].co);
    g_assert_cmpstr(test.log->str, ==, "aAbc-B-C-");
    co_mutex_destroy(&test.mutex);
    g_string_free(test.log, TRUE);
}

static BG_NO_TSA void try_lock(void *opaque)
{
    CoMutex *m = opaque;

    g_assert_true(co_mutex_trylock(m));
    g_assert_false(co_mutex_trylock(m));
    co_mutex_unlock(m);
    g_assert_true(co_mutex_trylock(m));
    co_mutex_unlock(m);
}

static void co_mutex_try(AioContext *ctx)
{
    CoMutex m;

    co_mutex_init(&m);
    coroutine_enter(coroutine_create(try_lock, &m));
    co_mutex_destroy(&m);
}

static BG_NO_TSA void lock_twice(void *opaque)
{
    co_mutex_lock(opaque);
    co_mutex_lock(opaque);
}

static void co_mutex_recursive(AioContext *ctx)
{
    CoMutex m;

    co_mutex_init(&m);
    EXPECT_ABORT(coroutine_enter(coroutine_create(lock_twice, &m)), "*locked a CoMutex that it holds*");
    co_mutex_destroy(&m);
}

static BG_NO_TSA void unlock_free(void *opaque)
{
    co_mutex_unlock(opaque);
}

static void co_mutex_not_held(AioContext *ctx)
{
    CoMutex m;

    co_mutex_init(&m);
    EXPECT_ABORT(coroutine_enter(coroutine_create(unlock_free, &m)), "*unlocked by another coroutine*");
    co_mutex_destroy(&m);
}

/* ---- CoQueue */

typedef struct QueueTest {
    CoQueue queue;
    CoMutex mutex;
    GString *log;
    char next_name;
} QueueTest;

static BG_NO_TSA void wait_in_queue(void *opaque)
{
    QueueTest *test = opaque;
    char name = test->next_name++;

    co_mutex_lock(&test->mutex);
    co_queue_wait(&test->queue, &test->mutex);
    g_assert_false(co_mutex_trylock(&test->mutex)); /* it is held again */
    g_string_append_c(test->log, name);
    co_mutex_unlock(&test->mutex);
}

static void wake_all(void *opaque)
{
    QueueTest *test = opaque;

    g_assert_cmpuint(co_queue_restart_all(&test->queue), ==, 3);
    g_string_append_c(test->log, '|'); /* they run when this one is out */
}

static void co_queue(AioContext *ctx)
{
    QueueTest test = {.log = g_string_new(NULL), .next_name = 'a'};

    co_queue_init(&test.queue);
    co_mutex_init(&test.mutex);
    g_assert_true(co_queue_empty(&test.queue));
    g_assert_false(co_queue_next(&test.queue));
    g_assert_cmpuint(co_queue_restart_all(&test.queue), ==, 0);
    for (int i = 0; i < 5; i++) {
        coroutine_enter(coroutine_create(wait_in_queue, &test));
    }
    g_assert_false(co_queue_empty(&test.queue));
    g_assert_true(co_queue_next(&test.queue));
    g_assert_true(co_queue_next(&test.queue));
    g_assert_cmpstr(test.log->str, ==, ""); /* from outside of coroutines: in the loop */
    aio_test_run_ready(ctx);
    g_assert_cmpstr(test.log->str, ==, "ab");
    coroutine_enter(coroutine_create(wake_all, &test));
    g_assert_cmpstr(test.log->str, ==, "ab|cde");
    g_assert_true(co_queue_empty(&test.queue));
    co_queue_destroy(&test.queue);
    co_mutex_destroy(&test.mutex);
    g_string_free(test.log, TRUE);
}

/* ---- CoRwlock
 *
 * An actor does one step each time it is entered: r rdlock, w wrlock, u upgrade, d downgrade, - unlock.
 * The log shows a step when it is through, with the actor's number before it.
 */

typedef struct Actor {
    CoRwlock *lock;
    GString *log;
    int number;
    const char *steps;
    Coroutine *co;
    bool waiting; /* inside of a step */
} Actor;

static void actor_step(Actor *a, char step)
{
    switch (step) {
    case 'r':
        co_rwlock_rdlock(a->lock);
        break;
    case 'w':
        co_rwlock_wrlock(a->lock);
        break;
    case 'u':
        co_rwlock_upgrade(a->lock);
        break;
    case 'd':
        co_rwlock_downgrade(a->lock);
        break;
    default:
        co_rwlock_unlock(a->lock);
    }
}

static void act(void *opaque)
{
    Actor *a = opaque;

    for (const char *step = a->steps; *step; step++) {
        a->waiting = true;
        actor_step(a, *step);
        a->waiting = false;
        g_string_append_printf(a->log, "%d%c", a->number, *step);
        if (step[1]) {
            coroutine_yield();
        }
    }
}

/*
 * Let actors with these steps act in the order of `schedule` (digits); compare the log. An actor that waits
 * is not entered again: the lock wakes it.
 */
static void check_rwlock(const char *const *steps, const char *schedule, const char *expected)
{
    g_autoptr(GString) log = g_string_new(NULL);
    CoRwlock lock;
    Actor actors[4];
    int n = 0;

    co_rwlock_init(&lock);
    for (; steps[n]; n++) {
        actors[n] = (Actor){&lock, log, n, steps[n], NULL, false};
        actors[n].co = coroutine_create(act, &actors[n]);
    }
    for (; *schedule; schedule++) {
        Actor *a = &actors[*schedule - '0'];

        g_assert_false(a->waiting);
        coroutine_enter(a->co);
        g_string_append_c(log, ' ');
    }
    g_assert_cmpstr(log->str, ==, expected);
    co_rwlock_destroy(&lock);
}

#define STEPS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void co_rwlock(AioContext *ctx)
{
    /* Readers share. */
    check_rwlock(STEPS("r-", "r-"), "0101", "0r 1r 0- 1- ");
    /* A writer waits for all readers, and keeps later ones out until it is through. */
    check_rwlock(STEPS("r-", "r-", "w-", "r-"), "01230123", "0r 1r   0- 1-2w 2-3r 3- ");
    /* Writers take turns, in order; readers behind go together. */
    check_rwlock(STEPS("w-", "w-", "r-", "r-"), "01230123", "0w    0-1w 1-2r3r 2- 3- ");
}

static void co_rwlock_upgrade_test(AioContext *ctx)
{
    /* Alone: at once. */
    check_rwlock(STEPS("ru-"), "000", "0r 0u 0- ");
    /* With another reader: when that one is out. */
    check_rwlock(STEPS("ru-", "r-"), "01010", "0r 1r  1-0u 0- ");
    /* Behind a writer that came first: its share goes, the writer runs, then the upgrade. */
    check_rwlock(STEPS("ru-", "w-"), "01010", "0r  1w 1-0u 0- ");
    /* Two upgrades of readers: one after the other, no deadlock. */
    check_rwlock(STEPS("ru-", "ru-"), "010101", "0r 1r  0u 0-1u 1- ");
}

static void co_rwlock_downgrade_test(AioContext *ctx)
{
    /* Readers in line come along. */
    check_rwlock(STEPS("wd-", "r-", "r-"), "0120120", "0w   0d1r2r 1- 2- 0- ");
}

static void double_unlock(void *opaque)
{
    co_rwlock_rdlock(opaque);
    co_rwlock_unlock(opaque);
    co_rwlock_unlock(opaque);
}

static void co_rwlock_not_held(AioContext *ctx)
{
    CoRwlock lock;

    co_rwlock_init(&lock);
    EXPECT_ABORT(coroutine_enter(coroutine_create(double_unlock, &lock)), "*CoRwlock was released*");
    co_rwlock_destroy(&lock);
}

/* ---- CoRwlock, several threads */

#define N_THREADS      4
#define N_VISITORS     16
#define VISITOR_ROUNDS 500

/* Both numbers change under the lock only, and are equal when nobody has it for writing. */
typedef struct SharedPair {
    AioContext *main;
    CoRwlock lock;
    unsigned a, b;
    _Atomic unsigned writes, finished;
} SharedPair;

typedef struct Visitor {
    SharedPair *pair;
    uint32_t seed;
} Visitor;

static void pair_check(SharedPair *pair, bool linger)
{
    unsigned a = pair->a;

    g_assert_cmpuint(a, ==, pair->b);
    if (linger) {
        aio_co_sleep_ns(1000);
    }
    g_assert_cmpuint(pair->a, ==, a);
    g_assert_cmpuint(pair->b, ==, a);
}

static void pair_change(SharedPair *pair, bool linger)
{
    unsigned a = pair->a;

    g_assert_cmpuint(a, ==, pair->b);
    pair->a = a + 1;
    if (linger) {
        aio_co_sleep_ns(1000);
    }
    pair->b = a + 1;
    atomic_fetch_add(&pair->writes, 1);
}

static void pair_visit(SharedPair *pair, unsigned kind, bool linger)
{
    switch (kind) {
    case 0: /* write */
        co_rwlock_wrlock(&pair->lock);
        pair_change(pair, linger);
        break;
    case 1: /* read, then write */
        co_rwlock_rdlock(&pair->lock);
        pair_check(pair, linger);
        co_rwlock_upgrade(&pair->lock);
        pair_change(pair, linger);
        break;
    case 2: /* write, then read */
        co_rwlock_wrlock(&pair->lock);
        pair_change(pair, linger);
        co_rwlock_downgrade(&pair->lock);
        pair_check(pair, linger);
        break;
    default:
        co_rwlock_rdlock(&pair->lock);
        pair_check(pair, linger);
    }
    co_rwlock_unlock(&pair->lock);
}

static void visitor_run(void *opaque)
{
    Visitor *v = opaque;
    AioContext *home = aio_context_current();

    for (unsigned i = aio_test_scaled(VISITOR_ROUNDS); i > 0; i--) {
        v->seed = v->seed * 1103515245 + 12345;
        pair_visit(v->pair, (v->seed >> 16) % 6, (v->seed >> 20) % 4 == 0);
        g_assert_true(aio_context_current() == home);
    }
    atomic_fetch_add(&v->pair->finished, 1);
    aio_context_notify(v->pair->main);
}

static void co_rwlock_threads(AioContext *ctx)
{
    SharedPair pair = {.main = ctx};
    Visitor visitors[N_VISITORS];
    IoThread *threads[N_THREADS];

    co_rwlock_init(&pair.lock);
    for (unsigned i = 0; i < N_THREADS; i++) {
        threads[i] = aio_test_iothread("rw");
    }
    for (unsigned i = 0; i < N_VISITORS; i++) {
        visitors[i] = (Visitor){&pair, i + 1};
        aio_co_enter(iothread_context(threads[i % N_THREADS]), coroutine_create(visitor_run, &visitors[i]));
    }
    RUN_UNTIL(ctx, atomic_load(&pair.finished) == N_VISITORS);
    for (unsigned i = 0; i < N_THREADS; i++) {
        iothread_free(threads[i]);
    }
    g_assert_cmpuint(pair.a, >, 0);
    g_assert_cmpuint(pair.a, ==, pair.writes);
    g_assert_cmpuint(pair.b, ==, pair.writes);
    co_rwlock_destroy(&pair.lock);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    aio_test_add("locking/co-mutex", co_mutex);
    aio_test_add("locking/co-mutex-trylock", co_mutex_try);
    aio_test_add("locking/co-mutex-recursive", co_mutex_recursive);
    aio_test_add("locking/co-mutex-not-held", co_mutex_not_held);
    aio_test_add("locking/co-queue", co_queue);
    aio_test_add("locking/co-rwlock/order", co_rwlock);
    aio_test_add("locking/co-rwlock/upgrade", co_rwlock_upgrade_test);
    aio_test_add("locking/co-rwlock/downgrade", co_rwlock_downgrade_test);
    aio_test_add("locking/co-rwlock/not-held", co_rwlock_not_held);
    aio_test_add("locking/co-rwlock/threads", co_rwlock_threads);
    return g_test_run();
}
