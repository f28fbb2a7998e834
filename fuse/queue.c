/*
 * Queues: the pool of requests, their start and their end. See queue.h for the states.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "aio/aio.h"
#include "fuse/export.h"
#include "fuse/mount-internal.h"
#include "fuse/ops.h"
#include "fuse/queue.h"
#include "util/log.h"

/* How often objects that were not needed are given back, and how many are never given back. */
#define TRIM_INTERVAL_NS (2 * 1000 * 1000 * 1000LL)
#define IDLE_KEPT        4
/* Most objects that wait in the pool. */
#define IDLE_MAX         256
/* Most requests of a mount at a time: each has a stack of its own, and a process 65,530 maps
 * (vm.max_map_count). */
#define IN_FLIGHT_MAX    16384
/* Pause before receiving again after memory ran out. */
#define STARVED_RETRY_NS (100 * 1000 * 1000LL)

/* ---- The pool */

static void queue_arm_timer(FuseQueue *queue, int64_t delay_ns)
{
    if (!aio_timer_pending(&queue->trim_timer)) {
        aio_timer_mod(&queue->trim_timer, aio_clock_ns() + delay_ns);
    }
}

static FuseRequest *pool_pop(FuseQueue *queue)
{
    FuseRequest *req = queue->idle;
    queue->idle = req->next;
    queue->n_idle--;
    queue->low_idle = MIN(queue->low_idle, queue->n_idle);
    return req;
}

FuseRequest *fuse_queue_get_request(FuseQueue *queue)
{
    bool full = queue->in_flight >= IN_FLIGHT_MAX / queue->mount->n_queues;
    FuseRequest *req = full ? NULL : queue->idle ? pool_pop(queue) : fuse_request_new(queue);
    if (bg_unlikely(!req)) {
        bg_log(BG_LOG_ERROR, "%s: %s, %u in flight; new ones wait", fuse_mount_mountpoint(queue->mount),
               full ? "too many FUSE requests" : "out of memory for FUSE requests", queue->in_flight);
        queue->starved = true;
        aio_timer_mod(&queue->trim_timer, aio_clock_ns() + STARVED_RETRY_NS);
    }
    return req;
}

void fuse_queue_put_request(FuseQueue *queue, FuseRequest *req)
{
    if (bg_unlikely(queue->n_idle >= IDLE_MAX || queue->state != FUSE_QUEUE_RUNNING)) {
        fuse_request_free(req);
        return;
    }
    req->next = queue->idle;
    queue->idle = req;
    if (++queue->n_idle > IDLE_KEPT) {
        queue_arm_timer(queue, TRIM_INTERVAL_NS);
    }
}

static void pool_shrink(FuseQueue *queue, unsigned n)
{
    while (n-- > 0) {
        fuse_request_free(pool_pop(queue));
    }
}

/* Free what lay in the pool unused for an interval; keep some objects, but not the memory of their payloads.
 */
static void queue_trim(void *opaque)
{
    FuseQueue *queue = opaque;
    if (queue->starved && queue->state == FUSE_QUEUE_RUNNING) {
        queue->starved = false;
        queue->transport->start(queue);
    }
    unsigned unused = MIN(queue->low_idle, queue->n_idle);
    if (unused > IDLE_KEPT) {
        pool_shrink(queue, unused - IDLE_KEPT);
    } else if (unused == queue->n_idle) {
        for (FuseRequest *req = queue->idle; req; req = req->next) {
            fuse_request_trim(req);
        }
    }
    queue->low_idle = queue->n_idle;
    if (queue->n_idle > IDLE_KEPT) {
        queue_arm_timer(queue, TRIM_INTERVAL_NS);
    }
}

/* ---- A request's way */

static void queue_check_stopped(FuseQueue *queue);

static int reply_errno(int ret)
{
    /* The kernel refuses a reply with an error outside of this range. */
    return ret > -512 ? ret : -EIO;
}

static void queue_send_reply(FuseQueue *queue, FuseRequest *req, int ret)
{
    if (ret < 0) {
        req->small_reply = 0;
        req->payload_reply = 0;
    }
    req->out = (struct fuse_out_header){
        .len = (uint32_t)(sizeof req->out + req->small_reply + req->payload_reply),
        .error = reply_errno(ret),
        .unique = req->in->unique,
    };
    int err = queue->transport->reply(req);
    if (bg_unlikely(err < 0 && err != -ENOENT && queue->state == FUSE_QUEUE_RUNNING)) {
        bg_log(BG_LOG_WARNING, "%s: reply to %s failed: %s", fuse_mount_mountpoint(queue->mount),
               req->op ? req->op->name : "a request", g_strerror(-err));
    }
}

