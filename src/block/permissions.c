/*
 * Permissions: what each edge holds and shares, computed from the users down to the leaves.
 *
 * An update computes new_perm and new_shared of all edges below in one pass, parents first, checks every
 * node, asks the drivers (file locks), and only then makes the new values current.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "block/block-internal.h"
#include "util/error.h"

#define PERM_CHANGING (BLOCK_PERM_WRITE | BLOCK_PERM_WRITE_UNCHANGED | BLOCK_PERM_RESIZE)

char *block_child_user(const BlockChild *edge)
{
    if (edge->parent) {
        return g_strdup_printf("node '%s'", edge->parent->name);
    }
    return g_strdup_printf("export '%s'", edge->backend ? block_backend_name(edge->backend) : "?");
}

/* Two users of one node contradict each other: `a` wants what `b` does not share. */
static int refuse_conflict(BlockNode *node, const BlockChild *a, const BlockChild *b, GError **errp)
{
    g_autofree char *who = block_child_user(a), *holder = block_child_user(b);
    g_autofree char *what = block_perm_names(a->new_perm & ~b->new_shared);
    return bg_error_set(errp, EBUSY,
                        "node '%s': %s cannot have '%s' on it: in use by %s, which does not share that",
                        node->name, who, what, holder);
}

static int refuse_writers(BlockNode *node, GError **errp)
{
    for (guint i = 0; i < node->parents->len; i++) {
        const BlockChild *edge = node->parents->pdata[i];
        if (edge->new_perm & (BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE)) {
            g_autofree char *who = block_child_user(edge);
            return bg_error_set(errp, EROFS, "node '%s' is read-only, but %s wants to write to it",
                                node->name, who);
        }
    }
    return 0;
}

static int combine_parents(BlockNode *node, GError **errp)
{
    node->new_perm = 0;
    node->new_shared = BLOCK_PERM_ALL;
    for (guint i = 0; i < node->parents->len; i++) {
        const BlockChild *a = node->parents->pdata[i];
        for (guint j = 0; j < node->parents->len; j++) {
            const BlockChild *b = node->parents->pdata[j];
            if (i != j && (a->new_perm & ~b->new_shared)) {
                return refuse_conflict(node, a, b, errp);
            }
        }
        node->new_perm |= a->new_perm;
        node->new_shared &= a->new_shared;
    }
    return node->read_only ? refuse_writers(node, errp) : 0;
}

static void default_child_perm(const BlockChild *edge, BlockPerm perm, BlockPerm shared,
                               BlockPerm *child_perm, BlockPerm *child_shared)
{
    *child_perm = perm;
    *child_shared = shared;
    if (edge->role & BLOCK_ROLE_COW) {
        /* Only ever read; may change below us only if our users can live with that. */
        *child_perm = perm ? BLOCK_PERM_CONSISTENT_READ : 0;
        *child_shared = BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE_UNCHANGED;
        if (shared & BLOCK_PERM_WRITE) {
            *child_shared |= BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE;
        }
    } else if (edge->role & BLOCK_ROLE_METADATA) {
        /* A format's file: nobody else may change it, and writing guest data can grow it. */
        *child_perm |= BLOCK_PERM_CONSISTENT_READ;
        if (perm & PERM_CHANGING) {
            *child_perm |= BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE;
        }
        *child_shared = BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE_UNCHANGED;
    }
}

static void pass_down(BlockNode *node)
{
    for (guint i = 0; i < node->children->len; i++) {
        BlockChild *edge = node->children->pdata[i];
        if (node->driver->child_perm) {
            node->driver->child_perm(node, edge, node->new_perm, node->new_shared, &edge->new_perm,
                                     &edge->new_shared);
        } else {
            default_child_perm(edge, node->new_perm, node->new_shared, &edge->new_perm, &edge->new_shared);
        }
    }
}

static bool node_changes(const BlockNode *node)
{
    return node->perm != node->new_perm || node->shared != node->new_shared;
}

static int ask_drivers(GPtrArray *order, GError **errp)
{
    for (guint i = 0; i < order->len; i++) {
        BlockNode *node = order->pdata[i];
        if (!node->driver->check_perm || !node_changes(node)) {
            continue;
        }
        int ret = node->driver->check_perm(node, node->new_perm, node->new_shared, errp);
        if (ret == 0) {
            continue;
        }
        while (i-- > 0) {
            node = order->pdata[i];
            if (node->driver->check_perm && node_changes(node) && node->driver->abort_perm_update) {
                node->driver->abort_perm_update(node);
            }
        }
        return ret;
    }
    return 0;
}

/* Make the edges around each node current (commit) or take the old values back. */
static void settle(GPtrArray *order, bool commit)
{
    for (guint i = 0; i < order->len; i++) {
        BlockNode *node = order->pdata[i];
        for (guint p = 0; p < node->parents->len; p++) {
            BlockChild *edge = node->parents->pdata[p];
            if (commit) {
                edge->perm = edge->new_perm;
                edge->shared = edge->new_shared;
            }
            edge->new_perm = edge->perm;
            edge->new_shared = edge->shared;
        }
        if (commit && node_changes(node)) {
            node->perm = node->new_perm;
            node->shared = node->new_shared;
            if (node->driver->set_perm) {
                node->driver->set_perm(node, node->perm, node->shared);
            }
        }
        node->new_perm = node->perm;
        node->new_shared = node->shared;
    }
}

int block_perms_update(BlockNode *const *nodes, unsigned n, GError **errp)
{
    bg_assert_main_thread();
    g_autoptr(GPtrArray) order = block_walk_order(nodes[0]->graph, nodes, n);
    int ret = 0;
    for (guint i = 0; i < order->len && ret == 0; i++) {
        ret = combine_parents(order->pdata[i], errp);
        pass_down(order->pdata[i]);
    }
    if (ret == 0) {
        ret = ask_drivers(order, errp);
    }
    settle(order, ret == 0);
    return ret;
}
