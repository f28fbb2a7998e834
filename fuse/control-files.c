/*
 * The files of .graph.
 *
 * Texts are made when a file is opened, so that one reader sees one state; stat shows length 0 before that,
 * as in /proc. Inodes below .graph/nodes are made when they are looked up and know their node by name only.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "block/graph.h"
#include "fuse/attr.h"
#include "fuse/control-files.h"
#include "fuse/mount-internal.h"

typedef struct GraphText {
    const char *name;
    char *(*make)(BlockGraph *graph);
} GraphText;

/* FUSE_INODE_GRAPH_TEXT: detail is the index. */
static const GraphText graph_texts[] = {
    {"graph.txt", block_graph_to_text},  {"graph.dot", block_graph_to_dot},
    {"graph.json", block_graph_to_json}, {"metrics", block_graph_to_metrics},
    {"errors", block_graph_errors_text},
};

/* The entries of .graph/nodes/NODE; detail is the index. */
static const struct {
    const char *name;
    FuseInodeKind kind;
    char *(*make)(BlockNode *node);
} node_entries[] = {
    {"data", FUSE_INODE_NODE_DATA, NULL},
    {"options.json", FUSE_INODE_NODE_TEXT, block_node_options_json},
    {"stats.json", FUSE_INODE_NODE_TEXT, block_node_stats_json},
    {"children", FUSE_INODE_CHILDREN_DIR, NULL},
};

/* ---- The fixed part */

static void add_pinned(FuseMount *mount, FuseInode *parent, const char *name, FuseInodeKind kind,
                       unsigned detail)
{
    /* The reference stays as the pin. */
    fuse_inode_child(&mount->inodes, parent, name, &(FuseInodeSpec){.kind = kind, .detail = detail});
}

void control_files_add(FuseMount *mount)
{
    mount->graph_dir = fuse_inode_child(&mount->inodes, mount->root, ".graph",
                                        &(FuseInodeSpec){.kind = FUSE_INODE_GRAPH_DIR});
    mount->snap_dir =
        fuse_inode_child(&mount->inodes, mount->root, ".snap", &(FuseInodeSpec){.kind = FUSE_INODE_SNAP_DIR});
    for (unsigned i = 0; i < G_N_ELEMENTS(graph_texts); i++) {
        add_pinned(mount, mount->graph_dir, graph_texts[i].name, FUSE_INODE_GRAPH_TEXT, i);
    }
    add_pinned(mount, mount->graph_dir, "nodes", FUSE_INODE_NODES_DIR, 0);
}

/* ---- Nodes by inode. Main thread. */

/* The node directory that the inode is or lies in. */
static const FuseInode *node_dir_of(const FuseInode *inode)
{
    while (inode->kind != FUSE_INODE_NODE_DIR) {
        inode = inode->parent;
    }
    return inode;
}

static BlockNode *find_node(const FuseMount *mount, const FuseInode *inode)
{
    return block_graph_find(mount->graph, node_dir_of(inode)->name, NULL);
}

static BlockChild *find_child(const BlockNode *node, const char *name)
{
    for (guint i = 0; i < node->children->len; i++) {
        BlockChild *child = node->children->pdata[i];
        if (!strcmp(child->name, name)) {
            return child;
        }
    }
    return NULL;
}

int64_t coroutine_fn control_co_node_length(FuseRequest *req, const FuseInode *data)
{
    fuse_request_to_main(req);
    BlockNode *node = find_node(req->queue->mount, data);
    int64_t length = node ? block_node_length(node) : -ESTALE;
    fuse_request_to_queue(req);
    return length;
}

/* ---- LOOKUP */

static int lookup_in_nodes(FuseMount *mount, const char *name, FuseInodeSpec *spec)
{
    spec->kind = FUSE_INODE_NODE_DIR;
    return block_graph_find(mount->graph, name, NULL) ? 0 : -ENOENT;
}

static int lookup_in_node(FuseMount *mount, FuseInode *dir, const char *name, FuseInodeSpec *spec)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(node_entries); i++) {
        if (!strcmp(node_entries[i].name, name)) {
            *spec = (FuseInodeSpec){.kind = node_entries[i].kind, .detail = i};
            return find_node(mount, dir) ? 0 : -ENOENT;
        }
    }
    return -ENOENT;
}

static int lookup_in_children(FuseMount *mount, FuseInode *dir, const char *name, FuseInodeSpec *spec)
{
    BlockNode *node = find_node(mount, dir);
    spec->kind = FUSE_INODE_CHILD_SYMLINK;
    return node && find_child(node, name) ? 0 : -ENOENT;
}

