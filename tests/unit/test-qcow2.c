/*
 * Tests of the driver qcow2: the arithmetic of its tables, hostile headers, the order in which things reach
 * the file, and what waits for what. The image lies in a test-mem node.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "backends/format/qcow2/qcow2.h"
#include "tests/unit/driver-test-util.h"
#include "tests/unit/qcow2-image.h"

#define KIB     INT64_C(1024)
#define MIB     (1024 * KIB)
#define CLUSTER QCOW2_IMAGE_CLUSTER

/* ---- Refcounts */

static void test_refcount_widths(TestEnv *env)
{
    for (uint32_t order = 0; order <= 6; order++) {
        uint8_t block[512];
        unsigned bits = 1u << order, n = 4096 / bits;
        uint64_t max = bits == 64 ? UINT64_MAX : (UINT64_C(1) << bits) - 1;
        memset(block, 0, sizeof block);
        for (unsigned i = 0; i < n; i++) {
            qcow2_refcount_store(block, order, i, (i * UINT64_C(0x9e3779b97f4a7c15)) & max);
        }
        for (unsigned i = 0; i < n; i++) {
            g_assert_cmpuint(qcow2_refcount_load(block, order, i), ==,
                             (i * UINT64_C(0x9e3779b97f4a7c15)) & max);
        }
    }
    /* As the format has them: the first of a byte in its lowest bits, wider ones big-endian. */
    uint8_t block[16] = {0};
    qcow2_refcount_store(block, 0, 1, 1);
    g_assert_cmpuint(block[0], ==, 2);
    qcow2_refcount_store(block, 2, 3, 0xa);
    g_assert_cmpuint(block[1], ==, 0xa0);
    qcow2_refcount_store(block, 4, 2, 0x1234);
    g_assert_cmpuint(block[4], ==, 0x12);
    g_assert_cmpuint(block[5], ==, 0x34);
}

/* ---- L2 entries */

static Qcow2State geometry(uint32_t cluster_bits, uint32_t version, bool extended)
{
    return (Qcow2State){.version = version,
                        .cluster_bits = cluster_bits,
                        .cluster_size = INT64_C(1) << cluster_bits,
                        .extended = extended,
                        .subs = extended ? 32 : 1,
                        .sub_bits = cluster_bits - (extended ? 5 : 0)};
}

static void test_compressed_place(TestEnv *env)
{
    Qcow2State s = geometry(16, 3, false); /* 8 bits of sectors from bit 54 on */
    Qcow2Extent e = qcow2_compressed_extent(&s, QCOW2_ENTRY_COMPRESSED | UINT64_C(3) << 54 | 0x12345);
    g_assert_cmpuint(e.offset, ==, 0x12345);
    g_assert_cmpuint(e.bytes, ==, 4 * 512 - (0x12345 & 511));
    s = geometry(9, 3, false); /* 1 bit at 61 */
    e = qcow2_compressed_extent(&s, QCOW2_ENTRY_COMPRESSED | UINT64_C(1) << 61 | 512);
    g_assert_cmpuint(e.offset, ==, 512);
    g_assert_cmpuint(e.bytes, ==, 1024);
    s = geometry(21, 3, false); /* 13 bits from 49 on */
    e = qcow2_compressed_extent(&s, QCOW2_ENTRY_COMPRESSED | UINT64_C(8191) << 49 | 1);
    g_assert_cmpuint(e.offset, ==, 1);
    g_assert_cmpuint(e.bytes, ==, 8192 * 512 - 1);
}

