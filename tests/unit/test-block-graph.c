/*
 * Tests of the graph: permissions, cycles, names, deletion, depth, children defined in place.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <string.h>

#include "block/block-internal.h"
#include "tests/unit/block-test-util.h"
#include "util/error.h"

#define PERM_READ  BLOCK_PERM_CONSISTENT_READ
#define PERM_WRITE (BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE)
#define NO_WRITERS (BLOCK_PERM_ALL & ~(BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE))

static BlockNode *coroutine_fn open_leaf(TestEnv *env, const char *name)
{
    return test_open(env, "{'driver':'test-mem','node-name':'%s'}", name);
}

static BlockNode *coroutine_fn open_filter(TestEnv *env, const char *name, const char *file)
{
    return test_open(env, "{'driver':'test-filter','node-name':'%s','file':'%s'}", name, file);
}

static void expect_inserted(BlockBackend *blk, BlockNode *node)
{
    g_autoptr(GError) err = NULL;
    int ret = block_backend_insert(blk, node, &err);
    g_assert_no_error(err);
    g_assert_cmpint(ret, ==, 0);
}

/* ---- graph/permissions */

static void coroutine_fn test_two_writers(TestEnv *env)
{
    g_autoptr(GError) err = NULL;
    BlockNode *leaf = open_leaf(env, "disk");
    BlockBackend *first = block_backend_new(env->graph, "first", PERM_WRITE, NO_WRITERS);
    BlockBackend *second = block_backend_new(env->graph, "second", PERM_WRITE, BLOCK_PERM_ALL);
    BlockBackend *reader = block_backend_new(env->graph, "reader", PERM_READ, BLOCK_PERM_ALL);
    expect_inserted(first, leaf);
    g_assert_cmpint(block_backend_insert(second, leaf, &err), <, 0);
    test_check_error(&err, EBUSY, "'disk'", "'first'", "'second'", "write", NULL);
    g_assert_null(block_backend_node(second));
    expect_inserted(reader, leaf);

    /* The refused one changed nothing; the holder's leaving lets it in. */
    g_assert_cmpint(leaf->perm, ==, PERM_WRITE);
    g_assert_cmpuint(leaf->parents->len, ==, 2);
    block_backend_co_remove(first);
    g_assert_cmpint(leaf->perm, ==, PERM_READ);
    g_assert_cmpint(leaf->shared, ==, BLOCK_PERM_ALL);
    expect_inserted(second, leaf);
    g_assert_cmpint(block_backend_insert(first, leaf, &err), <, 0);
    test_check_error(&err, EBUSY, "'second'", NULL);
    block_backend_co_free(first);
    block_backend_co_free(second);
    block_backend_co_free(reader);
    test_delete(env, leaf);
}

/* The same where the users are nodes: the conflict lies two levels down. */
static void coroutine_fn test_writers_below(TestEnv *env)
{
    g_autoptr(GError) err = NULL;
    BlockNode *leaf = open_leaf(env, "disk");
    BlockNode *left = open_filter(env, "left", "disk"), *right = open_filter(env, "right", "disk");
    BlockBackend *a = block_backend_new(env->graph, "a", PERM_WRITE, NO_WRITERS);
    BlockBackend *b = block_backend_new(env->graph, "b", PERM_WRITE, NO_WRITERS);
    expect_inserted(a, left);
    g_assert_cmpint(leaf->perm, ==, PERM_WRITE);
    g_assert_cmpint(block_backend_insert(b, right, &err), <, 0);
    test_check_error(&err, EBUSY, "'disk'", "'left'", "'right'", NULL);
    g_assert_cmpint(right->perm, ==, 0);
    block_backend_co_free(a);
    expect_inserted(b, right);
    block_backend_co_free(b);
    g_assert_cmpint(leaf->perm, ==, 0);
    test_delete(env, left);
    test_delete(env, right);
    test_delete(env, leaf);
}

