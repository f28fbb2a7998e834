/*
 * FuseQueue: the requests that one iothread serves.
 *
 *   state      NEW --start--> RUNNING --stop asked, or the connection ends--> ENDING
 *              ENDING --in_flight is 0 and stop was asked--> STOPPED
 *
 *   NEW        nothing received yet
 *   RUNNING    the transport receives; requests run
 *   ENDING     the transport has stopped; requests in flight go on to their reply
 *   STOPPED    in_flight == 0, the pool is empty, no handler, timer or bottom half is left in the context;
 * the mount was told, once, by fuse_mount_queue_stopped(), and may free the queue
 *
 * Invariant: a request is either in the pool or counted by in_flight.
 *
 * All fields but the first block belong to the thread of `ctx`. There is no limit to in_flight: requests of
 * a drained export wait while those of others come and go. The kernel bounds it (max_background, and one for
 * each waiting thread).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_FUSE_QUEUE_H
#define BG_FUSE_QUEUE_H

#include "fuse/request.h"
#include "fuse/transport.h"
#include "fuse/watch.h"

typedef struct FuseMount FuseMount;

typedef enum FuseQueueState {
    FUSE_QUEUE_NEW,
    FUSE_QUEUE_RUNNING,
    FUSE_QUEUE_ENDING,
    FUSE_QUEUE_STOPPED,
} FuseQueueState;

struct FuseQueue {
    /* -- constant */
    FuseMount *mount;
    AioContext *ctx;
    const FuseTransport *transport;
    unsigned index; /* in the mount */
    int fd;         /* the transport's; -1: none */

    /* -- own thread */
    FuseQueueState state;
    unsigned in_flight;
    FuseRequest *idle; /* last used first: its memory is warm */
    unsigned n_idle;
    unsigned low_idle; /* least n_idle since the trim timer ran: that many were never needed */
    bool starved;      /* the transport stopped for want of memory */
    bool stop_asked;
    AioTimer trim_timer;
    FuseWatchLoad load;
    unsigned lone_reads; /* transport-dev.c: how often in a row one request was all there was */
} BG_CACHE_ALIGNED;

void fuse_queue_init(FuseQueue *queue, FuseMount *mount, unsigned index, AioContext *ctx,
                     const FuseTransport *transport);

/* Start, stop. Main thread; the work is done in the queue's thread, which then tells the mount. */
void fuse_queue_start(FuseQueue *queue);
void fuse_queue_stop(FuseQueue *queue);

/* ---- For transports, in the queue's thread */

/* An object to receive into; NULL when out of memory: stop receiving until transport->start is called again.
 */
FuseRequest *fuse_queue_get_request(FuseQueue *queue);
/* Give back an object that nothing was received into. */
void fuse_queue_put_request(FuseQueue *queue, FuseRequest *req);
/* A request of `size` bytes lies in req's buffer: decode it and run it. */
void fuse_queue_receive(FuseQueue *queue, FuseRequest *req, size_t size);
/* The kernel has closed the connection. */
void fuse_queue_connection_ended(FuseQueue *queue);

#endif /* BG_FUSE_QUEUE_H */
