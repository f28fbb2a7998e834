/*
 * Checking and repairing what a format keeps about itself: "blockgraph check".
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BLOCK_CHECK_H
#define BG_BLOCK_CHECK_H

#include "block/node.h"

#define BLOCK_CHECK_MAX_LINES 200

/*
 * As block_node_co_open, for block_node_co_check: the driver accepts what the check can tell about, and no
 * request comes from elsewhere. Open it with read-only=off to repair.
 */
BlockNode *coroutine_fn block_node_co_open_to_check(BlockGraph *graph, JsonObject *options, GError **errp);

/* 0: done, with *result; -errno and *errp: it could not be checked to the end. Main thread, coroutine. */
int coroutine_fn block_node_co_check(BlockNode *node, BlockCheckFix fix, const BlockCheckListener *listener,
                                     BlockCheckResult *result, GError **errp);

#endif /* BG_BLOCK_CHECK_H */
