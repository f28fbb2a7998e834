/*
 * test-mem and test-home: instrumented leaves in memory.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "tests/unit/block-test-driver.h"

#include <errno.h>
#include <string.h>

#include "aio/aio.h"
#include "block/graph.h"
#include "util/error.h"

TestMem *test_mem(BlockNode *node)
{
    TestMem *mem = node->opaque;
    g_assert_nonnull(mem->data);
    return mem;
}

static bool hold_matches(const TestHold *hold, BlockOp op, int64_t offset, int64_t bytes)
{
    return hold->op == op && (hold->offset < 0 || (hold->offset >= offset && hold->offset < offset + bytes));
}

static bool is_held_locked(TestMem *mem, BlockOp op, int64_t offset, int64_t bytes) BG_REQUIRES(mem->lock)
{
    for (guint i = 0; i < mem->holds->len; i++) {
        if (hold_matches(&g_array_index(mem->holds, TestHold, i), op, offset, bytes)) {
            return true;
        }
    }
    return false;
}

static void coroutine_fn mem_wait_released(TestMem *mem, BlockOp op, int64_t offset, int64_t bytes) BG_NO_TSA
{
    bg_mutex_lock(&mem->lock);
    atomic_fetch_add(&mem->waiting, 1);
    while (is_held_locked(mem, op, offset, bytes)) {
        co_queue_wait_locked(&mem->released, &mem->lock);
    }
    atomic_fetch_sub(&mem->waiting, 1);
    bg_mutex_unlock(&mem->lock);
}

void test_mem_hold(BlockNode *node, BlockOp op, int64_t offset)
{
    TestMem *mem = test_mem(node);
    TestHold hold = {op, offset};
    bg_mutex_lock(&mem->lock);
    g_array_append_val(mem->holds, hold);
    bg_mutex_unlock(&mem->lock);
}

void test_mem_release(BlockNode *node, BlockOp op, int64_t offset)
{
    TestMem *mem = test_mem(node);
    bool found = false;
    bg_mutex_lock(&mem->lock);
    for (guint i = 0; i < mem->holds->len && !found; i++) {
        TestHold *hold = &g_array_index(mem->holds, TestHold, i);
        if (hold->op == op && hold->offset == offset) {
            g_array_remove_index(mem->holds, i);
            found = true;
        }
    }
    bg_mutex_unlock(&mem->lock);
    g_assert_true(found);
    co_queue_restart_all(&mem->released);
}

unsigned test_mem_waiting(BlockNode *node)
{
    TestMem *mem = test_mem(node);
    bg_mutex_lock(&mem->lock);
    unsigned n = atomic_load(&mem->waiting);
    bg_mutex_unlock(&mem->lock);
    return n;
}

void test_mem_fail(BlockNode *node, BlockOp op, int errnum)
{
    atomic_store(&test_mem(node)->fail[op], errnum);
}

GArray *test_mem_take_record(BlockNode *node)
{
    TestMem *mem = test_mem(node);
    bg_mutex_lock(&mem->lock);
    GArray *record = mem->record;
    mem->record = g_array_new(false, false, sizeof(TestCall));
    bg_mutex_unlock(&mem->lock);
    return record;
}

char *test_mem_record_text(BlockNode *node)
{
    g_autoptr(GArray) record = test_mem_take_record(node);
    GString *text = g_string_new("");
    for (guint i = 0; i < record->len; i++) {
        const TestCall *call = &g_array_index(record, TestCall, i);
        g_string_append_printf(text, "%s%s", i ? ", " : "", block_op_name(call->op));
        if (call->op != BLOCK_OP_FLUSH) {
            g_string_append_printf(text, " %" G_GINT64_FORMAT "+%" G_GINT64_FORMAT, call->offset,
                                   call->bytes);
        }
    }
    return g_string_free(text, false);
}

static void mem_record(TestMem *mem, TestCall call)
{
    bg_mutex_lock(&mem->lock);
    if (mem->record->len < 10000) { /* the stress test has no use for all of them */
        g_array_append_val(mem->record, call);
    }
    bg_mutex_unlock(&mem->lock);
}

