/*
 * Requests to change the directory tree, all of which are refused: what is there follows from the graph.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "fuse/attr.h"
#include "fuse/mount-internal.h"
#include "fuse/ops.h"

/* .graph is read-only for everyone; elsewhere it is the operation that does not exist. */
int coroutine_fn fuse_op_refuse(FuseRequest *req)
{
    FuseInode *dir = fuse_request_inode(req);
    if (!dir) {
        return -ESTALE;
    }
    return dir->kind == FUSE_INODE_ROOT || dir->kind == FUSE_INODE_SNAP_DIR || dir->kind == FUSE_INODE_EXPORT
               ? -EPERM
               : -EROFS;
}

/* mkdir in .snap asks for a snapshot of every writable export. */
int coroutine_fn fuse_op_mkdir(FuseRequest *req)
{
    FuseMount *mount = req->queue->mount;
    FuseInode *dir = fuse_request_inode(req);
    if (!dir || dir->kind != FUSE_INODE_SNAP_DIR) {
        return fuse_op_refuse(req);
    }
    g_autofree char *text = g_strdup_printf("no driver of the exported nodes has snapshots");
    g_autofree char *name = g_strdup_printf(".snap/%s", req->names[0]);
    block_graph_log_error(mount->graph, name, BLOCK_OP_OPEN, -1, 0, EOPNOTSUPP, text);
    return -EOPNOTSUPP;
}
