/*
 * Tests of drained sections on a graph that stays as it is; changes meanwhile are in
 * test-block-drain-graph.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <string.h>

#include "tests/unit/block-test-util.h"

/* Two stacks: top1 and top2 on one shared leaf; alone on a leaf of its own. */
typedef struct Graph {
    BlockNode *leaf, *mid, *top1, *top2, *alone;
    BlockBackend *blk1, *blk2, *blk3;
} Graph;

static void coroutine_fn graph_open(TestEnv *env, void *opaque)
{
    Graph *g = opaque;
    g->leaf = test_open(env, "{'driver':'test-mem','node-name':'leaf'}");
    g->mid = test_open(env, "{'driver':'test-filter','node-name':'mid','file':'leaf'}");
    g->top1 = test_open(env, "{'driver':'test-filter','node-name':'top1','file':'mid'}");
    g->top2 = test_open(env, "{'driver':'test-filter','node-name':'top2','file':'leaf'}");
    g->alone = test_open(env, "{'driver':'test-mem','node-name':'alone'}");
    g->blk1 = test_backend(env, "blk1", g->top1);
    g->blk2 = test_backend(env, "blk2", g->top2);
    g->blk3 = test_backend(env, "blk3", g->alone);
}

static void coroutine_fn graph_close(TestEnv *env, void *opaque)
{
    Graph *g = opaque;
    block_backend_co_free(g->blk1);
    block_backend_co_free(g->blk2);
    block_backend_co_free(g->blk3);
}

/* Drivers told so often, and are they in a section now? */
static void check_driver(BlockNode *node, unsigned begins, bool inside)
{
    TestDriver *d = test_driver(node);
    g_assert_cmpuint(atomic_load(&d->drain_begins), ==, begins);
    g_assert_cmpuint(atomic_load(&d->drain_ends), ==, begins - inside);
    g_assert_cmpint(atomic_load(&node->quiesce) > 0, ==, inside);
}

static void check_shared_stack(Graph *g, unsigned begins, bool inside)
{
    BlockNode *nodes[] = {g->leaf, g->mid, g->top1, g->top2};
    for (unsigned i = 0; i < G_N_ELEMENTS(nodes); i++) {
        check_driver(nodes[i], begins, inside);
    }
}

/* ---- drain/driver-cb */

static void coroutine_fn test_driver_cb_co(TestEnv *env)
{
    Graph g;
    graph_open(env, &g);
    /* Whichever node it is over, the section reaches all that lead to its subtree, and no more. */
    BlockNode *nodes[] = {g.leaf, g.mid, g.top1, g.top2};
    for (unsigned i = 0; i < G_N_ELEMENTS(nodes); i++) {
        BlockDrain *section = block_drain_co_begin(nodes[i]);
        check_shared_stack(&g, i + 1, true);
        check_driver(g.alone, 0, false);
        block_drain_end(section);
        check_shared_stack(&g, i + 1, false);
    }
    graph_close(env, &g);
}

static void test_driver_cb(TestEnv *env)
{
    Graph g;
    test_run(env, graph_open, &g);
    BlockDrain *section = block_drain_begin(g.mid);
    check_shared_stack(&g, 1, true);
    check_driver(g.alone, 0, false);
    block_drain_end(section);
    check_shared_stack(&g, 1, false);
    section = block_drain_begin_all(env->graph);
    check_shared_stack(&g, 2, true);
    check_driver(g.alone, 1, true);
    block_drain_end(section);
    check_shared_stack(&g, 2, false);
    check_driver(g.alone, 1, false);
    /* Started without waiting, ended without waiting. */
    section = block_drain_start(g.top2);
    check_shared_stack(&g, 3, true);
    block_drain_end(section);
    check_shared_stack(&g, 3, false);
    test_run(env, graph_close, &g);
}