static void mem_check_range(TestMem *mem, TestCall call)
{
    BlockNode *node = mem->d.node;
    int64_t align = MAX(node->limits.request_alignment, 1u);
    int64_t end = (block_node_length(node) + align - 1) / align * align;
    g_assert_cmpint(call.offset, >=, 0);
    g_assert_cmpint(call.bytes, >, 0);
    g_assert_cmpint(call.offset % align, ==, 0);
    g_assert_cmpint(call.offset + call.bytes, <=, mem->capacity);
    if (!(node->growable && call.op != BLOCK_OP_READ)) {
        g_assert_cmpint(call.offset + call.bytes, <=, end);
    }
    if (call.offset + call.bytes < block_node_length(node)) {
        g_assert_cmpint(call.bytes % align, ==, 0);
    }
}

/* What a naive driver relies on: data requests keep to the limits. Returns the number of elements. */
static int mem_check_vector(TestMem *mem, int64_t bytes, const IoVector *qiov, size_t qiov_offset)
{
    const BlockLimits *limits = &mem->d.node->limits;
    g_assert_cmpuint(qiov_offset + bytes, <=, qiov->size);
    g_autofree struct iovec *iov = g_new(struct iovec, qiov->niov);
    int niov = io_vector_slice(qiov, qiov_offset, bytes, iov);
    size_t total = 0;
    for (int i = 0; i < niov; i++) {
        total += iov[i].iov_len;
        if (limits->memory_alignment > 1) {
            g_assert_cmpuint((uintptr_t)iov[i].iov_base % limits->memory_alignment, ==, 0);
            g_assert_cmpuint(iov[i].iov_len % limits->request_alignment, ==, 0);
        }
    }
    g_assert_cmpuint(total, ==, bytes);
    if (limits->max_iov) {
        g_assert_cmpint(niov, <=, limits->max_iov);
    }
    if (limits->max_transfer) {
        g_assert_cmpint(bytes, <=, limits->max_transfer);
    }
    return niov;
}

static void home_bh(void *opaque)
{
    aio_co_wake(opaque);
}

/* test-home: completions come from a bottom half in the home's thread, as from a library's callback. */
static void coroutine_fn mem_visit_home(TestMem *mem)
{
    if (mem->home) {
        g_assert_true(aio_context_current() == mem->home);
        g_assert_true(mem->d.node->aio_context == mem->home);
        aio_bh_schedule_oneshot(mem->home, home_bh, coroutine_self());
        coroutine_yield();
        g_assert_true(aio_context_current() == mem->home);
    }
}

/* Everything before the work itself: -errno where the test wants a failure. */
static int coroutine_fn mem_begin(TestMem *mem, TestCall call)
{
    if (call.op != BLOCK_OP_FLUSH && call.op != BLOCK_OP_TRUNCATE) {
        mem_check_range(mem, call);
    }
    g_assert_false((call.flags & BLOCK_REQ_FUA) && !(mem->d.node->supported_write_flags & BLOCK_REQ_FUA));
    mem_record(mem, call);
    test_io_begin(&mem->d, call.op);
    mem_wait_released(mem, call.op, call.offset, call.bytes);
    mem_visit_home(mem);
    return -atomic_load(&mem->fail[call.op]);
}

/*
 * A read of one's own bytes may come while a read-modify-write puts the same values there again, for the sake
 * of its neighbours in the block. That is no harm, and no secret to be told to TSan; writes remain visible to
 * it.
 */
#if defined(BG_TSAN)
#if defined(__clang__)
__attribute__((no_sanitize("thread"), disable_sanitizer_instrumentation))
#else
__attribute__((no_sanitize("thread")))
#endif
static void
snapshot(uint8_t *to, const uint8_t *from, size_t n)
{
    for (volatile size_t i = 0; i < n; i++) { /* volatile: must not become a call of memcpy */
        to[i] = from[i];
    }
}
#else
static void snapshot(uint8_t *to, const uint8_t *from, size_t n)
{
    memcpy(to, from, n);
}
#endif

