/*
 * Driver iscsi inside its event loops, against a real tgtd: moved between threads under I/O, in an outage,
 * and in drained sections.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/driver-test-util.h"

#define TARGET  "iqn.2026-11.org.blockgraph.test:unit"
#define SIZE    (16 * 1024 * 1024)
#define WORKERS 6
#define REGION  (SIZE / WORKERS / 4096 * 4096)
#define ROUNDS  40

/* ---- The target */

typedef struct Tgt {
    GPid pid;
    int port;
    char *image;
} Tgt;

static int free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    g_assert_cmpint(bind(fd, (struct sockaddr *)&a, sizeof(a)), ==, 0);
    g_assert_cmpint(getsockname(fd, (struct sockaddr *)&a, &size), ==, 0);
    close(fd);
    return ntohs(a.sin_port);
}

static void wait_for_port(int port)
{
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};

    for (int i = 0; i < 3000; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        bool there = connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0;

        close(fd);
        if (there) {
            return;
        }
        g_usleep(10 * 1000);
    }
    g_error("tgtd does not listen");
}

static void tgt_start(Tgt *t)
{
    g_autofree char *portal = g_strdup_printf("portal=127.0.0.1:%d", t->port);
    char *argv[] = {(char *)"tgtd", (char *)"-f", (char *)"--iscsi", portal, (char *)"-C", (char *)"0", NULL};
    g_autoptr(GError) err = NULL;

    g_spawn_async(NULL, argv, NULL,
                  G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD | G_SPAWN_STDOUT_TO_DEV_NULL |
                      G_SPAWN_STDERR_TO_DEV_NULL,
                  NULL, NULL, &t->pid, &err);
    g_assert_no_error(err);
    wait_for_port(t->port);
    g_assert_cmpint(driver_test_command(NULL, "tgtadm", "--lld", "iscsi", "--op", "new", "--mode", "target",
                                        "--tid", "1", "-T", TARGET, NULL),
                    ==, 0);
    g_assert_cmpint(driver_test_command(NULL, "tgtadm", "--lld", "iscsi", "--op", "new", "--mode",
                                        "logicalunit", "--tid", "1", "--lun", "1", "-b", t->image, NULL),
                    ==, 0);
    g_assert_cmpint(driver_test_command(NULL, "tgtadm", "--lld", "iscsi", "--op", "bind", "--mode", "target",
                                        "--tid", "1", "-I", "ALL", NULL),
                    ==, 0);
}

static void tgt_kill(Tgt *t)
{
    kill(t->pid, SIGKILL);
    waitpid(t->pid, NULL, 0);
}

static void tgt_open(Tgt *t)
{
    g_autofree char *ipc = driver_test_path("tgt");

    g_setenv("TGT_IPC_SOCKET", ipc, TRUE);
    t->port = free_port();
    t->image = driver_test_file("lun", SIZE);
    tgt_start(t);
}

static void tgt_close(Tgt *t)
{
    tgt_kill(t);
    g_free(t->image);
}

static BlockBackend *coroutine_fn open_disk(TestEnv *env, const Tgt *t, const char *more)
{
    BlockNode *node = test_open(
        env, "{'driver':'iscsi','node-name':'n','url':'iscsi://127.0.0.1:%d/" TARGET "/1'%s}", t->port, more);

    return test_backend(env, "b", node);
}

/* ---- Load: each worker writes and reads its own region, from its own thread */

typedef struct Worker {
    BlockBackend *blk;
    unsigned index;
    _Atomic bool *stop;
    _Atomic unsigned *done;
} Worker;

static int coroutine_fn work(void *opaque)
{
    const Worker *w = opaque;
    g_autofree uint8_t *out = g_malloc(8192);
    g_autofree uint8_t *in = g_malloc(8192);

    for (uint32_t i = 0; !atomic_load(w->stop); i++) {
        int64_t offset = (int64_t)w->index * REGION + i * 1024 % (REGION - 8192);

        test_fill(out, 8192, i * WORKERS + w->index);
        int ret = block_backend_co_pwrite(w->blk, offset, 8192, out, 0);

        if (ret == 0) {
            ret = block_backend_co_pread(w->blk, offset, 8192, in);
        }
        if (ret < 0) {
            return ret;
        }
        test_assert_mem("what a worker wrote", in, out, 8192);
        atomic_fetch_add(w->done, 1);
    }
    return 0;
}

static void coroutine_fn move_to(TestEnv *env, BlockNode *node, AioContext *ctx)
{
    g_autoptr(GError) err = NULL;

    g_assert_cmpint(block_node_co_set_aio_context(node, ctx, &err), ==, 0);
    g_assert_no_error(err);
    g_assert_true(node->aio_context == ctx);
}

static BlockNode *node_of(TestEnv *env)
{
    return block_graph_find(env->graph, "n", NULL);
}

typedef struct Load {
    Worker worker[WORKERS];
    TestTask *task[WORKERS];
    _Atomic bool stop;
    _Atomic unsigned done;
} Load;

static void load_start(TestEnv *env, Load *load, BlockBackend *blk)
{
    for (unsigned i = 0; i < WORKERS; i++) {
        load->worker[i] = (Worker){.blk = blk, .index = i, .stop = &load->stop, .done = &load->done};
        load->task[i] = test_spawn(test_iothread(env, i % TEST_IOTHREADS), work, &load->worker[i]);
    }
}

