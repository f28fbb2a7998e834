/*
 * CoMutex, CoQueue and CoRwlock.
 *
 * All three hand over: who releases picks the first in line and makes it the owner before
 * it is woken, so nobody can overtake a waiter. A waiter is a node on the stack of its
 * coroutine; once it is off the list and woken, the node is gone.
 *
 * Lock order: the BgMutex inside of these is innermost. It is not held while waking.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "coroutine/lock.h"

#include "aio/aio.h"
#include "util/log.h"

struct CoWaiter {
    CoWaiter *next;
    Coroutine *co;
    bool reader; /* CoRwlock only */
};

static void list_init(CoWaitList *list)
{
    list->first = NULL;
    list->last = &list->first;
}

static void list_append(CoWaitList *list, CoWaiter *w)
{
    w->next = NULL;
    *list->last = w;
    list->last = &w->next;
}

static CoWaiter *list_pop(CoWaitList *list)
{
    CoWaiter *w = list->first;

    if (w) {
        list->first = w->next;
        if (!list->first) {
            list->last = &list->first;
        }
    }
    return w;
}

static void list_move(CoWaitList *to, CoWaitList *from)
{
    list_init(to);
    if (from->first) {
        *to = *from;
        list_init(from);
    }
}

static CoWaiter new_waiter(bool reader)
{
    Coroutine *self = coroutine_self();

    if (bg_unlikely(!self)) {
        bg_fatal("internal error: a coroutine lock was waited for outside of a coroutine");
    }
    return (CoWaiter){.co = self, .reader = reader};
}

static void check_idle(bool idle, const char *what)
{
    if (bg_unlikely(!idle)) {
        bg_fatal("internal error: a %s was destroyed while in use", what);
    }
}

/* ---- CoMutex
 *
 * `locked` = 0: free. 1: held, nobody waits. n > 1: held, n - 1 coroutines wait or are about
 * to, having counted themselves and queued in one section of `lock`. So who finds more than 1
 * on unlocking finds a waiter in the list as soon as it has `lock`, and `locked` never drops to
 * 0 while somebody waits: the count goes over from the old to the new holder.
 */

void co_mutex_init(CoMutex *m)
{
    atomic_init(&m->locked, 0);
    bg_mutex_init(&m->lock);
    list_init(&m->waiters);
    atomic_init(&m->holder, NULL);
}

void co_mutex_destroy(CoMutex *m)
{
    check_idle(atomic_load(&m->locked) == 0, "CoMutex");
    bg_mutex_destroy(&m->lock);
}

static bool mutex_take_free(CoMutex *m)
{
    uint32_t free_count = 0;

    return atomic_compare_exchange_strong_explicit(&m->locked, &free_count, 1, memory_order_acquire,
                                                   memory_order_relaxed);
}

static void mutex_set_holder(CoMutex *m, Coroutine *co)
{
    atomic_store_explicit(&m->holder, co, memory_order_relaxed);
}

static coroutine_fn void mutex_lock_contended(CoMutex *m)
{
    CoWaiter w = new_waiter(false);

    if (bg_unlikely(atomic_load_explicit(&m->holder, memory_order_relaxed) == w.co)) {
        bg_fatal("internal error: a coroutine locked a CoMutex that it holds");
    }
    bg_mutex_lock(&m->lock);
    if (atomic_fetch_add_explicit(&m->locked, 1, memory_order_acquire) == 0) {
        bg_mutex_unlock(&m->lock); /* released meanwhile */
        return;
    }
    list_append(&m->waiters, &w);
    bg_mutex_unlock(&m->lock);
    coroutine_yield(); /* until the holder has handed over */
}

void co_mutex_lock(CoMutex *m) BG_NO_TSA
{
    if (!mutex_take_free(m)) {
        mutex_lock_contended(m);
    }
    mutex_set_holder(m, coroutine_self());
}

bool co_mutex_trylock(CoMutex *m) BG_NO_TSA
{
    if (!mutex_take_free(m)) {
        return false;
    }
    mutex_set_holder(m, coroutine_self());
    return true;
}

static void mutex_hand_over(CoMutex *m)
{
    bg_mutex_lock(&m->lock);
    CoWaiter *w = list_pop(&m->waiters);

    atomic_fetch_sub_explicit(&m->locked, 1, memory_order_release);
    bg_mutex_unlock(&m->lock);
    aio_co_wake(w->co);
}

void co_mutex_unlock(CoMutex *m) BG_NO_TSA
{
    uint32_t only_me = 1;

    if (bg_unlikely(atomic_load_explicit(&m->holder, memory_order_relaxed) != coroutine_self())) {
        bg_fatal("internal error: a CoMutex was unlocked by another coroutine than its holder");
    }
    mutex_set_holder(m, NULL);
    if (!atomic_compare_exchange_strong_explicit(&m->locked, &only_me, 0, memory_order_release,
                                                 memory_order_relaxed)) {
        mutex_hand_over(m);
    }
}

/* ---- CoQueue */

void co_queue_init(CoQueue *q)
{
    bg_mutex_init(&q->lock);
    list_init(&q->waiters);
}

void co_queue_destroy(CoQueue *q)
{
    check_idle(co_queue_empty(q), "CoQueue");
    bg_mutex_destroy(&q->lock);
}

static void queue_append(CoQueue *q, CoWaiter *w)
{
    bg_mutex_lock(&q->lock);
    list_append(&q->waiters, w);
    bg_mutex_unlock(&q->lock);
}

