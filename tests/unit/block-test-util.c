/*
 * Environment, tasks and short cuts of the block layer's unit tests.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "tests/unit/block-test-util.h"

#include <stdarg.h>
#include <string.h>
#include <signal.h>
#include <unistd.h>

#include "aio/thread-pool.h"
#include "util/error.h"

/* One test may take this long under a sanitizer on a busy machine; with the full counts (BG_LONG), the other.
 */
#define TEST_TIMEOUT_S 180
#define LONG_TIMEOUT_S 3600

/* ---- Environment */

typedef struct TestCase {
    TestFunc *fn;
    bool in_coroutine;
    AioBackend loop;
} TestCase;

typedef struct TestRun {
    TestEnv *env;
    void coroutine_fn (*fn)(TestEnv *env, void *opaque);
    void *opaque;
} TestRun;

static void coroutine_fn run_entry(void *opaque)
{
    TestRun *run = opaque;
    run->fn(run->env, run->opaque);
}

void test_run(TestEnv *env, void coroutine_fn (*fn)(TestEnv *env, void *opaque), void *opaque)
{
    TestRun run = {env, fn, opaque};
    aio_context_run_coroutine(env->ctx, run_entry, &run);
}

static void coroutine_fn close_graph(TestEnv *env, void *opaque)
{
    const GPtrArray *nodes = block_graph_nodes(env->graph);
    for (guint i = 0; i < nodes->len; i++) {
        BlockNode *node = g_ptr_array_index(nodes, i);
        g_assert_cmpint(atomic_load(&node->in_flight), ==, 0);
        g_assert_cmpint(atomic_load(&node->quiesce), ==, 0);
        g_assert_false(node->drain_notified);
    }
    g_assert_cmpuint(block_graph_backends(env->graph)->len, ==, 0);
    block_graph_co_close(env->graph);
}

static void coroutine_fn run_in_coroutine(TestEnv *env, void *opaque)
{
    const TestCase *test = opaque;
    test->fn(env);
}

AioContext *test_iothread(TestEnv *env, unsigned i)
{
    g_assert_cmpuint(i, <, TEST_IOTHREADS);
    if (!env->iothread[i]) {
        g_autofree char *id = g_strdup_printf("io%u", i);
        g_autoptr(GError) err = NULL;
        env->iothread[i] = iothread_new(id, env->loop, -1, &err);
        g_assert_no_error(err);
    }
    return iothread_context(env->iothread[i]);
}

bool test_env_open(TestEnv *env, AioBackend loop, GError **errp)
{
    *env = (TestEnv){.loop = loop};
    env->ctx = aio_context_new("main", loop, errp);
    if (!env->ctx) {
        return false;
    }
    aio_context_set_current(env->ctx);
    env->graph = block_graph_new(env->ctx);
    return true;
}

void test_env_close(TestEnv *env)
{
    test_run(env, close_graph, NULL);
    for (unsigned i = 0; i < TEST_IOTHREADS; i++) {
        g_clear_pointer(&env->iothread[i], iothread_free);
    }
    block_graph_free(env->graph);
    while (aio_context_run_once(env->ctx, false)) {
        /* what the closing left to run */
    }
    aio_context_set_current(NULL);
    aio_context_unref(env->ctx);
}

static void run_case(gconstpointer opaque)
{
    const TestCase *test = opaque;
    g_autoptr(GError) err = NULL;
    TestEnv env;
    if (!test_env_open(&env, test->loop, &err)) {
        g_test_skip(err->message);
        return;
    }
    alarm(g_getenv("BG_LONG") ? LONG_TIMEOUT_S : TEST_TIMEOUT_S);
    if (test->in_coroutine) {
        test_run(&env, run_in_coroutine, (void *)test);
    } else {
        test->fn(&env);
    }
    test_env_close(&env);
    alarm(0);
}

