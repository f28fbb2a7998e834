/*
 * blockgraph status, tree, graph: what a running daemon looks like.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "client/client.h"
#include "client/daemon.h"
#include "client/table.h"
#include "util/error.h"
#include "util/text.h"

/* ---- tree, graph */

static int print_graph(const char *mountpoint, const char *format)
{
    GError *error = NULL;
    JsonObject *arguments = json_object_new();
    json_object_set_string_member(arguments, "format", format);
    g_autoptr(JsonNode) text = client_daemon_ask(mountpoint, "x-blockgraph-graph", arguments, &error);
    return text ? client_say(json_node_get_string(text)) : client_fail(error);
}

static int run_tree(const ClientLine *line)
{
    return print_graph(client_line_word(line, 0), client_line_has(line, "json") ? "json" : "text");
}

static int run_graph(const ClientLine *line)
{
    const char *format = client_line_value(line, "format");
    if (!format || client_line_has(line, "json")) {
        format = client_line_has(line, "json") ? "json" : "text";
    }
    return print_graph(client_line_word(line, 0), format);
}

/* ---- status */

static void add_export(ClientTable *table, JsonObject *export)
{
    g_autofree char *size = text_format_size((uint64_t)json_object_get_int_member(export, "size"));
    g_autofree char *node =
        g_strdup_printf("%s (%s%s)", json_object_get_string_member(export, "node-name"),
                        json_object_get_string_member(export, "driver"),
                        json_object_get_boolean_member(export, "drained") ? ", drained" : "");
    bool writable = json_object_get_boolean_member(export, "writable");
    bool own = json_object_get_boolean_member(export, "own-mountpoint");
    client_table_add(table, json_object_get_string_member(export, "id"), size,
                     writable ? "writable" : "read-only", json_object_get_string_member(export, "durable"),
                     node, own ? json_object_get_string_member(export, "mountpoint") : "", NULL);
}

static void add_errors(GString *out, JsonArray *exports)
{
    for (guint i = 0; i < json_array_get_length(exports); i++) {
        JsonObject *export = json_array_get_object_element(exports, i);
        if (json_object_has_member(export, "last-error")) {
            g_autofree char *text = client_printable(json_object_get_string_member(export, "last-error"));
            g_string_append_printf(out, "last error: %s\n", text);
        }
    }
}

static char *describe_status(const char *mountpoint, JsonObject *status)
{
    GString *out = g_string_new(NULL);
    JsonArray *exports = json_object_get_array_member(status, "exports");
    g_autoptr(ClientTable) table =
        client_table_new("EXPORT", "SIZE", "ACCESS", "DURABLE", "NODE", "FILE", NULL);
    for (guint i = 0; i < json_array_get_length(exports); i++) {
        add_export(table, json_array_get_object_element(exports, i));
    }
    g_autofree char *rows = client_table_text(table);
    g_string_append_printf(out,
                           "%s: blockgraphfs %s, process %" G_GINT64_FORMAT ", %" G_GINT64_FORMAT
                           " nodes, %" G_GINT64_FORMAT " errors since the start\n",
                           mountpoint, json_object_get_string_member(status, "version"),
                           json_object_get_int_member(status, "pid"),
                           json_object_get_int_member(status, "nodes"),
                           json_object_get_int_member(status, "errors"));
    g_string_append(out, rows);
    add_errors(out, exports);
    return g_string_free(out, FALSE);
}

static int run_status(const ClientLine *line)
{
    GError *error = NULL;
    const char *mountpoint = client_line_word(line, 0);
    g_autoptr(JsonNode) status = client_daemon_ask(mountpoint, "x-blockgraph-status", NULL, &error);
    if (!status) {
        return client_fail(error);
    }
    g_autofree char *text = client_line_has(line, "json")
                                ? client_json_text(status)
                                : describe_status(mountpoint, json_node_get_object(status));
    return client_say(text);
}

/* ---- The verbs */

static const ClientOption json_options[] = {{"json", 0, NULL, "print JSON"}, {0}};

static const ClientOption graph_options[] = {
    {"format", 0, "FORMAT", "text (the default), dot, json or conf"},
    {"json", 0, NULL, "as --format=json"},
    {0},
};

const ClientVerb client_verb_status = {
    .name = "status",
    .arguments = "MOUNTPOINT",
    .summary = "tell how the exports of a mount are",
    .options = json_options,
    .min_words = 1,
    .max_words = 1,
    .run = run_status,
};

const ClientVerb client_verb_tree = {
    .name = "tree",
    .arguments = "MOUNTPOINT",
    .summary = "draw the nodes below each export",
    .options = json_options,
    .min_words = 1,
    .max_words = 1,
    .run = run_tree,
};

const ClientVerb client_verb_graph = {
    .name = "graph",
    .arguments = "MOUNTPOINT",
    .summary = "print the running graph",
    .details = "With --format=conf it is a graph file, see blockgraph-graph(5), that makes\n"
               "the same graph again: also the nodes that snapshots have added. The others\n"
               "are pictures, as in .graph.\n",
    .options = graph_options,
    .min_words = 1,
    .max_words = 1,
    .run = run_graph,
};
