/*
 * Tests of drained sections whose graph changes meanwhile: nodes added, attached, detached, replaced,
 * deleted, moved to another thread.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <string.h>

#include "tests/unit/block-test-util.h"

static BlockNode *coroutine_fn open_mem(TestEnv *env, const char *name)
{
    return test_open(env, "{'driver':'test-mem','node-name':'%s'}", name);
}

static BlockNode *coroutine_fn open_filter(TestEnv *env, const char *name, const char *file)
{
    return test_open(env, "{'driver':'test-filter','node-name':'%s','file':'%s'}", name, file);
}

static BlockNode *coroutine_fn open_format(TestEnv *env, const char *name)
{
    return test_open(env, "{'driver':'test-format','node-name':'%s'}", name);
}

/* In a section or not, the driver told exactly once per turn. */
static void check_state(BlockNode *node, int quiesce)
{
    TestDriver *d = test_driver(node);
    g_assert_cmpint(atomic_load(&node->quiesce), ==, quiesce);
    g_assert_cmpuint(atomic_load(&d->drain_begins) - atomic_load(&d->drain_ends), ==, quiesce > 0);
}

static void coroutine_fn check_read(BlockBackend *blk)
{
    uint8_t buf[64];
    g_assert_cmpint(block_backend_co_pread(blk, 0, sizeof buf, buf), ==, 0);
}

/* ---- drain/graph-change */

static void coroutine_fn test_added(TestEnv *env)
{
    BlockNode *old = open_mem(env, "old");
    BlockDrain *all = block_drain_co_begin_all(env->graph), *one = block_drain_co_begin(old);
    BlockNode *leaf = open_mem(env, "leaf");
    check_state(leaf, 1);
    BlockNode *filter = open_filter(env, "filter", "leaf");
    check_state(filter, 1);
    check_state(leaf, 1);
    BlockBackend *blk = test_backend(env, "b", filter);
    TestRequest *req = test_request_start(test_iothread(env, 0), blk, BLOCK_OP_READ, 0, 100, 0);
    test_wait(block_backend_parked(blk) == 1);
    /* On top of the other section's node: that covers it, too. */
    BlockNode *above = open_filter(env, "above", "old");
    check_state(above, 2);
    block_drain_end(all);
    check_state(leaf, 0);
    check_state(filter, 0);
    check_state(above, 1);
    check_state(old, 1);
    g_assert_cmpint(test_request_finish(req), ==, 0);
    block_drain_end(one);
    check_state(above, 0);
    check_state(old, 0);
    g_assert_cmpuint(atomic_load(&test_driver(leaf)->drain_begins), ==, 1);
    block_backend_co_free(blk);
}

/* A backend that gets its node, and a new backend, inside a section over all. */
static void coroutine_fn test_added_backend(TestEnv *env)
{
    BlockNode *leaf = open_mem(env, "leaf");
    BlockBackend *early = block_backend_new(env->graph, "early", BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL);
    BlockDrain *all = block_drain_co_begin_all(env->graph);
    g_assert_cmpint(block_backend_insert(early, leaf, NULL), ==, 0);
    BlockBackend *late = test_backend(env, "late", leaf);
    TestRequest *one = test_request_start(env->ctx, early, BLOCK_OP_READ, 0, 100, 0);
    TestRequest *two = test_request_start(env->ctx, late, BLOCK_OP_READ, 0, 100, 0);
    g_assert_cmpuint(block_backend_parked(early), ==, 1);
    g_assert_cmpuint(block_backend_parked(late), ==, 1);
    block_drain_end(all);
    g_assert_cmpint(test_request_finish(one), ==, 0);
    g_assert_cmpint(test_request_finish(two), ==, 0);
    block_backend_co_free(early);
    block_backend_co_free(late);
}

/* ---- drain/deletion */

static void count_close(BlockNode *node, void *opaque)
{
    ++*(unsigned *)opaque;
}

