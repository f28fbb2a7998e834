/*
 * Printing the running graph as a graph file.
 *
 * A node's own options are printed as they were given; what can change, which is the children and read-only,
 * is printed from the node. Nodes with a name have a section of their own, also where they were defined in
 * place: what they took from their parent then is spelled out.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/graph-print.h"

#include <errno.h>
#include <string.h>

#include "control/server-internal.h"
#include "util/error.h"
#include "util/text.h"

/* ---- Lines */

static void print_option(GString *out, const char *key, const char *value)
{
    g_autofree char *text = text_without_userinfo(value);
    size_t len = strlen(text);

    g_string_append_printf(out, "%s =", key);
    for (size_t i = 0; i < len; i++) {
        static const char special[] = "\n\t\r\\", codes[] = "ntr\\";
        const char *found = strchr(special, text[i]);
        bool edge = text[i] == ' ' && (i == 0 || i == len - 1);

        g_string_append(out, i == 0 ? " " : "");
        if (found || edge) {
            g_string_append_printf(out, "\\%c", found ? codes[found - special] : 's');
        } else {
            g_string_append_c(out, text[i]);
        }
    }
    g_string_append_c(out, '\n');
}

static void print_bool(GString *out, const char *prefix, const char *key, bool value)
{
    g_autofree char *path = g_strconcat(prefix, key, NULL);

    print_option(out, path, value ? "on" : "off");
}

static bool print_header(GString *out, const char *type, const char *name, GError **errp)
{
    if (strchr(name, ']') || g_ascii_isspace(name[0]) || g_ascii_isspace(name[strlen(name) - 1])) {
        bg_error_set(errp, EINVAL, "the name '%s' cannot be written in a graph file", name);
        return false;
    }
    g_string_append_printf(out, "%s[%s %s]\n", out->len ? "\n" : "", type, name);
    return true;
}

/* ---- Options as they were given */

static void print_value(GString *out, const char *key, JsonNode *value);

static void print_object(GString *out, const char *prefix, JsonObject *object)
{
    JsonObjectIter iter;
    const char *key;
    JsonNode *value;

    json_object_iter_init_ordered(&iter, object);
    while (json_object_iter_next_ordered(&iter, &key, &value)) {
        g_autofree char *path = g_strconcat(prefix, key, NULL);

        print_value(out, path, value);
    }
}

static void print_list(GString *out, const char *key, JsonArray *array)
{
    for (guint i = 0; i < json_array_get_length(array); i++) {
        g_autofree char *path = g_strdup_printf("%s.%u", key, i);

        print_value(out, path, json_array_get_element(array, i));
    }
}

static void print_value(GString *out, const char *key, JsonNode *value)
{
    g_autofree char *text = NULL;

    if (JSON_NODE_HOLDS_OBJECT(value)) {
        g_autofree char *prefix = g_strconcat(key, ".", NULL);

        print_object(out, prefix, json_node_get_object(value));
    } else if (JSON_NODE_HOLDS_ARRAY(value)) {
        print_list(out, key, json_node_get_array(value));
    } else if (JSON_NODE_HOLDS_NULL(value)) {
        print_option(out, key, "");
    } else if (json_node_get_value_type(value) == G_TYPE_STRING) {
        print_option(out, key, json_node_get_string(value));
    } else if (json_node_get_value_type(value) == G_TYPE_BOOLEAN) {
        print_option(out, key, json_node_get_boolean(value) ? "on" : "off");
    } else {
        text = json_to_string(value, FALSE);
        print_option(out, key, text);
    }
}

/* ---- Nodes */

typedef struct Printer {
    GString *out;
    GError **errp;
} Printer;

/* What node options every node has: printed from the node's fields. */
static bool is_common(const char *key)
{
    static const char *const common[] = {"driver",  "node-name",     "read-only", "auto-read-only",
                                         "discard", "detect-zeroes", "cache",     NULL};

    return g_strv_contains(common, key);
}

static bool is_child(const BlockNode *node, const char *key)
{
    return node->driver->child_options && g_strv_contains(node->driver->child_options, key);
}

static BlockChild *find_edge(const BlockNode *node, const char *name)
{
    for (guint i = 0; i < node->children->len; i++) {
        BlockChild *edge = node->children->pdata[i];

        if (g_str_equal(edge->name, name)) {
            return edge;
        }
    }
    return NULL;
}

/* Those of the driver's, and children that were said not to be there. */
static void print_own_options(Printer *printer, const BlockNode *node, const char *prefix)
{
    JsonObjectIter iter;
    const char *key;
    JsonNode *value;

    json_object_iter_init_ordered(&iter, node->options);
    while (json_object_iter_next_ordered(&iter, &key, &value)) {
        g_autofree char *path = g_strconcat(prefix, key, NULL);

        if (is_child(node, key)) {
            if (!find_edge(node, key)) {
                print_option(printer->out, path, "");
            }
        } else if (!is_common(key)) {
            print_value(printer->out, path, value);
        }
    }
}

/* What differs from what the node would get from the parent (NULL: it has a section) that it is defined in.
 */
