/*
 * The files of .snap. See snapshot-files.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "fuse/snapshot-files.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "block/graph.h"
#include "block/snapshot.h"
#include "fuse/mount-internal.h"
#include "util/error.h"

/* ---- Exports and their snapshots. Main thread. */

static void coroutine_fn unref_nodes(GPtrArray *nodes)
{
    for (guint i = 0; i < nodes->len; i++) {
        block_node_co_unref(nodes->pdata[i]);
    }
    g_ptr_array_unref(nodes);
}

/* The snapshots of a node; empty where it has none. Free with g_ptr_array_unref. */
static GPtrArray *coroutine_fn snapshots_of(BlockNode *node)
{
    GPtrArray *infos = g_ptr_array_new_with_free_func((GDestroyNotify)block_snapshot_info_free);
    if (block_snapshot_target(node, NULL)) {
        block_snapshot_co_list(node, infos, NULL);
    }
    return infos;
}

static const BlockSnapshotInfo *find_name(const GPtrArray *infos, const char *name)
{
    for (guint i = 0; i < infos->len; i++) {
        const BlockSnapshotInfo *info = infos->pdata[i];
        if (!strcmp(info->name, name)) {
            return info;
        }
    }
    return NULL;
}

/* An export's node that has the snapshot; copies what is asked for. */
static bool coroutine_fn has_snapshot(FuseExport *exp, const char *name, int64_t *date_ns, int64_t *length)
{
    BlockNode *node = block_backend_node(exp->blk);
    if (!node) {
        return false;
    }
    g_autoptr(GPtrArray) infos = snapshots_of(node);
    const BlockSnapshotInfo *info = find_name(infos, name);
    if (info) {
        *date_ns = info->date_ns;
        *length = info->length;
    }
    return info;
}

/* The export of that name, or the first that has the snapshot; NULL: none. */
static FuseExport *coroutine_fn find_export(FuseMount *mount, const char *id, const char *snapshot,
                                            int64_t *date_ns, int64_t *length) BG_NO_TSA
{
    for (guint i = 0; i < mount->exports->len; i++) {
        FuseExport *exp = mount->exports->pdata[i];
        if ((!id || !strcmp(exp->id, id)) && has_snapshot(exp, snapshot, date_ns, length)) {
            return exp;
        }
    }
    return NULL;
}

/* ---- LOOKUP, READDIR, GETATTR, OPEN */

/* Whose snapshot the inode is, and of which export; NULL: of any. */
static const char *snapshot_name(const FuseInode *inode, const char **export_id)
{
    bool file = inode->kind == FUSE_INODE_SNAPSHOT_FILE;
    *export_id = file ? inode->name : NULL;
    return file ? inode->parent->name : inode->name;
}

int coroutine_fn snapshot_co_lookup(FuseRequest *req, FuseInode *dir, const char *name, FuseInode **child)
{
    FuseMount *mount = req->queue->mount;
    bool top = dir->kind == FUSE_INODE_SNAP_DIR;
    FuseInodeSpec spec = {.kind = top ? FUSE_INODE_SNAPSHOT_DIR : FUSE_INODE_SNAPSHOT_FILE};
    int64_t date, length;
    fuse_request_to_main(req);
    bool found = find_export(mount, top ? NULL : name, top ? name : dir->name, &date, &length);
    if (found) {
        *child = fuse_inode_child(&mount->inodes, dir, name, &spec);
    }
    fuse_request_to_queue(req);
    return found ? 0 : -ENOENT;
}

/* Names that cannot be those of files are left out; `blockgraph snapshot list` shows them. */
static void coroutine_fn list_snapshots(FuseMount *mount, FuseDirList *list) BG_NO_TSA
{
    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    for (guint i = 0; i < mount->exports->len; i++) {
        const FuseExport *exp = mount->exports->pdata[i];
        BlockNode *node = block_backend_node(exp->blk);
        g_autoptr(GPtrArray) infos = node ? snapshots_of(node) : g_ptr_array_new();
        for (guint k = 0; k < infos->len; k++) {
            const BlockSnapshotInfo *info = infos->pdata[k];
            if (block_snapshot_check_name(info->name, NULL) && g_hash_table_add(seen, g_strdup(info->name))) {
                fuse_dir_list_add(list, info->name, FUSE_INO_UNKNOWN, S_IFDIR);
            }
        }
    }
}

static void coroutine_fn list_exports(FuseMount *mount, const char *snapshot, FuseDirList *list) BG_NO_TSA
{
    int64_t date, length;
    for (guint i = 0; i < mount->exports->len; i++) {
        FuseExport *exp = mount->exports->pdata[i];
        if (has_snapshot(exp, snapshot, &date, &length)) {
            fuse_dir_list_add(list, exp->id, FUSE_INO_UNKNOWN, S_IFREG);
        }
    }
}

