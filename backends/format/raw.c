/*
 * Driver raw: the child's bytes as they are, or a window of them (options offset and size).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>

#include "block/io.h"
#include "util/error.h"

typedef struct RawState {
    int64_t offset; /* of the window in the child, in bytes */
    bool has_size;  /* the window's end is fixed */
} RawState;

/* Length of the window, or -errno. */
static int64_t raw_window(BlockNode *node, BlockOptions *opts, int64_t offset, int64_t size, GError **errp)
{
    RawState *s = node->opaque;
    const char *child = node->file->node->name;
    int64_t length = block_node_length(node->file->node);
    if (offset > length) {
        block_options_error(opts, "offset", errp, EINVAL,
                            "%" PRId64 " lies beyond the end of node '%s', which is %" PRId64 " bytes long",
                            offset, child, length);
        return -EINVAL;
    }
    if (!s->has_size) {
        return length - offset;
    }
    if (size > length - offset) {
        block_options_error(opts, "size", errp, EINVAL,
                            "the window of %" PRId64 " bytes at %" PRId64
                            " ends beyond node '%s', which is %" PRId64 " bytes long",
                            size, offset, child, length);
        return -EINVAL;
    }
    return size;
}

static int coroutine_fn raw_co_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    RawState *s = node->opaque;
    int64_t size = 0;
    s->has_size = block_options_has(opts, "size");
    if (!block_options_get_size(opts, "offset", &s->offset, errp) ||
        !block_options_get_size(opts, "size", &size, errp)) {
        return -EINVAL;
    }
    BlockChild *file;
    int ret = block_node_co_open_child(node, opts, "file", BLOCK_ROLE_IMAGE, false, &file, errp);
    if (ret < 0) {
        return ret;
    }
    int64_t length = raw_window(node, opts, s->offset, size, errp);
    if (length < 0) {
        return length;
    }
    BlockNode *below = file->node;
    atomic_store(&node->length, length);
    node->growable = below->growable && !s->has_size;
    node->read_only |= below->read_only;
    node->supported_write_flags = BLOCK_REQ_FUA;
    node->supported_zero_flags =
        BLOCK_REQ_FUA | BLOCK_REQ_MAY_UNMAP | BLOCK_REQ_NO_FALLBACK | BLOCK_REQ_ALLOCATE;
    return 0;
}

static int coroutine_fn raw_co_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                      size_t qiov_offset, BlockRequestFlags flags)
{
    RawState *s = node->opaque;
    return block_child_co_preadv(node->file, s->offset + offset, bytes, qiov, qiov_offset, flags);
}

static int coroutine_fn raw_co_pwritev(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                       size_t qiov_offset, BlockRequestFlags flags)
{
    RawState *s = node->opaque;
    return block_child_co_pwritev(node->file, s->offset + offset, bytes, qiov, qiov_offset, flags);
}

static int coroutine_fn raw_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                             BlockRequestFlags flags)
{
    RawState *s = node->opaque;
    return block_child_co_pwrite_zeroes(node->file, s->offset + offset, bytes, flags);
}

static int coroutine_fn raw_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    RawState *s = node->opaque;
    return block_child_co_pdiscard(node->file, s->offset + offset, bytes);
}

static int coroutine_fn raw_co_block_status(BlockNode *node, int64_t offset, int64_t bytes, int64_t *pnum,
                                            BlockChild **child, int64_t *child_offset)
{
    RawState *s = node->opaque;
    *pnum = bytes;
    *child = node->file;
    *child_offset = s->offset + offset;
    return BLOCK_STATUS_RECURSE | BLOCK_STATUS_ALLOCATED;
}

static int coroutine_fn raw_co_truncate(BlockNode *node, int64_t length, GError **errp)
{
    RawState *s = node->opaque;
    if (s->has_size) {
        return bg_error_set(errp, ENOTSUP, "node '%s': its option 'size' fixes the length at %" PRId64,
                            node->name, block_node_length(node));
    }
    if (length > BLOCK_MAX_LENGTH - s->offset) {
        return bg_error_set(errp, EFBIG, "node '%s': %" PRId64 " bytes from offset %" PRId64 " are too long",
                            node->name, length, s->offset);
    }
    return block_child_co_truncate(node->file, s->offset + length, errp);
}

static int coroutine_fn raw_co_copy_range(BlockNode *src, int64_t src_offset, BlockNode *dst,
                                          int64_t dst_offset, int64_t bytes)
{
    RawState *from = src->opaque, *to = dst->opaque;
    return block_child_co_copy_range(src->file, from->offset + src_offset, dst->file, to->offset + dst_offset,
                                     bytes);
}

/* ---- Permissions */

static bool raw_is_window(const RawState *s)
{
    return s->has_size || s->offset > 0;
}

/*
 * What the users above take and share, but:
 *   - nobody else may resize the child, as our length would be wrong;
 *   - a window of fixed size never resizes it;
 *   - the writer of a window lets others write beside it. raw_check_perm keeps windows apart.
 */
static void raw_child_perm(BlockNode *node, BlockChild *child, BlockPerm perm, BlockPerm shared,
                           BlockPerm *child_perm, BlockPerm *child_shared)
{
    RawState *s = node->opaque;
    *child_perm = s->has_size ? perm & ~BLOCK_PERM_RESIZE : perm;
    if (raw_is_window(s) && (perm & BLOCK_PERM_WRITE)) {
        shared |= BLOCK_PERM_WRITE | BLOCK_PERM_WRITE_UNCHANGED;
    }
    *child_shared = shared & ~BLOCK_PERM_RESIZE;
}

static bool raw_passes_through(BlockNode *node)
{
    return !raw_is_window(node->opaque);
}

static int64_t raw_end(BlockNode *node)
{
    RawState *s = node->opaque;
    return s->has_size ? s->offset + block_node_length(node) : INT64_MAX;
}

static bool raw_overlaps(BlockNode *a, BlockNode *b)
{
    RawState *sa = a->opaque, *sb = b->opaque;
    return sa->offset < raw_end(b) && sb->offset < raw_end(a);
}

/* Windows of one child that overlap are as one node to their users. */
static int raw_check_perm(BlockNode *node, BlockPerm perm, BlockPerm shared, GError **errp)
{
    BlockNode *below = node->file->node;
    for (guint i = 0; i < below->parents->len; i++) {
        BlockNode *other = ((BlockChild *)g_ptr_array_index(below->parents, i))->parent;
        if (!other || other == node || other->driver != node->driver || !raw_overlaps(node, other)) {
            continue;
        }
        BlockPerm contested = (perm & ~other->new_shared) | (other->new_perm & ~shared);
        if (contested & BLOCK_PERM_WRITE) {
            return bg_error_set(
                errp, EBUSY,
                "node '%s': its window of node '%s' overlaps that of node '%s', and only one of "
                "them may have a writer",
                node->name, below->name, other->name);
        }
    }
    return 0;
}

static const char *const raw_children[] = {"file", NULL};

const BlockDriver block_driver_raw = {
    .name = "raw",
    .child_options = raw_children,
    .instance_size = sizeof(RawState),
    .co_open = raw_co_open,
    .co_preadv = raw_co_preadv,
    .co_pwritev = raw_co_pwritev,
    .co_pwrite_zeroes = raw_co_pwrite_zeroes,
    .co_pdiscard = raw_co_pdiscard,
    .co_block_status = raw_co_block_status,
    .co_truncate = raw_co_truncate,
    .co_copy_range = raw_co_copy_range,
    .child_perm = raw_child_perm,
    .check_perm = raw_check_perm,
    .passes_through = raw_passes_through,
};
