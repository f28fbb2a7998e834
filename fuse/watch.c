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
#define ACCOUNT_BATCHES 8
#define WINDOW_NS       (20 * 1000 * 1000LL)
#define BUSY_PERCENT    90
#define IDLE_PERCENT    25
#define GUARD_NS        (50 * 1000 * 1000LL)

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

/* Let the next queue watch too. Any thread. */
static void add_watcher(FuseMount *mount)
{
    unsigned n = atomic_load(&mount->watch.watchers);
    if (n < mount->n_queues && atomic_compare_exchange_strong(&mount->watch.watchers, &n, n + 1)) {
        aio_bh_schedule_oneshot(mount->queues[n].ctx, join_bh, &mount->queues[n]);
    }
}

/* The last one that came leaves, if it is this queue. In its thread. */
static void leave(FuseQueue *queue)
{
    unsigned n = queue->index + 1;
    if (queue->index > 0 && atomic_compare_exchange_strong(&queue->mount->watch.watchers, &n, n - 1)) {
        queue->transport->stop(queue);
    }
}

/* ---- Load */

static int64_t thread_cpu_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static void window_begin(FuseWatchLoad *load, int64_t now)
{
    load->window_start = now;
    load->window_cpu = thread_cpu_ns();
    load->batches = load->empty = load->full = 0;
}

static void window_end(FuseQueue *queue)
{
    FuseWatchLoad *load = &queue->load;
    int64_t now = aio_clock_ns(), wall = now - load->window_start;
    if (load->window_start == 0) {
        window_begin(load, now);
        return;
    }
    if (wall < WINDOW_NS) {
        return;
    }
    int64_t busy = (thread_cpu_ns() - load->window_cpu) * 100 / wall;
    bool backlog = load->full > load->batches / 2;
    bool in_vain = load->empty > load->batches / 2;
    window_begin(load, now);
    if (busy >= BUSY_PERCENT && backlog) {
        add_watcher(queue->mount);
    } else if (busy < IDLE_PERCENT || in_vain) {
        leave(queue);
    }
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
    atomic_store(&mount->watch.watchers, 1);
    aio_timer_init(&mount->watch.guard, main_context(mount), guard_tick, mount);
}

void fuse_watch_stop(FuseMount *mount)
{
    aio_timer_del(&mount->watch.guard);
}
