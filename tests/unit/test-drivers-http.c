/*
 * The driver http against a real nginx: from several threads, and moved between threads under I/O.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/driver-test-util.h"

#define SIZE    (3 * 1024 * 1024 + 77)
#define SEED    7
#define READERS 4
#define MOVES   40

/* ---- nginx */

typedef struct Server {
    GPid pid;
    unsigned port;
} Server;

static unsigned free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    g_assert_no_errno(bind(fd, (struct sockaddr *)&address, sizeof address));
    g_assert_no_errno(getsockname(fd, (struct sockaddr *)&address, &n));
    close(fd);
    return ntohs(address.sin_port);
}

static bool answers(unsigned port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool ok = connect(fd, (struct sockaddr *)&address, sizeof address) == 0;

    close(fd);
    return ok;
}

static void die_with_the_test(gpointer unused)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

/* Serves the tests' directory. */
static void server_start(Server *server)
{
    g_autofree char *dir = driver_test_path(""), *conf = driver_test_path("nginx.conf");
    g_autoptr(GError) err = NULL;

    g_assert_no_errno(chmod(dir, 0755)); /* for nginx's worker, where it is not root */
    server->port = free_port();
    g_autofree char *text = g_strdup_printf(
        "daemon off; master_process off; pid %s/nginx.pid; error_log %s/error.log; user root;\n"
        "events { worker_connections 64; }\n"
        "http { access_log off; client_body_temp_path %s/t1; proxy_temp_path %s/t2; fastcgi_temp_path "
        "%s/t3;\n"
        "uwsgi_temp_path %s/t4; scgi_temp_path %s/t5;\n"
        "server { listen 127.0.0.1:%u; root %s; } }\n",
        dir, dir, dir, dir, dir, dir, dir, server->port, dir);

    g_assert_true(g_file_set_contents(conf, text, -1, &err));
    char *argv[] = {"nginx", "-c", conf, "-p", dir, NULL};

    g_spawn_async(NULL, argv, NULL,
                  G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD | G_SPAWN_STDERR_TO_DEV_NULL |
                      G_SPAWN_STDOUT_TO_DEV_NULL,
                  die_with_the_test, NULL, &server->pid, &err);
    g_assert_no_error(err);
    for (int i = 0; !answers(server->port); i++) {
        g_assert_cmpint(i, <, 6000);
        g_usleep(10000);
    }
}

static void server_stop(Server *server)
{
    kill(server->pid, SIGKILL);
    waitpid(server->pid, NULL, 0);
}

/* ---- Readers */

static BlockBackend *reading_backend(BlockNode *node)
{
    g_autoptr(GError) err = NULL;
    BlockBackend *blk = block_backend_new(node->graph, "b", BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL);
    g_assert_no_error(err);
    g_assert_cmpint(block_backend_insert(blk, node, &err), ==, 0);
    return blk;
}

typedef struct Reader {
    BlockBackend *blk;
    const uint8_t *content;
    _Atomic bool *stop;
    unsigned seed;
    _Atomic unsigned reads;
} Reader;

static int coroutine_fn read_at_random(void *opaque)
{
    Reader *r = opaque;
    g_autoptr(GRand) rand = g_rand_new_with_seed(r->seed);
    g_autofree uint8_t *buf = g_malloc(300000);

    while (!atomic_load(r->stop)) {
        int64_t offset = g_rand_int_range(rand, 0, SIZE);
        int64_t some = g_rand_int_range(rand, 1, 300000);
        int64_t bytes = MIN(some, SIZE - offset);
        int ret = block_backend_co_pread(r->blk, offset, bytes, buf);

        if (ret < 0) {
            return ret;
        }
        test_assert_mem("read", buf, r->content + offset, (size_t)bytes);
        atomic_fetch_add(&r->reads, 1);
    }
    return 0;
}