static void test_entry_types(TestEnv *env)
{
    Qcow2State v2 = geometry(16, 2, false), v3 = geometry(16, 3, false), ext = geometry(16, 3, true);
    const struct {
        const Qcow2State *s;
        Qcow2L2Entry e;
        uint32_t sub;
        Qcow2Type type;
    } cases[] = {
        {&v3, {0, 0}, 0, QCOW2_UNALLOCATED},
        {&v3, {QCOW2_ENTRY_COPIED | 0x50000, 0}, 0, QCOW2_NORMAL},
        {&v3, {0x50000, 0}, 0, QCOW2_NORMAL},
        {&v3, {1, 0}, 0, QCOW2_ZERO},
        {&v3, {0x50001, 0}, 0, QCOW2_ZERO},
        {&v2, {1, 0}, 0, QCOW2_INVALID},
        {&v3, {0x50200, 0}, 0, QCOW2_INVALID},
        {&v3, {QCOW2_ENTRY_COMPRESSED | 77, 0}, 0, QCOW2_COMPRESSED},
        {&v3, {QCOW2_ENTRY_COMPRESSED | QCOW2_ENTRY_COPIED | 77, 0}, 0, QCOW2_INVALID},
        {&ext, {QCOW2_ENTRY_COPIED | 0x50000, 2}, 1, QCOW2_NORMAL},
        {&ext, {QCOW2_ENTRY_COPIED | 0x50000, 2}, 0, QCOW2_UNALLOCATED},
        {&ext, {0, UINT64_C(1) << 63}, 31, QCOW2_ZERO},
        {&ext, {0, 1}, 0, QCOW2_INVALID},
        {&ext, {0x50000, UINT64_C(1) << 32 | 1}, 0, QCOW2_INVALID},
        {&ext, {0x50001, 0}, 0, QCOW2_INVALID},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_assert_cmpint(qcow2_l2_type(cases[i].s, cases[i].e, cases[i].sub), ==, cases[i].type);
    }
}

/* ---- Headers */

static void check_accepted(const Qcow2Header *h, int64_t length)
{
    uint64_t cluster = UINT64_C(1) << h->cluster_bits,
             end = ((uint64_t)length + cluster - 1) / cluster * cluster;
    g_assert_cmpuint(h->cluster_bits, >=, 9);
    g_assert_cmpuint(h->cluster_bits, <=, 21);
    g_assert_cmpuint(h->l1_size, <=, QCOW2_MAX_L1_BYTES / 8);
    g_assert_true(!h->l1_size || h->l1_offset + h->l1_size * UINT64_C(8) <= end);
    g_assert_cmpuint(h->reftable_offset, <, end);
    g_assert_cmpuint(h->reftable_clusters * cluster, <=, QCOW2_MAX_REFTABLE_BYTES);
    g_assert_cmpuint(h->refcount_order, <=, 6);
    g_assert_cmpuint(h->snapshots, <=, QCOW2_MAX_SNAPSHOTS);
    g_assert_cmpuint(h->size, <=, BLOCK_MAX_LENGTH);
    g_assert_cmpuint(h->encryption, ==, 0);
}

/* Bytes of a good header replaced at random: refused with a message, or within bounds. */
static void test_hostile_headers(TestEnv *env)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(1);
    uint8_t good[CLUSTER], bad[CLUSTER];
    unsigned accepted = 0, refused = 0;
    qcow2_image_header(good, 8 * MIB);
    for (unsigned i = 0; i < 30000; i++) {
        static const uint8_t extremes[] = {0, 1, 0x7f, 0x80, 0xff};
        memcpy(bad, good, CLUSTER);
        for (int n = g_rand_int_range(rand, 1, 5); n; n--) {
            bad[g_rand_int_range(rand, 4, 112)] =
                g_rand_boolean(rand) ? extremes[g_rand_int_range(rand, 0, 5)] : (uint8_t)g_rand_int(rand);
        }
        size_t n = g_rand_boolean(rand) ? CLUSTER : (size_t)g_rand_int_range(rand, 0, CLUSTER);
        g_autofree uint8_t *exact = g_memdup2(bad, MAX(n, 1)); /* so that ASan sees a read beyond it */
        g_autoptr(GError) err = NULL;
        Qcow2Header h;
        if (qcow2_header_parse(exact, n, 16 * CLUSTER, "q", false, &h, &err) == 0) {
            g_assert_no_error(err);
            check_accepted(&h, 16 * CLUSTER);
            accepted++;
        } else {
            g_assert_nonnull(err);
            g_assert_true(g_str_has_prefix(err->message, "node 'q': "));
            g_assert_true(g_utf8_validate(err->message, -1, NULL));
            refused++;
        }
    }
    g_assert_cmpuint(accepted, >, 100);
    g_assert_cmpuint(refused, >, 10000);
}