static void copy_out(TestMem *mem, int64_t offset, int64_t bytes, const IoVector *qiov, size_t qiov_offset)
{
    g_autofree uint8_t *buf = g_malloc(bytes);
    snapshot(buf, mem->data + offset, bytes);
    io_vector_from_buf(qiov, qiov_offset, buf, bytes);
}

static int coroutine_fn mem_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                   size_t qiov_offset, BlockRequestFlags flags)
{
    TestMem *mem = test_mem(node);
    int niov = mem_check_vector(mem, bytes, qiov, qiov_offset);
    int ret = mem_begin(mem, (TestCall){BLOCK_OP_READ, offset, bytes, flags, niov});
    if (ret == 0) {
        copy_out(mem, offset, bytes, qiov, qiov_offset);
    }
    return test_io_end(&mem->d, BLOCK_OP_READ, ret);
}

static void mem_grow(TestMem *mem, int64_t end)
{
    int64_t old = atomic_load(&mem->size);
    while (old < end && !atomic_compare_exchange_weak(&mem->size, &old, end)) {
    }
}

static int coroutine_fn mem_pwritev(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                    size_t qiov_offset, BlockRequestFlags flags)
{
    TestMem *mem = test_mem(node);
    int niov = mem_check_vector(mem, bytes, qiov, qiov_offset);
    int ret = mem_begin(mem, (TestCall){BLOCK_OP_WRITE, offset, bytes, flags, niov});
    int64_t done = ret == 0 ? bytes : mem->torn_writes ? bytes / 2 : 0;
    if (done > 0) {
        io_vector_to_buf(qiov, qiov_offset, mem->data + offset, done);
        mem_grow(mem, offset + done);
    }
    return test_io_end(&mem->d, BLOCK_OP_WRITE, ret);
}

static int coroutine_fn mem_flush(BlockNode *node)
{
    TestMem *mem = test_mem(node);
    return test_io_end(&mem->d, BLOCK_OP_FLUSH, mem_begin(mem, (TestCall){BLOCK_OP_FLUSH, 0, 0, 0, 0}));
}

static int coroutine_fn mem_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    TestMem *mem = test_mem(node);
    if (node->limits.max_pdiscard) {
        g_assert_cmpint(bytes, <=, node->limits.max_pdiscard);
    }
    if (node->limits.pdiscard_alignment) {
        g_assert_cmpint(offset % node->limits.pdiscard_alignment, ==, 0);
        g_assert_cmpint(bytes % node->limits.pdiscard_alignment, ==, 0);
    }
    int ret = mem_begin(mem, (TestCall){BLOCK_OP_DISCARD, offset, bytes, 0, 0});
    if (ret == 0 && mem->erase_discarded) {
        memset(mem->data + offset, TEST_DISCARD_BYTE, bytes);
    }
    return test_io_end(&mem->d, BLOCK_OP_DISCARD, ret);
}

static int coroutine_fn mem_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                          BlockRequestFlags flags)
{
    TestMem *mem = test_mem(node);
    if (mem->no_zeroes) {
        return -ENOTSUP;
    }
    g_assert_cmpint(flags & ~node->supported_zero_flags & ~BLOCK_REQ_NO_FALLBACK, ==, 0);
    if (node->limits.max_pwrite_zeroes) {
        g_assert_cmpint(bytes, <=, node->limits.max_pwrite_zeroes);
    }
    if (node->limits.pwrite_zeroes_alignment) {
        g_assert_cmpint(offset % node->limits.pwrite_zeroes_alignment, ==, 0);
        g_assert_cmpint(bytes % node->limits.pwrite_zeroes_alignment, ==, 0);
    }
    int ret = mem_begin(mem, (TestCall){BLOCK_OP_WRITE_ZEROES, offset, bytes, flags, 0});
    if (ret == 0 && !(flags & BLOCK_REQ_ALLOCATE)) {
        memset(mem->data + offset, 0, bytes);
        mem_grow(mem, offset + bytes);
    }
    return test_io_end(&mem->d, BLOCK_OP_WRITE_ZEROES, ret);
}

