/*
 * Descriptor monitor on io_uring(7): one-shot polls for descriptors, and the ring for
 * file I/O. Whatever was queued in a round goes to the kernel with the one system call that waits.
 *
 * The poll of a descriptor (AioFdHandler.poll_state):
 *
 *   state      | kernel has a poll | left by
 *   -----------+-------------------+---------------------------------------------------------
 *   IDLE       | no                | arm -> ARMED
 *   ARMED      | yes               | completion -> IDLE; removal, new direction -> CANCELLING
 *   CANCELLING | yes, for a while  | completion (cancelled or fired all the same) -> IDLE
 *
 * Invariants: at most one poll per handler is in the kernel, so a completion always is that of
 * the present one. A handler is freed only when removed, IDLE, not `dirty` and not `busy`; so
 * a stale completion finds its handler, sees `removed` and calls nothing. The number of the
 * descriptor may long be somebody else's: that one has a handler of its own.
 *
 * A poll is one-shot and armed again after each completion in the next submission, for nothing extra:
 * that makes it level-triggered. Only the eventfd has a multishot poll, which is edge-triggered: each write
 * wakes the loop, and it need never be read.
 *
 * user_data of an entry: an AioCqe (aligned, low bits 0), a handler | 1, or one of the tags below.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#ifdef HAVE_VALGRIND_VALGRIND_H
#include <valgrind/valgrind.h>
#endif

#include "aio/aio-internal.h"
#include "util/log.h"

#define SQ_ENTRIES 512
#define CQ_ENTRIES 4096

enum {
    POLL_IDLE,
    POLL_ARMED,
    POLL_CANCELLING,
};

#define TAG_HANDLER UINT64_C(1)
#define TAG_IGNORE  UINT64_C(2) /* completion of a cancellation */
#define TAG_WAKE    UINT64_C(6) /* the eventfd's poll */

typedef struct FdMonitorUring {
    FdMonitor base;
    struct io_uring ring;
    int event_fd;
    bool wake_armed;
    bool own_thread; /* FDMON_OWN_THREAD: may register the ring descriptor with its thread */
    bool ring_registered;
    bool wait_by_poll;   /* under valgrind */
    AioFdHandler *dirty; /* to be armed or changed before the next wait */
    GHashTable *removed; /* handlers that wait for their last completion, or for being freed */
    GArray *backlog;     /* struct io_uring_cqe: taken out early to make room; oldest first */
    guint backlog_head;
} FdMonitorUring;

/* ---- Submission and completion queue */

static FdMonitorUring *from_base(FdMonitor *m)
{
    return bg_container_of(m, FdMonitorUring, base);
}

static unsigned backlog_length(const FdMonitorUring *u)
{
    return u->backlog->len - u->backlog_head;
}

/* Completions that next_cqe() would return without a system call. */
static unsigned completions_ready(FdMonitorUring *u)
{
    return backlog_length(u) + io_uring_cq_ready(&u->ring);
}

static bool ring_pop(FdMonitorUring *u, struct io_uring_cqe *out)
{
    struct io_uring_cqe *cqe;
    unsigned head;
    bool found = false;

    io_uring_for_each_cqe(&u->ring, head, cqe)
    {
        *out = *cqe;
        found = true;
        break;
    }
    if (found) {
        io_uring_cq_advance(&u->ring, 1);
    }
    return found;
}

static bool next_cqe(FdMonitorUring *u, struct io_uring_cqe *out)
{
    if (backlog_length(u) == 0) {
        return ring_pop(u, out);
    }
    *out = g_array_index(u->backlog, struct io_uring_cqe, u->backlog_head++);
    if (backlog_length(u) == 0) {
        g_array_set_size(u->backlog, 0);
        u->backlog_head = 0;
    }
    return true;
}

/* The kernel takes no more while completions wait for room: make some. Their callbacks run later. */
static void make_room(FdMonitorUring *u)
{
    struct io_uring_cqe cqe;

    while (ring_pop(u, &cqe)) {
        g_array_append_val(u->backlog, cqe);
    }
}

