/*
 * Bottom halves and timers of an AioContext.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "aio-fixture.h"

#define MSEC INT64_C(1000000)

static void count(void *opaque)
{
    ++*(int *)opaque;
}

/* ---- Bottom halves */

static void bh_schedule(AioContext *ctx)
{
    int n = 0;
    AioBh *bh = aio_bh_new(ctx, count, &n);

    aio_test_run_ready(ctx);
    g_assert_cmpint(n, ==, 0);
    aio_bh_schedule(bh);
    aio_bh_schedule(bh);
    g_assert_cmpint(n, ==, 0);
    g_assert_true(aio_context_run_once(ctx, true));
    g_assert_cmpint(n, ==, 1);
    g_assert_false(aio_context_run_once(ctx, false));
    aio_bh_schedule(bh);
    g_assert_true(aio_context_run_once(ctx, true));
    g_assert_cmpint(n, ==, 2);
    aio_bh_schedule_oneshot(ctx, count, &n);
    g_assert_true(aio_context_run_once(ctx, true));
    g_assert_cmpint(n, ==, 3);
    aio_bh_delete(bh);
}

typedef struct Repeater {
    AioBh *bh;
    int n;
    int left;
} Repeater;

static void repeat(void *opaque)
{
    Repeater *r = opaque;

    r->n++;
    if (--r->left > 0) {
        aio_bh_schedule(r->bh);
    }
}

/* One that schedules itself runs once a round, so that nothing else starves. */
static void bh_reschedule(AioContext *ctx)
{
    Repeater r = {.left = 5};

    r.bh = aio_bh_new(ctx, repeat, &r);
    aio_bh_schedule(r.bh);
    for (int i = 1; i <= 5; i++) {
        g_assert_true(aio_context_run_once(ctx, true));
        g_assert_cmpint(r.n, ==, i);
    }
    g_assert_false(aio_context_run_once(ctx, false));
    aio_bh_delete(r.bh);
}

typedef struct Ordered {
    GString *log;
    char mark;
} Ordered;

static void log_mark(void *opaque)
{
    Ordered *o = opaque;

    g_string_append_c(o->log, o->mark);
}

static void bh_order(AioContext *ctx)
{
    g_autoptr(GString) log = g_string_new(NULL);
    Ordered o[6];
    AioBh *bh = aio_bh_new(ctx, log_mark, &o[1]);

    for (int i = 0; i < 6; i++) {
        o[i] = (Ordered){log, (char)('a' + i)};
    }
    aio_bh_schedule_oneshot(ctx, log_mark, &o[0]);
    aio_bh_schedule(bh);
    aio_bh_schedule_oneshot(ctx, log_mark, &o[2]);
    aio_co_schedule(ctx, coroutine_create(log_mark, &o[3]));
    aio_bh_schedule(bh); /* keeps its first place */
    aio_co_schedule(ctx, coroutine_create(log_mark, &o[4]));
    aio_bh_schedule_oneshot(ctx, log_mark, &o[5]);
    aio_test_run_ready(ctx);
    g_assert_cmpstr(log->str, ==, "abcdef");
    aio_bh_delete(bh);
}

static void bh_cancel(AioContext *ctx)
{
    int n = 0;
    AioBh *bh = aio_bh_new(ctx, count, &n);

    aio_bh_schedule(bh);
    aio_bh_cancel(bh);
    g_assert_false(aio_context_run_once(ctx, false));
    g_assert_cmpint(n, ==, 0);
    aio_bh_cancel(bh);
    aio_bh_schedule(bh);
    aio_bh_cancel(bh);
    aio_bh_schedule(bh);
    aio_test_run_ready(ctx);
    g_assert_cmpint(n, ==, 1);
    aio_bh_delete(bh);
}

static void cancel_bh(void *opaque)
{
    aio_bh_cancel(opaque);
}