static void coroutine_fn test_delete_root(TestEnv *env)
{
    /* The section keeps the node that it was begun over. */
    unsigned closed = 0;
    BlockNode *node = open_mem(env, "n");
    test_driver(node)->on_close = count_close;
    test_driver(node)->hook_opaque = &closed;
    BlockDrain *one = block_drain_co_begin(node), *two = block_drain_co_begin(node);
    test_delete(env, node);
    g_assert_cmpuint(closed, ==, 0);
    block_drain_end(one);
    test_settle();
    g_assert_cmpuint(closed, ==, 0);
    check_state(node, 1);
    block_drain_end(two);
    test_wait(closed == 1);
    g_assert_cmpuint(block_graph_nodes(env->graph)->len, ==, 0);
}

static void coroutine_fn test_delete_covered(TestEnv *env)
{
    /* One that is merely covered goes at once, its driver's calls paired; the section stays sound. */
    unsigned closed = 0;
    BlockNode *leaf = open_mem(env, "leaf"), *filter = open_filter(env, "f", "leaf");
    test_driver(filter)->on_close = count_close;
    test_driver(filter)->hook_opaque = &closed;
    BlockDrain *section = block_drain_co_begin(leaf);
    check_state(filter, 1);
    test_delete(env, filter);
    g_assert_cmpuint(closed, ==, 1);
    check_state(leaf, 1);
    block_drain_end(section);
    check_state(leaf, 0);
    section = block_drain_co_begin_all(env->graph);
    test_delete(env, leaf);
    block_drain_end(section);
    g_assert_cmpuint(block_graph_nodes(env->graph)->len, ==, 0);
}

static int coroutine_fn drain_and_end(void *opaque)
{
    BlockNode *node = opaque;
    BlockDrain *section = block_drain_co_begin(node);
    g_assert_cmpint(atomic_load(&node->in_flight), ==, 0);
    block_drain_end(section);
    return 0;
}

static void coroutine_fn test_delete_waiting(TestEnv *env)
{
    /* Nodes go while a section waits for a request that has nothing to do with them. */
    BlockNode *leaf = open_mem(env, "leaf");
    BlockNode *used = open_filter(env, "used", "leaf"), *idle = open_filter(env, "idle", "leaf");
    BlockBackend *blk = test_backend(env, "b", used);
    test_mem_hold(leaf, BLOCK_OP_READ, -1);
    TestRequest *req = test_request_start(test_iothread(env, 0), blk, BLOCK_OP_READ, 0, 100, 0);
    test_wait(test_mem_waiting(leaf) == 1);
    TestTask *a = test_spawn(env->ctx, drain_and_end, leaf);
    TestTask *b = test_spawn(env->ctx, drain_and_end, idle);
    check_state(idle, 2);
    test_delete(env, idle);
    test_settle();
    g_assert_false(test_task_done(a));
    g_assert_false(test_task_done(b));
    test_mem_release(leaf, BLOCK_OP_READ, -1);
    test_join(a);
    test_join(b);
    g_assert_cmpint(test_request_finish(req), ==, 0);
    test_wait(!block_graph_find(env->graph, "idle", NULL));
    block_backend_co_free(blk);
}

/* The last user goes as its request ends, in the middle of a section's waiting. */
typedef struct LastRequest {
    TestEnv *env;
    BlockBackend *blk;
    BlockNode *top;
} LastRequest;

static int coroutine_fn read_and_delete(void *opaque)
{
    LastRequest *last = opaque;
    check_read(last->blk);
    block_backend_co_free(last->blk);
    test_delete(last->env, last->top);
    return 0;
}

static void coroutine_fn test_delete_by_request(TestEnv *env)
{
    BlockNode *leaf = open_mem(env, "leaf"), *top = open_filter(env, "top", "leaf");
    LastRequest last = {env, test_backend(env, "b", top), top};
    test_mem_hold(leaf, BLOCK_OP_READ, -1);
    TestTask *reader = test_spawn(env->ctx, read_and_delete, &last);
    g_assert_cmpuint(test_mem_waiting(leaf), ==, 1);
    TestTask *low = test_spawn(env->ctx, drain_and_end, leaf),
             *high = test_spawn(env->ctx, drain_and_end, top);
    test_mem_release(leaf, BLOCK_OP_READ, -1);
    test_join(reader);
    test_join(low);
    test_join(high);
    test_wait(!block_graph_find(env->graph, "top", NULL));
    check_state(leaf, 0);
}

/* ---- drain/detach */

