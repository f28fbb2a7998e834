/*
 * Work list of an AioContext: what any thread may hand to its own thread (bottom halves,
 * coroutines to enter, finished thread-pool jobs). One lock-free list keeps them all in
 * order of arrival. Private to src/aio and src/coroutine.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_AIO_WORK_H
#define BG_AIO_WORK_H

#include <stdatomic.h>
#include <stdbool.h>

typedef struct AioContext AioContext;
typedef struct AioWork AioWork;

/* Embedded in what is queued; in one list at a time. */
struct AioWork {
    AioWork *next;
    /* In the own thread. May free or queue the node again. Returns whether it did something. */
    bool (*run)(AioWork *work);
};

/* Queue and wake the loop where it sleeps. Any thread. */
void aio_work_push(AioContext *ctx, AioWork *work);

/* AioWork.run of a coroutine: enters it. */
bool aio_co_work_run(AioWork *work);

#endif /* BG_AIO_WORK_H */