static int coroutine_fn mem_truncate(BlockNode *node, int64_t length, GError **errp)
{
    TestMem *mem = test_mem(node);
    int ret = mem_begin(mem, (TestCall){BLOCK_OP_TRUNCATE, length, 0, 0, 0});
    if (ret == 0 && length > mem->capacity) {
        ret = -ENOSPC;
    }
    if (ret < 0) {
        bg_error_set_errno(errp, -ret, "node '%s': resizing", node->name);
        return test_io_end(&mem->d, BLOCK_OP_TRUNCATE, ret);
    }
    memset(mem->data + length, 0, MAX(atomic_load(&mem->size) - length, 0));
    atomic_store(&mem->size, length);
    return test_io_end(&mem->d, BLOCK_OP_TRUNCATE, 0);
}

static int coroutine_fn mem_copy_range(BlockNode *src, int64_t src_offset, BlockNode *dst, int64_t dst_offset,
                                       int64_t bytes)
{
    TestMem *from = test_mem(src), *to = test_mem(dst);
    g_assert_true(src->driver == dst->driver);
    g_assert_cmpint(atomic_load(&src->in_flight), >, 0);
    if (from->no_copy || to->no_copy) {
        return -ENOTSUP;
    }
    mem_check_range(from, (TestCall){BLOCK_OP_READ, src_offset, bytes, 0, 0});
    int ret = mem_begin(to, (TestCall){BLOCK_OP_COPY_RANGE, dst_offset, bytes, 0, 0});
    if (ret == 0) {
        memcpy(to->data + dst_offset, from->data + src_offset, bytes);
    }
    return test_io_end(&to->d, BLOCK_OP_COPY_RANGE, ret);
}

static int64_t coroutine_fn mem_get_allocated(BlockNode *node)
{
    return block_node_length(node);
}

static int mem_durable(BlockNode *node)
{
    return 1;
}

static bool mem_read_limits(BlockNode *node, BlockOptions *opts, GError **errp)
{
    int64_t align = 0, memory_align = 0, max_iov = 0, discard_align = 0, zeroes_align = 0;
    BlockLimits *l = &node->limits;
    if (!block_options_get_size(opts, "align", &align, errp) ||
        !block_options_get_size(opts, "memory-align", &memory_align, errp) ||
        !block_options_get_size(opts, "max-transfer", &l->max_transfer, errp) ||
        !block_options_get_size(opts, "max-iov", &max_iov, errp) ||
        !block_options_get_size(opts, "max-discard", &l->max_pdiscard, errp) ||
        !block_options_get_size(opts, "discard-align", &discard_align, errp) ||
        !block_options_get_size(opts, "max-zeroes", &l->max_pwrite_zeroes, errp) ||
        !block_options_get_size(opts, "zeroes-align", &zeroes_align, errp)) {
        return false;
    }
    l->request_alignment = align;
    l->memory_alignment = memory_align;
    l->max_iov = max_iov;
    l->pdiscard_alignment = discard_align;
    l->pwrite_zeroes_alignment = zeroes_align;
    return true;
}

static bool mem_read_features(TestMem *mem, BlockOptions *opts, GError **errp)
{
    BlockNode *node = mem->d.node;
    bool fua = false, zero_flags = true, zeroes = true, copy = true;
    if (!block_options_get_bool(opts, "fua", &fua, errp) ||
        !block_options_get_bool(opts, "zero-flags", &zero_flags, errp) ||
        !block_options_get_bool(opts, "zeroes", &zeroes, errp) ||
        !block_options_get_bool(opts, "copy", &copy, errp) ||
        !block_options_get_bool(opts, "growable", &node->growable, errp) ||
        !block_options_get_bool(opts, "erase-discarded", &mem->erase_discarded, errp) ||
        !block_options_get_bool(opts, "torn-writes", &mem->torn_writes, errp)) {
        return false;
    }
    mem->no_zeroes = !zeroes;
    mem->no_copy = !copy;
    node->supported_write_flags = fua ? BLOCK_REQ_FUA : 0;
    node->supported_zero_flags =
        zero_flags ? BLOCK_REQ_MAY_UNMAP | BLOCK_REQ_ALLOCATE | node->supported_write_flags : 0;
    return true;
}

