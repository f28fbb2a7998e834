/*
 * Tests of write-zeroes, block status, copy-range and truncate.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <string.h>

#include "tests/unit/block-test-util.h"

#define SIZE (256 * 1024)

/* A leaf full of 0x5a and a backend on it. */
static BlockBackend *coroutine_fn leaf_open(TestEnv *env, const char *name, const char *options)
{
    BlockNode *leaf = test_open(env, "{'driver':'test-mem','node-name':'%s','size':%d%s%s}", name, SIZE,
                                *options ? "," : "", options);
    memset(test_mem(leaf)->data, 0x5a, SIZE);
    return test_backend(env, name, leaf);
}

static void coroutine_fn leaf_close(TestEnv *env, BlockBackend *blk)
{
    BlockNode *node = block_backend_node(blk);
    block_backend_co_free(blk);
    test_delete(env, node);
}

static uint8_t *leaf_data(BlockBackend *blk)
{
    return test_mem(block_backend_node(blk))->data;
}

static unsigned leaf_calls(BlockBackend *blk, BlockOp op)
{
    return test_calls(block_backend_node(blk), op);
}

/* The leaf is 0x5a but for zeroes in [offset, offset + bytes). */
static void check_zeroed(BlockBackend *blk, int64_t offset, int64_t bytes)
{
    g_autofree uint8_t *want = g_malloc(SIZE);
    memset(want, 0x5a, SIZE);
    memset(want + offset, 0, bytes);
    test_assert_mem("zeroed", leaf_data(blk), want, SIZE);
}

/* ---- io/write-zeroes */

static void coroutine_fn test_zeroes_native(TestEnv *env)
{
    BlockBackend *blk = leaf_open(env, "a", "'align':512");
    g_assert_cmpint(block_backend_co_pwrite_zeroes(blk, 4096, 65536, BLOCK_REQ_NO_FALLBACK), ==, 0);
    check_zeroed(blk, 4096, 65536);
    g_assert_cmpuint(leaf_calls(blk, BLOCK_OP_WRITE_ZEROES), ==, 1);
    g_assert_cmpuint(leaf_calls(blk, BLOCK_OP_WRITE), ==, 0);
    memset(leaf_data(blk), 0x5a, SIZE);
    g_assert_cmpint(block_backend_co_pwrite_zeroes(blk, 1000, 100000, 0), ==, 0);
    check_zeroed(blk, 1000, 100000);
    memset(leaf_data(blk), 0x5a, SIZE);
    g_assert_cmpint(block_backend_co_pwrite_zeroes(blk, 1030, 5, 0), ==, 0);
    check_zeroed(blk, 1030, 5);
    memset(leaf_data(blk), 0x5a, SIZE);
    g_assert_cmpint(block_backend_co_pwrite_zeroes(blk, 1535, 2, 0), ==, 0);
    check_zeroed(blk, 1535, 2);
    leaf_close(env, blk);
}

static void coroutine_fn test_zeroes_fallback(TestEnv *env)
{
    BlockBackend *blk = leaf_open(env, "a", "'align':512,'zeroes':false,'max-transfer':32768");
    g_assert_cmpint(block_backend_co_pwrite_zeroes(blk, 0, SIZE, BLOCK_REQ_NO_FALLBACK), ==, -ENOTSUP);
    check_zeroed(blk, 0, 0);
    g_assert_cmpuint(leaf_calls(blk, BLOCK_OP_WRITE), ==, 0);
    g_assert_cmpint(block_backend_co_pwrite_zeroes(blk, 100, SIZE - 200, 0), ==, 0);
    check_zeroed(blk, 100, SIZE - 200);
    g_assert_cmpuint(leaf_calls(blk, BLOCK_OP_WRITE), >=, SIZE / 32768);
    leaf_close(env, blk);
}

static BlockRequestFlags zero_flags_seen(BlockBackend *blk)
{
    BlockRequestFlags seen = 0;
    g_autoptr(GArray) record = test_mem_take_record(block_backend_node(blk));
    for (guint i = 0; i < record->len; i++) {
        const TestCall *call = &g_array_index(record, TestCall, i);
        if (call->op == BLOCK_OP_WRITE_ZEROES) {
            seen |= call->flags;
        }
    }
    return seen;
}