typedef struct Family {
    BlockNode *parent, *a, *b, *c; /* a has the data, b stays when detached, c closes */
    BlockChild *to_b, *to_c;
    BlockBackend *blk;
    unsigned closed;
} Family;

static void coroutine_fn family_open(TestEnv *env, Family *f)
{
    f->closed = 0;
    f->a = open_mem(env, "a");
    f->b = open_mem(env, "b");
    f->parent = test_open(
        env, "{'driver':'test-format','node-name':'parent','a':'a','b':'b','c':{'driver':'test-mem'}}");
    f->to_b = g_ptr_array_index(f->parent->children, 1);
    f->to_c = g_ptr_array_index(f->parent->children, 2);
    f->c = f->to_c->node;
    test_driver(f->c)->on_close = count_close;
    test_driver(f->c)->hook_opaque = &f->closed;
    f->blk = test_backend(env, "b", f->parent);
}

/* With a request of the parent held in a, so that a section waits; the request may be in any thread. */
static TestRequest *coroutine_fn family_hold(TestEnv *env, Family *f, AioContext *ctx)
{
    test_mem_hold(f->a, BLOCK_OP_READ, -1);
    TestRequest *req = test_request_start(ctx, f->blk, BLOCK_OP_READ, 0, 100, 0);
    test_wait(test_mem_waiting(f->a) == 1);
    return req;
}

static void coroutine_fn family_close(Family *f, TestRequest *req, TestTask *drainer)
{
    test_settle();
    g_assert_false(test_task_done(drainer));
    test_mem_release(f->a, BLOCK_OP_READ, -1);
    test_join(drainer);
    g_assert_cmpint(test_request_finish(req), ==, 0);
    check_state(f->parent, 0);
    check_state(f->a, 0);
    check_state(f->b, 0);
    if (!f->closed) {
        test_driver(f->c)->on_close = NULL; /* it outlives *f */
    }
    block_backend_co_free(f->blk);
}

static void coroutine_fn test_detach_child(TestEnv *env)
{
    Family f;
    family_open(env, &f);
    TestRequest *req = family_hold(env, &f, test_iothread(env, 0));
    TestTask *drainer = test_spawn(env->ctx, drain_and_end, f.parent);
    check_state(f.b, 1);
    check_state(f.c, 1);
    block_child_co_detach(f.to_b);
    check_state(f.b, 0);
    block_child_co_detach(f.to_c);
    g_assert_cmpuint(f.closed, ==, 1);
    check_state(f.parent, 1);
    check_state(f.a, 1);
    family_close(&f, req, drainer);
}

/* A section over a child; its parent, which the section covers, lets go of it. */
static void coroutine_fn test_detach_parent(TestEnv *env)
{
    Family f;
    family_open(env, &f);
    TestRequest *req = family_hold(env, &f, env->ctx);
    TestTask *drainer = test_spawn(env->ctx, drain_and_end, f.b);
    check_state(f.parent, 1);
    check_state(f.a, 0);                     /* beside, not below */
    g_assert_false(test_task_done(drainer)); /* the parent is busy */
    block_child_co_detach(f.to_b);
    check_state(f.parent, 0);
    test_join(drainer); /* nothing that matters to b is busy any more */
    g_assert_false(test_request_done(req));
    drainer = test_spawn(env->ctx, drain_and_end, f.parent);
    family_close(&f, req, drainer);
}

/* The same from callbacks: a driver's drain_begin leads to the detaching, by a bottom half and its coroutine.
 */
static int coroutine_fn detach_both(void *opaque)
{
    Family *f = opaque;
    block_child_co_detach(f->to_c);
    block_child_co_detach(f->to_b);
    return 0;
}

static TestTask *detacher;

static void detach_bh(void *opaque)
{
    detacher = test_spawn(aio_context_current(), detach_both, opaque);
}

static void detach_soon(BlockNode *node, void *opaque)
{
    aio_bh_schedule_oneshot(aio_context_current(), detach_bh, opaque);
}

