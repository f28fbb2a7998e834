/*
 * BlockGraph: the set of nodes and backends.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "aio/aio.h"
#include "block/block-internal.h"
#include "util/error.h"
#include "util/text.h"

BlockGraph *block_graph_new(AioContext *main_context)
{
    bg_assert_main_thread();
    BlockGraph *graph = g_new0(BlockGraph, 1);
    graph->main_context = aio_context_ref(main_context);
    graph->errors = error_log_new();
    graph->by_name = g_hash_table_new(g_str_hash, g_str_equal);
    graph->nodes = g_ptr_array_new();
    graph->backends = g_ptr_array_new();
    graph->sections = g_ptr_array_new();
    bg_mutex_init(&graph->move_lock);
    co_queue_init(&graph->moved);
    block_graph_secrets_new(graph);
    graph->throttle_groups = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, throttle_group_free);
    graph->closing_nodes = g_ptr_array_new();
    graph->homes = g_ptr_array_new_with_free_func((GDestroyNotify)aio_context_unref);
    bg_mutex_init(&graph->drain_lock);
    co_queue_init(&graph->closed);
    co_mutex_init(&graph->snapshot_lock);
    return graph;
}

BlockFlushError block_graph_flush_errors(const BlockGraph *graph)
{
    return (atomic_load(&graph->flush_errors) + 1) << BLOCK_FLUSH_ERRNO_BITS;
}

/* A node that the graph itself still holds and nobody uses. */
static BlockNode *idle_named_node(BlockGraph *graph)
{
    for (guint i = graph->nodes->len; i-- > 0;) {
        BlockNode *node = graph->nodes->pdata[i];
        if (node->named_by_user && node->parents->len == 0) {
            return node;
        }
    }
    return NULL;
}

void coroutine_fn block_graph_co_close(BlockGraph *graph)
{
    bg_assert_main_thread();
    g_assert(graph->backends->len == 0);
    BlockNode *node;
    while ((node = idle_named_node(graph)) || graph->closing) {
        if (!node) {
            co_queue_wait(&graph->closed, NULL);
            continue;
        }
        node->named_by_user = false;
        block_node_co_unref(node);
    }
}

void block_graph_closing_done(BlockGraph *graph)
{
    if (--graph->closing == 0) {
        co_queue_restart_all(&graph->closed);
    }
}

void block_graph_free(BlockGraph *graph)
{
    g_assert(graph->nodes->len == 0 && graph->backends->len == 0 && graph->sections->len == 0);
    g_hash_table_unref(graph->by_name);
    g_ptr_array_unref(graph->nodes);
    g_ptr_array_unref(graph->backends);
    g_ptr_array_unref(graph->sections);
    co_queue_destroy(&graph->moved);
    bg_mutex_destroy(&graph->move_lock);
    block_graph_secrets_free(graph);
    g_hash_table_unref(graph->throttle_groups);
    g_ptr_array_unref(graph->closing_nodes);
    g_ptr_array_unref(graph->homes);
    error_log_free(graph->errors);
    bg_mutex_destroy(&graph->drain_lock);
    co_queue_destroy(&graph->closed);
    co_mutex_destroy(&graph->snapshot_lock);
    aio_context_unref(graph->main_context);
    g_free(graph);
}

AioContext *block_graph_main_context(const BlockGraph *graph)
{
    return graph->main_context;
}

void block_graph_set_homes(BlockGraph *graph, AioContext *const *contexts, unsigned n)
{
    bg_assert_main_thread();
    g_ptr_array_set_size(graph->homes, 0);
    for (unsigned i = 0; i < n; i++) {
        g_ptr_array_add(graph->homes, aio_context_ref(contexts[i]));
    }
}

unsigned block_graph_n_homes(const BlockGraph *graph)
{
    return graph->homes->len;
}

AioContext *block_graph_home(const BlockGraph *graph, unsigned i)
{
    return graph->homes->pdata[i];
}

AioContext *block_graph_assign_home(BlockGraph *graph)
{
    bg_assert_main_thread();
    return graph->homes->len ? graph->homes->pdata[graph->next_home++ % graph->homes->len]
                             : graph->main_context;
}

static void limit_waits(const GPtrArray *nodes)
{
    for (guint i = 0; i < nodes->len; i++) {
        BlockNode *node = nodes->pdata[i];
        if (node->driver->limit_waits) {
            node->driver->limit_waits(node);
        }
    }
}

void block_graph_limit_waits(BlockGraph *graph)
{
    bg_assert_main_thread();
    limit_waits(graph->nodes);
    limit_waits(graph->closing_nodes);
}

static int no_such_node(BlockGraph *graph, const char *name, GError **errp)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    for (guint i = 0; i < graph->nodes->len; i++) {
        BlockNode *node = graph->nodes->pdata[i];
        if (node->named_by_user) {
            g_ptr_array_add(names, node->name);
        }
    }
    g_ptr_array_add(names, NULL);
    const char *near = text_nearest(name, (const char *const *)names->pdata);
    return near ? bg_error_set(errp, ENOENT, "there is no node '%s'; did you mean '%s'?", name, near)
                : bg_error_set(errp, ENOENT, "there is no node '%s'", name);
}

BlockNode *block_graph_find(BlockGraph *graph, const char *name, GError **errp)
{
    bg_assert_main_thread();
    BlockNode *node = g_hash_table_lookup(graph->by_name, name);
    if (!node) {
        no_such_node(graph, name, errp);
    }
    return node;
}

const GPtrArray *block_graph_nodes(const BlockGraph *graph)
{
    return graph->nodes;
}

const GPtrArray *block_graph_backends(const BlockGraph *graph)
{
    return graph->backends;
}

int coroutine_fn block_graph_co_delete_node(BlockGraph *graph, BlockNode *node, GError **errp)
{
    bg_assert_main_thread();
    if (node->parents->len) {
        g_autofree char *user = block_child_user(node->parents->pdata[0]);
        return bg_error_set(errp, EBUSY, "node '%s' is in use by %s", node->name, user);
    }
    if (!node->named_by_user) {
        return bg_error_set(errp, EINVAL, "node '%s' goes with its parent", node->name);
    }
    node->named_by_user = false;
    block_node_co_unref(node);
    return 0;
}