/* What enter(2) may answer under load or signals; anything else is a bug in how it is called. */
static void check_enter(FdMonitorUring *u, int ret)
{
    if (ret == -EBUSY || ret == -EAGAIN || ret == -ENOMEM) {
        make_room(u);
        sched_yield();
    } else if (ret < 0 && ret != -EINTR && ret != -ETIME) {
        bg_fatal("internal error: io_uring_enter: %s", strerror(-ret));
    }
}

static struct io_uring_sqe *get_sqe(FdMonitorUring *u)
{
    struct io_uring_sqe *sqe;

    while (!(sqe = io_uring_get_sqe(&u->ring))) {
        check_enter(u, io_uring_submit(&u->ring));
    }
    return sqe;
}

struct io_uring_sqe *fdmon_uring_get_sqe(FdMonitor *m, AioCqe *cqe)
{
    struct io_uring_sqe *sqe = get_sqe(from_base(m));

    io_uring_sqe_set_data(sqe, cqe);
    return sqe;
}

/* ---- Polls */

static void maybe_free(FdMonitorUring *u, AioFdHandler *h)
{
    if (h->removed && h->poll_state == POLL_IDLE && !h->dirty && !h->busy) {
        g_hash_table_remove(u->removed, h);
        g_free(h);
    }
}

static void mark_dirty(FdMonitorUring *u, AioFdHandler *h)
{
    if (!h->dirty) {
        h->dirty = true;
        h->next = u->dirty;
        u->dirty = h;
    }
}

static void queue_poll(FdMonitorUring *u, AioFdHandler *h, short events)
{
    struct io_uring_sqe *sqe = get_sqe(u);

    io_uring_prep_poll_add(sqe, h->fd, (unsigned)events);
    sqe->user_data = (uintptr_t)h | TAG_HANDLER;
    h->armed = events;
    h->poll_state = POLL_ARMED;
}

static void queue_cancel(FdMonitorUring *u, AioFdHandler *h)
{
    struct io_uring_sqe *sqe = get_sqe(u);

    io_uring_prep_poll_remove(sqe, (uintptr_t)h | TAG_HANDLER);
    sqe->user_data = TAG_IGNORE;
    h->poll_state = POLL_CANCELLING;
}

/* A poll that watches more than wanted is left alone: at worst it fires once in vain. */
static void refresh_poll(FdMonitorUring *u, AioFdHandler *h)
{
    short wanted = fd_handler_wanted(h);

    if (h->poll_state == POLL_IDLE && wanted) {
        queue_poll(u, h, wanted);
    } else if (h->poll_state == POLL_ARMED && (wanted & ~h->armed)) {
        queue_cancel(u, h); /* armed anew when the completion is in */
    }
}

static void refresh_polls(FdMonitorUring *u)
{
    while (u->dirty) {
        AioFdHandler *h = u->dirty;

        u->dirty = h->next;
        h->dirty = false;
        refresh_poll(u, h);
        maybe_free(u, h);
    }
    if (!u->wake_armed) {
        struct io_uring_sqe *sqe = get_sqe(u);

        io_uring_prep_poll_multishot(sqe, u->event_fd, POLLIN);
        sqe->user_data = TAG_WAKE;
        u->wake_armed = true;
    }
}

/*
 * The caller will close the descriptor, and a poll in the kernel would keep the file behind it open (a
 * FUSE connection, a socket): so the cancellation goes out at once and not with the next wait.
 */
static void forget(FdMonitorUring *u, AioFdHandler *h)
{
    g_hash_table_add(u->removed, h);
    if (h->poll_state == POLL_ARMED) {
        queue_cancel(u, h);
        check_enter(u, io_uring_submit_and_get_events(&u->ring));
    }
    maybe_free(u, h);
}

static void uring_update(FdMonitor *m, AioFdHandler *h)
{
    FdMonitorUring *u = from_base(m);

    if (h->removed) {
        forget(u, h);
    } else {
        mark_dirty(u, h);
    }
}