int coroutine_fn snapshot_co_list(FuseRequest *req, FuseInode *dir, FuseDirList *list)
{
    FuseMount *mount = req->queue->mount;
    fuse_request_to_main(req);
    if (dir->kind == FUSE_INODE_SNAP_DIR) {
        list_snapshots(mount, list);
    } else {
        list_exports(mount, dir->name, list);
    }
    fuse_request_to_queue(req);
    return 0;
}

int coroutine_fn snapshot_co_stat(FuseRequest *req, const FuseInode *inode, int64_t *date_ns, int64_t *length)
{
    const char *id, *name = snapshot_name(inode, &id);
    fuse_request_to_main(req);
    bool found = find_export(req->queue->mount, id, name, date_ns, length);
    fuse_request_to_queue(req);
    return found ? 0 : -ESTALE;
}

int coroutine_fn snapshot_co_open(FuseRequest *req, const FuseInode *inode, FuseFile *init)
{
    const char *id, *name = snapshot_name(inode, &id);
    int64_t date, length;
    int ret = -ESTALE;
    g_autoptr(GError) err = NULL;
    fuse_request_to_main(req);
    FuseExport *exp = find_export(req->queue->mount, id, name, &date, &length);
    if (exp) {
        g_autofree char *user = g_strdup_printf(".snap/%s/%s", name, id);
        init->kind = FUSE_FILE_DATA;
        init->blk = block_snapshot_co_open(block_backend_node(exp->blk), name, user, &err);
        ret = init->blk ? 0 : bg_error_to_errno(err);
    }
    fuse_request_to_queue(req);
    return ret;
}

/* ---- MKDIR, RMDIR */

/* Nodes of the writable exports, with a reference each; only those with the snapshot where one is given. */
static GPtrArray *coroutine_fn collect_nodes(FuseMount *mount, const char *snapshot) BG_NO_TSA
{
    GPtrArray *nodes = g_ptr_array_new();
    int64_t date, length;
    for (guint i = 0; i < mount->exports->len; i++) {
        FuseExport *exp = mount->exports->pdata[i];
        BlockNode *node = block_backend_node(exp->blk);
        if (node && exp->writable && (!snapshot || has_snapshot(exp, snapshot, &date, &length))) {
            g_ptr_array_add(nodes, block_node_ref(node));
        }
    }
    return nodes;
}

/* Whether another node has taken the place of one of those: an overlay, while we waited for our turn. */
static bool was_replaced(FuseMount *mount, const GPtrArray *nodes) BG_NO_TSA
{
    bool all = true;
    for (guint i = 0; i < nodes->len && all; i++) {
        all = false;
        for (guint k = 0; k < mount->exports->len && !all; k++) {
            const FuseExport *exp = mount->exports->pdata[k];
            all = block_backend_node(exp->blk) == nodes->pdata[i];
        }
    }
    return !all;
}

static void log_failure(FuseMount *mount, const char *name, int ret, const GError *err)
{
    g_autofree char *path = g_strdup_printf(".snap/%s", name);
    block_graph_log_error(mount->graph, path, BLOCK_OP_SNAPSHOT, -1, 0, -ret, err->message);
}

/* Create or delete on the nodes that are there now. -EAGAIN: they are others now. */
static int coroutine_fn try_change(FuseMount *mount, bool create, const char *name, GError **errp)
{
    int64_t date, length;
    GPtrArray *nodes = collect_nodes(mount, create ? NULL : name);
    BlockNode *const *pdata = (BlockNode *const *)nodes->pdata;
    int ret;
    if (nodes->len) {
        ret = create ? block_snapshot_co_create(pdata, nodes->len, name, errp)
                     : block_snapshot_co_delete(pdata, nodes->len, name, errp);
    } else if (create) {
        ret = bg_error_set(errp, EROFS, "no export of the mount is writable");
    } else {
        ret = find_export(mount, NULL, name, &date, &length) ? -EROFS : -ENOENT;
    }
    if (ret == -EROFS && was_replaced(mount, nodes)) {
        g_clear_error(errp);
        ret = -EAGAIN;
    }
    unref_nodes(nodes);
    return ret;
}

static int coroutine_fn change(FuseRequest *req, bool create, FuseInode *dir, const char *name,
                               FuseInode **child)
{
    FuseMount *mount = req->queue->mount;
    FuseInodeSpec spec = {.kind = FUSE_INODE_SNAPSHOT_DIR};
    g_autoptr(GError) err = NULL;
    int ret;
    fuse_request_to_main(req);
    do {
        ret = try_change(mount, create, name, &err);
    } while (ret == -EAGAIN && !err);
    if (err) {
        log_failure(mount, name, ret, err);
    }
    if (ret == 0 && create) {
        *child = fuse_inode_child(&mount->inodes, dir, name, &spec);
    }
    fuse_request_to_queue(req);
    return ret;
}

int coroutine_fn snapshot_co_create(FuseRequest *req, FuseInode *dir, const char *name, FuseInode **child)
{
    return change(req, true, dir, name, child);
}

int coroutine_fn snapshot_co_delete(FuseRequest *req, const char *name)
{
    return change(req, false, NULL, name, NULL);
}
