/*
 * Making images: finding the driver, and what their co_create have in common.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "block/block-internal.h"
#include "block/create.h"
#include "util/error.h"

#define FILL_SIZE (INT64_C(1) << 20)

int coroutine_fn block_driver_co_create(BlockGraph *graph, JsonObject *options, BlockCreateFlags flags,
                                        GError **errp)
{
    bg_assert_main_thread();
    g_autoptr(BlockOptions) opts = block_options_new("new image", "", options);
    g_autofree char *name = NULL;
    GError *cause = NULL;
    if (!block_options_require_string(opts, "driver", &name, errp)) {
        return -EINVAL;
    }
    const BlockDriver *driver = block_driver_find(name, &cause);
    if (!driver) {
        block_options_error(opts, "driver", errp, EINVAL, "%s", cause->message);
        g_error_free(cause);
        return -EINVAL;
    }
    if (!driver->co_create) {
        block_options_error(opts, "driver", errp, ENOTSUP, "'%s' cannot make images", name);
        return -ENOTSUP;
    }
    return driver->co_create(graph, opts, flags, errp);
}

static BlockNode *coroutine_fn open_node(BlockGraph *graph, BlockOptions *opts, const char *key,
                                         GError **errp)
{
    g_autofree char *ref = NULL;
    g_autoptr(JsonObject) object = NULL;
    if (!block_options_get_child(opts, key, &ref, &object, errp)) {
        return NULL;
    }
    if (ref) {
        BlockNode *node = block_graph_find(graph, ref, errp);
        return node ? block_node_ref(node) : NULL;
    }
    if (!object) {
        block_options_error(opts, key, errp, EINVAL,
                            "required: the name of a node, or a node defined in place");
        return NULL;
    }
    BlockNode *node = block_node_co_open(graph, object, errp);
    return node && node->named_by_user ? block_node_ref(node) : node;
}

BlockBackend *coroutine_fn block_create_co_open(BlockGraph *graph, BlockOptions *opts, const char *key,
                                                GError **errp)
{
    BlockNode *node = open_node(graph, opts, key, errp);
    if (!node) {
        return NULL;
    }
    BlockBackend *blk = block_backend_new(
        graph, "create", BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE, 0);
    int ret = node->read_only ? bg_error_set(errp, EROFS, "node '%s' is read-only", node->name)
                              : block_backend_insert(blk, node, errp);
    block_node_co_unref(node);
    if (ret < 0) {
        block_backend_co_free(blk);
        return NULL;
    }
    return blk;
}

static int coroutine_fn fill(BlockBackend *blk, int64_t offset, int64_t bytes)
{
    g_autofree uint8_t *zeroes = g_malloc0(FILL_SIZE);
    int ret = 0;
    while (bytes > 0 && ret == 0) {
        int64_t n = MIN(bytes, FILL_SIZE);
        ret = block_backend_co_pwrite(blk, offset, n, zeroes, 0);
        offset += n;
        bytes -= n;
    }
    return ret;
}

int coroutine_fn block_create_co_reserve(BlockBackend *blk, int64_t offset, int64_t bytes,
                                         BlockPreallocation how)
{
    return how == BLOCK_PREALLOC_FULL
               ? fill(blk, offset, bytes)
               : block_backend_co_pwrite_zeroes(blk, offset, bytes, BLOCK_REQ_ALLOCATE);
}
