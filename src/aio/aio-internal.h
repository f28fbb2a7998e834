/*
 * Inside of an AioContext: shared by the files of src/aio only.
 *
 * One round of the loop, in aio_context_run_once() or spread over the phases of a GSource:
 *
 *   flush -> wait -> awake -> dispatch completions and descriptors -> run work -> run timers
 *
 * Wake-ups: `wake_state` says what a producer has to do after it queued something.
 *
 *   state    | the loop                              | a producer in another thread
 *   ---------+---------------------------------------+------------------------------------
 *   AWAKE    | has looked at its lists or will       | -> NOTIFIED, no syscall
 *   NOTIFIED | will not sleep in its next wait       | nothing to do
 *   ASLEEP   | waits, or is about to                 | -> NOTIFIED, writes the eventfd
 *
 * The loop goes AWAKE -> ASLEEP by compare-and-swap, so a NOTIFIED in between is not lost, and
 * anything -> AWAKE before it takes its lists, so whatever is queued later notifies again.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_AIO_INTERNAL_H
#define BG_AIO_INTERNAL_H

#include "aio/aio.h"
#include "aio/work.h"
#include "util/lock.h"

typedef struct FdMonitor FdMonitor;
typedef struct AioFdHandler AioFdHandler;

/* ---- Descriptor monitors: how the loop waits */

typedef struct FdMonitorOps {
    AioBackend backend;
    /* All below: own thread; `free` any. */
    void (*free)(FdMonitor *m);
    /* The wanted events of h have changed, or it was removed: then h belongs to the monitor. */
    void (*update)(FdMonitor *m, AioFdHandler *h);
    /* Send what is queued. Returns whether dispatch() has something to do already. */
    bool (*flush)(FdMonitor *m);
    /* Flush, and wait for events: timeout_ns < 0 for ever, 0 not at all. */
    void (*wait)(FdMonitor *m, int64_t timeout_ns);
    /* Run the callbacks of the events that the last wait() found. Returns whether there was any. */
    bool (*dispatch)(FdMonitor *m);
    /* Whether wait(m, 0) would find events, without a system call; after flush(). NULL: cannot tell. */
    bool (*ready)(FdMonitor *m);
    /* A descriptor that is readable when wait(m, 0) would find events. */
    int (*poll_fd)(FdMonitor *m);
    /* The own thread is about to end. */
    void (*thread_exit)(FdMonitor *m);
} FdMonitorOps;

struct FdMonitor {
    const FdMonitorOps *ops;
};

/* How a monitor has to behave. */
typedef enum FdMonitorUse {
    FDMON_SHARED,     /* set up in any thread; poll_fd() watched by a GMainLoop */
    FDMON_OWN_THREAD, /* set up, driven and ended by one thread that only calls wait() */
} FdMonitorUse;

/* NULL and *errnum (positive) on failure. event_fd wakes wait(); it is never read. */
FdMonitor *fdmon_uring_new(int event_fd, FdMonitorUse use, int *errnum);
FdMonitor *fdmon_epoll_new(int event_fd, int *errnum);

struct io_uring_sqe *fdmon_uring_get_sqe(FdMonitor *m, AioCqe *cqe);

/* ---- Descriptor handlers */

/* Of one descriptor from its first handler until it is forgotten. */
struct AioFdHandler {
    int fd;
    bool removed; /* forgotten: no callback may run any more */
    bool busy;    /* a callback is running: do not free */
    AioHandler *io_read;
    AioHandler *io_write;
    void *opaque;
    /* The monitor's: */
    short armed;        /* POLL* events that the kernel watches for it */
    uint8_t poll_state; /* io_uring: see fdmon-uring.c */
    bool dirty;         /* io_uring: in the list of those to be armed */
    AioFdHandler *next; /* in the monitor's list */
};

/* POLL* events that its handlers want; 0 once removed. */
short fd_handler_wanted(const AioFdHandler *h);
/* Call what `revents` asks for. Returns whether any callback ran. */
bool fd_handler_dispatch(AioFdHandler *h, short revents);

/* ---- Context */

typedef enum AioWakeState {
    AIO_AWAKE,
    AIO_NOTIFIED,
    AIO_ASLEEP,
} AioWakeState;

struct AioContext {
    char *name;
    FdMonitor *monitor;
    int event_fd;
    GHashTable *handlers; /* fd -> AioFdHandler; own thread */

    /* Busy polling: see poll.c. All but the first: own thread. */
    _Atomic int64_t poll_max_ns;
    int64_t wait_started_ns; /* 0: this round does not wait */
    int64_t polled_ns;       /* in all */
    int poll_score;

    BgMutex timer_lock;                          /* innermost; not held while a callback runs */
    AioTimer **timers BG_GUARDED_BY(timer_lock); /* heap */
    int n_timers BG_GUARDED_BY(timer_lock);
    int max_timers BG_GUARDED_BY(timer_lock);
    _Atomic int64_t next_expire_ns; /* of the heap's top, INT64_MAX without; written under timer_lock */

    /* Written by every thread that hands over work: kept off the lines above. */
    BG_CACHE_ALIGNED _Atomic(AioWork *) newest_work;
    _Atomic int wake_state; /* AioWakeState */
    _Atomic int refs;
};

AioContext *aio_context_new_for_use(const char *name, AioBackend backend, FdMonitorUse use, GError **errp);
/* The own thread is about to end; the context is only unref'd from now on. */
void aio_context_thread_exit(AioContext *ctx);

/* The parts of a round, for aio_context_run_once() and for the GSource. Own thread. */
int64_t aio_context_timeout_ns(AioContext *ctx); /* < 0: none; 0: something is ready */
bool aio_context_prepare_sleep(AioContext *ctx); /* false: notified, do not sleep */
bool aio_context_wake_up(AioContext *ctx);       /* whether it was notified */
bool aio_context_dispatch(AioContext *ctx);
/* Around each round: abort where this thread is inside of a round or a coroutine. */
void aio_context_enter_round(AioContext *ctx);
void aio_context_leave_round(AioContext *ctx);

bool aio_work_pending(AioContext *ctx);
bool aio_work_run_all(AioContext *ctx);
/* Free what deleted bottom halves left; abort where something else is queued. */
void aio_work_discard(AioContext *ctx);

bool aio_timers_run(AioContext *ctx);

/* Before and after the wait of a round, around prepare_sleep and wake_up. timeout_ns: see ops->wait(); the
 * first returns what is left of it. */
int64_t aio_poll_before_wait(AioContext *ctx, int64_t timeout_ns);
void aio_poll_after_wait(AioContext *ctx);

#endif /* BG_AIO_INTERNAL_H */
