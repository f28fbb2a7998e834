/*
 * What the files of src/block share among themselves.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BLOCK_INTERNAL_H
#define BG_BLOCK_INTERNAL_H

#include "block/drain.h"
#include "block/graph.h"
#include "block/io.h"
#include "coroutine/lock.h"

typedef struct ErrorLog ErrorLog;
typedef struct ParkedRequest ParkedRequest;

struct BlockGraph {
    AioContext *main_context;
    ErrorLog *errors;
    _Atomic uint64_t flush_errors; /* failed flushes */

    /* Lock order: drain_lock is a leaf; nothing is taken under it. */
    BgMutex drain_lock;
    struct DrainWaiter *drain_waiters BG_GUARDED_BY(drain_lock);
    _Atomic int drain_waiting; /* coroutines that wait for counters to fall to 0 */

    /* -- main thread */
    GHashTable *by_name; /* name -> BlockNode, borrowed; NULL while it opens */
    GPtrArray *nodes;    /* in order of creation, borrowed */
    GPtrArray *backends; /* in order of creation, borrowed */
    GPtrArray *sections; /* active BlockDrain */
    BgMutex move_lock;   /* a leaf */
    CoQueue moved;       /* for moving == false of any node; with move_lock */

    GHashTable *secrets;         /* id -> char * */
    GHashTable *tls_creds;       /* id -> BlockTlsCreds * */
    GHashTable *throttle_groups; /* id -> ThrottleGroup * */
    GPtrArray *homes;            /* AioContext, referenced */
    unsigned next_home;          /* index */
    unsigned next_auto_name;
    GPtrArray *closing_nodes; /* those that run their flush and co_close, borrowed */
    unsigned closing;         /* nodes that are closing, or are about to */
    CoQueue closed;           /* for closing == 0 */
    CoMutex snapshot_lock;    /* changes of snapshots, one at a time; held across drained sections */
    int visit;                /* mark of the graph walk under way */
};

/* secret.c */
void block_graph_secrets_new(BlockGraph *graph);
void block_graph_secrets_free(BlockGraph *graph);
/* False and *errp where there is an object of that name, of any type. */
bool block_graph_id_is_new(BlockGraph *graph, const char *id, GError **errp);
/* The value in `table`; NULL and *errp, with the nearest id, where there is none of that type. */
gpointer block_graph_find_object(GHashTable *table, const char *type, const char *id, GError **errp);

/* throttle-group.c */
void throttle_group_free(gpointer group);

/* The snapshot that a backend reads instead of its root's current content. */
typedef struct BlockView {
    const struct BlockSnapshotOps *ops;
    void *opaque;   /* the driver's */
    int64_t length; /* bytes */
} BlockView;

struct BlockBackend {
    BlockGraph *graph;
    char *name;
    BlockChild *root; /* I/O; NULL: none */
    BlockView *view;  /* I/O; constant once requests come; NULL: none. The root then stays where it is */
    BlockPerm perm, shared;
    _Atomic int in_flight BG_CACHE_ALIGNED;
    _Atomic int quiesce;
    _Atomic unsigned n_parked;  /* parked, or resumed and not running yet; written under park_lock */
    _Atomic unsigned n_resumed; /* of those, resumed and not running yet; raised under park_lock */
    BgMutex park_lock;
    ParkedRequest *park_first BG_GUARDED_BY(park_lock);
    ParkedRequest **park_last BG_GUARDED_BY(park_lock);
};

/* ---- graph.c */
void block_graph_closing_done(BlockGraph *graph);

/* ---- drain.c */

/*
 * Call after every change of nodes, edges or roots: brings the cover of all active sections up to date, with
 * the drivers' drain_begin and drain_end for what came and went. Main thread.
 */
void block_drain_graph_changed(BlockGraph *graph);
/* Let the waiting sections look again. Any thread. */
void block_drain_kick(BlockGraph *graph);
/*
 * Count down an in_flight. Its owner may be freed as soon as the count is 0, so only the graph is touched
 * after that; the graph outlives all threads. Pairs with wait_until in drain.c: either it sees our count gone
 * or we see that it waits. Any thread.
 */
static inline void block_drain_count_down(BlockGraph *graph, _Atomic int *in_flight)
{
    if (atomic_fetch_sub(in_flight, 1) == 1 && atomic_load(&graph->drain_waiting) > 0) {
        block_drain_kick(graph);
    }
}

