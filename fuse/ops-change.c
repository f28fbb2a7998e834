/*
 * Requests to change the directory tree. Snapshots are made and deleted as directories of .snap; all else is
 * refused: what is there follows from the graph.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "fuse/attr.h"
#include "fuse/mount-internal.h"
#include "fuse/ops.h"
#include "fuse/snapshot-files.h"

/* .graph is read-only for everyone; elsewhere it is the operation that does not exist. */
int coroutine_fn fuse_op_refuse(FuseRequest *req)
{
    FuseInode *dir = fuse_request_inode(req);
    if (!dir) {
        return -ESTALE;
    }
    bool here =
        dir->kind == FUSE_INODE_ROOT || dir->kind == FUSE_INODE_SNAP_DIR || dir->kind == FUSE_INODE_EXPORT;
    return here ? -EPERM : -EROFS;
}

/* mkdir in .snap takes a snapshot of every writable export. */
int coroutine_fn fuse_op_mkdir(FuseRequest *req)
{
    FuseInode *dir = fuse_request_inode(req), *child;
    if (!dir || dir->kind != FUSE_INODE_SNAP_DIR) {
        return fuse_op_refuse(req);
    }
    if (req->queue->mount->read_only) {
        return -EROFS;
    }
    int ret = snapshot_co_create(req, dir, req->names[0], &child);
    return ret < 0 ? ret : fuse_inode_co_reply_entry(req, child);
}

/* rmdir deletes it, whatever the directory seems to hold. */
int coroutine_fn fuse_op_rmdir(FuseRequest *req)
{
    FuseInode *dir = fuse_request_inode(req);
    if (!dir || dir->kind != FUSE_INODE_SNAP_DIR) {
        return fuse_op_refuse(req);
    }
    return req->queue->mount->read_only ? -EROFS : snapshot_co_delete(req, req->names[0]);
}
