/*
 * Overlays: external snapshots. A node that can have a backing takes the place of another, under I/O, and
 * what is written from then on goes to it; the other is its backing, and read only.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BLOCK_OVERLAY_H
#define BG_BLOCK_OVERLAY_H

#include "block/node.h"

typedef struct BlockOverlay {
    BlockNode *node;
    BlockNode *overlay; /* nobody uses it, it has no backing, and is as long as the node */
} BlockOverlay;

/*
 * Put each overlay into the place of its node, all at one point in time: one drained section over all. Each
 * write that completed before is in a node and on stable storage; no later one changes it. All or nothing. 0
 * or -errno and *errp. Main thread, coroutine.
 */
int coroutine_fn block_overlay_co_insert(const BlockOverlay *pairs, unsigned n, GError **errp);

/* Whether nodes of the driver take a backing. */
bool block_overlay_is_possible(const BlockDriver *driver);

#endif /* BG_BLOCK_OVERLAY_H */
