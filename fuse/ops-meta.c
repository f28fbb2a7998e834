/*
 * Attributes and accounting: GETATTR, SETATTR, STATFS, FORGET.
 *
 * O_TRUNC reaches us as a SETATTR of length 0 without a file handle (ftruncate has one). It empties an export
 * that may grow; on one of fixed length it does nothing, as on a block device: cp and dd would lose the image
 * first, and find no space after. truncate(2) to 0 by path cannot be told apart and does the same.
 *
 * Mode, owner and times of exports and of the root directory are kept until the unmount; set-user-id and its
 * like are not kept, so nothing has to be taken away at a write.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "fuse/attr.h"
#include "fuse/mount-internal.h"
#include "fuse/ops.h"
#include "util/log.h"

#define STATFS_BLOCK_SIZE 4096

/* ---- GETATTR */

/* Of a control file that is open, stat can tell the length of the text. */
static void add_text_length(FuseRequest *req, uint64_t fh, struct fuse_attr *attr)
{
    FuseFileTable *table = &req->queue->mount->files;
    FuseFile *file = fuse_file_get(table, fh, req->in->nodeid);
    if (file) {
        BlockBackend *blk;
        if (file->kind == FUSE_FILE_TEXT) {
            attr->size = g_bytes_get_size(file->text);
        }
        fuse_file_put(table, file, &blk);
        g_assert(!blk); /* no file that holds one is a text */
    }
}

static int coroutine_fn reply_attr(FuseRequest *req, FuseInode *inode)
{
    struct fuse_attr_out *out = fuse_request_small_reply(req, sizeof *out);
    return fuse_inode_co_attr(req, inode, &out->attr, &out->attr_valid);
}

int coroutine_fn fuse_op_getattr(FuseRequest *req)
{
    const struct fuse_getattr_in *arg = req->arg;
    FuseInode *inode = fuse_request_inode(req);
    if (!inode) {
        return -ESTALE;
    }
    int ret = reply_attr(req, inode);
    bool text = inode->kind == FUSE_INODE_GRAPH_TEXT || inode->kind == FUSE_INODE_NODE_TEXT;
    if (ret == 0 && text && (arg->getattr_flags & FUSE_GETATTR_FH)) {
        struct fuse_attr_out *out = (void *)req->small;
        add_text_length(req, arg->fh, &out->attr);
    }
    return ret;
}

/* ---- SETATTR */

/* An export of fixed length holds no permission to resize: take it for the moment of a truncate. Main thread.
 */
static int coroutine_fn truncate_with_permission(FuseExport *exp, int64_t size)
{
    g_autoptr(GError) err = NULL;
    BlockPerm perm = BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE;
    BlockPerm shared = BLOCK_PERM_ALL & ~BLOCK_PERM_WRITE;
    int ret = block_backend_set_perm(exp->blk, perm | BLOCK_PERM_RESIZE, shared, &err);
    if (ret < 0) {
        return ret;
    }
    ret = block_backend_co_truncate(exp->blk, size, NULL);
    /* Giving a permission back cannot fail. */
    block_backend_set_perm(exp->blk, perm, shared, NULL);
    return ret;
}

static int coroutine_fn set_size(FuseRequest *req, FuseExport *exp, uint64_t size)
{
    if (!exp->writable) {
        return -EROFS;
    }
    if (size > BLOCK_MAX_LENGTH) {
        return -EFBIG;
    }
    if ((int64_t)size == block_backend_length(exp->blk)) {
        return 0;
    }
    co_mutex_lock(&exp->resize_lock);
    int ret;
    if (exp->growable) {
        ret = block_backend_co_truncate(exp->blk, (int64_t)size, NULL);
    } else {
        fuse_request_to_main(req);
        ret = truncate_with_permission(exp, (int64_t)size);
        fuse_request_to_queue(req);
    }
    co_mutex_unlock(&exp->resize_lock);
    return ret;
}

/* ftruncate(2) is a change of the open file. */
static void note_truncate(FuseRequest *req, const struct fuse_setattr_in *arg, BlockFlushError since)
{
    FuseFile *file = NULL;
    if (arg->valid & FATTR_FH) {
        file = fuse_file_peek(&req->queue->mount->files, arg->fh, req->in->nodeid);
    }
    if (file && file->kind == FUSE_FILE_EXPORT) {
        fuse_file_changed(file, since);
    }
}

static int64_t time_from_request(uint64_t sec, uint32_t nsec)
{
    /* Seconds before 1970 are negative; what does not fit in 64 bits of nanoseconds is cut. */
    int64_t limit = INT64_MAX / 1000000000 - 1, s = CLAMP((int64_t)sec, -limit, limit);
    return s * 1000000000 + nsec % 1000000000;
}

