/*
 * qcow2: an external data file, which holds the guest's clusters at their guest offsets.
 *
 * The data file is flushed before L2 entries that point into it reach the file (sync.c). Raw, it must read as
 * the guest does: zeroes are written to it, where else an entry would say them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "backends/format/qcow2/qcow2.h"
#include "util/error.h"

/* ---- Opening */

static int coroutine_fn open_child(BlockNode *node, BlockOptions *opts, const Qcow2Extras *x,
                                   char **directories, BlockChild **out, GError **errp)
{
    if (!x->data_file || block_options_has(opts, "data-file")) {
        return block_node_co_open_child(node, opts, "data-file", BLOCK_ROLE_DATA, false, out, errp);
    }
    Qcow2Reference ref = {
        .key = "data-file",
        .what = "data file",
        .remedy = "name its node, or define it in place (data-file.driver, ...)",
        .name = x->data_file,
        .role = BLOCK_ROLE_DATA,
    };
    return qcow2_open_reference(node, opts, &ref, directories, out, errp);
}

int coroutine_fn qcow2_data_file_open(BlockNode *node, BlockOptions *opts, const Qcow2Extras *x,
                                      char **directories, GError **errp)
{
    Qcow2State *s = node->opaque;
    s->data = node->file;
    if (!s->external) {
        return !block_options_has(opts, "data-file") ||
                       block_options_error(opts, "data-file", errp, EINVAL,
                                           "the image keeps its data in itself")
                   ? 0
                   : -EINVAL;
    }
    if (node->to_check) { /* its tables, which do not need the data */
        return 0;
    }
    node->file->role = BLOCK_ROLE_METADATA;
    if (node->to_check) {
        return 0; /* only the tables are looked at */
    }
    int ret = open_child(node, opts, x, directories, &s->data, errp);
    if (ret == 0 && s->data->node == node->file->node) {
        block_options_error(opts, "data-file", errp, EINVAL, "is the node of the image itself");
        return -EINVAL;
    }
    if (ret == 0) {
        node->read_only |= s->data->node->read_only;
    }
    return ret;
}

/* ---- Length */

int coroutine_fn qcow2_data_file_grow(Qcow2State *s, int64_t from, int64_t to)
{
    if (!s->external || to <= from) {
        return 0;
    }
    int64_t length = block_node_length(s->data->node);
    if (s->data_raw && length > from) {
        int ret = block_child_co_pwrite_zeroes(s->data, from, MIN(length, to) - from, BLOCK_REQ_MAY_UNMAP);
        if (ret < 0) {
            return ret;
        }
    }
    return length < to ? block_child_co_truncate(s->data, to, NULL) : 0;
}

/* A device stays as long as it is; what lies behind the image's end does not matter. */
void coroutine_fn qcow2_data_file_cut(Qcow2State *s, int64_t length)
{
    if (s->external && block_node_length(s->data->node) > length) {
        block_child_co_truncate(s->data, length, NULL);
    }
}

int64_t coroutine_fn qcow2_co_get_allocated(BlockNode *node)
{
    Qcow2State *s = node->opaque;
    int64_t file = block_node_co_get_allocated(node->file->node);
    if (!s->external || file < 0) {
        return file;
    }
    int64_t data = block_node_co_get_allocated(s->data->node);
    return data < 0 ? data : file + data;
}

/* ---- Zeroes */

int coroutine_fn qcow2_data_file_zero_raw(Qcow2State *s, int64_t offset, int64_t bytes,
                                          BlockRequestFlags flags)
{
    co_mutex_lock(&s->lock);
    int ret = qcow2_begin_change_locked(s);
    co_mutex_unlock(&s->lock);
    return ret < 0 ? ret : block_child_co_pwrite_zeroes(s->data, offset, bytes, flags & BLOCK_REQ_MAY_UNMAP);
}
