/*
 * Tests of reads and writes: alignment, serialising, splitting, the in-flight count.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <string.h>

#include "tests/unit/block-test-util.h"

/* A backend on a test-mem leaf, and what its content must be. */
typedef struct Disk {
    BlockNode *leaf;
    BlockBackend *blk;
    uint8_t *mirror;
    int64_t size;
} Disk;

static Disk coroutine_fn disk_open(TestEnv *env, int64_t size, const char *options)
{
    Disk d = {.size = size, .mirror = g_malloc(size)};
    d.leaf = test_open(env, "{'driver':'test-mem','node-name':'leaf','size':%" G_GINT64_FORMAT "%s%s}", size,
                       *options ? "," : "", options);
    d.blk = test_backend(env, "disk", d.leaf);
    test_fill(d.mirror, size, 1);
    memcpy(test_mem(d.leaf)->data, d.mirror, size);
    return d;
}

static void disk_check(Disk *d, const char *what)
{
    test_assert_mem(what, test_mem(d->leaf)->data, d->mirror, d->size);
}

static void coroutine_fn disk_close(TestEnv *env, Disk *d)
{
    block_backend_co_free(d->blk);
    test_delete(env, d->leaf);
    g_free(d->mirror);
}

/* An IoVector of `bytes` in elements of at most `piece` bytes. */
static IoVector vector_new(uint8_t *buf, int64_t bytes, int64_t piece)
{
    int n = (bytes + piece - 1) / piece;
    struct iovec *iov = g_new(struct iovec, MAX(n, 1));
    for (int i = 0; i < n; i++) {
        iov[i] = (struct iovec){buf + i * piece, MIN(piece, bytes - i * piece)};
    }
    return (IoVector){iov, n, bytes};
}

static void coroutine_fn disk_write(Disk *d, int64_t offset, int64_t bytes, int64_t piece, uint32_t seed)
{
    g_autofree uint8_t *buf = g_malloc(bytes);
    test_fill(buf, bytes, seed);
    IoVector v = vector_new(buf, bytes, piece);
    g_assert_cmpint(block_backend_co_pwritev(d->blk, offset, bytes, &v, 0), ==, 0);
    memcpy(d->mirror + offset, buf, bytes);
    g_free((void *)v.iov);
}

static void coroutine_fn disk_read(Disk *d, int64_t offset, int64_t bytes, int64_t piece)
{
    g_autofree uint8_t *buf = g_malloc(bytes);
    memset(buf, 0xee, bytes);
    IoVector v = vector_new(buf, bytes, piece);
    g_assert_cmpint(block_backend_co_preadv(d->blk, offset, bytes, &v, 0), ==, 0);
    test_assert_mem("read", buf, d->mirror + offset, bytes);
    g_free((void *)v.iov);
}

/* ---- io/alignment */

#define ALIGN_SIZE (64 * 1024 + 700)

static void coroutine_fn alignment_table(Disk *d)
{
    static const struct {
        int64_t offset, bytes;
    } cases[] = {
        {0, 4096},    {0, 512},      {512, 1024},     {100, 412},          {0, 100},
        {100, 100},   {511, 2},      {4095, 2},       {1, 8191},           {4096, 5000},
        {4000, 4192}, {3, 20000},    {65536, 700},    {65536, 1},          {66235, 1},
        {66000, 236}, {60000, 6236}, {0, ALIGN_SIZE}, {1, ALIGN_SIZE - 1}, {65535, 2},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *what = g_strdup_printf("case %u", i);
        disk_write(d, cases[i].offset, cases[i].bytes, cases[i].bytes, 100 + i);
        disk_check(d, what);
        disk_read(d, cases[i].offset, cases[i].bytes, cases[i].bytes);
        disk_write(d, cases[i].offset, cases[i].bytes, 333, 200 + i);
        disk_check(d, what);
        disk_read(d, cases[i].offset, cases[i].bytes, 77);
    }
}

static void coroutine_fn alignment_random(Disk *d)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(7);
    for (int i = 0; i < 200; i++) {
        int64_t offset = g_rand_int_range(rand, 0, ALIGN_SIZE);
        int64_t bytes = g_rand_int_range(rand, 1, MIN(ALIGN_SIZE - offset, 9000) + 1);
        int64_t piece = g_rand_int_range(rand, 1, 5000);
        if (g_rand_boolean(rand)) {
            disk_write(d, offset, bytes, piece, i);
        } else {
            disk_read(d, offset, bytes, piece);
        }
    }
    disk_check(d, "random");
}

