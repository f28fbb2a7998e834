/*
 * Commands that look at nodes, exports and the graph.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <unistd.h>

#include "block/io.h"
#include "control/graph-print.h"
#include "control/qmp/qmp-commands.h"
#include "control/server-internal.h"

static void set_string(JsonObject *object, const char *name, const char *text)
{
    g_autofree char *valid = g_utf8_make_valid(text, -1);

    json_object_set_string_member(object, name, valid);
}

/* ---- query-named-block-nodes */

static void coroutine_fn add_snapshots(JsonObject *image, BlockNode *node)
{
    g_autoptr(GPtrArray) infos = g_ptr_array_new_with_free_func((GDestroyNotify)block_snapshot_info_free);
    JsonArray *list;

    if (!node->driver->snapshots || node->driver->snapshots->co_list(node, infos, NULL) < 0 || !infos->len) {
        return;
    }
    list = json_array_new();
    for (guint i = 0; i < infos->len; i++) {
        json_array_add_object_element(list, qmp_snapshot_info(infos->pdata[i]));
    }
    json_object_set_array_member(image, "snapshots", list);
}

static JsonObject *coroutine_fn image_info(BlockNode *node, bool flat)
{
    JsonObject *image = json_object_new();
    g_autofree char *filename = block_node_filename(node);
    int64_t allocated = block_node_co_get_allocated(node);

    set_string(image, "filename", filename ? filename : "");
    json_object_set_string_member(image, "format", node->driver->name);
    json_object_set_int_member(image, "virtual-size", block_node_length(node));
    if (allocated >= 0) {
        json_object_set_int_member(image, "actual-size", allocated);
    }
    add_snapshots(image, node);
    if (node->backing) {
        g_autofree char *backing = block_node_filename(node->backing->node);

        set_string(image, "backing-filename", backing ? backing : "");
        set_string(image, "full-backing-filename", backing ? backing : "");
        json_object_set_string_member(image, "backing-filename-format", node->backing->node->driver->name);
    }
    if (node->backing && !flat) {
        json_object_set_object_member(image, "backing-image", image_info(node->backing->node, flat));
    }
    return image;
}

static JsonObject *cache_info(const BlockNode *node)
{
    JsonObject *cache = json_object_new();

    json_object_set_boolean_member(cache, "writeback", TRUE);
    json_object_set_boolean_member(cache, "direct", node->cache_direct);
    json_object_set_boolean_member(cache, "no-flush", node->cache_no_flush);
    return cache;
}

static unsigned backing_depth(BlockNode *node)
{
    unsigned depth = 0;

    for (; node->backing; node = node->backing->node) {
        depth++;
    }
    return depth;
}

/* Members that QEMU always has, of features that are not here. */
static void add_constants(JsonObject *object)
{
    static const char *const zeroes[] = {"bps",     "bps_rd",  "bps_wr",         "iops",
                                         "iops_rd", "iops_wr", "write_threshold"};

    json_object_set_boolean_member(object, "encrypted", FALSE);
    for (unsigned i = 0; i < G_N_ELEMENTS(zeroes); i++) {
        json_object_set_int_member(object, zeroes[i], 0);
    }
}

static JsonObject *coroutine_fn device_info(BlockNode *node, bool flat)
{
    JsonObject *object = json_object_new();
    g_autofree char *filename = block_node_filename(node);

    json_object_set_string_member(object, "node-name", node->name);
    json_object_set_string_member(object, "drv", node->driver->name);
    set_string(object, "file", filename ? filename : "");
    json_object_set_boolean_member(object, "ro", node->read_only);
    json_object_set_string_member(object, "detect_zeroes",
                                  node->detect_zeroes_unmap ? "unmap"
                                  : node->detect_zeroes     ? "on"
                                                            : "off");
    json_object_set_int_member(object, "backing_file_depth", backing_depth(node));
    if (node->backing) {
        g_autofree char *backing = block_node_filename(node->backing->node);

        set_string(object, "backing_file", backing ? backing : "");
    }
    json_object_set_object_member(object, "cache", cache_info(node));
    add_constants(object);
    json_object_set_object_member(object, "image", image_info(node, flat));
    return object;
}

JsonNode *coroutine_fn qmp_query_named_block_nodes(void *host, JsonObject *arguments, GError **errp)
{
    const GPtrArray *nodes = block_graph_nodes(((Server *)host)->graph);
    g_autoptr(GPtrArray) held = g_ptr_array_new();
    JsonArray *list = json_array_new();

    /* Asking for the allocation yields: the graph may change. */
    for (guint i = 0; i < nodes->len; i++) {
        g_ptr_array_add(held, block_node_ref(nodes->pdata[i]));
    }
    for (guint i = 0; i < held->len; i++) {
        json_array_add_object_element(list,
                                      device_info(held->pdata[i], qmp_get_bool(arguments, "flat", false)));
    }
    for (guint i = 0; i < held->len; i++) {
        block_node_co_unref(held->pdata[i]);
    }
    return qmp_value_list(list);
}

/* ---- query-block-exports, x-blockgraph-status */

JsonNode *coroutine_fn qmp_query_block_exports(void *host, JsonObject *arguments, GError **errp)
{
    g_autoptr(GArray) exports = server_exports(host);
    JsonArray *list = json_array_new();

    for (guint i = 0; i < exports->len; i++) {
        FuseExport *exp = g_array_index(exports, ServerExport, i).exp;
        JsonObject *object = json_object_new();

        json_object_set_string_member(object, "id", fuse_export_id(exp));
        json_object_set_string_member(object, "type", "fuse");
        json_object_set_string_member(object, "node-name",
                                      block_backend_node(fuse_export_backend(exp))->name);
        json_object_set_boolean_member(object, "shutting-down", FALSE);
        json_array_add_object_element(list, object);
    }
    return qmp_value_list(list);
}

