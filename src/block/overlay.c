/*
 * Putting overlays into place.
 *
 *   CHECKED --section over all nodes and overlays--> DRAINED --nodes and overlays flushed--> STABLE
 *   STABLE --each node becomes its overlay's backing--> ATTACHED
 *   ATTACHED --users moved, nodes read-only, permissions agreed on--> done
 *   anything fails: users back, backings detached, section ended: as before
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "block/block-internal.h"
#include "block/overlay.h"
#include "util/error.h"

/* One overlay on its way. */
typedef struct Insertion {
    BlockNode *node, *overlay;
    BlockChild *backing; /* the edge between them; NULL: not attached */
    GPtrArray *edges;    /* of the node's users; NULL: not looked for */
    bool was_read_only;
} Insertion;

/* ---- Checks */

bool block_overlay_is_possible(const BlockDriver *driver)
{
    return driver->child_options && g_strv_contains(driver->child_options, "backing");
}

static int check_pair(const BlockOverlay *p, GError **errp)
{
    const char *name = p->overlay->name;
    if (!block_overlay_is_possible(p->overlay->driver)) {
        return bg_error_set(errp, ENOTSUP, "node '%s' cannot be an overlay: driver '%s' has no backing", name,
                            p->overlay->driver->name);
    }
    if (p->overlay->backing) {
        return bg_error_set(errp, EINVAL, "node '%s' cannot be an overlay: it has a backing already", name);
    }
    if (p->overlay->read_only) {
        return bg_error_set(errp, EROFS, "node '%s' cannot be an overlay: it is read-only", name);
    }
    if (p->overlay->parents->len) {
        g_autofree char *user = block_child_user(p->overlay->parents->pdata[0]);
        return bg_error_set(errp, EBUSY, "node '%s' cannot be an overlay: it is in use by %s", name, user);
    }
    if (block_node_length(p->overlay) != block_node_length(p->node)) {
        return bg_error_set(errp, EINVAL,
                            "node '%s' cannot be an overlay of '%s': it is %" G_GINT64_FORMAT
                            " bytes long, which is not the same as %" G_GINT64_FORMAT,
                            name, p->node->name, block_node_length(p->overlay), block_node_length(p->node));
    }
    return 0;
}

static int check_pairs(const BlockOverlay *pairs, unsigned n, GError **errp)
{
    g_autoptr(GHashTable) seen = g_hash_table_new(NULL, NULL);
    int ret = 0;
    for (unsigned i = 0; i < n && ret == 0; i++) {
        if (!g_hash_table_add(seen, pairs[i].node) || !g_hash_table_add(seen, pairs[i].overlay)) {
            return bg_error_set(errp, EINVAL, "node '%s', or its overlay '%s', is named twice",
                                pairs[i].node->name, pairs[i].overlay->name);
        }
        ret = check_pair(&pairs[i], errp);
    }
    return ret;
}

/* ---- Flush */

/*
 * Also where the user does not want flushes: the driver's tables are not written any more once it is
 * read-only.
 */
static int coroutine_fn flush_node(BlockNode *node, GError **errp)
{
    if (node->read_only) {
        return 0;
    }
    block_node_inc_in_flight(node);
    int ret = node_co_flush(node);
    if (ret == 0 && node->cache_no_flush && node->driver->co_flush) {
        ret = node->driver->co_flush(node);
    }
    block_node_dec_in_flight(node);
    return ret < 0 ? bg_error_set_errno(errp, -ret, "node '%s': flushing", node->name) : 0;
}

static int coroutine_fn flush_all(Insertion *all, unsigned n, GError **errp)
{
    int ret = 0;
    for (unsigned i = 0; i < n && ret == 0; i++) {
        ret = flush_node(all[i].node, errp);
        ret = ret < 0 ? ret : flush_node(all[i].overlay, errp);
    }
    return ret;
}

/* ---- Changing the graph */

static int attach(Insertion *in, GError **errp)
{
    GError *error = NULL;
    in->backing = block_node_attach_child(in->overlay, in->node, "backing", BLOCK_ROLE_COW, &error);
    if (!in->backing) {
        int ret = bg_error_to_errno(error);
        g_propagate_error(errp, error);
        return ret;
    }
    in->edges = block_child_edges_to_move(in->node, in->overlay, errp);
    return in->edges ? 0 : -ELOOP;
}

/* Users see the same file: its time of change goes on, at every moment. */
static void move_users(Insertion *in)
{
    atomic_store(&in->overlay->last_write_ns, atomic_load(&in->node->last_write_ns));
    in->was_read_only = in->node->read_only;
    in->node->read_only = true;
    block_child_move_edges(in->edges, in->overlay);
}

static void move_users_back(Insertion *in)
{
    block_child_move_edges(in->edges, in->node);
    in->node->read_only = in->was_read_only;
}

/* As options.json shows them. */
static void note_options(Insertion *in)
{
    json_object_set_string_member(in->overlay->options, "backing", in->node->name);
    json_object_set_boolean_member(in->node->options, "read-only", TRUE);
}

static int change_graph(Insertion *all, unsigned n, GError **errp)
{
    g_autofree BlockNode **nodes = g_new(BlockNode *, 2 * n);
    int ret = 0;
    for (unsigned i = 0; i < n && ret == 0; i++) {
        ret = attach(&all[i], errp);
        nodes[2 * i] = all[i].node;
        nodes[2 * i + 1] = all[i].overlay;
    }
    if (ret < 0) {
        return ret;
    }
    for (unsigned i = 0; i < n; i++) {
        move_users(&all[i]);
    }
    ret = block_perms_update(nodes, 2 * n, errp);
    for (unsigned i = 0; i < n; i++) {
        if (ret < 0) {
            move_users_back(&all[i]);
        } else {
            note_options(&all[i]);
        }
    }
    return ret;
}

static void coroutine_fn clean_up(Insertion *all, unsigned n, bool failed)
{
    for (unsigned i = 0; i < n; i++) {
        if (all[i].backing && failed) {
            block_child_co_detach(all[i].backing);
        }
        if (all[i].edges) {
            g_ptr_array_unref(all[i].edges);
        }
    }
}

int coroutine_fn block_overlay_co_insert(const BlockOverlay *pairs, unsigned n, GError **errp)
{
    bg_assert_main_thread();
    g_assert(n > 0);
    int ret = check_pairs(pairs, n, errp);
    if (ret < 0) {
        return ret;
    }
    g_autofree Insertion *all = g_new0(Insertion, n);
    g_autofree BlockNode **nodes = g_new(BlockNode *, 2 * n);
    for (unsigned i = 0; i < n; i++) {
        all[i] = (Insertion){.node = pairs[i].node, .overlay = pairs[i].overlay};
        nodes[2 * i] = pairs[i].node;
        nodes[2 * i + 1] = pairs[i].overlay;
    }
    ret = flush_all(all, n, errp); /* what this writes need not be written while requests wait */
    if (ret < 0) {
        return ret;
    }
    BlockGraph *graph = nodes[0]->graph;
    co_mutex_lock(&graph->snapshot_lock); /* a snapshot half made needs its node writable */
    BlockDrain *section = block_drain_co_begin_nodes(nodes, 2 * n);
    ret = check_pairs(pairs, n, errp); /* while we waited, things may have changed */
    ret = ret < 0 ? ret : flush_all(all, n, errp);
    ret = ret < 0 ? ret : change_graph(all, n, errp);
    clean_up(all, n, ret < 0);
    block_drain_graph_changed(graph);
    block_drain_end(section);
    co_mutex_unlock(&graph->snapshot_lock);
    return ret;
}