/* The order of the callbacks: parents before children at the start, the reverse at the end. */
static void note_begin(BlockNode *node, void *opaque)
{
    g_string_append_printf(opaque, "+%s ", node->name);
}

static void note_end(BlockNode *node, void *opaque)
{
    g_string_append_printf(opaque, "-%s ", node->name);
}

static void coroutine_fn test_driver_cb_order(TestEnv *env)
{
    Graph g;
    g_autoptr(GString) text = g_string_new("");
    graph_open(env, &g);
    BlockNode *nodes[] = {g.leaf, g.mid, g.top1};
    for (unsigned i = 0; i < G_N_ELEMENTS(nodes); i++) {
        test_driver(nodes[i])->on_drain_begin = note_begin;
        test_driver(nodes[i])->on_drain_end = note_end;
        test_driver(nodes[i])->hook_opaque = text;
    }
    block_drain_end(block_drain_co_begin(g.leaf));
    g_assert_cmpstr(text->str, ==, "+top1 +mid +leaf -leaf -mid -top1 ");
    for (unsigned i = 0; i < G_N_ELEMENTS(nodes); i++) {
        test_driver(nodes[i])->on_drain_begin = test_driver(nodes[i])->on_drain_end = NULL;
    }
    graph_close(env, &g);
}

/* A request in flight: drain_begin comes at once, the return only after the request. */
static int coroutine_fn drain_and_end(void *opaque)
{
    BlockNode *node = opaque;
    BlockDrain *section = block_drain_co_begin(node);
    g_assert_cmpint(atomic_load(&node->in_flight), ==, 0);
    g_assert_cmpuint(atomic_load(&test_driver(node)->active), ==, 0);
    block_drain_end(section);
    return 0;
}

static void coroutine_fn test_waits(TestEnv *env)
{
    Graph g;
    graph_open(env, &g);
    AioContext *contexts[] = {env->ctx, test_iothread(env, 0)};
    BlockNode *nodes[] = {g.leaf, g.mid, g.top1, g.top2};
    for (unsigned c = 0; c < G_N_ELEMENTS(contexts); c++) {
        for (unsigned i = 0; i < G_N_ELEMENTS(nodes); i++) {
            unsigned begins = atomic_load(&test_driver(g.leaf)->drain_begins);
            test_mem_hold(g.leaf, BLOCK_OP_READ, -1);
            TestRequest *req = test_request_start(contexts[c], g.blk1, BLOCK_OP_READ, 0, 100, 0);
            test_wait(test_mem_waiting(g.leaf) == 1);
            TestTask *task = test_spawn(env->ctx, drain_and_end, nodes[i]);
            check_shared_stack(&g, begins + 1, true);
            test_settle();
            g_assert_false(test_task_done(task));
            test_mem_release(g.leaf, BLOCK_OP_READ, -1);
            test_join(task);
            g_assert_cmpint(test_request_finish(req), ==, 0);
        }
    }
    graph_close(env, &g);
}

/* ---- drain/nested */

