/*
 * Drivers null-co and null-aio: reads give zeroes, writes vanish. For benchmarks and tests, and the template
 * of a driver: docs/writing-a-driver.md walks through it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "aio/aio.h"
#include "block/io.h"

typedef struct NullState {
    uint64_t latency_ns; /* of each request; 0: completes at once */
    bool read_zeroes;    /* block status tells that all is zero */
} NullState;

static int coroutine_fn null_co_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    NullState *s = node->opaque;
    int64_t size = 1024 * 1024 * 1024;
    if (!block_options_get_size(opts, "size", &size, errp) ||
        !block_options_get_uint64(opts, "latency-ns", 0, INT32_MAX, &s->latency_ns, errp) ||
        !block_options_get_bool(opts, "read-zeroes", &s->read_zeroes, errp)) {
        return -EINVAL;
    }
    atomic_store(&node->length, size);
    node->supported_write_flags = BLOCK_REQ_FUA;
    node->supported_zero_flags = BLOCK_REQ_FUA | BLOCK_REQ_MAY_UNMAP | BLOCK_REQ_ALLOCATE;
    return 0;
}

/* The same, but each request completes from a later round of the event loop. */
static int coroutine_fn null_aio_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    NullState *s = node->opaque;
    int ret = null_co_open(node, opts, errp);
    s->latency_ns = MAX(s->latency_ns, 1);
    return ret;
}

static int coroutine_fn null_co_wait(BlockNode *node)
{
    NullState *s = node->opaque;
    if (s->latency_ns > 0) {
        aio_co_sleep_ns(s->latency_ns);
    }
    return 0;
}

/* Zeroes also without read-zeroes: the buffer may hold what another user has read before. */
static int coroutine_fn null_co_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                       size_t qiov_offset, BlockRequestFlags flags)
{
    io_vector_memset(qiov, qiov_offset, 0, bytes);
    return null_co_wait(node);
}

static int coroutine_fn null_co_pwritev(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                        size_t qiov_offset, BlockRequestFlags flags)
{
    return null_co_wait(node);
}

static int coroutine_fn null_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                              BlockRequestFlags flags)
{
    return null_co_wait(node);
}

static int coroutine_fn null_co_block_status(BlockNode *node, int64_t offset, int64_t bytes, int64_t *pnum,
                                             BlockChild **child, int64_t *child_offset)
{
    NullState *s = node->opaque;
    *pnum = bytes;
    return BLOCK_STATUS_ALLOCATED | (s->read_zeroes ? BLOCK_STATUS_ZERO : BLOCK_STATUS_DATA);
}

static int64_t coroutine_fn null_co_get_allocated(BlockNode *node)
{
    return 0;
}

static int null_durable(BlockNode *node)
{
    return 0;
}

/* clang-format off */
#define NULL_DRIVER(name_, open_) {                                                                          \
    .name = name_, .instance_size = sizeof(NullState), .co_open = open_,                                     \
    .co_preadv = null_co_preadv, .co_pwritev = null_co_pwritev, .co_pwrite_zeroes = null_co_pwrite_zeroes,   \
    .co_block_status = null_co_block_status, .co_get_allocated = null_co_get_allocated,                      \
    .durable = null_durable,                                                                                 \
}
/* clang-format on */

const BlockDriver block_driver_null_co = NULL_DRIVER("null-co", null_co_open);
const BlockDriver block_driver_null_aio = NULL_DRIVER("null-aio", null_aio_open);
