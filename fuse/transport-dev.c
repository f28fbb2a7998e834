/*
 * Transport over /dev/fuse: a cloned descriptor for each queue, read and written by system call from the
 * queue's event loop.
 *
 * The loop watches the descriptor; when there is something, requests are read until the kernel has no more or
 * a batch is full (then the loop looks after its other work and comes back). Each read is one request, each
 * write one reply. Any descriptor gets any request, so not all queues watch at all times (watch.h).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fuse/queue.h"
#include "fuse/transport.h"
#include "util/error.h"
#include "util/log.h"

/* Requests read in one go, before the loop gets its turn. */
#define READ_BATCH 32
/* After so many times with a single request each, the read that would find nothing more is left out, ... */
#define LONE_READS 4
/* ... but for every so many times. */
#define LONE_PROBE 8

static int dev_open(FuseQueue *queue, int session_fd, GError **errp)
{
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return bg_error_set_errno(errp, errno, "/dev/fuse: opening a queue");
    }
    uint32_t source = (uint32_t)session_fd;
    if (ioctl(fd, FUSE_DEV_IOC_CLONE, &source) < 0) {
        int err = errno;
        close(fd);
        return bg_error_set_errno(errp, err, "/dev/fuse: connecting a queue to the mount");
    }
    queue->fd = fd;
    return 0;
}

static void dev_close(FuseQueue *queue)
{
    if (queue->fd >= 0) {
        close(queue->fd);
        queue->fd = -1;
    }
}

/* One request. Whether there may be more. */
static bool dev_receive(FuseQueue *queue)
{
    FuseRequest *req = fuse_queue_get_request(queue);
    if (bg_unlikely(!req)) {
        queue->transport->stop(queue);
        return false;
    }
    ssize_t n = read(queue->fd, fuse_request_buffer(req), FUSE_WRITE_HEAD + FUSE_PAYLOAD_SIZE);
    if (bg_likely(n > 0)) {
        fuse_queue_receive(queue, req, (size_t)n);
        return queue->state == FUSE_QUEUE_RUNNING;
    }
    int err = n < 0 ? errno : ENODEV;
    fuse_queue_put_request(queue, req);
    switch (err) {
    case EINTR:
    case ENOENT: /* the caller was interrupted before we got its request */
        return true;
    case EAGAIN:
        return false;
    default:
        /* ENODEV: unmounted. ECONNABORTED: aborted. Nothing else can come, and nothing could be done about
         * it. */
        if (err != ENODEV && err != ECONNABORTED) {
            bg_log(BG_LOG_ERROR, "/dev/fuse: read: %s", g_strerror(err));
        }
        fuse_queue_connection_ended(queue);
        return false;
    }
}

/*
 * Read until there is nothing more, or a batch is full. With one request at a time in flight the second read
 * never finds any: leave it out then; should there be one after all, the loop comes back at once.
 */
static void dev_readable(void *opaque)
{
    FuseQueue *queue = opaque;
    unsigned lone = queue->lone_reads, n = 0;
    unsigned limit = lone >= LONE_READS && lone % LONE_PROBE ? 1 : READ_BATCH;
    while (n < limit && dev_receive(queue)) {
        n++;
    }
    queue->lone_reads = n > 1 ? 0 : lone + 1;
    if (bg_likely(queue->state == FUSE_QUEUE_RUNNING)) {
        fuse_watch_account(queue, n);
    }
}

static void dev_start(FuseQueue *queue)
{
    if (fuse_watch_is_watcher(queue)) {
        aio_set_fd_handler(queue->ctx, queue->fd, dev_readable, NULL, queue);
    }
}

static void dev_stop(FuseQueue *queue)
{
    aio_set_fd_handler(queue->ctx, queue->fd, NULL, NULL, NULL);
}

static int dev_reply(FuseRequest *req)
{
    struct iovec iov[2] = {
        {.iov_base = &req->out, .iov_len = sizeof req->out + req->small_reply},
        {.iov_base = req->payload, .iov_len = req->payload_reply},
    };
    ssize_t n = writev(req->queue->fd, iov, req->payload_reply ? 2 : 1);
    return n < 0 ? -errno : 0;
}

const FuseTransport fuse_transport_dev = {
    .name = "dev",
    .open = dev_open,
    .close = dev_close,
    .start = dev_start,
    .stop = dev_stop,
    .reply = dev_reply,
};
