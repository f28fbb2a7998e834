/*
 * How many queues watch. See watch.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <poll.h>
#include <time.h>

#include "fuse/mount-internal.h"
#include "fuse/watch.h"

/* The load is looked at every so many batches, over windows of at least this length. */
#define ACCOUNT_BATCHES       8
#define WINDOW_NS             (20 * 1000 * 1000LL)
#define BUSY_PERCENT          90
#define IDLE_PERCENT          25
#define TRIAL_NS              (60 * 1000 * 1000LL)
#define GAIN_PERCENT          10
/* From a failed trial to the next: twice as long each time. */
#define TRIAL_MIN_INTERVAL_NS (200 * 1000 * 1000LL)
#define TRIAL_MAX_INTERVAL_NS (4000 * 1000 * 1000LL)
#define GUARD_NS              (50 * 1000 * 1000LL)

static AioContext *main_context(const FuseMount *mount)
{
    return block_graph_main_context(mount->graph);
}

bool fuse_watch_is_watcher(const FuseQueue *queue)
{
    return queue->index < atomic_load(&queue->mount->watch.watchers);
}

/* ---- Coming and going */

static void join_bh(void *opaque)
{
    FuseQueue *queue = opaque;
    if (queue->state == FUSE_QUEUE_RUNNING && fuse_watch_is_watcher(queue)) {
        queue->load.window_start = 0;
        queue->transport->start(queue);
    }
}

/* Let the next queue watch too. Returns whether there was one. Any thread. */
static bool add_watcher(FuseMount *mount)
{
    unsigned n = atomic_load(&mount->watch.watchers);
    if (n >= mount->n_queues || !atomic_compare_exchange_strong(&mount->watch.watchers, &n, n + 1)) {
        return false;
    }
    aio_bh_schedule_oneshot(mount->queues[n].ctx, join_bh, &mount->queues[n]);
    return true;
}

/* The last one that came leaves, if it is this queue. In its thread. */
static void leave(FuseQueue *queue)
{
    unsigned n = queue->index + 1;
    if (queue->index > 0 && atomic_compare_exchange_strong(&queue->mount->watch.watchers, &n, n - 1)) {
        queue->transport->stop(queue);
    }
}

static void leave_bh(void *opaque)
{
    FuseQueue *queue = opaque;
    if (queue->state == FUSE_QUEUE_RUNNING && !fuse_watch_is_watcher(queue)) {
        queue->transport->stop(queue);
    }
}

/* The last one that came leaves, whichever it is. Any thread. */
static void dismiss_last(FuseMount *mount)
{
    unsigned n = atomic_load(&mount->watch.watchers);
    if (n > 1 && atomic_compare_exchange_strong(&mount->watch.watchers, &n, n - 1)) {
        aio_bh_schedule_oneshot(mount->queues[n - 1].ctx, leave_bh, &mount->queues[n - 1]);
    }
}

/* ---- Load */

/* CPU time that the thread has worked: without what it looked for work. */
static int64_t worked_ns(const FuseQueue *queue)
{
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return ts.tv_sec * 1000000000LL + ts.tv_nsec - aio_context_polled_ns(queue->ctx);
}

static uint64_t total_requests(const FuseMount *mount)
{
    uint64_t n = 0;
    for (unsigned i = 0; i < mount->n_queues; i++) {
        n += atomic_load_explicit(&mount->queues[i].load.requests, memory_order_relaxed);
    }
    return n;
}

static void window_begin(FuseQueue *queue, int64_t now)
{
    FuseWatchLoad *load = &queue->load;
    load->window_start = now;
    load->window_requests = total_requests(queue->mount);
    load->window_cpu = worked_ns(queue);
    load->batches = load->empty = load->full = 0;
}

static void trial_begin(FuseQueue *queue, int64_t now, double rate) BG_REQUIRES(queue->mount->watch.lock)
{
    FuseWatch *watch = &queue->mount->watch;
    if (now >= watch->next_trial && add_watcher(queue->mount)) {
        watch->trial_start = now;
        watch->trial_requests = total_requests(queue->mount);
        watch->rate_before = rate;
    }
}

static void trial_end(FuseQueue *queue, int64_t now) BG_REQUIRES(queue->mount->watch.lock)
{
    FuseWatch *watch = &queue->mount->watch;
    double rate =
        (double)(total_requests(queue->mount) - watch->trial_requests) / (double)(now - watch->trial_start);
    watch->trial_start = 0;
    if (rate * 100 >= watch->rate_before * (100 + GAIN_PERCENT)) {
        watch->trial_interval = TRIAL_MIN_INTERVAL_NS;
        return;
    }
    watch->next_trial = now + watch->trial_interval;
    watch->trial_interval = MIN(watch->trial_interval * 2, TRIAL_MAX_INTERVAL_NS);
    dismiss_last(queue->mount);
}

