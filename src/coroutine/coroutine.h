/*
 * Stackful coroutines.
 *
 * A coroutine runs in the thread that enters it, until it yields or returns; it may be
 * entered again from another thread (aio_co_schedule moves it between AioContexts). Its stack
 * comes from a pool, with a guard page below. ASan, TSan and valgrind are told of every switch.
 *
 * States and transitions (checked in debug builds):
 *
 *   CREATED --enter--> RUNNING --yield--> SUSPENDED --enter--> RUNNING --return--> TERMINATED (pooled)
 *                      RUNNING --enter other--> NESTED --other yields or returns--> RUNNING
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_COROUTINE_H
#define BG_COROUTINE_H

#include "util/compiler.h"

typedef struct Coroutine Coroutine;
typedef struct AioContext AioContext;
typedef void CoroutineEntry(void *opaque);

/* Size of a coroutine's stack in bytes, without the guard page. */
#define COROUTINE_STACK_SIZE (256 * 1024)

/*
 * A new coroutine that will run entry(opaque). Any thread. Never NULL: running out of address
 * space aborts with a message. It must be entered at least once; it frees itself on return.
 */
Coroutine *coroutine_create(CoroutineEntry *entry, void *opaque);

/*
 * Run `co` in the calling thread until it yields or returns. From inside or outside a
 * coroutine. `co` must be CREATED or SUSPENDED. Its context becomes aio_context_current().
 */
void coroutine_enter(Coroutine *co);

/* Suspend the calling coroutine and go back to who entered it. */
void coroutine_fn coroutine_yield(void);

/* The calling coroutine, or NULL outside of one. Correct also after a move to another thread. */
Coroutine *coroutine_self(void);

static inline bool coroutine_in(void)
{
    return coroutine_self() != NULL;
}

/* The context that ran `co` last (or runs it now); NULL before the first enter. */
AioContext *coroutine_context(Coroutine *co);

/* Free this thread's pooled stacks. Called at thread exit by iothreads. */
void coroutine_pool_drain(void);

#endif /* BG_COROUTINE_H */