static void coroutine_fn test_alignment(TestEnv *env)
{
    static const char *const options[] = {
        "'align':1",
        "'align':512",
        "'align':4096",
        "'align':512,'memory-align':512",
        "'align':4096,'memory-align':4096",
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(options); i++) {
        Disk d = disk_open(env, ALIGN_SIZE, options[i]);
        alignment_table(&d);
        alignment_random(&d);
        disk_close(env, &d);
    }
}

/* A filter without alignment above an aligned leaf, and a read that covers the tail of the last block. */
static void coroutine_fn test_alignment_stack(TestEnv *env)
{
    Disk d = disk_open(env, ALIGN_SIZE, "'align':4096");
    BlockNode *filter = test_open(env, "{'driver':'test-filter','node-name':'f','file':'leaf'}");
    block_backend_co_free(d.blk);
    d.blk = test_backend(env, "disk", filter);
    alignment_table(&d);
    alignment_random(&d);
    block_backend_co_free(d.blk);
    test_delete(env, filter);
    d.blk = test_backend(env, "disk", d.leaf);
    disk_close(env, &d);
}

/* What is aligned costs no read; what is not reads the blocks at its ends and no more. */
static void coroutine_fn test_alignment_cost(TestEnv *env)
{
    Disk d = disk_open(env, 65536, "'align':4096");
    disk_write(&d, 8192, 16384, 16384, 1);
    g_assert_cmpuint(test_calls(d.leaf, BLOCK_OP_READ), ==, 0);
    g_assert_cmpuint(test_calls(d.leaf, BLOCK_OP_WRITE), ==, 1);
    disk_write(&d, 8192, 16384 + 100, 16384, 2);
    g_assert_cmpuint(test_calls(d.leaf, BLOCK_OP_READ), ==, 1);
    disk_write(&d, 8292, 16384 - 100, 16384, 3);
    g_assert_cmpuint(test_calls(d.leaf, BLOCK_OP_READ), ==, 2);
    g_autoptr(GArray) record = test_mem_take_record(d.leaf);
    for (guint i = 0; i < record->len; i++) {
        const TestCall *call = &g_array_index(record, TestCall, i);
        if (call->op == BLOCK_OP_READ) {
            g_assert_cmpint(call->bytes, ==, 4096);
        }
    }
    disk_check(&d, "cost");
    disk_close(env, &d);
}

static void coroutine_fn test_alignment_growable(TestEnv *env)
{
    Disk d = disk_open(env, 5000, "'align':512,'growable':true,'capacity':65536");
    g_autofree uint8_t *want = g_malloc0(30000);
    memcpy(want, d.mirror, 5000);
    g_autofree uint8_t *got = g_malloc(30000);
    test_fill(want + 20000, 333, 5);
    g_assert_cmpint(block_backend_co_pwrite(d.blk, 20000, 333, want + 20000, 0), ==, 0);
    g_assert_cmpint(block_backend_length(d.blk), ==, 20333);
    test_fill(want + 20333, 1000, 6);
    g_assert_cmpint(block_backend_co_pwrite(d.blk, 20333, 1000, want + 20333, 0), ==, 0);
    g_assert_cmpint(block_backend_length(d.blk), ==, 21333);
    g_assert_cmpint(block_backend_co_pread(d.blk, 0, 21333, got), ==, 0);
    test_assert_mem("grown", got, want, 21333);
    disk_close(env, &d);
}

/* ---- io/serialise */

#define SLICE        37
#define SLICES       28 /* they fill two blocks of 512 and a bit */
#define SLICE_WRITES 60

typedef struct Slicer {
    Disk *d;
    unsigned first; /* owns slices first, first + 4, ... */
    bool verify;    /* reads back after each write */
} Slicer;

static int coroutine_fn slicer_run(void *opaque)
{
    Slicer *s = opaque;
    uint8_t buf[SLICE], back[SLICE];
    for (unsigned round = 0; round < SLICE_WRITES; round++) {
        for (unsigned i = s->first; i < SLICES; i += 4) {
            memset(buf, round * 4 + s->first, SLICE);
            g_assert_cmpint(block_backend_co_pwrite(s->d->blk, i * SLICE, SLICE, buf, 0), ==, 0);
            if (s->verify) {
                g_assert_cmpint(block_backend_co_pread(s->d->blk, i * SLICE, SLICE, back), ==, 0);
                test_assert_mem("own slice", back, buf, SLICE);
            }
        }
    }
    return 0;
}