/* What a window of `wall` ns that ends now says. */
static void judge(FuseQueue *queue, int64_t now, int64_t wall) BG_REQUIRES(queue->mount->watch.lock)
{
    FuseWatch *watch = &queue->mount->watch;
    FuseWatchLoad *load = &queue->load;
    int64_t busy = (worked_ns(queue) - load->window_cpu) * 100 / wall;
    bool in_vain = load->empty > load->batches / 2;
    if (watch->trial_start != 0) {
        /* Not only the queue on trial looks: it may get nothing. */
        if (now - watch->trial_start >= TRIAL_NS) {
            trial_end(queue, now);
        }
    } else if (busy >= BUSY_PERCENT && load->full > load->batches / 2) {
        uint64_t requests = total_requests(queue->mount) - load->window_requests;
        trial_begin(queue, now, (double)requests / (double)wall);
    } else if (busy < IDLE_PERCENT || in_vain) {
        leave(queue);
    }
}

static void window_end(FuseQueue *queue)
{
    FuseWatchLoad *load = &queue->load;
    int64_t now = aio_clock_ns(), wall = now - load->window_start;
    if (load->window_start != 0) {
        if (wall < WINDOW_NS) {
            return;
        }
        bg_mutex_lock(&queue->mount->watch.lock);
        judge(queue, now, wall);
        bg_mutex_unlock(&queue->mount->watch.lock);
    }
    window_begin(queue, now);
}

/* ---- The guard */

static unsigned total_reads(const FuseMount *mount)
{
    unsigned n = 0;
    for (unsigned i = 0; i < mount->n_queues; i++) {
        n += atomic_load_explicit(&mount->queues[i].load.reads, memory_order_relaxed);
    }
    return n;
}

static void guard_rearm(FuseMount *mount)
{
    aio_timer_mod(&mount->watch.guard, aio_clock_ns() + GUARD_NS);
}

static void guard_start_bh(void *opaque)
{
    guard_rearm(opaque);
}

static void guard_tick(void *opaque)
{
    FuseMount *mount = opaque;
    unsigned reads = total_reads(mount);
    bool progress = reads != mount->watch.reads_seen;
    mount->watch.reads_seen = reads;
    if (!progress) {
        struct pollfd p = {.fd = mount->queues[0].fd, .events = POLLIN};
        if (poll(&p, 1, 0) <= 0) {
            atomic_store(&mount->watch.guarded, false); /* no traffic */
            /* Pairs with fuse_watch_account: who read meanwhile saw a guard, and needs one. */
            if (total_reads(mount) == reads || atomic_exchange(&mount->watch.guarded, true)) {
                return;
            }
        } else if (p.revents & POLLIN) {
            add_watcher(mount);
        }
    }
    guard_rearm(mount);
}

void fuse_watch_account(FuseQueue *queue, unsigned n)
{
    FuseMount *mount = queue->mount;
    FuseWatchLoad *load = &queue->load;
    if (mount->n_queues == 1) {
        return;
    }
    unsigned reads = atomic_load_explicit(&load->reads, memory_order_relaxed) + 1;
    atomic_store_explicit(&load->reads, reads, memory_order_relaxed);
    atomic_store_explicit(&load->requests, atomic_load_explicit(&load->requests, memory_order_relaxed) + n,
                          memory_order_relaxed);
    load->batches++;
    load->empty += n == 0;
    load->full += n > 1;
    if (bg_unlikely(!atomic_load_explicit(&mount->watch.guarded, memory_order_relaxed)) &&
        !atomic_exchange(&mount->watch.guarded, true)) {
        aio_bh_schedule_oneshot(main_context(mount), guard_start_bh, mount);
    }
    if (reads % ACCOUNT_BATCHES == 0) {
        window_end(queue);
    }
}

void fuse_watch_init(FuseMount *mount)
{
    bg_mutex_init(&mount->watch.lock);
    mount->watch.trial_interval = TRIAL_MIN_INTERVAL_NS;
    atomic_store(&mount->watch.watchers, 1);
    aio_timer_init(&mount->watch.guard, main_context(mount), guard_tick, mount);
}

void fuse_watch_stop(FuseMount *mount)
{
    aio_timer_del(&mount->watch.guard);
}

void fuse_watch_destroy(FuseMount *mount)
{
    bg_mutex_destroy(&mount->watch.lock);
}