/* Wait until no request of the node itself runs; nobody stops new ones. Main thread, coroutine. */
void coroutine_fn block_drain_co_wait_node(BlockNode *node);
/*
 * The node is out of the graph and about to close: stop its background work and wait for what still counts on
 * it (bottom halves), with one drain_begin and drain_end in all. Main thread.
 */
void coroutine_fn block_drain_co_quiet_for_close(BlockNode *node);

/* ---- walk.c. Main thread. */

/* Append `node` and all below, children before parents, but for those whose visit is `mark` already. */
void block_walk_down(BlockNode *node, int mark, GPtrArray *post);
/* The nodes and all below, parents before children. Free with g_ptr_array_unref. */
GPtrArray *block_walk_order(BlockGraph *graph, BlockNode *const *nodes, unsigned n);
/* Whether `to` is `from` or below it. */
bool block_walk_reaches(BlockNode *from, const BlockNode *to);
/* Nodes on the longest path down from, and up from, the node; itself included. */
unsigned block_walk_depth(BlockNode *node);
unsigned block_walk_height(BlockNode *node);

/* ---- backend.c */
void block_backend_quiesce(BlockBackend *blk);
void block_backend_unquiesce(BlockBackend *blk);

/* ---- snapshot-view.c */
int coroutine_fn block_view_co_preadv(BlockBackend *blk, int64_t offset, int64_t bytes, const IoVector *qiov);
int coroutine_fn block_view_co_block_status(BlockBackend *blk, int64_t offset, int64_t bytes, int64_t *pnum);
/* Main thread. No request runs any more. */
void coroutine_fn block_view_co_close(BlockBackend *blk);

/* ---- permissions.c */

/*
 * Compute the permissions of the nodes and all below anew. The caller has put what it wants to change in
 * new_perm and new_shared of edges above the nodes (elsewhere those equal perm and shared). All or nothing:
 * on failure new_* are set back. 0 or -errno and *errp. Main thread.
 */
int block_perms_update(BlockNode *const *nodes, unsigned n, GError **errp);
/* Name of the user of an edge, for messages: "node 'x'" or "export 'y'". g_free. */
char *block_child_user(const BlockChild *edge);

/* ---- child.c */
BlockChild *block_child_new(const char *name, BlockChildRole role, BlockNode *node);
/* Enter the edge in its node's list of parents, take a reference. */
void block_child_link(BlockChild *edge);
/* The reverse; the reference passes to the caller. */
BlockNode *block_child_unlink(BlockChild *edge);
void block_child_free(BlockChild *edge);
void block_node_refresh_shortcuts(BlockNode *node);
/* The edges of `from` that can move to `to`; edges of `to` itself stay. NULL and *errp where moving would
 * close a cycle. */
GPtrArray *block_child_edges_to_move(BlockNode *from, BlockNode *to, GError **errp);
/* Point the edges at `to`; references move along. Permissions are the caller's to update. */
void block_child_move_edges(GPtrArray *edges, BlockNode *to);

/* ---- node.c */
/* Drop a reference where yielding is not possible: a last one closes the node from a coroutine of its own,
 * soon. */
void block_node_unref_later(BlockNode *node);

/* ---- errors.c */
ErrorLog *error_log_new(void);
void error_log_free(ErrorLog *log);

/* ---- io.c, io-write.c: one request on a node */
typedef struct NodeRequest {
    BlockNode *node;
    AioContext *origin; /* where to go back to; NULL: did not move */
    int64_t start_ns;
    int64_t offset;
    int64_t bytes;
    BlockOp op;
} NodeRequest;

void coroutine_fn node_request_begin(NodeRequest *req, BlockNode *node, BlockOp op, int64_t offset,
                                     int64_t bytes);
/* Counts, logs errors of leaves, goes back to the origin. Returns ret. */
int coroutine_fn node_request_end(NodeRequest *req, int ret);
/* -EINVAL where the range is negative or overflows. */
int block_check_range(int64_t offset, int64_t bytes);

/* On a node, inside a request on it: */
int coroutine_fn node_co_driver_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                       size_t qiov_offset);
int coroutine_fn node_co_flush(BlockNode *node);
/* The newest failure of a flush in the node or below. Inside a request on it, or in the main thread. */
BlockFlushError node_flush_error(const BlockNode *node);

#endif /* BG_BLOCK_INTERNAL_H */
