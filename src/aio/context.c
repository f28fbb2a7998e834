/*
 * AioContext: life cycle, wake-up, one round of the loop.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "aio/aio.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "aio/aio-internal.h"
#include "coroutine/coroutine-internal.h"
#include "util/error.h"
#include "util/log.h"

/* ---- Life cycle */

/* What a kernel or a sandbox that does not want io_uring answers. */
static bool uring_refused(int errnum)
{
    return errnum == ENOSYS || errnum == EPERM || errnum == EACCES || errnum == ENOMEM || errnum == EINVAL;
}

static void log_backend_once(const char *text, const char *cause)
{
    static _Atomic bool logged;

    if (!atomic_exchange(&logged, true)) {
        bg_log(BG_LOG_INFO, "event loop: %s%s", text, cause);
    }
}

static FdMonitor *epoll_monitor(int event_fd, const char *why, int *errnum)
{
    FdMonitor *m = fdmon_epoll_new(event_fd, errnum);

    if (m) {
        log_backend_once("epoll", why);
    }
    return m;
}

static FdMonitor *choose_monitor(AioBackend backend, int event_fd, FdMonitorUse use, int *errnum)
{
    if (backend == AIO_BACKEND_EPOLL) {
        return epoll_monitor(event_fd, "", errnum);
    }
    FdMonitor *m = fdmon_uring_new(event_fd, use, errnum);

    if (m) {
        log_backend_once("io_uring", "");
    } else if (backend == AIO_BACKEND_AUTO && uring_refused(*errnum)) {
        g_autofree char *why = g_strdup_printf(" (io_uring refused: %s)", g_strerror(*errnum));

        m = epoll_monitor(event_fd, why, errnum);
    }
    return m;
}

AioContext *aio_context_new_for_use(const char *name, AioBackend backend, FdMonitorUse use, GError **errp)
{
    int errnum = 0;
    int event_fd = eventfd(0, EFD_CLOEXEC);

    if (event_fd < 0) {
        bg_error_set_errno(errp, errno, "event loop '%s': eventfd", name);
        return NULL;
    }
    FdMonitor *monitor = choose_monitor(backend, event_fd, use, &errnum);

    if (!monitor) {
        bg_error_set_errno(errp, errnum, "event loop '%s': %s", name,
                           backend == AIO_BACKEND_EPOLL ? "epoll" : "io_uring");
        close(event_fd);
        return NULL;
    }
    AioContext *ctx = g_aligned_alloc0(1, sizeof(*ctx), BG_CACHE_LINE);

    ctx->name = g_strdup(name);
    ctx->monitor = monitor;
    ctx->event_fd = event_fd;
    ctx->handlers = g_hash_table_new(NULL, NULL);
    bg_mutex_init(&ctx->timer_lock);
    atomic_init(&ctx->next_expire_ns, INT64_MAX);
    atomic_init(&ctx->wake_state, AIO_AWAKE);
    atomic_init(&ctx->refs, 1);
    return ctx;
}

AioContext *aio_context_new(const char *name, AioBackend backend, GError **errp)
{
    return aio_context_new_for_use(name, backend, FDMON_SHARED, errp);
}

static void check_empty(AioContext *ctx)
{
    bg_mutex_lock(&ctx->timer_lock);
    int n_timers = ctx->n_timers;

    bg_mutex_unlock(&ctx->timer_lock);
    if (g_hash_table_size(ctx->handlers) > 0 || n_timers > 0) {
        bg_fatal("internal error: event loop '%s' was freed with %u descriptors and %d timers", ctx->name,
                 g_hash_table_size(ctx->handlers), n_timers);
    }
}

static void context_free(AioContext *ctx) BG_NO_TSA
{
    if (aio_context_current() == ctx) {
        aio_context_set_current(NULL);
    }
    aio_work_discard(ctx);
    check_empty(ctx);
    ctx->monitor->ops->free(ctx->monitor);
    close(ctx->event_fd);
    g_hash_table_destroy(ctx->handlers);
    bg_mutex_destroy(&ctx->timer_lock);
    g_free(ctx->timers);
    g_free(ctx->name);
    g_aligned_free(ctx);
}

AioContext *aio_context_ref(AioContext *ctx)
{
    atomic_fetch_add_explicit(&ctx->refs, 1, memory_order_relaxed);
    return ctx;
}

void aio_context_unref(AioContext *ctx)
{
    /* Release what this thread did to ctx; acquire what others did before it is freed. */
    if (atomic_fetch_sub_explicit(&ctx->refs, 1, memory_order_acq_rel) == 1) {
        context_free(ctx);
    }
}

