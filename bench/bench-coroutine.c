/*
 * Micro-benchmark: what a coroutine and a yield cost.
 *
 * Prints the best of several runs, in nanoseconds: create + enter + return of an empty
 * coroutine, and one yield with the enter that resumes it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>

#include "aio/aio.h"
#include "coroutine/coroutine.h"

#define RUNS 7

static void empty(void *opaque)
{
}

static void yield_forever(void *opaque)
{
    const bool *stop = opaque;

    while (!*stop) {
        coroutine_yield();
    }
}

static double lifecycle_ns(long n)
{
    int64_t begin = aio_clock_ns();

    for (long i = 0; i < n; i++) {
        coroutine_enter(coroutine_create(empty, NULL));
    }
    return (double)(aio_clock_ns() - begin) / (double)n;
}

static double yield_pair_ns(long n)
{
    bool stop = false;
    Coroutine *co = coroutine_create(yield_forever, &stop);
    int64_t begin = aio_clock_ns();

    for (long i = 0; i < n; i++) {
        coroutine_enter(co);
    }
    double ns = (double)(aio_clock_ns() - begin) / (double)n;

    stop = true;
    coroutine_enter(co);
    return ns;
}

/* The least disturbed run is the nearest to the truth. */
static double best_of(double (*measure)(long n), long n)
{
    double best = measure(n / 10 + 1); /* warms up the pool */

    for (int i = 0; i < RUNS; i++) {
        double ns = measure(n);

        best = ns < best ? ns : best;
    }
    return best;
}

int main(int argc, char **argv)
{
    long n = argc > 1 ? strtol(argv[1], NULL, 10) : 2000000;

    if (n <= 0) {
        fprintf(stderr, "usage: %s [ROUNDS]\n", argv[0]);
        return 1;
    }
    printf("create+enter+terminate: %.1f ns\n", best_of(lifecycle_ns, n));
    printf("yield pair:             %.1f ns\n", best_of(yield_pair_ns, n));
    coroutine_pool_drain();
    return 0;
}