static void coroutine_fn test_zeroes_flags(TestEnv *env)
{
    BlockBackend *with = leaf_open(env, "with", ""),
                 *without = leaf_open(env, "without", "'zero-flags':false");
    g_assert_cmpint(block_backend_co_pwrite_zeroes(with, 0, 4096, 0), ==, 0);
    g_assert_false(zero_flags_seen(with) & BLOCK_REQ_MAY_UNMAP);
    g_assert_cmpint(block_backend_co_pwrite_zeroes(with, 0, 4096, BLOCK_REQ_MAY_UNMAP), ==, 0);
    g_assert_true(zero_flags_seen(with) & BLOCK_REQ_MAY_UNMAP);
    /* A driver that does not know the flag is not given it (the driver checks), and zeroes all the same. */
    g_assert_cmpint(block_backend_co_pwrite_zeroes(without, 0, 4096, BLOCK_REQ_MAY_UNMAP), ==, 0);
    check_zeroed(without, 0, 4096);
    /* Reserving space keeps the content, with the driver's help or without. */
    memset(leaf_data(with), 0x5a, SIZE);
    g_assert_cmpint(block_backend_co_pwrite_zeroes(with, 100, 5000, BLOCK_REQ_ALLOCATE), ==, 0);
    check_zeroed(with, 0, 0);
    g_assert_true(zero_flags_seen(with) & BLOCK_REQ_ALLOCATE);
    int ret = block_backend_co_pwrite_zeroes(without, 8192, 5000, BLOCK_REQ_ALLOCATE);
    g_assert_true(ret == 0 || ret == -ENOTSUP);
    check_zeroed(without, 0, 4096);
    leaf_close(env, with);
    leaf_close(env, without);
}

/* discard=ignore: the node does not give space back. */
static void coroutine_fn test_zeroes_discard_ignore(TestEnv *env)
{
    BlockBackend *blk = leaf_open(env, "a", "'discard':'ignore','erase-discarded':true");
    g_assert_cmpint(block_backend_co_pwrite_zeroes(blk, 0, 4096, BLOCK_REQ_MAY_UNMAP), ==, 0);
    check_zeroed(blk, 0, 4096);
    g_assert_false(zero_flags_seen(blk) & BLOCK_REQ_MAY_UNMAP);
    g_assert_cmpint(block_backend_co_pdiscard(blk, 8192, 4096), ==, 0);
    g_assert_cmpuint(leaf_calls(blk, BLOCK_OP_DISCARD), ==, 0);
    check_zeroed(blk, 0, 4096);
    leaf_close(env, blk);
}

static void coroutine_fn test_zeroes_detect(TestEnv *env)
{
    static const char *const words[] = {"off", "on", "unmap"};
    for (unsigned i = 0; i < G_N_ELEMENTS(words); i++) {
        g_autofree char *options = g_strdup_printf("'detect-zeroes':'%s'", words[i]);
        BlockBackend *blk = leaf_open(env, "a", options);
        g_autofree uint8_t *buf = g_malloc0(16384);
        g_assert_cmpint(block_backend_co_pwrite(blk, 4096, 16384, buf, 0), ==, 0);
        check_zeroed(blk, 4096, 16384);
        g_assert_cmpuint(leaf_calls(blk, BLOCK_OP_WRITE_ZEROES), ==, i > 0);
        g_assert_cmpint(!!(zero_flags_seen(blk) & BLOCK_REQ_MAY_UNMAP), ==, i == 2);
        buf[16383] = 1;
        g_assert_cmpint(block_backend_co_pwrite(blk, 4096, 16384, buf, 0), ==, 0);
        g_assert_cmpuint(leaf_data(blk)[4096 + 16383], ==, 1);
        leaf_close(env, blk);
    }
}

/* ---- io/block-status: a driver with a table */

static const struct {
    int64_t end;
    int status;
} extents[] = {
    {4096, BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED},
    {12288, BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED},
    {16384, BLOCK_STATUS_ZERO},
    {20480, BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED},
};