static bool poll_completed(FdMonitorUring *u, AioFdHandler *h, int res)
{
    bool progress = false;

    h->poll_state = POLL_IDLE;
    if (!h->removed) {
        if (res < 0 && res != -ECANCELED) {
            bg_fatal("internal error: cannot watch descriptor %d: %s", h->fd, strerror(-res));
        }
        mark_dirty(u, h);
        if (res > 0) {
            progress = fd_handler_dispatch(h, (short)res);
        }
    }
    maybe_free(u, h);
    return progress;
}

/* ---- Monitor */

static bool process_cqe(FdMonitorUring *u, const struct io_uring_cqe *cqe)
{
    uint64_t data = cqe->user_data;

    if (data == TAG_IGNORE) {
        return false;
    }
    if (data == TAG_WAKE) {
        u->wake_armed = cqe->flags & IORING_CQE_F_MORE;
        return false;
    }
    if (data & TAG_HANDLER) {
        return poll_completed(u, (AioFdHandler *)(uintptr_t)(data & ~TAG_HANDLER), cqe->res);
    }
    AioCqe *completion = (AioCqe *)(uintptr_t)data;

    completion->res = cqe->res;
    completion->flags = cqe->flags;
    completion->cb(completion);
    return true;
}

/* Only those that were there at the beginning: work and timers get their turn. */
static bool uring_dispatch(FdMonitor *m)
{
    FdMonitorUring *u = from_base(m);
    struct io_uring_cqe cqe;
    bool progress = false;

    for (unsigned left = completions_ready(u); left > 0 && next_cqe(u, &cqe); left--) {
        progress |= process_cqe(u, &cqe);
    }
    return progress;
}

/* Whether a system call without waiting could change anything. */
static bool needs_enter(FdMonitorUring *u)
{
    const unsigned pending = IORING_SQ_CQ_OVERFLOW | IORING_SQ_TASKRUN;

    return io_uring_sq_ready(&u->ring) > 0 || (IO_URING_READ_ONCE(*u->ring.sq.kflags) & pending);
}

static void register_ring_fd(FdMonitorUring *u)
{
    /* Spares the kernel a table look-up per enter. Belongs to the thread: see uring_thread_exit(). */
    u->own_thread = false;
    u->ring_registered = io_uring_register_ring_fd(&u->ring) == 1;
}

static struct __kernel_timespec to_timespec(int64_t ns)
{
    return (struct __kernel_timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
}

static int enter_and_wait(FdMonitorUring *u, int64_t timeout_ns)
{
    if (timeout_ns < 0) {
        return io_uring_submit_and_wait(&u->ring, 1);
    }
    struct __kernel_timespec ts = to_timespec(timeout_ns);
    struct io_uring_cqe *cqe;

    return io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &ts, NULL);
}

/* valgrind lets no other thread run while one waits in io_uring_enter(2). */
static int poll_and_enter(FdMonitorUring *u, int64_t timeout_ns)
{
    struct __kernel_timespec kts = to_timespec(timeout_ns);
    struct timespec ts = {.tv_sec = (time_t)kts.tv_sec, .tv_nsec = (long)kts.tv_nsec};
    struct pollfd pfd = {.fd = u->ring.ring_fd, .events = POLLIN};
    int ret = io_uring_submit(&u->ring);

    if (ret >= 0) {
        ppoll(&pfd, 1, timeout_ns < 0 ? NULL : &ts, NULL);
    }
    return ret;
}

static void uring_wait(FdMonitor *m, int64_t timeout_ns)
{
    FdMonitorUring *u = from_base(m);
    int ret = 0;

    if (bg_unlikely(u->own_thread)) {
        register_ring_fd(u);
    }
    refresh_polls(u);
    if (timeout_ns == 0 || completions_ready(u) > 0) {
        if (needs_enter(u)) {
            ret = io_uring_submit_and_get_events(&u->ring);
        }
    } else {
        ret = u->wait_by_poll ? poll_and_enter(u, timeout_ns) : enter_and_wait(u, timeout_ns);
    }
    check_enter(u, ret);
}

