/*
 * Shared flushes; the scheme is in flush.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <stdatomic.h>

#include "aio/aio.h"
#include "block/flush.h"

typedef struct FlushWaiter FlushWaiter;
struct FlushWaiter {
    Coroutine *co;
    int ret;
    bool lead; /* woken to run the flush, not to take a result */
    FlushWaiter *next;
};

struct FlushState {
    _Atomic unsigned epoch; /* 0 or 1: where new writes count themselves */
    _Atomic int64_t writes[2];
    _Atomic bool dirty; /* something was written since the last successful run began */
    _Atomic bool leader_waits;
    _Atomic BlockFlushError error;         /* of a run; those do not overlap */
    BgMutex lock;                          /* a leaf */
    Coroutine *leader BG_GUARDED_BY(lock); /* sleeps until the old epoch is empty */
    bool running BG_GUARDED_BY(lock);
    FlushWaiter *first BG_GUARDED_BY(lock); /* hold the next ticket */
    FlushWaiter **last BG_GUARDED_BY(lock);
};

FlushState *flush_state_new(void)
{
    FlushState *f = g_new0(FlushState, 1);
    bg_mutex_init(&f->lock);
    f->last = &f->first;
    f->dirty = true; /* an earlier process may have left unflushed writes */
    return f;
}

void flush_state_free(FlushState *f)
{
    bg_mutex_destroy(&f->lock);
    g_free(f);
}

BlockFlushError flush_state_error(const FlushState *f)
{
    return atomic_load(&f->error);
}

void flush_state_set_error(FlushState *f, BlockFlushError error)
{
    atomic_store(&f->error, error);
}

static void wake_leader_if_empty(FlushState *f, unsigned epoch)
{
    bg_mutex_lock(&f->lock);
    Coroutine *co = NULL;
    if (f->leader && atomic_load(&f->writes[epoch]) == 0 && epoch != atomic_load(&f->epoch)) {
        co = f->leader;
        f->leader = NULL;
        atomic_store(&f->leader_waits, false);
    }
    bg_mutex_unlock(&f->lock);
    if (co) {
        aio_co_wake(co);
    }
}

static void epoch_leave(FlushState *f, unsigned epoch)
{
    /* Pairs with wait_for_old_writes: either it sees our count gone or we see leader_waits. */
    if (atomic_fetch_sub(&f->writes[epoch], 1) == 1 && atomic_load(&f->leader_waits)) {
        wake_leader_if_empty(f, epoch);
    }
}

unsigned flush_write_begin(FlushState *f)
{
    for (;;) {
        unsigned epoch = atomic_load(&f->epoch);
        atomic_fetch_add(&f->writes[epoch], 1);
        /*
         * Only a count entered before the epoch turned is waited for; a later one belongs to the new epoch.
         * Pairs with the exchange in wait_for_old_writes.
         */
        if (bg_likely(atomic_load(&f->epoch) == epoch)) {
            return epoch;
        }
        epoch_leave(f, epoch);
    }
}

void flush_write_end(FlushState *f, unsigned epoch)
{
    /* Before the count goes: a run that has waited for this write must find the flag. */
    if (!atomic_load_explicit(&f->dirty, memory_order_relaxed)) {
        atomic_store(&f->dirty, true);
    }
    epoch_leave(f, epoch);
}

static void coroutine_fn wait_for_old_writes(FlushState *f)
{
    unsigned old = atomic_fetch_xor(&f->epoch, 1);
    for (;;) {
        bg_mutex_lock(&f->lock);
        atomic_store(&f->leader_waits, true);
        if (atomic_load(&f->writes[old]) == 0) {
            atomic_store(&f->leader_waits, false);
            bg_mutex_unlock(&f->lock);
            return;
        }
        f->leader = coroutine_self();
        bg_mutex_unlock(&f->lock);
        coroutine_yield();
    }
}

static int coroutine_fn run_once(FlushState *f, FlushFunc *func, BlockNode *node, bool always)
{
    wait_for_old_writes(f);
    if (!atomic_exchange(&f->dirty, false) && !always) {
        return 0;
    }
    int ret = func(node);
    if (ret < 0) {
        atomic_store(&f->dirty, true);
    }
    return ret;
}

/*
 * Take the waiting ticket: its first holder will lead, and the others follow it. Called by a leader when it
 * starts; what queues up later has the next ticket.
 */
static FlushWaiter *take_waiters(FlushState *f) BG_REQUIRES(f->lock)
{
    FlushWaiter *list = f->first;
    f->first = NULL;
    f->last = &f->first;
    return list;
}

static void wake_with_result(FlushWaiter *w, int ret)
{
    while (w) {
        FlushWaiter *next = w->next; /* w is gone once its coroutine runs */
        w->ret = ret;
        aio_co_wake(w->co);
        w = next;
    }
}

/* Hand the leadership to the first who waits, or become idle. */
static void pass_on(FlushState *f)
{
    bg_mutex_lock(&f->lock);
    FlushWaiter *next = f->first;
    if (next) {
        f->first = next->next;
        if (!f->first) {
            f->last = &f->first;
        }
        next->lead = true;
    } else {
        f->running = false;
    }
    bg_mutex_unlock(&f->lock);
    if (next) {
        aio_co_wake(next->co);
    }
}

int coroutine_fn flush_state_co_run(FlushState *f, FlushFunc *func, BlockNode *node, bool always)
{
    FlushWaiter self = {.co = coroutine_self()};
    bg_mutex_lock(&f->lock);
    if (f->running) {
        *f->last = &self;
        f->last = &self.next;
        bg_mutex_unlock(&f->lock);
        coroutine_yield();
        if (!self.lead) {
            return self.ret;
        }
        bg_mutex_lock(&f->lock);
    }
    f->running = true;
    FlushWaiter *followers = take_waiters(f);
    bg_mutex_unlock(&f->lock);

    int ret = run_once(f, func, node, always);
    wake_with_result(followers, ret);
    pass_on(f);
    return ret;
}
