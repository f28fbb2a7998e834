/*
 * Wake-ups, the GSource, the choice of the backend, and what the loop refuses.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "aio-fixture.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "aio/aio-internal.h"
#include "util/error.h"

#define MSEC INT64_C(1000000)

static void count(void *opaque)
{
    ++*(int *)opaque;
}

/* ---- Wake-ups */

static void *notify_thread(void *opaque)
{
    g_usleep(20000);
    aio_context_notify(opaque);
    return NULL;
}

static void notify(AioContext *ctx)
{
    /* Before the loop sleeps: not lost. */
    aio_context_notify(ctx);
    aio_context_run_once(ctx, true);
    /* While it sleeps. */
    GThread *thread = g_thread_new("notify", notify_thread, ctx);

    aio_context_run_once(ctx, true);
    g_thread_join(thread);
}

/* How many wake-ups were written since the last call: the loop itself never reads its eventfd. */
static uint64_t wakeups(AioContext *ctx)
{
    struct pollfd pfd = {.fd = ctx->event_fd, .events = POLLIN};
    uint64_t n = 0;

    if (poll(&pfd, 1, 0) == 1) {
        g_assert_cmpint(read(ctx->event_fd, &n, sizeof(n)), ==, sizeof(n));
    }
    return n;
}

typedef struct Flood {
    AioContext *ctx;
    int n;
    int runs;
} Flood;

static void *schedule_thread(void *opaque)
{
    Flood *f = opaque;

    for (int i = 0; i < f->n; i++) {
        aio_bh_schedule_oneshot(f->ctx, count, &f->runs);
    }
    return NULL;
}

static void schedule_and_join(void *opaque)
{
    g_thread_join(g_thread_new("schedule", schedule_thread, opaque));
}

/* No system call where the loop is awake. */
static void notify_awake(AioContext *ctx)
{
    Flood f = {.ctx = ctx, .n = 1000};

    aio_test_run_ready(ctx);
    wakeups(ctx);
    aio_bh_schedule_oneshot(ctx, schedule_and_join, &f);
    RUN_UNTIL(ctx, f.runs == f.n);
    g_assert_cmpuint(wakeups(ctx), ==, 0);
    for (int i = 0; i < 10; i++) {
        aio_bh_schedule_oneshot(ctx, count, &f.runs); /* of the own thread */
    }
    aio_test_run_ready(ctx);
    g_assert_cmpuint(wakeups(ctx), ==, 0);
}

/* ---- GSource */

typedef struct MainLoopTest {
    AioContext *ctx;
    GMainLoop *loop;
    int bhs;
    int timers;
    bool coroutine_done;
    GThread *thread;
} MainLoopTest;

static void *main_loop_thread(void *opaque)
{
    MainLoopTest *test = opaque;

    g_usleep(20000);
    aio_bh_schedule_oneshot(test->ctx, count, &test->bhs);
    g_usleep(20000);
    aio_bh_schedule_oneshot(test->ctx, count, &test->bhs);
    return NULL;
}

static int worker_job(void *opaque)
{
    return 17;
}

static void main_loop_coroutine(void *opaque)
{
    MainLoopTest *test = opaque;
    char byte = 0;
    struct iovec iov = {&byte, 1};
    int fds[2];

    g_assert_true(aio_context_current() == test->ctx);
    g_assert_cmpint(thread_pool_co_run(worker_job, NULL), ==, 17);
    g_assert_cmpint(pipe(fds), ==, 0);
    g_assert_cmpint(write(fds[1], "x", 1), ==, 1);
    g_assert_cmpint(aio_co_preadv(fds[0], &iov, 1, -1, 0), ==, 1);
    g_assert_cmpint(byte, ==, 'x');
    close(fds[0]);
    close(fds[1]);
    aio_co_sleep_ns(5 * MSEC);
    while (test->bhs < 2) {
        aio_co_sleep_ns(MSEC);
    }
    test->coroutine_done = true;
    g_main_loop_quit(test->loop);
}

static gboolean start_main_loop_test(gpointer opaque)
{
    MainLoopTest *test = opaque;

    /* From outside of the context's own callbacks, in its thread. */
    coroutine_enter(coroutine_create(main_loop_coroutine, test));
    test->thread = g_thread_new("main-loop", main_loop_thread, test);
    return G_SOURCE_REMOVE;
}

