/*
 * Life cycle of a coroutine: create, enter, yield, return.
 *
 * State       | means                                | left by
 * ------------+--------------------------------------+------------------------------------------
 * CREATED     | never entered                        | enter -> RUNNING
 * RUNNING     | is coroutine_self() of one thread    | yield -> SUSPENDED, return -> TERMINATED,
 *             |                                      | entering another one -> NESTED
 * NESTED      | waits for the one that it entered    | that one yields or returns -> RUNNING
 * SUSPENDED   | registers saved, no thread runs it   | enter -> RUNNING
 * TERMINATED  | in a pool                            | coroutine_create() -> CREATED
 *
 * Invariants: only CREATED and SUSPENDED may be entered. Only the enterer stores SUSPENDED,
 * after the switch back, when nothing of the coroutine is live in this thread's registers.
 * A coroutine is in one list at most (a work list, a thread's ready list, a pool).
 *
 * A coroutine that wakes others of its thread does not enter them on top of itself: they
 * line up in the thread's ready list, which coroutine_enter() works off once the stack of
 * nested coroutines is empty.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "coroutine/coroutine.h"

#include "coroutine/coroutine-internal.h"
#include "util/log.h"

/* After so many ready coroutines in one go the loop gets a turn: timers and descriptors wait. */
#define READY_BATCH 256

#if defined(__clang__) || !defined(__GNUC__)
#define NEVER_INLINE __attribute__((noinline))
#else
#define NEVER_INLINE __attribute__((noipa))
#endif

NEVER_INLINE CoThread *co_thread(void)
{
    static _Thread_local CoThread thread;
    CoThread *t = &thread;

    /* The asm hides the value: two calls around a yield may not be folded into one. */
    __asm__ volatile("" : "+r"(t));
    return t;
}

/* ---- Double scheduling is found in debug builds only: it costs an atomic exchange. */

void coroutine_mark_scheduled(Coroutine *co)
{
#ifdef BG_DEBUG_CHECKS
    if (atomic_exchange(&co->scheduled, true)) {
        bg_fatal("internal error: a coroutine was scheduled or woken twice");
    }
#endif
}

void coroutine_clear_scheduled(Coroutine *co)
{
#ifdef BG_DEBUG_CHECKS
    atomic_store(&co->scheduled, false);
#endif
}

static void check_not_scheduled(Coroutine *co)
{
#ifdef BG_DEBUG_CHECKS
    if (atomic_load(&co->scheduled)) {
        bg_fatal("internal error: a coroutine was entered while it was scheduled as well");
    }
#endif
}

/* ---- Switching */

static void set_state(Coroutine *co, CoroutineState state)
{
    atomic_store_explicit(&co->state, state, memory_order_relaxed);
}

/* Runs on the coroutine's own stack; never returns. */
static void coroutine_main(void *arg)
{
    Coroutine *co = arg;

    fiber_arrive(&co->here.fiber, &co->enterer->fiber);
    co->entry(co->opaque);
    co->returned = true;
    fiber_leave(&co->here.fiber, &co->enterer->fiber, true);
    co_context_switch(&co->here.context, &co->enterer->context);
    __builtin_unreachable();
}

bool coroutine_can_enter(Coroutine *co)
{
    /* Pairs with the release in suspended(). */
    CoroutineState state = atomic_load_explicit(&co->state, memory_order_acquire);

    return state == CO_SUSPENDED || state == CO_CREATED;
}

/* `co` has yielded, and its registers are saved. */
static void suspended(Coroutine *co)
{
    AioContext *next = co->schedule_to;

    co->schedule_to = NULL;
    /* Pairs with the acquire in coroutine_can_enter(): the next enterer sees all that `co` did. */
    atomic_store_explicit(&co->state, CO_SUSPENDED, memory_order_release);
    /* From here on another thread may run it, unless it asked to be scheduled below. */
    if (next) {
        aio_work_push(next, &co->work);
    }
}