static void coroutine_fn test_set_perm(TestEnv *env)
{
    g_autoptr(GError) err = NULL;
    BlockNode *leaf = open_leaf(env, "disk");
    uint8_t buf[16] = {0};
    BlockBackend *a = block_backend_new(env->graph, "a", PERM_READ, NO_WRITERS);
    BlockBackend *b = block_backend_new(env->graph, "b", PERM_READ, BLOCK_PERM_ALL);
    expect_inserted(a, leaf);
    expect_inserted(b, leaf);
    g_assert_cmpint(block_backend_set_perm(b, PERM_WRITE, BLOCK_PERM_ALL, &err), <, 0);
    test_check_error(&err, EBUSY, "'a'", NULL);
    int ret = block_backend_co_pwrite(b, 0, sizeof buf, buf, 0);
    g_assert_true(ret == -EACCES || ret == -EROFS);
    g_assert_cmpint(block_backend_set_perm(a, PERM_READ, BLOCK_PERM_ALL, &err), ==, 0);
    g_assert_cmpint(leaf->perm, ==, PERM_READ); /* nothing is left of what was refused */
    g_assert_cmpint(block_backend_set_perm(b, PERM_WRITE, BLOCK_PERM_ALL, &err), ==, 0);
    g_assert_no_error(err);
    g_assert_cmpint(block_backend_co_pwrite(b, 0, sizeof buf, buf, 0), ==, 0);
    g_assert_cmpint(block_backend_co_pwrite(a, 0, sizeof buf, buf, 0), ==, ret);
    g_assert_cmpint(block_backend_co_pwrite_zeroes(a, 0, sizeof buf, 0), ==, ret);
    g_assert_cmpint(block_backend_co_pdiscard(a, 0, sizeof buf), ==, ret);
    g_assert_cmpint(block_backend_co_copy_range(b, 0, a, 100, 16), ==, ret);
    block_backend_co_free(a);
    block_backend_co_free(b);
    test_delete(env, leaf);
}

static void coroutine_fn test_read_only(TestEnv *env)
{
    g_autoptr(GError) err = NULL;
    uint8_t buf[16] = {0};
    BlockNode *leaf = test_open(env, "{'driver':'test-mem','node-name':'disk','read-only':true}");
    BlockBackend *writer = block_backend_new(env->graph, "writer", PERM_WRITE, BLOCK_PERM_ALL);
    g_assert_cmpint(block_backend_insert(writer, leaf, &err), ==, -EROFS);
    test_check_error(&err, EROFS, "'disk'", "'writer'", "read-only", NULL);
    block_backend_co_free(writer);
    BlockBackend *reader = block_backend_new(env->graph, "reader", PERM_READ, BLOCK_PERM_ALL);
    expect_inserted(reader, leaf);
    g_assert_cmpint(block_backend_co_pread(reader, 0, sizeof buf, buf), ==, 0);
    g_assert_cmpint(block_backend_co_pwrite(reader, 0, sizeof buf, buf, 0), ==, -EROFS);
    g_assert_cmpuint(test_calls(leaf, BLOCK_OP_WRITE), ==, 0);
    block_backend_co_free(reader);

    /* Through a writable filter: refused where it would end. */
    BlockNode *filter = open_filter(env, "top", "disk");
    writer = block_backend_new(env->graph, "writer", PERM_WRITE, BLOCK_PERM_ALL);
    g_assert_cmpint(block_backend_insert(writer, filter, &err), ==, -EROFS);
    test_check_error(&err, EROFS, "'disk'", NULL);
    block_backend_co_free(writer);
    test_delete(env, filter);
    test_delete(env, leaf);
}

