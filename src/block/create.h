/*
 * Making images: what blockdev-create does, and "blockgraph create".
 *
 * Main thread, coroutine.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BLOCK_CREATE_H
#define BG_BLOCK_CREATE_H

#include "block/backend.h"
#include "block/driver.h"

/*
 * Make what `options` describe, with the keys of blockdev-create: "driver" and the driver's own. A format is
 * written into the node that its "file" names or defines in place, whose content is lost; a protocol makes
 * the storage itself. All is on stable storage when it returns 0; else -errno and *errp.
 */
int coroutine_fn block_driver_co_create(BlockGraph *graph, JsonObject *options, BlockCreateFlags flags,
                                        GError **errp);

/* ---- For a driver's co_create */

/*
 * The node that option `key` names or defines in place, with a user that may write and resize it, and lets
 * nobody else. NULL and *errp. Free with block_backend_co_free.
 */
BlockBackend *coroutine_fn block_create_co_open(BlockGraph *graph, BlockOptions *opts, const char *key,
                                                GError **errp);

/* Of option "preallocation". */
typedef enum BlockPreallocation {
    BLOCK_PREALLOC_OFF,
    BLOCK_PREALLOC_METADATA,
    BLOCK_PREALLOC_FALLOC,
    BLOCK_PREALLOC_FULL,
} BlockPreallocation;

/* FALLOC, FULL: space for the range, which reads as zeroes before and after. 0 or -errno. */
int coroutine_fn block_create_co_reserve(BlockBackend *blk, int64_t offset, int64_t bytes,
                                         BlockPreallocation how);

#endif /* BG_BLOCK_CREATE_H */