static void coroutine_fn test_nested(TestEnv *env)
{
    Graph g;
    graph_open(env, &g);
    TestRequest *req;
    /* All orders of ending three sections that overlap. */
    static const unsigned orders[][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    for (unsigned i = 0; i < G_N_ELEMENTS(orders); i++) {
        BlockDrain *sections[] = {block_drain_co_begin(g.top1), block_drain_co_begin(g.leaf),
                                  block_drain_co_begin_all(env->graph)};
        check_shared_stack(&g, i + 1, true);
        check_driver(g.alone, i + 1, true);
        g_assert_cmpint(atomic_load(&g.leaf->quiesce), ==, 3);
        g_assert_cmpint(atomic_load(&g.alone->quiesce), ==, 1);
        req = test_request_start(test_iothread(env, 0), g.blk2, BLOCK_OP_WRITE, 0, 100, 1);
        test_wait(block_backend_parked(g.blk2) == 1);
        for (unsigned k = 0; k < 3; k++) {
            g_assert_false(test_request_done(req));
            check_shared_stack(&g, i + 1, true);
            block_drain_end(sections[orders[i][k]]);
        }
        check_shared_stack(&g, i + 1, false);
        g_assert_cmpint(test_request_finish(req), ==, 0);
    }
    graph_close(env, &g);
}

/* Several coroutines hold sections at the same time. */
static int coroutine_fn hold_for_a_while(void *opaque)
{
    BlockNode *node = opaque;
    for (unsigned i = 0; i < 20; i++) {
        BlockDrain *section = block_drain_co_begin(node);
        unsigned calls = test_calls(node, BLOCK_OP_READ);
        aio_co_sleep_ns(i % 3 * 100000);
        g_assert_cmpint(atomic_load(&node->in_flight), ==, 0);
        g_assert_cmpuint(test_calls(node, BLOCK_OP_READ), ==, calls);
        block_drain_end(section);
        aio_co_sleep_ns(i % 2 * 50000);
    }
    return 0;
}

static _Atomic bool stop_reading;

static int coroutine_fn read_for_ever(void *opaque)
{
    uint8_t buf[100];
    while (!atomic_load(&stop_reading)) {
        g_assert_cmpint(block_backend_co_pread(opaque, 0, sizeof buf, buf), ==, 0);
        aio_co_sleep_ns(1000);
    }
    return 0;
}

static void coroutine_fn test_overlapping(TestEnv *env)
{
    Graph g;
    graph_open(env, &g);
    BlockNode *nodes[] = {g.leaf, g.mid, g.top1, g.top2};
    TestTask *holders[4], *readers[4];
    atomic_store(&stop_reading, false);
    for (unsigned i = 0; i < 4; i++) {
        readers[i] = test_spawn(test_iothread(env, i), read_for_ever, i % 2 ? g.blk1 : g.blk2);
    }
    for (unsigned i = 0; i < 4; i++) {
        holders[i] = test_spawn(env->ctx, hold_for_a_while, nodes[i]);
    }
    for (unsigned i = 0; i < 4; i++) {
        test_join(holders[i]);
    }
    atomic_store(&stop_reading, true);
    for (unsigned i = 0; i < 4; i++) {
        test_join(readers[i]);
    }
    graph_close(env, &g);
}

/* ---- drain/drain-all */

static int coroutine_fn drain_all_and_end(void *opaque)
{
    TestEnv *env = opaque;
    BlockDrain *section = block_drain_co_begin_all(env->graph);
    const GPtrArray *nodes = block_graph_nodes(env->graph);
    for (guint i = 0; i < nodes->len; i++) {
        BlockNode *node = g_ptr_array_index(nodes, i);
        g_assert_cmpint(atomic_load(&node->in_flight), ==, 0);
        g_assert_cmpint(atomic_load(&node->quiesce), ==, 1);
    }
    block_drain_end(section);
    return 0;
}

static void coroutine_fn test_drain_all(TestEnv *env)
{
    Graph g;
    graph_open(env, &g);
    test_mem_hold(g.leaf, BLOCK_OP_READ, -1);
    test_mem_hold(g.alone, BLOCK_OP_READ, -1);
    TestRequest *one = test_request_start(test_iothread(env, 0), g.blk1, BLOCK_OP_READ, 0, 100, 0);
    TestRequest *two = test_request_start(test_iothread(env, 1), g.blk3, BLOCK_OP_READ, 0, 100, 0);
    test_wait(test_mem_waiting(g.leaf) + test_mem_waiting(g.alone) == 2);
    TestTask *task = test_spawn(env->ctx, drain_all_and_end, env);
    test_mem_release(g.leaf, BLOCK_OP_READ, -1);
    g_assert_cmpint(test_request_finish(one), ==, 0);
    test_settle();
    g_assert_false(test_task_done(task));
    test_mem_release(g.alone, BLOCK_OP_READ, -1);
    test_join(task);
    g_assert_cmpint(test_request_finish(two), ==, 0);

    /* A section over several nodes, not over the others. */
    BlockNode *some[] = {g.alone, g.mid};
    BlockDrain *section = block_drain_co_begin_nodes(some, 2);
    g_assert_cmpint(atomic_load(&g.alone->quiesce), ==, 1);
    check_shared_stack(&g, 2, true);
    block_drain_end(section);
    section = block_drain_co_begin_nodes(some, 1);
    check_shared_stack(&g, 2, false);
    block_drain_end(section);
    graph_close(env, &g);
}

/* ---- drain/iothread: a request that needs a bottom half of another thread to complete */

typedef struct Remote {
    AioContext *ctx; /* whose bottom halves complete the requests */
    _Atomic unsigned hops;
} Remote;

static Remote remote;

static void remote_bh(void *opaque)
{
    atomic_fetch_add(&remote.hops, 1);
    aio_co_wake(opaque);
}

static int coroutine_fn remote_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    atomic_store(&node->length, 1024 * 1024);
    return 0;
}

