/*
 * Driver throttle: passes everything to `file`, at the pace of its throttle group.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "block/graph.h"
#include "block/io.h"
#include "block/throttle-group.h"

typedef struct ThrottleNode {
    ThrottleMember *member;
} ThrottleNode;

static ThrottleMember *member_of(BlockNode *node)
{
    return ((ThrottleNode *)node->opaque)->member;
}

/* ---- Requests */

static void coroutine_fn wait_turn(BlockNode *node, ThrottleDirection direction, int64_t bytes)
{
    throttle_member_co_wait(member_of(node), direction, (uint64_t)bytes);
}

static int coroutine_fn throttle_co_preadv(BlockNode *node, int64_t offset, int64_t bytes,
                                           const IoVector *qiov, size_t qiov_offset, BlockRequestFlags flags)
{
    wait_turn(node, THROTTLE_READ, bytes);
    return block_child_co_preadv(node->file, offset, bytes, qiov, qiov_offset, flags);
}

static int coroutine_fn throttle_co_pwritev(BlockNode *node, int64_t offset, int64_t bytes,
                                            const IoVector *qiov, size_t qiov_offset, BlockRequestFlags flags)
{
    wait_turn(node, THROTTLE_WRITE, bytes);
    return block_child_co_pwritev(node->file, offset, bytes, qiov, qiov_offset, flags);
}

static int coroutine_fn throttle_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                                  BlockRequestFlags flags)
{
    wait_turn(node, THROTTLE_WRITE, bytes);
    return block_child_co_pwrite_zeroes(node->file, offset, bytes, flags);
}

static int coroutine_fn throttle_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    wait_turn(node, THROTTLE_WRITE, bytes);
    return block_child_co_pdiscard(node->file, offset, bytes);
}

/* ---- Beside requests */

static void throttle_drain_begin(BlockNode *node)
{
    throttle_member_release(member_of(node), THROTTLE_DRAINED);
}

static void throttle_drain_end(BlockNode *node)
{
    throttle_member_hold(member_of(node), THROTTLE_DRAINED);
}

static void throttle_limit_waits(BlockNode *node)
{
    throttle_member_release(member_of(node), THROTTLE_ENDING);
}

static char *throttle_status(BlockNode *node)
{
    unsigned n = throttle_member_waiting(member_of(node));
    return n ? g_strdup_printf("%u requests wait for throttle group '%s'", n,
                               throttle_group_id(throttle_member_group(member_of(node))))
             : NULL;
}

/* ---- Opening */

static ThrottleGroup *find_group(BlockNode *node, BlockOptions *opts, GError **errp)
{
    g_autofree char *id = NULL;
    g_autoptr(GError) cause = NULL;
    if (!block_options_require_string(opts, "throttle-group", &id, errp)) {
        return NULL;
    }
    ThrottleGroup *group = block_graph_find_throttle_group(node->graph, id, &cause);
    if (!group) {
        block_options_error(opts, "throttle-group", errp, ENOENT, "%s", cause->message);
    }
    return group;
}

static int coroutine_fn throttle_co_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    ThrottleNode *s = node->opaque;
    ThrottleGroup *group = find_group(node, opts, errp);
    BlockChild *file;
    if (!group) {
        return -EINVAL;
    }
    int ret = block_node_co_open_child(node, opts, "file", BLOCK_ROLE_DATA | BLOCK_ROLE_FILTERED, false,
                                       &file, errp);
    if (ret < 0) {
        return ret;
    }
    BlockNode *below = file->node;
    atomic_store(&node->length, block_node_length(below));
    node->growable = below->growable;
    node->read_only |= below->read_only;
    node->supported_write_flags = BLOCK_REQ_FUA;
    node->supported_zero_flags =
        BLOCK_REQ_FUA | BLOCK_REQ_MAY_UNMAP | BLOCK_REQ_NO_FALLBACK | BLOCK_REQ_ALLOCATE;
    s->member = throttle_group_join(group);
    return 0;
}

static void coroutine_fn throttle_co_close(BlockNode *node)
{
    throttle_member_leave(member_of(node));
}

static const char *const throttle_children[] = {"file", NULL};

const BlockDriver block_driver_throttle = {
    .name = "throttle",
    .child_options = throttle_children,
    .instance_size = sizeof(ThrottleNode),
    .is_filter = true,
    .co_open = throttle_co_open,
    .co_close = throttle_co_close,
    .co_preadv = throttle_co_preadv,
    .co_pwritev = throttle_co_pwritev,
    .co_pdiscard = throttle_co_pdiscard,
    .co_pwrite_zeroes = throttle_co_pwrite_zeroes,
    .drain_begin = throttle_drain_begin,
    .drain_end = throttle_drain_end,
    .limit_waits = throttle_limit_waits,
    .status = throttle_status,
};
