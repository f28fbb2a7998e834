/*
 * BlockDriver: what a driver gives the core.
 *
 * The core wraps every call (src/block/io.c), so a driver may rely on:
 *   - requests lie inside the node's length rounded up to limits.request_alignment (except writes on a node
 * with `growable` set), their offset and length are multiples of limits.request_alignment and at most the
 * limits' maxima, and qiov covers `bytes` from qiov_offset on;
 *   - no write overlaps a read-modify-write of the core (a read may: it sees the same bytes before and after,
 *     as only neighbours' bytes of the block are new);
 *   - with node->aio_context set, calls of I/O callbacks come in that context's thread; without,
 *     in the thread of any context, several at a time;
 *   - between drain_begin's end of waiting and drain_end no I/O callback runs.
 * Unless said otherwise a callback is optional, NULL giving what its comment says.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BLOCK_DRIVER_H
#define BG_BLOCK_DRIVER_H

#include "block/options.h"
#include "block/types.h"

struct BlockDriver {
    /* Required: the word after driver=, e.g. "null-co". */
    const char *name;
    /* Required: bytes of the driver's own state, zeroed, at node->opaque. */
    size_t instance_size;
    /* The node passes requests on to child `file` unchanged but for the driver's purpose. */
    bool is_filter;
    /*
     * Options that name a child (a node's name, or a node defined in place), options that are names of
     * local files, and options that are lists of directories (block_options_get_strings); NULL-terminated, or
     * NULL: none. The front end sorts nodes and resolves relative names by them.
     */
    const char *const *child_options;
    const char *const *file_options;
    const char *const *directory_options;
    /* Keys below "cache." that the driver reads itself, beside the core's; NULL: none. */
    const char *const *cache_options;
    /* Values of file_options that are no names of files; NULL: none. */
    const char *const *file_option_words;

    /*
     * Required. Read options (block_options_*), open files, attach children
     * (block_node_open_child), set node->length, node->limits and node->supported_*. Main thread, coroutine.
     * 0 or -errno with *errp. On failure it must free what it took; close is not called; children are
     * detached by the core. The core calls block_options_finish after it.
     */
    int coroutine_fn (*co_open)(BlockNode *node, BlockOptions *opts, GError **errp);
    /* Free everything. Main thread, coroutine, node drained and without parents. Children are detached by the
     * core. */
    void coroutine_fn (*co_close)(BlockNode *node);

    /*
     * Make an image, see block/create.h. Read the options and call block_options_finish before anything is
     * touched; with BLOCK_CREATE_DRY_RUN stop there. Main thread, coroutine. 0 or -errno with *errp. NULL:
     * the driver cannot.
     */
    int coroutine_fn (*co_create)(BlockGraph *graph, BlockOptions *opts, BlockCreateFlags flags,
                                  GError **errp);

    /*
     * Check, and where `fix` says so repair, what the format keeps about itself; see block/check.h. `result`
     * is zeroed. NULL: there is nothing to check. Main thread, coroutine. 0 or -errno with *errp.
     */
    int coroutine_fn (*co_check)(BlockNode *node, BlockCheckFix fix, const BlockCheckListener *listener,
                                 BlockCheckResult *result, GError **errp);

    /* Required for reading; NULL: reads pass to child `file` (filters) or fail with -ENOTSUP. 0 or -errno. */
    int coroutine_fn (*co_preadv)(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                  size_t qiov_offset, BlockRequestFlags flags);
    /* NULL: the node is read-only (or a filter that passes it on). BLOCK_REQ_FUA only if in
     * node->supported_write_flags. */
    int coroutine_fn (*co_pwritev)(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                   size_t qiov_offset, BlockRequestFlags flags);
    /* Data accepted before is on stable storage after. NULL: nothing of the driver's own; children are
     * flushed by the core. */
    int coroutine_fn (*co_flush)(BlockNode *node);
    /* Advisory: the range's content is undefined after. NULL: no-op (0). -ENOTSUP counts as 0. */
    int coroutine_fn (*co_pdiscard)(BlockNode *node, int64_t offset, int64_t bytes);
    /* flags: MAY_UNMAP, ALLOCATE, FUA, as in node->supported_zero_flags. NULL or -ENOTSUP: the core writes
     * zero bytes. */
    int coroutine_fn (*co_pwrite_zeroes)(BlockNode *node, int64_t offset, int64_t bytes,
                                         BlockRequestFlags flags);
    /*
     * Status of a prefix of the range: returns BlockStatusFlags, or -errno; *pnum: its length, 1 to bytes, a
     * multiple of the alignment (or up to the end of the node). With BLOCK_STATUS_RECURSE, *child and
     * *child_offset say where the data lies. NULL: data (filters: recurse to `file`).
     */
    int coroutine_fn (*co_block_status)(BlockNode *node, int64_t offset, int64_t bytes, int64_t *pnum,
                                        BlockChild **child, int64_t *child_offset);
    /* Change the length; new bytes read as zeroes. NULL: -ENOTSUP (filters: pass on). */
    int coroutine_fn (*co_truncate)(BlockNode *node, int64_t length, GError **errp);
    /*
     * Copy from src (same driver; its request counter is held) to dst. NULL or -ENOTSUP: the core reads and
     * writes. Called on the destination's driver. 0 or -errno; all or nothing is not promised on error.
     */
    int coroutine_fn (*co_copy_range)(BlockNode *src, int64_t src_offset, BlockNode *dst, int64_t dst_offset,
                                      int64_t bytes);
    /* Bytes of storage taken, or -errno. NULL: sum of the children (`file` only for formats), else -ENOTSUP.
     */
    int64_t coroutine_fn (*co_get_allocated)(BlockNode *node);

    /*
     * A drained section begins: stop background work (timers, reconnects), let queued requests go. Exactly
     * once per quiescing of the node, before the core waits; drain_end once when the last section has gone.
     * Main thread, not in a coroutine's critical section; must not block or yield. Requests of the node's may
     * still be running when drain_begin is called.
     */
    void (*drain_begin)(BlockNode *node);
    void (*drain_end)(BlockNode *node);

    /*
     * Move fds, timers and bottom halves out of the old context, then into the new one. Each in the thread of
     * the context in question, coroutine; the node is drained. Only for drivers that set node->aio_context
     * (block_graph_assign_home()).
     */
    void coroutine_fn (*co_detach_aio_context)(BlockNode *node);
    void coroutine_fn (*co_attach_aio_context)(BlockNode *node, AioContext *ctx);

    /*
     * The daemon is to end: requests that wait for a server do so for at most their deadline from now on.
     * Main thread; must not block or yield. NULL: no request waits for longer than that anyway.
     */
    void (*limit_waits)(BlockNode *node);

    /*
     * Permissions the node needs on `child`, given what its own parents hold and share. NULL: the default for
     * filters (pass on) or formats by role.
     */
    void (*child_perm)(BlockNode *node, BlockChild *child, BlockPerm perm, BlockPerm shared,
                       BlockPerm *child_perm, BlockPerm *child_shared);
    /*
     * The cumulative permissions of the node's parents change. check may fail (a file lock that another
     * process holds) with *errp; then exactly one of set or abort follows each successful check. Main thread.
     */
    int (*check_perm)(BlockNode *node, BlockPerm perm, BlockPerm shared, GError **errp);
    void (*set_perm)(BlockNode *node, BlockPerm perm, BlockPerm shared);
    void (*abort_perm_update)(BlockNode *node);

    /* Whether a flush reaches stable storage: 1 yes, 0 no, -1 unknown. Any thread. NULL: the least of the
     * children's. */
    int (*durable)(BlockNode *node);
    /* Internal snapshots (block/snapshot.h). NULL: none of its own. */
    const struct BlockSnapshotOps *snapshots;
    /* Whether the node's bytes are just those of child `file`: its snapshots are then this node's. Main
     * thread. NULL: true for filters, else false. */
    bool (*passes_through)(BlockNode *node);

    /* The file name or URL for people, secrets redacted; free with g_free; may be NULL. Any thread. NULL:
     * child `file`'s. */
    char *(*filename)(BlockNode *node);
    /* What people should know of the storage's state or safety, in a few words ("down for 3 s, certificates
     * are not verified"); free with g_free. Any thread. NULL, the callback or its value: nothing. */
    char *(*status)(BlockNode *node);
};

/*
 * The driver named `name`, or NULL with *errp naming the nearest. Provided by backends/registry.c.
 */
const BlockDriver *block_driver_find(const char *name, GError **errp);

/* For tests: add a driver beside the registry's. Main thread. */
void block_driver_register_for_test(const BlockDriver *driver);

#endif /* BG_BLOCK_DRIVER_H */
