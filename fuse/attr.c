/*
 * Attributes: what stat shows of exports, directories and control files.
 *
 * Exports: never cached by the kernel, as their length and allocation can change behind its back (another
 * export of the same node, a resize). Directories and control files: a second. Names below .graph/nodes come
 * and go with the nodes: never cached.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "fuse/attr.h"
#include "fuse/control-files.h"
#include "fuse/mount-internal.h"
#include "fuse/snapshot-files.h"

#define NSEC_PER_SEC    (1000 * 1000 * 1000LL)
#define ATTR_VALID_S    1
#define ST_BLOCK_SIZE   512
#define BLOCK_SIZE_HINT 4096

uint32_t fuse_inode_type(const FuseInode *inode)
{
    switch (inode->kind) {
    case FUSE_INODE_ROOT:
    case FUSE_INODE_SNAP_DIR:
    case FUSE_INODE_SNAPSHOT_DIR:
    case FUSE_INODE_GRAPH_DIR:
    case FUSE_INODE_NODES_DIR:
    case FUSE_INODE_NODE_DIR:
    case FUSE_INODE_CHILDREN_DIR:
        return S_IFDIR;
    case FUSE_INODE_CHILD_SYMLINK:
        return S_IFLNK;
    case FUSE_INODE_EXPORT:
    case FUSE_INODE_SNAPSHOT_FILE:
    case FUSE_INODE_GRAPH_TEXT:
    case FUSE_INODE_NODE_DATA:
    case FUSE_INODE_NODE_TEXT:
        return S_IFREG;
    }
    g_assert_not_reached();
}

static void fill_times(struct fuse_attr *attr, int64_t atime, int64_t mtime, int64_t ctime)
{
    attr->atime = (uint64_t)(atime / NSEC_PER_SEC);
    attr->atimensec = (uint32_t)(atime % NSEC_PER_SEC);
    attr->mtime = (uint64_t)(mtime / NSEC_PER_SEC);
    attr->mtimensec = (uint32_t)(mtime % NSEC_PER_SEC);
    attr->ctime = (uint64_t)(ctime / NSEC_PER_SEC);
    attr->ctimensec = (uint32_t)(ctime % NSEC_PER_SEC);
}

static void fill_owner(struct fuse_attr *attr, const FuseOwner *owner, int64_t last_write)
{
    attr->mode |= owner->mode;
    attr->uid = owner->uid;
    attr->gid = owner->gid;
    /* A time that was set counts until the next write, also one in the future. */
    int64_t mtime = last_write > owner->mtime_set ? last_write : owner->mtime_ns;
    fill_times(attr, owner->atime_ns, mtime, MAX(owner->ctime_ns, last_write));
}

static int coroutine_fn export_attr(FuseRequest *req, FuseInode *inode, struct fuse_attr *attr)
{
    FuseExport *exp = atomic_load_explicit(&inode->exp, memory_order_acquire);
    if (!exp) {
        return -ESTALE;
    }
    fuse_export_enter(exp, req->queue->index);
    int64_t allocated = fuse_export_co_allocated(exp);
    int64_t last_write = fuse_export_last_write(exp);
    bg_mutex_lock(&exp->lock);
    FuseOwner owner = exp->owner;
    bg_mutex_unlock(&exp->lock);
    fill_owner(attr, &owner, last_write);
    attr->size = (uint64_t)block_backend_length(exp->blk);
    attr->blocks = (uint64_t)(allocated + ST_BLOCK_SIZE - 1) / ST_BLOCK_SIZE;
    fuse_export_leave(exp, req->queue->index);
    return 0;
}

static void root_attr(FuseMount *mount, struct fuse_attr *attr)
{
    bg_mutex_lock(&mount->lock);
    FuseOwner owner = mount->owner;
    bg_mutex_unlock(&mount->lock);
    fill_owner(attr, &owner, 0);
}

