/*
 * Locks and queues for coroutines. They work across threads, are fair (first come, first
 * served), and block only the calling coroutine, never its thread.
 *
 * A waiter is resumed in its own AioContext. All may be called from coroutines only, except
 * where said otherwise. Every coroutine that waits must run in a thread with an AioContext.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_COROUTINE_LOCK_H
#define BG_COROUTINE_LOCK_H

#include <stdatomic.h>
#include <stdint.h>

#include "coroutine/coroutine.h"
#include "util/lock.h"

typedef struct CoWaiter CoWaiter;

/* FIFO of waiting coroutines; internal list head, guarded by the owner's lock. */
typedef struct CoWaitList {
    CoWaiter *first;
    CoWaiter **last;
} CoWaitList;

/* ---- CoMutex: `locked` counts the holder and the waiters; 0 to 1 takes it without `lock`. */
typedef struct BG_CAPABILITY("comutex") CoMutex {
    _Atomic uint32_t locked;
    BgMutex lock;
    CoWaitList waiters BG_GUARDED_BY(lock);
    _Atomic(Coroutine *) holder; /* for assertions */
} CoMutex;

void co_mutex_init(CoMutex *m);
void co_mutex_destroy(CoMutex *m);
void coroutine_fn co_mutex_lock(CoMutex *m) BG_ACQUIRE(m);
bool co_mutex_trylock(CoMutex *m) BG_TRY_ACQUIRE(true, m);
/* Hands over to the first waiter, if any. By the holder, possibly in another thread than it locked in. */
void coroutine_fn co_mutex_unlock(CoMutex *m) BG_RELEASE(m);

/* ---- CoQueue: condition variable. */
typedef struct CoQueue {
    BgMutex lock;
    CoWaitList waiters BG_GUARDED_BY(lock);
} CoQueue;

void co_queue_init(CoQueue *q);
void co_queue_destroy(CoQueue *q);
/*
 * Wait until woken. `m` (may be NULL) is unlocked once the caller is queued, so that no wake-up
 * between is lost, and locked again before the return.
 */
void coroutine_fn co_queue_wait(CoQueue *q, CoMutex *m) BG_NO_TSA;
/* The same with a BgMutex that guards the condition. */
void coroutine_fn co_queue_wait_locked(CoQueue *q, BgMutex *m) BG_NO_TSA;
/*
 * Wake the first waiter or all, in order. Any thread, coroutine or not, and with a BgMutex held: no waiter
 * runs inside of the call. False/0 where none waited.
 */
bool co_queue_next(CoQueue *q);
unsigned co_queue_restart_all(CoQueue *q);
bool co_queue_empty(CoQueue *q);

/* ---- CoRwlock: readers share; a waiting writer stops later readers. */
typedef struct BG_CAPABILITY("corwlock") CoRwlock {
    BgMutex lock;
    int owners BG_GUARDED_BY(lock); /* > 0: readers; -1: a writer; 0: free */
    CoWaitList waiters BG_GUARDED_BY(lock);
} CoRwlock;

void co_rwlock_init(CoRwlock *l);
void co_rwlock_destroy(CoRwlock *l);
void coroutine_fn co_rwlock_rdlock(CoRwlock *l);
void coroutine_fn co_rwlock_wrlock(CoRwlock *l);
/* Reader to writer: waits in line; what was read before may have changed when it returns. */
void coroutine_fn co_rwlock_upgrade(CoRwlock *l);
/* Writer to reader, at once; readers in line right behind come along. */
void coroutine_fn co_rwlock_downgrade(CoRwlock *l);
void coroutine_fn co_rwlock_unlock(CoRwlock *l);

#endif /* BG_COROUTINE_LOCK_H */
