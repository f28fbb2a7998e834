/*
 * Tests of errors, their log, and statistics.
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

/* ---- io/errors */

static void coroutine_fn test_error_ranges(TestEnv *env)
{
    BlockBackend *blk = leaf_open(env, "l", "'align':512");
    uint8_t buf[64] = {0};
    struct iovec iov = {buf, sizeof buf};
    IoVector v = {&iov, 1, sizeof buf};
    static const struct {
        int64_t offset, bytes;
    } bad[] = {{-1, 10},       {INT64_MIN, 10},       {0, -1}, {INT64_MAX - 5, 10},
               {INT64_MAX, 1}, {BLOCK_MAX_LENGTH, 64}};
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        int64_t o = bad[i].offset, n = bad[i].bytes;
        g_assert_cmpint(block_backend_co_preadv(blk, o, n, &v, 0), ==, -EINVAL);
        g_assert_cmpint(block_backend_co_pwritev(blk, o, n, &v, 0), ==, -EINVAL);
        g_assert_cmpint(block_backend_co_pread(blk, o, n, buf), ==, -EINVAL);
        g_assert_cmpint(block_backend_co_pwrite(blk, o, n, buf, 0), ==, -EINVAL);
        g_assert_cmpint(block_backend_co_pwrite_zeroes(blk, o, n, 0), ==, -EINVAL);
        g_assert_cmpint(block_backend_co_pdiscard(blk, o, n), ==, -EINVAL);
    }
    g_assert_cmpint(block_backend_co_pwrite(blk, SIZE - 5, 10, buf, 0), ==, -ENOSPC);
    g_assert_cmpint(block_backend_co_pwrite(blk, SIZE, 1, buf, 0), ==, -ENOSPC);
    g_assert_cmpint(block_backend_co_pwrite_zeroes(blk, SIZE - 5, 10, 0), ==, -ENOSPC);
    g_assert_cmpuint(test_calls(block_backend_node(blk), BLOCK_OP_WRITE), ==, 0);
    for (unsigned i = 0; i < SIZE; i++) {
        g_assert_cmpuint(test_mem(block_backend_node(blk))->data[i], ==, 0x5a);
    }
    /* A read over the end gets zeroes there; nothing to do is fine. */
    memset(buf, 0xee, sizeof buf);
    g_assert_cmpint(block_backend_co_pread(blk, SIZE - 10, 20, buf), ==, 0);
    g_assert_cmpuint(buf[9], ==, 0x5a);
    g_assert_cmpuint(buf[10], ==, 0);
    g_assert_cmpuint(buf[19], ==, 0);
    g_assert_cmpuint(buf[20], ==, 0xee);
    g_assert_cmpint(block_backend_co_pread(blk, 5, 0, buf), ==, 0);
    g_assert_cmpint(block_backend_co_pwrite(blk, 5, 0, buf, 0), ==, 0);
    g_assert_cmpint(block_backend_co_pwrite_zeroes(blk, 5, 0, 0), ==, 0);
    g_assert_cmpint(block_backend_co_pdiscard(blk, 5, 0), ==, 0);
    block_backend_co_free(blk);
}

static void coroutine_fn test_error_log(TestEnv *env)
{
    BlockBackend *blk = leaf_open(env, "leaf7", "");
    BlockNode *leaf = block_backend_node(blk);
    uint8_t buf[512] = {0};
    BlockOpStats stats;
    g_assert_null(block_graph_last_error(env->graph, NULL));
    test_mem_fail(leaf, BLOCK_OP_WRITE, ENOSPC);
    g_assert_cmpint(block_backend_co_pwrite(blk, 1234, 512, buf, 0), ==, -ENOSPC);
    g_autofree char *write_error = block_graph_last_error(env->graph, "leaf7");
    g_assert_nonnull(strstr(write_error, "leaf7 write"));
    g_assert_nonnull(strstr(write_error, "1234"));
    g_assert_nonnull(strstr(write_error, "512"));
    g_assert_nonnull(strstr(write_error, "ENOSPC"));
    test_mem_fail(leaf, BLOCK_OP_READ, EIO);
    for (int i = 0; i < 5; i++) {
        g_assert_cmpint(block_backend_co_pread(blk, 0, 512, buf), ==, -EIO);
    }
    g_assert_cmpuint(block_graph_error_count(env->graph), ==, 6);
    g_autofree char *text = block_graph_errors_text(env->graph);
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    g_assert_cmpuint(g_strv_length(lines), ==, 3); /* repeats are folded; the last is empty */
    g_assert_nonnull(strstr(lines[0], "ENOSPC"));
    g_assert_nonnull(strstr(lines[1], "EIO"));
    g_assert_null(block_graph_last_error(env->graph, "other"));
    block_stats_get(leaf->stats, BLOCK_OP_READ, &stats);
    g_assert_cmpuint(stats.count, ==, 5);
    g_assert_cmpuint(stats.errors, ==, 5);
    g_assert_cmpuint(stats.bytes, ==, 0);
    test_mem_fail(leaf, BLOCK_OP_WRITE, 0);
    g_assert_cmpint(block_backend_co_pwrite(blk, 1234, 512, buf, 0), ==, 0);
    block_backend_co_free(blk);
}

