/*
 * Tests of flushing, with a leaf that records what it is asked to do.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <string.h>

#include "tests/unit/block-test-util.h"

#define SHARERS 12

/* Backend on a filter on a recording leaf, clean. */
typedef struct Stack {
    BlockNode *leaf, *filter;
    BlockBackend *blk;
} Stack;

static Stack coroutine_fn stack_open(TestEnv *env, const char *options)
{
    Stack s;
    s.leaf = test_open(env, "{'driver':'test-mem','node-name':'leaf'%s%s}", *options ? "," : "", options);
    s.filter = test_open(env, "{'driver':'test-filter','node-name':'filter','file':'leaf'}");
    s.blk = test_backend(env, "b", s.filter);
    g_assert_cmpint(block_backend_co_flush(s.blk), ==, 0);
    g_array_unref(test_mem_take_record(s.leaf));
    return s;
}

static void coroutine_fn stack_close(TestEnv *env, Stack *s)
{
    block_backend_co_free(s->blk);
    test_delete(env, s->filter);
    test_delete(env, s->leaf);
}

static void coroutine_fn write_some(Stack *s, int64_t offset)
{
    uint8_t buf[512] = {1};
    g_assert_cmpint(block_backend_co_pwrite(s->blk, offset, sizeof buf, buf, 0), ==, 0);
}

static void check_record(Stack *s, const char *want)
{
    g_autofree char *got = test_mem_record_text(s->leaf);
    g_assert_cmpstr(got, ==, want);
}

static TestRequest *start_flush(AioContext *ctx, Stack *s)
{
    return test_request_start(ctx, s->blk, BLOCK_OP_FLUSH, 0, 0, 0);
}

/* ---- flush/order */

static void coroutine_fn test_order(TestEnv *env)
{
    Stack s = stack_open(env, "");
    write_some(&s, 0);
    write_some(&s, 512);
    g_assert_cmpint(block_backend_co_flush(s.blk), ==, 0);
    check_record(&s, "write 0+512, write 512+512, flush");
    /* Nothing was written since: nothing to do. */
    g_assert_cmpint(block_backend_co_flush(s.blk), ==, 0);
    check_record(&s, "");
    /* All kinds of change count. */
    g_assert_cmpint(block_backend_co_pwrite_zeroes(s.blk, 0, 512, 0), ==, 0);
    g_assert_cmpint(block_backend_co_flush(s.blk), ==, 0);
    check_record(&s, "write-zeroes 0+512, flush");
    g_assert_cmpint(block_backend_co_truncate(s.blk, 4096, NULL), ==, 0);
    g_assert_cmpint(block_backend_co_flush(s.blk), ==, 0);
    check_record(&s, "truncate 4096+0, flush");
    BlockBackend *direct = test_backend(env, "direct", s.leaf);
    g_assert_cmpint(block_backend_co_copy_range(direct, 0, direct, 1024, 512), ==, 0);
    g_assert_cmpint(block_backend_co_flush(direct), ==, 0);
    check_record(&s, "copy-range 1024+512, flush");
    block_backend_co_free(direct);
    stack_close(env, &s);
}

/* Every leaf of a node with several children is flushed, the node's own driver before them. */
static void coroutine_fn test_all_leaves(TestEnv *env)
{
    BlockNode *top =
        test_open(env, "{'driver':'test-filter','node-name':'top','file':{'driver':'test-format',"
                       "'a':{'driver':'test-mem','node-name':'x'},"
                       "'b':{'driver':'test-mem','node-name':'y'}}}");
    BlockNode *x = block_graph_find(env->graph, "x", NULL), *y = block_graph_find(env->graph, "y", NULL);
    BlockBackend *blk = test_backend(env, "b", top), *side = test_backend(env, "side", y);
    uint8_t buf[512] = {0};
    g_assert_cmpint(block_backend_co_pwrite(blk, 0, sizeof buf, buf, 0), ==, 0);
    g_assert_cmpint(block_backend_co_pwrite(side, 0, sizeof buf, buf, 0), ==, 0);
    unsigned before_x = test_calls(x, BLOCK_OP_FLUSH), before_y = test_calls(y, BLOCK_OP_FLUSH);
    test_mem_hold(x, BLOCK_OP_FLUSH, -1);
    TestRequest *flush = test_request_start(env->ctx, blk, BLOCK_OP_FLUSH, 0, 0, 0);
    test_wait(test_mem_waiting(x) == 1);
    g_assert_cmpuint(test_calls(top, BLOCK_OP_FLUSH), ==, 1);
    test_mem_release(x, BLOCK_OP_FLUSH, -1);
    g_assert_cmpint(test_request_finish(flush), ==, 0);
    g_assert_cmpuint(test_calls(x, BLOCK_OP_FLUSH), ==, before_x + 1);
    g_assert_cmpuint(test_calls(y, BLOCK_OP_FLUSH), ==, before_y + 1);
    block_backend_co_free(blk);
    block_backend_co_free(side);
}