int coroutine_fn control_co_lookup(FuseRequest *req, FuseInode *dir, const char *name, FuseInode **child)
{
    FuseMount *mount = req->queue->mount;
    FuseInodeSpec spec = {.exp = NULL};
    int ret = -ENOENT;
    fuse_request_to_main(req);
    switch (dir->kind) {
    case FUSE_INODE_NODES_DIR:
        ret = lookup_in_nodes(mount, name, &spec);
        break;
    case FUSE_INODE_NODE_DIR:
        ret = lookup_in_node(mount, dir, name, &spec);
        break;
    case FUSE_INODE_CHILDREN_DIR:
        ret = lookup_in_children(mount, dir, name, &spec);
        break;
    default:
        break;
    }
    if (ret == 0) {
        *child = fuse_inode_child(&mount->inodes, dir, name, &spec);
    }
    fuse_request_to_queue(req);
    return ret;
}

/* ---- READDIR */

static int list_node(FuseDirList *list)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(node_entries); i++) {
        bool dir = node_entries[i].kind == FUSE_INODE_CHILDREN_DIR;
        fuse_dir_list_add(list, node_entries[i].name, FUSE_INO_UNKNOWN, dir ? S_IFDIR : S_IFREG);
    }
    return 0;
}

static void list_nodes(const FuseMount *mount, FuseDirList *list)
{
    const GPtrArray *nodes = block_graph_nodes(mount->graph);
    for (guint i = 0; i < nodes->len; i++) {
        const BlockNode *node = nodes->pdata[i];
        fuse_dir_list_add(list, node->name, FUSE_INO_UNKNOWN, S_IFDIR);
    }
}

static void list_children(const BlockNode *node, FuseDirList *list)
{
    for (guint i = 0; i < node->children->len; i++) {
        const BlockChild *child = node->children->pdata[i];
        fuse_dir_list_add(list, child->name, FUSE_INO_UNKNOWN, S_IFLNK);
    }
}

static void list_graph_dir(FuseDirList *list)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(graph_texts); i++) {
        fuse_dir_list_add(list, graph_texts[i].name, FUSE_INO_UNKNOWN, S_IFREG);
    }
    fuse_dir_list_add(list, "nodes", FUSE_INO_UNKNOWN, S_IFDIR);
}

int coroutine_fn control_co_list(FuseRequest *req, FuseInode *dir, FuseDirList *list)
{
    FuseMount *mount = req->queue->mount;
    int ret = 0;
    fuse_request_to_main(req);
    if (dir->kind == FUSE_INODE_GRAPH_DIR) {
        list_graph_dir(list);
    } else if (dir->kind == FUSE_INODE_NODES_DIR) {
        list_nodes(mount, list);
    } else {
        BlockNode *node = find_node(mount, dir);
        if (!node) {
            ret = -ENOENT;
        } else if (dir->kind == FUSE_INODE_CHILDREN_DIR) {
            list_children(node, list);
        } else {
            list_node(list);
        }
    }
    fuse_request_to_queue(req);
    return ret;
}

/* ---- OPEN, RELEASE, READLINK */

/* A user of the node of its own, which stands in nobody's way. */
static int open_data(FuseMount *mount, const FuseInode *inode, FuseFile *init)
{
    BlockNode *node = find_node(mount, inode);
    if (!node) {
        return -ESTALE;
    }
    g_autofree char *name = g_strdup_printf(".graph/nodes/%s/data", node->name);
    g_autoptr(GError) err = NULL;
    BlockBackend *blk = block_backend_new(mount->graph, name, BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL);
    int ret = block_backend_insert(blk, node, &err);
    if (ret < 0) {
        block_backend_co_free(blk);
        return ret;
    }
    init->blk = blk;
    return 0;
}

static char *make_text(FuseMount *mount, const FuseInode *inode)
{
    if (inode->kind == FUSE_INODE_GRAPH_TEXT) {
        return graph_texts[inode->detail].make(mount->graph);
    }
    BlockNode *node = find_node(mount, inode);
    return node ? node_entries[inode->detail].make(node) : NULL;
}

int coroutine_fn control_co_open(FuseRequest *req, const FuseInode *inode, FuseFile *init)
{
    FuseMount *mount = req->queue->mount;
    int ret = 0;
    fuse_request_to_main(req);
    if (inode->kind == FUSE_INODE_NODE_DATA) {
        init->kind = FUSE_FILE_DATA;
        ret = open_data(mount, inode, init);
    } else {
        init->kind = FUSE_FILE_TEXT;
        char *text = make_text(mount, inode);
        init->text = text ? g_bytes_new_take(text, strlen(text)) : NULL;
        ret = text ? 0 : -ESTALE;
    }
    fuse_request_to_queue(req);
    return ret;
}

void coroutine_fn control_co_free_backend(FuseRequest *req, BlockBackend *blk)
{
    if (blk) {
        fuse_request_to_main(req);
        block_backend_co_free(blk);
        fuse_request_to_queue(req);
    }
}

char *coroutine_fn control_co_readlink(FuseRequest *req, const FuseInode *link)
{
    char *target = NULL;
    fuse_request_to_main(req);
    BlockNode *node = find_node(req->queue->mount, link);
    BlockChild *child = node ? find_child(node, link->name) : NULL;
    if (child) {
        target = g_strdup_printf("../../%s", child->node->name);
    }
    fuse_request_to_queue(req);
    return target;
}