static void set_owner(FuseOwner *owner, const struct fuse_setattr_in *arg)
{
    int64_t now = fuse_now_ns();
    if (arg->valid & FATTR_MODE) {
        owner->mode = arg->mode & 0777;
    }
    if (arg->valid & FATTR_UID) {
        owner->uid = arg->uid;
    }
    if (arg->valid & FATTR_GID) {
        owner->gid = arg->gid;
    }
    if (arg->valid & FATTR_ATIME) {
        owner->atime_ns = arg->valid & FATTR_ATIME_NOW ? now : time_from_request(arg->atime, arg->atimensec);
    }
    if (arg->valid & FATTR_MTIME) {
        owner->mtime_ns = arg->valid & FATTR_MTIME_NOW ? now : time_from_request(arg->mtime, arg->mtimensec);
        owner->mtime_set = now;
    }
    owner->ctime_ns = now;
}

static int coroutine_fn setattr_export(FuseRequest *req, FuseInode *inode, const struct fuse_setattr_in *arg)
{
    FuseExport *exp = fuse_request_enter(req, &inode->exp);
    int ret = 0;
    if (!exp) {
        return -ESTALE;
    }
    bool o_trunc = arg->size == 0 && !(arg->valid & FATTR_FH);
    bool ignored = o_trunc && exp->writable && !exp->growable;
    if ((arg->valid & FATTR_SIZE) && !ignored) {
        BlockFlushError since = block_graph_flush_errors(exp->graph);
        ret = set_size(req, exp, arg->size);
        note_truncate(req, arg, since);
    }
    if (ret == 0) {
        bg_mutex_lock(&exp->lock);
        set_owner(&exp->owner, arg);
        bg_mutex_unlock(&exp->lock);
    }
    return ret;
}

int coroutine_fn fuse_op_setattr(FuseRequest *req)
{
    const struct fuse_setattr_in *arg = req->arg;
    FuseMount *mount = req->queue->mount;
    FuseInode *inode = fuse_request_inode(req);
    int ret = 0;
    if (!inode) {
        return -ESTALE;
    }
    if (inode->kind == FUSE_INODE_EXPORT) {
        ret = setattr_export(req, inode, arg);
    } else if (inode->kind == FUSE_INODE_ROOT && !(arg->valid & FATTR_SIZE)) {
        bg_mutex_lock(&mount->lock);
        set_owner(&mount->owner, arg);
        bg_mutex_unlock(&mount->lock);
    } else {
        ret = inode->kind == FUSE_INODE_ROOT ? -EISDIR : -EROFS;
    }
    return ret < 0 ? ret : reply_attr(req, inode);
}

/* ---- STATFS: size is the length of all exports, free is what they have not allocated yet. */

GPtrArray *fuse_request_enter_all(FuseRequest *req)
{
    FuseMount *mount = req->queue->mount;
    bg_mutex_lock(&mount->lock);
    GPtrArray *exports = g_ptr_array_copy(mount->exports, NULL, NULL);
    for (guint i = 0; i < exports->len; i++) {
        fuse_export_enter(exports->pdata[i], req->queue->index);
    }
    bg_mutex_unlock(&mount->lock);
    return exports;
}

int coroutine_fn fuse_op_statfs(FuseRequest *req)
{
    g_autoptr(GPtrArray) exports = fuse_request_enter_all(req);
    uint64_t length = 0, allocated = 0;
    for (guint i = 0; i < exports->len; i++) {
        FuseExport *exp = exports->pdata[i];
        int64_t used = fuse_export_co_allocated(exp);
        int64_t n = block_backend_length(exp->blk);
        length += (uint64_t)n;
        allocated += (uint64_t)MIN(used, n);
        fuse_export_leave(exp, req->queue->index);
    }
    struct fuse_statfs_out *out = fuse_request_small_reply(req, sizeof *out);
    out->st = (struct fuse_kstatfs){.blocks = (length + STATFS_BLOCK_SIZE - 1) / STATFS_BLOCK_SIZE,
                                    .bfree = (length - allocated) / STATFS_BLOCK_SIZE,
                                    .bavail = (length - allocated) / STATFS_BLOCK_SIZE,
                                    .files = exports->len,
                                    .bsize = STATFS_BLOCK_SIZE,
                                    .frsize = STATFS_BLOCK_SIZE,
                                    .namelen = FUSE_NAME_LENGTH_MAX};
    return 0;
}

/* ---- FORGET */

static void forget(FuseMount *mount, uint64_t nodeid, uint64_t n)
{
    if (fuse_inode_forget(&mount->inodes, nodeid, n) < 0) {
        bg_log(BG_LOG_DEBUG, "FORGET of node %" G_GUINT64_FORMAT ", which the kernel does not hold", nodeid);
    }
}

int fuse_op_forget(FuseRequest *req)
{
    const struct fuse_forget_in *arg = req->arg;
    forget(req->queue->mount, req->in->nodeid, arg->nlookup);
    return 0;
}

int fuse_op_batch_forget(FuseRequest *req)
{
    const struct fuse_batch_forget_in *arg = req->arg;
    const struct fuse_forget_one *one = (const void *)req->body;
    size_t count = MIN(arg->count, req->body_len / sizeof *one);
    for (size_t i = 0; i < count; i++) {
        forget(req->queue->mount, one[i].nodeid, one[i].nlookup);
    }
    return 0;
}
