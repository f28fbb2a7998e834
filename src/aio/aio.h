/*
 * AioContext: an event loop owned by one thread.
 *
 * It watches file descriptors, runs timers and bottom halves, resumes coroutines, and carries
 * file I/O in its io_uring (or, on the epoll kind, in the thread pool). The loop never runs
 * nested: aio_context_run_once() aborts when called from inside one of its own callbacks.
 *
 * "Own thread" below: the thread that runs the context. "Any thread": also threads without one.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_AIO_H
#define BG_AIO_H

#include <glib.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "coroutine/coroutine.h"
#include "util/compiler.h"

struct io_uring_sqe;

typedef enum AioBackend {
    AIO_BACKEND_AUTO, /* io_uring, or epoll where the kernel refuses io_uring */
    AIO_BACKEND_URING,
    AIO_BACKEND_EPOLL,
} AioBackend;

/* ---- Context */

/*
 * A new context; the choice of backend is logged once per process at BG_LOG_INFO. `name` is
 * copied (for logs). NULL and *errp where AIO_BACKEND_URING was asked and is refused, or
 * descriptors ran out. Rings do not survive fork(2): a daemon goes to the background before.
 */
AioContext *aio_context_new(const char *name, AioBackend backend, GError **errp);
AioContext *aio_context_ref(AioContext *ctx);
/* Dropping the last reference frees it; no handler, timer or bottom half may be left. */
void aio_context_unref(AioContext *ctx);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(AioContext, aio_context_unref)

const char *aio_context_name(const AioContext *ctx);
/* AIO_BACKEND_URING or AIO_BACKEND_EPOLL: what it runs on. */
AioBackend aio_context_backend(const AioContext *ctx);

/* The context of the calling thread, NULL where it has none. */
AioContext *aio_context_current(void);
/* Make ctx (or NULL: none) the calling thread's context. The thread becomes its "own thread". */
void aio_context_set_current(AioContext *ctx);

/*
 * Run one round: flush submissions, wait (if `block` and nothing is ready), dispatch. Returns
 * whether anything was dispatched. Own thread, outside of every callback.
 */
bool aio_context_run_once(AioContext *ctx, bool block);

/*
 * How long the loop looks for events before it sleeps, where its waits are short (poll.c), in ns; 0, as in
 * the beginning: never. Has no effect on the epoll kind, nor in a GMainLoop. Any thread.
 */
void aio_context_set_poll_max(AioContext *ctx, int64_t ns);
/* Time spent so, in ns. Own thread. */
int64_t aio_context_polled_ns(const AioContext *ctx);

/* Wake the loop so that it looks at its lists again; no syscall where it is awake. Any thread. */
void aio_context_notify(AioContext *ctx);

/*
 * A GSource that runs ctx (from aio_context_new(), not an iothread's) in a GMainLoop; the caller attaches and
 * unrefs it. Own thread = the GMainLoop's. Timers are precise to a millisecond there.
 */
GSource *aio_context_source_new(AioContext *ctx);

/*
 * From the top level of the own thread only (start-up, shut-down, tests: never from a callback or
 * coroutine): create a coroutine for entry(opaque), run it and the loop until it has returned.
 */
void aio_context_run_coroutine(AioContext *ctx, CoroutineEntry *entry, void *opaque);

/* ---- File descriptors (level-triggered). Own thread. */

typedef void AioHandler(void *opaque);
/*
 * Watch fd; NULL handlers stop watching that direction, both NULL forget the fd. May be called from
 * inside any callback, also for the fd being dispatched: no handler runs after it was removed. An fd
 * must be forgotten before it is closed.
 */
void aio_set_fd_handler(AioContext *ctx, int fd, AioHandler *io_read, AioHandler *io_write, void *opaque);

/* ---- Bottom halves: callbacks that run soon in the context's own thread. */