static int coroutine_fn extents_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    node->limits.request_alignment = 512;
    atomic_store(&node->length, 20480);
    return 0;
}

static int coroutine_fn extents_status(BlockNode *node, int64_t offset, int64_t bytes, int64_t *pnum,
                                       BlockChild **child, int64_t *child_offset)
{
    g_assert_cmpint(offset % 512, ==, 0);
    g_assert_cmpint(bytes % 512, ==, 0);
    for (unsigned i = 0; i < G_N_ELEMENTS(extents); i++) {
        if (offset < extents[i].end) {
            *pnum = MIN(bytes, extents[i].end - offset);
            return extents[i].status;
        }
    }
    g_assert_not_reached();
}

static const BlockDriver extents_driver = {
    .name = "test-extents",
    .instance_size = 1,
    .co_open = extents_open,
    .co_block_status = extents_status,
};

/* A window: everything lies in `file`, 4096 bytes further on. */
static int coroutine_fn window_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    atomic_store(&node->length, 16384);
    return block_node_co_open_child(node, opts, "file", BLOCK_ROLE_DATA, false, &node->file, errp);
}

static int coroutine_fn window_status(BlockNode *node, int64_t offset, int64_t bytes, int64_t *pnum,
                                      BlockChild **child, int64_t *child_offset)
{
    *pnum = bytes;
    *child = node->file;
    *child_offset = offset + 4096;
    return BLOCK_STATUS_RECURSE;
}

static const BlockDriver window_driver = {
    .name = "test-window",
    .instance_size = 1,
    .co_open = window_open,
    .co_block_status = window_status,
};

static void coroutine_fn check_status(BlockBackend *blk, int64_t offset, int64_t bytes, int status,
                                      int64_t want)
{
    int64_t pnum = -1;
    int ret = block_backend_co_block_status(blk, offset, bytes, &pnum);
    g_assert_cmpint(ret & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO), ==, status);
    g_assert_false(ret & BLOCK_STATUS_RECURSE);
    g_assert_cmpint(pnum, ==, want);
}

static void coroutine_fn test_status(TestEnv *env)
{
    BlockNode *leaf = test_open(env, "{'driver':'test-extents','node-name':'e'}");
    BlockNode *filter = test_open(env, "{'driver':'test-filter','node-name':'f','file':'e'}");
    BlockNode *window = test_open(env, "{'driver':'test-window','node-name':'w','file':'f'}");
    BlockPerm read = BLOCK_PERM_CONSISTENT_READ;
    BlockNode *nodes[] = {leaf, filter, window};
    for (unsigned i = 0; i < 3; i++) {
        int64_t shift = i == 2 ? 4096 : 0;
        BlockBackend *blk = block_backend_new(env->graph, "b", read, BLOCK_PERM_ALL);
        g_assert_cmpint(block_backend_insert(blk, nodes[i], NULL), ==, 0);
        if (!shift) {
            check_status(blk, 0, 20480, BLOCK_STATUS_DATA, 4096);
            check_status(blk, 100, 200, BLOCK_STATUS_DATA, 200);
            check_status(blk, 4095, 10, BLOCK_STATUS_DATA, 1);
        }
        check_status(blk, 4096 - shift, 16384, BLOCK_STATUS_ZERO, 8192);
        check_status(blk, 5000 - shift, 15480, BLOCK_STATUS_ZERO, 7288);
        check_status(blk, 12288 - shift, 8192, BLOCK_STATUS_ZERO, 4096);
        check_status(blk, 20479 - shift, 1, BLOCK_STATUS_DATA, 1);
        int64_t pnum;
        g_assert_cmpint(block_backend_co_block_status(blk, -1, 10, &pnum), ==, -EINVAL);
        g_assert_cmpint(block_backend_co_block_status(blk, 0, -10, &pnum), ==, -EINVAL);
        g_assert_cmpint(block_backend_co_block_status(blk, INT64_MAX - 5, 10, &pnum), ==, -EINVAL);
        block_backend_co_free(blk);
    }
    test_delete(env, window);
    test_delete(env, filter);
    test_delete(env, leaf);
    /* No callback: data. */
    BlockBackend *blk = leaf_open(env, "m", "");
    check_status(blk, 10, 1000, BLOCK_STATUS_DATA, 1000);
    leaf_close(env, blk);
}

