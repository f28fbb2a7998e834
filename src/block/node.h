/*
 * BlockNode and BlockChild: the nodes and edges of the graph.
 *
 * The main thread alone opens and closes nodes and changes edges, inside a drained section of what it
 * changes. I/O coroutines read the fields marked "I/O" without a lock while they hold a request on the node.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BLOCK_NODE_H
#define BG_BLOCK_NODE_H

#include <stdatomic.h>

#include "block/driver.h"
#include "block/stats.h"
#include "block/types.h"

/* Limits of a driver; the core splits and aligns requests to them. 0 means none. All in bytes unless said. */
typedef struct BlockLimits {
    uint32_t request_alignment; /* power of two; 0 means 1 */
    uint32_t memory_alignment;  /* of buffers' addresses; power of two; 0 means 1 */
    int64_t max_transfer;       /* a multiple of request_alignment */
    int max_iov;                /* number of iovec elements */
    int64_t max_pdiscard;
    uint32_t pdiscard_alignment; /* unaligned head and tail of a discard are dropped */
    int64_t max_pwrite_zeroes;
    uint32_t pwrite_zeroes_alignment; /* head and tail are written as zero bytes */
} BlockLimits;

/* An edge: parent (a node or a backend) -> node. */
struct BlockChild {
    char *name; /* "file", "backing", ...; "root" under a backend */
    BlockChildRole role;
    BlockNode *node;   /* I/O. The child; holds a reference */
    BlockNode *parent; /* NULL: a backend's root edge */
    BlockBackend *backend;
    _Atomic BlockPerm perm; /* I/O; changes under I/O, as others attach to the node */
    BlockPerm shared;
    BlockPerm new_perm, new_shared; /* during a permission update */
};

typedef struct RequestTracker RequestTracker; /* src/block/serialise.h */
typedef struct FlushState FlushState;         /* src/block/flush.h */

struct BlockNode {
    /* -- I/O: set at open, constant while requests run */
    const BlockDriver *driver;
    void *opaque; /* driver->instance_size bytes */
    BlockGraph *graph;
    char *name; /* unique in the graph; where the user gave none, "#vm1.file" or "#block000" */
    BlockLimits limits;
    BlockRequestFlags supported_write_flags;
    BlockRequestFlags supported_zero_flags;
    BlockChild *file;        /* the child named "file", or NULL */
    BlockChild *backing;     /* the child named "backing", or NULL */
    AioContext *aio_context; /* home; NULL: any thread may call the driver */
    bool read_only;
    bool growable; /* writes beyond the end extend the node (regular files) */
    bool detect_zeroes, detect_zeroes_unmap;
    bool discard_unmap;  /* option discard=unmap (the default); else discards are dropped and MAY_UNMAP is
                            cleared */
    bool cache_direct;   /* option cache.direct: for protocol drivers that open files */
    bool cache_no_flush; /* option cache.no-flush: the core drops flushes of this node */
    bool auto_read_only; /* option auto-read-only: a driver that may not open for writing sets read_only
                            instead */
    bool to_check;       /* opened by block_node_co_open_to_check */
    RequestTracker *tracker;
    FlushState *flush;
    BlockStats *stats;

    /* -- shared by all threads */
    _Atomic int64_t length BG_CACHE_ALIGNED; /* bytes */
    _Atomic int64_t last_write_ns;           /* CLOCK_REALTIME of the last successful change; 0: none */
    _Atomic int in_flight BG_CACHE_ALIGNED;  /* requests, until their last bottom half has run */
    _Atomic int quiesce;                     /* drained sections that cover the node */
    _Atomic bool moving;                     /* to another home: no request may begin */

    /* -- main thread */
    int refcount;
    bool named_by_user;
    const BlockNode
        *opener; /* while it opens: the node that it is defined in, which is opening too; else NULL */
    bool closing;
    GPtrArray *children;    /* BlockChild*, owned */
    GPtrArray *parents;     /* BlockChild*, borrowed */
    JsonObject *options;    /* as given, for options.json; secrets are references by id only */
    bool drain_notified;    /* driver->drain_begin was called and drain_end not yet */
    int visit;              /* mark of graph walks */
    BlockPerm perm, shared; /* cumulative, of all parents */
    BlockPerm new_perm, new_shared;
};

/*
 * Open a node from its options. The core reads "driver", "node-name", "read-only", "auto-read-only",
 * "discard", "detect-zeroes", "cache.direct" and "cache.no-flush" into the fields above before it calls
 * driver->co_open; all other keys are the driver's. A node defined in place takes over its parent's
 * read-only (a backing is read-only by default), auto-read-only, discard and cache.* as defaults. The node is
 * in the graph after, with one reference: the graph's own where the user named it, else the caller's. NULL
 * and *errp on failure. Main thread, coroutine.
 */
BlockNode *coroutine_fn block_node_co_open(BlockGraph *graph, JsonObject *options, GError **errp);

/*
 * For a driver's co_open: attach the child described by option `key`, either a string (a node's name) or an
 * object (a node defined in place; its messages carry the prefix). Required unless `optional`, when *out is
 * NULL where absent. 0 or -errno and *errp.
 */
int coroutine_fn block_node_co_open_child(BlockNode *node, BlockOptions *opts, const char *key,
                                          BlockChildRole role, bool optional, BlockChild **out,
                                          GError **errp);

/* Reference counts. Main thread. The last unref closes the node (coroutine) and drops its children. */
BlockNode *block_node_ref(BlockNode *node);
void coroutine_fn block_node_co_unref(BlockNode *node);

/*
 * Attach `child_node` under `parent` as `name` with the permissions that the driver needs. Checks for cycles,
 * depth and permissions; NULL and *errp. Takes its own reference. If either is in a drained section, so is
 * the other after. Main thread. The caller has drained both ends or no I/O runs there yet.
 */
BlockChild *block_node_attach_child(BlockNode *parent, BlockNode *child_node, const char *name,
                                    BlockChildRole role, GError **errp);
/* Detach and free the edge; drops its reference. Main thread, coroutine (the node may close). */
void coroutine_fn block_child_co_detach(BlockChild *child);

/*
 * Let every parent of `from` (but edges below `to` itself, and readers of its snapshots) point to `to`
 * instead; all or nothing. Main thread, coroutine; drains both. 0 or -errno and *errp (a cycle, a
 * permission).
 */
int coroutine_fn block_node_co_replace(BlockNode *from, BlockNode *to, GError **errp);

/*
 * Move the node's home to ctx, under I/O: drains it, calls co_detach_aio_context and co_attach_aio_context,
 * ends the section. Nodes whose driver works in any thread move only in name (-ENOTSUP if the driver has
 * neither callback). Main thread, coroutine.
 */
int coroutine_fn block_node_co_set_aio_context(BlockNode *node, AioContext *ctx, GError **errp);

/* Length in bytes. Any thread. */
static inline int64_t block_node_length(BlockNode *node)
{
    return atomic_load_explicit(&node->length, memory_order_acquire);
}

/* 1 yes, 0 no, -1 unknown: whether a flush reaches stable storage on every leaf. Main thread. */
int block_node_durable(BlockNode *node);
/* File name or URL, redacted, of the storage below; NULL if none. Free with g_free. Main thread. */
char *block_node_filename(BlockNode *node);

/* Keep the node's drained sections waiting (and again not), e.g. across a bottom half of a driver. Any
 * thread. */
void block_node_inc_in_flight(BlockNode *node);
void block_node_dec_in_flight(BlockNode *node);

#endif /* BG_BLOCK_NODE_H */
