/*
 * What the block drivers defined in the tests share, test-filter and test-format.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "tests/unit/block-test-driver.h"

#include <errno.h>

#include "aio/aio.h"
#include "util/error.h"

TestDriver *test_driver(BlockNode *node)
{
    return node->opaque;
}

unsigned test_calls(BlockNode *node, BlockOp op)
{
    return atomic_load(&test_driver(node)->calls[op]);
}

/* ---- Parts that all drivers share */

void coroutine_fn test_io_begin(TestDriver *d, BlockOp op)
{
    atomic_fetch_add(&d->active, 1);
    atomic_fetch_add(&d->active_data, op != BLOCK_OP_FLUSH);
    atomic_fetch_add(&d->calls[op], 1);
    g_assert_cmpint(atomic_load(&d->node->in_flight), >, 0);
    if (d->delay_ns == 1) {
        aio_co_schedule(aio_context_current(), coroutine_self());
        coroutine_yield();
    } else if (d->delay_ns) {
        aio_co_sleep_ns(d->delay_ns);
    }
}

int test_io_end(TestDriver *d, BlockOp op, int ret)
{
    atomic_fetch_sub(&d->active_data, op != BLOCK_OP_FLUSH);
    atomic_fetch_sub(&d->active, 1);
    return ret;
}

void test_driver_drain_begin(BlockNode *node)
{
    TestDriver *d = test_driver(node);
    bg_assert_main_thread();
    atomic_fetch_add(&d->drain_begins, 1);
    g_assert_cmpuint(atomic_load(&d->drain_begins), ==, atomic_load(&d->drain_ends) + 1);
    if (d->on_drain_begin) {
        d->on_drain_begin(node, d->hook_opaque);
    }
}

void test_driver_drain_end(BlockNode *node)
{
    TestDriver *d = test_driver(node);
    bg_assert_main_thread();
    atomic_fetch_add(&d->drain_ends, 1);
    g_assert_cmpuint(atomic_load(&d->drain_begins), ==, atomic_load(&d->drain_ends));
    if (d->on_drain_end) {
        d->on_drain_end(node, d->hook_opaque);
    }
}

int test_driver_check_perm(BlockNode *node, BlockPerm perm, BlockPerm shared, GError **errp)
{
    TestDriver *d = test_driver(node);
    int err = atomic_load(&d->fail_check);
    if (err) {
        return bg_error_set(errp, err, "node '%s': held by another test", node->name);
    }
    atomic_fetch_add(&d->checks, 1);
    return 0;
}

void test_driver_set_perm(BlockNode *node, BlockPerm perm, BlockPerm shared)
{
    atomic_fetch_add(&test_driver(node)->sets, 1);
}

void test_driver_abort_perm(BlockNode *node)
{
    atomic_fetch_add(&test_driver(node)->aborts, 1);
}

void test_driver_close(TestDriver *d)
{
    g_assert_cmpuint(atomic_load(&d->active), ==, 0);
    g_assert_cmpint(atomic_load(&d->node->in_flight), ==, 0);
    if (d->on_close) {
        d->on_close(d->node, d->hook_opaque);
    }
}

bool test_driver_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    TestDriver *d = test_driver(node);
    d->node = node;
    return block_options_get_uint64(opts, "delay-ns", 0, G_MAXINT64, &d->delay_ns, errp);
}

/* ---- test-filter: only reads, writes and flushes of its own; the core passes on the rest */

static int coroutine_fn filter_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    if (!test_driver_open(node, opts, errp)) {
        return -EINVAL;
    }
    int ret = block_node_co_open_child(node, opts, "file", BLOCK_ROLE_DATA | BLOCK_ROLE_FILTERED, false,
                                       &node->file, errp);
    if (ret == 0) {
        atomic_store(&node->length, block_node_length(node->file->node));
    }
    return ret;
}

static void coroutine_fn simple_close(BlockNode *node)
{
    test_driver_close(test_driver(node));
}

