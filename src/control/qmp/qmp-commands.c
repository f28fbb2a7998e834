/*
 * The table of commands, and those that are about the control socket itself.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/qmp/qmp-commands.h"

#include <errno.h>

#include "control/server-internal.h"
#include "util/error.h"

JsonNode *qmp_value_string(const char *text)
{
    return json_node_init_string(json_node_alloc(), text);
}

JsonNode *qmp_value_object(JsonObject *object)
{
    JsonNode *node = json_node_new(JSON_NODE_OBJECT);

    json_node_take_object(node, object);
    return node;
}

JsonNode *qmp_value_list(JsonArray *list)
{
    JsonNode *node = json_node_new(JSON_NODE_ARRAY);

    json_node_take_array(node, list);
    return node;
}

/* ---- The socket itself */

static JsonNode *negotiate(void *host, JsonObject *arguments, GError **errp)
{
    JsonArray *enable = qmp_get_list(arguments, "enable");

    if (enable && json_array_get_length(enable) > 0) {
        bg_error_set(errp, ENOTSUP, "argument 'enable': the capability '%s' is not offered",
                     json_array_get_string_element(enable, 0));
    }
    return NULL;
}

static JsonNode *query_version(void *host, JsonObject *arguments, GError **errp)
{
    return qmp_value_object(qmp_version());
}

static JsonNode *query_commands(void *host, JsonObject *arguments, GError **errp)
{
    JsonArray *list = json_array_new();

    for (const QmpCommand *c = qmp_commands; c->name; c++) {
        JsonObject *object = json_object_new();

        json_object_set_string_member(object, "name", c->name);
        json_array_add_object_element(list, object);
    }
    return qmp_value_list(list);
}

static JsonNode *help(void *host, JsonObject *arguments, GError **errp)
{
    g_autoptr(GString) text = g_string_new(NULL);
    const char *name = qmp_get_string(arguments, "command");

    for (const QmpCommand *c = qmp_commands; c->name; c++) {
        g_autofree char *usage = qmp_command_usage(c);

        if (!name || g_str_equal(c->name, name)) {
            g_string_append_printf(text, "%s %s\n    %s\n", c->name, usage, c->summary);
        }
    }
    if (text->len == 0) {
        g_set_error(errp, QMP_ERROR, QMP_COMMAND_NOT_FOUND, "there is no command '%s'", name);
        return NULL;
    }
    return qmp_value_string(text->str);
}

static JsonNode *quit(void *host, JsonObject *arguments, GError **errp)
{
    server_stop(host);
    return NULL;
}

/* ---- The table */

static const QmpMember capabilities_arguments[] = {{"enable", &qmp_string_list, true}, {NULL, NULL, false}};

static const QmpMember help_arguments[] = {{"command", &qmp_string, true}, {NULL, NULL, false}};

static const QmpMember nodes_arguments[] = {{"flat", &qmp_bool, true}, {NULL, NULL, false}};

static const char *const graph_formats[] = {"text", "dot", "json", "conf", NULL};
static const QmpType graph_format = {.kind = QMP_KIND_ENUM, .name = "format", .words = graph_formats};
static const QmpMember graph_arguments[] = {{"format", &graph_format, true}, {NULL, NULL, false}};

const QmpCommand qmp_commands[] = {
    {"qmp_capabilities", "begin", capabilities_arguments, QMP_NEGOTIATE, negotiate},
    {"query-commands", "list all commands", NULL, 0, query_commands},
    {"query-version", "tell which protocol and which program this is", NULL, 0, query_version},
    {"quit", "stop the daemon: drain, flush, unmount", NULL, 0, quit},
    {"blockdev-snapshot", "put a node on top of another, which becomes its backing", qmp_snapshot_arguments,
     QMP_CHANGES, qmp_snapshot},
    {"blockdev-snapshot-delete-internal-sync", "delete a snapshot inside an image",
     qmp_snapshot_delete_arguments, QMP_CHANGES, qmp_snapshot_delete},
    {"blockdev-snapshot-internal-sync", "take a snapshot inside an image", qmp_snapshot_internal_arguments,
     QMP_CHANGES, qmp_snapshot_internal},
    {"blockdev-snapshot-sync", "make an overlay and put it on top of a node", qmp_snapshot_sync_arguments,
     QMP_CHANGES, qmp_snapshot_sync},
    {"transaction", "take several snapshots at one point in time, or none", qmp_transaction_arguments,
     QMP_CHANGES, qmp_transaction},
    {"query-block-exports", "list the exports", NULL, 0, qmp_query_block_exports},
    {"query-named-block-nodes", "list the nodes", nodes_arguments, 0, qmp_query_named_block_nodes},
    {"x-debug-query-block-graph", "list nodes and edges, with permissions", NULL, 0,
     qmp_debug_query_block_graph},
    {"x-blockgraph-graph", "draw the graph, or print the graph file that makes it again", graph_arguments, 0,
     qmp_query_graph},
    {"x-blockgraph-help", "describe the commands", help_arguments, 0, help},
    {"x-blockgraph-snapshot-create", "take a snapshot of exports at one point in time",
     qmp_own_create_arguments, QMP_CHANGES, qmp_own_snapshot_create},
    {"x-blockgraph-snapshot-delete", "delete a snapshot of exports", qmp_own_change_arguments, QMP_CHANGES,
     qmp_own_snapshot_delete},
    {"x-blockgraph-snapshot-list", "list the snapshots of exports", qmp_own_list_arguments, 0,
     qmp_own_snapshot_list},
    {"x-blockgraph-snapshot-revert", "give exports the content that they had", qmp_own_change_arguments,
     QMP_CHANGES, qmp_own_snapshot_revert},
    {"x-blockgraph-status", "tell how the exports are", NULL, 0, qmp_query_status},
    {NULL, NULL, NULL, 0, NULL},
};
