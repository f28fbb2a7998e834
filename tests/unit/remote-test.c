/*
 * The driver test-remote.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "tests/unit/remote-test.h"

#include <errno.h>
#include <string.h>

#include "block/io.h"
#include "util/error.h"

#define MSEC INT64_C(1000000)

struct RemoteTestServer server;

/* A command, or a connect, on its way. */
typedef struct Call {
    bool lost;
} Call;

/* The way there and back: forever where the server hangs. False where the connection went meanwhile. */
static bool coroutine_fn co_round_trip(TestLink *t)
{
    Call call = {0};
    GList entry = {.data = &call};

    g_queue_push_tail_link(&t->calls, &entry);
    do {
        g_assert_true(aio_context_current() == t->link.ctx);
        aio_co_sleep_ns(MSEC);
    } while (!call.lost && atomic_load(&server.hung));
    g_queue_unlink(&t->calls, &entry);
    return !call.lost;
}

static int coroutine_fn link_co_connect(RemoteLink *link, bool again, GError **errp)
{
    TestLink *t = link->opaque;

    atomic_fetch_add(&server.attempts, 1);
    if (!co_round_trip(t)) {
        return bg_error_set(errp, ECONNABORTED, "the attempt was ended");
    }
    if (atomic_load(&server.down)) {
        return bg_error_set_errno(errp, ECONNREFUSED, "cannot connect");
    }
    if (again && atomic_load(&server.other)) {
        return bg_error_set(errp, ESTALE, "it is another resource now");
    }
    t->live = true;
    atomic_fetch_add(&server.connects, 1);
    return 0;
}

static void mark_lost(gpointer data, gpointer opaque)
{
    ((Call *)data)->lost = true;
}

static void link_disconnect(RemoteLink *link)
{
    TestLink *t = link->opaque;

    t->live = false;
    g_queue_foreach(&t->calls, mark_lost, NULL);
}

static void link_detach(RemoteLink *link)
{
    TestLink *t = link->opaque;

    g_assert_true(aio_context_current() == link->ctx);
    g_assert_true(t->live && g_queue_is_empty(&t->calls));
}

static void link_attach(RemoteLink *link)
{
    g_assert_true(aio_context_current() == link->ctx);
    g_assert_true(((TestLink *)link->opaque)->live);
}

static const RemoteLinkOps link_ops = {
    .co_connect = link_co_connect,
    .disconnect = link_disconnect,
    .detach = link_detach,
    .attach = link_attach,
};

/* ---- The driver */

typedef struct Request {
    bool write;
    int64_t offset, bytes;
    const IoVector *qiov;
    size_t qiov_offset;
} Request;

static void store(int64_t offset, int64_t bytes, const IoVector *qiov, size_t qiov_offset)
{
    bg_mutex_lock(&server.lock);
    io_vector_to_buf(qiov, qiov_offset, server.data + offset, (size_t)bytes);
    bg_mutex_unlock(&server.lock);
}

static int coroutine_fn try_request(RemoteLink *link, void *opaque)
{
    const Request *req = opaque;
    TestLink *t = link->opaque;

    g_assert_true(t->live);
    if (atomic_load(&server.down)) {
        remote_link_lost(link, ECONNRESET, "reset by peer");
        return REMOTE_LOST;
    }
    if (!co_round_trip(t)) {
        return REMOTE_LOST;
    }
    if (req->write) {
        store(req->offset, req->bytes, req->qiov, req->qiov_offset);
    } else if (req->qiov) {
        bg_mutex_lock(&server.lock);
        io_vector_from_buf(req->qiov, req->qiov_offset, server.data + req->offset, (size_t)req->bytes);
        bg_mutex_unlock(&server.lock);
    } else {
        bg_mutex_lock(&server.lock);
        memcpy(server.stable, server.data, REMOTE_TEST_LENGTH);
        bg_mutex_unlock(&server.lock);
        atomic_fetch_add(&server.flushes, 1);
    }
    return 0;
}

/* In the thread of the link that serves the offset, and back. */
static int coroutine_fn co_request(BlockNode *node, Request *req, RemoteResend resend)
{
    TestRemote *t = node->opaque;
    RemoteLink *link = &t->links[req->offset / 512 % (int64_t)t->n_links].link;
    AioContext *here = aio_context_current();

    aio_co_reschedule_self(link->ctx);
    int ret = remote_link_co_run(link, try_request, req, resend);

    if (ret == 0 && req->write) {
        ret = remote_co_wrote(link->remote, req->offset, req->bytes, req->qiov, req->qiov_offset);
    }
    aio_co_reschedule_self(here);
    return ret;
}