static int coroutine_fn filter_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                      size_t qiov_offset, BlockRequestFlags flags)
{
    test_io_begin(test_driver(node), BLOCK_OP_READ);
    int ret = block_child_co_preadv(node->file, offset, bytes, qiov, qiov_offset, flags);
    return test_io_end(test_driver(node), BLOCK_OP_READ, ret);
}

static int coroutine_fn filter_pwritev(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                       size_t qiov_offset, BlockRequestFlags flags)
{
    test_io_begin(test_driver(node), BLOCK_OP_WRITE);
    int ret = block_child_co_pwritev(node->file, offset, bytes, qiov, qiov_offset, flags);
    return test_io_end(test_driver(node), BLOCK_OP_WRITE, ret);
}

static int coroutine_fn filter_flush(BlockNode *node)
{
    test_io_begin(test_driver(node), BLOCK_OP_FLUSH);
    return test_io_end(test_driver(node), BLOCK_OP_FLUSH, 0);
}

static const BlockDriver filter_driver = {
    .name = "test-filter",
    .instance_size = sizeof(TestDriver),
    .is_filter = true,
    .co_open = filter_open,
    .co_close = simple_close,
    .co_preadv = filter_preadv,
    .co_pwritev = filter_pwritev,
    .co_flush = filter_flush,
    .drain_begin = test_driver_drain_begin,
    .drain_end = test_driver_drain_end,
    .check_perm = test_driver_check_perm,
    .set_perm = test_driver_set_perm,
    .abort_perm_update = test_driver_abort_perm,
};

/* ---- test-format: reads go to its first child; it has no data of its own */

static int coroutine_fn format_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    static const char *const keys[] = {"a", "b", "c"};
    BlockChild *child = NULL;
    if (!test_driver_open(node, opts, errp)) {
        return -EINVAL;
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(keys); i++) {
        int ret = block_node_co_open_child(node, opts, keys[i], BLOCK_ROLE_DATA, true, &child, errp);
        if (ret < 0) {
            return ret;
        }
    }
    atomic_store(&node->length, 1024 * 1024);
    return 0;
}

static BlockChild *format_first(BlockNode *node)
{
    return node->children->len ? g_ptr_array_index(node->children, 0) : NULL;
}

static int coroutine_fn format_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                      size_t qiov_offset, BlockRequestFlags flags)
{
    BlockChild *child = format_first(node);
    int ret = -EIO;
    test_io_begin(test_driver(node), BLOCK_OP_READ);
    if (child) {
        ret = block_child_co_preadv(child, offset, bytes, qiov, qiov_offset, flags);
    }
    return test_io_end(test_driver(node), BLOCK_OP_READ, ret);
}

static int coroutine_fn format_pwritev(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                       size_t qiov_offset, BlockRequestFlags flags)
{
    BlockChild *child = format_first(node);
    int ret = -EIO;
    test_io_begin(test_driver(node), BLOCK_OP_WRITE);
    if (child) {
        ret = block_child_co_pwritev(child, offset, bytes, qiov, qiov_offset, flags);
    }
    return test_io_end(test_driver(node), BLOCK_OP_WRITE, ret);
}

static const BlockDriver format_driver = {
    .name = "test-format",
    .instance_size = sizeof(TestDriver),
    .co_open = format_open,
    .co_close = simple_close,
    .co_preadv = format_preadv,
    .co_pwritev = format_pwritev,
    .drain_begin = test_driver_drain_begin,
    .drain_end = test_driver_drain_end,
};

void test_drivers_register(void)
{
    block_driver_register_for_test(&test_mem_driver);
    block_driver_register_for_test(&test_home_driver);
    block_driver_register_for_test(&filter_driver);
    block_driver_register_for_test(&format_driver);
}

int coroutine_fn test_filter_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    int ret = block_node_co_open_child(node, opts, "file", BLOCK_ROLE_DATA | BLOCK_ROLE_FILTERED, false, NULL,
                                       errp);
    if (ret == 0) {
        atomic_store(&node->length, block_node_length(node->file->node));
        node->growable = true;
    }
    return ret;
}