static void source_main_loop(AioContext *ctx)
{
    g_autoptr(GMainContext) main_context = g_main_context_new();
    g_autoptr(GSource) source = aio_context_source_new(ctx);
    g_autoptr(GSource) idle = g_idle_source_new();
    MainLoopTest test = {.ctx = ctx, .loop = g_main_loop_new(main_context, FALSE)};
    AioTimer timer;

    aio_timer_init(&timer, ctx, count, &test.timers);
    aio_timer_mod(&timer, aio_clock_ns() + 3 * MSEC);
    g_source_attach(source, main_context);
    g_source_set_callback(idle, start_main_loop_test, &test, NULL);
    g_source_attach(idle, main_context);
    g_main_loop_run(test.loop);
    g_thread_join(test.thread);
    g_assert_true(test.coroutine_done);
    g_assert_cmpint(test.bhs, ==, 2);
    g_assert_cmpint(test.timers, ==, 1);
    g_source_destroy(source);
    g_main_loop_unref(test.loop);
}

/* ---- What is refused */

static void run_nested(void *opaque)
{
    aio_context_run_once(opaque, false);
}

static void run_from_callback(AioContext *ctx)
{
    aio_bh_schedule_oneshot(ctx, run_nested, ctx);
    aio_test_run_ready(ctx);
}

static void nested_in_callback(AioContext *ctx)
{
    EXPECT_ABORT(run_from_callback(ctx), "*'test' was run nested, from inside of a callback*");
}

static void nested_in_coroutine(AioContext *ctx)
{
    EXPECT_ABORT(coroutine_enter(coroutine_create(run_nested, ctx)),
                 "*'test' was run nested, from inside of a coroutine*");
}

static gboolean run_nested_idle(gpointer opaque)
{
    aio_bh_schedule_oneshot(opaque, run_nested, opaque);
    return G_SOURCE_REMOVE;
}

static void run_from_main_loop(AioContext *ctx)
{
    g_autoptr(GSource) source = aio_context_source_new(ctx);
    GMainLoop *loop = g_main_loop_new(NULL, FALSE);

    g_source_attach(source, NULL);
    g_idle_add(run_nested_idle, ctx);
    g_main_loop_run(loop);
}

static void nested_in_main_loop(AioContext *ctx)
{
    EXPECT_ABORT(run_from_main_loop(ctx), "*'test' was run nested, from inside of a callback*");
}

static void *run_foreign(void *opaque)
{
    aio_context_run_once(opaque, false);
    return NULL;
}

static void foreign_thread(AioContext *ctx)
{
    EXPECT_ABORT(g_thread_join(g_thread_new("foreign", run_foreign, ctx)),
                 "*'test' was run in a thread that does not own it*");
}

static void unref_with_bh(AioContext *ctx)
{
    int n = 0;

    aio_bh_schedule_oneshot(ctx, count, &n);
    aio_context_unref(ctx);
}

static void free_in_use(AioContext *ctx)
{
    EXPECT_ABORT(unref_with_bh(ctx), "*'test' was freed with a bottom half*");
}

/* ---- Busy polling */

/* One wait of the loop, for a timer in `ns`. Returns the time it spent looking. */
static int64_t polled_in_wait(AioContext *ctx, AioTimer *timer, int64_t ns)
{
    int64_t before_ns = aio_context_polled_ns(ctx);

    aio_timer_mod(timer, aio_clock_ns() + ns);
    aio_context_run_once(ctx, true);
    return aio_context_polled_ns(ctx) - before_ns;
}

static void poll_learns(AioContext *ctx)
{
    AioTimer timer;
    int n = 0, turns = 0;
    bool able = aio_test_backend() == AIO_BACKEND_URING && g_get_num_processors() > 1;

    aio_timer_init(&timer, ctx, count, &n);
    /* Off in the beginning. */
    for (int i = 0; i < 10; i++) {
        g_assert_cmpint(polled_in_wait(ctx, &timer, MSEC / 100), ==, 0);
    }
    aio_context_set_poll_max(ctx, 5 * MSEC);
    while (polled_in_wait(ctx, &timer, MSEC / 100) == 0 && ++turns < 1000) {
    }
    g_assert_cmpint(turns < 1000, ==, able);
    /* Long waits end it, whatever the score was. */
    for (int i = 0; i < 3; i++) {
        polled_in_wait(ctx, &timer, 20 * MSEC);
    }
    g_assert_cmpint(polled_in_wait(ctx, &timer, 20 * MSEC), ==, 0);
    aio_timer_del(&timer);
}

/* Time spent looking is part of the wait: else a timer would come late by that, each time. */
static void poll_timer(AioContext *ctx)
{
    const int64_t span_ns = 5 * MSEC;
    AioTimer timer;
    int n = 0;
    bool in_time = false;

    aio_timer_init(&timer, ctx, count, &n);
    aio_context_set_poll_max(ctx, 1000 * MSEC);
    for (int i = 0; i < 10; i++) {
        polled_in_wait(ctx, &timer, MSEC / 100);
    }
    for (int i = 0; i < 100 && !in_time; i++) {
        int64_t start_ns = aio_clock_ns();

        polled_in_wait(ctx, &timer, span_ns);
        in_time = aio_clock_ns() - start_ns < 2 * span_ns;
    }
    g_assert_true(in_time);
    aio_timer_del(&timer);
}

