/*
 * Tell ASan, TSan and valgrind about stacks and about each switch between them.
 * All of it compiles to nothing in a normal build.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_COROUTINE_FIBER_H
#define BG_COROUTINE_FIBER_H

#include "config.h"

#include <stddef.h>

#include "util/compiler.h"

#ifdef BG_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef BG_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#ifdef HAVE_VALGRIND_VALGRIND_H
#include <valgrind/valgrind.h>
#endif

#if defined(BG_ASAN) || defined(BG_TSAN)
#define FIBER_STACK_FACTOR 4 /* instrumented frames are larger */
#else
#define FIBER_STACK_FACTOR 1
#endif

/*
 * Part of its caller at any optimisation: TSan counts entries and exits of functions for each fiber, and one
 * that switches in between would leave another fiber than it entered.
 */
#define FIBER_INLINE static inline __attribute__((always_inline))

/* One end of a switch, as the sanitizers want to know it. */
typedef struct Fiber {
    const void *stack; /* ASan: lowest address and size */
    size_t size;
    void *fake_stack; /* ASan: saved while the fiber is away */
    void *tsan;
} Fiber;

/* A stack was mapped, is going to be unmapped: no red zones of the address range's last user may stay. */
static inline unsigned fiber_stack_register(void *base, size_t size)
{
#ifdef BG_ASAN
    ASAN_UNPOISON_MEMORY_REGION(base, size);
#endif
#ifdef HAVE_VALGRIND_VALGRIND_H
    return VALGRIND_STACK_REGISTER(base, (char *)base + size - 1);
#else
    return 0;
#endif
}

static inline void fiber_stack_deregister(void *base, size_t size, unsigned id)
{
#ifdef BG_ASAN
    ASAN_UNPOISON_MEMORY_REGION(base, size);
#endif
#ifdef HAVE_VALGRIND_VALGRIND_H
    VALGRIND_STACK_DEREGISTER(id);
#endif
}

/* A coroutine is about to be created on the stack: red zones of its last user's frames go. */
static inline void fiber_create(Fiber *f, void *base, size_t size)
{
#ifdef BG_ASAN
    ASAN_UNPOISON_MEMORY_REGION(base, size);
    f->stack = base;
    f->size = size;
    f->fake_stack = NULL;
#endif
#ifdef BG_TSAN
    f->tsan = __tsan_create_fiber(0);
#endif
}

/* The coroutine has ended and its stack may be reused. */
static inline void fiber_destroy(Fiber *f)
{
#ifdef BG_TSAN
    __tsan_destroy_fiber(f->tsan);
#endif
}

/* `from`, which is running, is about to switch to `to`; if `ends`, it never comes back. */
FIBER_INLINE void fiber_leave(Fiber *from, Fiber *to, bool ends)
{
#ifdef BG_TSAN
    from->tsan = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(to->tsan, 0);
#endif
#ifdef BG_ASAN
    __sanitizer_start_switch_fiber(ends ? NULL : &from->fake_stack, to->stack, to->size);
#endif
}

/* `self` runs, having come from `previous` (may be NULL), whose stack is noted down. */
FIBER_INLINE void fiber_arrive(Fiber *self, Fiber *previous)
{
#ifdef BG_ASAN
    const void *stack;
    size_t size;

    __sanitizer_finish_switch_fiber(self->fake_stack, &stack, &size);
    if (previous) {
        previous->stack = stack;
        previous->size = size;
    }
#endif
}

#endif /* BG_COROUTINE_FIBER_H */