static int coroutine_fn mem_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    TestMem *mem = node->opaque;
    int64_t size = 1024 * 1024, capacity = 0;
    if (!test_driver_open(node, opts, errp) || !block_options_get_size(opts, "size", &size, errp) ||
        !block_options_get_size(opts, "capacity", &capacity, errp) || !mem_read_limits(node, opts, errp) ||
        !mem_read_features(mem, opts, errp)) {
        return -EINVAL;
    }
    /* Room for the tail of the last aligned block. */
    mem->capacity = (MAX(size, capacity) + 65535) & ~INT64_C(65535);
    mem->data = g_malloc0(mem->capacity);
    bg_mutex_init(&mem->lock);
    co_queue_init(&mem->released);
    mem->holds = g_array_new(false, false, sizeof(TestHold));
    mem->record = g_array_new(false, false, sizeof(TestCall));
    atomic_store(&mem->size, size);
    atomic_store(&node->length, size);
    return 0;
}

static void coroutine_fn mem_close(BlockNode *node)
{
    TestMem *mem = test_mem(node);
    test_driver_close(&mem->d);
    bg_mutex_lock(&mem->lock);
    g_assert_cmpuint(mem->holds->len, ==, 0);
    g_array_unref(mem->holds);
    g_array_unref(mem->record);
    bg_mutex_unlock(&mem->lock);
    co_queue_destroy(&mem->released);
    bg_mutex_destroy(&mem->lock);
    g_free(mem->data);
}

static int coroutine_fn home_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    int ret = mem_open(node, opts, errp);
    if (ret == 0) {
        test_mem(node)->home = block_graph_main_context(node->graph);
        node->aio_context = test_mem(node)->home;
    }
    return ret;
}

static void coroutine_fn home_detach(BlockNode *node)
{
    TestMem *mem = test_mem(node);
    g_assert_true(aio_context_current() == mem->home);
    g_assert_cmpuint(atomic_load(&mem->d.active), ==, 0);
    mem->home = NULL;
    atomic_fetch_add(&mem->detaches, 1);
}

static void coroutine_fn home_attach(BlockNode *node, AioContext *ctx)
{
    TestMem *mem = test_mem(node);
    g_assert_true(aio_context_current() == ctx);
    g_assert_null(mem->home);
    g_assert_cmpuint(atomic_load(&mem->d.active), ==, 0);
    mem->home = ctx;
    atomic_fetch_add(&mem->attaches, 1);
}

#define TEST_MEM_CALLBACKS                                                                                   \
    .instance_size = sizeof(TestMem), .co_close = mem_close, .co_preadv = mem_preadv,                        \
    .co_pwritev = mem_pwritev, .co_flush = mem_flush, .co_pdiscard = mem_pdiscard,                           \
    .co_pwrite_zeroes = mem_pwrite_zeroes, .co_truncate = mem_truncate, .co_copy_range = mem_copy_range,     \
    .co_get_allocated = mem_get_allocated, .drain_begin = test_driver_drain_begin,                           \
    .drain_end = test_driver_drain_end, .check_perm = test_driver_check_perm,                                \
    .set_perm = test_driver_set_perm, .abort_perm_update = test_driver_abort_perm, .durable = mem_durable

const BlockDriver test_mem_driver = {
    .name = "test-mem",
    .co_open = mem_open,
    TEST_MEM_CALLBACKS,
};

const BlockDriver test_home_driver = {
    .name = "test-home",
    .co_open = home_open,
    .co_detach_aio_context = home_detach,
    .co_attach_aio_context = home_attach,
    TEST_MEM_CALLBACKS,
};
