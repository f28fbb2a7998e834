/*
 * Tests of the driver qcow2: caches that are cleaned, the order of things when an image shrinks, and with an
 * external data file.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <string.h>

#include "backends/format/qcow2/qcow2.h"
#include "block/drain.h"
#include "tests/unit/driver-test-util.h"
#include "tests/unit/qcow2-image.h"

#define MIB     INT64_C(1048576)
#define CLUSTER QCOW2_IMAGE_CLUSTER
#define SPAN    (CLUSTER / 8 * CLUSTER) /* of an L2 table */

/* Node "f" with an empty image of 8 MiB that has these incompatible features; not the driver yet. */
static BlockNode *coroutine_fn file_open(TestEnv *env, uint64_t incompatible, uint64_t autoclear)
{
    BlockNode *f = test_open(env, "{'driver':'test-mem','node-name':'f','size':16384,'capacity':'16M',"
                                  "'growable':true}");
    qcow2_image_make(test_mem(f)->data, 8 * MIB);
    qcow2_store64(test_mem(f)->data + QCOW2_HEADER_INCOMPATIBLE, incompatible);
    qcow2_store64(test_mem(f)->data + QCOW2_HEADER_AUTOCLEAR, autoclear);
    return f;
}

static BlockBackend *coroutine_fn image_open(TestEnv *env, const char *options)
{
    BlockNode *q = test_open(env, "{'driver':'qcow2','node-name':'q','file':'f'%s}", options);
    return test_backend(env, "b", q);
}

static BlockNode *node(TestEnv *env, const char *name)
{
    return block_graph_find(env->graph, name, NULL);
}

static Qcow2State *state(TestEnv *env)
{
    return node(env, "q")->opaque;
}

#define ASSERT_RECORD(env, name, text)                                                                       \
    do {                                                                                                     \
        g_autofree char *record_ = test_mem_record_text(node(env, name));                                    \
        g_assert_cmpstr(record_, ==, text);                                                                  \
    } while (0)

static void forget_record(TestEnv *env, const char *name)
{
    g_array_unref(test_mem_take_record(node(env, name)));
}

/* ---- Caches */

static void coroutine_fn test_clean(TestEnv *env)
{
    file_open(env, 0, 0);
    BlockBackend *blk = image_open(env, ",'cache-clean-interval':0");
    Qcow2Cache *c = &state(env)->l2_cache;
    for (int64_t i = 0; i < 3; i++) {
        test_write_bytes(blk, i * SPAN, CLUSTER, 1);
    }
    g_assert_cmpuint(c->n_tables, ==, 3);
    qcow2_cache_clean(c); /* all were used since there is the cache */
    qcow2_cache_clean(c); /* none is clean */
    g_assert_cmpuint(c->n_tables, ==, 3);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    test_check_bytes(blk, SPAN, CLUSTER, 1);
    qcow2_cache_clean(c);
    g_assert_cmpuint(c->n_tables, ==, 1);
    g_assert_nonnull(qcow2_cache_peek(c, state(env)->l1.entries[1] & QCOW2_ENTRY_OFFSET));
    qcow2_cache_clean(c);
    g_assert_cmpuint(c->n_tables, ==, 0);
    for (int64_t i = 0; i < 3; i++) {
        test_check_bytes(blk, i * SPAN, CLUSTER, 1);
    }
    g_assert_false(aio_timer_pending(&state(env)->clean_timer));
    driver_test_close(env, blk);
    test_delete(env, node(env, "f"));
}

static void coroutine_fn test_clean_by_timer(TestEnv *env)
{
    file_open(env, 0, 0);
    BlockBackend *blk = image_open(env, ",'cache-clean-interval':1");
    Qcow2State *s = state(env);
    g_assert_true(aio_timer_pending(&s->clean_timer));
    test_write_bytes(blk, 0, CLUSTER, 1);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    g_assert_cmpuint(s->l2_cache.n_tables, ==, 1);
    test_wait(s->l2_cache.n_tables == 0 && s->refcount_cache.n_tables == 0);
    g_assert_true(aio_timer_pending(&s->clean_timer)); /* and so on */
    driver_test_close(env, blk);
    test_delete(env, node(env, "f"));
}

static void coroutine_fn test_clean_in_drained_section(TestEnv *env)
{
    file_open(env, 0, 0);
    BlockBackend *blk = image_open(env, "");
    Qcow2State *s = state(env);
    BlockDrain *section = block_drain_co_begin(node(env, "q"));
    g_assert_false(aio_timer_pending(&s->clean_timer));
    block_drain_end(section);
    g_assert_true(aio_timer_pending(&s->clean_timer));
    driver_test_close(env, blk);
    test_delete(env, node(env, "f"));
}

/* ---- Shrinking */

