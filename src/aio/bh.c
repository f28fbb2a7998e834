/*
 * The work list of a context, and bottom halves on top of it.
 *
 * A bottom half is a set of flags:
 *   QUEUED     its node is in the work list, where it stays until the loop takes it out
 *   SCHEDULED  its callback shall run when the node comes out
 *   DELETED    it shall be freed when the node comes out
 * Invariants: SCHEDULED and DELETED imply QUEUED (between two callbacks of the loop), and who sets
 * QUEUED puts the node into the list. So cancelling only clears SCHEDULED, and only the own
 * thread ever frees.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "aio/aio.h"

#include "aio/aio-internal.h"
#include "coroutine/coroutine-internal.h"
#include "util/log.h"

/* ---- Work list: newest first; many push, the own thread takes all */

/* The order is sequentially consistent for aio_context_notify()'s sake; it also publishes the node. */
static void push_node(AioContext *ctx, AioWork *work)
{
    AioWork *newest = atomic_load_explicit(&ctx->newest_work, memory_order_relaxed);

    do {
        work->next = newest;
    } while (!atomic_compare_exchange_weak(&ctx->newest_work, &newest, work));
}

void aio_work_push(AioContext *ctx, AioWork *work)
{
    if (aio_context_current() == ctx) {
        push_node(ctx, work); /* the loop looks before it sleeps */
        return;
    }
    /* Once the node is visible, ctx may be run to its end and freed by its owner: hold it. */
    aio_context_ref(ctx);
    push_node(ctx, work);
    aio_context_notify(ctx);
    aio_context_unref(ctx);
}

bool aio_work_pending(AioContext *ctx)
{
    return atomic_load(&ctx->newest_work) != NULL;
}

/* Everything queued so far, oldest first. */
static AioWork *take_all(AioContext *ctx)
{
    AioWork *work = atomic_exchange(&ctx->newest_work, NULL);
    AioWork *oldest = NULL;

    while (work) {
        AioWork *next = work->next;

        work->next = oldest;
        oldest = work;
        work = next;
    }
    return oldest;
}

/* What callbacks queue meanwhile has to wait for the next round, so that descriptors get their turn. */
bool aio_work_run_all(AioContext *ctx)
{
    bool progress = false;

    if (!aio_work_pending(ctx)) {
        return false;
    }
    for (AioWork *work = take_all(ctx); work;) {
        AioWork *next = work->next; /* run() may free or queue it */

        progress |= work->run(work);
        work = next;
    }
    return progress;
}

/* ---- Bottom halves */

enum {
    BH_QUEUED = 1,
    BH_SCHEDULED = 2,
    BH_DELETED = 4,
};

struct AioBh {
    AioWork work;
    AioContext *ctx;
    AioHandler *cb;
    void *opaque;
    _Atomic unsigned flags;
};

static bool bh_run(AioWork *work)
{
    AioBh *bh = bg_container_of(work, AioBh, work);
    /* Acquires what the scheduling thread wrote before, also where it found the node queued already. */
    unsigned flags = atomic_fetch_and(&bh->flags, ~(unsigned)(BH_QUEUED | BH_SCHEDULED));

    if (flags & BH_DELETED) {
        g_free(bh);
        return false;
    }
    if (flags & BH_SCHEDULED) {
        bh->cb(bh->opaque);
        return true;
    }
    return false;
}

AioBh *aio_bh_new(AioContext *ctx, AioHandler *cb, void *opaque)
{
    AioBh *bh = g_new(AioBh, 1);

    *bh = (AioBh){.work.run = bh_run, .ctx = ctx, .cb = cb, .opaque = opaque};
    return bh;
}

static void bh_set(AioBh *bh, unsigned flag)
{
    AioContext *ctx = bh->ctx; /* once queued with DELETED, bh may be gone */
    unsigned old = atomic_fetch_or(&bh->flags, flag | BH_QUEUED);

    if (!(old & BH_QUEUED)) {
        aio_work_push(ctx, &bh->work);
    }
}

void aio_bh_schedule(AioBh *bh)
{
    bh_set(bh, BH_SCHEDULED);
}

void aio_bh_cancel(AioBh *bh)
{
    atomic_fetch_and(&bh->flags, ~(unsigned)BH_SCHEDULED);
}

void aio_bh_delete(AioBh *bh)
{
    bh_set(bh, BH_DELETED);
}

typedef struct OneshotBh {
    AioWork work;
    AioHandler *cb;
    void *opaque;
} OneshotBh;

static bool oneshot_run(AioWork *work)
{
    g_autofree OneshotBh *bh = bg_container_of(work, OneshotBh, work);

    bh->cb(bh->opaque);
    return true;
}

void aio_bh_schedule_oneshot(AioContext *ctx, AioHandler *cb, void *opaque)
{
    OneshotBh *bh = g_new(OneshotBh, 1);

    *bh = (OneshotBh){.work.run = oneshot_run, .cb = cb, .opaque = opaque};
    aio_work_push(ctx, &bh->work);
}

/* ---- The end */

void aio_work_discard(AioContext *ctx)
{
    for (AioWork *work = take_all(ctx); work;) {
        AioWork *next = work->next;

        /* A cancelled one was forgotten in any case: nobody can delete it without its context. */
        if (work->run != bh_run || !(atomic_load(&bg_container_of(work, AioBh, work)->flags) & BH_DELETED)) {
            bg_fatal("internal error: event loop '%s' was freed with a bottom half, a coroutine or a "
                     "thread-pool job left in it",
                     ctx->name);
        }
        bh_run(work);
        work = next;
    }
}