static void coroutine_fn test_detach_driver_cb(TestEnv *env)
{
    Family f;
    family_open(env, &f);
    TestRequest *req = family_hold(env, &f, test_iothread(env, 0));
    detacher = NULL;
    test_driver(f.a)->on_drain_begin = detach_soon;
    test_driver(f.a)->hook_opaque = &f;
    TestTask *drainer = test_spawn(env->ctx, drain_and_end, f.parent);
    test_driver(f.a)->on_drain_begin = NULL;
    test_wait(detacher);
    test_join(detacher);
    g_assert_cmpuint(f.closed, ==, 1);
    check_state(f.b, 0);
    check_state(f.a, 1);
    family_close(&f, req, drainer);
}

/* From the end of the request that the section waits for. */
static int coroutine_fn read_and_detach(void *opaque)
{
    Family *f = opaque;
    check_read(f->blk);
    return detach_both(f);
}

static void coroutine_fn test_detach_parent_cb(TestEnv *env)
{
    Family f;
    family_open(env, &f);
    test_mem_hold(f.a, BLOCK_OP_READ, -1);
    TestTask *reader = test_spawn(env->ctx, read_and_detach, &f);
    TestTask *drainers[] = {
        test_spawn(env->ctx, drain_and_end, f.parent),
        test_spawn(env->ctx, drain_and_end, f.b),
        test_spawn(env->ctx, drain_and_end, f.a),
    };
    check_state(f.b, 2);
    test_mem_release(f.a, BLOCK_OP_READ, -1);
    test_join(reader);
    for (unsigned i = 0; i < 3; i++) {
        test_join(drainers[i]);
    }
    g_assert_cmpuint(f.closed, ==, 1);
    check_state(f.parent, 0);
    check_state(f.a, 0);
    check_state(f.b, 0);
    block_backend_co_free(f.blk);
}

/* ---- drain/attach */

static void coroutine_fn test_attach_drained(TestEnv *env)
{
    BlockNode *parent = open_format(env, "parent"), *child = open_mem(env, "child");
    BlockBackend *low = test_backend(env, "low", child), *high = test_backend(env, "high", parent);
    for (unsigned i = 0; i < 4; i++) {
        bool parent_drained = i & 1, child_drained = i & 2;
        BlockDrain *p = parent_drained ? block_drain_co_begin(parent) : NULL;
        BlockDrain *c = child_drained ? block_drain_co_begin(child) : NULL;
        BlockChild *edge = test_attach(parent, child, "a");
        int both = parent_drained + child_drained;
        check_state(parent, both);
        check_state(child, both);
        TestRequest *one = test_request_start(test_iothread(env, 0), low, BLOCK_OP_READ, 0, 10, 0);
        TestRequest *two = test_request_start(test_iothread(env, 0), high, BLOCK_OP_READ, 0, 10, 0);
        if (both) {
            test_wait(block_backend_parked(low) + block_backend_parked(high) == 2);
        }
        if (p) {
            block_drain_end(p);
            check_state(parent, child_drained);
            check_state(child, child_drained);
        }
        if (c) {
            block_drain_end(c);
        }
        check_state(parent, 0);
        check_state(child, 0);
        g_assert_cmpint(test_request_finish(one), ==, 0);
        g_assert_cmpint(test_request_finish(two), ==, 0);
        block_child_co_detach(edge);
    }
    block_backend_co_free(low);
    block_backend_co_free(high);
}

/* Detached inside the section that came with the other end: released at once, and the parked go on. */
static void coroutine_fn test_attach_and_detach(TestEnv *env)
{
    BlockNode *parent = open_format(env, "parent"), *child = open_mem(env, "child");
    BlockBackend *low = test_backend(env, "low", child);
    BlockDrain *section = block_drain_co_begin(parent);
    BlockChild *edge = test_attach(parent, child, "a");
    TestRequest *req = test_request_start(env->ctx, low, BLOCK_OP_READ, 0, 10, 0);
    g_assert_cmpuint(block_backend_parked(low), ==, 1);
    block_child_co_detach(edge);
    g_assert_cmpint(test_request_finish(req), ==, 0);
    check_state(child, 0);
    check_state(parent, 1);
    block_drain_end(section);
    block_backend_co_free(low);
}

/* ---- drain/set-aio-context */

#define WORKERS 4

static _Atomic bool stop_io;

typedef struct Worker {
    BlockBackend *blk;
    TestTask *task;
    _Atomic unsigned rounds;
} Worker;

