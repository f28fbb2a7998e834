/*
 * BlockGraph: all nodes, backends and drained sections of one daemon, and its log of errors.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BLOCK_GRAPH_H
#define BG_BLOCK_GRAPH_H

#include "block/backend.h"
#include "block/node.h"

/* A new, empty graph whose main AioContext is ctx (referenced). Main thread. */
BlockGraph *block_graph_new(AioContext *main_context);
/* Closes what is left, children after parents, and frees. No backend may be left. Main thread, coroutine. */
void coroutine_fn block_graph_co_close(BlockGraph *graph);
/* After block_graph_co_close, and after the end of every thread that did I/O. */
void block_graph_free(BlockGraph *graph);
AioContext *block_graph_main_context(const BlockGraph *graph);

/*
 * The contexts that nodes whose driver is bound to one thread may live in (n of them, which outlive the
 * graph's nodes); none: the main one. Main thread, before nodes are opened.
 */
void block_graph_set_homes(BlockGraph *graph, AioContext *const *contexts, unsigned n);
unsigned block_graph_n_homes(const BlockGraph *graph);
AioContext *block_graph_home(const BlockGraph *graph, unsigned i);
/* For co_open of such a driver: the next one in turn. Main thread. */
AioContext *block_graph_assign_home(BlockGraph *graph);

/* BlockDriver.limit_waits of all nodes. Main thread. */
void block_graph_limit_waits(BlockGraph *graph);

/* Node by name; NULL and, where errp is given, a message with the nearest name. Main thread. Borrowed. */
BlockNode *block_graph_find(BlockGraph *graph, const char *name, GError **errp);
/* All nodes in order of creation: BlockNode*, borrowed; valid until the graph changes. Main thread. */
const GPtrArray *block_graph_nodes(const BlockGraph *graph);
/* All backends, in order of creation: BlockBackend*. Main thread. */
const GPtrArray *block_graph_backends(const BlockGraph *graph);
/* Delete a node that the user named and nobody uses; -EBUSY and *errp names who does. Main thread, coroutine.
 */
int coroutine_fn block_graph_co_delete_node(BlockGraph *graph, BlockNode *node, GError **errp);

/* ---- Errors: the last BLOCK_ERRORS_KEPT, for .graph/errors and user.blockgraph.last-error. */

#define BLOCK_ERRORS_KEPT 1000

/*
 * Record an error of `node` (or export) named `name`: op, offset (-1: none), errnum > 0, text (may be NULL).
 * Repeats of one (name, op, errno) within a second are counted, not stored again. Any thread.
 */
void block_graph_log_error(BlockGraph *graph, const char *name, BlockOp op, int64_t offset, int64_t bytes,
                           int errnum, const char *text);
/* The log as text, oldest first, one line each: time, node, op, offset, length, errno name and text. Any
 * thread. g_free. */
char *block_graph_errors_text(BlockGraph *graph);
/* The newest error line of a node or, where `name` is NULL, of any; NULL if none. Any thread. g_free. */
char *block_graph_last_error(BlockGraph *graph, const char *name);
/* Errors recorded since start. Any thread. */
uint64_t block_graph_error_count(BlockGraph *graph);
/* Every flush that failed up to now compares as at most this, every later one as greater. Any thread. */
BlockFlushError block_graph_flush_errors(const BlockGraph *graph);

/* ---- The graph for people and programs: src/block/query.c. Main thread. Newly allocated text. */
char *block_graph_to_text(BlockGraph *graph); /* a tree with box characters */
char *block_graph_to_dot(BlockGraph *graph);
char *block_graph_to_json(BlockGraph *graph);
char *block_graph_to_metrics(BlockGraph *graph); /* Prometheus text format */
char *block_node_options_json(BlockNode *node);
char *block_node_stats_json(BlockNode *node);

#endif /* BG_BLOCK_GRAPH_H */