typedef struct AioBh AioBh;
/* A bottom half, not scheduled. Any thread. Freed with aio_bh_delete. */
AioBh *aio_bh_new(AioContext *ctx, AioHandler *cb, void *opaque);
/* Run cb once in the next round; scheduling twice before it ran runs it once. Any thread. */
void aio_bh_schedule(AioBh *bh);
/* Undo a schedule that has not run. Any thread; from the own thread it is certain that cb will not run. */
void aio_bh_cancel(AioBh *bh);
/* Free, also from inside its own callback; cb does not run after. Any thread. */
void aio_bh_delete(AioBh *bh);
/* Run cb(opaque) once in ctx's thread. Any thread. */
void aio_bh_schedule_oneshot(AioContext *ctx, AioHandler *cb, void *opaque);

/* ---- Timers: CLOCK_MONOTONIC, nanoseconds. */

typedef struct AioTimer {
    AioContext *ctx;
    AioHandler *cb;
    void *opaque;
    int64_t expire_ns; /* guarded by the context's timer lock */
    int heap_index;    /* -1: not armed; guarded as above */
} AioTimer;

int64_t aio_clock_ns(void);
void aio_timer_init(AioTimer *timer, AioContext *ctx, AioHandler *cb, void *opaque);
/* Arm, or move. Any thread. cb runs in the context's thread. */
void aio_timer_mod(AioTimer *timer, int64_t expire_ns);
/* Disarm. Any thread; from the own thread it is certain that cb will not run. */
void aio_timer_del(AioTimer *timer);
bool aio_timer_pending(AioTimer *timer);

/* ---- Coroutines */

/*
 * Enter `co` from ctx's loop, soon, in order of calls. Any thread. `co` must be suspended or about to
 * yield in ctx's or its own present context's thread, and nothing else may wake it meanwhile (debug builds
 * abort).
 */
void aio_co_schedule(AioContext *ctx, Coroutine *co);
/*
 * Resume a suspended coroutine in the context that ran it last. Any thread: in that context's own
 * thread it is entered at once (or, when called from a coroutine, as soon as that one yields or returns);
 * from elsewhere it is scheduled. The wake-up may come before the coroutine has yielded if both are in
 * different threads.
 */
void aio_co_wake(Coroutine *co);
/* Start or resume `co` in ctx: at once where ctx is the current one, else scheduled. */
void aio_co_enter(AioContext *ctx, Coroutine *co);
/* Go on in ctx's thread. No-op where it is the current one already. */
void coroutine_fn aio_co_reschedule_self(AioContext *ctx);
/* Sleep for ns nanoseconds without blocking the thread. */
void coroutine_fn aio_co_sleep_ns(int64_t ns);

/* ---- File I/O from coroutines: in the ring of the current context, or in the thread pool. */

/*
 * As preadv2(2), pwritev2(2): bytes done, possibly short, or -errno. iov is read until the return. flags:
 * RWF_*. Never return -EINTR or -EAGAIN.
 */
ssize_t coroutine_fn aio_co_preadv(int fd, const struct iovec *iov, int niov, off_t offset, int flags);
ssize_t coroutine_fn aio_co_pwritev(int fd, const struct iovec *iov, int niov, off_t offset, int flags);
/* fsync(2), or fdatasync(2) where data_only. 0 or -errno. */
int coroutine_fn aio_co_fsync(int fd, bool data_only);
/* fallocate(2). 0 or -errno. */
int coroutine_fn aio_co_fallocate(int fd, int mode, off_t offset, off_t len);

/*
 * Raw access to the ring, for transports. A completion calls cb in the own thread with res and flags set.
 * The AioCqe must live until then, and the context until the last completion.
 */
typedef struct AioCqe AioCqe;
struct AioCqe {
    void (*cb)(AioCqe *cqe);
    int32_t res;    /* as the kernel's: >= 0 or -errno */
    uint32_t flags; /* IORING_CQE_F_* */
};
/*
 * A submission entry with user_data set for cqe, sent with the next batch (before the loop waits). The caller
 * fills in the operation with io_uring_prep_*, then calls io_uring_sqe_set_data again with `cqe`.
 * NULL where the context runs on epoll. Own thread.
 */
struct io_uring_sqe *aio_uring_get_sqe(AioContext *ctx, AioCqe *cqe);

#endif /* BG_AIO_H */
