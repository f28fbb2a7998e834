/*
 * OPEN, RELEASE, OPENDIR, RELEASEDIR.
 *
 * Every file is open for direct I/O: the kernel caches no data, so what one opener wrote is what all others
 * read, by this mount or otherwise. Shared mappings still work where the kernel allows them on such files.
 *
 * O_TRUNC comes as a SETATTR after OPEN; see ops-meta.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>

#include "fuse/attr.h"
#include "fuse/control-files.h"
#include "fuse/mount-internal.h"
#include "fuse/ops.h"
#include "fuse/snapshot-files.h"

static int open_export(FuseRequest *req, FuseInode *inode, FuseFile *init)
{
    FuseExport *exp = fuse_request_enter(req, &inode->exp);
    if (!exp) {
        return -ESTALE;
    }
    if (init->writable && (!exp->writable || req->queue->mount->read_only)) {
        return -EROFS;
    }
    init->kind = FUSE_FILE_EXPORT;
    atomic_store_explicit(&init->exp, exp, memory_order_relaxed);
    return 0;
}

static int reply_handle(FuseRequest *req, FuseFile *init, uint32_t open_flags)
{
    uint64_t fh;
    int ret = fuse_file_open(&req->queue->mount->files, init, &fh);
    if (ret == 0) {
        struct fuse_open_out *out = fuse_request_small_reply(req, sizeof *out);
        out->fh = fh;
        out->open_flags = open_flags;
    }
    return ret;
}

int coroutine_fn fuse_op_open(FuseRequest *req)
{
    const struct fuse_open_in *arg = req->arg;
    FuseInode *inode = fuse_request_inode(req);
    if (!inode) {
        return -ESTALE;
    }
    if (fuse_inode_type(inode) != S_IFREG) {
        return S_ISDIR(fuse_inode_type(inode)) ? -EISDIR : -ELOOP;
    }
    bool write = (arg->flags & O_ACCMODE) != O_RDONLY;
    FuseFile init = {.nodeid = inode->nodeid, .writable = write};
    if (inode->kind == FUSE_INODE_EXPORT) {
        int ret = open_export(req, inode, &init);
        return ret < 0 ? ret : reply_handle(req, &init, FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES);
    }
    if (write) {
        return -EROFS;
    }
    int ret = inode->kind == FUSE_INODE_SNAPSHOT_FILE ? snapshot_co_open(req, inode, &init)
                                                      : control_co_open(req, inode, &init);
    if (ret == 0 && (ret = reply_handle(req, &init, FOPEN_DIRECT_IO)) < 0) {
        control_co_free_backend(req, init.blk);
        g_clear_pointer(&init.text, g_bytes_unref);
    }
    return ret;
}

int coroutine_fn fuse_op_release(FuseRequest *req)
{
    const struct fuse_release_in *arg = req->arg;
    BlockBackend *blk;
    int ret = fuse_file_release(&req->queue->mount->files, arg->fh, req->in->nodeid, &blk);
    control_co_free_backend(req, blk);
    return ret;
}

int coroutine_fn fuse_op_opendir(FuseRequest *req)
{
    FuseInode *inode = fuse_request_inode(req);
    if (!inode) {
        return -ESTALE;
    }
    if (!S_ISDIR(fuse_inode_type(inode))) {
        return -ENOTDIR;
    }
    FuseFile init = {.kind = FUSE_FILE_DIR, .nodeid = inode->nodeid};
    return reply_handle(req, &init, 0);
}

int coroutine_fn fuse_op_releasedir(FuseRequest *req)
{
    const struct fuse_release_in *arg = req->arg;
    BlockBackend *blk; /* directories have none */
    return fuse_file_release(&req->queue->mount->files, arg->fh, req->in->nodeid, &blk);
}