/* Each successful check is followed by exactly one set or abort. */
static void coroutine_fn test_perm_callbacks(TestEnv *env)
{
    g_autoptr(GError) err = NULL;
    BlockNode *leaf = open_leaf(env, "disk"), *filter = open_filter(env, "top", "disk");
    TestDriver *l = test_driver(leaf), *f = test_driver(filter);
    BlockBackend *blk = block_backend_new(env->graph, "b", PERM_WRITE, BLOCK_PERM_ALL);
    atomic_store(&l->fail_check, EAGAIN);
    g_assert_cmpint(block_backend_insert(blk, filter, &err), ==, -EAGAIN);
    test_check_error(&err, EAGAIN, "'disk'", "another test", NULL);
    g_assert_cmpint(filter->perm, ==, 0);
    g_assert_cmpint(leaf->perm, ==, 0);
    g_assert_cmpuint(atomic_load(&f->checks), ==, 1);
    g_assert_cmpuint(atomic_load(&f->aborts), ==, 1);
    g_assert_cmpuint(atomic_load(&f->sets), ==, 0);
    g_assert_cmpuint(atomic_load(&l->aborts), ==, 0);
    atomic_store(&l->fail_check, 0);
    expect_inserted(blk, filter);
    g_assert_cmpint(leaf->perm, ==, PERM_WRITE);
    g_assert_cmpuint(atomic_load(&l->sets), ==, 1);
    block_backend_co_free(blk);
    g_assert_cmpuint(atomic_load(&l->checks), ==, atomic_load(&l->sets) + atomic_load(&l->aborts));
    g_assert_cmpuint(atomic_load(&f->checks), ==, atomic_load(&f->sets) + atomic_load(&f->aborts));
    g_assert_cmpint(leaf->perm, ==, 0);
    test_delete(env, filter);
    test_delete(env, leaf);
}

/* A driver that cannot give back what it held must not keep a backend from going. */
static void coroutine_fn test_perm_release(TestEnv *env)
{
    BlockNode *leaf = open_leaf(env, "disk");
    for (unsigned i = 0; i < 3; i++) {
        BlockBackend *blk = block_backend_new(env->graph, "b", PERM_WRITE, NO_WRITERS);
        expect_inserted(blk, leaf);
        g_assert_cmpint(leaf->perm, ==, PERM_WRITE);
        g_assert_cmpint(leaf->shared, ==, NO_WRITERS);
        block_backend_co_free(blk);
        g_assert_cmpint(leaf->perm, ==, 0);
        g_assert_cmpint(leaf->shared, ==, BLOCK_PERM_ALL);
    }
    test_delete(env, leaf);
}

/* ---- graph/cycle */

static void coroutine_fn test_cycle(TestEnv *env)
{
    g_autoptr(GError) err = NULL;
    BlockNode *a = test_open(env, "{'driver':'test-format','node-name':'a'}");
    BlockNode *b = test_open(env, "{'driver':'test-format','node-name':'b','a':'a'}");
    BlockNode *c = test_open(env, "{'driver':'test-format','node-name':'c','a':'b'}");
    g_assert_null(block_node_attach_child(a, a, "x", BLOCK_ROLE_DATA, &err));
    test_check_error(&err, ELOOP, "'a'", NULL);
    g_assert_null(block_node_attach_child(a, b, "x", BLOCK_ROLE_DATA, &err));
    test_check_error(&err, ELOOP, "'a'", "'b'", NULL);
    g_assert_null(block_node_attach_child(a, c, "x", BLOCK_ROLE_DATA, &err));
    test_check_error(&err, ELOOP, "'a'", "'c'", NULL);
    g_assert_cmpuint(a->children->len, ==, 0);
    g_assert_cmpuint(c->parents->len, ==, 0);
    g_assert_cmpint(c->refcount, ==, 1);
    /* A diamond is no cycle. */
    test_attach(c, a, "x");
    /* Nor may replacing close one: the users of a (b and c) would come to use c. */
    g_assert_cmpint(block_node_co_replace(a, c, &err), ==, -ELOOP);
    test_check_error(&err, ELOOP, "'a'", "'c'", NULL);
    g_assert_cmpuint(a->parents->len, ==, 2);
    /* What has no such loop moves; the edge from the new node to the old one stays. */
    g_assert_cmpint(block_node_co_replace(a, b, &err), ==, 0);
    g_assert_no_error(err);
    g_assert_cmpuint(a->parents->len, ==, 1);
    g_assert_cmpuint(b->parents->len, ==, 2);
    test_delete(env, c);
    test_delete(env, b);
    test_delete(env, a);
}