/* ---- io/copy-range */

static void coroutine_fn copy_and_check(BlockBackend *src, int64_t from, BlockBackend *dst, int64_t to,
                                        int64_t bytes)
{
    g_autofree uint8_t *want = g_memdup2(leaf_data(dst), SIZE);
    test_fill(leaf_data(src) + from, bytes, from + to + bytes);
    if (src == dst) {
        memcpy(want + from, leaf_data(src) + from, bytes);
    }
    memcpy(want + to, leaf_data(src) + from, bytes);
    g_assert_cmpint(block_backend_co_copy_range(src, from, dst, to, bytes), ==, 0);
    test_assert_mem("copied", leaf_data(dst), want, SIZE);
}

static void coroutine_fn copy_table(BlockBackend *a, BlockBackend *b)
{
    copy_and_check(a, 0, b, 0, SIZE);
    copy_and_check(a, 4096, b, 8192, 65536);
    copy_and_check(a, 5, b, 77, 100000);
    copy_and_check(a, SIZE - 3, b, 0, 3);
    copy_and_check(a, 0, a, SIZE / 2, SIZE / 2);
    copy_and_check(a, 1000, a, 0, 1000);
    copy_and_check(a, 513, a, 600, 87);
}

static void coroutine_fn test_copy(TestEnv *env)
{
    static const char *const options[] = {
        "", "'align':512", "'copy':false", "'copy':false,'align':4096,'max-transfer':16384", "'max-iov':1",
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(options); i++) {
        for (unsigned j = 0; j < G_N_ELEMENTS(options); j++) {
            BlockBackend *a = leaf_open(env, "a", options[i]), *b = leaf_open(env, "b", options[j]);
            copy_table(a, b);
            if (i == 0 && j == 0) {
                g_assert_cmpuint(leaf_calls(b, BLOCK_OP_COPY_RANGE), >, 0);
                g_assert_cmpuint(leaf_calls(b, BLOCK_OP_WRITE), ==, 0);
            }
            leaf_close(env, a);
            leaf_close(env, b);
        }
    }
}

static void coroutine_fn test_copy_errors(TestEnv *env)
{
    BlockBackend *a = leaf_open(env, "a", ""), *b = leaf_open(env, "b", "'copy':false");
    g_assert_cmpint(block_backend_co_copy_range(a, 0, a, 100, 101), ==, -EINVAL);
    g_assert_cmpint(block_backend_co_copy_range(a, 100, a, 0, 101), ==, -EINVAL);
    g_assert_cmpint(block_backend_co_copy_range(a, 7, a, 7, 1), ==, -EINVAL);
    g_assert_cmpint(block_backend_co_copy_range(a, -1, b, 0, 10), ==, -EINVAL);
    g_assert_cmpint(block_backend_co_copy_range(a, 0, b, -1, 10), ==, -EINVAL);
    g_assert_cmpint(block_backend_co_copy_range(a, 0, b, 0, -10), ==, -EINVAL);
    g_assert_cmpint(block_backend_co_copy_range(a, 0, b, INT64_MAX - 5, 10), ==, -EINVAL);
    g_assert_cmpint(block_backend_co_copy_range(a, 0, b, SIZE - 5, 10), ==, -ENOSPC);
    test_mem_fail(block_backend_node(a), BLOCK_OP_READ, EIO);
    g_assert_cmpint(block_backend_co_copy_range(a, 0, b, 0, 10), ==, -EIO);
    test_mem_fail(block_backend_node(a), BLOCK_OP_READ, 0);
    test_mem_fail(block_backend_node(b), BLOCK_OP_WRITE, ENOSPC);
    g_assert_cmpint(block_backend_co_copy_range(a, 0, b, 0, 10), ==, -ENOSPC);
    test_mem_fail(block_backend_node(b), BLOCK_OP_WRITE, 0);
    copy_and_check(a, 0, b, 0, 10);
    leaf_close(env, a);
    leaf_close(env, b);
}