static int coroutine_fn t_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                 size_t qiov_offset, BlockRequestFlags flags)
{
    Request req = {.offset = offset, .bytes = bytes, .qiov = qiov, .qiov_offset = qiov_offset};

    return co_request(node, &req, REMOTE_RESEND);
}

static int coroutine_fn t_pwritev(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                  size_t qiov_offset, BlockRequestFlags flags)
{
    Request req = {.write = true, .offset = offset, .bytes = bytes, .qiov = qiov, .qiov_offset = qiov_offset};

    return co_request(node, &req, REMOTE_RESEND_IF_BROKEN);
}

static int coroutine_fn flush_server(BlockNode *node)
{
    Request req = {0};

    return co_request(node, &req, REMOTE_RESEND);
}

static int coroutine_fn t_flush(BlockNode *node)
{
    return remote_co_sync(&((TestRemote *)node->opaque)->remote);
}

static int coroutine_fn t_resend(RemoteLink *link, int64_t offset, int64_t bytes, const void *data,
                                 BlockRequestFlags flags)
{
    TestLink *t = link->opaque;
    struct iovec iov = {.iov_base = (void *)data, .iov_len = (size_t)bytes};
    IoVector qiov = {.iov = &iov, .niov = 1, .size = (size_t)bytes};

    g_assert_true(t->live);
    if (atomic_fetch_add(&server.resends, 1) + 1 == atomic_load(&server.break_resend)) {
        link_disconnect(link);
        return REMOTE_LOST;
    }
    if (!co_round_trip(t)) {
        return REMOTE_LOST;
    }
    store(offset, bytes, &qiov, 0);
    return 0;
}

static const RemoteWriteOps write_ops = {.co_flush = flush_server, .co_resend = t_resend};

static void coroutine_fn close_links(TestRemote *t)
{
    for (unsigned i = 0; i < t->n_links; i++) {
        remote_link_co_close(&t->links[i].link);
    }
    remote_destroy(&t->remote);
}

static int coroutine_fn t_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    TestRemote *t = node->opaque;
    int ret = 0;

    t->n_links = 1;
    if (!block_options_get_uint64(opts, "links", 1, MAX_LINKS, &t->n_links, errp) ||
        !remote_init(&t->remote, node, opts, "test://server", 5, errp) ||
        !remote_init_writes(&t->remote, opts, errp)) {
        return -EINVAL;
    }
    t->remote.write_ops = &write_ops;
    for (unsigned i = 0; i < t->n_links; i++) {
        TestLink *l = &t->links[i];

        g_queue_init(&l->calls);
        remote_link_init(&l->link, &t->remote, &link_ops, l, block_graph_assign_home(node->graph));
    }
    node->aio_context = t->n_links == 1 ? t->links[0].link.ctx : NULL;
    for (unsigned i = 0; i < t->n_links && ret == 0; i++) {
        ret = remote_link_co_open(&t->links[i].link, 0, errp);
    }
    if (ret < 0) {
        close_links(t);
        return ret;
    }
    atomic_store(&node->length, REMOTE_TEST_LENGTH);
    return 0;
}

static void coroutine_fn t_close(BlockNode *node)
{
    close_links(node->opaque);
}

static void coroutine_fn t_detach(BlockNode *node)
{
    remote_link_co_detach(&((TestRemote *)node->opaque)->links[0].link);
}

static void coroutine_fn t_attach(BlockNode *node, AioContext *ctx)
{
    remote_link_co_attach(&((TestRemote *)node->opaque)->links[0].link, ctx);
}

static void each_link(BlockNode *node, void (*fn)(RemoteLink *link))
{
    TestRemote *t = node->opaque;

    for (unsigned i = 0; i < t->n_links; i++) {
        fn(&t->links[i].link);
    }
}

static void t_drain_begin(BlockNode *node)
{
    each_link(node, remote_link_drain_begin);
}

static void t_drain_end(BlockNode *node)
{
    each_link(node, remote_link_drain_end);
}

static void t_limit_waits(BlockNode *node)
{
    each_link(node, remote_link_limit_waits);
}

const BlockDriver test_remote_driver = {
    .name = "test-remote",
    .instance_size = sizeof(TestRemote),
    .co_open = t_open,
    .co_close = t_close,
    .co_preadv = t_preadv,
    .co_pwritev = t_pwritev,
    .co_flush = t_flush,
    .co_detach_aio_context = t_detach,
    .co_attach_aio_context = t_attach,
    .drain_begin = t_drain_begin,
    .drain_end = t_drain_end,
    .limit_waits = t_limit_waits,
};