static void coroutine_fn load_end(Load *load)
{
    atomic_store(&load->stop, true);
    for (unsigned i = 0; i < WORKERS; i++) {
        g_assert_cmpint(test_join(load->task[i]), ==, 0);
    }
}

static void coroutine_fn wait_for_more(Load *load, unsigned n)
{
    unsigned before = atomic_load(&load->done);

    test_wait(atomic_load(&load->done) >= before + n);
}

/* ---- Tests */

static void coroutine_fn test_move_under_io(TestEnv *env)
{
    g_autofree Load *load = g_new0(Load, 1);
    Tgt t;

    tgt_open(&t);
    BlockBackend *blk = open_disk(env, &t, "");

    load_start(env, load, blk);
    for (unsigned i = 0; i < ROUNDS; i++) {
        wait_for_more(load, 3);
        move_to(env, node_of(env), i % 5 == 4 ? env->ctx : test_iothread(env, i % TEST_IOTHREADS));
    }
    wait_for_more(load, 3);
    load_end(load);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    driver_test_close(env, blk);
    tgt_close(&t);
}

/* The target dies and comes back; the node moves before, between, and after. */
static void coroutine_fn test_move_in_an_outage(TestEnv *env)
{
    g_autofree Load *load = g_new0(Load, 1);
    Tgt t;

    tgt_open(&t);
    BlockBackend *blk = open_disk(env, &t, ",'on-outage':'pause'");

    load_start(env, load, blk);
    for (unsigned i = 0; i < 3; i++) {
        wait_for_more(load, 10);
        tgt_kill(&t);
        aio_co_sleep_ns(50 * 1000 * 1000);
        tgt_start(&t);
        move_to(env, node_of(env), test_iothread(env, i));
        wait_for_more(load, 10);
    }
    load_end(load);
    driver_test_close(env, blk);
    tgt_close(&t);
}

/* Nobody waits: the timers of attempts and of the keep-alive move with the node. */
static void coroutine_fn test_move_idle(TestEnv *env)
{
    uint8_t buf[512];
    Tgt t;

    tgt_open(&t);
    BlockBackend *blk = open_disk(env, &t, ",'timeout':1");

    move_to(env, node_of(env), test_iothread(env, 1));
    g_assert_cmpint(block_backend_co_pread(blk, 0, sizeof(buf), buf), ==, 0);
    tgt_kill(&t);
    move_to(env, node_of(env), test_iothread(env, 2));
    aio_co_sleep_ns(300 * 1000 * 1000);
    move_to(env, node_of(env), test_iothread(env, 3));
    tgt_start(&t);
    g_assert_cmpint(block_backend_co_pread(blk, 0, sizeof(buf), buf), ==, 0);
    driver_test_close(env, blk);
    tgt_close(&t);
}

static void coroutine_fn test_drain_under_io(TestEnv *env)
{
    g_autofree Load *load = g_new0(Load, 1);
    Tgt t;

    tgt_open(&t);
    BlockBackend *blk = open_disk(env, &t, "");

    load_start(env, load, blk);
    for (unsigned i = 0; i < ROUNDS; i++) {
        wait_for_more(load, 2);
        BlockDrain *drain = block_drain_co_begin(node_of(env));
        unsigned done = atomic_load(&load->done);

        test_settle();
        g_assert_cmpint(atomic_load(&node_of(env)->in_flight), ==, 0);
        /* Those whose last request was done, but not yet counted. */
        g_assert_cmpuint(atomic_load(&load->done) - done, <=, WORKERS);
        block_drain_end(drain);
    }
    load_end(load);
    driver_test_close(env, blk);
    tgt_close(&t);
}

/* A model against the disk, from the same program: unaligned, scattered pieces. */
static void coroutine_fn test_scattered(TestEnv *env)
{
    enum { PIECES = 40 };
    g_autofree uint8_t *out = g_malloc(SIZE), *in = g_malloc(SIZE);
    struct iovec iov[PIECES];
    Tgt t;

    tgt_open(&t);
    BlockBackend *blk = open_disk(env, &t, "");

    test_fill(out, SIZE, 7);
    for (unsigned i = 0; i < PIECES; i++) {
        iov[i] = (struct iovec){.iov_base = out + i * 70001, .iov_len = 300 + i * 517};
    }
    IoVector v = {.iov = iov, .niov = PIECES};

    for (unsigned i = 0; i < PIECES; i++) {
        v.size += iov[i].iov_len;
    }
    g_assert_cmpint(block_backend_co_pwritev(blk, 12345, (int64_t)v.size, &v, 0), ==, 0);
    g_assert_cmpint(block_backend_co_pread(blk, 12345, (int64_t)v.size, in), ==, 0);
    size_t at = 0;

    for (unsigned i = 0; i < PIECES; i++) {
        test_assert_mem("a piece", in + at, iov[i].iov_base, iov[i].iov_len);
        at += iov[i].iov_len;
    }
    driver_test_close(env, blk);
    tgt_close(&t);
}

static void register_tests(void)
{
    test_add_co("iscsi/scattered", test_scattered);
    test_add_co("iscsi/move-under-io", test_move_under_io);
    test_add_co("iscsi/move-in-an-outage", test_move_in_an_outage);
    test_add_co("iscsi/move-idle", test_move_idle);
    test_add_co("iscsi/drain-under-io", test_drain_under_io);
}

int main(int argc, char **argv)
{
    return driver_test_main(argc, argv, register_tests);
}