static const char *durable_word(BlockNode *node)
{
    int durable = block_node_durable(node);

    return durable > 0 ? "yes" : durable == 0 ? "no" : "unknown";
}

static JsonObject *export_status(const ServerExport *export)
{
    BlockNode *node = block_backend_node(fuse_export_backend(export->exp));
    JsonObject *object = json_object_new();
    g_autofree char *last_error = block_graph_last_error(node->graph, node->name);

    json_object_set_string_member(object, "id", fuse_export_id(export->exp));
    json_object_set_string_member(object, "node-name", node->name);
    json_object_set_string_member(object, "driver", node->driver->name);
    set_string(object, "mountpoint", fuse_mount_mountpoint(export->mount->mount));
    json_object_set_boolean_member(object, "own-mountpoint", export->mount->spec != NULL);
    json_object_set_int_member(object, "size", block_node_length(node));
    json_object_set_boolean_member(object, "writable", fuse_export_writable(export->exp));
    json_object_set_string_member(object, "durable", durable_word(node));
    json_object_set_boolean_member(object, "drained", atomic_load(&node->quiesce) > 0);
    if (last_error) {
        set_string(object, "last-error", last_error);
    }
    return object;
}

JsonNode *coroutine_fn qmp_query_status(void *host, JsonObject *arguments, GError **errp)
{
    g_autoptr(GArray) exports = server_exports(host);
    const Server *server = host;
    JsonObject *object = json_object_new();
    JsonArray *list = json_array_new();

    for (guint i = 0; i < exports->len; i++) {
        json_array_add_object_element(list, export_status(&g_array_index(exports, ServerExport, i)));
    }
    json_object_set_int_member(object, "pid", getpid());
    json_object_set_string_member(object, "version", PACKAGE_VERSION);
    json_object_set_int_member(object, "nodes", block_graph_nodes(server->graph)->len);
    json_object_set_int_member(object, "errors", (gint64)block_graph_error_count(server->graph));
    json_object_set_array_member(object, "exports", list);
    return qmp_value_object(object);
}

/* ---- x-blockgraph-graph */

JsonNode *coroutine_fn qmp_query_graph(void *host, JsonObject *arguments, GError **errp)
{
    const Server *server = host;
    const char *format = qmp_get_string(arguments, "format");
    g_autofree char *text = NULL;

    if (!format || g_str_equal(format, "text")) {
        text = block_graph_to_text(server->graph);
    } else if (g_str_equal(format, "dot")) {
        text = block_graph_to_dot(server->graph);
    } else if (g_str_equal(format, "json")) {
        text = block_graph_to_json(server->graph);
    } else {
        text = graph_print_conf(server, errp);
    }
    return text ? qmp_value_string(text) : NULL;
}

/* ---- x-debug-query-block-graph */

/* A number for each node and backend, in order of appearance. */
static gint64 graph_id(GHashTable *ids, gconstpointer object)
{
    gpointer id = g_hash_table_lookup(ids, object);

    if (!id) {
        id = GUINT_TO_POINTER(g_hash_table_size(ids) + 1);
        g_hash_table_insert(ids, (gpointer)object, id);
    }
    return GPOINTER_TO_UINT(id);
}

static JsonObject *graph_node(GHashTable *ids, gconstpointer object, const char *type, const char *name)
{
    JsonObject *json = json_object_new();

    json_object_set_int_member(json, "id", graph_id(ids, object));
    json_object_set_string_member(json, "type", type);
    json_object_set_string_member(json, "name", name);
    return json;
}

static JsonArray *permissions(BlockPerm perm)
{
    JsonArray *list = json_array_new();

    for (unsigned bit = 1; bit <= BLOCK_PERM_ALL; bit <<= 1) {
        if (perm & bit) {
            g_autofree char *name = block_perm_names(bit);

            json_array_add_string_element(list, name);
        }
    }
    return list;
}

static JsonObject *graph_edge(GHashTable *ids, const BlockChild *edge)
{
    JsonObject *json = json_object_new();
    gconstpointer parent = edge->parent ? (gconstpointer)edge->parent : edge->backend;

    json_object_set_int_member(json, "parent", graph_id(ids, parent));
    json_object_set_int_member(json, "child", graph_id(ids, edge->node));
    json_object_set_string_member(json, "name", edge->name);
    json_object_set_array_member(json, "perm", permissions(edge->perm));
    json_object_set_array_member(json, "shared-perm", permissions(edge->shared));
    return json;
}

JsonNode *coroutine_fn qmp_debug_query_block_graph(void *host, JsonObject *arguments, GError **errp)
{
    BlockGraph *graph = ((Server *)host)->graph;
    const GPtrArray *nodes = block_graph_nodes(graph), *backends = block_graph_backends(graph);
    g_autoptr(GHashTable) ids = g_hash_table_new(NULL, NULL);
    JsonArray *node_list = json_array_new(), *edge_list = json_array_new();
    JsonObject *object = json_object_new();

    for (guint i = 0; i < backends->len; i++) {
        const char *name = block_backend_name(backends->pdata[i]);

        json_array_add_object_element(node_list, graph_node(ids, backends->pdata[i], "block-backend", name));
    }
    for (guint i = 0; i < nodes->len; i++) {
        const BlockNode *node = nodes->pdata[i];

        json_array_add_object_element(node_list, graph_node(ids, node, "block-driver", node->name));
        for (guint p = 0; p < node->parents->len; p++) {
            json_array_add_object_element(edge_list, graph_edge(ids, node->parents->pdata[p]));
        }
    }
    json_object_set_array_member(object, "nodes", node_list);
    json_object_set_array_member(object, "edges", edge_list);
    return qmp_value_object(object);
}