static void coroutine_fn test_replace_perm(TestEnv *env)
{
    g_autoptr(GError) err = NULL;
    BlockNode *from = open_leaf(env, "from");
    BlockNode *to = test_open(env, "{'driver':'test-mem','node-name':'to','read-only':true}");
    BlockBackend *blk = test_backend(env, "b", from);
    uint8_t buf[16] = {0};
    g_assert_cmpint(block_node_co_replace(from, to, &err), ==, -EROFS);
    test_check_error(&err, EROFS, "'to'", NULL);
    g_assert_true(block_backend_node(blk) == from);
    g_assert_cmpuint(to->parents->len, ==, 0);
    g_assert_cmpint(block_backend_co_pwrite(blk, 0, sizeof buf, buf, 0), ==, 0);
    block_backend_co_free(blk);
    test_delete(env, from);
    test_delete(env, to);
}

/* ---- graph/names */

static void coroutine_fn test_names(TestEnv *env)
{
    BlockNode *a = open_leaf(env, "alpha");
    GError *err = test_open_error(env, EEXIST, "{'driver':'test-mem','node-name':'alpha'}");
    test_check_error(&err, EEXIST, "'alpha'", NULL);
    static const char *const bad[] = {"", ".", "..", "a/b", "/", "a\\nb", "#auto"};
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        err = test_open_error(env, EINVAL, "{'driver':'test-mem','node-name':'%s'}", bad[i]);
        g_clear_error(&err);
    }
    g_autofree char *longest = g_strnfill(BLOCK_NAME_MAX, 'n'), *longer = g_strnfill(BLOCK_NAME_MAX + 1, 'n');
    err = test_open_error(env, EINVAL, "{'driver':'test-mem','node-name':'%s'}", longer);
    g_clear_error(&err);
    BlockNode *b = open_leaf(env, longest);
    g_assert_true(block_graph_find(env->graph, "alpha", NULL) == a);
    g_assert_true(block_graph_find(env->graph, longest, NULL) == b);
    g_assert_null(block_graph_find(env->graph, "alhpa", &err));
    test_check_error(&err, ENOENT, "'alhpa'", "'alpha'", NULL);
    g_assert_cmpuint(block_graph_nodes(env->graph)->len, ==, 2);
    test_delete(env, b);
    test_delete(env, a);
    g_assert_null(block_graph_find(env->graph, "alpha", NULL));
    test_delete(env, open_leaf(env, "alpha"));
}

/* ---- graph/names/opening: a driver that takes its time to open */

static struct {
    unsigned opening;
    bool go, fail;
} gate;

static int coroutine_fn gate_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    gate.opening++;
    test_wait(gate.go);
    gate.opening--;
    return gate.fail ? bg_error_set(errp, EIO, "node '%s': the gate fell shut", node->name) : 0;
}

static const BlockDriver gate_driver = {
    .name = "test-gate",
    .instance_size = 1,
    .co_open = gate_open,
};

static int coroutine_fn open_through_gate(void *opaque)
{
    TestEnv *env = opaque;
    g_autoptr(GError) err = NULL;
    g_autoptr(JsonObject) options = json_object_new();
    json_object_set_string_member(options, "driver", "test-gate");
    json_object_set_string_member(options, "node-name", "same");
    return block_node_co_open(env->graph, options, &err) ? 0 : -err->code;
}

static void coroutine_fn test_names_opening(TestEnv *env)
{
    /* First a node that fails to open: its name is free again. Then one that does open. */
    for (unsigned fail = 2; fail-- > 0;) {
        gate.go = false;
        gate.fail = fail;
        TestTask *first = test_spawn(env->ctx, open_through_gate, env);
        TestTask *second = test_spawn(env->ctx, open_through_gate, env);
        test_settle();
        g_assert_cmpuint(gate.opening, ==, 1);
        GError *err = test_open_error(env, EEXIST, "{'driver':'test-mem','node-name':'same'}");
        test_check_error(&err, EEXIST, "'same'", NULL);
        g_assert_null(block_graph_find(env->graph, "same", &err));
        test_check_error(&err, ENOENT, "'same'", NULL);
        gate.go = true;
        g_assert_cmpint(test_join(second), ==, -EEXIST);
        g_assert_cmpint(test_join(first), ==, fail ? -EIO : 0);
        g_assert_cmpuint(block_graph_nodes(env->graph)->len, ==, fail ? 0 : 1);
        g_assert_cmpuint(g_hash_table_size(env->graph->by_name), ==, fail ? 0 : 1);
    }
    test_delete(env, block_graph_find(env->graph, "same", NULL));
    /* Nor may a node's child take its name. */
    GError *err = test_open_error(
        env, EEXIST, "{'driver':'test-filter','node-name':'n','file':{'driver':'test-mem','node-name':'n'}}");
    g_clear_error(&err);
    g_assert_cmpuint(block_graph_nodes(env->graph)->len, ==, 0);
}