static int coroutine_fn remote_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                      size_t qiov_offset, BlockRequestFlags flags)
{
    for (unsigned i = 0; i < 5; i++) {
        aio_bh_schedule_oneshot(remote.ctx, remote_bh, coroutine_self());
        coroutine_yield();
    }
    io_vector_memset(qiov, qiov_offset, 7, bytes);
    return 0;
}

static const BlockDriver remote_driver = {
    .name = "test-remote",
    .instance_size = 1,
    .co_open = remote_open,
    .co_preadv = remote_preadv,
};

static void coroutine_fn test_iothread_bh(TestEnv *env)
{
    /* The request runs in one thread, its completion needs another: all pairs of main and iothreads. */
    AioContext *contexts[] = {env->ctx, test_iothread(env, 0), test_iothread(env, 1)};
    BlockNode *node = test_open(env, "{'driver':'test-remote','node-name':'r'}");
    BlockBackend *blk = test_backend(env, "b", node);
    atomic_store(&remote.hops, 0);
    for (unsigned i = 0; i < 9; i++) {
        TestRequest *reqs[6];
        remote.ctx = contexts[i / 3];
        for (unsigned k = 0; k < 6; k++) {
            reqs[k] = test_request_start(contexts[i % 3], blk, BLOCK_OP_READ, k, 10, 0);
        }
        BlockDrain *section = block_drain_co_begin(node);
        g_assert_cmpint(atomic_load(&node->in_flight), ==, 0);
        block_drain_end(section);
        for (unsigned k = 0; k < 6; k++) {
            g_assert_cmpint(test_request_finish(reqs[k]), ==, 0);
        }
    }
    g_assert_cmpuint(atomic_load(&remote.hops), ==, 9 * 6 * 5);
    block_backend_co_free(blk);
}

/* The same from the top level of the main thread, which runs its loop meanwhile. */
static TestRequest *top_level_req;
static BlockBackend *top_level_blk;
static BlockNode *top_level_node;

static void coroutine_fn top_level_start(TestEnv *env, void *opaque)
{
    top_level_node = test_open(env, "{'driver':'test-remote','node-name':'r'}");
    top_level_blk = test_backend(env, "b", top_level_node);
    remote.ctx = env->ctx;
    top_level_req = test_request_start(test_iothread(env, 0), top_level_blk, BLOCK_OP_READ, 0, 10, 0);
}

static void coroutine_fn top_level_stop(TestEnv *env, void *opaque)
{
    g_assert_cmpint(test_request_finish(top_level_req), ==, 0);
    block_backend_co_free(top_level_blk);
}

static void test_iothread_top(TestEnv *env)
{
    test_run(env, top_level_start, NULL);
    BlockDrain *section = block_drain_begin(top_level_node);
    g_assert_cmpint(atomic_load(&top_level_node->in_flight), ==, 0);
    block_drain_end(section);
    test_run(env, top_level_stop, NULL);
}