static void coroutine_fn test_error_log_bound(TestEnv *env)
{
    for (unsigned i = 0; i < BLOCK_ERRORS_KEPT + 50; i++) {
        g_autofree char *name = g_strdup_printf("n%u", i);
        block_graph_log_error(env->graph, name, BLOCK_OP_OPEN, -1, 0, EACCES, "cannot");
    }
    g_assert_cmpuint(block_graph_error_count(env->graph), ==, BLOCK_ERRORS_KEPT + 50);
    g_autofree char *text = block_graph_errors_text(env->graph);
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    g_assert_cmpuint(g_strv_length(lines), ==, BLOCK_ERRORS_KEPT + 1);
    g_assert_nonnull(strstr(lines[0], " n50 "));
    g_assert_null(block_graph_last_error(env->graph, "n49"));
}

/* ---- io/errors/leftovers: growing writes that fail half-way */

static BlockBackend *coroutine_fn torn_open(TestEnv *env, const char *options)
{
    g_autofree char *all = g_strdup_printf("'growable':true,'torn-writes':true,'capacity':%d%s%s", 2 * SIZE,
                                           *options ? "," : "", options);
    return leaf_open(env, "l", all);
}

/* The node is 0x5a up to SIZE, and zeroes from there to `end`. */
static void coroutine_fn check_tail(BlockBackend *blk, int64_t end)
{
    g_autofree uint8_t *got = g_malloc(end), *want = g_malloc0(end);
    memset(want, 0x5a, SIZE);
    g_assert_cmpint(block_backend_length(blk), ==, end);
    g_assert_cmpint(block_backend_co_pread(blk, 0, end, got), ==, 0);
    test_assert_mem("tail", got, want, end);
}

static void coroutine_fn check_leftovers(TestEnv *env, const char *options, int64_t offset, int64_t bytes)
{
    g_autofree uint8_t *buf = g_malloc(bytes);
    memset(buf, 0xee, bytes);
    for (unsigned by_writing = 0; by_writing < 2; by_writing++) {
        BlockBackend *blk = torn_open(env, options);
        BlockNode *leaf = block_backend_node(blk);
        test_mem_fail(leaf, BLOCK_OP_WRITE, ENOSPC);
        g_assert_cmpint(block_backend_co_pwrite(blk, offset, bytes, buf, 0), ==, -ENOSPC);
        test_mem_fail(leaf, BLOCK_OP_WRITE, 0);
        g_assert_cmpint(block_backend_length(blk), ==, SIZE);
        g_assert_cmpint(atomic_load(&test_mem(leaf)->size), ==, SIZE);
        if (by_writing) {
            g_assert_cmpint(block_backend_co_pwrite(blk, offset + 40000, 1, "", 0), ==, 0);
        } else {
            g_assert_cmpint(block_backend_co_truncate(blk, offset + 40001, NULL), ==, 0);
        }
        check_tail(blk, offset + 40001);
        block_backend_co_free(blk);
        test_delete(env, leaf);
    }
}

/* Later growth shows zeroes, not what the failed write left. */
static void coroutine_fn test_leftovers(TestEnv *env)
{
    check_leftovers(env, "", SIZE, 8192);
    check_leftovers(env, "", SIZE + 4096, 10);
    check_leftovers(env, "'align':512", SIZE, 8192);
    check_leftovers(env, "'align':512", SIZE + 1000, 100);
    check_leftovers(env, "'align':4096,'max-transfer':4096", SIZE + 8192, 12288);
}