static void control_attr(FuseMount *mount, struct fuse_attr *attr, mode_t mode)
{
    attr->mode |= mode;
    attr->uid = mount->uid;
    attr->gid = mount->gid;
    fill_times(attr, mount->start_ns, mount->start_ns, mount->start_ns);
}

static int coroutine_fn snapshot_attr(FuseRequest *req, FuseInode *inode, struct fuse_attr *attr)
{
    int64_t date, length;
    int ret = snapshot_co_stat(req, inode, &date, &length);
    bool dir = inode->kind == FUSE_INODE_SNAPSHOT_DIR;
    if (ret < 0 && req->in->opcode == FUSE_MKDIR) {
        /* It was made, and another has deleted it since, or put an overlay on top: not mkdir's failure. */
        date = g_get_real_time() * 1000;
    } else if (ret < 0) {
        return ret;
    }
    control_attr(req->queue->mount, attr, dir ? 0555 : 0400);
    fill_times(attr, date, date, date);
    attr->size = dir ? 0 : (uint64_t)length;
    return 0;
}

int coroutine_fn fuse_inode_co_attr(FuseRequest *req, FuseInode *inode, struct fuse_attr *attr,
                                    uint64_t *valid_s)
{
    FuseMount *mount = req->queue->mount;
    memset(attr, 0, sizeof *attr);
    attr->ino = inode->nodeid;
    attr->mode = fuse_inode_type(inode);
    attr->nlink = S_ISDIR(attr->mode) ? 2 : 1;
    attr->blksize = BLOCK_SIZE_HINT;
    *valid_s = ATTR_VALID_S;
    switch (inode->kind) {
    case FUSE_INODE_EXPORT:
        *valid_s = 0;
        return export_attr(req, inode, attr);
    case FUSE_INODE_ROOT:
        root_attr(mount, attr);
        return 0;
    case FUSE_INODE_NODE_DATA: {
        int64_t length = control_co_node_length(req, inode);
        control_attr(mount, attr, 0400); /* whatever the export of this node allows */
        attr->size = (uint64_t)MAX(length, 0);
        *valid_s = 0;
        return (int)MIN(length, 0);
    }
    case FUSE_INODE_SNAP_DIR:
        control_attr(mount, attr, 0755);
        return 0;
    case FUSE_INODE_SNAPSHOT_DIR:
    case FUSE_INODE_SNAPSHOT_FILE:
        *valid_s = 0;
        return snapshot_attr(req, inode, attr);
    case FUSE_INODE_CHILD_SYMLINK:
        control_attr(mount, attr, 0777);
        return 0;
    case FUSE_INODE_GRAPH_TEXT:
    case FUSE_INODE_NODE_TEXT:
        control_attr(mount, attr, 0444);
        *valid_s = 0;
        return 0;
    default:
        control_attr(mount, attr, 0555);
        return 0;
    }
}

int coroutine_fn fuse_inode_co_entry(FuseRequest *req, FuseInode *inode, struct fuse_entry_out *out)
{
    memset(out, 0, sizeof *out);
    out->nodeid = inode->nodeid;
    bool stays = inode->kind == FUSE_INODE_EXPORT || inode->kind == FUSE_INODE_GRAPH_DIR ||
                 inode->kind == FUSE_INODE_SNAP_DIR || inode->kind == FUSE_INODE_GRAPH_TEXT ||
                 inode->kind == FUSE_INODE_NODES_DIR;
    out->entry_valid = stays ? ATTR_VALID_S : 0;
    return fuse_inode_co_attr(req, inode, &out->attr, &out->attr_valid);
}

int coroutine_fn fuse_inode_co_reply_entry(FuseRequest *req, FuseInode *inode)
{
    FuseInodeTable *inodes = &req->queue->mount->inodes;
    struct fuse_entry_out *out = fuse_request_small_reply(req, sizeof *out);
    int ret = fuse_inode_co_entry(req, inode, out);
    if (ret == 0) {
        fuse_inode_looked_up(inodes, inode);
    }
    fuse_inode_put(inodes, inode);
    return ret;
}