static void coroutine_fn test_open_errors(TestEnv *env)
{
    GError *err = test_open_error(env, 0, "{'driver':'test-mme','node-name':'n'}");
    test_check_error(&err, err->code, "'n'", "test-mme", "test-mem", NULL);
    err = test_open_error(env, 0, "{'node-name':'n'}");
    test_check_error(&err, err->code, "'n'", "driver", NULL);
    err = test_open_error(env, 0, "{'driver':'test-mem','node-name':'n','aling':512}");
    test_check_error(&err, err->code, "'n'", "aling", "align", NULL);
    err = test_open_error(env, 0, "{'driver':'test-mem','node-name':'n','align':'big'}");
    test_check_error(&err, err->code, "'n'", "align", NULL);
    err = test_open_error(env, 0, "{'driver':'test-mem','node-name':'n','align':3}");
    g_clear_error(&err);
    err = test_open_error(env, 0, "{'driver':'test-filter','node-name':'n'}");
    test_check_error(&err, err->code, "'n'", "file", NULL);
    err = test_open_error(env, 0, "{'driver':'test-filter','node-name':'n','file':'gone'}");
    test_check_error(&err, err->code, "'n'", "file", "'gone'", NULL);
    err = test_open_error(env, 0,
                          "{'driver':'test-filter','node-name':'n','file':{'driver':'test-mem','x':1}}");
    test_check_error(&err, err->code, "'n'", "file.x", NULL);
    err = test_open_error(env, 0, "{'driver':'test-filter','node-name':'n','file':'n'}");
    g_clear_error(&err);
    /* Nothing of all that is left. */
    g_assert_cmpuint(block_graph_nodes(env->graph)->len, ==, 0);
}

static void coroutine_fn test_in_place(TestEnv *env)
{
    BlockNode *top = test_open(env, "{'driver':'test-format','node-name':'top',"
                                    "'a':{'driver':'test-mem','size':4096},"
                                    "'b':{'driver':'test-mem','node-name':'named'}}");
    g_assert_cmpuint(block_graph_nodes(env->graph)->len, ==, 3);
    BlockChild *a = g_ptr_array_index(top->children, 0), *b = g_ptr_array_index(top->children, 1);
    g_assert_cmpstr(a->name, ==, "a");
    g_assert_cmpstr(a->node->name, ==, "#top.a");
    g_assert_false(a->node->named_by_user);
    g_assert_cmpint(block_node_length(a->node), ==, 4096);
    g_assert_cmpstr(b->node->name, ==, "named");
    test_delete(env, top);
    /* The one without a name went with its parent, the other stays. */
    g_assert_cmpuint(block_graph_nodes(env->graph)->len, ==, 1);
    test_delete(env, block_graph_find(env->graph, "named", NULL));
}

/* ---- graph/delete */

static void count_close(BlockNode *node, void *opaque)
{
    ++*(unsigned *)opaque;
}

