/*
 * Driver nbd with a real server, nbdkit: moving between threads, connections of several threads, scattered
 * buffers, flags. Its life with mounts and bad servers: tests/functional/test_nbd*.py.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/driver-test-util.h"

#define SIZE (4 * 1024 * 1024)

/* ---- The server */

typedef struct Server {
    GPid pid;
    char *socket;
} Server;

/* nbdkit's memory plugin; with a filter and its parameter, where not NULL. */
static Server coroutine_fn start_server(const char *filter, const char *parameter)
{
    Server server = {.socket = driver_test_path("nbd.sock")};
    const char *argv[] = {"nbdkit", "-f",      "-U",      server.socket, filter ? filter : "--threads=4",
                          "memory", "size=4M", parameter, NULL};
    g_autoptr(GError) err = NULL;

    unlink(server.socket);
    g_spawn_async(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD, NULL, NULL,
                  &server.pid, &err);
    g_assert_no_error(err);
    test_wait(g_file_test(server.socket, G_FILE_TEST_EXISTS));
    return server;
}

static void stop_server(Server *server)
{
    kill(server->pid, SIGTERM);
    waitpid(server->pid, NULL, 0);
    g_free(server->socket);
}

/* The iothreads are the homes that nodes may have. */
static BlockBackend *coroutine_fn open_node(TestEnv *env, const Server *server, const char *more)
{
    AioContext *homes[] = {test_iothread(env, 0), test_iothread(env, 1), test_iothread(env, 2)};

    block_graph_set_homes(env->graph, homes, G_N_ELEMENTS(homes));
    return test_backend(env, "b",
                        test_open(env,
                                  "{'driver':'nbd','node-name':'n','open-timeout':20,"
                                  "'server':{'type':'unix','path':'%s'}%s}",
                                  server->socket, more));
}

static BlockNode *node_of(TestEnv *env)
{
    return block_graph_find(env->graph, "n", NULL);
}

/* ---- Requests of several threads, each in its own range, while something happens. */

typedef struct Load {
    BlockBackend *blk;
    int64_t offset;
    _Atomic bool stop;
    unsigned rounds;
} Load;

static int coroutine_fn load_entry(void *opaque)
{
    Load *load = opaque;
    g_autofree uint8_t *buf = g_malloc(65536), *back = g_malloc(65536);

    while (!atomic_load(&load->stop)) {
        size_t n = 512U << (load->rounds % 8);
        struct iovec in[] = {{buf, n / 2}, {buf + n / 2, n - n / 2}}, out = {back, n};
        IoVector scattered = {in, 2, n}, whole = {&out, 1, n};

        test_fill(buf, n, load->rounds++);
        int ret = block_backend_co_pwritev(load->blk, load->offset, (int64_t)n, &scattered, 0);

        if (ret == 0) {
            ret = block_backend_co_preadv(load->blk, load->offset, (int64_t)n, &whole, 0);
        }
        if (ret < 0) {
            return ret;
        }
        test_assert_mem("what was written", back, buf, n);
    }
    return 0;
}

#define LOADS 6

static void coroutine_fn under_load(TestEnv *env, BlockBackend *blk, void coroutine_fn (*fn)(TestEnv *env))
{
    Load loads[LOADS] = {0};
    TestTask *tasks[LOADS];

    for (unsigned i = 0; i < LOADS; i++) {
        loads[i] = (Load){.blk = blk, .offset = (int64_t)i * 65536};
        tasks[i] = test_spawn(test_iothread(env, i % 4), load_entry, &loads[i]);
    }
    fn(env);
    for (unsigned i = 0; i < LOADS; i++) {
        atomic_store(&loads[i].stop, true);
        g_assert_cmpint(test_join(tasks[i]), ==, 0);
        g_assert_cmpuint(loads[i].rounds, >, 0);
    }
}

static void coroutine_fn move_around(TestEnv *env)
{
    for (unsigned i = 0; i < 60; i++) {
        g_autoptr(GError) err = NULL;
        AioContext *ctx = i % 7 == 6 ? env->ctx : test_iothread(env, i % 4);

        g_assert_cmpint(block_node_co_set_aio_context(node_of(env), ctx, &err), ==, 0);
        g_assert_no_error(err);
        g_assert_true(node_of(env)->aio_context == ctx);
        aio_co_sleep_ns(2 * 1000 * 1000);
    }
}

static void coroutine_fn move(TestEnv *env)
{
    Server server = start_server(NULL, NULL);
    BlockBackend *blk = open_node(env, &server, ",'connections':1");

    g_assert_nonnull(node_of(env)->aio_context);
    under_load(env, blk, move_around);
    driver_test_close(env, blk);
    stop_server(&server);
}

static void coroutine_fn a_while(TestEnv *env)
{
    aio_co_sleep_ns(300 * 1000 * 1000);
}

/* As many as there are homes, where the server allows it; then there is no home. */
static void coroutine_fn several(TestEnv *env)
{
    g_autofree char *log = driver_test_path("nbd.log"), *text = NULL;
    g_autofree char *logfile = g_strconcat("logfile=", log, NULL);
    Server server = start_server("--filter=log", logfile);
    BlockBackend *blk = open_node(env, &server, "");
    g_autoptr(GError) err = NULL;

    g_assert_null(node_of(env)->aio_context);
    under_load(env, blk, a_while);
    g_assert_cmpint(block_node_co_set_aio_context(node_of(env), env->ctx, &err), ==, -ENOTSUP);
    driver_test_close(env, blk);
    stop_server(&server);
    /* All of them carried requests. */
    g_assert_true(g_file_get_contents(log, &text, NULL, NULL));
    for (unsigned i = 1; i <= 3; i++) {
        g_autofree char *read = g_strdup_printf("connection=%u Read id=", i);
        g_autofree char *written = g_strdup_printf("connection=%u Write id=", i);

        g_assert_nonnull(strstr(text, read));
        g_assert_nonnull(strstr(text, written));
    }
    unlink(log);
}

static void coroutine_fn flags(TestEnv *env)
{
    Server server = start_server(NULL, NULL);
    BlockBackend *blk = open_node(env, &server, "");
    BlockNode *node = node_of(env);
    g_autofree uint8_t *buf = g_malloc(65536), *zeroes = g_malloc0(65536);
    struct iovec iov = {buf, 65536};
    IoVector v = {&iov, 1, 65536};

    g_assert_cmpint(block_node_length(node), ==, SIZE);
    g_assert_true(node->supported_write_flags & BLOCK_REQ_FUA);
    test_fill(buf, 65536, 1);
    g_assert_cmpint(block_backend_co_pwritev(blk, 0, 65536, &v, BLOCK_REQ_FUA), ==, 0);
    g_assert_cmpint(block_backend_co_pwrite_zeroes(blk, 0, 65536, BLOCK_REQ_MAY_UNMAP), ==, 0);
    g_assert_cmpint(block_backend_co_preadv(blk, 0, 65536, &v, 0), ==, 0);
    test_assert_mem("zeroes", buf, zeroes, 65536);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    driver_test_close(env, blk);
    stop_server(&server);
}

static void register_tests(void)
{
    test_add_co("drivers/nbd/move", move);
    test_add_co("drivers/nbd/connections", several);
    test_add_co("drivers/nbd/flags", flags);
}

int main(int argc, char **argv)
{
    return driver_test_main(argc, argv, register_tests);
}