static bool uring_flush(FdMonitor *m)
{
    FdMonitorUring *u = from_base(m);

    refresh_polls(u);
    if (needs_enter(u)) {
        check_enter(u, io_uring_submit_and_get_events(&u->ring));
    }
    return completions_ready(u) > 0;
}

static bool uring_ready(FdMonitor *m)
{
    FdMonitorUring *u = from_base(m);

    return completions_ready(u) > 0 || needs_enter(u);
}

static int uring_poll_fd(FdMonitor *m)
{
    return from_base(m)->ring.ring_fd;
}

static void uring_thread_exit(FdMonitor *m)
{
    FdMonitorUring *u = from_base(m);

    if (u->ring_registered) {
        io_uring_unregister_ring_fd(&u->ring);
        u->ring_registered = false;
    }
}

static void free_removed(gpointer key, gpointer value, gpointer opaque)
{
    g_free(key);
}

static void uring_free(FdMonitor *m)
{
    FdMonitorUring *u = from_base(m);

    io_uring_queue_exit(&u->ring);
    /* Their completions may never have been fetched; the kernel knows a handler as a number only. */
    g_hash_table_foreach(u->removed, free_removed, NULL);
    g_hash_table_destroy(u->removed);
    g_array_free(u->backlog, TRUE);
    g_free(u);
}

static const FdMonitorOps uring_ops = {
    .backend = AIO_BACKEND_URING,
    .free = uring_free,
    .update = uring_update,
    .flush = uring_flush,
    .wait = uring_wait,
    .dispatch = uring_dispatch,
    .ready = uring_ready,
    .poll_fd = uring_poll_fd,
    .thread_exit = uring_thread_exit,
};

/* ---- Set-up */

static int queue_init(struct io_uring *ring, unsigned flags)
{
    struct io_uring_params params = {
        .flags = flags | IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE,
        .cq_entries = CQ_ENTRIES,
    };

    return io_uring_queue_init_params(SQ_ENTRIES, ring, &params);
}

/* The best of what the kernel knows; -errno. */
static int set_up_ring(struct io_uring *ring, FdMonitorUse use)
{
    /*
     * With DEFER_TASKRUN completions are made only inside of our own waits: no interruptions. A ring that a
     * GMainLoop watches cannot have it, as nobody would wait in the ring.
     */
    static const unsigned own_thread_flags[] = {
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
            IORING_SETUP_TASKRUN_FLAG,                                                   /* Linux 6.1 */
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG, /* 5.19 */
        0,
    };
    static const unsigned shared_flags[] = {IORING_SETUP_SUBMIT_ALL /* 5.18 */, 0};
    const unsigned *flags = use == FDMON_OWN_THREAD ? own_thread_flags : shared_flags;
    int ret;

    while ((ret = queue_init(ring, *flags)) == -EINVAL && *flags) {
        flags++;
    }
    return ret;
}

static bool under_valgrind(void)
{
#ifdef HAVE_VALGRIND_VALGRIND_H
    return RUNNING_ON_VALGRIND;
#else
    return false;
#endif
}

FdMonitor *fdmon_uring_new(int event_fd, FdMonitorUse use, int *errnum)
{
    /* Multishot polls came with RSRC_TAGS in Linux 5.13; the other two are older. */
    const unsigned required = IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG | IORING_FEAT_RSRC_TAGS;
    FdMonitorUring *u = g_new0(FdMonitorUring, 1);
    int ret;

    u->wait_by_poll = under_valgrind();
    if (u->wait_by_poll) {
        use = FDMON_SHARED;
    }
    ret = set_up_ring(&u->ring, use);

    if (ret == 0 && (u->ring.features & required) != required) {
        io_uring_queue_exit(&u->ring);
        ret = -ENOSYS;
    }
    if (ret < 0) {
        *errnum = -ret;
        g_free(u);
        return NULL;
    }
    u->base.ops = &uring_ops;
    u->event_fd = event_fd;
    u->own_thread = use == FDMON_OWN_THREAD;
    u->removed = g_hash_table_new(NULL, NULL);
    u->backlog = g_array_new(FALSE, FALSE, sizeof(struct io_uring_cqe));
    return &u->base;
}