static void coroutine_fn test_fua(TestEnv *env)
{
    uint8_t buf[512] = {0};
    Stack s = stack_open(env, "");
    g_assert_cmpint(block_backend_co_pwrite(s.blk, 0, sizeof buf, buf, BLOCK_REQ_FUA), ==, 0);
    check_record(&s, "write 0+512, flush");
    g_assert_cmpint(block_backend_co_pwrite_zeroes(s.blk, 0, 512, BLOCK_REQ_FUA), ==, 0);
    check_record(&s, "write-zeroes 0+512, flush");
    stack_close(env, &s);

    /* A leaf that can do it by itself is not flushed. */
    s = stack_open(env, "'fua':true");
    BlockBackend *direct = test_backend(env, "direct", s.leaf);
    g_assert_cmpint(block_backend_co_pwrite(direct, 0, sizeof buf, buf, BLOCK_REQ_FUA), ==, 0);
    g_autoptr(GArray) record = test_mem_take_record(s.leaf);
    g_assert_cmpuint(record->len, ==, 1);
    g_assert_true(g_array_index(record, TestCall, 0).flags & BLOCK_REQ_FUA);
    block_backend_co_free(direct);
    stack_close(env, &s);
}

static void coroutine_fn test_no_flush(TestEnv *env)
{
    Stack s = stack_open(env, "'cache':{'no-flush':true}");
    write_some(&s, 0);
    g_assert_cmpint(block_backend_co_flush(s.blk), ==, 0);
    check_record(&s, "write 0+512");
    g_assert_cmpint(block_node_durable(s.filter), ==, 0);
    stack_close(env, &s);
}

/* ---- flush/shared */

static void coroutine_fn start_sharers(TestEnv *env, Stack *s, TestRequest **reqs)
{
    for (unsigned i = 0; i < SHARERS; i++) {
        AioContext *ctx = i % 4 ? test_iothread(env, i % 4 - 1) : env->ctx;
        reqs[i] = start_flush(ctx, s);
    }
    test_wait(atomic_load(&s->filter->in_flight) >= SHARERS + 1);
    test_settle();
}

static void coroutine_fn test_shared(TestEnv *env)
{
    Stack s = stack_open(env, "");
    TestRequest *reqs[SHARERS];
    unsigned before = test_calls(s.leaf, BLOCK_OP_FLUSH);
    write_some(&s, 0);
    test_mem_hold(s.leaf, BLOCK_OP_FLUSH, -1);
    TestRequest *first = start_flush(env->ctx, &s);
    test_wait(test_mem_waiting(s.leaf) == 1);
    write_some(&s, 512); /* not covered by the first */
    start_sharers(env, &s, reqs);
    g_assert_cmpuint(test_calls(s.leaf, BLOCK_OP_FLUSH), ==, before + 1);
    test_mem_release(s.leaf, BLOCK_OP_FLUSH, -1);
    g_assert_cmpint(test_request_finish(first), ==, 0);
    for (unsigned i = 0; i < SHARERS; i++) {
        g_assert_cmpint(test_request_finish(reqs[i]), ==, 0);
    }
    /* One for the first, one for all the others. */
    g_assert_cmpuint(test_calls(s.leaf, BLOCK_OP_FLUSH), ==, before + 2);
    check_record(&s, "write 0+512, flush, write 512+512, flush");
    stack_close(env, &s);
}

/* ---- flush/waits-for-accepted-writes */