/* The cut waits for an append in flight, and takes nothing of it. */
static void coroutine_fn test_leftovers_append(TestEnv *env)
{
    BlockBackend *blk = torn_open(env, "");
    BlockNode *leaf = block_backend_node(blk);
    test_mem_hold(leaf, BLOCK_OP_WRITE, SIZE);
    test_mem_hold(leaf, BLOCK_OP_WRITE, SIZE + 4096);
    TestRequest *append = test_request_start(test_iothread(env, 0), blk, BLOCK_OP_WRITE, SIZE, 4096, 0x5a);
    TestRequest *torn = test_request_start(env->ctx, blk, BLOCK_OP_WRITE, SIZE + 4096, 4096, 0xee);
    test_wait(test_mem_waiting(leaf) == 2);
    test_mem_fail(leaf, BLOCK_OP_WRITE, ENOSPC);
    test_mem_release(leaf, BLOCK_OP_WRITE, SIZE + 4096);
    test_wait(test_mem_waiting(leaf) == 1);
    test_settle();
    g_assert_cmpuint(test_calls(leaf, BLOCK_OP_TRUNCATE), ==, 0);
    test_mem_fail(leaf, BLOCK_OP_WRITE, 0);
    test_mem_release(leaf, BLOCK_OP_WRITE, SIZE);
    g_assert_cmpint(test_request_finish(torn), ==, -ENOSPC);
    g_assert_cmpint(test_request_finish(append), ==, 0);
    g_assert_cmpuint(test_calls(leaf, BLOCK_OP_TRUNCATE), ==, 1);
    g_assert_cmpint(block_backend_length(blk), ==, SIZE + 4096);
    g_assert_cmpint(atomic_load(&test_mem(leaf)->size), ==, SIZE + 4096);
    for (unsigned i = 0; i < 4096; i++) {
        g_assert_cmpuint(test_mem(leaf)->data[SIZE + i], ==, 0x5a);
        g_assert_cmpuint(test_mem(leaf)->data[SIZE + 4096 + i], ==, 0);
    }
    block_backend_co_free(blk);
    test_delete(env, leaf);
}

/* ---- io/stats */

static void coroutine_fn test_stats(TestEnv *env)
{
    BlockBackend *blk = leaf_open(env, "l", "'delay-ns':2000000");
    BlockNode *leaf = block_backend_node(blk);
    g_autofree uint8_t *buf = g_malloc0(8192);
    TestRequest *reqs[4];
    for (unsigned t = 0; t < 4; t++) {
        reqs[t] = test_request_start(test_iothread(env, t), blk, BLOCK_OP_READ, t * 1000, 1000 + t, 0);
    }
    for (unsigned t = 0; t < 4; t++) {
        g_assert_cmpint(test_request_finish(reqs[t]), ==, 0);
    }
    g_assert_cmpint(block_backend_co_pwrite(blk, 0, 8192, buf, 0), ==, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    BlockOpStats read, write, flush, discard;
    block_stats_get(leaf->stats, BLOCK_OP_READ, &read);
    block_stats_get(leaf->stats, BLOCK_OP_WRITE, &write);
    block_stats_get(leaf->stats, BLOCK_OP_FLUSH, &flush);
    block_stats_get(leaf->stats, BLOCK_OP_DISCARD, &discard);
    g_assert_cmpuint(read.count, ==, 4);
    g_assert_cmpuint(read.bytes, ==, 4006);
    g_assert_cmpuint(read.errors, ==, 0);
    g_assert_cmpuint(read.total_ns, >=, 4 * 2000000);
    uint64_t sum = 0;
    for (unsigned i = 0; i < BLOCK_LATENCY_BUCKETS; i++) {
        sum += read.latency[i];
        g_assert_true(i > 10 || read.latency[i] == 0); /* 2 ms is not below 2^10 us */
    }
    g_assert_cmpuint(sum, ==, 4);
    g_assert_cmpuint(write.count, ==, 1);
    g_assert_cmpuint(write.bytes, ==, 8192);
    g_assert_cmpuint(flush.count, ==, 1);
    g_assert_cmpuint(discard.count, ==, 0);
    block_backend_co_free(blk);
}

static void register_tests(void)
{
    test_add_co("io/errors/ranges", test_error_ranges);
    test_add_co("io/errors/log", test_error_log);
    test_add_co("io/errors/log-bound", test_error_log_bound);
    test_add_co("io/errors/leftovers", test_leftovers);
    test_add_co("io/errors/leftovers-append", test_leftovers_append);
    test_add_co("io/stats", test_stats);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv, register_tests);
}