/* A live node goes from thread to thread while others read. */
static void coroutine_fn test_moves(TestEnv *env)
{
    g_autofree char *path = driver_test_filled_file("disk", SIZE, SEED);

    g_assert_nonnull(path);
    g_autofree uint8_t *content = g_malloc(SIZE);
    Server server;
    Reader readers[READERS];
    TestTask *tasks[READERS];
    _Atomic bool stop = false;

    test_fill(content, SIZE, SEED);
    server_start(&server);
    BlockNode *node =
        test_open(env, "{'driver':'http','node-name':'n','url':'http://127.0.0.1:%u/disk'}", server.port);
    BlockBackend *blk = reading_backend(node);

    for (unsigned i = 0; i < READERS; i++) {
        readers[i] = (Reader){blk, content, &stop, i, 0};
        tasks[i] =
            test_spawn(i ? test_iothread(env, i % TEST_IOTHREADS) : env->ctx, read_at_random, &readers[i]);
    }
    for (unsigned i = 0; i < MOVES; i++) {
        g_autoptr(GError) err = NULL;
        AioContext *to = i % 5 == 4 ? env->ctx : test_iothread(env, i % TEST_IOTHREADS);
        unsigned before = atomic_load(&readers[i % READERS].reads);

        block_node_co_set_aio_context(node, to, &err);
        g_assert_no_error(err);
        g_assert_true(node->aio_context == to);
        test_wait(atomic_load(&readers[i % READERS].reads) > before);
    }
    atomic_store(&stop, true);
    for (unsigned i = 0; i < READERS; i++) {
        g_assert_cmpint(test_join(tasks[i]), ==, 0);
    }
    driver_test_close(env, blk);
    server_stop(&server);
}

/* The same while the server is away: attempts to connect move along. */
static void coroutine_fn test_moves_without_server(TestEnv *env)
{
    g_autofree char *path = driver_test_filled_file("disk", SIZE, SEED);

    g_assert_nonnull(path);
    g_autofree uint8_t *buf = g_malloc(4096), *content = g_malloc(SIZE);
    Server server;
    g_autoptr(GError) err = NULL;

    server_start(&server);
    BlockNode *node = test_open(env,
                                "{'driver':'http','node-name':'n','url':'http://127.0.0.1:%u/disk',"
                                "'reconnect-delay':0}",
                                server.port);
    BlockBackend *blk = reading_backend(node);

    test_fill(content, SIZE, SEED);
    server_stop(&server);
    g_assert_cmpint(block_backend_co_pread(blk, 0, 4096, buf), ==, -EIO);
    for (unsigned i = 0; i < 8; i++) {
        block_node_co_set_aio_context(node, test_iothread(env, i % TEST_IOTHREADS), &err);
        g_assert_no_error(err);
        test_settle();
    }
    driver_test_close(env, blk);
}

/*
 * What was read in order is dropped, so a fetch may begin and end anywhere: what is read behind such a piece,
 * but within the same block, has it on its way down to where the block begins.
 */
static void coroutine_fn test_pieces(TestEnv *env)
{
    static const struct {
        int64_t offset, bytes;
    } reads[] = {
        {0, 3000},    /* left: [3000, 4096) */
        {100, 10},    /* fetches [0, 3000) */
        {3000, 1096}, /* nothing is left of the first */
        {0, 100},     /* left: [100, 3000) */
        {3500, 10},   /* wants [3000, 4096) */
        {0, 4096},
    };
    g_autofree char *path = driver_test_filled_file("disk", SIZE, SEED);

    g_assert_nonnull(path);
    g_autofree uint8_t *buf = g_malloc(4096), *content = g_malloc(SIZE);
    Server server;

    test_fill(content, SIZE, SEED);
    server_start(&server);
    BlockNode *node = test_open(
        env, "{'driver':'http','node-name':'n','url':'http://127.0.0.1:%u/disk','readahead':0}", server.port);
    BlockBackend *blk = reading_backend(node);

    for (unsigned i = 0; i < G_N_ELEMENTS(reads); i++) {
        g_assert_cmpint(block_backend_co_pread(blk, reads[i].offset, reads[i].bytes, buf), ==, 0);
        test_assert_mem("read", buf, content + reads[i].offset, (size_t)reads[i].bytes);
    }
    driver_test_close(env, blk);
    server_stop(&server);
}

static void register_tests(void)
{
    test_add_co("/drivers/http/pieces", test_pieces);
    test_add_co("/drivers/http/moves", test_moves);
    test_add_co("/drivers/http/moves-without-server", test_moves_without_server);
}

int main(int argc, char **argv)
{
    return driver_test_main(argc, argv, register_tests);
}