static void coroutine_fn test_waits_for_writes(TestEnv *env)
{
    Stack s = stack_open(env, "");
    unsigned before = test_calls(s.leaf, BLOCK_OP_FLUSH);
    test_mem_hold(s.leaf, BLOCK_OP_WRITE, 0);
    TestRequest *write = test_request_start(test_iothread(env, 0), s.blk, BLOCK_OP_WRITE, 0, 512, 1);
    test_wait(test_mem_waiting(s.leaf) == 1);
    TestRequest *flush = start_flush(env->ctx, &s);
    TestRequest *other = start_flush(test_iothread(env, 1), &s);
    test_settle();
    g_assert_false(test_request_done(flush));
    g_assert_false(test_request_done(other));
    g_assert_cmpuint(test_calls(s.leaf, BLOCK_OP_FLUSH), ==, before);
    test_mem_release(s.leaf, BLOCK_OP_WRITE, 0);
    g_assert_cmpint(test_request_finish(write), ==, 0);
    g_assert_cmpint(test_request_finish(flush), ==, 0);
    g_assert_cmpint(test_request_finish(other), ==, 0);
    check_record(&s, "write 0+512, flush");
    stack_close(env, &s);
}

/* Of one node: a write accepted before the flush holds it up, one accepted after does not. */
static void coroutine_fn test_later_writes(TestEnv *env)
{
    Stack s = stack_open(env, "");
    BlockBackend *blk = test_backend(env, "direct", s.leaf);
    unsigned before = test_calls(s.leaf, BLOCK_OP_FLUSH);
    test_mem_hold(s.leaf, BLOCK_OP_WRITE, 0);
    test_mem_hold(s.leaf, BLOCK_OP_WRITE, 4096);
    TestRequest *early = test_request_start(test_iothread(env, 0), blk, BLOCK_OP_WRITE, 0, 512, 1);
    test_wait(test_mem_waiting(s.leaf) == 1);
    TestRequest *flush = test_request_start(env->ctx, blk, BLOCK_OP_FLUSH, 0, 0, 0);
    test_settle();
    TestRequest *late = test_request_start(test_iothread(env, 1), blk, BLOCK_OP_WRITE, 4096, 512, 1);
    test_wait(test_mem_waiting(s.leaf) == 2);
    g_assert_false(test_request_done(flush));
    test_mem_release(s.leaf, BLOCK_OP_WRITE, 0);
    g_assert_cmpint(test_request_finish(flush), ==, 0);
    g_assert_false(test_request_done(late));
    g_assert_cmpuint(test_calls(s.leaf, BLOCK_OP_FLUSH), ==, before + 1);
    g_assert_cmpint(test_request_finish(early), ==, 0);
    test_mem_release(s.leaf, BLOCK_OP_WRITE, 4096);
    g_assert_cmpint(test_request_finish(late), ==, 0);
    /* The late one made the node dirty again. */
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    g_assert_cmpuint(test_calls(s.leaf, BLOCK_OP_FLUSH), ==, before + 2);
    block_backend_co_free(blk);
    stack_close(env, &s);
}

/* A write that ends while a flush runs is not lost to the next one. */
static void coroutine_fn test_write_during(TestEnv *env)
{
    Stack s = stack_open(env, "");
    unsigned before = test_calls(s.leaf, BLOCK_OP_FLUSH);
    write_some(&s, 0);
    test_mem_hold(s.leaf, BLOCK_OP_FLUSH, -1);
    TestRequest *flush = start_flush(env->ctx, &s);
    test_wait(test_mem_waiting(s.leaf) == 1);
    write_some(&s, 1024);
    test_mem_release(s.leaf, BLOCK_OP_FLUSH, -1);
    g_assert_cmpint(test_request_finish(flush), ==, 0);
    g_assert_cmpint(block_backend_co_flush(s.blk), ==, 0);
    g_assert_cmpuint(test_calls(s.leaf, BLOCK_OP_FLUSH), ==, before + 2);
    stack_close(env, &s);
}

/* ---- flush/readers-do-not-stall */

static void coroutine_fn test_readers(TestEnv *env)
{
    Stack s = stack_open(env, "");
    write_some(&s, 0);
    test_mem_hold(s.leaf, BLOCK_OP_WRITE, 8192);
    TestRequest *slow = test_request_start(env->ctx, s.blk, BLOCK_OP_WRITE, 8192, 512, 1);
    TestRequest *flush = start_flush(test_iothread(env, 0), &s);
    for (unsigned round = 0; round < 2; round++) {
        /* First while the flush waits for a write, then while the leaf's own flush runs. */
        for (unsigned i = 0; i < 4; i++) {
            AioContext *ctx = i ? test_iothread(env, i - 1) : env->ctx;
            TestRequest *r = test_request_start(ctx, s.blk, BLOCK_OP_READ, i * 100, 300, 0);
            TestRequest *w = test_request_start(ctx, s.blk, BLOCK_OP_WRITE, i * 512, 512, 7);
            g_assert_cmpint(test_request_finish(r), ==, 0);
            g_assert_cmpint(test_request_finish(w), ==, 0);
        }
        g_assert_false(test_request_done(flush));
        if (round == 0) {
            test_mem_hold(s.leaf, BLOCK_OP_FLUSH, -1);
            test_mem_release(s.leaf, BLOCK_OP_WRITE, 8192);
            test_wait(test_mem_waiting(s.leaf) == 1);
        }
    }
    test_mem_release(s.leaf, BLOCK_OP_FLUSH, -1);
    g_assert_cmpint(test_request_finish(slow), ==, 0);
    g_assert_cmpint(test_request_finish(flush), ==, 0);
    stack_close(env, &s);
}