/* ---- Decompression */

static void test_decompress_garbage(TestEnv *env)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(2);
    g_autofree uint8_t *out = g_malloc(65536);
    for (unsigned i = 0; i < 2000; i++) {
        size_t n = (size_t)g_rand_int_range(rand, 1, 600);
        g_autofree uint8_t *in = g_malloc(n);
        for (size_t j = 0; j < n; j++) {
            in[j] = (uint8_t)g_rand_int(rand);
        }
        qcow2_decompress(QCOW2_ZLIB, in, n, out, 65536);
        g_assert_cmpint(qcow2_decompress(QCOW2_ZSTD, in, n, out, 65536), ==, -EIO);
    }
    static const uint8_t short_stream[] = {0x03, 0x00}; /* deflate: the empty stream */
    g_assert_cmpint(qcow2_decompress(QCOW2_ZLIB, short_stream, 2, out, 65536), ==, -EIO);
}

/* ---- An image in memory */

/* Opens node "f" (test-mem, with the image) and "q" on it; a backend on that. */
static BlockBackend *coroutine_fn image_open(TestEnv *env, const char *options)
{
    BlockNode *f = test_open(env, "{'driver':'test-mem','node-name':'f','size':16384,'capacity':'16M',"
                                  "'growable':true}");
    qcow2_image_make(test_mem(f)->data, 8 * MIB);
    return test_backend(
        env, "b",
        test_open(env, "{'driver':'qcow2','node-name':'q','file':'f'%s%s}", *options ? "," : "", options));
}

static BlockNode *image_file(TestEnv *env)
{
    return block_graph_find(env->graph, "f", NULL);
}

static void coroutine_fn image_close(TestEnv *env, BlockBackend *blk)
{
    driver_test_close(env, blk);
    test_delete(env, image_file(env));
}

static uint64_t refcount_on_disk(TestEnv *env, unsigned cluster)
{
    return qcow2_refcount_load(test_mem(image_file(env))->data + 2 * CLUSTER, 4, cluster);
}

static void coroutine_fn write_cluster(BlockBackend *blk, int64_t offset, int byte, int want)
{
    uint8_t buf[CLUSTER];
    memset(buf, byte, sizeof buf);
    g_assert_cmpint(block_backend_co_pwrite(blk, offset, sizeof buf, buf, 0), ==, want);
}

/* ---- Order */

#define ASSERT_RECORD(env, text)                                                                             \
    do {                                                                                                     \
        g_autofree char *record_ = test_mem_record_text(image_file(env));                                    \
        g_assert_cmpstr(record_, ==, text);                                                                  \
    } while (0)

