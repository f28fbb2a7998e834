/*
 * What the coroutine, its pool and the event loop share: not for other folders.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_COROUTINE_INTERNAL_H
#define BG_COROUTINE_INTERNAL_H

#include <stdatomic.h>
#include <stdint.h>

#include "aio/work.h"
#include "coroutine/switch.h"
#include "coroutine/coroutine.h"
#include "coroutine/fiber.h"

typedef enum CoroutineState {
    CO_CREATED,
    CO_RUNNING,
    CO_NESTED,    /* it has entered another one and waits for that */
    CO_SUSPENDED, /* its registers are saved: any thread may enter it */
    CO_TERMINATED,
} CoroutineState;

/* One side of a switch: where it goes on, and what the sanitizers know of it. */
typedef struct CoEndpoint {
    CoContext context;
    Fiber fiber;
} CoEndpoint;

/* Lies at the upper end of its own stack mapping. */
struct Coroutine {
    CoEndpoint here;
    CoEndpoint *enterer; /* where a yield goes; valid while it runs */
    CoroutineEntry *entry;
    void *opaque;
    _Atomic uint8_t state;         /* CoroutineState; SUSPENDED is stored with release, see resume() */
    bool returned;                 /* set by the coroutine just before its last switch */
    _Atomic bool scheduled;        /* in a work or ready list; kept in debug builds */
    _Atomic(AioContext *) context; /* that ran it last */
    AioContext *schedule_to;       /* set by itself before a yield: where it goes on */
    AioWork work;                  /* node in a context's work list */
    Coroutine *next;               /* in a pool or in a ready list */
    void *mapping;
    size_t mapping_size;
    unsigned valgrind_id;
};

typedef struct CoroutineList {
    Coroutine *first;
    Coroutine **last;
    unsigned length;
} CoroutineList;

/* Everything that one thread keeps for coroutines and loops. */
typedef struct CoThread {
    Coroutine *current;  /* NULL outside of coroutines */
    AioContext *context; /* aio_context_current() */
    bool in_dispatch;    /* a loop of this thread is running callbacks */
    CoEndpoint root;     /* the thread's own stack */
    CoroutineList ready; /* woken by coroutines of this thread, to be run when the current one is out */
    CoroutineList pool;  /* only first and length are used */
} CoThread;

/*
 * The calling thread's. A caller that may have yielded since must call it again: the compiler
 * cannot keep the address of a thread-local across a yield because it does not see one.
 */
CoThread *co_thread(void);

/* Queue for the calling thread's ready list. Inside a coroutine only. */
void coroutine_ready(CoThread *t, Coroutine *co);

/* Whether `co` has been left by the thread that ran it last. What it did there is visible then. */
bool coroutine_can_enter(Coroutine *co);

/* For the debug checks of double scheduling: `co` enters a list, leaves it. */
void coroutine_mark_scheduled(Coroutine *co);
void coroutine_clear_scheduled(Coroutine *co);

/* ---- pool.c */

/* Memory of a coroutine with `mapping`, `mapping_size` set, and its stack's bounds. */
Coroutine *coroutine_alloc(CoThread *t);
void coroutine_release(CoThread *t, Coroutine *co);
void coroutine_stack(const Coroutine *co, void **base, size_t *size);

#endif /* BG_COROUTINE_INTERNAL_H */
