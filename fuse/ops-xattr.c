/*
 * Extended attributes: user.blockgraph.*, read-only.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "fuse/mount-internal.h"
#include "fuse/ops.h"

#define PREFIX  "user.blockgraph."
#define CONTROL PREFIX "control"

/* Values as newly allocated text, NULL: there is none now. Main thread; they may yield. */
typedef char *coroutine_fn XattrGetter(FuseExport *exp, BlockNode *node);

static char *get_driver(FuseExport *exp, BlockNode *node)
{
    return g_strdup(node->driver->name);
}

static char *get_node(FuseExport *exp, BlockNode *node)
{
    return g_strdup(node->name);
}

static char *get_filename(FuseExport *exp, BlockNode *node)
{
    return block_node_filename(node);
}

static char *coroutine_fn get_allocated(FuseExport *exp, BlockNode *node)
{
    return g_strdup_printf("%" G_GINT64_FORMAT, fuse_export_co_allocated(exp));
}

static char *get_durable(FuseExport *exp, BlockNode *node)
{
    int durable = block_node_durable(node);
    return g_strdup(durable > 0 ? "yes" : durable == 0 ? "no" : "unknown");
}

/* The newest error of the node or of what lies below; lines of the log begin with their time, so they
 * compare. */
static char *newest_error(BlockNode *node)
{
    char *newest = block_graph_last_error(node->graph, node->name);
    for (guint i = 0; i < node->children->len; i++) {
        const BlockChild *child = node->children->pdata[i];
        char *line = newest_error(child->node);
        if (g_strcmp0(line, newest) > 0) {
            char *old = newest;
            newest = line;
            line = old;
        }
        g_free(line);
    }
    return newest;
}

static char *get_last_error(FuseExport *exp, BlockNode *node)
{
    return newest_error(node);
}

static const struct {
    const char *name; /* after PREFIX */
    XattrGetter *get;
} export_xattrs[] = {
    {"driver", get_driver},       {"node", get_node},       {"filename", get_filename},
    {"allocated", get_allocated}, {"durable", get_durable}, {"last-error", get_last_error},
};

/* Value number i of the request's export; NULL: none. */
static char *coroutine_fn export_xattr(FuseRequest *req, FuseExport *exp, unsigned i)
{
    fuse_request_to_main(req);
    BlockNode *node = block_backend_node(exp->blk);
    char *value = node ? export_xattrs[i].get(exp, node) : NULL;
    fuse_request_to_queue(req);
    return value;
}

/* Reply with `n` bytes, or their number where the caller gave no room. */
static int reply_value(FuseRequest *req, const void *value, size_t n)
{
    const struct fuse_getxattr_in *arg = req->arg;
    if (arg->size == 0) {
        struct fuse_getxattr_out *out = fuse_request_small_reply(req, sizeof *out);
        out->size = (uint32_t)n;
        return 0;
    }
    if (n > arg->size || n > FUSE_PAYLOAD_SIZE) {
        return -ERANGE;
    }
    memcpy(req->payload, value, n);
    fuse_request_payload_reply(req, n);
    return 0;
}

/* Of the mountpoint: where the control socket is. NULL: none, or another inode. */
static const char *control_path(FuseRequest *req, const FuseInode *inode)
{
    const FuseMount *mount = req->queue->mount;
    bool is_root =
        inode->kind == FUSE_INODE_ROOT || (inode->kind == FUSE_INODE_EXPORT && mount->single_export);
    return is_root ? mount->control : NULL;
}

int coroutine_fn fuse_op_getxattr(FuseRequest *req)
{
    const char *name = req->names[0];
    FuseInode *inode = fuse_request_inode(req);
    if (!inode) {
        return -ESTALE;
    }
    if (g_str_has_prefix(name, "system.")) {
        return -EOPNOTSUPP; /* no ACLs */
    }
    const char *control = control_path(req, inode);
    if (control && !strcmp(name, CONTROL)) {
        return reply_value(req, control, strlen(control));
    }
    if (inode->kind != FUSE_INODE_EXPORT || !g_str_has_prefix(name, PREFIX)) {
        return -ENODATA;
    }
    FuseExport *exp = fuse_request_enter(req, &inode->exp);
    if (!exp) {
        return -ESTALE;
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(export_xattrs); i++) {
        if (!strcmp(name + strlen(PREFIX), export_xattrs[i].name)) {
            g_autofree char *value = export_xattr(req, exp, i);
            return value ? reply_value(req, value, strlen(value)) : -ENODATA;
        }
    }
    return -ENODATA;
}

int coroutine_fn fuse_op_listxattr(FuseRequest *req)
{
    FuseInode *inode = fuse_request_inode(req);
    FuseExport *exp = NULL;
    if (!inode) {
        return -ESTALE;
    }
    g_autoptr(GString) names = g_string_new(NULL);
    if (control_path(req, inode)) {
        g_string_append_len(names, CONTROL, sizeof CONTROL);
    }
    if (inode->kind == FUSE_INODE_EXPORT) {
        exp = fuse_request_enter(req, &inode->exp);
        if (!exp) {
            return -ESTALE;
        }
    }
    for (unsigned i = 0; exp && i < G_N_ELEMENTS(export_xattrs); i++) {
        g_autofree char *value = export_xattr(req, exp, i);
        if (value) {
            g_string_append_printf(names, PREFIX "%s", export_xattrs[i].name);
            g_string_append_c(names, '\0');
        }
    }
    return reply_value(req, names->str, names->len);
}

/* SETXATTR, REMOVEXATTR */
int coroutine_fn fuse_op_setxattr(FuseRequest *req)
{
    /* Ours are read-only; for others there is no room. */
    return g_str_has_prefix(req->names[0], PREFIX) ? -EPERM : -EOPNOTSUPP;
}