/* ---- drain/parked-order */

#define PARKED 24
#define LATE   24 /* that come as the parked ones are let go */

static struct {
    BgMutex lock;
    unsigned n;
    unsigned numbers[PARKED + LATE];
} arrivals = {.lock = BG_MUTEX_INIT};

static int coroutine_fn order_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    atomic_store(&node->length, 1024 * 1024);
    return 0;
}

/* The offset is the request's number. */
static int coroutine_fn order_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                     size_t qiov_offset, BlockRequestFlags flags)
{
    bg_mutex_lock(&arrivals.lock);
    arrivals.numbers[arrivals.n++] = offset;
    bg_mutex_unlock(&arrivals.lock);
    io_vector_memset(qiov, qiov_offset, 0, bytes);
    return 0;
}

static const BlockDriver order_driver = {
    .name = "test-order",
    .instance_size = 1,
    .co_open = order_open,
    .co_preadv = order_preadv,
};

static void coroutine_fn check_parked_order(TestEnv *env, BlockBackend *blk, AioContext **contexts,
                                            unsigned n)
{
    TestRequest *reqs[PARKED + LATE];
    arrivals.n = 0;
    BlockDrain *outer = block_drain_co_begin(block_backend_node(blk));
    for (unsigned i = 0; i < PARKED; i++) {
        reqs[i] = test_request_start(contexts[i % n], blk, BLOCK_OP_READ, i, 1, 0);
        test_wait(block_backend_parked(blk) == i + 1);
    }
    /* A second section that ends first changes nothing. */
    block_drain_end(block_drain_co_begin(block_backend_node(blk)));
    test_settle();
    g_assert_cmpuint(arrivals.n, ==, 0);
    block_drain_end(outer);
    /* Newcomers do not overtake those that waited. */
    for (unsigned i = PARKED; i < PARKED + LATE; i++) {
        reqs[i] = test_request_start(contexts[i % n], blk, BLOCK_OP_READ, i, 1, 0);
    }
    for (unsigned i = 0; i < PARKED + LATE; i++) {
        g_assert_cmpint(test_request_finish(reqs[i]), ==, 0);
    }
    g_assert_cmpuint(block_backend_parked(blk), ==, 0);
    g_assert_cmpuint(arrivals.n, ==, PARKED + LATE);
    unsigned next[2] = {0, 1};
    for (unsigned i = 0; i < arrivals.n; i++) {
        unsigned which = arrivals.numbers[i] % n;
        g_assert_cmpuint(arrivals.numbers[i], ==, next[which]);
        next[which] += n;
    }
}

static void coroutine_fn test_parked_order(TestEnv *env)
{
    BlockNode *node = test_open(env, "{'driver':'test-order','node-name':'o'}");
    BlockBackend *blk = test_backend(env, "b", node);
    AioContext *main_only[] = {env->ctx}, *one[] = {test_iothread(env, 0)};
    AioContext *both[] = {env->ctx, test_iothread(env, 0)},
               *two[] = {test_iothread(env, 0), test_iothread(env, 1)};
    for (unsigned i = 0; i < 20; i++) {
        check_parked_order(env, blk, i % 2 ? main_only : one, 1);
        check_parked_order(env, blk, i % 4 ? both : two, 2);
    }
    block_backend_co_free(blk);
}

