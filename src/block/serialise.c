/*
 * Serialisation of overlapping writes; the scheme is in serialise.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <stdatomic.h>

#include "aio/aio.h"
#include "block/serialise.h"

typedef struct TrackedWaiter TrackedWaiter;
struct TrackedWaiter {
    Coroutine *co;
    TrackedWaiter *next;
};

struct RequestTracker {
    _Atomic int64_t fast;    /* plain writes in flight that are not in the list */
    _Atomic int serialising; /* serialising requests, waiting or running */
    BgMutex lock;            /* a leaf: nothing is taken under it */
    TrackedRequest *first BG_GUARDED_BY(lock), *last BG_GUARDED_BY(lock);
    TrackedWaiter *fast_waiters BG_GUARDED_BY(lock); /* for fast == 0 */
};

RequestTracker *request_tracker_new(void)
{
    RequestTracker *t = g_new0(RequestTracker, 1);
    bg_mutex_init(&t->lock);
    return t;
}

void request_tracker_free(RequestTracker *t)
{
    bg_mutex_destroy(&t->lock);
    g_free(t);
}

static void wake_all(TrackedWaiter *w)
{
    while (w) {
        TrackedWaiter *next = w->next; /* w lies on the stack of the coroutine that is woken */
        aio_co_wake(w->co);
        w = next;
    }
}

/* Queue the caller on *list and sleep; the lock is dropped and not taken again. */
static void coroutine_fn wait_on(RequestTracker *t, TrackedWaiter **list) BG_RELEASE(t->lock)
{
    TrackedWaiter w = {.co = coroutine_self(), .next = *list};
    *list = &w;
    bg_mutex_unlock(&t->lock);
    coroutine_yield();
}

static void fast_end(RequestTracker *t)
{
    /* Pairs with begin_serialising: one of the two sees the other's counter. */
    if (atomic_fetch_sub(&t->fast, 1) == 1 && atomic_load(&t->serialising) > 0) {
        bg_mutex_lock(&t->lock);
        TrackedWaiter *w = t->fast_waiters;
        t->fast_waiters = NULL;
        bg_mutex_unlock(&t->lock);
        wake_all(w);
    }
}

static bool fast_begin(RequestTracker *t)
{
    atomic_fetch_add(&t->fast, 1);
    if (bg_likely(atomic_load(&t->serialising) == 0)) {
        return true;
    }
    fast_end(t);
    return false;
}

static void list_append(RequestTracker *t, TrackedRequest *req) BG_REQUIRES(t->lock)
{
    req->listed = true;
    req->prev = t->last;
    req->next = NULL;
    *(t->last ? &t->last->next : &t->first) = req;
    t->last = req;
}

static void list_remove(RequestTracker *t, TrackedRequest *req) BG_REQUIRES(t->lock)
{
    *(req->prev ? &req->prev->next : &t->first) = req->next;
    *(req->next ? &req->next->prev : &t->last) = req->prev;
}

static TrackedRequest *earlier_conflict(TrackedRequest *req)
{
    for (TrackedRequest *r = req->prev; r; r = r->prev) {
        bool overlap = r->offset < req->end && req->offset < r->end;
        if (overlap && (r->serialising || req->serialising)) {
            return r;
        }
    }
    return NULL;
}

void coroutine_fn request_tracker_begin(RequestTracker *t, TrackedRequest *req, int64_t offset, int64_t bytes,
                                        bool serialising)
{
    *req = (TrackedRequest){.offset = offset, .end = offset + bytes, .serialising = serialising};
    if (!serialising && fast_begin(t)) {
        return;
    }
    if (serialising) {
        atomic_fetch_add(&t->serialising, 1);
    }
    bg_mutex_lock(&t->lock);
    list_append(t, req);
    for (;;) {
        TrackedRequest *conflict = earlier_conflict(req);
        if (conflict) {
            wait_on(t, &conflict->waiters);
        } else if (serialising && atomic_load(&t->fast) > 0) {
            wait_on(t, &t->fast_waiters);
        } else {
            break;
        }
        bg_mutex_lock(&t->lock);
    }
    bg_mutex_unlock(&t->lock);
}

void request_tracker_end(RequestTracker *t, TrackedRequest *req)
{
    if (!req->listed) {
        fast_end(t);
        return;
    }
    bg_mutex_lock(&t->lock);
    list_remove(t, req);
    TrackedWaiter *w = req->waiters;
    bg_mutex_unlock(&t->lock);
    if (req->serialising) {
        atomic_fetch_sub(&t->serialising, 1);
    }
    wake_all(w);
}