static void coroutine_fn test_order_of_shrinking(TestEnv *env)
{
    BlockNode *f = file_open(env, 0, 0);
    BlockBackend *blk = image_open(env, "");
    test_write_bytes(blk, 0, CLUSTER, 1);       /* L2 table at 16K, data at 20K */
    test_write_bytes(blk, SPAN, CLUSTER, 2);    /* L2 table at 24K, data at 28K */
    test_write_bytes(blk, CLUSTER, CLUSTER, 3); /* data at 32K */
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    forget_record(env, "f");
    g_assert_cmpint(block_backend_co_truncate(blk, CLUSTER + 512, NULL), ==, 0);
    /* The last cluster's rest; tables; what they dropped; the length; and nothing of L1 yet. */
    ASSERT_RECORD(env, "f",
                  "write 33280+3584, flush, write 24576+4096, flush, discard 28672+4096, write 8192+4096, "
                  "flush, write 24+8, flush");
    g_assert_cmphex(qcow2_load64(test_mem(f)->data + 3 * CLUSTER + 8), !=, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    ASSERT_RECORD(env, "f", "write 12288+32, flush, discard 24576+4096, write 8192+4096, flush");
    g_assert_cmphex(qcow2_load64(test_mem(f)->data + 3 * CLUSTER + 8), ==, 0);
    driver_test_close(env, blk);
    test_delete(env, f);
}

static void coroutine_fn test_failed_shrink(TestEnv *env)
{
    BlockNode *f = file_open(env, 0, 0);
    BlockBackend *blk = image_open(env, "");
    test_write_bytes(blk, 0, CLUSTER, 1);
    test_write_bytes(blk, SPAN, CLUSTER, 2);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    test_mem_fail(f, BLOCK_OP_FLUSH, EIO);
    g_assert_cmpint(block_backend_co_truncate(blk, CLUSTER, NULL), ==, -EIO);
    test_mem_fail(f, BLOCK_OP_FLUSH, 0);
    g_assert_cmpint(block_node_length(node(env, "q")), ==, 8 * MIB);
    g_assert_cmpuint(qcow2_load64(test_mem(f)->data + QCOW2_HEADER_SIZE), ==, 8 * MIB);
    g_assert_cmpint(block_backend_co_truncate(blk, CLUSTER, NULL), ==, 0);
    g_assert_cmpuint(qcow2_load64(test_mem(f)->data + QCOW2_HEADER_SIZE), ==, CLUSTER);
    test_check_bytes(blk, 0, CLUSTER, 1);
    driver_test_close(env, blk);
    test_delete(env, f);
}

/* ---- External data file */

static BlockBackend *coroutine_fn image_with_data_open(TestEnv *env, uint64_t autoclear)
{
    file_open(env, QCOW2_INCOMPATIBLE_DATA_FILE, autoclear);
    test_open(env, "{'driver':'test-mem','node-name':'d','size':0,'capacity':'16M','growable':true}");
    return image_open(env, ",'data-file':'d'");
}

static void coroutine_fn image_with_data_close(TestEnv *env, BlockBackend *blk)
{
    driver_test_close(env, blk);
    test_delete(env, node(env, "f"));
    test_delete(env, node(env, "d"));
}

/* The L2 table is written when the data is stable, and not before. */
static void coroutine_fn test_data_before_tables(TestEnv *env)
{
    BlockBackend *blk = image_with_data_open(env, 0);
    test_write_bytes(blk, 5 * CLUSTER, CLUSTER, 1);
    ASSERT_RECORD(env, "d", "write 20480+4096");
    forget_record(env, "f");
    test_mem_hold(node(env, "d"), BLOCK_OP_FLUSH, -1);
    TestRequest *flush = test_request_start(env->ctx, blk, BLOCK_OP_FLUSH, 0, 0, 0);
    test_wait(test_mem_waiting(node(env, "d")) == 1);
    test_settle();
    ASSERT_RECORD(env, "f", "write 8192+4096");
    test_mem_release(node(env, "d"), BLOCK_OP_FLUSH, -1);
    g_assert_cmpint(test_request_finish(flush), ==, 0);
    ASSERT_RECORD(env, "f", "flush, write 16384+4096, flush, write 12288+32, flush");
    test_check_bytes(blk, 5 * CLUSTER, CLUSTER, 1);
    image_with_data_close(env, blk);
}

/* Raw: zeroes go to the data file, no entry changes, and the bit stays. */
static void coroutine_fn test_raw_data_file(TestEnv *env)
{
    BlockBackend *blk = image_with_data_open(env, QCOW2_AUTOCLEAR_DATA_RAW);
    test_write_bytes(blk, 0, CLUSTER, 1);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    forget_record(env, "f");
    forget_record(env, "d");
    g_assert_cmpint(block_backend_co_pwrite_zeroes(blk, 512, 1024, 0), ==, 0);
    g_assert_cmpint(block_backend_co_pdiscard(blk, CLUSTER, CLUSTER), ==, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    ASSERT_RECORD(env, "f", "");
    g_assert_cmpint(test_mem(node(env, "d"))->data[511], ==, 1);
    g_assert_cmpint(test_mem(node(env, "d"))->data[512], ==, 0);
    g_assert_cmphex(qcow2_load64(test_mem(node(env, "f"))->data + QCOW2_HEADER_AUTOCLEAR), ==,
                    QCOW2_AUTOCLEAR_DATA_RAW);
    image_with_data_close(env, blk);
}

static void register_tests(void)
{
    test_add_co("qcow2-features/clean", test_clean);
    test_add_co("qcow2-features/clean-by-timer", test_clean_by_timer);
    test_add_co("qcow2-features/clean-in-drained-section", test_clean_in_drained_section);
    test_add_co("qcow2-features/order-of-shrinking", test_order_of_shrinking);
    test_add_co("qcow2-features/failed-shrink", test_failed_shrink);
    test_add_co("qcow2-features/data-before-tables", test_data_before_tables);
    test_add_co("qcow2-features/raw-data-file", test_raw_data_file);
}

int main(int argc, char **argv)
{
    return driver_test_main(argc, argv, register_tests);
}