/* Through filters, between drivers, to a node with a home in another thread, more than one bounce buffer. */
static void coroutine_fn test_copy_graph(TestEnv *env)
{
    const int64_t big = 5 * 1024 * 1024 + 12345;
    BlockNode *a = test_open(env, "{'driver':'test-mem','node-name':'a','size':6291456,'align':512}");
    BlockNode *b =
        test_open(env, "{'driver':'test-home','node-name':'b','size':6291456,'max-transfer':65536}");
    BlockNode *f = test_open(env, "{'driver':'test-filter','node-name':'f','file':'b'}");
    g_autoptr(GError) err = NULL;
    block_node_co_set_aio_context(b, test_iothread(env, 0), &err);
    g_assert_no_error(err);
    BlockBackend *src = test_backend(env, "src", a), *dst = test_backend(env, "dst", f);
    test_fill(test_mem(a)->data, big + 77, 9);
    g_assert_cmpint(block_backend_co_copy_range(src, 77, dst, 1001, big), ==, 0);
    test_assert_mem("big copy", test_mem(b)->data + 1001, test_mem(a)->data + 77, big);
    g_assert_cmpuint(test_mem(b)->data[1000], ==, 0);
    g_assert_cmpuint(test_mem(b)->data[1001 + big], ==, 0);
    g_assert_true(aio_context_current() == env->ctx);
    block_backend_co_free(src);
    block_backend_co_free(dst);
    test_delete(env, f);
    test_delete(env, b);
    test_delete(env, a);
}

/* ---- io/truncate */

static void coroutine_fn test_truncate(TestEnv *env)
{
    BlockNode *leaf =
        test_open(env, "{'driver':'test-mem','node-name':'l','size':5000,'capacity':65536,'align':512}");
    BlockNode *filter = test_open(env, "{'driver':'test-filter','node-name':'f','file':'l'}");
    BlockBackend *blk = test_backend(env, "b", filter);
    g_autoptr(GError) err = NULL;
    g_autofree uint8_t *buf = g_malloc(65536), *want = g_malloc0(65536);
    memset(buf, 0xff, 5000);
    memset(want, 0xff, 5000);
    g_assert_cmpint(block_backend_co_pwrite(blk, 0, 5000, buf, 0), ==, 0);
    g_assert_cmpint(block_backend_co_truncate(blk, 20001, &err), ==, 0);
    g_assert_no_error(err);
    g_assert_cmpint(block_node_length(leaf), ==, 20001);
    g_assert_cmpint(block_backend_length(blk), ==, 20001);
    g_assert_cmpint(block_backend_co_pread(blk, 0, 20001, buf), ==, 0);
    test_assert_mem("grown", buf, want, 20001);
    g_assert_cmpint(block_backend_co_truncate(blk, 100, &err), ==, 0);
    g_assert_cmpint(block_backend_length(blk), ==, 100);
    g_assert_cmpint(block_backend_co_pwrite(blk, 100, 1, buf, 0), ==, -ENOSPC);
    g_assert_cmpint(block_backend_co_truncate(blk, 5000, &err), ==, 0);
    memset(want + 100, 0, 4900);
    g_assert_cmpint(block_backend_co_pread(blk, 0, 5000, buf), ==, 0);
    test_assert_mem("shrunk and grown", buf, want, 5000);

    g_assert_cmpint(block_backend_co_truncate(blk, -1, &err), ==, -EINVAL);
    test_check_error(&err, EINVAL, "'f'", NULL);
    g_assert_cmpint(block_backend_co_truncate(blk, INT64_MAX, &err), <, 0);
    g_clear_error(&err);
    g_assert_cmpint(block_backend_co_truncate(blk, 100000, &err), ==, -ENOSPC);
    test_check_error(&err, ENOSPC, "'l'", NULL);
    g_assert_cmpint(block_backend_length(blk), ==, 5000);
    block_backend_co_free(blk);
    test_delete(env, filter);
    test_delete(env, leaf);
}