static void coroutine_fn test_serialise_threads(TestEnv *env)
{
    Disk d = disk_open(env, 4096, "'align':512,'delay-ns':1");
    Slicer slicers[4];
    TestTask *tasks[4];
    for (unsigned t = 0; t < 4; t++) {
        slicers[t] = (Slicer){&d, t, t % 2};
        tasks[t] = test_spawn(test_iothread(env, t), slicer_run, &slicers[t]);
    }
    for (unsigned t = 0; t < 4; t++) {
        g_assert_cmpint(test_join(tasks[t]), ==, 0);
    }
    for (unsigned i = 0; i < SLICES; i++) {
        memset(d.mirror + i * SLICE, (SLICE_WRITES - 1) * 4 + i % 4, SLICE);
    }
    disk_check(&d, "slices");
    disk_close(env, &d);
}

static void coroutine_fn test_serialise_order(TestEnv *env)
{
    Disk d = disk_open(env, 8192, "'align':512");
    /* The write of a read-modify-write is held: what overlaps it waits, what does not goes on. */
    test_mem_hold(d.leaf, BLOCK_OP_WRITE, 0);
    TestRequest *rmw = test_request_start(env->ctx, d.blk, BLOCK_OP_WRITE, 10, 10, 0xa1);
    TestRequest *other = test_request_start(test_iothread(env, 0), d.blk, BLOCK_OP_WRITE, 30, 10, 0xb2);
    TestRequest *whole = test_request_start(test_iothread(env, 1), d.blk, BLOCK_OP_WRITE, 512, 512, 0xc3);
    TestRequest *far = test_request_start(env->ctx, d.blk, BLOCK_OP_WRITE, 1030, 10, 0xd4);
    g_assert_cmpint(test_request_finish(whole), ==, 0);
    g_assert_cmpint(test_request_finish(far), ==, 0);
    test_settle();
    g_assert_false(test_request_done(rmw));
    g_assert_false(test_request_done(other));
    g_assert_cmpuint(test_mem_waiting(d.leaf), ==, 1);
    test_mem_release(d.leaf, BLOCK_OP_WRITE, 0);
    g_assert_cmpint(test_request_finish(rmw), ==, 0);
    g_assert_cmpint(test_request_finish(other), ==, 0);
    memset(d.mirror + 10, 0xa1, 10);
    memset(d.mirror + 30, 0xb2, 10);
    memset(d.mirror + 512, 0xc3, 512);
    memset(d.mirror + 1030, 0xd4, 10);
    disk_check(&d, "order");
    disk_close(env, &d);
}

/* An aligned write over a read-modify-write in flight comes after it; plain overlapping writes do not wait.
 */
static void coroutine_fn test_serialise_plain(TestEnv *env)
{
    Disk d = disk_open(env, 8192, "'align':512");
    test_mem_hold(d.leaf, BLOCK_OP_WRITE, 0);
    TestRequest *rmw = test_request_start(env->ctx, d.blk, BLOCK_OP_WRITE, 10, 10, 0xa1);
    TestRequest *over = test_request_start(test_iothread(env, 0), d.blk, BLOCK_OP_WRITE, 0, 1024, 0xb2);
    /* In the same thread as the write: the two do not wait for each other, and share the driver's memory. */
    TestRequest *zero = test_request_start(test_iothread(env, 0), d.blk, BLOCK_OP_WRITE_ZEROES, 0, 512, 0);
    test_settle();
    g_assert_cmpuint(test_calls(d.leaf, BLOCK_OP_WRITE), ==, 1);
    g_assert_cmpuint(test_calls(d.leaf, BLOCK_OP_WRITE_ZEROES), ==, 0);
    test_mem_release(d.leaf, BLOCK_OP_WRITE, 0);
    g_assert_cmpint(test_request_finish(rmw), ==, 0);
    g_assert_cmpint(test_request_finish(over), ==, 0);
    g_assert_cmpint(test_request_finish(zero), ==, 0);

    test_mem_hold(d.leaf, BLOCK_OP_WRITE, 0);
    TestRequest *one = test_request_start(env->ctx, d.blk, BLOCK_OP_WRITE, 0, 512, 1);
    TestRequest *two = test_request_start(env->ctx, d.blk, BLOCK_OP_WRITE, 0, 1024, 2);
    g_assert_cmpuint(test_mem_waiting(d.leaf), ==, 2);
    test_mem_release(d.leaf, BLOCK_OP_WRITE, 0);
    g_assert_cmpint(test_request_finish(one), ==, 0);
    g_assert_cmpint(test_request_finish(two), ==, 0);
    disk_close(env, &d);
}

/* ---- io/split */