void aio_context_thread_exit(AioContext *ctx)
{
    ctx->monitor->ops->thread_exit(ctx->monitor);
    aio_context_set_current(NULL);
}

const char *aio_context_name(const AioContext *ctx)
{
    return ctx->name;
}

AioBackend aio_context_backend(const AioContext *ctx)
{
    return ctx->monitor->ops->backend;
}

AioContext *aio_context_current(void)
{
    return co_thread()->context;
}

void aio_context_set_current(AioContext *ctx)
{
    co_thread()->context = ctx;
}

struct io_uring_sqe *aio_uring_get_sqe(AioContext *ctx, AioCqe *cqe)
{
    if (ctx->monitor->ops->backend != AIO_BACKEND_URING) {
        return NULL;
    }
#ifdef BG_DEBUG_CHECKS
    if (aio_context_current() != ctx) {
        bg_fatal("internal error: an entry of the ring of event loop '%s' was taken in another thread",
                 ctx->name);
    }
#endif
    return fdmon_uring_get_sqe(ctx->monitor, cqe);
}

/* ---- Wake-up: see the table in aio-internal.h */

static void write_event_fd(AioContext *ctx)
{
    const uint64_t one = 1;

    while (write(ctx->event_fd, &one, sizeof(one)) < 0 && errno == EINTR) {
    }
}

void aio_context_notify(AioContext *ctx)
{
    /*
     * Sequentially consistent, as are the caller's push before and the loop's exchange in
     * aio_context_wake_up() and its taking of the list after that. If this load still sees the
     * NOTIFIED of an earlier call, that exchange is yet to come, and so is the taking.
     */
    if (atomic_load(&ctx->wake_state) == AIO_NOTIFIED) {
        return;
    }
    if (atomic_exchange(&ctx->wake_state, AIO_NOTIFIED) == AIO_ASLEEP) {
        write_event_fd(ctx);
    }
}

bool aio_context_prepare_sleep(AioContext *ctx)
{
    int state = AIO_AWAKE;

    return atomic_compare_exchange_strong(&ctx->wake_state, &state, AIO_ASLEEP) || state == AIO_ASLEEP;
}

bool aio_context_wake_up(AioContext *ctx)
{
    /* Before the lists are taken: see aio_context_notify(). */
    return atomic_exchange(&ctx->wake_state, AIO_AWAKE) == AIO_NOTIFIED;
}

/* ---- A round */

int64_t aio_context_timeout_ns(AioContext *ctx)
{
    if (aio_work_pending(ctx)) {
        return 0;
    }
    int64_t expire_ns = atomic_load(&ctx->next_expire_ns);

    if (expire_ns == INT64_MAX) {
        return -1;
    }
    int64_t left_ns = expire_ns - aio_clock_ns(); /* MAX() would read the clock twice */

    return MAX(left_ns, 0);
}

void aio_context_enter_round(AioContext *ctx)
{
    CoThread *t = co_thread();

    if (bg_unlikely(t->in_dispatch || t->current)) {
        bg_fatal("internal error: event loop '%s' was run nested, from inside of a %s", ctx->name,
                 t->current ? "coroutine" : "callback");
    }
    if (bg_unlikely(t->context != ctx)) {
        bg_fatal("internal error: event loop '%s' was run in a thread that does not own it", ctx->name);
    }
    t->in_dispatch = true;
}

void aio_context_leave_round(AioContext *ctx)
{
    co_thread()->in_dispatch = false;
}

bool aio_context_dispatch(AioContext *ctx)
{
    bool progress = ctx->monitor->ops->dispatch(ctx->monitor);

    progress |= aio_work_run_all(ctx);
    progress |= aio_timers_run(ctx);
    return progress;
}

bool aio_context_run_once(AioContext *ctx, bool block)
{
    aio_context_enter_round(ctx);
    int64_t timeout_ns = block ? aio_context_timeout_ns(ctx) : 0;

    timeout_ns = aio_poll_before_wait(ctx, timeout_ns); /* other threads still see the loop awake */
    if (timeout_ns != 0 && !aio_context_prepare_sleep(ctx)) {
        timeout_ns = 0;
    }
    ctx->monitor->ops->wait(ctx->monitor, timeout_ns);
    aio_poll_after_wait(ctx);
    aio_context_wake_up(ctx);
    bool progress = aio_context_dispatch(ctx);

    aio_context_leave_round(ctx);
    return progress;
}