static void bh_cancel_in_callback(AioContext *ctx)
{
    int n = 0;
    AioBh *victim = aio_bh_new(ctx, count, &n);
    AioBh *killer = aio_bh_new(ctx, cancel_bh, victim);

    aio_bh_schedule(killer);
    aio_bh_schedule(victim);
    aio_test_run_ready(ctx);
    g_assert_cmpint(n, ==, 0);
    aio_bh_delete(killer);
    aio_bh_delete(victim);
}

static void delete_bh(void *opaque)
{
    AioBh **bh = opaque;

    aio_bh_delete(g_steal_pointer(bh));
}

static void bh_delete(AioContext *ctx)
{
    int n = 0;
    AioBh *idle = aio_bh_new(ctx, count, &n);
    AioBh *scheduled = aio_bh_new(ctx, count, &n);
    AioBh *self, *victim = aio_bh_new(ctx, count, &n);
    AioBh *killer = aio_bh_new(ctx, delete_bh, &victim);

    aio_bh_delete(idle);
    aio_bh_schedule(scheduled);
    aio_bh_delete(scheduled);
    aio_test_run_ready(ctx);
    g_assert_cmpint(n, ==, 0);

    self = aio_bh_new(ctx, delete_bh, &self); /* inside its own callback */
    aio_bh_schedule(self);
    aio_test_run_ready(ctx);
    g_assert_null(self);

    aio_bh_schedule(killer); /* inside another's, in one batch with it */
    aio_bh_schedule(victim);
    aio_test_run_ready(ctx);
    g_assert_null(victim);
    g_assert_cmpint(n, ==, 0);
    aio_bh_delete(killer);
}

static void count_atomic(void *opaque)
{
    atomic_fetch_add((_Atomic int *)opaque, 1);
}

/* Whatever was queued before an iothread is told to stop still runs. */
static void bh_flush(AioContext *ctx)
{
    int n = (int)aio_test_scaled(1000);
    _Atomic int done = 0;
    Repeater r = {.left = 10};
    IoThread *t = aio_test_iothread("flush");

    r.bh = aio_bh_new(iothread_context(t), repeat, &r);
    aio_bh_schedule(r.bh);
    for (int i = 0; i < n; i++) {
        aio_bh_schedule_oneshot(iothread_context(t), count_atomic, &done);
    }
    aio_context_ref(iothread_context(t));
    AioContext *other = iothread_context(t);

    iothread_free(t);
    g_assert_cmpint(atomic_load(&done), ==, n);
    g_assert_cmpint(r.n, ==, 10);
    aio_bh_delete(r.bh);
    aio_context_unref(other);
}

typedef struct Flood {
    AioContext *ctx;
    AioBh *bh;
    int n;
    _Atomic int oneshots;
    _Atomic int runs;
    _Atomic int finished;
} Flood;

static void flood_bh(void *opaque)
{
    Flood *f = opaque;

    atomic_fetch_add(&f->runs, 1);
}

static void flood_oneshot(void *opaque)
{
    Flood *f = opaque;

    atomic_fetch_add(&f->oneshots, 1);
}

static void *flood_thread(void *opaque)
{
    Flood *f = opaque;

    for (int i = 0; i < f->n; i++) {
        aio_bh_schedule_oneshot(f->ctx, flood_oneshot, f);
        aio_bh_schedule(f->bh);
    }
    aio_bh_schedule_oneshot(f->ctx, count_atomic, &f->finished);
    return NULL;
}

static void bh_threads(AioContext *ctx)
{
    Flood f = {.ctx = ctx, .n = (int)aio_test_scaled(5000)};
    GThread *threads[4];

    f.bh = aio_bh_new(ctx, flood_bh, &f);
    for (int i = 0; i < 4; i++) {
        threads[i] = g_thread_new("flood", flood_thread, &f);
    }
    RUN_UNTIL(ctx, atomic_load(&f.finished) == 4);
    for (int i = 0; i < 4; i++) {
        g_thread_join(threads[i]);
    }
    aio_test_run_ready(ctx);
    g_assert_cmpint(atomic_load(&f.oneshots), ==, 4 * f.n);
    g_assert_cmpint(atomic_load(&f.runs), >, 0);
    g_assert_cmpint(atomic_load(&f.runs), <=, 4 * f.n);
    aio_bh_delete(f.bh);
}