static void add_case(const char *name, TestFunc *fn, bool in_coroutine)
{
    static const struct {
        AioBackend loop;
        const char *name;
    } loops[] = {{AIO_BACKEND_URING, "io_uring"}, {AIO_BACKEND_EPOLL, "epoll"}};
    for (unsigned i = 0; i < G_N_ELEMENTS(loops); i++) {
        TestCase *test = g_new(TestCase, 1);
        g_autofree char *path = g_strdup_printf("/%s/%s", name, loops[i].name);
        *test = (TestCase){fn, in_coroutine, loops[i].loop};
        g_test_add_data_func_full(path, test, run_case, g_free);
    }
}

void test_add(const char *name, TestFunc *fn)
{
    add_case(name, fn, false);
}

void test_add_co(const char *name, TestFunc *fn)
{
    add_case(name, fn, true);
}

int test_main(int argc, char **argv, void (*register_tests)(void))
{
    g_test_init(&argc, &argv, NULL);
    signal(SIGPIPE, SIG_IGN); /* as the daemon does */
    bg_main_thread_register();
    test_drivers_register();
    register_tests();
    int ret = g_test_run();
    coroutine_pool_drain();
    thread_pool_shutdown();
    return ret;
}

/* ---- Tasks */

struct TestTask {
    TestTaskFunc *fn;
    void *opaque;
    int ret;
    _Atomic bool done;
};

static void coroutine_fn task_entry(void *opaque)
{
    TestTask *task = opaque;
    task->ret = task->fn(task->opaque);
    atomic_store(&task->done, true); /* the last use: test_join() frees it */
}

TestTask *test_spawn(AioContext *ctx, TestTaskFunc *fn, void *opaque)
{
    TestTask *task = g_new0(TestTask, 1);
    task->fn = fn;
    task->opaque = opaque;
    aio_co_enter(ctx, coroutine_create(task_entry, task));
    return task;
}

bool test_task_done(TestTask *task)
{
    return atomic_load(&task->done);
}

int coroutine_fn test_join(TestTask *task)
{
    test_wait(test_task_done(task));
    int ret = task->ret;
    g_free(task);
    return ret;
}

void coroutine_fn test_settle(void)
{
    aio_co_sleep_ns(5 * 1000 * 1000);
}

/* ---- Requests */

static int coroutine_fn request_run(void *opaque)
{
    TestRequest *req = opaque;
    g_autoptr(GError) err = NULL;
    switch (req->op) {
    case BLOCK_OP_READ:
        return block_backend_co_pread(req->blk, req->offset, req->bytes, req->buf);
    case BLOCK_OP_WRITE:
        return block_backend_co_pwrite(req->blk, req->offset, req->bytes, req->buf, req->flags);
    case BLOCK_OP_FLUSH:
        return block_backend_co_flush(req->blk);
    case BLOCK_OP_DISCARD:
        return block_backend_co_pdiscard(req->blk, req->offset, req->bytes);
    case BLOCK_OP_WRITE_ZEROES:
        return block_backend_co_pwrite_zeroes(req->blk, req->offset, req->bytes, req->flags);
    case BLOCK_OP_TRUNCATE:
        return block_backend_co_truncate(req->blk, req->offset, &err);
    default:
        g_assert_not_reached();
    }
}

TestRequest *test_request_start(AioContext *ctx, BlockBackend *blk, BlockOp op, int64_t offset, int64_t bytes,
                                int pattern)
{
    TestRequest *req = g_new0(TestRequest, 1);
    *req = (TestRequest){.blk = blk, .op = op, .offset = offset, .bytes = bytes};
    req->buf = g_malloc(bytes ? bytes : 1);
    memset(req->buf, pattern, bytes);
    req->task = test_spawn(ctx, request_run, req);
    return req;
}

bool test_request_done(TestRequest *req)
{
    return test_task_done(req->task);
}

int coroutine_fn test_request_finish(TestRequest *req)
{
    int ret = test_join(req->task);
    g_free(req->buf);
    g_free(req);
    return ret;
}

/* ---- Graph */