/* ---- flush/error */

static void coroutine_fn test_error(TestEnv *env)
{
    Stack s = stack_open(env, "");
    TestRequest *reqs[SHARERS];
    write_some(&s, 0);
    unsigned before = test_calls(s.leaf, BLOCK_OP_FLUSH);
    test_mem_hold(s.leaf, BLOCK_OP_FLUSH, -1);
    test_mem_fail(s.leaf, BLOCK_OP_FLUSH, EIO);
    TestRequest *first = start_flush(test_iothread(env, 0), &s);
    test_wait(test_mem_waiting(s.leaf) == 1);
    start_sharers(env, &s, reqs);
    test_mem_release(s.leaf, BLOCK_OP_FLUSH, -1);
    g_assert_cmpint(test_request_finish(first), ==, -EIO);
    for (unsigned i = 0; i < SHARERS; i++) {
        g_assert_cmpint(test_request_finish(reqs[i]), ==, -EIO);
    }
    g_assert_cmpuint(test_calls(s.leaf, BLOCK_OP_FLUSH), ==, before + 2);
    g_autofree char *last = block_graph_last_error(env->graph, "leaf");
    g_assert_nonnull(last);
    g_assert_nonnull(strstr(last, "flush"));
    g_assert_nonnull(strstr(last, "EIO"));
    /* Nothing was written meanwhile, yet the failed one is not forgotten. */
    g_assert_cmpint(block_backend_co_flush(s.blk), ==, -EIO);
    test_mem_fail(s.leaf, BLOCK_OP_FLUSH, 0);
    g_assert_cmpint(block_backend_co_flush(s.blk), ==, 0);
    g_assert_cmpuint(test_calls(s.leaf, BLOCK_OP_FLUSH), ==, before + 4);
    stack_close(env, &s);
}

/* ---- flush/shared-leaf */

/* A leaf with two users: an fsync through the clean one is about what the other wrote as well. */
static void coroutine_fn test_shared_leaf(TestEnv *env)
{
    uint8_t buf[512] = {2};
    Stack s = stack_open(env, "");
    BlockNode *filter = test_open(env, "{'driver':'test-filter','node-name':'other','file':'leaf'}");
    BlockBackend *other = test_backend(env, "other", filter);
    write_some(&s, 0);
    g_assert_cmpint(block_backend_co_flush(s.blk), ==, 0);
    check_record(&s, "write 0+512, flush");
    g_assert_cmpint(block_backend_co_pwrite(other, 512, sizeof buf, buf, 0), ==, 0);
    g_assert_cmpint(block_backend_co_flush(s.blk), ==, 0);
    check_record(&s, "write 512+512, flush");
    g_assert_cmpint(block_backend_co_flush(other), ==, 0);
    check_record(&s, ""); /* the leaf knows that it is clean */

    /* Nor is a failure forgotten that the other one was told of. */
    g_assert_cmpint(block_backend_co_pwrite(other, 512, sizeof buf, buf, 0), ==, 0);
    test_mem_fail(s.leaf, BLOCK_OP_FLUSH, EIO);
    g_assert_cmpint(block_backend_co_flush(other), ==, -EIO);
    g_assert_cmpint(block_backend_co_flush(s.blk), ==, -EIO);
    test_mem_fail(s.leaf, BLOCK_OP_FLUSH, 0);
    g_assert_cmpint(block_backend_co_flush(s.blk), ==, 0);
    check_record(&s, "write 512+512, flush, flush, flush");
    block_backend_co_free(other);
    test_delete(env, filter);
    stack_close(env, &s);
}

/* ---- flush/durable: a leaf with a volatile cache; what was written before a flush is durable after it */