static void coroutine_fn test_truncate_refused(TestEnv *env)
{
    BlockNode *leaf = test_open(env, "{'driver':'test-mem','node-name':'l'}");
    BlockNode *fixed = test_open(env, "{'driver':'test-extents','node-name':'x'}");
    g_autoptr(GError) err = NULL;
    BlockBackend *blk =
        block_backend_new(env->graph, "b", BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE, BLOCK_PERM_ALL);
    g_assert_cmpint(block_backend_insert(blk, leaf, &err), ==, 0);
    int ret = block_backend_co_truncate(blk, 4096, &err);
    g_assert_true(ret == -EACCES || ret == -EPERM || ret == -EROFS);
    test_check_error(&err, -ret, "'l'", NULL);
    g_assert_cmpint(block_node_length(leaf), ==, 1024 * 1024);
    block_backend_co_free(blk);
    blk = block_backend_new(env->graph, "b", BLOCK_PERM_RESIZE, BLOCK_PERM_ALL);
    g_assert_cmpint(block_backend_insert(blk, fixed, &err), ==, 0);
    g_assert_cmpint(block_backend_co_truncate(blk, 4096, &err), ==, -ENOTSUP);
    test_check_error(&err, ENOTSUP, "'x'", NULL);
    block_backend_co_free(blk);
    test_delete(env, fixed);
    test_delete(env, leaf);
}

/* A truncate waits for a write that it would cut off, and a write that comes after waits for it. */
static void coroutine_fn test_truncate_serialised(TestEnv *env)
{
    BlockBackend *blk = leaf_open(env, "l", "");
    BlockNode *leaf = block_backend_node(blk);
    test_mem_hold(leaf, BLOCK_OP_WRITE, 200000);
    TestRequest *w = test_request_start(test_iothread(env, 0), blk, BLOCK_OP_WRITE, 200000, 10, 1);
    test_wait(test_mem_waiting(leaf) == 1);
    TestRequest *t = test_request_start(env->ctx, blk, BLOCK_OP_TRUNCATE, 100000, 0, 0);
    test_settle();
    g_assert_cmpuint(test_calls(leaf, BLOCK_OP_TRUNCATE), ==, 0);
    TestRequest *below = test_request_start(env->ctx, blk, BLOCK_OP_WRITE, 50, 10, 1);
    g_assert_cmpint(test_request_finish(below), ==, 0);
    test_mem_release(leaf, BLOCK_OP_WRITE, 200000);
    g_assert_cmpint(test_request_finish(w), ==, 0);
    g_assert_cmpint(test_request_finish(t), ==, 0);
    g_assert_cmpint(block_backend_length(blk), ==, 100000);
    leaf_close(env, blk);
}

/* The other way round: what comes after the truncate finds the new end, though the old one stood at its
 * start. */
static void coroutine_fn test_truncate_first(TestEnv *env)
{
    BlockBackend *blk = leaf_open(env, "l", "'align':512,'erase-discarded':true");
    BlockNode *leaf = block_backend_node(blk);
    test_mem_hold(leaf, BLOCK_OP_WRITE, 150000);
    TestRequest *earlier = test_request_start(env->ctx, blk, BLOCK_OP_WRITE, 150000, 10, 1);
    g_assert_cmpuint(test_mem_waiting(leaf), ==, 1);
    TestRequest *t = test_request_start(env->ctx, blk, BLOCK_OP_TRUNCATE, 100000, 0, 0);
    TestRequest *w = test_request_start(env->ctx, blk, BLOCK_OP_WRITE, 200000, 10, 1);
    TestRequest *z = test_request_start(env->ctx, blk, BLOCK_OP_WRITE_ZEROES, 204800, 512, 1);
    TestRequest *d = test_request_start(env->ctx, blk, BLOCK_OP_DISCARD, 99000, 100000, 0);
    TestRequest *below = test_request_start(env->ctx, blk, BLOCK_OP_WRITE, 50, 10, 0x5a);
    g_assert_cmpint(test_request_finish(below), ==, 0);
    g_assert_cmpuint(test_calls(leaf, BLOCK_OP_TRUNCATE), ==, 0);
    g_assert_cmpint(block_backend_length(blk), ==, SIZE);
    test_mem_release(leaf, BLOCK_OP_WRITE, 150000);
    g_assert_cmpint(test_request_finish(earlier), ==, 0);
    g_assert_cmpint(test_request_finish(t), ==, 0);
    g_assert_cmpint(test_request_finish(w), ==, -ENOSPC);
    g_assert_cmpint(test_request_finish(z), ==, -ENOSPC);
    g_assert_cmpint(test_request_finish(d), ==, 0);
    g_assert_cmpint(block_backend_length(blk), ==, 100000);
    leaf_close(env, blk);
}

