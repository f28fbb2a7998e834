/*
 * BlockNode: opening, closing, reference counts.
 *
 *   OPENING --driver's co_open succeeded--> OPEN --last reference dropped--> CLOSING --co_close--> freed
 *           \--failed--> freed
 *
 * Invariants: only OPEN nodes are in graph->nodes, and so in the cover of drained sections; a node with
 * parents has a reference from each, so a CLOSING one has none.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "aio/aio.h"
#include "block/block-internal.h"
#include "block/check.h"
#include "block/flush.h"
#include "block/serialise.h"
#include "util/error.h"
#include "util/text.h"

/* ---- Options that every node has */

/* "discard=unmap", "cache.direct=on", ... with the parent's values as defaults for a node defined in place.
 */
static bool read_cache_options(BlockNode *node, BlockOptions *opts, GError **errp)
{
    g_autoptr(JsonObject) cache = NULL;
    if (!block_options_get_object(opts, "cache", &cache, errp)) {
        return false;
    }
    if (!cache) {
        return true;
    }
    g_autofree char *prefix = g_strdup_printf("%scache.", block_options_prefix(opts));
    g_autoptr(BlockOptions) sub = block_options_new(block_options_what(opts), prefix, cache);
    for (const char *const *key = node->driver->cache_options; key && *key; key++) {
        block_options_leave(sub, *key);
    }
    return block_options_get_bool(sub, "direct", &node->cache_direct, errp) &&
           block_options_get_bool(sub, "no-flush", &node->cache_no_flush, errp) &&
           block_options_finish(sub, errp);
}

/* role: to the parent. A backing is only ever read, whatever its parent is opened for. */
static bool read_common_options(BlockNode *node, BlockOptions *opts, const BlockNode *parent,
                                BlockChildRole role, GError **errp)
{
    static const char *const discard_words[] = {"ignore", "unmap", NULL};
    static const char *const zeroes_words[] = {"off", "on", "unmap", NULL};
    int discard = 1, zeroes = 0;
    if (parent) {
        node->read_only = parent->read_only || (role & BLOCK_ROLE_COW);
        node->auto_read_only = parent->auto_read_only;
        node->cache_direct = parent->cache_direct;
        node->cache_no_flush = parent->cache_no_flush;
        discard = parent->discard_unmap;
    }
    if (!block_options_get_bool(opts, "read-only", &node->read_only, errp) ||
        !block_options_get_bool(opts, "auto-read-only", &node->auto_read_only, errp) ||
        !block_options_get_enum(opts, "discard", discard_words, &discard, errp) ||
        !block_options_get_enum(opts, "detect-zeroes", zeroes_words, &zeroes, errp) ||
        !read_cache_options(node, opts, errp)) {
        return false;
    }
    node->discard_unmap = discard == 1;
    node->detect_zeroes = zeroes > 0;
    node->detect_zeroes_unmap = zeroes == 2;
    if (node->detect_zeroes_unmap && !node->discard_unmap) {
        return block_options_error(opts, "detect-zeroes", errp, EINVAL, "'unmap' contradicts discard=ignore");
    }
    return true;
}

/* ---- The object */

static BlockNode *node_new(BlockGraph *graph, const BlockDriver *driver, JsonObject *options)
{
    BlockNode *node = aligned_alloc(BG_CACHE_LINE, sizeof *node);
    g_assert(node);
    memset(node, 0, sizeof *node);
    node->graph = graph;
    node->driver = driver;
    node->opaque = g_malloc0(MAX(driver->instance_size, 1));
    node->options = json_object_ref(options);
    node->tracker = request_tracker_new();
    node->flush = flush_state_new();
    node->stats = block_stats_new();
    node->children = g_ptr_array_new();
    node->parents = g_ptr_array_new();
    node->shared = node->new_shared = BLOCK_PERM_ALL;
    node->refcount = 1;
    return node;
}

static void node_free(BlockNode *node)
{
    g_assert(node->parents->len == 0 && node->children->len == 0);
    g_ptr_array_unref(node->children);
    g_ptr_array_unref(node->parents);
    block_stats_free(node->stats);
    flush_state_free(node->flush);
    request_tracker_free(node->tracker);
    json_object_unref(node->options);
    g_free(node->opaque);
    g_free(node->name);
    free(node);
}