/* A section that begins while the parked ones are being let go: none is lost, none runs inside. */
static void coroutine_fn test_parked_again(TestEnv *env)
{
    BlockNode *node = test_open(env, "{'driver':'test-mem','node-name':'m','delay-ns':1}");
    BlockBackend *blk = test_backend(env, "b", node);
    for (unsigned round = 0; round < 20; round++) {
        TestRequest *reqs[PARKED];
        BlockDrain *section = block_drain_co_begin(node);
        for (unsigned i = 0; i < PARKED; i++) {
            reqs[i] = test_request_start(test_iothread(env, i % 4), blk, BLOCK_OP_READ, i, 10, 0);
        }
        test_wait(block_backend_parked(blk) == PARKED);
        for (unsigned i = 0; i < 4; i++) {
            block_drain_end(section);
            section = block_drain_co_begin(node);
            unsigned calls = test_calls(node, BLOCK_OP_READ);
            aio_co_sleep_ns(20000);
            g_assert_cmpint(atomic_load(&node->in_flight), ==, 0);
            g_assert_cmpuint(test_calls(node, BLOCK_OP_READ), ==, calls);
        }
        block_drain_end(section);
        for (unsigned i = 0; i < PARKED; i++) {
            g_assert_cmpint(test_request_finish(reqs[i]), ==, 0);
        }
    }
    block_backend_co_free(blk);
}

/* Copies between two backends: drained sections over either end of a copy that is under way. */
static _Atomic bool stop_copying;

typedef struct Copier {
    BlockBackend *ends[2];
    int64_t offset; /* of the range that is its own at both ends */
} Copier;

static int coroutine_fn copy_for_ever(void *opaque)
{
    const Copier *c = opaque;
    for (unsigned i = 0; !atomic_load(&stop_copying); i++) {
        BlockBackend *from = c->ends[i % 2], *to = c->ends[(i + 1) % 2];
        g_assert_cmpint(block_backend_co_copy_range(from, c->offset, to, c->offset, 4096), ==, 0);
    }
    return 0;
}

static void coroutine_fn test_copy_range(TestEnv *env)
{
    Graph g;
    graph_open(env, &g);
    Copier copiers[4];
    TestTask *tasks[4], *holders[2];
    atomic_store(&stop_copying, false);
    test_driver(g.alone)->delay_ns = 1;
    for (unsigned i = 0; i < 4; i++) {
        copiers[i] = (Copier){{g.blk2, g.blk3}, i * 4096};
        tasks[i] = test_spawn(test_iothread(env, i), copy_for_ever, &copiers[i]);
    }
    for (unsigned round = 0; round < 30; round++) {
        holders[0] = test_spawn(env->ctx, drain_and_end, g.leaf);
        holders[1] = test_spawn(env->ctx, drain_and_end, g.alone);
        test_join(holders[0]);
        test_join(holders[1]);
        BlockNode *node = round % 2 ? g.leaf : g.alone;
        BlockDrain *section = block_drain_co_begin(node);
        for (unsigned i = 0; i < 20; i++) {
            g_assert_cmpint(atomic_load(&node->in_flight), ==, 0);
            aio_co_sleep_ns(10000);
        }
        block_drain_end(section);
    }
    atomic_store(&stop_copying, true);
    for (unsigned i = 0; i < 4; i++) {
        g_assert_cmpint(test_join(tasks[i]), ==, 0);
    }
    graph_close(env, &g);
}

static void register_tests(void)
{
    block_driver_register_for_test(&remote_driver);
    block_driver_register_for_test(&order_driver);
    test_add_co("drain/driver-cb/coroutine", test_driver_cb_co);
    test_add("drain/driver-cb/main", test_driver_cb);
    test_add_co("drain/driver-cb/order", test_driver_cb_order);
    test_add_co("drain/waits", test_waits);
    test_add_co("drain/nested", test_nested);
    test_add_co("drain/overlapping", test_overlapping);
    test_add_co("drain/drain-all", test_drain_all);
    test_add_co("drain/iothread/bottom-half", test_iothread_bh);
    test_add("drain/iothread/main", test_iothread_top);
    test_add_co("drain/parked-order", test_parked_order);
    test_add_co("drain/parked-again", test_parked_again);
    test_add_co("drain/copy-range", test_copy_range);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv, register_tests);
}