static int coroutine_fn io_for_ever(void *opaque)
{
    Worker *w = opaque;
    uint8_t buf[100] = {0};
    while (!atomic_load(&stop_io)) {
        int64_t offset = atomic_load(&w->rounds) % 10 * 100;
        g_assert_cmpint(block_backend_co_pwrite(w->blk, offset, sizeof buf, buf, 0), ==, 0);
        g_assert_cmpint(block_backend_co_pread(w->blk, 0, sizeof buf, buf), ==, 0);
        atomic_fetch_add(&w->rounds, 1);
    }
    return 0;
}

static void workers_start(TestEnv *env, Worker *workers, BlockBackend *even, BlockBackend *odd)
{
    atomic_store(&stop_io, false);
    for (unsigned i = 0; i < WORKERS; i++) {
        AioContext *ctx = i == 3 ? env->ctx : test_iothread(env, i);
        atomic_store(&workers[i].rounds, 0);
        workers[i].blk = i % 2 ? odd : even;
        workers[i].task = test_spawn(ctx, io_for_ever, &workers[i]);
    }
}

/* All go on after what was done to the graph; then they stop. */
static void coroutine_fn workers_stop(Worker *workers)
{
    for (unsigned i = 0; i < WORKERS; i++) {
        unsigned before = atomic_load(&workers[i].rounds);
        test_wait(atomic_load(&workers[i].rounds) > before + 1);
    }
    atomic_store(&stop_io, true);
    for (unsigned i = 0; i < WORKERS; i++) {
        test_join(workers[i].task);
    }
}

static void coroutine_fn test_set_context(TestEnv *env)
{
    g_autoptr(GError) err = NULL;
    BlockNode *leaf = test_open(env, "{'driver':'test-home','node-name':'leaf','align':512}");
    BlockNode *filter = open_filter(env, "f", "leaf");
    BlockBackend *low = test_backend(env, "low", leaf), *high = test_backend(env, "high", filter);
    AioContext *homes[] = {test_iothread(env, 0), test_iothread(env, 1), env->ctx, env->ctx};
    Worker workers[WORKERS];
    workers_start(env, workers, low, high);
    for (unsigned i = 0; i < 40; i++) {
        AioContext *home = homes[i % G_N_ELEMENTS(homes)];
        g_assert_cmpint(block_node_co_set_aio_context(leaf, home, &err), ==, 0);
        g_assert_no_error(err);
        g_assert_true(leaf->aio_context == home);
        g_assert_true(aio_context_current() == env->ctx);
        g_assert_cmpuint(atomic_load(&test_mem(leaf)->detaches), ==, i + 1);
        g_assert_cmpuint(atomic_load(&test_mem(leaf)->attaches), ==, i + 1);
        aio_co_sleep_ns(i % 3 * 200000);
    }
    workers_stop(workers);
    check_state(leaf, 0);
    g_assert_cmpint(block_node_co_set_aio_context(filter, env->ctx, &err), ==, -ENOTSUP);
    test_check_error(&err, ENOTSUP, "'f'", NULL);
    block_backend_co_free(low);
    block_backend_co_free(high);
}

/* Inside sections of others, over the node and over all: their requests wait and go to the new home. */
static void coroutine_fn test_set_context_drained(TestEnv *env)
{
    g_autoptr(GError) err = NULL;
    BlockNode *leaf = test_open(env, "{'driver':'test-home','node-name':'leaf'}");
    BlockBackend *blk = test_backend(env, "b", leaf);
    BlockDrain *one = block_drain_co_begin(leaf), *all = block_drain_co_begin_all(env->graph);
    TestRequest *req = test_request_start(test_iothread(env, 1), blk, BLOCK_OP_READ, 0, 10, 0);
    test_wait(block_backend_parked(blk) == 1);
    g_assert_cmpint(block_node_co_set_aio_context(leaf, test_iothread(env, 0), &err), ==, 0);
    check_state(leaf, 2);
    block_drain_end(one);
    block_drain_end(all);
    g_assert_cmpint(test_request_finish(req), ==, 0);
    g_assert_cmpuint(test_calls(leaf, BLOCK_OP_READ), ==, 1);
    block_backend_co_free(blk);
}

/* ---- drain/replace-child */

