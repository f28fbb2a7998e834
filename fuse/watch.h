/*
 * Which queues watch for requests, where all see the same ones (as on /dev/fuse).
 *
 * A request wakes every thread that watches, and all but one in vain. So only as many watch as the load
 * needs:
 *
 *   queue 0                 always watches
 *   queue n DORMANT --a watching thread was busy for BUSY_PERCENT of a window--> ON TRIAL
 *   queue n DORMANT --a watching thread is stuck--> WATCHING
 *   queue n ON TRIAL --after TRIAL_NS requests are served faster by GAIN_PERCENT--> WATCHING
 *   queue n ON TRIAL --they are not: more threads only contend--> DORMANT, with no other trial for a while
 *   queue n WATCHING --it was busy for less than IDLE_PERCENT of a window--> DORMANT
 *
 * Queues 0 to watchers - 1 watch; the last of them may be on trial. Busy is the CPU time of the thread,
 * whatever for but busy polling. Against a thread that is stuck in a callback a timer of the main thread runs
 * while there is traffic: when no queue has read for an interval though something is there, the next queue
 * begins to watch.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_FUSE_WATCH_H
#define BG_FUSE_WATCH_H

#include <stdatomic.h>

#include "aio/aio.h"
#include "util/lock.h"

typedef struct FuseMount FuseMount;
typedef struct FuseQueue FuseQueue;

/* Of a mount. */
typedef struct FuseWatch {
    _Atomic unsigned watchers;
    BgMutex lock; /* innermost; taken once a window */
    /* The trial: 0 where there is none, else when it began; with the requests until then, and their rate
     * before. */
    int64_t trial_start BG_GUARDED_BY(lock);
    uint64_t trial_requests BG_GUARDED_BY(lock);
    double rate_before BG_GUARDED_BY(lock);     /* requests per ns */
    int64_t next_trial BG_GUARDED_BY(lock);     /* not before; CLOCK_MONOTONIC */
    int64_t trial_interval BG_GUARDED_BY(lock); /* from a failed trial to the next one */
    _Atomic bool guarded; /* the timer runs, or a bottom half is on its way to start it */
    AioTimer guard;       /* the main thread's, as the next */
    unsigned reads_seen;
} FuseWatch;

/* Of a queue; its own thread. */
typedef struct FuseWatchLoad {
    _Atomic unsigned reads;    /* batches; read by the main thread */
    _Atomic uint64_t requests; /* read by other queues */
    int64_t window_start;      /* CLOCK_MONOTONIC; 0: none yet */
    int64_t window_cpu;        /* CPU time of the thread then, less busy polling */
    uint64_t window_requests;  /* of all queues, then */
    unsigned batches;          /* in the window, as the next two */
    unsigned empty;            /* woken in vain */
    unsigned full;             /* more than one request was there */
} FuseWatchLoad;

void fuse_watch_init(FuseMount *mount);
/* No queue runs any more. Main thread. */
void fuse_watch_stop(FuseMount *mount);
void fuse_watch_destroy(FuseMount *mount);

/* Whether the queue is to watch. */
bool fuse_watch_is_watcher(const FuseQueue *queue);
/*
 * The queue was woken and has received `n` requests in one go. In its thread; may stop its transport.
 */
void fuse_watch_account(FuseQueue *queue, unsigned n);

#endif /* BG_FUSE_WATCH_H */
