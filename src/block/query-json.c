/*
 * The graph, options and statistics as JSON, and the metrics. Main thread.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "block/block-internal.h"
#include "util/text.h"

static char *finish(JsonBuilder *b)
{
    g_autoptr(JsonNode) root = json_builder_get_root(b);
    g_autoptr(JsonGenerator) gen = json_generator_new();
    json_generator_set_root(gen, root);
    json_generator_set_pretty(gen, TRUE);
    char *text = json_generator_to_data(gen, NULL);
    char *with_newline = g_strconcat(text, "\n", NULL);
    g_free(text);
    return with_newline;
}

static void add_string(JsonBuilder *b, const char *key, const char *value)
{
    json_builder_set_member_name(b, key);
    json_builder_add_string_value(b, value);
}

static void add_int(JsonBuilder *b, const char *key, int64_t value)
{
    json_builder_set_member_name(b, key);
    json_builder_add_int_value(b, value);
}

static void add_bool(JsonBuilder *b, const char *key, bool value)
{
    json_builder_set_member_name(b, key);
    json_builder_add_boolean_value(b, value);
}

static void add_perms(JsonBuilder *b, const char *key, BlockPerm perm)
{
    json_builder_set_member_name(b, key);
    json_builder_begin_array(b);
    for (unsigned bit = 0; (1u << bit) <= BLOCK_PERM_ALL; bit++) {
        if (perm & (1u << bit)) {
            g_autofree char *name = block_perm_names(1u << bit);
            json_builder_add_string_value(b, name);
        }
    }
    json_builder_end_array(b);
}

/* ---- graph.json */

static void add_edges(JsonBuilder *b, BlockNode *node)
{
    json_builder_set_member_name(b, "children");
    json_builder_begin_array(b);
    for (guint i = 0; i < node->children->len; i++) {
        const BlockChild *edge = node->children->pdata[i];
        json_builder_begin_object(b);
        add_string(b, "name", edge->name);
        add_string(b, "node-name", edge->node->name);
        add_perms(b, "perm", edge->perm);
        add_perms(b, "shared-perm", edge->shared);
        json_builder_end_object(b);
    }
    json_builder_end_array(b);
}

static void add_node(JsonBuilder *b, BlockNode *node)
{
    g_autofree char *file = block_node_filename(node);
    int durable = block_node_durable(node);
    json_builder_begin_object(b);
    add_string(b, "node-name", node->name);
    add_string(b, "driver", node->driver->name);
    add_int(b, "size", block_node_length(node));
    add_bool(b, "read-only", node->read_only);
    add_bool(b, "drained", atomic_load(&node->quiesce) > 0);
    add_int(b, "in-flight", atomic_load(&node->in_flight));
    add_string(b, "durable", durable > 0 ? "yes" : durable == 0 ? "no" : "unknown");
    if (file) {
        add_string(b, "filename", file);
    }
    g_autofree char *status = node->driver->status ? node->driver->status(node) : NULL;
    if (status) {
        add_string(b, "status", status);
    }
    add_edges(b, node);
    json_builder_end_object(b);
}

static void add_backend(JsonBuilder *b, BlockBackend *blk)
{
    json_builder_begin_object(b);
    add_string(b, "id", blk->name);
    add_string(b, "node-name", blk->root->node->name);
    add_bool(b, "writable", blk->perm & BLOCK_PERM_WRITE);
    add_int(b, "parked", block_backend_parked(blk));
    json_builder_end_object(b);
}

char *block_graph_to_json(BlockGraph *graph)
{
    bg_assert_main_thread();
    g_autoptr(JsonBuilder) b = json_builder_new();
    json_builder_begin_object(b);
    json_builder_set_member_name(b, "exports");
    json_builder_begin_array(b);
    for (guint i = 0; i < graph->backends->len; i++) {
        BlockBackend *blk = graph->backends->pdata[i];
        if (blk->root) {
            add_backend(b, blk);
        }
    }
    json_builder_end_array(b);
    json_builder_set_member_name(b, "nodes");
    json_builder_begin_array(b);
    for (guint i = 0; i < graph->nodes->len; i++) {
        add_node(b, graph->nodes->pdata[i]);
    }
    json_builder_end_array(b);
    json_builder_end_object(b);
    return finish(b);
}

/* A copy without users and passwords in URLs. */
static JsonNode *redacted(JsonNode *value)
{
    JsonNode *copy = json_node_alloc();
    if (JSON_NODE_HOLDS_OBJECT(value)) {
        JsonObject *object = json_object_new();
        JsonObjectIter iter;
        const char *key;
        JsonNode *member;
        json_object_iter_init_ordered(&iter, json_node_get_object(value));
        while (json_object_iter_next_ordered(&iter, &key, &member)) {
            json_object_set_member(object, key, redacted(member));
        }
        json_node_init_object(copy, object);
        json_object_unref(object);
    } else if (JSON_NODE_HOLDS_ARRAY(value)) {
        JsonArray *array = json_array_new();
        for (guint i = 0; i < json_array_get_length(json_node_get_array(value)); i++) {
            json_array_add_element(array, redacted(json_array_get_element(json_node_get_array(value), i)));
        }
        json_node_init_array(copy, array);
        json_array_unref(array);
    } else if (json_node_get_value_type(value) == G_TYPE_STRING) {
        g_autofree char *text = text_without_userinfo(json_node_get_string(value));
        json_node_init_string(copy, text);
    } else {
        json_node_free(copy);
        return json_node_copy(value);
    }
    return copy;
}

char *block_node_options_json(BlockNode *node)
{
    bg_assert_main_thread();
    g_autoptr(JsonNode) whole = json_node_init_object(json_node_alloc(), node->options);
    g_autoptr(JsonNode) root = redacted(whole);
    g_autoptr(JsonGenerator) gen = json_generator_new();
    json_generator_set_root(gen, root);
    json_generator_set_pretty(gen, TRUE);
    g_autofree char *text = json_generator_to_data(gen, NULL);
    return g_strconcat(text, "\n", NULL);
}

/* ---- stats.json */

static void add_op_stats(JsonBuilder *b, BlockOp op, const BlockOpStats *st)
{
    json_builder_set_member_name(b, block_op_name(op));
    json_builder_begin_object(b);
    add_int(b, "operations", (int64_t)st->count);
    add_int(b, "bytes", (int64_t)st->bytes);
    add_int(b, "errors", (int64_t)st->errors);
    add_int(b, "total-latency-ns", (int64_t)st->total_ns);
    json_builder_set_member_name(b, "latency-histogram-us");
    json_builder_begin_array(b);
    for (int i = 0; i < BLOCK_LATENCY_BUCKETS; i++) {
        json_builder_add_int_value(b, (int64_t)st->latency[i]);
    }
    json_builder_end_array(b);
    json_builder_end_object(b);
}

char *block_node_stats_json(BlockNode *node)
{
    bg_assert_main_thread();
    g_autoptr(JsonBuilder) b = json_builder_new();
    json_builder_begin_object(b);
    add_string(b, "node-name", node->name);
    add_int(b, "in-flight", atomic_load(&node->in_flight));
    for (BlockOp op = 0; op < BLOCK_OP__MAX; op++) {
        BlockOpStats st;
        block_stats_get(node->stats, op, &st);
        if (op < BLOCK_OP_OPEN) {
            add_op_stats(b, op, &st);
        }
    }
    json_builder_end_object(b);
    return finish(b);
}
