/*
 * Internal snapshots: states of a node's content that lie in its own storage beside the current one.
 *
 * A driver that has them gives BlockSnapshotOps. The functions here work on the nodes that users name: where
 * such a node passes its bytes on unchanged, the node below is meant (block_snapshot_target).
 *
 *   change of several nodes   LISTED --all names checked--> DRAINED --co_prepare on each--> PREPARED
 *                             PREPARED --co_commit on each--> done
 *                             anything fails --co_abort, or the opposite change--> as before
 *
 * Main thread, coroutine, unless said otherwise. 0 or -errno and *errp, whose message names the node.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BLOCK_SNAPSHOT_H
#define BG_BLOCK_SNAPSHOT_H

#include "block/backend.h"
#include "block/node.h"

/* Longest name of a snapshot in bytes, without the NUL: it is a file name in .snap. */
#define BLOCK_SNAPSHOT_NAME_MAX 255

typedef struct BlockSnapshotInfo {
    char *id;               /* as the format counts them; may be empty */
    char *name;             /* UTF-8 where the format promises it; may be any bytes */
    int64_t date_ns;        /* CLOCK_REALTIME */
    int64_t length;         /* of the node then, in bytes */
    uint64_t vm_state_size; /* bytes; 0: none */
} BlockSnapshotInfo;

BlockSnapshotInfo *block_snapshot_info_new(const char *id, const char *name);
void block_snapshot_info_free(BlockSnapshotInfo *info);

typedef enum BlockSnapshotAction {
    BLOCK_SNAPSHOT_CREATE,
    BLOCK_SNAPSHOT_DELETE,
    BLOCK_SNAPSHOT_REVERT, /* the current content becomes that of the snapshot */
} BlockSnapshotAction;

typedef struct BlockSnapshotChange {
    BlockSnapshotAction action;
    const char *name;
    int64_t date_ns; /* CREATE */
} BlockSnapshotChange;

/* What a driver with snapshots has; all are required. Main thread, coroutine, but for the views' I/O. */
typedef struct BlockSnapshotOps {
    /* Append a BlockSnapshotInfo for each, oldest first. */
    int coroutine_fn (*co_list)(BlockNode *node, GPtrArray *infos, GError **errp);
    /*
     * Called a moment before the node is drained for a change, while it is in use: write out what co_prepare
     * would have to. May be NULL. Errors come again there.
     */
    void coroutine_fn (*co_warm_up)(BlockNode *node);
    /*
     * Do all that can fail, visible to nobody; the node is drained from before this call until after commit
     * or abort, of which exactly one follows a success and frees *state. CREATE: the name is not in use.
     * Others: it is.
     */
    int coroutine_fn (*co_prepare)(BlockNode *node, const BlockSnapshotChange *change, void **state,
                                   GError **errp);
    /* Make it so, on stable storage when it returns. */
    int coroutine_fn (*co_commit)(BlockNode *node, void *state, GError **errp);
    void coroutine_fn (*co_abort)(BlockNode *node, void *state);

    /*
     * A snapshot's content for reading: *view is passed to the others; *length in bytes. While one is open,
     * co_prepare(DELETE) gives -EBUSY, or the content stays readable until it is closed.
     */
    int coroutine_fn (*co_view_open)(BlockNode *node, const char *name, void **view, int64_t *length,
                                     GError **errp);
    void coroutine_fn (*co_view_close)(BlockNode *node, void *view);
    /* As the driver's callbacks of these names; the range lies in the view's length, any alignment. */
    int coroutine_fn (*co_view_preadv)(BlockNode *node, void *view, int64_t offset, int64_t bytes,
                                       const IoVector *qiov, size_t qiov_offset);
    int coroutine_fn (*co_view_block_status)(BlockNode *node, void *view, int64_t offset, int64_t bytes,
                                             int64_t *pnum);
} BlockSnapshotOps;

/* The node whose snapshots a user of `node` means; NULL and *errp where it has none. Main thread, also
 * outside coroutines. */
BlockNode *block_snapshot_target(BlockNode *node, GError **errp);

/* Whether a name may be given to a snapshot. */
bool block_snapshot_check_name(const char *name, GError **errp);

/*
 * Change the snapshots of the nodes at one point in time: one drained section over all. Nodes that share a
 * target count once. CREATE: -EEXIST where one has the name already; whole or nothing. DELETE, REVERT:
 * -ENOENT where one lacks it; DELETE: -EBUSY while it is being read. These two can stop half-way where
 * storage fails; the message says which nodes are done.
 */
int coroutine_fn block_snapshot_co_create(BlockNode *const *nodes, unsigned n, const char *name,
                                          GError **errp);
int coroutine_fn block_snapshot_co_delete(BlockNode *const *nodes, unsigned n, const char *name,
                                          GError **errp);
int coroutine_fn block_snapshot_co_revert(BlockNode *const *nodes, unsigned n, const char *name,
                                          GError **errp);

/* Append a BlockSnapshotInfo for each of the node's snapshots, oldest first. */
int coroutine_fn block_snapshot_co_list(BlockNode *node, GPtrArray *infos, GError **errp);

/*
 * A backend that reads the node as it was: block_backend_co_preadv, co_pread, co_block_status and length work
 * on it, all else fails with -EROFS. `user` is its name in messages. Free with block_backend_co_free.
 */
BlockBackend *coroutine_fn block_snapshot_co_open(BlockNode *node, const char *name, const char *user,
                                                  GError **errp);

#endif /* BG_BLOCK_SNAPSHOT_H */
