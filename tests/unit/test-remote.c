/*
 * Connections that are lost and made again (backends/protocol/remote), with a server that the test turns off,
 * hangs and changes at will. The drivers' own tests do it with real ones.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "backends/protocol/remote/remote.h"
#include "tests/unit/driver-test-util.h"
#include "util/error.h"

#define LENGTH 65536
#define MSEC   INT64_C(1000000)

/* The server. */
static struct {
    _Atomic bool down, hung, other;
    _Atomic unsigned connects, attempts;
    uint8_t data[LENGTH];
} server;

/* A command, or a connect, on its way. */
typedef struct Call {
    bool lost;
} Call;

typedef struct TestRemote {
    Remote remote;
    RemoteLink link;
    GQueue calls; /* Call; the link's thread */
    bool live;    /* connected; the link's thread */
} TestRemote;

/* The way there and back: forever where the server hangs. False where the connection went meanwhile. */
static bool coroutine_fn co_round_trip(TestRemote *t)
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
    TestRemote *t = link->opaque;

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
    TestRemote *t = link->opaque;

    t->live = false;
    g_queue_foreach(&t->calls, mark_lost, NULL);
}

static void link_detach(RemoteLink *link)
{
    TestRemote *t = link->opaque;

    g_assert_true(aio_context_current() == link->ctx);
    g_assert_true(t->live && g_queue_is_empty(&t->calls));
}

static void link_attach(RemoteLink *link)
{
    g_assert_true(aio_context_current() == link->ctx);
    g_assert_true(((TestRemote *)link->opaque)->live);
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

static int coroutine_fn try_request(RemoteLink *link, void *opaque)
{
    const Request *req = opaque;
    TestRemote *t = link->opaque;

    g_assert_true(t->live);
    if (atomic_load(&server.down)) {
        remote_link_lost(link, ECONNRESET, "reset by peer");
        return REMOTE_LOST;
    }
    if (!co_round_trip(t)) {
        return REMOTE_LOST;
    }
    if (req->write) {
        io_vector_to_buf(req->qiov, req->qiov_offset, server.data + req->offset, (size_t)req->bytes);
        remote_wrote(link->remote);
    } else if (req->qiov) {
        io_vector_from_buf(req->qiov, req->qiov_offset, server.data + req->offset, (size_t)req->bytes);
    }
    return 0;
}

static int coroutine_fn t_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                 size_t qiov_offset, BlockRequestFlags flags)
{
    Request req = {.offset = offset, .bytes = bytes, .qiov = qiov, .qiov_offset = qiov_offset};

    return remote_link_co_run(&((TestRemote *)node->opaque)->link, try_request, &req, REMOTE_RESEND);
}

static int coroutine_fn t_pwritev(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                  size_t qiov_offset, BlockRequestFlags flags)
{
    Request req = {.write = true, .offset = offset, .bytes = bytes, .qiov = qiov, .qiov_offset = qiov_offset};

    return remote_link_co_run(&((TestRemote *)node->opaque)->link, try_request, &req,
                              REMOTE_RESEND_IF_BROKEN);
}

static int coroutine_fn flush_server(BlockNode *node)
{
    Request req = {0};

    return remote_link_co_run(&((TestRemote *)node->opaque)->link, try_request, &req, REMOTE_RESEND);
}

static int coroutine_fn t_flush(BlockNode *node)
{
    return remote_co_flush(&((TestRemote *)node->opaque)->remote, flush_server);
}

static int coroutine_fn t_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    TestRemote *t = node->opaque;

    if (!remote_init(&t->remote, node, opts, "test://server", 5, errp)) {
        return -EINVAL;
    }
    g_queue_init(&t->calls);
    node->aio_context = block_graph_assign_home(node->graph);
    remote_link_init(&t->link, &t->remote, &link_ops, t, node->aio_context);
    int ret = remote_link_co_open(&t->link, 0, errp);

    if (ret < 0) {
        remote_destroy(&t->remote);
        return ret;
    }
    atomic_store(&node->length, LENGTH);
    return 0;
}

static void coroutine_fn t_close(BlockNode *node)
{
    TestRemote *t = node->opaque;

    remote_link_co_close(&t->link);
    remote_destroy(&t->remote);
}

static void coroutine_fn t_detach(BlockNode *node)
{
    remote_link_co_detach(&((TestRemote *)node->opaque)->link);
}