static JsonObject *parse_options(const char *fmt, va_list ap)
{
    g_autofree char *text = g_strdup_vprintf(fmt, ap);
    g_autoptr(GError) err = NULL;
    JsonNode *root = json_from_string(g_strdelimit(text, "'", '"'), &err);
    g_assert_no_error(err);
    JsonObject *options = json_node_dup_object(root);
    json_node_unref(root);
    return options;
}

BlockNode *coroutine_fn test_open(TestEnv *env, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    g_autoptr(JsonObject) options = parse_options(fmt, ap);
    va_end(ap);
    g_autoptr(GError) err = NULL;
    BlockNode *node = block_node_co_open(env->graph, options, &err);
    g_assert_no_error(err);
    g_assert_nonnull(node);
    return node;
}

GError *coroutine_fn test_open_error(TestEnv *env, int errnum, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    g_autoptr(JsonObject) options = parse_options(fmt, ap);
    va_end(ap);
    GError *err = NULL;
    g_assert_null(block_node_co_open(env->graph, options, &err));
    g_assert_nonnull(err);
    g_assert_true(err->domain == BG_ERROR);
    if (errnum) {
        g_assert_cmpint(err->code, ==, errnum);
    }
    return err;
}

BlockBackend *test_backend(TestEnv *env, const char *name, BlockNode *node)
{
    g_autoptr(GError) err = NULL;
    BlockPerm perm = BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE;
    BlockBackend *blk = block_backend_new(env->graph, name, perm, BLOCK_PERM_ALL);
    int ret = block_backend_insert(blk, node, &err);
    g_assert_no_error(err);
    g_assert_cmpint(ret, ==, 0);
    return blk;
}

void coroutine_fn test_delete(TestEnv *env, BlockNode *node)
{
    g_autoptr(GError) err = NULL;
    int ret = block_graph_co_delete_node(env->graph, node, &err);
    g_assert_no_error(err);
    g_assert_cmpint(ret, ==, 0);
}

BlockChild *test_attach(BlockNode *parent, BlockNode *child, const char *name)
{
    g_autoptr(GError) err = NULL;
    BlockChild *edge = block_node_attach_child(parent, child, name, BLOCK_ROLE_DATA, &err);
    g_assert_no_error(err);
    g_assert_nonnull(edge);
    return edge;
}

void coroutine_fn test_write_bytes(BlockBackend *blk, int64_t offset, size_t n, int byte)
{
    g_autofree uint8_t *buf = g_malloc(n);
    memset(buf, byte, n);
    g_assert_cmpint(block_backend_co_pwrite(blk, offset, (int64_t)n, buf, 0), ==, 0);
}

void coroutine_fn test_check_bytes(BlockBackend *blk, int64_t offset, size_t n, int byte)
{
    g_autofree uint8_t *buf = g_malloc(n), *want = g_malloc(n);
    memset(want, byte, n);
    g_assert_cmpint(block_backend_co_pread(blk, offset, (int64_t)n, buf), ==, 0);
    test_assert_mem("bytes", buf, want, n);
}

void test_check_error(GError **err, int errnum, const char *words, ...)
{
    g_assert_nonnull(*err);
    g_assert_true((*err)->domain == BG_ERROR);
    g_assert_cmpint((*err)->code, ==, errnum);
    va_list ap;
    va_start(ap, words);
    for (const char *word = words; word; word = va_arg(ap, const char *)) {
        if (!strstr((*err)->message, word)) {
            g_error("'%s' is missing in the message: %s", word, (*err)->message);
        }
    }
    va_end(ap);
    g_clear_error(err);
}

/* ---- Data */

void test_fill(uint8_t *buf, size_t n, uint32_t seed)
{
    uint32_t x = seed * 2654435761u + 12345;
    for (size_t i = 0; i < n; i++) {
        x = x * 1664525u + 1013904223u;
        buf[i] = x >> 24;
    }
}

void test_assert_mem(const char *what, const uint8_t *got, const uint8_t *want, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (got[i] != want[i]) {
            g_error("%s: byte %zu of %zu is 0x%02x, not 0x%02x", what, i, n, got[i], want[i]);
        }
    }
}