static void coroutine_fn detach_children(BlockNode *node)
{
    while (node->children->len) {
        block_child_co_detach(node->children->pdata[node->children->len - 1]);
    }
}

/* ---- Names */

static bool check_name(BlockGraph *graph, const char *name, BlockOptions *opts, GError **errp)
{
    const char *why;
    if (!text_valid_name(name, &why)) {
        return block_options_error(opts, "node-name", errp, EINVAL, "'%s' is no valid name: %s", name, why);
    }
    if (name[0] == '#') {
        return block_options_error(opts, "node-name", errp, EINVAL,
                                   "'%s': names that begin with '#' are reserved", name);
    }
    if (g_hash_table_contains(graph->by_name, name)) {
        return block_options_error(opts, "node-name", errp, EEXIST, "there is a node '%s' already", name);
    }
    return true;
}

/* "#vm1.file" for child `file` of "vm1", which people recognise; else, and where that is taken, a number. */
static char *auto_name(BlockGraph *graph, const BlockNode *parent, const char *prefix)
{
    if (parent && *prefix) {
        g_autofree char *path = g_strndup(prefix, strlen(prefix) - 1); /* without the dot at its end */
        const char *dot = strrchr(path, '.');
        g_autofree char *name =
            g_strdup_printf("#%s.%s", parent->name + (parent->name[0] == '#'), dot ? dot + 1 : path);
        if (strlen(name) <= BLOCK_NAME_MAX && !g_hash_table_contains(graph->by_name, name)) {
            return g_steal_pointer(&name);
        }
    }
    for (;;) {
        g_autofree char *name = g_strdup_printf("#block%03u", graph->next_auto_name++);
        if (!g_hash_table_contains(graph->by_name, name)) {
            return g_steal_pointer(&name);
        }
    }
}

static bool read_name(BlockGraph *graph, BlockOptions *opts, char **name, GError **errp)
{
    if (!block_options_get_string(opts, "node-name", name, errp)) {
        return false;
    }
    return !*name || check_name(graph, *name, opts, errp);
}

/* ---- Open */

static int check_limits(const BlockNode *node, GError **errp)
{
    const BlockLimits *l = &node->limits;
    uint32_t align = MAX(l->request_alignment, 1);
    bool bad = (align & (align - 1)) || l->max_transfer < 0 || l->max_transfer % align ||
               l->max_pdiscard < 0 || l->max_pwrite_zeroes < 0 || block_node_length((BlockNode *)node) < 0 ||
               block_node_length((BlockNode *)node) > BLOCK_MAX_LENGTH;
    return bad ? bg_error_set(errp, EINVAL, "node '%s': driver '%s' gives impossible limits or length",
                              node->name, node->driver->name)
               : 0;
}

static void enter_graph(BlockNode *node)
{
    BlockGraph *graph = node->graph;
    g_hash_table_insert(graph->by_name, node->name, node);
    g_ptr_array_add(graph->nodes, node);
    block_drain_graph_changed(graph);
}

static int coroutine_fn run_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    int ret = node->driver->co_open(node, opts, errp);
    if (ret < 0) {
        return ret;
    }
    if (!block_options_finish(opts, errp)) {
        ret = -EINVAL;
    } else {
        ret = check_limits(node, errp);
    }
    if (ret < 0 && node->driver->co_close) {
        node->driver->co_close(node);
    }
    return ret;
}

static BlockNode *coroutine_fn node_co_open(BlockGraph *graph, JsonObject *options, const char *what,
                                            const char *prefix, const BlockNode *parent, BlockChildRole role,
                                            bool to_check, GError **errp)
{
    g_autoptr(BlockOptions) opts = block_options_new(what, prefix, options);
    g_autofree char *driver_name = NULL, *name = NULL;
    if (!block_options_require_string(opts, "driver", &driver_name, errp) ||
        !read_name(graph, opts, &name, errp)) {
        return NULL;
    }
    GError *cause = NULL;
    const BlockDriver *driver = block_driver_find(driver_name, &cause);
    if (!driver) {
        block_options_error(opts, "driver", errp, EINVAL, "%s", cause->message);
        g_error_free(cause);
        return NULL;
    }
    BlockNode *node = node_new(graph, driver, options);
    node->to_check = to_check;
    node->named_by_user = name != NULL;
    node->opener = parent;
    node->name = name ? g_steal_pointer(&name) : auto_name(graph, parent, prefix);
    g_hash_table_insert(graph->by_name, node->name, NULL); /* taken, but not to be found yet */
    if (!read_common_options(node, opts, parent, role, errp) || run_open(node, opts, errp) < 0) {
        g_hash_table_remove(graph->by_name, node->name);
        detach_children(node);
        node_free(node);
        return NULL;
    }
    node->opener = NULL;
    enter_graph(node);
    return node;
}

