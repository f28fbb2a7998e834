/*
 * Coroutines and their locks, in one thread.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "aio-fixture.h"

#include <fenv.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "coroutine/lock.h"

/* ---- Life cycle */

static void set_flag(void *opaque)
{
    g_assert_true(coroutine_in());
    *(bool *)opaque = true;
}

static void lifecycle(void)
{
    bool done = false;
    Coroutine *co = coroutine_create(set_flag, &done);

    g_assert_false(done);
    g_assert_false(coroutine_in());
    coroutine_enter(co);
    g_assert_true(done);
    g_assert_false(coroutine_in());
    for (int i = 0; i < 5000; i++) { /* beyond what the pools keep, and reused */
        done = false;
        coroutine_enter(coroutine_create(set_flag, &done));
        g_assert_true(done);
    }
    coroutine_pool_drain();
}

/* More at a time than the pools hold; each with its own stack. */
static void fill_stack(void *opaque)
{
    volatile char data[2048];
    char mark = (char)GPOINTER_TO_INT(opaque);

    memset((char *)data, mark, sizeof(data));
    coroutine_yield();
    for (size_t i = 0; i < sizeof(data); i++) {
        g_assert_cmpint(data[i], ==, mark);
    }
}

static void many(void)
{
    enum { N = 1500 };
    g_autofree Coroutine **co = g_new(Coroutine *, N);

    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < N; i++) {
            co[i] = coroutine_create(fill_stack, GINT_TO_POINTER(i));
            coroutine_enter(co[i]);
        }
        for (int i = 0; i < N; i++) {
            coroutine_enter(co[(i * 7) % N]); /* 7 and N have no common divisor */
        }
    }
    coroutine_pool_drain();
}

typedef struct Steps {
    int yields;
    int seen;
    bool done;
    Coroutine *co;
} Steps;

static void yield_often(void *opaque)
{
    Steps *s = opaque;

    for (int i = 0; i < s->yields; i++) {
        g_assert_true(coroutine_self() == s->co);
        s->seen = i + 1;
        coroutine_yield();
    }
    s->done = true;
}

static void yield(void)
{
    Steps s = {.yields = 10};

    s.co = coroutine_create(yield_often, &s);
    for (int i = 1; i <= 10; i++) {
        coroutine_enter(s.co);
        g_assert_cmpint(s.seen, ==, i);
        g_assert_false(s.done);
        g_assert_null(coroutine_self());
    }
    coroutine_enter(s.co);
    g_assert_true(s.done);
}

typedef struct Nest {
    int depth;
    int max;
    int entered;
    int returned;
} Nest;

static void nest(void *opaque)
{
    Nest *n = opaque;
    Coroutine *self = coroutine_self();
    int depth = n->depth++;

    n->entered++;
    if (n->depth < n->max) {
        Coroutine *child = coroutine_create(nest, n);

        coroutine_enter(child); /* comes back when it yields */
        g_assert_true(coroutine_self() == self);
        coroutine_yield();
        g_assert_true(coroutine_self() == self);
        coroutine_enter(child);
    } else {
        coroutine_yield();
    }
    g_assert_cmpint(--n->depth, ==, depth);
    n->returned++;
}

static void nesting(void)
{
    Nest n = {.max = 300};
    Coroutine *co = coroutine_create(nest, &n);

    coroutine_enter(co);
    g_assert_cmpint(n.entered, ==, n.max);
    g_assert_cmpint(n.returned, ==, 0);
    coroutine_enter(co);
    g_assert_cmpint(n.returned, ==, n.max);
}

static void order_entry(void *opaque)
{
    GString *log = opaque;

    g_string_append_c(log, 'b');
    coroutine_yield();
    g_string_append_c(log, 'd');
}

static void order(void)
{
    g_autoptr(GString) log = g_string_new(NULL);
    Coroutine *co = coroutine_create(order_entry, log);

    g_string_append_c(log, 'a');
    coroutine_enter(co);
    g_string_append_c(log, 'c');
    coroutine_enter(co);
    g_string_append_c(log, 'e');
    g_assert_cmpstr(log->str, ==, "abcde");
}

static void round_up(void *opaque)
{
    g_assert_cmpint(fegetround(), ==, FE_TONEAREST);
    fesetround(FE_UPWARD);
    coroutine_yield();
    g_assert_cmpint(fegetround(), ==, FE_UPWARD);
}

