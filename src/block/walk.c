/*
 * Walks over the graph. Depth is bounded by BLOCK_MAX_DEPTH, which block_node_attach_child keeps.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "block/block-internal.h"

static BlockNode *child_at(const BlockNode *node, guint i)
{
    return ((BlockChild *)node->children->pdata[i])->node;
}

void block_walk_down(BlockNode *node, int mark, GPtrArray *post)
{
    if (node->visit == mark) {
        return;
    }
    node->visit = mark;
    for (guint i = 0; i < node->children->len; i++) {
        block_walk_down(child_at(node, i), mark, post);
    }
    g_ptr_array_add(post, node);
}

GPtrArray *block_walk_order(BlockGraph *graph, BlockNode *const *nodes, unsigned n)
{
    GPtrArray *order = g_ptr_array_new();
    int mark = ++graph->visit;
    for (unsigned i = 0; i < n; i++) {
        block_walk_down(nodes[i], mark, order);
    }
    for (guint i = 0, len = order->len; i < len / 2; i++) {
        gpointer t = order->pdata[i];
        order->pdata[i] = order->pdata[len - 1 - i];
        order->pdata[len - 1 - i] = t;
    }
    return order;
}

bool block_walk_reaches(BlockNode *from, const BlockNode *to)
{
    g_autoptr(GPtrArray) below = block_walk_order(from->graph, &from, 1);
    return g_ptr_array_find(below, to, NULL);
}

/*
 * Longest path: in an order with parents first, each node's distance is final when it is reached. `depth`
 * lives in a table beside the order, so that shared subtrees are not walked twice.
 */
unsigned block_walk_depth(BlockNode *node)
{
    g_autoptr(GPtrArray) order = block_walk_order(node->graph, &node, 1);
    g_autoptr(GHashTable) depth = g_hash_table_new(NULL, NULL);
    unsigned most = 1;
    g_hash_table_insert(depth, node, GUINT_TO_POINTER(1));
    for (guint i = 0; i < order->len; i++) {
        unsigned d = GPOINTER_TO_UINT(g_hash_table_lookup(depth, order->pdata[i]));
        most = MAX(most, d);
        BlockNode *n = order->pdata[i];
        for (guint c = 0; c < n->children->len; c++) {
            unsigned old = GPOINTER_TO_UINT(g_hash_table_lookup(depth, child_at(n, c)));
            g_hash_table_insert(depth, child_at(n, c), GUINT_TO_POINTER(MAX(old, d + 1)));
        }
    }
    return most;
}

static unsigned height_above(BlockNode *node, GHashTable *known)
{
    unsigned h = GPOINTER_TO_UINT(g_hash_table_lookup(known, node));
    if (h) {
        return h;
    }
    h = 1;
    for (guint i = 0; i < node->parents->len; i++) {
        BlockChild *edge = node->parents->pdata[i];
        if (edge->parent) {
            h = MAX(h, 1 + height_above(edge->parent, known));
        }
    }
    g_hash_table_insert(known, node, GUINT_TO_POINTER(h));
    return h;
}

unsigned block_walk_height(BlockNode *node)
{
    g_autoptr(GHashTable) known = g_hash_table_new(NULL, NULL);
    return height_above(node, known);
}
