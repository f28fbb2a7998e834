/*
 * Edges: attach, detach, replace.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "block/block-internal.h"
#include "util/error.h"

BlockChild *block_child_new(const char *name, BlockChildRole role, BlockNode *node)
{
    BlockChild *edge = g_new(BlockChild, 1);
    *edge = (BlockChild){.name = g_strdup(name),
                         .role = role,
                         .node = node,
                         .shared = BLOCK_PERM_ALL,
                         .new_shared = BLOCK_PERM_ALL};
    return edge;
}

void block_child_free(BlockChild *edge)
{
    g_free(edge->name);
    g_free(edge);
}

void block_child_link(BlockChild *edge)
{
    block_node_ref(edge->node);
    g_ptr_array_add(edge->node->parents, edge);
}

BlockNode *block_child_unlink(BlockChild *edge)
{
    bool found = g_ptr_array_remove(edge->node->parents, edge);
    g_assert(found);
    return edge->node;
}

void block_node_refresh_shortcuts(BlockNode *node)
{
    node->file = node->backing = NULL;
    for (guint i = 0; i < node->children->len; i++) {
        BlockChild *edge = node->children->pdata[i];
        if (!strcmp(edge->name, "file")) {
            node->file = edge;
        } else if (!strcmp(edge->name, "backing")) {
            node->backing = edge;
        }
    }
}

static int check_attach(BlockNode *parent, BlockNode *child_node, const char *name, GError **errp)
{
    for (guint i = 0; i < parent->children->len; i++) {
        if (!strcmp(((BlockChild *)parent->children->pdata[i])->name, name)) {
            return bg_error_set(errp, EEXIST, "node '%s' has a child '%s' already", parent->name, name);
        }
    }
    if (block_walk_reaches(child_node, parent)) {
        return bg_error_set(errp, ELOOP, "node '%s': option '%s': node '%s' would come to lie below itself",
                            parent->name, name, child_node->name);
    }
    if (block_walk_height(parent) + block_walk_depth(child_node) > BLOCK_MAX_DEPTH) {
        return bg_error_set(errp, ELOOP, "node '%s': option '%s': more than %d nodes on top of each other",
                            parent->name, name, BLOCK_MAX_DEPTH);
    }
    return 0;
}

BlockChild *block_node_attach_child(BlockNode *parent, BlockNode *child_node, const char *name,
                                    BlockChildRole role, GError **errp)
{
    bg_assert_main_thread();
    if (check_attach(parent, child_node, name, errp) < 0) {
        return NULL;
    }
    BlockChild *edge = block_child_new(name, role, child_node);
    edge->parent = parent;
    g_ptr_array_add(parent->children, edge);
    block_child_link(edge);
    /* From the parent on, as its driver decides what the edge needs. */
    if (block_perms_update(&parent, 1, errp) < 0) {
        g_ptr_array_remove(parent->children, edge);
        block_node_unref_later(block_child_unlink(edge));
        block_child_free(edge);
        return NULL;
    }
    block_node_refresh_shortcuts(parent);
    block_drain_graph_changed(parent->graph);
    return edge;
}

void coroutine_fn block_child_co_detach(BlockChild *child)
{
    bg_assert_main_thread();
    BlockNode *parent = child->parent;
    if (parent) {
        g_ptr_array_remove(parent->children, child);
        block_node_refresh_shortcuts(parent);
    }
    BlockNode *node = block_child_unlink(child);
    block_child_free(child);
    g_autoptr(GError) err = NULL;
    if (block_perms_update(&node, 1, &err) < 0) {
        /* Asking for less cannot conflict; a driver that refuses keeps what it had. */
        g_warning("%s", err->message);
    }
    block_drain_graph_changed(node->graph);
    block_node_co_unref(node);
}

/* ---- Replace */

void block_child_move_edges(GPtrArray *edges, BlockNode *to)
{
    for (guint i = 0; i < edges->len; i++) {
        BlockChild *edge = edges->pdata[i];
        BlockNode *from = block_child_unlink(edge);
        /* Read without a request as well, for lengths and times: see block_backend_node. */
        g_atomic_pointer_set(&edge->node, to);
        block_child_link(edge);
        block_node_unref_later(from);
    }
}

GPtrArray *block_child_edges_to_move(BlockNode *from, BlockNode *to, GError **errp)
{
    g_autoptr(GPtrArray) edges = g_ptr_array_new();
    for (guint i = 0; i < from->parents->len; i++) {
        BlockChild *edge = from->parents->pdata[i];
        if (edge->parent == to || (edge->backend && edge->backend->view)) {
            continue;
        }
        if (edge->parent && block_walk_reaches(to, edge->parent)) {
            bg_error_set(errp, ELOOP, "node '%s' cannot take the place of '%s': its own child '%s' uses that",
                         to->name, from->name, edge->parent->name);
            return NULL;
        }
        if (edge->parent && block_walk_height(edge->parent) + block_walk_depth(to) > BLOCK_MAX_DEPTH) {
            bg_error_set(errp, ELOOP, "node '%s': more than %d nodes on top of each other", to->name,
                         BLOCK_MAX_DEPTH);
            return NULL;
        }
        g_ptr_array_add(edges, edge);
    }
    return g_steal_pointer(&edges);
}

int coroutine_fn block_node_co_replace(BlockNode *from, BlockNode *to, GError **errp)
{
    bg_assert_main_thread();
    BlockNode *both[] = {from, to};
    BlockDrain *section = block_drain_co_begin_nodes(both, 2);
    g_autoptr(GPtrArray) edges = block_child_edges_to_move(from, to, errp);
    int ret = edges ? 0 : -ELOOP;
    if (edges) {
        block_child_move_edges(edges, to);
        ret = block_perms_update(both, 2, errp);
        if (ret < 0) {
            block_child_move_edges(edges, from);
        }
        block_drain_graph_changed(from->graph);
    }
    block_drain_end(section);
    return ret;
}
