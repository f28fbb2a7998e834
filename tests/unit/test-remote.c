/*
 * Connections that are lost and made again (backends/protocol/remote), with a server that the test turns off,
 * hangs and changes at will. The drivers' own tests do it with real ones.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "tests/unit/driver-test-util.h"
#include "tests/unit/remote-test.h"
#include "util/error.h"

#define LENGTH REMOTE_TEST_LENGTH
#define MSEC   INT64_C(1000000)

/* ---- Short cuts */

static BlockBackend *coroutine_fn start(TestEnv *env, const char *options)
{
    AioContext *homes[] = {test_iothread(env, 0), test_iothread(env, 1), test_iothread(env, 2)};

    memset(&server, 0, sizeof server);
    bg_mutex_init(&server.lock);
    test_fill(server.data, LENGTH, 1);
    memcpy(server.stable, server.data, LENGTH);
    block_graph_set_homes(env->graph, homes, G_N_ELEMENTS(homes));
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
    return atomic_load(&remote_of(env)->links[0].link.state);
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

/* It is gone, with what is in its memory, and comes back. A request finds out on each of the links. */
static void coroutine_fn crash(TestEnv *env, BlockBackend *blk)
{
    TestRequest *req[MAX_LINKS];

    atomic_store(&server.down, true);
    for (unsigned i = 0; i < remote_of(env)->n_links; i++) {
        req[i] = test_request_start(env->ctx, blk, BLOCK_OP_READ, i * 512, 512, 0);
    }
    test_wait(state_of(env) == REMOTE_LINK_BACKOFF);
    bg_mutex_lock(&server.lock);
    memcpy(server.data, server.stable, LENGTH);
    bg_mutex_unlock(&server.lock);
    atomic_store(&server.down, false);
    for (unsigned i = 0; i < remote_of(env)->n_links; i++) {
        g_assert_cmpint(test_request_finish(req[i]), ==, 0);
    }
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
    g_autofree char *status = remote_status(&remote_of(env)->remote);
    g_autofree char *error = block_graph_last_error(env->graph, "n");

    g_assert_null(status);
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

/* What was acknowledged is there after a crash, in the order in which it was acknowledged. */
static void coroutine_fn resend(TestEnv *env, const char *options)
{
    BlockBackend *blk = start(env, options);

    for (int i = 0; i < 30; i++) {
        test_write_bytes(blk, i % 10 * 512, 1024, i);
    }
    crash(env, blk);
    g_assert_cmpuint(atomic_load(&server.resends), >=, 30);
    for (int i = 0; i < 10; i++) {
        test_check_bytes(blk, i * 512, 512, 20 + i);
    }
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    crash(env, blk);
    test_check_bytes(blk, 0, 512, 20);
    g_assert_cmpuint(atomic_load(&server.flushes), ==, 1);
    driver_test_close(env, blk);
}

static void coroutine_fn resend_one_link(TestEnv *env)
{
    resend(env, "");
    g_assert_cmpuint(atomic_load(&server.resends), ==, 30); /* nothing the second time: it was flushed */
}

static void coroutine_fn resend_links(TestEnv *env)
{
    resend(env, ",'links':3");
    g_assert_cmpuint(atomic_load(&server.resends), ==, 30); /* one link did it for all */
}

static void coroutine_fn resend_broken(TestEnv *env)
{
    BlockBackend *blk = start(env, ",'links':2");

    for (int i = 0; i < 10; i++) {
        test_write_bytes(blk, i * 512, 512, i);
    }
    atomic_store(&server.break_resend, 5);
    crash(env, blk);
    g_assert_cmpuint(atomic_load(&server.resends), ==, 15); /* from the beginning again */
    for (int i = 0; i < 10; i++) {
        test_check_bytes(blk, i * 512, 512, i);
    }
    driver_test_close(env, blk);
}

/* Whoever writes more than the buffer holds flushes. */
static void coroutine_fn resend_room(TestEnv *env)
{
    BlockBackend *blk = start(env, ",'resend-buffer':8192");

    for (int i = 0; i < 20; i++) {
        test_write_bytes(blk, i * 1024, 1024, i);
    }
    unsigned flushes = atomic_load(&server.flushes);

    g_assert_cmpuint(flushes, >=, 2);
    g_assert_cmpuint(flushes, <=, 10);
    crash(env, blk);
    for (int i = 0; i < 20; i++) {
        test_check_bytes(blk, i * 1024, 1024, i);
    }
    driver_test_close(env, blk);
}

static void coroutine_fn resend_off(TestEnv *env)
{
    BlockBackend *blk = start(env, ",'resend-buffer':0");

    g_assert_cmpint(write_one(blk), ==, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    crash(env, blk); /* nothing that could be lost */
    g_assert_cmpint(write_one(blk), ==, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    g_assert_cmpint(write_one(blk), ==, 0);
    crash(env, blk); /* now there is */
    g_assert_cmpint(write_one(blk), ==, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, -EIO);
    g_assert_cmpint(write_one(blk), ==, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    g_assert_cmpuint(atomic_load(&server.resends), ==, 0);
    driver_test_close(env, blk);
}

/* All fall and come together; requests on each are done. */
static void coroutine_fn links_fall_together(TestEnv *env)
{
    BlockBackend *blk = start(env, ",'links':3");
    Remote *remote = &remote_of(env)->remote;

    for (int round = 0; round < 5; round++) {
        atomic_store(&server.down, true);
        TestRequest *one = test_request_start(env->ctx, blk, BLOCK_OP_READ, 512, 512, 0);

        test_wait(atomic_load(&remote_of(env)->links[2].link.state) != REMOTE_LINK_CONNECTED);
        atomic_store(&server.down, false);
        for (int i = 0; i < 3; i++) {
            test_write_bytes(blk, 8192 + i * 512, 512, round);
            test_check_bytes(blk, 8192 + i * 512, 512, round);
        }
        g_assert_cmpint(test_request_finish(one), ==, 0);
    }
    bg_mutex_lock(&remote->lock);
    g_assert_cmpuint(remote->outages, ==, 5);
    g_assert_cmpuint(remote->links_down, ==, 0);
    g_assert_cmpint(remote->outage, ==, REMOTE_UP);
    bg_mutex_unlock(&remote->lock);
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
    test_add_co("remote/resend/link", resend_one_link);
    test_add_co("remote/resend/links", resend_links);
    test_add_co("remote/resend/broken", resend_broken);
    test_add_co("remote/resend/room", resend_room);
    test_add_co("remote/resend/off", resend_off);
    test_add_co("remote/links", links_fall_together);
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
