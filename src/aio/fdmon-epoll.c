/*
 * Descriptor monitor on epoll(7): where io_uring is refused or not wanted.
 *
 * A handler that was removed while a batch of events is being dispatched may have an
 * event further on in that batch: it is kept in `graveyard` until the batch is through.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "aio/aio-internal.h"
#include "util/log.h"

#define MAX_EVENTS 128

G_STATIC_ASSERT(EPOLLIN == POLLIN && EPOLLOUT == POLLOUT && EPOLLERR == POLLERR && EPOLLHUP == POLLHUP);

typedef struct FdMonitorEpoll {
    FdMonitor base;
    int epoll_fd;
    bool no_pwait2; /* the kernel has no nanosecond timeouts */
    bool dispatching;
    AioFdHandler *graveyard;
    int n_events;
    struct epoll_event events[MAX_EVENTS];
} FdMonitorEpoll;

static void graveyard_free(FdMonitorEpoll *e)
{
    while (e->graveyard) {
        AioFdHandler *h = e->graveyard;

        e->graveyard = h->next;
        g_free(h);
    }
}

static void epoll_monitor_free(FdMonitor *m)
{
    FdMonitorEpoll *e = bg_container_of(m, FdMonitorEpoll, base);

    graveyard_free(e);
    close(e->epoll_fd);
    g_free(e);
}

static void bury(FdMonitorEpoll *e, AioFdHandler *h)
{
    if (e->dispatching || h->busy) {
        h->next = e->graveyard;
        e->graveyard = h;
    } else {
        g_free(h);
    }
}

static void epoll_monitor_update(FdMonitor *m, AioFdHandler *h)
{
    FdMonitorEpoll *e = bg_container_of(m, FdMonitorEpoll, base);
    short wanted = fd_handler_wanted(h);
    struct epoll_event event = {.events = (uint32_t)wanted, .data.ptr = h};

    if (wanted != h->armed) {
        int op = !wanted ? EPOLL_CTL_DEL : h->armed ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;

        if (epoll_ctl(e->epoll_fd, op, h->fd, &event) < 0) {
            bg_fatal("internal error: cannot %s watching descriptor %d: %s", wanted ? "start" : "stop", h->fd,
                     strerror(errno));
        }
        h->armed = wanted;
    }
    if (h->removed) {
        bury(e, h);
    }
}

static bool epoll_monitor_flush(FdMonitor *m)
{
    return false; /* everything goes to the kernel at once, and events stay there */
}

static int wait_ns(FdMonitorEpoll *e, int64_t timeout_ns)
{
#ifdef SYS_epoll_pwait2
    if (timeout_ns > 0 && !e->no_pwait2) {
        struct timespec ts = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
        long n = syscall(SYS_epoll_pwait2, e->epoll_fd, e->events, MAX_EVENTS, &ts, NULL, 0);

        if (n >= 0 || errno != ENOSYS) {
            return (int)n;
        }
        e->no_pwait2 = true;
    }
#endif
    /* Rounded up, as a timer must not run early. */
    int timeout_ms = timeout_ns < 0 ? -1 : (int)MIN((timeout_ns + 999999) / 1000000, INT_MAX);

    return epoll_wait(e->epoll_fd, e->events, MAX_EVENTS, timeout_ms);
}

static void epoll_monitor_wait(FdMonitor *m, int64_t timeout_ns)
{
    FdMonitorEpoll *e = bg_container_of(m, FdMonitorEpoll, base);

    e->n_events = wait_ns(e, timeout_ns);
    if (e->n_events < 0) {
        if (errno != EINTR) {
            bg_fatal("internal error: epoll_wait: %s", strerror(errno));
        }
        e->n_events = 0;
    }
}

static bool epoll_monitor_dispatch(FdMonitor *m)
{
    FdMonitorEpoll *e = bg_container_of(m, FdMonitorEpoll, base);
    bool progress = false;

    e->dispatching = true;
    for (int i = 0; i < e->n_events; i++) {
        AioFdHandler *h = e->events[i].data.ptr;

        if (h) { /* NULL: the eventfd, which has done its work by ending the wait */
            progress |= fd_handler_dispatch(h, (short)e->events[i].events);
        }
    }
    e->n_events = 0;
    e->dispatching = false;
    graveyard_free(e);
    return progress;
}

static int epoll_monitor_poll_fd(FdMonitor *m)
{
    return bg_container_of(m, FdMonitorEpoll, base)->epoll_fd;
}

static void epoll_monitor_thread_exit(FdMonitor *m)
{
}

static const FdMonitorOps epoll_monitor_ops = {
    .backend = AIO_BACKEND_EPOLL,
    .free = epoll_monitor_free,
    .update = epoll_monitor_update,
    .flush = epoll_monitor_flush,
    .wait = epoll_monitor_wait,
    .dispatch = epoll_monitor_dispatch,
    .poll_fd = epoll_monitor_poll_fd,
    .thread_exit = epoll_monitor_thread_exit,
};

FdMonitor *fdmon_epoll_new(int event_fd, int *errnum)
{
    /* Edge-triggered: each write to the eventfd is an event, and it need never be read. */
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);

    if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, event_fd, &event) < 0) {
        *errnum = errno;
        if (epoll_fd >= 0) {
            close(epoll_fd);
        }
        return NULL;
    }
    FdMonitorEpoll *e = g_new0(FdMonitorEpoll, 1);

    e->base.ops = &epoll_monitor_ops;
    e->epoll_fd = epoll_fd;
    return &e->base;
}