void co_queue_wait(CoQueue *q, CoMutex *m)
{
    CoWaiter w = new_waiter(false);

    queue_append(q, &w);
    if (m) {
        co_mutex_unlock(m);
    }
    coroutine_yield();
    if (m) {
        co_mutex_lock(m);
    }
}

void co_queue_wait_locked(CoQueue *q, BgMutex *m)
{
    CoWaiter w = new_waiter(false);

    queue_append(q, &w);
    bg_mutex_unlock(m);
    coroutine_yield();
    bg_mutex_lock(m);
}

/*
 * From outside of a coroutine the loop resumes it, not this call: the caller may hold the BgMutex that
 * the waiter wants next.
 */
static void queue_wake(CoWaiter *w)
{
    Coroutine *co = w->co;

    if (coroutine_in()) {
        aio_co_wake(co);
    } else {
        aio_co_schedule(coroutine_context(co), co);
    }
}

bool co_queue_next(CoQueue *q)
{
    bg_mutex_lock(&q->lock);
    CoWaiter *w = list_pop(&q->waiters);

    bg_mutex_unlock(&q->lock);
    if (w) {
        queue_wake(w);
    }
    return w != NULL;
}

unsigned co_queue_restart_all(CoQueue *q)
{
    CoWaitList woken;
    CoWaiter *w;
    unsigned n = 0;

    bg_mutex_lock(&q->lock);
    list_move(&woken, &q->waiters);
    bg_mutex_unlock(&q->lock);
    while ((w = list_pop(&woken))) {
        queue_wake(w); /* w is gone with it */
        n++;
    }
    return n;
}

bool co_queue_empty(CoQueue *q)
{
    bg_mutex_lock(&q->lock);
    bool empty = !q->waiters.first;

    bg_mutex_unlock(&q->lock);
    return empty;
}

/* ---- CoRwlock
 *
 * Invariant outside of `lock`: if somebody waits, the first in line cannot be let in. So a free lock
 * has no waiters, and the first in line of a lock held by readers is a writer.
 */

void co_rwlock_init(CoRwlock *l) BG_NO_TSA
{
    bg_mutex_init(&l->lock);
    l->owners = 0;
    list_init(&l->waiters);
}

void co_rwlock_destroy(CoRwlock *l) BG_NO_TSA
{
    check_idle(l->owners == 0 && !l->waiters.first, "CoRwlock");
    bg_mutex_destroy(&l->lock);
}

static bool rwlock_admit_locked(CoRwlock *l, bool reader) BG_REQUIRES(l->lock)
{
    if (reader ? l->owners < 0 : l->owners != 0) {
        return false;
    }
    l->owners = reader ? l->owners + 1 : -1;
    return true;
}

/* Make owners of as many at the head of the line as go together, and move them to `woken`. */
static void rwlock_grant_locked(CoRwlock *l, CoWaitList *woken) BG_REQUIRES(l->lock)
{
    list_init(woken);
    while (l->waiters.first && rwlock_admit_locked(l, l->waiters.first->reader)) {
        list_append(woken, list_pop(&l->waiters));
    }
}

static void wake_list(CoWaitList *woken)
{
    CoWaiter *w;

    while ((w = list_pop(woken))) {
        aio_co_wake(w->co); /* w is gone with it */
    }
}

static coroutine_fn void rwlock_acquire(CoRwlock *l, bool reader)
{
    CoWaiter w = new_waiter(reader);

    bg_mutex_lock(&l->lock);
    if (!l->waiters.first && rwlock_admit_locked(l, reader)) {
        bg_mutex_unlock(&l->lock);
        return;
    }
    list_append(&l->waiters, &w);
    bg_mutex_unlock(&l->lock);
    coroutine_yield(); /* until made an owner */
}

void co_rwlock_rdlock(CoRwlock *l)
{
    rwlock_acquire(l, true);
}

void co_rwlock_wrlock(CoRwlock *l)
{
    rwlock_acquire(l, false);
}

static void rwlock_check_owners(bool valid)
{
    if (bg_unlikely(!valid)) {
        bg_fatal("internal error: a CoRwlock was released or changed by somebody who did not hold it so");
    }
}

void co_rwlock_upgrade(CoRwlock *l)
{
    CoWaiter w = new_waiter(false);
    CoWaitList woken;

    bg_mutex_lock(&l->lock);
    rwlock_check_owners(l->owners > 0);
    l->owners--;
    if (!l->waiters.first && rwlock_admit_locked(l, false)) {
        bg_mutex_unlock(&l->lock);
        return;
    }
    list_append(&l->waiters, &w);
    rwlock_grant_locked(l, &woken); /* a writer before us may have waited for our share only */
    bg_mutex_unlock(&l->lock);
    wake_list(&woken);
    coroutine_yield();
}

void co_rwlock_downgrade(CoRwlock *l)
{
    CoWaitList woken;

    bg_mutex_lock(&l->lock);
    rwlock_check_owners(l->owners == -1);
    l->owners = 1;
    rwlock_grant_locked(l, &woken);
    bg_mutex_unlock(&l->lock);
    wake_list(&woken);
}

void co_rwlock_unlock(CoRwlock *l)
{
    CoWaitList woken;

    bg_mutex_lock(&l->lock);
    rwlock_check_owners(l->owners != 0);
    l->owners = l->owners < 0 ? 0 : l->owners - 1;
    rwlock_grant_locked(l, &woken);
    bg_mutex_unlock(&l->lock);
    wake_list(&woken);
}