/* ---- Timers */

typedef struct TestTimer {
    AioTimer timer;
    int64_t due_ns;
    GArray *fired; /* int64_t: due_ns, in order of firing */
    struct TestTimer *victim;
} TestTimer;

static void timer_fired(void *opaque)
{
    TestTimer *t = opaque;

    g_assert_cmpint(aio_clock_ns(), >=, t->due_ns);
    g_assert_false(aio_timer_pending(&t->timer));
    g_array_append_val(t->fired, t->due_ns);
    if (t->victim) {
        aio_timer_del(&t->victim->timer);
    }
}

static void test_timer_arm(TestTimer *t, int64_t due_ns)
{
    t->due_ns = due_ns;
    aio_timer_mod(&t->timer, due_ns);
}

static void timer_schedule(AioContext *ctx)
{
    g_autoptr(GArray) fired = g_array_new(FALSE, FALSE, sizeof(int64_t));
    TestTimer t[4];
    int64_t now = aio_clock_ns();

    for (int i = 0; i < 4; i++) {
        t[i] = (TestTimer){.fired = fired};
        aio_timer_init(&t[i].timer, ctx, timer_fired, &t[i]);
        g_assert_false(aio_timer_pending(&t[i].timer));
    }
    aio_timer_del(&t[0].timer);
    test_timer_arm(&t[0], now + 3600 * 1000 * MSEC);
    test_timer_arm(&t[1], now + 15 * MSEC);
    test_timer_arm(&t[2], now + 5 * MSEC);
    test_timer_arm(&t[3], now - 5 * MSEC);
    g_assert_true(aio_timer_pending(&t[0].timer));
    test_timer_arm(&t[0], now + 10 * MSEC); /* moved forward */
    RUN_UNTIL(ctx, fired->len == 4);
    /* Never early (see timer_fired), in order, and not late by a mile. */
    for (guint i = 0; i < 4; i++) {
        g_assert_cmpint(g_array_index(fired, int64_t, i), ==, now + (i == 0 ? -5 : 5 * (int64_t)i) * MSEC);
    }
    g_assert_cmpint(aio_clock_ns(), <, now + 5000 * MSEC);
    g_assert_false(aio_context_run_once(ctx, false));
}

/* Timers below a millisecond are waited for as such. */
static void timer_precision(AioContext *ctx)
{
    int64_t best_ns = INT64_MAX;

    for (int i = 0; i < 20; i++) {
        g_autoptr(GArray) fired = g_array_new(FALSE, FALSE, sizeof(int64_t));
        TestTimer t = {.fired = fired};
        int64_t begin = aio_clock_ns();

        aio_timer_init(&t.timer, ctx, timer_fired, &t);
        test_timer_arm(&t, begin + MSEC / 5);
        RUN_UNTIL(ctx, fired->len == 1);
        best_ns = MIN(best_ns, aio_clock_ns() - begin);
    }
    g_assert_cmpint(best_ns, >=, MSEC / 5);
    if (!g_getenv("BG_TEST_SLOW")) {
        g_assert_cmpint(best_ns, <, MSEC);
    }
}

/* Timers that expire about when the loop computes how long to wait for them. */
static void timer_at_once(AioContext *ctx)
{
    int n = 0;
    AioTimer timer;

    aio_timer_init(&timer, ctx, count, &n);
    for (int i = 1; i <= (int)aio_test_scaled(5000); i++) {
        aio_timer_mod(&timer, aio_clock_ns() + i % 400);
        RUN_UNTIL(ctx, n == i);
    }
}

static void free_timer(void *opaque)
{
    g_free(opaque);
}

static void rearm(void *opaque)
{
    TestTimer *t = opaque;

    if (t->due_ns-- > 0) {
        aio_timer_mod(&t->timer, 0); /* in the past: next round, not this one */
    }
}