static BlockNode *coroutine_fn open_root(BlockGraph *graph, JsonObject *options, bool to_check, GError **errp)
{
    bg_assert_main_thread();
    const char *name = NULL;
    JsonNode *member = json_object_get_member(options, "node-name");
    if (member && JSON_NODE_HOLDS_VALUE(member) && json_node_get_value_type(member) == G_TYPE_STRING) {
        name = json_node_get_string(member);
    }
    g_autofree char *what = name ? g_strdup_printf("node '%s'", name) : g_strdup("node without a name");
    return node_co_open(graph, options, what, "", NULL, 0, to_check, errp);
}

BlockNode *coroutine_fn block_node_co_open(BlockGraph *graph, JsonObject *options, GError **errp)
{
    return open_root(graph, options, false, errp);
}

BlockNode *coroutine_fn block_node_co_open_to_check(BlockGraph *graph, JsonObject *options, GError **errp)
{
    return open_root(graph, options, true, errp);
}

/* The node that a child option names or defines; with a reference for the caller. */
static BlockNode *coroutine_fn child_node(BlockNode *parent, BlockOptions *opts, const char *key,
                                          const char *ref, JsonObject *object, BlockChildRole role,
                                          GError **errp)
{
    if (ref) {
        GError *cause = NULL;
        BlockNode *node = block_graph_find(parent->graph, ref, &cause);
        if (!node) {
            block_options_error(opts, key, errp, ENOENT, "%s", cause->message);
            g_error_free(cause);
            return NULL;
        }
        return block_node_ref(node);
    }
    g_autofree char *prefix = g_strdup_printf("%s%s.", block_options_prefix(opts), key);
    BlockNode *node =
        node_co_open(parent->graph, object, block_options_what(opts), prefix, parent, role, false, errp);
    if (node && node->named_by_user) {
        block_node_ref(node); /* beside the graph's own */
    }
    return node;
}

int coroutine_fn block_node_co_open_child(BlockNode *node, BlockOptions *opts, const char *key,
                                          BlockChildRole role, bool optional, BlockChild **out, GError **errp)
{
    bg_assert_main_thread();
    g_autofree char *ref = NULL;
    g_autoptr(JsonObject) object = NULL;
    if (out) {
        *out = NULL;
    }
    if (!block_options_get_child(opts, key, &ref, &object, errp)) {
        return -EINVAL;
    }
    if (!ref && !object) {
        if (optional) {
            return 0;
        }
        block_options_error(opts, key, errp, EINVAL,
                            "required: the name of a node, or a node defined in place");
        return -EINVAL;
    }
    GError *err = NULL;
    BlockNode *child = child_node(node, opts, key, ref, object, role, &err);
    BlockChild *edge = child ? block_node_attach_child(node, child, key, role, &err) : NULL;
    if (child) {
        block_node_co_unref(child);
    }
    if (!edge) {
        int ret = bg_error_to_errno(err);
        g_propagate_error(errp, err);
        return ret;
    }
    if (out) {
        *out = edge;
    }
    return 0;
}

/* ---- References */

BlockNode *block_node_ref(BlockNode *node)
{
    bg_assert_main_thread();
    g_assert(node->refcount > 0);
    node->refcount++;
    return node;
}

static void leave_graph(BlockNode *node)
{
    BlockGraph *graph = node->graph;
    node->closing = true;
    g_hash_table_remove(graph->by_name, node->name);
    g_ptr_array_remove(graph->nodes, node);
    block_drain_graph_changed(graph);
}

