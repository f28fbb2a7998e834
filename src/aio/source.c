/*
 * A GSource that runs an AioContext in a GMainLoop: the phases of a round spread over
 * prepare, check and dispatch.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "aio/aio-internal.h"

typedef struct AioSource {
    GSource base;
    AioContext *ctx;
    gpointer poll_tag;
} AioSource;

static gboolean source_prepare(GSource *base, gint *timeout_ms)
{
    AioContext *ctx = ((AioSource *)base)->ctx;

    if (!aio_context_current()) {
        aio_context_set_current(ctx);
    }
    bool ready = ctx->monitor->ops->flush(ctx->monitor);
    int64_t timeout_ns = aio_context_timeout_ns(ctx);

    if (ready || timeout_ns == 0 || !aio_context_prepare_sleep(ctx)) {
        *timeout_ms = 0;
        return TRUE;
    }
    /* Rounded up, as a timer must not run early. */
    *timeout_ms = timeout_ns < 0 ? -1 : (gint)MIN((timeout_ns + 999999) / 1000000, G_MAXINT);
    return FALSE;
}

static gboolean source_check(GSource *base)
{
    AioSource *source = (AioSource *)base;
    bool notified = aio_context_wake_up(source->ctx);

    return notified || g_source_query_unix_fd(base, source->poll_tag) ||
           aio_context_timeout_ns(source->ctx) == 0;
}

static gboolean source_dispatch(GSource *base, GSourceFunc callback, gpointer opaque)
{
    AioContext *ctx = ((AioSource *)base)->ctx;

    aio_context_enter_round(ctx);
    ctx->monitor->ops->wait(ctx->monitor, 0);
    aio_context_wake_up(ctx);
    aio_context_dispatch(ctx);
    aio_context_leave_round(ctx);
    return G_SOURCE_CONTINUE;
}

static void source_finalize(GSource *base)
{
    aio_context_unref(((AioSource *)base)->ctx);
}

GSource *aio_context_source_new(AioContext *ctx)
{
    static GSourceFuncs funcs = {
        .prepare = source_prepare,
        .check = source_check,
        .dispatch = source_dispatch,
        .finalize = source_finalize,
    };
    AioSource *source = (AioSource *)g_source_new(&funcs, sizeof(AioSource));
    int fd = ctx->monitor->ops->poll_fd(ctx->monitor);

    source->ctx = aio_context_ref(ctx);
    source->poll_tag = g_source_add_unix_fd(&source->base, fd, G_IO_IN);
    g_source_set_name(&source->base, ctx->name);
    return &source->base;
}
