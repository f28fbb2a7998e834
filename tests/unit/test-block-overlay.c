/*
 * Overlays put in the place of nodes: whose writes land where, and what a failure leaves.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <string.h>

#include "block/create.h"
#include "block/overlay.h"
#include "block/snapshot.h"
#include "tests/unit/block-test-util.h"

#define LENGTH (256 * 1024)

/* An empty image of `length` in a leaf of memory named NAME-leaf, opened as NAME. */
static BlockNode *coroutine_fn open_image(TestEnv *env, const char *name, int64_t length)
{
    g_autoptr(GError) err = NULL;
    g_autofree char *leaf = g_strconcat(name, "-leaf", NULL);
    g_autoptr(JsonObject) options = json_object_new();
    test_open(env, "{'driver':'test-mem','node-name':'%s','size':0,'capacity':4194304,'growable':true}",
              leaf);
    json_object_set_string_member(options, "driver", "qcow2");
    json_object_set_string_member(options, "file", leaf);
    json_object_set_int_member(options, "size", length);
    block_driver_co_create(env->graph, options, 0, &err);
    g_assert_no_error(err);
    return test_open(env, "{'driver':'qcow2','node-name':'%s','file':'%s'}", name, leaf);
}

static BlockNode *leaf_of(BlockNode *node)
{
    return node->file->node;
}

static void coroutine_fn delete_image(TestEnv *env, BlockNode *node)
{
    BlockNode *leaf = leaf_of(node);
    test_delete(env, node);
    test_delete(env, leaf);
}

static void coroutine_fn put(BlockBackend *blk, int64_t offset, char c)
{
    char buf[512];
    memset(buf, c, sizeof buf);
    g_assert_cmpint(block_backend_co_pwrite(blk, offset, sizeof buf, buf, 0), ==, 0);
}

static void coroutine_fn check(BlockBackend *blk, int64_t offset, char c)
{
    char buf[512];
    g_assert_cmpint(block_backend_co_pread(blk, offset, sizeof buf, buf), ==, 0);
    g_assert_cmpint(buf[0], ==, c);
    g_assert_cmpint(buf[511], ==, c);
}

static BlockBackend *writer_of(TestEnv *env, BlockNode *node)
{
    GError *err = NULL;
    BlockBackend *blk =
        block_backend_new(env->graph, node->name, BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE,
                          BLOCK_PERM_ALL & ~BLOCK_PERM_WRITE);
    block_backend_insert(blk, node, &err);
    g_assert_no_error(err);
    return blk;
}

static void coroutine_fn insert(BlockNode *node, BlockNode *overlay)
{
    g_autoptr(GError) err = NULL;
    block_overlay_co_insert(&(BlockOverlay){node, overlay}, 1, &err);
    g_assert_no_error(err);
}

static void coroutine_fn test_insert(TestEnv *env)
{
    BlockNode *base = open_image(env, "base", LENGTH), *top = open_image(env, "top", LENGTH);
    BlockBackend *blk = writer_of(env, base);
    put(blk, 0, 'a');
    put(blk, 65536, 'b');
    int64_t changed = atomic_load(&base->last_write_ns);
    insert(base, top);
    g_assert_true(block_backend_node(blk) == top && top->backing->node == base);
    g_assert_true(base->read_only);
    g_assert_cmpint(base->perm, ==, BLOCK_PERM_CONSISTENT_READ);
    g_assert_cmpint(leaf_of(base)->perm, ==, BLOCK_PERM_CONSISTENT_READ);
    g_assert_cmpint(atomic_load(&top->last_write_ns), ==, changed);
    unsigned writes = test_calls(leaf_of(base), BLOCK_OP_WRITE);
    check(blk, 0, 'a');
    put(blk, 0, 'c');
    check(blk, 0, 'c');
    check(blk, 512, 0);
    check(blk, 65536, 'b');
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    g_assert_cmpuint(test_calls(leaf_of(base), BLOCK_OP_WRITE), ==, writes);
    block_backend_co_free(blk);
    delete_image(env, top);
    g_assert_cmpuint(test_calls(leaf_of(base), BLOCK_OP_WRITE), ==, writes);
    delete_image(env, base);
}

/* A chain, and a node in the middle of it. */
static void coroutine_fn test_chain(TestEnv *env)
{
    BlockNode *base = open_image(env, "base", LENGTH), *top = open_image(env, "top", LENGTH);
    BlockNode *middle = open_image(env, "middle", LENGTH);
    BlockBackend *blk = writer_of(env, base);
    put(blk, 0, 'a');
    insert(base, top);
    insert(base, middle);
    g_assert_true(top->backing->node == middle && middle->backing->node == base);
    g_assert_true(block_backend_node(blk) == top);
    check(blk, 0, 'a');
    put(blk, 0, 'b');
    check(blk, 0, 'b');
    block_backend_co_free(blk);
    delete_image(env, top);
    delete_image(env, middle);
    delete_image(env, base);
}