static void coroutine_fn node_co_close(BlockNode *node)
{
    BlockGraph *graph = node->graph;
    g_assert(node->parents->len == 0);
    graph->closing++;
    leave_graph(node);
    g_ptr_array_add(graph->closing_nodes, node);
    block_drain_co_quiet_for_close(node);
    if (!node->read_only) {
        node_co_flush(node); /* an error is in the log; nobody is left to hear of it */
    }
    if (node->driver->co_close) {
        node->driver->co_close(node);
    }
    detach_children(node);
    g_ptr_array_remove(graph->closing_nodes, node);
    node_free(node);
    block_graph_closing_done(graph);
}

void coroutine_fn block_node_co_unref(BlockNode *node)
{
    bg_assert_main_thread();
    g_assert(node->refcount > 0);
    if (--node->refcount == 0) {
        node_co_close(node);
    }
}

static void coroutine_fn unref_entry(void *opaque)
{
    BlockNode *node = opaque;
    BlockGraph *graph = node->graph;
    block_node_co_unref(node);
    block_graph_closing_done(graph);
}

void block_node_unref_later(BlockNode *node)
{
    bg_assert_main_thread();
    g_assert(node->refcount > 0);
    if (node->refcount > 1) {
        node->refcount--;
        return;
    }
    /* The last reference passes to the coroutine: until it runs, the node is as any other. */
    node->graph->closing++;
    aio_co_schedule(node->graph->main_context, coroutine_create(unref_entry, node));
}

/* ---- In-flight count */

void block_node_inc_in_flight(BlockNode *node)
{
    atomic_fetch_add(&node->in_flight, 1);
}

void block_node_dec_in_flight(BlockNode *node)
{
    block_drain_count_down(node->graph, &node->in_flight);
}

/* ---- Home context */

/* One move at a time, and no request from now on: see wait_while_moving() in io.c. */
static void coroutine_fn begin_move(BlockNode *node)
{
    BlockGraph *graph = node->graph;
    bg_mutex_lock(&graph->move_lock);
    while (atomic_load(&node->moving)) {
        co_queue_wait_locked(&graph->moved, &graph->move_lock);
    }
    atomic_store(&node->moving, true);
    bg_mutex_unlock(&graph->move_lock);
    block_drain_co_wait_node(node);
}

static void end_move(BlockNode *node)
{
    BlockGraph *graph = node->graph;
    bg_mutex_lock(&graph->move_lock);
    atomic_store(&node->moving, false);
    bg_mutex_unlock(&graph->move_lock);
    co_queue_restart_all(&graph->moved);
}

int coroutine_fn block_node_co_set_aio_context(BlockNode *node, AioContext *ctx, GError **errp)
{
    bg_assert_main_thread();
    const BlockDriver *driver = node->driver;
    if (!node->aio_context || !driver->co_detach_aio_context || !driver->co_attach_aio_context) {
        return bg_error_set(errp, ENOTSUP, "node '%s': driver '%s' works in every thread and has no home",
                            node->name, driver->name);
    }
    BlockDrain *section = block_drain_co_begin(node);
    begin_move(node);
    aio_co_reschedule_self(node->aio_context);
    driver->co_detach_aio_context(node);
    aio_co_reschedule_self(ctx);
    driver->co_attach_aio_context(node, ctx);
    aio_co_reschedule_self(block_graph_main_context(node->graph));
    node->aio_context = ctx;
    end_move(node);
    block_drain_end(section);
    return 0;
}

/* ---- What people ask */

int block_node_durable(BlockNode *node)
{
    if (node->cache_no_flush) {
        return 0;
    }
    if (node->driver->durable) {
        return node->driver->durable(node);
    }
    int least = node->children->len ? 1 : -1;
    for (guint i = 0; i < node->children->len; i++) {
        int d = block_node_durable(((BlockChild *)node->children->pdata[i])->node);
        if (d == 0) {
            return 0;
        }
        least = MIN(least, d);
    }
    return least;
}

char *block_node_filename(BlockNode *node)
{
    if (node->driver->filename) {
        return node->driver->filename(node);
    }
    return node->file ? block_node_filename(node->file->node) : NULL;
}
