/*
 * Directories: LOOKUP, READDIR, READDIRPLUS, READLINK.
 *
 * A directory is listed when it is read from its start; later reads of the same open directory go on in that
 * list. .graph and .snap are found by name but not listed.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "fuse/attr.h"
#include "fuse/control-files.h"
#include "fuse/mount-internal.h"
#include "fuse/ops.h"
#include "fuse/snapshot-files.h"

/* ---- LOOKUP */

/* The entry of a directory: a new reference in *child. 0 or -ENOENT. */
static int coroutine_fn dir_co_lookup(FuseRequest *req, FuseInode *dir, const char *name, FuseInode **child)
{
    switch (dir->kind) {
    case FUSE_INODE_NODES_DIR:
    case FUSE_INODE_NODE_DIR:
    case FUSE_INODE_CHILDREN_DIR:
        return control_co_lookup(req, dir, name, child);
    case FUSE_INODE_SNAP_DIR:
    case FUSE_INODE_SNAPSHOT_DIR:
        return snapshot_co_lookup(req, dir, name, child);
    default:
        *child = fuse_inode_find(&req->queue->mount->inodes, dir, name);
        return *child ? 0 : -ENOENT;
    }
}

int coroutine_fn fuse_op_lookup(FuseRequest *req)
{
    FuseInode *dir = fuse_request_inode(req), *child;
    if (!dir) {
        return -ESTALE;
    }
    if (!S_ISDIR(fuse_inode_type(dir))) {
        return -ENOTDIR;
    }
    if (strlen(req->names[0]) > FUSE_NAME_LENGTH_MAX) {
        return -ENAMETOOLONG;
    }
    int ret = dir_co_lookup(req, dir, req->names[0], &child);
    ret = ret < 0 ? ret : fuse_inode_co_reply_entry(req, child);
    return ret == -ESTALE ? -ENOENT : ret;
}

/* ---- READDIR, READDIRPLUS */

static void list_exports(FuseMount *mount, FuseDirList *list)
{
    bg_mutex_lock(&mount->lock);
    for (guint i = 0; i < mount->exports->len; i++) {
        const FuseExport *exp = mount->exports->pdata[i];
        fuse_dir_list_add(list, exp->id, exp->inode->nodeid, S_IFREG);
    }
    bg_mutex_unlock(&mount->lock);
}

/* The list that is being read: a reference in *list. */
static int coroutine_fn dir_co_list(FuseRequest *req, FuseInode *dir, FuseFile *file, uint64_t offset,
                                    FuseDirList **list)
{
    FuseMount *mount = req->queue->mount;
    *list = offset > 0 ? fuse_file_get_list(&mount->files, file) : NULL;
    if (*list) {
        return 0;
    }
    g_autoptr(FuseDirList) fresh =
        fuse_dir_list_new(dir->nodeid, dir->parent ? dir->parent->nodeid : dir->nodeid);
    if (dir->kind == FUSE_INODE_ROOT) {
        list_exports(mount, fresh);
    } else {
        bool snap = dir->kind == FUSE_INODE_SNAP_DIR || dir->kind == FUSE_INODE_SNAPSHOT_DIR;
        int ret = snap ? snapshot_co_list(req, dir, fresh) : control_co_list(req, dir, fresh);
        if (ret < 0) {
            return ret;
        }
    }
    fuse_file_set_list(&mount->files, file, fresh);
    *list = g_steal_pointer(&fresh);
    return 0;
}

/* READDIRPLUS: one entry with its attributes. False where it does not fit. */
static bool coroutine_fn pack_plus(FuseRequest *req, FuseInode *dir, const FuseDirList *list, uint64_t i,
                                   size_t room, size_t *used)
{
    FuseInodeTable *inodes = &req->queue->mount->inodes;
    const char *name = fuse_dir_list_get(list, i)->name;
    struct fuse_entry_out attr = {.nodeid = 0}; /* for "." and "..": no look-up */
    FuseInode *child = NULL;
    if (i >= 2 && dir_co_lookup(req, dir, name, &child) == 0 && fuse_inode_co_entry(req, child, &attr) < 0) {
        memset(&attr, 0, sizeof attr); /* went away meanwhile: the name alone */
    }
    bool fits = fuse_dir_entry_pack(list, i, &attr, req->payload, room, used);
    if (child) {
        if (fits && attr.nodeid) {
            fuse_inode_looked_up(inodes, child);
        }
        fuse_inode_put(inodes, child);
    }
    return fits;
}

static int coroutine_fn fill_reply(FuseRequest *req, FuseInode *dir, const FuseDirList *list, bool plus)
{
    const struct fuse_read_in *arg = req->arg;
    size_t room = MIN(arg->size, FUSE_PAYLOAD_SIZE), used = 0;
    for (uint64_t i = arg->offset; fuse_dir_list_get(list, i); i++) {
        bool fits = plus ? pack_plus(req, dir, list, i, room, &used)
                         : fuse_dir_entry_pack(list, i, NULL, req->payload, room, &used);
        if (!fits) {
            if (used == 0) {
                return -EINVAL; /* not even one entry: nothing returned would mean the end */
            }
            break;
        }
    }
    fuse_request_payload_reply(req, used);
    return 0;
}

static int coroutine_fn read_dir(FuseRequest *req, bool plus)
{
    const struct fuse_read_in *arg = req->arg;
    FuseFileTable *files = &req->queue->mount->files;
    FuseInode *dir = fuse_request_inode(req);
    FuseFile *file = dir ? fuse_file_get(files, arg->fh, dir->nodeid) : NULL;
    if (!file) {
        return -EBADF;
    }
    int ret = -ENOTDIR;
    if (file->kind == FUSE_FILE_DIR) {
        FuseDirList *list;
        ret = dir_co_list(req, dir, file, arg->offset, &list);
        if (ret == 0) {
            ret = fill_reply(req, dir, list, plus);
            fuse_dir_list_unref(list);
        }
    }
    BlockBackend *blk;
    fuse_file_put(files, file, &blk);
    control_co_free_backend(req, blk);
    return ret;
}

int coroutine_fn fuse_op_readdir(FuseRequest *req)
{
    return read_dir(req, false);
}

int coroutine_fn fuse_op_readdirplus(FuseRequest *req)
{
    return read_dir(req, true);
}

/* ---- READLINK */

int coroutine_fn fuse_op_readlink(FuseRequest *req)
{
    FuseInode *inode = fuse_request_inode(req);
    if (!inode) {
        return -ESTALE;
    }
    if (inode->kind != FUSE_INODE_CHILD_SYMLINK) {
        return -EINVAL;
    }
    g_autofree char *target = control_co_readlink(req, inode);
    if (!target) {
        return -ESTALE;
    }
    size_t n = strlen(target);
    memcpy(req->payload, target, n);
    fuse_request_payload_reply(req, n);
    return 0;
}