static void timer_delete_in_callback(AioContext *ctx)
{
    g_autoptr(GArray) fired = g_array_new(FALSE, FALSE, sizeof(int64_t));
    TestTimer victim = {.fired = fired}, killer = {.fired = fired, .victim = &victim};
    TestTimer again = {.due_ns = 3};
    AioTimer *heap_timer = g_new(AioTimer, 1);

    aio_timer_init(&victim.timer, ctx, timer_fired, &victim);
    aio_timer_init(&killer.timer, ctx, timer_fired, &killer);
    test_timer_arm(&killer, 1);
    test_timer_arm(&victim, 2);
    aio_test_run_ready(ctx);
    g_assert_cmpuint(fired->len, ==, 1);
    g_assert_false(aio_timer_pending(&victim.timer));

    aio_timer_init(heap_timer, ctx, free_timer, heap_timer);
    aio_timer_mod(heap_timer, 0);
    g_assert_true(aio_context_run_once(ctx, true));

    aio_timer_init(&again.timer, ctx, rearm, &again);
    aio_timer_mod(&again.timer, 0);
    for (int i = 0; i < 4; i++) {
        g_assert_cmpint(again.due_ns, ==, 3 - i);
        g_assert_true(aio_context_run_once(ctx, true));
    }
    g_assert_false(aio_context_run_once(ctx, false));
}

/* The heap against a sorted list: random arming, moving and deleting. */
static void timer_many(AioContext *ctx)
{
    enum { N = 500 };
    g_autoptr(GArray) fired = g_array_new(FALSE, FALSE, sizeof(int64_t));
    g_autofree TestTimer *t = g_new0(TestTimer, N);
    guint armed = 0;

    for (int i = 0; i < N; i++) {
        t[i].fired = fired;
        aio_timer_init(&t[i].timer, ctx, timer_fired, &t[i]);
    }
    for (unsigned i = aio_test_scaled(5000); i > 0; i--) {
        TestTimer *one = &t[g_test_rand_int_range(0, N)];

        if (g_test_rand_int_range(0, 4) == 0) {
            aio_timer_del(&one->timer);
        } else {
            test_timer_arm(one, g_test_rand_int_range(0, 1000000));
        }
    }
    for (int i = 0; i < N; i++) {
        armed += aio_timer_pending(&t[i].timer);
    }
    g_assert_cmpuint(armed, >, 0);
    aio_test_run_ready(ctx);
    g_assert_cmpuint(fired->len, ==, armed);
    for (guint i = 1; i < armed; i++) {
        g_assert_cmpint(g_array_index(fired, int64_t, i - 1), <=, g_array_index(fired, int64_t, i));
    }
}

static void *arm_timer_thread(void *opaque)
{
    g_usleep(20000); /* most likely the loop sleeps by then */
    aio_timer_mod(opaque, aio_clock_ns());
    return NULL;
}

static void timer_other_thread(AioContext *ctx)
{
    int n = 0;
    AioTimer timer, far;

    aio_timer_init(&far, ctx, count, &n);
    aio_timer_mod(&far, INT64_MAX);
    aio_timer_init(&timer, ctx, count, &n);
    GThread *thread = g_thread_new("arm", arm_timer_thread, &timer);

    RUN_UNTIL(ctx, n == 1);
    g_thread_join(thread);
    aio_timer_del(&far);
    g_assert_false(aio_timer_pending(&far));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    aio_test_add("bh/schedule", bh_schedule);
    aio_test_add("bh/reschedule", bh_reschedule);
    aio_test_add("bh/order", bh_order);
    aio_test_add("bh/cancel", bh_cancel);
    aio_test_add("bh/cancel-in-callback", bh_cancel_in_callback);
    aio_test_add("bh/delete", bh_delete);
    aio_test_add("bh/flush", bh_flush);
    aio_test_add("bh/threads", bh_threads);
    aio_test_add("timer/schedule", timer_schedule);
    aio_test_add("timer/precision", timer_precision);
    aio_test_add("timer/at-once", timer_at_once);
    aio_test_add("timer/delete-in-callback", timer_delete_in_callback);
    aio_test_add("timer/many", timer_many);
    aio_test_add("timer/other-thread", timer_other_thread);
    return g_test_run();
}