/* The rounding mode and what is in callee-saved registers belong to each flow of control. */
static void registers(void)
{
    double a = 1.5, b = 2.5, c = 3.5;
    long i = 11, j = 22, k = 33, l = 44, m = 55;
    Coroutine *co = coroutine_create(round_up, NULL);

    __asm__ volatile("" : "+r"(i), "+r"(j), "+r"(k), "+r"(l), "+r"(m));
    coroutine_enter(co);
    g_assert_cmpint(fegetround(), ==, FE_TONEAREST);
    coroutine_enter(co);
    g_assert_cmpint(fegetround(), ==, FE_TONEAREST);
    g_assert_cmpint(i + j + k + l + m, ==, 165);
    g_assert_cmpfloat(a + b + c, ==, 7.5);
}

/* ---- Misuse */

static void yield_outside(void)
{
    EXPECT_ABORT(coroutine_yield(), "*coroutine_yield() outside of a coroutine*");
}

static void enter_self_entry(void *opaque)
{
    coroutine_enter(coroutine_self());
}

static void enter_running(void)
{
    EXPECT_ABORT(coroutine_enter(coroutine_create(enter_self_entry, NULL)),
                 "*a running coroutine was entered*");
}

static __attribute__((noinline)) int recurse(volatile char *above, int depth)
{
    volatile char frame[4096];

    frame[0] = above ? above[0] : 1;
    return depth == 0 ? 0 : recurse(frame, depth - 1) + frame[0];
}

/* Several times the stack, instrumented or not. */
static void overflow_entry(void *opaque)
{
    recurse(NULL, COROUTINE_STACK_SIZE / 4096 * 8);
}

static void stack_overflow(void)
{
    if (g_test_subprocess()) {
        coroutine_enter(coroutine_create(overflow_entry, NULL));
        _exit(0);
    }
    g_test_trap_subprocess(NULL, 0, 0);
    g_test_trap_assert_failed();
}

/* The mapping that holds `address`, in this process; false where there is none. */
static bool find_mapping(uintptr_t address, uintptr_t *start, uintptr_t *end, char access[5])
{
    g_autofree char *maps = NULL;

    g_assert_true(g_file_get_contents("/proc/self/maps", &maps, NULL, NULL));
    g_auto(GStrv) lines = g_strsplit(maps, "\n", -1);

    for (char **line = lines; *line; line++) {
        if (sscanf(*line, "%" SCNxPTR "-%" SCNxPTR " %4s", start, end, access) == 3 && *start <= address &&
            address < *end) {
            return true;
        }
    }
    return false;
}

/* No access is possible to the page below a stack. */
static void guard_entry(void *opaque)
{
    uintptr_t start, end, guard_start, guard_end;
    char access[5];
    int local;

    g_assert_true(find_mapping((uintptr_t)&local, &start, &end, access));
    g_assert_cmpstr(access, ==, "rw-p");
    g_assert_true(find_mapping(start - 1, &guard_start, &guard_end, access));
    g_assert_cmpuint(guard_end, ==, start);
    g_assert_cmpstr(access, ==, "---p");
}

static void stack_guard(void)
{
    coroutine_enter(coroutine_create(guard_entry, NULL));
}

#ifdef BG_DEBUG_CHECKS
static void yield_once(void *opaque)
{
    coroutine_yield();
}

static void schedule_twice(AioContext *ctx)
{
    Coroutine *co = coroutine_create(yield_once, NULL);

    coroutine_enter(co);
    aio_co_schedule(ctx, co);
    aio_co_schedule(ctx, co);
}

static void double_schedule(AioContext *ctx)
{
    EXPECT_ABORT(schedule_twice(ctx), "*scheduled or woken twice*");
}

static void schedule_and_enter(AioContext *ctx)
{
    Coroutine *co = coroutine_create(yield_once, NULL);

    coroutine_enter(co);
    aio_co_schedule(ctx, co);
    coroutine_enter(co);
}

static void enter_scheduled(AioContext *ctx)
{
    EXPECT_ABORT(schedule_and_enter(ctx), "*entered while it was scheduled*");
}
#endif

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/coroutine/lifecycle", lifecycle);
    g_test_add_func("/coroutine/many", many);
    g_test_add_func("/coroutine/yield", yield);
    g_test_add_func("/coroutine/nesting", nesting);
    g_test_add_func("/coroutine/order", order);
    g_test_add_func("/coroutine/registers", registers);
    g_test_add_func("/coroutine/misuse/yield-outside", yield_outside);
    g_test_add_func("/coroutine/misuse/enter-running", enter_running);
    g_test_add_func("/coroutine/stack/overflow", stack_overflow);
    g_test_add_func("/coroutine/stack/guard", stack_guard);
#ifdef BG_DEBUG_CHECKS
    aio_test_add("coroutine/misuse/double-schedule", double_schedule);
    aio_test_add("coroutine/misuse/enter-scheduled", enter_scheduled);
#endif
    return g_test_run();
}
