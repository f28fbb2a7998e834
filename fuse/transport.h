/*
 * FuseTransport: how requests come from the kernel and replies go back.
 *
 * The rest of the front end knows only this table. A transport fills request objects of the queue's pool and
 * passes them to fuse_queue_receive(); it tells fuse_queue_connection_ended() once when the kernel has closed
 * the connection.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_FUSE_TRANSPORT_H
#define BG_FUSE_TRANSPORT_H

#include "fuse/request.h"

typedef struct FuseTransport {
    const char *name;
    /* Connect queue->fd to the session. Main thread, before start. 0 or -errno and *errp. */
    int (*open)(FuseQueue *queue, int session_fd, GError **errp);
    /* Main thread, after stop. */
    void (*close)(FuseQueue *queue);
    /* Begin, and end, to take requests. In the queue's thread. After stop none is received; replies still
     * go out. */
    void (*start)(FuseQueue *queue);
    void (*stop)(FuseQueue *queue);
    /*
     * Send req->out and the body. In the queue's thread. 0; -ENOENT: nobody waits for it any more (a fault of
     * nobody); -errno.
     */
    int (*reply)(FuseRequest *req);
} FuseTransport;

/* Reads and writes of /dev/fuse by system call, one cloned descriptor for each queue. */
extern const FuseTransport fuse_transport_dev;

#endif /* BG_FUSE_TRANSPORT_H */
