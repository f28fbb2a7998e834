/*
 * Drained sections. See docs/drain.md for the table of states.
 *
 * A section over a node covers: the node and everything below it, everything above those nodes (their
 * requests must end too, or they could start new ones below), and the backends on top, whose new requests
 * park. Cover follows the graph: what is attached to a covered node during the section becomes covered, what
 * is detached is released.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BLOCK_DRAIN_H
#define BG_BLOCK_DRAIN_H

#include "block/types.h"

/*
 * Begin a section over `node` and its subtree; returns when no request is in flight in the cover. Main
 * thread, coroutine. Sections nest and overlap; several coroutines may hold some. The node must not be freed
 * before the end of the section (the section holds a reference).
 */
BlockDrain *coroutine_fn block_drain_co_begin(BlockNode *node);
/* The same over several nodes in one go, and over every node, also those added meanwhile. */
BlockDrain *coroutine_fn block_drain_co_begin_nodes(BlockNode *const *nodes, unsigned n);
BlockDrain *coroutine_fn block_drain_co_begin_all(BlockGraph *graph);

/*
 * From outside of any coroutine and callback, at the top level of the main thread: as the above, running the
 * main AioContext meanwhile.
 */
BlockDrain *block_drain_begin(BlockNode *node);
BlockDrain *block_drain_begin_all(BlockGraph *graph);

/* End the section: drivers go on, then parked requests, in order. Frees it. Main thread, in or out of a
 * coroutine. */
void block_drain_end(BlockDrain *section);

/*
 * Start a section without waiting: nothing new starts, but requests may be in flight; then wait. For sections
 * over a node from a callback that may not yield.
 */
BlockDrain *block_drain_start(BlockNode *node);
BlockDrain *block_drain_start_all(BlockGraph *graph);
void coroutine_fn block_drain_co_wait(BlockDrain *section);

#endif /* BG_BLOCK_DRAIN_H */