/* The calls of `op` since the last look: all within max, and together exactly [offset, offset + bytes). */
static void check_cover(Disk *d, BlockOp op, int64_t offset, int64_t bytes, int64_t max)
{
    g_autoptr(GArray) record = test_mem_take_record(d->leaf);
    g_autofree uint8_t *seen = g_malloc0(d->size);
    for (guint i = 0; i < record->len; i++) {
        const TestCall *call = &g_array_index(record, TestCall, i);
        if (call->op != op) {
            continue;
        }
        g_assert_cmpint(call->bytes, <=, max);
        for (int64_t b = call->offset; b < call->offset + call->bytes; b++) {
            g_assert_cmpuint(seen[b]++, ==, 0);
        }
    }
    for (int64_t b = 0; b < d->size; b++) {
        g_assert_cmpuint(seen[b], ==, b >= offset && b < offset + bytes);
    }
}

static void coroutine_fn test_split_transfer(TestEnv *env)
{
    Disk d = disk_open(env, 128 * 1024, "'align':512,'max-transfer':4096");
    disk_write(&d, 0, 65536, 65536, 1);
    check_cover(&d, BLOCK_OP_WRITE, 0, 65536, 4096);
    disk_read(&d, 512, 65536, 65536);
    check_cover(&d, BLOCK_OP_READ, 512, 65536, 4096);
    disk_write(&d, 100, 50000, 999, 2);
    disk_read(&d, 7, 60000, 1234);
    disk_check(&d, "max-transfer");
    disk_close(env, &d);
}

static void coroutine_fn test_split_iov(TestEnv *env)
{
    static const char *const options[] = {
        "'max-iov':4",
        "'align':512,'max-iov':4",
        "'align':512,'max-iov':1",
        "'align':4096,'max-iov':2,'max-transfer':8192",
        "'align':512,'memory-align':512,'max-iov':3",
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(options); i++) {
        Disk d = disk_open(env, 128 * 1024, options[i]);
        disk_write(&d, 0, 65536, 100, 1);
        disk_write(&d, 4096, 16384, 512, 2);
        disk_write(&d, 5, 3000, 1, 3);
        disk_read(&d, 0, 65536, 100);
        disk_read(&d, 4096, 16384, 4096);
        disk_read(&d, 5, 3000, 1);
        disk_check(&d, options[i]);
        disk_close(env, &d);
    }
}

static void coroutine_fn test_split_discard(TestEnv *env)
{
    Disk d = disk_open(env, 128 * 1024, "'erase-discarded':true,'max-discard':8192,'discard-align':4096");
    g_assert_cmpint(block_backend_co_pdiscard(d.blk, 100, 40000), ==, 0);
    check_cover(&d, BLOCK_OP_DISCARD, 4096, 32768, 8192);
    memset(d.mirror + 4096, TEST_DISCARD_BYTE, 32768);
    disk_check(&d, "the ends of an unaligned discard are kept");
    g_assert_cmpint(block_backend_co_pdiscard(d.blk, 100, 3000), ==, 0);
    g_assert_cmpint(block_backend_co_pdiscard(d.blk, 4000, 4000), ==, 0);
    g_assert_cmpuint(test_calls(d.leaf, BLOCK_OP_DISCARD), ==, 4);
    disk_check(&d, "less than one unit");
    disk_close(env, &d);

    /* No discard alignment: the request alignment counts. */
    d = disk_open(env, 128 * 1024, "'erase-discarded':true,'align':512");
    g_assert_cmpint(block_backend_co_pdiscard(d.blk, 500, 2000), ==, 0);
    memset(d.mirror + 512, TEST_DISCARD_BYTE, 1536);
    disk_check(&d, "request alignment");
    disk_close(env, &d);
}

static void coroutine_fn test_split_zeroes(TestEnv *env)
{
    Disk d = disk_open(env, 128 * 1024, "'max-zeroes':8192,'zeroes-align':4096");
    g_assert_cmpint(block_backend_co_pwrite_zeroes(d.blk, 100, 40000, 0), ==, 0);
    check_cover(&d, BLOCK_OP_WRITE_ZEROES, 4096, 32768, 8192);
    memset(d.mirror + 100, 0, 40000);
    disk_check(&d, "zeroes");
    g_assert_cmpint(block_backend_co_pwrite_zeroes(d.blk, 50000, 100, 0), ==, 0);
    memset(d.mirror + 50000, 0, 100);
    disk_check(&d, "zeroes inside a unit");
    disk_close(env, &d);
}

/* ---- io/in-flight: a driver whose request leaves work for a bottom half of another thread */