static void coroutine_fn test_delete_busy(TestEnv *env)
{
    g_autoptr(GError) err = NULL;
    unsigned closed = 0;
    BlockNode *leaf = open_leaf(env, "disk"), *filter = open_filter(env, "top", "disk");
    test_driver(leaf)->on_close = test_driver(filter)->on_close = count_close;
    test_driver(leaf)->hook_opaque = test_driver(filter)->hook_opaque = &closed;
    g_assert_cmpint(block_graph_co_delete_node(env->graph, leaf, &err), ==, -EBUSY);
    test_check_error(&err, EBUSY, "'disk'", "'top'", NULL);
    BlockBackend *blk = test_backend(env, "holder", filter);
    g_assert_cmpint(block_graph_co_delete_node(env->graph, filter, &err), ==, -EBUSY);
    test_check_error(&err, EBUSY, "'top'", "'holder'", NULL);
    g_assert_cmpuint(closed, ==, 0);
    block_backend_co_free(blk);
    test_delete(env, filter);
    g_assert_cmpuint(closed, ==, 1);
    test_delete(env, leaf);
    g_assert_cmpuint(closed, ==, 2);

    /* One that belongs to its parent cannot be deleted by itself. */
    BlockNode *top =
        test_open(env, "{'driver':'test-filter','node-name':'top','file':{'driver':'test-mem'}}");
    g_assert_cmpint(block_graph_co_delete_node(env->graph, top->file->node, &err), <, 0);
    g_clear_error(&err);
    test_delete(env, top);
    g_assert_cmpuint(block_graph_nodes(env->graph)->len, ==, 0);
}

/* block_graph_co_close closes all that is left, parents first. */
static void note_order(BlockNode *node, void *opaque)
{
    g_string_append_printf(opaque, "%s ", node->name);
}

static void coroutine_fn test_close_order(TestEnv *env)
{
    g_autoptr(GString) order = g_string_new("");
    BlockNode *leaf = open_leaf(env, "leaf");
    BlockNode *mid = open_filter(env, "mid", "leaf"), *top = open_filter(env, "top", "mid");
    BlockNode *all[] = {leaf, mid, top};
    for (unsigned i = 0; i < 3; i++) {
        test_driver(all[i])->on_close = note_order;
        test_driver(all[i])->hook_opaque = order;
    }
    block_graph_co_close(env->graph);
    g_assert_cmpstr(order->str, ==, "top mid leaf ");
}

/* ---- graph/depth */

static void coroutine_fn test_depth(TestEnv *env)
{
    g_autoptr(GError) err = NULL;
    BlockNode *below = open_leaf(env, "n1"), *leaf = below;
    for (unsigned i = 2; i <= BLOCK_MAX_DEPTH; i++) {
        g_autofree char *name = g_strdup_printf("n%u", i);
        below = open_filter(env, name, below->name);
    }
    err = test_open_error(env, 0, "{'driver':'test-filter','node-name':'one-more','file':'%s'}", below->name);
    test_check_error(&err, err->code, "'one-more'", NULL);
    BlockNode *top = test_open(env, "{'driver':'test-format','node-name':'side'}");
    g_assert_null(block_node_attach_child(top, below, "x", BLOCK_ROLE_DATA, &err));
    test_check_error(&err, err->code, "'side'", NULL);

    /* I/O and a drained section reach the bottom of the longest chain. */
    BlockBackend *blk = test_backend(env, "b", below);
    uint8_t buf[100] = {1};
    g_assert_cmpint(block_backend_co_pwrite(blk, 10, sizeof buf, buf, 0), ==, 0);
    g_assert_cmpuint(test_mem(leaf)->data[10], ==, 1);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    BlockDrain *section = block_drain_co_begin(below);
    g_assert_cmpint(atomic_load(&leaf->quiesce), ==, 1);
    block_drain_end(section);
    block_backend_co_free(blk);
}

static void register_tests(void)
{
    block_driver_register_for_test(&gate_driver);
    test_add_co("graph/permissions/two-writers", test_two_writers);
    test_add_co("graph/permissions/below", test_writers_below);
    test_add_co("graph/permissions/set", test_set_perm);
    test_add_co("graph/permissions/read-only", test_read_only);
    test_add_co("graph/permissions/callbacks", test_perm_callbacks);
    test_add_co("graph/permissions/release", test_perm_release);
    test_add_co("graph/cycle", test_cycle);
    test_add_co("graph/replace-permissions", test_replace_perm);
    test_add_co("graph/names/rules", test_names);
    test_add_co("graph/names/opening", test_names_opening);
    test_add_co("graph/open-errors", test_open_errors);
    test_add_co("graph/in-place", test_in_place);
    test_add_co("graph/delete", test_delete_busy);
    test_add_co("graph/close-order", test_close_order);
    test_add_co("graph/depth", test_depth);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv, register_tests);
}