static void coroutine_fn t_attach(BlockNode *node, AioContext *ctx)
{
    remote_link_co_attach(&((TestRemote *)node->opaque)->link, ctx);
}

static void t_drain_begin(BlockNode *node)
{
    remote_link_drain_begin(&((TestRemote *)node->opaque)->link);
}

static void t_drain_end(BlockNode *node)
{
    remote_link_drain_end(&((TestRemote *)node->opaque)->link);
}

static void t_limit_waits(BlockNode *node)
{
    remote_link_limit_waits(&((TestRemote *)node->opaque)->link);
}

static const BlockDriver test_remote_driver = {
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

/* ---- Short cuts */

static BlockBackend *coroutine_fn start(TestEnv *env, const char *options)
{
    AioContext *homes[] = {test_iothread(env, 0), test_iothread(env, 1)};

    memset(&server, 0, sizeof server);
    test_fill(server.data, LENGTH, 1);
    block_graph_set_homes(env->graph, homes, 2);
    return test_backend(env, "b", test_open(env, "{'driver':'test-remote','node-name':'n'%s}", options));
}

static BlockNode *node_of(TestEnv *env)
{
    return block_graph_find(env->graph, "n", NULL);
}

static TestRemote *remote_of(TestEnv *env)
{
    return node_of(env)->opaque;
}

static RemoteLinkState state_of(TestEnv *env)
{
    return atomic_load(&remote_of(env)->link.state);
}

static int coroutine_fn read_one(BlockBackend *blk)
{
    uint8_t buf[512];
    int ret = block_backend_co_pread(blk, 1024, sizeof buf, buf);

    if (ret == 0) {
        test_assert_mem("read", buf, server.data + 1024, sizeof buf);
    }
    return ret;
}

static int coroutine_fn write_one(BlockBackend *blk)
{
    uint8_t buf[512] = {7};

    return block_backend_co_pwrite(blk, 4096, sizeof buf, buf, 0);
}

/* ---- Tests */

static void coroutine_fn outage_waits(TestEnv *env)
{
    BlockBackend *blk = start(env, "");

    g_assert_cmpint(read_one(blk), ==, 0);
    atomic_store(&server.down, true);
    TestRequest *req = test_request_start(env->ctx, blk, BLOCK_OP_READ, 0, 512, 0);

    test_wait(atomic_load(&server.attempts) >= 3); /* the first, and two in vain */
    g_assert_false(test_request_done(req));
    atomic_store(&server.down, false);
    g_assert_cmpint(test_request_finish(req), ==, 0);
    g_assert_cmpuint(remote_of(env)->remote.outages, ==, 1);
    g_autofree char *status = remote_status(&remote_of(env)->remote);
    g_autofree char *error = block_graph_last_error(env->graph, "n");

    g_assert_cmpstr(status, ==, "connected");
    g_assert_nonnull(strstr(error, "connect"));
    g_assert_nonnull(strstr(error, "test://server: reset by peer"));
    driver_test_close(env, blk);
}

static void coroutine_fn outage_eio(TestEnv *env)
{
    BlockBackend *blk = start(env, ",'reconnect-delay':0");

    atomic_store(&server.down, true);
    g_assert_cmpint(read_one(blk), ==, -EIO);
    g_assert_cmpint(read_one(blk), ==, -EIO);
    atomic_store(&server.down, false);
    test_wait(read_one(blk) == 0); /* attempts go on by themselves */
    driver_test_close(env, blk);
}

static void coroutine_fn outage_delay(TestEnv *env)
{
    BlockBackend *blk = start(env, ",'reconnect-delay':1");

    atomic_store(&server.down, true);
    int64_t begin_ns = aio_clock_ns();

    g_assert_cmpint(read_one(blk), ==, -EIO);
    g_assert_cmpint(aio_clock_ns() - begin_ns, >=, 1000 * MSEC);
    driver_test_close(env, blk);
}

static void coroutine_fn pause_until_the_end(TestEnv *env)
{
    BlockBackend *blk = start(env, ",'on-outage':'pause','reconnect-delay':0,'timeout':1");

    atomic_store(&server.down, true);
    TestRequest *req = test_request_start(env->ctx, blk, BLOCK_OP_READ, 0, 512, 0);

    test_wait(atomic_load(&server.attempts) >= 4);
    g_assert_false(test_request_done(req));
    block_graph_limit_waits(env->graph);
    g_assert_cmpint(test_request_finish(req), ==, -EIO);
    driver_test_close(env, blk);
}

static void coroutine_fn hang_at_the_end(TestEnv *env)
{
    BlockBackend *blk = start(env, ",'on-outage':'pause','timeout':1");

    atomic_store(&server.hung, true);
    TestRequest *req = test_request_start(env->ctx, blk, BLOCK_OP_READ, 0, 512, 0);

    block_graph_limit_waits(env->graph);
    g_assert_cmpint(test_request_finish(req), ==, -EIO);
    driver_test_close(env, blk);
}

static void coroutine_fn no_answer(TestEnv *env)
{
    BlockBackend *blk = start(env, ",'timeout':1");

    atomic_store(&server.hung, true);
    TestRequest *read = test_request_start(env->ctx, blk, BLOCK_OP_READ, 0, 512, 0);

    /* The server may still do it, after later ones: not sent again. */
    g_assert_cmpint(write_one(blk), ==, -EIO);
    g_assert_false(test_request_done(read));
    atomic_store(&server.hung, false);
    g_assert_cmpint(test_request_finish(read), ==, 0);
    g_autofree char *errors = block_graph_errors_text(env->graph);

    g_assert_nonnull(strstr(errors, "no answer within 1 s"));
    driver_test_close(env, blk);
}

static void coroutine_fn flush_after_outage(TestEnv *env)
{
    BlockBackend *blk = start(env, "");

    g_assert_cmpint(write_one(blk), ==, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    /* Nothing that could be lost. */
    atomic_store(&server.down, true);
    TestRequest *req = test_request_start(env->ctx, blk, BLOCK_OP_READ, 0, 512, 0);

    test_wait(state_of(env) == REMOTE_LINK_BACKOFF);
    atomic_store(&server.down, false);
    g_assert_cmpint(test_request_finish(req), ==, 0);
    g_assert_cmpint(write_one(blk), ==, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    /* Now there is. */
    g_assert_cmpint(write_one(blk), ==, 0);
    atomic_store(&server.down, true);
    req = test_request_start(env->ctx, blk, BLOCK_OP_READ, 0, 512, 0);
    test_wait(state_of(env) == REMOTE_LINK_BACKOFF);
    atomic_store(&server.down, false);
    g_assert_cmpint(test_request_finish(req), ==, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, -EIO);
    g_assert_cmpint(write_one(blk), ==, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    driver_test_close(env, blk);
}

static void coroutine_fn changed(TestEnv *env)
{
    BlockBackend *blk = start(env, "");

    atomic_store(&server.down, true);
    TestRequest *req = test_request_start(env->ctx, blk, BLOCK_OP_READ, 0, 512, 0);

    test_wait(state_of(env) == REMOTE_LINK_BACKOFF);
    atomic_store(&server.other, true);
    atomic_store(&server.down, false);
    g_assert_cmpint(test_request_finish(req), ==, -ESTALE);
    g_assert_cmpint(read_one(blk), ==, -ESTALE);
    g_assert_cmpint(state_of(env), ==, REMOTE_LINK_CHANGED);
    driver_test_close(env, blk);
}

static void coroutine_fn drained_while_down(TestEnv *env)
{
    BlockBackend *blk = start(env, ",'reconnect-delay':0");

    atomic_store(&server.down, true);
    g_assert_cmpint(read_one(blk), ==, -EIO);
    BlockDrain *section = block_drain_co_begin(node_of(env));
    unsigned attempts = atomic_load(&server.attempts);

    g_assert_cmpint(state_of(env), ==, REMOTE_LINK_RESTING);
    aio_co_sleep_ns(500 * MSEC);
    g_assert_cmpuint(atomic_load(&server.attempts), ==, attempts);
    atomic_store(&server.down, false);
    block_drain_end(section);
    test_wait(state_of(env) == REMOTE_LINK_CONNECTED);
    driver_test_close(env, blk);
}

static int coroutine_fn drain_entry(void *opaque)
{
    block_drain_end(block_drain_co_begin(opaque));
    return 0;
}

static void coroutine_fn drained_while_waiting(TestEnv *env)
{
    BlockBackend *blk = start(env, "");

    atomic_store(&server.down, true);
    TestRequest *req = test_request_start(env->ctx, blk, BLOCK_OP_READ, 0, 512, 0);

    test_wait(state_of(env) == REMOTE_LINK_BACKOFF);
    TestTask *drain = test_spawn(env->ctx, drain_entry, node_of(env));

    aio_co_sleep_ns(300 * MSEC);
    g_assert_false(test_task_done(drain) || test_request_done(req));
    atomic_store(&server.down, false);
    g_assert_cmpint(test_request_finish(req), ==, 0);
    g_assert_cmpint(test_join(drain), ==, 0);
    g_assert_cmpint(read_one(blk), ==, 0);
    driver_test_close(env, blk);
}

static void coroutine_fn move_to(TestEnv *env, AioContext *ctx)
{
    g_autoptr(GError) err = NULL;

    g_assert_cmpint(block_node_co_set_aio_context(node_of(env), ctx, &err), ==, 0);
    g_assert_no_error(err);
}

static void coroutine_fn move(TestEnv *env)
{
    BlockBackend *blk = start(env, "");
    TestRequest *req[8];

    for (int round = 0; round < 20; round++) {
        /* From time to time it is down, and the request that finds out waits through the moves. */
        atomic_store(&server.down, round % 4 == 3);
        for (unsigned i = 0; i < G_N_ELEMENTS(req); i++) {
            req[i] = test_request_start(test_iothread(env, i % 3), blk,
                                        i & 1 ? BLOCK_OP_READ : BLOCK_OP_WRITE, i * 512, 512, (int)i);
        }
        if (round % 4 == 3) {
            test_wait(state_of(env) == REMOTE_LINK_BACKOFF || state_of(env) == REMOTE_LINK_CONNECTING);
            atomic_store(&server.down, false);
        }
        move_to(env, test_iothread(env, (unsigned)round % 3));
        for (unsigned i = 0; i < G_N_ELEMENTS(req); i++) {
            g_assert_cmpint(test_request_finish(req[i]), ==, 0);
        }
    }
    driver_test_close(env, blk);
}

/* It goes on trying in its new home. */
static void coroutine_fn move_while_down(TestEnv *env)
{
    BlockBackend *blk = start(env, ",'reconnect-delay':0");

    atomic_store(&server.down, true);
    g_assert_cmpint(read_one(blk), ==, -EIO);
    move_to(env, test_iothread(env, 2));
    unsigned attempts = atomic_load(&server.attempts);

    test_wait(atomic_load(&server.attempts) > attempts);
    atomic_store(&server.down, false);
    test_wait(read_one(blk) == 0);
    driver_test_close(env, blk);
}

static void coroutine_fn open_fails(TestEnv *env)
{
    memset(&server, 0, sizeof server);
    server.down = true;
    GError *err = test_open_error(env, ECONNREFUSED, "{'driver':'test-remote','node-name':'n'}");

    test_check_error(&err, ECONNREFUSED, "node 'n'", "test://server", "refused", NULL);
    server.down = false;
    server.hung = true;
    err = test_open_error(env, ETIMEDOUT, "{'driver':'test-remote','node-name':'n','timeout':1}");
    test_check_error(&err, ETIMEDOUT, "no answer within 1 s", NULL);
    err = test_open_error(env, EINVAL, "{'driver':'test-remote','node-name':'n','on-outage':'wait'}");
    test_check_error(&err, EINVAL, "'on-outage'", "eio, pause", NULL);
    err = test_open_error(env, ERANGE, "{'driver':'test-remote','node-name':'n','reconnect-delay':-1}");
    test_check_error(&err, ERANGE, "'reconnect-delay'", NULL);
}

static void register_tests(void)
{
    block_driver_register_for_test(&test_remote_driver);
    test_add_co("remote/outage/waits", outage_waits);
    test_add_co("remote/outage/eio", outage_eio);
    test_add_co("remote/outage/delay", outage_delay);
    test_add_co("remote/outage/pause", pause_until_the_end);
    test_add_co("remote/hang/end", hang_at_the_end);
    test_add_co("remote/hang/timeout", no_answer);
    test_add_co("remote/flush", flush_after_outage);
    test_add_co("remote/changed", changed);
    test_add_co("remote/drain/down", drained_while_down);
    test_add_co("remote/drain/waiting", drained_while_waiting);
    test_add_co("remote/move/io", move);
    test_add_co("remote/move/down", move_while_down);
    test_add_co("remote/open", open_fails);
}

int main(int argc, char **argv)
{
    return driver_test_main(argc, argv, register_tests);
}