typedef struct Tail {
    BlockNode *node;
    AioContext *ctx;
    _Atomic bool go, ran;
} Tail;

static Tail tail;

static void tail_bh(void *opaque)
{
    if (!atomic_load(&tail.go)) {
        aio_bh_schedule_oneshot(tail.ctx, tail_bh, NULL);
        return;
    }
    atomic_store(&tail.ran, true);
    block_node_dec_in_flight(tail.node);
}

static int coroutine_fn tail_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    atomic_store(&node->length, 4096);
    return 0;
}

static int coroutine_fn tail_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                    size_t qiov_offset, BlockRequestFlags flags)
{
    block_node_inc_in_flight(node);
    aio_bh_schedule_oneshot(tail.ctx, tail_bh, NULL);
    io_vector_memset(qiov, qiov_offset, 0, bytes);
    return 0;
}

static const BlockDriver tail_driver = {
    .name = "test-tail",
    .instance_size = 1,
    .co_open = tail_open,
    .co_preadv = tail_preadv,
};

static int coroutine_fn drain_task(void *opaque)
{
    BlockDrain *section = block_drain_co_begin(opaque);
    g_assert_true(atomic_load(&tail.ran));
    block_drain_end(section);
    return 0;
}

static void coroutine_fn test_in_flight_bh(TestEnv *env)
{
    BlockNode *node = test_open(env, "{'driver':'test-tail','node-name':'n'}");
    BlockBackend *blk = test_backend(env, "b", node);
    uint8_t buf[512];
    tail = (Tail){.node = node, .ctx = test_iothread(env, 0)};
    g_assert_cmpint(block_backend_co_pread(blk, 0, sizeof buf, buf), ==, 0);
    g_assert_cmpint(atomic_load(&node->in_flight), ==, 1);
    TestTask *drainer = test_spawn(env->ctx, drain_task, node);
    test_settle();
    g_assert_false(test_task_done(drainer));
    atomic_store(&tail.go, true);
    test_join(drainer);
    g_assert_cmpint(atomic_load(&node->in_flight), ==, 0);
    block_backend_co_free(blk);
    test_delete(env, node);
}

static void coroutine_fn test_in_flight_count(TestEnv *env)
{
    Disk d = disk_open(env, 65536, "'align':512");
    BlockNode *filter = test_open(env, "{'driver':'test-filter','node-name':'f','file':'leaf'}");
    BlockBackend *top = test_backend(env, "top", filter);
    TestRequest *reqs[8];
    test_mem_hold(d.leaf, BLOCK_OP_READ, -1);
    for (unsigned i = 0; i < 8; i++) {
        AioContext *ctx = i % 2 ? test_iothread(env, i % 4) : env->ctx;
        reqs[i] = test_request_start(ctx, i < 4 ? top : d.blk, BLOCK_OP_READ, i * 512, 512, 0);
    }
    test_wait(test_mem_waiting(d.leaf) == 8);
    g_assert_cmpint(atomic_load(&d.leaf->in_flight), ==, 8);
    g_assert_cmpint(atomic_load(&filter->in_flight), ==, 4);
    test_mem_release(d.leaf, BLOCK_OP_READ, -1);
    for (unsigned i = 0; i < 8; i++) {
        g_assert_cmpint(test_request_finish(reqs[i]), ==, 0);
    }
    g_assert_cmpint(atomic_load(&d.leaf->in_flight), ==, 0);
    g_assert_cmpint(atomic_load(&filter->in_flight), ==, 0);
    block_backend_co_free(top);
    test_delete(env, filter);
    disk_close(env, &d);
}

static void register_tests(void)
{
    block_driver_register_for_test(&tail_driver);
    test_add_co("io/alignment/single", test_alignment);
    test_add_co("io/alignment/stack", test_alignment_stack);
    test_add_co("io/alignment/cost", test_alignment_cost);
    test_add_co("io/alignment/growable", test_alignment_growable);
    test_add_co("io/serialise/threads", test_serialise_threads);
    test_add_co("io/serialise/order", test_serialise_order);
    test_add_co("io/serialise/plain", test_serialise_plain);
    test_add_co("io/split/max-transfer", test_split_transfer);
    test_add_co("io/split/max-iov", test_split_iov);
    test_add_co("io/split/discard", test_split_discard);
    test_add_co("io/split/write-zeroes", test_split_zeroes);
    test_add_co("io/in-flight/bottom-half", test_in_flight_bh);
    test_add_co("io/in-flight/count", test_in_flight_count);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv, register_tests);
}