/* Send what is due, let go of everything that the request holds. */
static void queue_finish(FuseRequest *req, int ret, bool reply)
{
    FuseQueue *queue = req->queue;
    if (bg_unlikely(queue->mount->debug)) {
        bg_log(BG_LOG_DEBUG, "queue %u: %" G_GUINT64_FORMAT " done: %d, %zu bytes", queue->index,
               req->in->unique, ret, req->small_reply + req->payload_reply);
    }
    if (reply) {
        queue_send_reply(queue, req, ret);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(req->exports); i++) {
        if (req->exports[i]) {
            fuse_export_leave(req->exports[i], queue->index);
        }
    }
    if (req->inode) {
        fuse_inode_put(&queue->mount->inodes, req->inode);
    }
    queue->in_flight--;
    fuse_queue_put_request(queue, req);
    queue_check_stopped(queue);
}

static void coroutine_fn request_entry(void *opaque)
{
    FuseRequest *req = opaque;
    queue_finish(req, req->op->handler(req), true);
}

static void log_request(const FuseQueue *queue, const FuseRequest *req, size_t size)
{
    bg_log(BG_LOG_DEBUG,
           "queue %u: %" G_GUINT64_FORMAT " %s (%u) node %" G_GUINT64_FORMAT " pid %u, %zu bytes",
           queue->index, req->in->unique, req->op ? req->op->name : "unknown", req->in->opcode,
           req->in->nodeid, req->in->pid, size);
}

void fuse_queue_receive(FuseQueue *queue, FuseRequest *req, size_t size)
{
    bool answerable;
    req->op = NULL;
    req->inode = NULL;
    req->exports[0] = req->exports[1] = NULL;
    req->small_reply = req->payload_reply = 0;
    queue->in_flight++;
    int ret = fuse_request_decode(req, size, &answerable);
    if (bg_unlikely(!answerable)) {
        bg_log(BG_LOG_WARNING, "%s: malformed FUSE request of %zu bytes dropped",
               fuse_mount_mountpoint(queue->mount), size);
        queue->in_flight--;
        fuse_queue_put_request(queue, req);
        queue_check_stopped(queue);
        return;
    }
    if (bg_unlikely(queue->mount->debug)) {
        log_request(queue, req, size);
    }
    if (bg_unlikely(ret < 0)) {
        queue_finish(req, ret, true);
    } else if (req->op->no_reply) {
        queue_finish(req, req->op->handler(req), false);
    } else {
        coroutine_enter(coroutine_create(request_entry, req));
    }
}

/* ---- Start and end */

void fuse_queue_init(FuseQueue *queue, FuseMount *mount, unsigned index, AioContext *ctx,
                     const FuseTransport *transport)
{
    *queue = (FuseQueue){
        .mount = mount, .ctx = aio_context_ref(ctx), .transport = transport, .index = index, .fd = -1};
    aio_timer_init(&queue->trim_timer, ctx, queue_trim, queue);
}

static void queue_start_bh(void *opaque)
{
    FuseQueue *queue = opaque;
    g_assert(queue->state == FUSE_QUEUE_NEW);
    queue->state = FUSE_QUEUE_RUNNING;
    queue->transport->start(queue);
}

void fuse_queue_start(FuseQueue *queue)
{
    aio_bh_schedule_oneshot(queue->ctx, queue_start_bh, queue);
}

static void queue_check_stopped(FuseQueue *queue)
{
    if (bg_likely(queue->state != FUSE_QUEUE_ENDING || queue->in_flight > 0 || !queue->stop_asked)) {
        return;
    }
    queue->state = FUSE_QUEUE_STOPPED;
    aio_timer_del(&queue->trim_timer);
    pool_shrink(queue, queue->n_idle);
    fuse_mount_queue_stopped(queue->mount); /* the queue may be gone now */
}

static void queue_end(FuseQueue *queue)
{
    if (queue->state == FUSE_QUEUE_RUNNING) {
        queue->transport->stop(queue);
        queue->state = FUSE_QUEUE_ENDING;
    }
}

static void queue_stop_bh(void *opaque)
{
    FuseQueue *queue = opaque;
    queue->stop_asked = true;
    queue_end(queue);
    queue_check_stopped(queue);
}

void fuse_queue_stop(FuseQueue *queue)
{
    aio_bh_schedule_oneshot(queue->ctx, queue_stop_bh, queue);
}

void fuse_queue_connection_ended(FuseQueue *queue)
{
    if (queue->state == FUSE_QUEUE_RUNNING) {
        queue_end(queue);
        fuse_mount_connection_ended(queue->mount);
    }
}
