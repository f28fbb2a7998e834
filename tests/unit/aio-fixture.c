/*
 * Unit tests that run on io_uring and on epoll.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "aio-fixture.h"

#include <stdlib.h>

#include "aio/aio-internal.h"

typedef struct Case {
    AioTest *test;
    AioBackend backend;
    FdMonitorUse use;
} Case;

static AioBackend running_backend;

static void run_case(gconstpointer opaque)
{
    const Case *c = opaque;
    g_autoptr(GError) err = NULL;
    AioContext *ctx = aio_context_new_for_use("test", c->backend, c->use, &err);

    if (!ctx && c->backend == AIO_BACKEND_URING) {
        g_test_skip(err->message);
        return;
    }
    g_assert_no_error(err);
    g_assert_cmpint(aio_context_backend(ctx), ==, c->backend);
    running_backend = c->backend;
    aio_context_set_current(ctx);
    c->test(ctx);
    aio_test_run_ready(ctx); /* deleted bottom halves go */
    aio_context_thread_exit(ctx);
    aio_context_unref(ctx);
    thread_pool_shutdown();
    coroutine_pool_drain();
}

static void add_case(const char *prefix, AioBackend backend, FdMonitorUse use, const char *path,
                     AioTest *test)
{
    g_autofree char *full = g_strdup_printf("/%s/%s", prefix, path);
    Case *c = g_new(Case, 1);

    *c = (Case){.test = test, .backend = backend, .use = use};
    g_test_add_data_func_full(full, c, run_case, g_free);
}

void aio_test_add_main(const char *path, AioTest *test)
{
    add_case("io_uring", AIO_BACKEND_URING, FDMON_SHARED, path, test);
    add_case("epoll", AIO_BACKEND_EPOLL, FDMON_SHARED, path, test);
}

void aio_test_add(const char *path, AioTest *test)
{
    aio_test_add_main(path, test);
    add_case("io_uring-iothread", AIO_BACKEND_URING, FDMON_OWN_THREAD, path, test);
}

AioBackend aio_test_backend(void)
{
    return running_backend;
}

IoThread *aio_test_iothread(const char *id)
{
    g_autoptr(GError) err = NULL;
    IoThread *t = iothread_new(id, running_backend, -1, &err);

    g_assert_no_error(err);
    return t;
}

unsigned aio_test_scaled(unsigned n)
{
    const char *scale = getenv("BG_TEST_SCALE");

    return n * (unsigned)MAX(scale ? atoi(scale) : 1, 1);
}

void aio_test_run_ready(AioContext *ctx)
{
    while (aio_context_run_once(ctx, false)) {
    }
}