typedef struct Insertion {
    BlockNode *node, *overlay;
} Insertion;

static int coroutine_fn insert_task(void *opaque)
{
    const Insertion *in = opaque;
    insert(in->node, in->overlay);
    return 0;
}

/* What runs when the section begins ends in the base; what comes meanwhile waits and goes to the overlay. */
static void coroutine_fn test_under_io(TestEnv *env)
{
    BlockNode *base = open_image(env, "base", LENGTH), *top = open_image(env, "top", LENGTH);
    BlockBackend *blk = writer_of(env, base);
    Insertion in = {base, top};
    put(blk, 0, 'a');
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    test_mem_hold(leaf_of(base), BLOCK_OP_READ, -1);
    TestRequest *running = test_request_start(test_iothread(env, 0), blk, BLOCK_OP_READ, 0, 512, 0);
    test_wait(test_mem_waiting(leaf_of(base)) == 1);
    TestTask *task = test_spawn(env->ctx, insert_task, &in);
    test_wait(atomic_load(&base->quiesce) > 0);
    TestRequest *parked = test_request_start(test_iothread(env, 1), blk, BLOCK_OP_WRITE, 512, 512, 'c');
    test_wait(block_backend_parked(blk) == 1);
    g_assert_false(test_task_done(task));
    g_assert_true(block_backend_node(blk) == base);
    test_mem_release(leaf_of(base), BLOCK_OP_READ, -1);
    test_join(task);
    g_assert_cmpint(test_request_finish(running), ==, 0);
    g_assert_cmpint(test_request_finish(parked), ==, 0);
    check(blk, 0, 'a');
    check(blk, 512, 'c');
    block_backend_co_free(blk);
    delete_image(env, top);
    blk = block_backend_new(env->graph, "base", BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL);
    g_assert_cmpint(block_backend_insert(blk, base, NULL), ==, 0);
    check(blk, 0, 'a');
    check(blk, 512, 0);
    block_backend_co_free(blk);
    delete_image(env, base);
}

/* ---- Snapshots inside */

typedef struct Opening {
    BlockNode *node;
    BlockBackend *view;
} Opening;

static int coroutine_fn open_snapshot_task(void *opaque)
{
    Opening *opening = opaque;
    g_autoptr(GError) err = NULL;
    opening->view = block_snapshot_co_open(opening->node, "s", "view", &err);
    g_assert_no_error(err);
    return 0;
}

/* A snapshot that is opened while an overlay takes the place of its node is read from that node. */
static void coroutine_fn test_view_opened_meanwhile(TestEnv *env)
{
    BlockNode *base = open_image(env, "base", LENGTH), *top = open_image(env, "top", LENGTH);
    BlockBackend *blk = writer_of(env, base);
    Insertion in = {base, top};
    Opening opening = {base, NULL};
    put(blk, 0, 'a');
    g_assert_cmpint(block_snapshot_co_create(&base, 1, "s", NULL), ==, 0);
    put(blk, 0, 'b');
    test_mem_hold(leaf_of(base), BLOCK_OP_READ, -1);
    TestRequest *running = test_request_start(test_iothread(env, 0), blk, BLOCK_OP_READ, 0, 512, 0);
    test_wait(test_mem_waiting(leaf_of(base)) == 1);
    TestTask *insertion = test_spawn(env->ctx, insert_task, &in);
    test_wait(atomic_load(&base->quiesce) > 0);
    TestTask *open = test_spawn(env->ctx, open_snapshot_task, &opening);
    g_assert_false(test_task_done(insertion) || test_task_done(open));
    test_mem_release(leaf_of(base), BLOCK_OP_READ, -1);
    test_join(insertion);
    test_join(open);
    g_assert_cmpint(test_request_finish(running), ==, 0);
    g_assert_true(block_backend_node(blk) == top);
    g_assert_true(block_backend_node(opening.view) == base);
    check(opening.view, 0, 'a');
    check(blk, 0, 'b');
    block_backend_co_free(opening.view);
    block_backend_co_free(blk);
    delete_image(env, top);
    delete_image(env, base);
}

/* ---- Failures */

static void coroutine_fn refuse(BlockNode *node, BlockNode *overlay, int errnum, const char *word)
{
    GError *err = NULL;
    g_assert_cmpint(block_overlay_co_insert(&(BlockOverlay){node, overlay}, 1, &err), ==, -errnum);
    test_check_error(&err, errnum, word, NULL);
}