static void print_common_options(Printer *printer, const BlockNode *node, const char *prefix,
                                 const BlockNode *parent, BlockChildRole role)
{
    bool read_only = parent && (parent->read_only || (role & BLOCK_ROLE_COW));
    GString *out = printer->out;

    if (node->read_only != read_only &&
        (node->read_only || json_object_has_member(node->options, "read-only"))) {
        print_bool(out, prefix, "read-only", node->read_only);
    }
    if (node->auto_read_only != (parent && parent->auto_read_only)) {
        print_bool(out, prefix, "auto-read-only", node->auto_read_only);
    }
    if (node->cache_direct != (parent && parent->cache_direct)) {
        print_bool(out, prefix, "cache.direct", node->cache_direct);
    }
    if (node->cache_no_flush != (parent && parent->cache_no_flush)) {
        print_bool(out, prefix, "cache.no-flush", node->cache_no_flush);
    }
    if (node->discard_unmap != (!parent || parent->discard_unmap)) {
        g_autofree char *key = g_strconcat(prefix, "discard", NULL);

        print_option(out, key, node->discard_unmap ? "unmap" : "ignore");
    }
    if (node->detect_zeroes) {
        g_autofree char *key = g_strconcat(prefix, "detect-zeroes", NULL);

        print_option(out, key, node->detect_zeroes_unmap ? "unmap" : "on");
    }
}

static bool print_node(Printer *printer, const BlockNode *node, const char *prefix, const BlockNode *parent,
                       BlockChildRole role);

static bool print_child(Printer *printer, const BlockNode *node, const char *prefix, const BlockChild *edge)
{
    g_autofree char *key = g_strconcat(prefix, edge->name, NULL);
    g_autofree char *inner = g_strconcat(key, ".", NULL);

    if (edge->node->named_by_user) {
        print_option(printer->out, key, edge->node->name);
        return true;
    }
    if (edge->node->parents->len > 1) {
        bg_error_set(printer->errp, EINVAL,
                     "node '%s' has several users and no name of its own: a graph file cannot say that",
                     edge->node->name);
        return false;
    }
    return print_node(printer, edge->node, inner, node, edge->role);
}

static bool print_node(Printer *printer, const BlockNode *node, const char *prefix, const BlockNode *parent,
                       BlockChildRole role)
{
    g_autofree char *driver = g_strconcat(prefix, "driver", NULL);

    print_option(printer->out, driver, node->driver->name);
    print_common_options(printer, node, prefix, parent, role);
    print_own_options(printer, node, prefix);
    for (guint i = 0; i < node->children->len; i++) {
        if (!print_child(printer, node, prefix, node->children->pdata[i])) {
            return false;
        }
    }
    return true;
}

static bool print_nodes(Printer *printer, BlockGraph *graph)
{
    const GPtrArray *nodes = block_graph_nodes(graph);

    for (guint i = 0; i < nodes->len; i++) {
        const BlockNode *node = nodes->pdata[i];

        if (node->named_by_user && (!print_header(printer->out, "node", node->name, printer->errp) ||
                                    !print_node(printer, node, "", NULL, 0))) {
            return false;
        }
    }
    return true;
}

/* ---- Objects and exports */

static bool print_objects(Printer *printer, const Server *server)
{
    const GPtrArray *objects = config_objects(server->plan->line->config);

    for (guint i = 0; i < objects->len; i++) {
        const ConfigItem *item = objects->pdata[i];
        JsonObjectIter iter;
        const char *key;
        JsonNode *value;

        if (!print_header(printer->out, json_object_get_string_member(item->options, "qom-type"), item->name,
                          printer->errp)) {
            return false;
        }
        json_object_iter_init_ordered(&iter, item->options);
        while (json_object_iter_next_ordered(&iter, &key, &value)) {
            if (!g_str_equal(key, "qom-type") && !g_str_equal(key, "id")) {
                print_value(printer->out, key, value);
            }
        }
    }
    return true;
}

static void print_export_spec(GString *out, const ExportSpec *spec)
{
    static const char *const words[] = {
        [FUSE_ALLOW_OTHER_OFF] = "off", [FUSE_ALLOW_OTHER_ON] = "on", [FUSE_ALLOW_OTHER_AUTO] = "auto"};

    if (spec->mountpoint) {
        print_option(out, "mountpoint", spec->mountpoint);
    }
    if (spec->iothread) {
        print_option(out, "iothread", spec->iothread);
    }
    if (spec->has_allow_other) {
        print_option(out, "allow-other", words[spec->allow_other]);
    }
}

static bool print_export(Printer *printer, const Server *server, FuseExport *exp)
{
    const GPtrArray *specs = server->plan->exports;
    const char *id = fuse_export_id(exp);

    if (!print_header(printer->out, "export", id, printer->errp)) {
        return false;
    }
    print_option(printer->out, "node", block_backend_node(fuse_export_backend(exp))->name);
    print_bool(printer->out, "", "writable", fuse_export_writable(exp));
    if (fuse_export_growable(exp)) {
        print_bool(printer->out, "", "growable", true);
    }
    for (guint i = 0; i < specs->len; i++) {
        if (g_str_equal(((ExportSpec *)specs->pdata[i])->id, id)) {
            print_export_spec(printer->out, specs->pdata[i]);
        }
    }
    return true;
}

char *graph_print_conf(const Server *server, GError **errp)
{
    g_autoptr(GString) out = g_string_new(NULL);
    g_autoptr(GArray) exports = server_exports(server);
    Printer printer = {out, errp};

    if (!print_objects(&printer, server) || !print_nodes(&printer, server->graph)) {
        return NULL;
    }
    for (guint i = 0; i < exports->len; i++) {
        if (!print_export(&printer, server, g_array_index(exports, ServerExport, i).exp)) {
            return NULL;
        }
    }
    return g_string_free(g_steal_pointer(&out), FALSE);
}