static void coroutine_fn replace_once(TestEnv *env, bool old_drained, bool new_drained)
{
    g_autoptr(GError) err = NULL;
    BlockNode *from = open_mem(env, "from"), *to = open_mem(env, "to");
    BlockNode *parent = open_filter(env, "parent", "from");
    BlockBackend *blk = test_backend(env, "b", parent);
    BlockDrain *old = old_drained ? block_drain_co_begin(from) : NULL;
    BlockDrain *new = new_drained ? block_drain_co_begin(to) : NULL;
    TestRequest *before = test_request_start(test_iothread(env, 0), blk, BLOCK_OP_READ, 0, 10, 0);
    test_wait(old_drained ? block_backend_parked(blk) == 1 : test_request_done(before));
    check_state(parent, old_drained);
    g_assert_cmpint(block_node_co_replace(from, to, &err), ==, 0);
    g_assert_no_error(err);
    /* Cover follows the graph: what hung on the old one now hangs on the new one. */
    check_state(from, old_drained);
    check_state(to, new_drained);
    check_state(parent, new_drained);
    TestRequest *after = test_request_start(test_iothread(env, 0), blk, BLOCK_OP_READ, 0, 10, 0);
    if (new_drained) {
        test_wait(block_backend_parked(blk) == 1u + old_drained);
        test_settle();
        g_assert_false(test_request_done(after));
        block_drain_end(new);
    }
    g_assert_cmpint(test_request_finish(before), ==, 0);
    g_assert_cmpint(test_request_finish(after), ==, 0);
    check_state(parent, 0);
    check_state(to, 0);
    check_state(from, old_drained);
    g_assert_cmpuint(test_calls(to, BLOCK_OP_READ), ==, 1u + old_drained);
    if (old) {
        block_drain_end(old);
    }
    check_state(from, 0);
    block_backend_co_free(blk);
    test_delete(env, parent);
    test_delete(env, from);
    test_delete(env, to);
}

static void coroutine_fn test_replace(TestEnv *env)
{
    for (unsigned i = 0; i < 4; i++) {
        replace_once(env, i & 1, i & 2);
    }
}

/* Under I/O: a filter comes and goes between the users and their node. */
static void coroutine_fn test_replace_running(TestEnv *env)
{
    g_autoptr(GError) err = NULL;
    BlockNode *leaf = test_open(env, "{'driver':'test-mem','node-name':'leaf','align':512,'delay-ns':1}");
    BlockBackend *blk = test_backend(env, "b", leaf);
    Worker workers[WORKERS];
    workers_start(env, workers, blk, blk);
    for (unsigned i = 0; i < 30; i++) {
        BlockNode *filter = open_filter(env, "f", "leaf");
        g_assert_cmpint(block_node_co_replace(leaf, filter, &err), ==, 0);
        g_assert_true(block_backend_node(blk) == filter);
        aio_co_sleep_ns(i % 3 * 100000);
        g_assert_cmpint(block_node_co_replace(filter, leaf, &err), ==, 0);
        g_assert_true(block_backend_node(blk) == leaf);
        test_delete(env, filter);
    }
    workers_stop(workers);
    block_backend_co_free(blk);
}

static void register_tests(void)
{
    test_add_co("drain/graph-change/node", test_added);
    test_add_co("drain/graph-change/backend", test_added_backend);
    test_add_co("drain/deletion/root", test_delete_root);
    test_add_co("drain/deletion/covered", test_delete_covered);
    test_add_co("drain/deletion/waiting", test_delete_waiting);
    test_add_co("drain/deletion/by-request", test_delete_by_request);
    test_add_co("drain/detach/child", test_detach_child);
    test_add_co("drain/detach/parent", test_detach_parent);
    test_add_co("drain/detach/driver-cb", test_detach_driver_cb);
    test_add_co("drain/detach/parent-cb", test_detach_parent_cb);
    test_add_co("drain/attach/states", test_attach_drained);
    test_add_co("drain/attach/detach", test_attach_and_detach);
    test_add_co("drain/set-aio-context/running", test_set_context);
    test_add_co("drain/set-aio-context/drained", test_set_context_drained);
    test_add_co("drain/replace-child/states", test_replace);
    test_add_co("drain/replace-child/running", test_replace_running);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv, register_tests);
}