static void coroutine_fn test_refusals(TestEnv *env)
{
    BlockNode *base = open_image(env, "base", LENGTH), *top = open_image(env, "top", LENGTH);
    BlockNode *shorter = open_image(env, "shorter", LENGTH / 2);
    BlockNode *leaf = test_open(env, "{'driver':'test-mem','node-name':'leaf'}");
    BlockBackend *blk = writer_of(env, base);
    refuse(base, shorter, EINVAL, "'shorter'");
    refuse(base, leaf, ENOTSUP, "test-mem");
    refuse(base, leaf_of(base), ENOTSUP, "test-mem");
    refuse(base, base, EINVAL, "twice");
    BlockBackend *user = writer_of(env, top);
    refuse(base, top, EBUSY, "'top'");
    block_backend_co_free(user);
    insert(base, top);
    refuse(base, top, EINVAL, "backing");
    block_backend_co_free(blk);
    test_delete(env, leaf);
    delete_image(env, shorter);
    delete_image(env, top);
    delete_image(env, base);
}

/* Two pairs of which the second fails, at the flush and at the permissions: nothing has changed. */
static void coroutine_fn test_all_or_nothing(TestEnv *env)
{
    BlockNode *base[] = {open_image(env, "a", LENGTH), open_image(env, "b", LENGTH)};
    BlockNode *top[] = {open_image(env, "a-top", LENGTH), open_image(env, "b-top", LENGTH)};
    BlockOverlay pairs[] = {{base[0], top[0]}, {base[1], top[1]}};
    BlockBackend *blk[] = {writer_of(env, base[0]), writer_of(env, base[1])};
    GError *err = NULL;
    for (int round = 0; round < 2; round++) {
        put(blk[0], 0, 'x');
        put(blk[1], 0, 'x');
        if (round == 0) {
            test_mem_fail(leaf_of(base[1]), BLOCK_OP_FLUSH, EIO);
            g_assert_cmpint(block_overlay_co_insert(pairs, 2, &err), ==, -EIO);
            test_check_error(&err, EIO, "'b'", NULL);
            test_mem_fail(leaf_of(base[1]), BLOCK_OP_FLUSH, 0);
        } else {
            atomic_store(&test_driver(leaf_of(base[1]))->fail_check, EAGAIN);
            g_assert_cmpint(block_overlay_co_insert(pairs, 2, &err), ==, -EAGAIN);
            test_check_error(&err, EAGAIN, "'b-leaf'", NULL);
            atomic_store(&test_driver(leaf_of(base[1]))->fail_check, 0);
        }
        for (int i = 0; i < 2; i++) {
            g_assert_true(block_backend_node(blk[i]) == base[i]);
            g_assert_false(base[i]->read_only);
            g_assert_null(top[i]->backing);
            g_assert_cmpint(atomic_load(&base[i]->quiesce), ==, 0);
            g_assert_cmpuint(base[i]->parents->len, ==, 1);
            put(blk[i], 0, 'y');
            check(blk[i], 0, 'y');
        }
    }
    g_assert_cmpint(block_overlay_co_insert(pairs, 2, &err), ==, 0);
    for (int i = 0; i < 2; i++) {
        check(blk[i], 0, 'y');
        block_backend_co_free(blk[i]);
        delete_image(env, top[i]);
        delete_image(env, base[i]);
    }
}

/* cache.no-flush drops flushes, but the base's tables must be in its file before it becomes read-only. */
static void coroutine_fn test_no_flush(TestEnv *env)
{
    delete_image(env, open_image(env, "base", LENGTH));
    BlockNode *top = open_image(env, "top", LENGTH), *plain = open_image(env, "base", LENGTH);
    test_delete(env, plain);
    BlockNode *base =
        test_open(env, "{'driver':'qcow2','node-name':'base','file':'base-leaf','cache':{'no-flush':true}}");
    BlockBackend *blk = writer_of(env, base);
    put(blk, 0, 'a');
    insert(base, top);
    block_backend_co_free(blk);
    delete_image(env, top);
    test_delete(env, base);
    base = test_open(env, "{'driver':'qcow2','node-name':'base','file':'base-leaf'}");
    blk = writer_of(env, base);
    check(blk, 0, 'a');
    block_backend_co_free(blk);
    delete_image(env, base);
}

static void register_tests(void)
{
    test_add_co("overlay/insert", test_insert);
    test_add_co("overlay/chain", test_chain);
    test_add_co("overlay/under-io", test_under_io);
    test_add_co("overlay/view-opened-meanwhile", test_view_opened_meanwhile);
    test_add_co("overlay/refusals", test_refusals);
    test_add_co("overlay/all-or-nothing", test_all_or_nothing);
    test_add_co("overlay/no-flush", test_no_flush);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv, register_tests);
}