/*
 * A read-modify-write that was queued inside of the node, and is at its end once a truncate before it is
 * through: it writes the last block whole and cuts it back, so an append must not come in between.
 */
static void coroutine_fn test_append_after_cut(TestEnv *env)
{
    BlockBackend *blk = leaf_open(env, "l", "'align':4096,'growable':true");
    BlockNode *leaf = block_backend_node(blk);
    g_autofree uint8_t *got = g_malloc(12288), *want = g_malloc0(12288);
    test_mem_hold(leaf, BLOCK_OP_WRITE, 0);
    TestRequest *earlier = test_request_start(env->ctx, blk, BLOCK_OP_WRITE, 0, 4096, 1);
    g_assert_cmpuint(test_mem_waiting(leaf), ==, 1);
    TestRequest *cut = test_request_start(env->ctx, blk, BLOCK_OP_TRUNCATE, 5000, 0, 0);
    TestRequest *rmw = test_request_start(env->ctx, blk, BLOCK_OP_WRITE, 4200, 100, 2);
    test_mem_hold(leaf, BLOCK_OP_WRITE, 4096);
    test_mem_release(leaf, BLOCK_OP_WRITE, 0);
    g_assert_cmpint(test_request_finish(earlier), ==, 0);
    g_assert_cmpint(test_request_finish(cut), ==, 0);
    test_wait(test_mem_waiting(leaf) == 1);
    TestRequest *append = test_request_start(env->ctx, blk, BLOCK_OP_WRITE, 8192, 4096, 3);
    test_settle();
    test_mem_release(leaf, BLOCK_OP_WRITE, 4096);
    g_assert_cmpint(test_request_finish(rmw), ==, 0);
    g_assert_cmpint(test_request_finish(append), ==, 0);

    g_assert_cmpint(block_backend_length(blk), ==, 12288);
    g_assert_cmpint(atomic_load(&test_mem(leaf)->size), ==, 12288);
    memset(want, 1, 4096);
    memset(want + 4096, 0x5a, 5000 - 4096);
    memset(want + 4200, 2, 100);
    memset(want + 8192, 3, 4096);
    g_assert_cmpint(block_backend_co_pread(blk, 0, 12288, got), ==, 0);
    test_assert_mem("cut and appended", got, want, 12288);
    leaf_close(env, blk);
}

static void register_tests(void)
{
    block_driver_register_for_test(&extents_driver);
    block_driver_register_for_test(&window_driver);
    test_add_co("io/write-zeroes/native", test_zeroes_native);
    test_add_co("io/write-zeroes/fallback", test_zeroes_fallback);
    test_add_co("io/write-zeroes/flags", test_zeroes_flags);
    test_add_co("io/write-zeroes/discard-ignore", test_zeroes_discard_ignore);
    test_add_co("io/write-zeroes/detect", test_zeroes_detect);
    test_add_co("io/block-status", test_status);
    test_add_co("io/copy-range/data", test_copy);
    test_add_co("io/copy-range/errors", test_copy_errors);
    test_add_co("io/copy-range/graph", test_copy_graph);
    test_add_co("io/truncate/length", test_truncate);
    test_add_co("io/truncate/refused", test_truncate_refused);
    test_add_co("io/truncate/serialised", test_truncate_serialised);
    test_add_co("io/truncate/first", test_truncate_first);
    test_add_co("io/truncate/append-after-cut", test_append_after_cut);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv, register_tests);
}