static void terminated(CoThread *t, Coroutine *co)
{
    fiber_destroy(&co->here.fiber);
    set_state(co, CO_TERMINATED);
    coroutine_release(t, co);
}

static void start_running(CoThread *t, Coroutine *co)
{
    if (bg_unlikely(!coroutine_can_enter(co))) {
        static const char *const names[] = {"", "running", "nested", "", "terminated"};

        bg_fatal("internal error: a %s coroutine was entered", names[atomic_load(&co->state)]);
    }
    check_not_scheduled(co);
    set_state(co, CO_RUNNING);
    atomic_store_explicit(&co->context, t->context, memory_order_relaxed);
}

/*
 * Run `co` until it yields or returns. `self` is t->current. Inline: each call around a switch is one more
 * return that the CPU predicts wrongly.
 */
static inline __attribute__((always_inline)) void resume(CoThread *t, Coroutine *self, Coroutine *co)
{
    CoEndpoint *here = self ? &self->here : &t->root;

    start_running(t, co);
    if (self) {
        set_state(self, CO_NESTED);
    }
    co->enterer = here;
    t->current = co;
    fiber_leave(&here->fiber, &co->here.fiber, false);
    co_context_switch(&here->context, &co->here.context);
    fiber_arrive(&here->fiber, NULL);
    t->current = self; /* a coroutine that waits here for `co` is not moved meanwhile: t is still right */
    if (self) {
        set_state(self, CO_RUNNING);
    }
    if (co->returned) {
        terminated(t, co);
    } else {
        suspended(co);
    }
}

/* ---- The ready list */

void coroutine_ready(CoThread *t, Coroutine *co)
{
    co->next = NULL;
    if (t->ready.length++ == 0) {
        t->ready.last = &t->ready.first;
    }
    *t->ready.last = co;
    t->ready.last = &co->next;
}

static Coroutine *ready_pop(CoThread *t)
{
    Coroutine *co = t->ready.first;

    t->ready.first = co->next;
    t->ready.length--;
    return co;
}

static void run_ready(CoThread *t)
{
    for (unsigned n = 0; t->ready.length > 0; n++) {
        Coroutine *co = ready_pop(t);

        if (n >= READY_BATCH && t->context) {
            aio_work_push(t->context, &co->work);
            continue;
        }
        coroutine_clear_scheduled(co);
        resume(t, NULL, co);
    }
}

/* ---- Interface */

Coroutine *coroutine_create(CoroutineEntry *entry, void *opaque)
{
    Coroutine *co = coroutine_alloc(co_thread());
    void *base;
    size_t size;

    coroutine_stack(co, &base, &size);
    fiber_create(&co->here.fiber, base, size);
    co_context_init(&co->here.context, base, size, coroutine_main, co);
    co->entry = entry;
    co->opaque = opaque;
    co->returned = false;
    co->schedule_to = NULL;
    co->work.run = aio_co_work_run;
    atomic_store_explicit(&co->context, NULL, memory_order_relaxed);
    coroutine_clear_scheduled(co);
    set_state(co, CO_CREATED);
    return co;
}

void coroutine_enter(Coroutine *co)
{
    CoThread *t = co_thread();
    Coroutine *self = t->current;

    resume(t, self, co);
    if (!self && bg_unlikely(t->ready.length > 0)) {
        run_ready(t);
    }
}

void coroutine_yield(void)
{
    Coroutine *self = co_thread()->current;

    if (bg_unlikely(!self)) {
        bg_fatal("internal error: coroutine_yield() outside of a coroutine");
    }
    fiber_leave(&self->here.fiber, &self->enterer->fiber, false);
    co_context_switch(&self->here.context, &self->enterer->context);
    fiber_arrive(&self->here.fiber, &self->enterer->fiber);
}

Coroutine *coroutine_self(void)
{
    return co_thread()->current;
}

AioContext *coroutine_context(Coroutine *co)
{
    return atomic_load_explicit(&co->context, memory_order_relaxed);
}
