/*
 * The block layer in the client's own process: one event loop, one graph, no other thread but the pool's.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "client/block.h"

#include "aio/aio.h"
#include "aio/thread-pool.h"
#include "util/error.h"
#include "util/lock.h"

typedef struct BlockRun {
    ClientBlockWork *work;
    void *opaque;
    AioContext *ctx;
    int ret;
    GError *error;
} BlockRun;

static void coroutine_fn co_run(void *opaque)
{
    BlockRun *run = opaque;
    BlockGraph *graph = block_graph_new(run->ctx);
    run->ret = run->work(graph, run->opaque, &run->error);
    block_graph_co_close(graph);
    block_graph_free(graph);
}

int client_block_run(ClientBlockWork *work, void *opaque, GError **errp)
{
    BlockRun run = {.work = work, .opaque = opaque};
    GError *error = NULL;
    bg_main_thread_register();
    run.ctx = aio_context_new("main", AIO_BACKEND_AUTO, &error);
    if (!run.ctx) {
        int ret = bg_error_to_errno(error);
        g_propagate_error(errp, error);
        return ret;
    }
    aio_context_set_current(run.ctx);
    aio_context_run_coroutine(run.ctx, co_run, &run);
    thread_pool_shutdown();
    aio_context_set_current(NULL);
    aio_context_unref(run.ctx);
    if (run.error) {
        g_propagate_error(errp, run.error);
    }
    return run.ret;
}