static void poll_schedule(void *opaque)
{
    void **arguments = opaque;

    aio_bh_schedule_oneshot(arguments[0], count, arguments[1]);
}

static void *poll_schedule_thread(void *opaque)
{
    g_usleep(2000);
    poll_schedule(opaque);
    return NULL;
}

/* Who hands over work to a loop that looks for it need not wake it: there is no system call. */
static void poll_notify(AioContext *ctx)
{
    AioTimer timer;
    int n = 0;
    void *arguments[] = {ctx, &n};

    aio_timer_init(&timer, ctx, count, &n);
    aio_context_set_poll_max(ctx, 1000 * MSEC);
    for (int i = 0; i < 10; i++) {
        polled_in_wait(ctx, &timer, MSEC / 100);
    }
    bool polls = polled_in_wait(ctx, &timer, MSEC) > 0;

    wakeups(ctx);
    n = 0;
    GThread *thread = g_thread_new("schedule", poll_schedule_thread, arguments);

    RUN_UNTIL(ctx, n == 1);
    g_thread_join(thread);
    g_assert_cmpint(wakeups(ctx), ==, polls ? 0 : 1);
    g_assert_true(polls == (aio_test_backend() == AIO_BACKEND_URING && g_get_num_processors() > 1));
    aio_timer_del(&timer);
}

/* ---- Choice of the backend */

/* What a container's seccomp profile does. */
static void forbid_io_uring(uint32_t errnum)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | errnum),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = G_N_ELEMENTS(filter), .filter = filter};

    g_assert_cmpint(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), ==, 0);
    g_assert_cmpint(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), ==, 0);
}

static void check_refused(uint32_t errnum)
{
    g_autoptr(GError) err = NULL;

    forbid_io_uring(errnum);
    g_assert_null(aio_context_new("refused", AIO_BACKEND_URING, &err));
    g_assert_cmpint(bg_error_to_errno(err), ==, -(int)errnum);
    g_assert_nonnull(strstr(err->message, "'refused'"));
    g_clear_error(&err);

    g_autoptr(AioContext) ctx = aio_context_new("auto", AIO_BACKEND_AUTO, &err);

    g_assert_no_error(err);
    g_assert_cmpint(aio_context_backend(ctx), ==, AIO_BACKEND_EPOLL);

    g_autoptr(IoThread) thread = iothread_new("auto", AIO_BACKEND_AUTO, -1, &err);

    g_assert_no_error(err);
    g_assert_cmpint(aio_context_backend(iothread_context(thread)), ==, AIO_BACKEND_EPOLL);
    g_assert_null(iothread_new("refused", AIO_BACKEND_URING, -1, &err));
    g_assert_cmpint(bg_error_to_errno(err), ==, -(int)errnum);
}

static void backend_refused(gconstpointer opaque)
{
    if (g_test_subprocess()) {
        check_refused((uint32_t)GPOINTER_TO_INT(opaque));
        return;
    }
    g_test_trap_subprocess(NULL, 0, G_TEST_SUBPROCESS_INHERIT_STDERR);
    g_test_trap_assert_passed();
}

static void iothread_bad_cpu(void)
{
    g_autoptr(GError) err = NULL;

    g_assert_null(iothread_new("lost", AIO_BACKEND_AUTO, 100000, &err));
    g_assert_cmpint(bg_error_to_errno(err), ==, -EINVAL);
    g_assert_nonnull(strstr(err->message, "'lost'"));
    g_assert_nonnull(strstr(err->message, "100000"));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    aio_test_add("notify/sleeping", notify);
    aio_test_add("notify/awake", notify_awake);
    aio_test_add_main("source/main-loop", source_main_loop);
    aio_test_add("nested/callback", nested_in_callback);
    aio_test_add("nested/coroutine", nested_in_coroutine);
    aio_test_add_main("nested/main-loop", nested_in_main_loop);
    aio_test_add("nested/foreign-thread", foreign_thread);
    aio_test_add("nested/free-in-use", free_in_use);
    aio_test_add("poll/learns", poll_learns);
    aio_test_add("poll/timer", poll_timer);
    aio_test_add("poll/notify", poll_notify);
    g_test_add_data_func("/backend/eperm", GINT_TO_POINTER(EPERM), backend_refused);
    g_test_add_data_func("/backend/enosys", GINT_TO_POINTER(ENOSYS), backend_refused);
    g_test_add_func("/iothread/bad-cpu", iothread_bad_cpu);
    return g_test_run();
}