/* The first write makes an L2 table at 16K and puts its data at 20K. */
static void coroutine_fn test_order_of_allocation(TestEnv *env)
{
    BlockBackend *blk = image_open(env, "");
    g_array_unref(test_mem_take_record(image_file(env)));
    write_cluster(blk, 0, 1, 0);
    ASSERT_RECORD(env, "read 8192+4096, write 20480+4096");
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    /* Refcounts; then, as they and the data are stable, the L2 table; then the L1 table. */
    ASSERT_RECORD(env, "write 8192+4096, flush, write 16384+4096, flush, write 12288+32, flush");
    write_cluster(blk, 0, 2, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    ASSERT_RECORD(env, "write 20480+4096, flush");
    image_close(env, blk);
}

/* A discarded cluster loses its refcount when the L2 table without it is stable, and not before. */
static void coroutine_fn test_order_of_freeing(TestEnv *env)
{
    BlockBackend *blk = image_open(env, "");
    write_cluster(blk, 0, 1, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    g_array_unref(test_mem_take_record(image_file(env)));
    g_assert_cmpint(block_backend_co_pdiscard(blk, 0, CLUSTER), ==, 0);
    write_cluster(blk, CLUSTER, 3, 0); /* does not take the cluster yet */
    ASSERT_RECORD(env, "write 24576+4096");
    g_assert_cmpint(refcount_on_disk(env, 5), ==, 1);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    ASSERT_RECORD(env,
                  "write 8192+4096, flush, write 16384+4096, flush, discard 20480+4096, write 8192+4096, "
                  "flush");
    g_assert_cmpint(refcount_on_disk(env, 5), ==, 0);
    write_cluster(blk, 2 * CLUSTER, 4, 0); /* now it does */
    ASSERT_RECORD(env, "write 20480+4096");
    test_check_bytes(blk, 0, CLUSTER, 0);
    image_close(env, blk);
}

/* Nothing but the content of the file is needed to go on: what close wrote is all. */
static void coroutine_fn test_close_writes_tables(TestEnv *env)
{
    BlockBackend *blk = image_open(env, "");
    write_cluster(blk, 3 * MIB, 9, 0);
    g_assert_cmpint(block_backend_co_pdiscard(blk, 3 * MIB, CLUSTER), ==, 0);
    write_cluster(blk, 5 * MIB, 8, 0);
    driver_test_close(env, blk);
    blk = test_backend(env, "b", test_open(env, "{'driver':'qcow2','node-name':'q','file':'f'}"));
    test_check_bytes(blk, 3 * MIB, CLUSTER, 0);
    test_check_bytes(blk, 5 * MIB, CLUSTER, 8);
    unsigned used = 0;
    for (unsigned i = 0; i < 2048; i++) {
        used += refcount_on_disk(env, i) == 1;
    }
    g_assert_cmpuint(used, ==, 4 + 2 + 1); /* two L2 tables, one data cluster */
    image_close(env, blk);
}

/* ---- Who waits for whom */

/* While a cluster is being written for the first time, others go on; a write to the same one waits. */
static void coroutine_fn test_parallel_allocation(TestEnv *env)
{
    BlockBackend *blk = image_open(env, "");
    BlockNode *f = image_file(env);
    test_mem_hold(f, BLOCK_OP_WRITE, 20480);
    TestRequest *first = test_request_start(env->ctx, blk, BLOCK_OP_WRITE, 0, 512, 0x11);
    test_wait(test_mem_waiting(f) == 1);
    TestRequest *same = test_request_start(test_iothread(env, 0), blk, BLOCK_OP_WRITE, 1024, 512, 0x22);
    TestRequest *other =
        test_request_start(test_iothread(env, 1), blk, BLOCK_OP_WRITE, 2 * CLUSTER, 512, 0x33);
    g_assert_cmpint(test_request_finish(other), ==, 0);
    test_check_bytes(blk, 0, CLUSTER, 0); /* not linked yet */
    test_settle();
    g_assert_false(test_request_done(first) || test_request_done(same));
    test_mem_release(f, BLOCK_OP_WRITE, 20480);
    g_assert_cmpint(test_request_finish(first), ==, 0);
    g_assert_cmpint(test_request_finish(same), ==, 0);
    uint8_t buf[CLUSTER], want[CLUSTER] = {0};
    memset(want, 0x11, 512);
    memset(want + 1024, 0x22, 512);
    g_assert_cmpint(block_backend_co_pread(blk, 0, sizeof buf, buf), ==, 0);
    test_assert_mem("both writes", buf, want, sizeof want);
    g_assert_cmpuint(refcount_on_disk(env, 7), ==, 0);
    image_close(env, blk);
}

/* A cluster that somebody still reads is not given away. */
static void coroutine_fn test_freed_under_a_reader(TestEnv *env)
{
    BlockBackend *blk = image_open(env, "");
    BlockNode *f = image_file(env);
    write_cluster(blk, 0, 0x77, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    test_mem_hold(f, BLOCK_OP_READ, 20480);
    TestRequest *reader = test_request_start(test_iothread(env, 0), blk, BLOCK_OP_READ, 0, CLUSTER, 0);
    test_wait(test_mem_waiting(f) == 1);
    g_assert_cmpint(block_backend_co_pdiscard(blk, 0, CLUSTER), ==, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    g_array_unref(test_mem_take_record(f));
    write_cluster(blk, CLUSTER, 0x88, 0);
    ASSERT_RECORD(env, "write 24576+4096");
    test_mem_release(f, BLOCK_OP_READ, 20480);
    g_assert_cmpint(test_request_finish(reader), ==, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    g_assert_cmpuint(refcount_on_disk(env, 5), ==, 0);
    image_close(env, blk);
}

/* ---- Errors of the storage */

static void coroutine_fn test_failed_data_write(TestEnv *env)
{
    BlockBackend *blk = image_open(env, "");
    BlockNode *f = image_file(env);
    write_cluster(blk, CLUSTER, 1, 0);
    test_mem_fail(f, BLOCK_OP_WRITE, ENOSPC);
    write_cluster(blk, 0, 2, -ENOSPC);
    test_mem_fail(f, BLOCK_OP_WRITE, 0);
    test_check_bytes(blk, 0, CLUSTER, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    g_assert_cmpuint(refcount_on_disk(env, 6), ==, 0); /* given back */
    image_close(env, blk);
}

static void coroutine_fn test_failed_flush(TestEnv *env)
{
    BlockBackend *blk = image_open(env, "");
    BlockNode *f = image_file(env);
    write_cluster(blk, 0, 5, 0);
    for (BlockOp op = BLOCK_OP_WRITE; op <= BLOCK_OP_FLUSH; op++) {
        test_mem_fail(f, op, EIO);
        g_assert_cmpint(block_backend_co_flush(blk), ==, -EIO);
        test_mem_fail(f, op, 0);
        g_assert_cmpuint(qcow2_load64(test_mem(f)->data + 3 * CLUSTER), ==, 0); /* L1 points nowhere */
    }
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    g_assert_cmpuint(qcow2_load64(test_mem(f)->data + 3 * CLUSTER), ==, QCOW2_ENTRY_COPIED | 16384);
    test_check_bytes(blk, 0, CLUSTER, 5);
    image_close(env, blk);
}

/* Refcounts that call a table free: found before it is overwritten. */
static void coroutine_fn test_overlap(TestEnv *env)
{
    BlockBackend *blk = image_open(env, "");
    BlockNode *f = image_file(env);
    qcow2_refcount_store(test_mem(f)->data + 2 * CLUSTER, 4, 3, 0);
    g_array_unref(test_mem_take_record(f));
    write_cluster(blk, 0, 1, -EIO);
    ASSERT_RECORD(env, "read 8192+4096, write 72+8, flush");
    g_assert_cmpuint(qcow2_load64(test_mem(f)->data + 72), ==, QCOW2_INCOMPATIBLE_CORRUPT);
    write_cluster(blk, MIB, 1, -EIO);
    test_check_bytes(blk, 0, CLUSTER, 0);
    image_close(env, blk);
    g_autofree char *errors = block_graph_errors_text(env->graph);
    g_assert_nonnull(strstr(errors, "would hit the L1 table"));
}

static void register_tests(void)
{
    test_add("qcow2/refcount-widths", test_refcount_widths);
    test_add("qcow2/compressed-place", test_compressed_place);
    test_add("qcow2/entry-types", test_entry_types);
    test_add("qcow2/hostile-headers", test_hostile_headers);
    test_add("qcow2/decompress-garbage", test_decompress_garbage);
    test_add_co("qcow2/order-of-allocation", test_order_of_allocation);
    test_add_co("qcow2/order-of-freeing", test_order_of_freeing);
    test_add_co("qcow2/close-writes-tables", test_close_writes_tables);
    test_add_co("qcow2/parallel-allocation", test_parallel_allocation);
    test_add_co("qcow2/freed-under-a-reader", test_freed_under_a_reader);
    test_add_co("qcow2/failed-data-write", test_failed_data_write);
    test_add_co("qcow2/failed-flush", test_failed_flush);
    test_add_co("qcow2/overlap", test_overlap);
}

int main(int argc, char **argv)
{
    return driver_test_main(argc, argv, register_tests);
}