#define HAMMERS 8

static struct {
    _Atomic uint32_t written[HAMMERS], durable[HAMMERS];
    _Atomic int flushing;
    _Atomic unsigned flushes;
} cache;

static int coroutine_fn cache_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    node->limits.request_alignment = 512;
    atomic_store(&node->length, HAMMERS * 512);
    return 0;
}

static int coroutine_fn cache_pwritev(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                      size_t qiov_offset, BlockRequestFlags flags)
{
    uint8_t buf[512];
    uint32_t value;
    g_assert_cmpint(bytes, ==, sizeof buf);
    io_vector_to_buf(qiov, qiov_offset, buf, sizeof buf);
    memcpy(&value, buf, sizeof value);
    aio_co_sleep_ns(value % 7 * 10000);
    atomic_store(&cache.written[offset / 512], value);
    return 0;
}

static int coroutine_fn cache_flush(BlockNode *node)
{
    uint32_t seen[HAMMERS];
    g_assert_cmpint(atomic_fetch_add(&cache.flushing, 1), ==, 0);
    atomic_fetch_add(&cache.flushes, 1);
    for (unsigned i = 0; i < HAMMERS; i++) {
        seen[i] = atomic_load(&cache.written[i]);
    }
    aio_co_sleep_ns(50000);
    for (unsigned i = 0; i < HAMMERS; i++) {
        atomic_store(&cache.durable[i], seen[i]);
    }
    atomic_fetch_sub(&cache.flushing, 1);
    return 0;
}

static const BlockDriver cache_driver = {
    .name = "test-cache",
    .instance_size = 1,
    .co_open = cache_open,
    .co_pwritev = cache_pwritev,
    .co_flush = cache_flush,
};

typedef struct Hammer {
    BlockBackend *blk;
    unsigned slot;
} Hammer;

static int coroutine_fn hammer_run(void *opaque)
{
    Hammer *h = opaque;
    uint8_t buf[512] = {0};
    for (uint32_t i = 1; i <= 100; i++) {
        memcpy(buf, &i, sizeof i);
        g_assert_cmpint(block_backend_co_pwrite(h->blk, h->slot * 512, sizeof buf, buf, 0), ==, 0);
        if (i % 3 == 0) {
            g_assert_cmpint(block_backend_co_flush(h->blk), ==, 0);
            g_assert_cmpuint(atomic_load(&cache.durable[h->slot]), >=, i);
        }
    }
    return 0;
}

static void coroutine_fn test_durable(TestEnv *env)
{
    Hammer hammers[HAMMERS];
    TestTask *tasks[HAMMERS];
    BlockNode *leaf = test_open(env, "{'driver':'test-cache','node-name':'leaf'}");
    BlockNode *filter = test_open(env, "{'driver':'test-filter','node-name':'f','file':'leaf'}");
    BlockBackend *low = test_backend(env, "low", leaf), *high = test_backend(env, "high", filter);
    memset(&cache, 0, sizeof cache);
    for (unsigned i = 0; i < HAMMERS; i++) {
        hammers[i] = (Hammer){i % 2 ? low : high, i};
        tasks[i] = test_spawn(test_iothread(env, i % 4), hammer_run, &hammers[i]);
    }
    for (unsigned i = 0; i < HAMMERS; i++) {
        g_assert_cmpint(test_join(tasks[i]), ==, 0);
    }
    /* 33 flushes of 8 workers each: some must have been shared. */
    g_assert_cmpuint(atomic_load(&cache.flushes), <, 33 * HAMMERS);
    block_backend_co_free(low);
    block_backend_co_free(high);
    test_delete(env, filter);
    test_delete(env, leaf);
}

static void register_tests(void)
{
    block_driver_register_for_test(&cache_driver);
    test_add_co("flush/order", test_order);
    test_add_co("flush/all-leaves", test_all_leaves);
    test_add_co("flush/fua", test_fua);
    test_add_co("flush/no-flush", test_no_flush);
    test_add_co("flush/shared", test_shared);
    test_add_co("flush/waits-for-accepted-writes", test_waits_for_writes);
    test_add_co("flush/later-writes", test_later_writes);
    test_add_co("flush/write-during", test_write_during);
    test_add_co("flush/readers-do-not-stall", test_readers);
    test_add_co("flush/error", test_error);
    test_add_co("flush/shared-leaf", test_shared_leaf);
    test_add_co("flush/durable", test_durable);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv, register_tests);
}
