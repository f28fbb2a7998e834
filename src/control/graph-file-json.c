/*
 * The graph file as JSON: {"nodes": [...], "exports": [...], "objects": [...]}.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "control/graph-file.h"
#include "control/json-text.h"
#include "util/error.h"
#include "util/text.h"

static const char *const list_names[] = {"nodes", "exports", "objects", NULL};

typedef struct Document {
    Config *config;
    const char *path, *base;
    GHashTable *lines;
    GError **errp;
} Document;

static unsigned line_of(const Document *doc, const char *key)
{
    return GPOINTER_TO_UINT(g_hash_table_lookup(doc->lines, key));
}

static bool add_item(Document *doc, ConfigKind kind, unsigned index, JsonNode *node)
{
    g_autofree char *key = g_strdup_printf("%s.%u", list_names[kind], index);
    g_autofree char *prefix = g_strconcat(key, ".", NULL);
    ConfigPlace place = {doc->path, line_of(doc, key), doc->lines, prefix};

    if (!JSON_NODE_HOLDS_OBJECT(node)) {
        bg_error_set(doc->errp, EINVAL, "%s:%u: '%s': expected an object", doc->path, place.line, key);
        return false;
    }
    return config_add(doc->config, kind, json_node_get_object(node), &place, doc->base, doc->errp) != NULL;
}

static bool add_list(Document *doc, ConfigKind kind, JsonObject *root)
{
    JsonNode *list = json_object_get_member(root, list_names[kind]);
    JsonArray *array;

    if (!list) {
        return true;
    }
    if (!JSON_NODE_HOLDS_ARRAY(list)) {
        bg_error_set(doc->errp, EINVAL, "%s:%u: '%s': expected an array", doc->path,
                     line_of(doc, list_names[kind]), list_names[kind]);
        return false;
    }
    array = json_node_get_array(list);
    for (unsigned i = 0; i < json_array_get_length(array); i++) {
        if (!add_item(doc, kind, i, json_array_get_element(array, i))) {
            return false;
        }
    }
    return true;
}

static bool check_keys(const Document *doc, JsonObject *root)
{
    JsonObjectIter iter;
    const char *key;

    json_object_iter_init(&iter, root);
    while (json_object_iter_next(&iter, &key, NULL)) {
        const char *nearest = text_nearest(key, list_names);

        if (g_strv_contains(list_names, key)) {
            continue;
        }
        bg_error_set(doc->errp, EINVAL, "%s:%u: unknown key '%s', %s%s%s", doc->path, line_of(doc, key), key,
                     nearest ? "did you mean '" : "expected one of nodes, exports, objects",
                     nearest ? nearest : "", nearest ? "'?" : "");
        return false;
    }
    return true;
}

static bool add_document(Document *doc, JsonNode *node)
{
    JsonObject *root;

    if (!JSON_NODE_HOLDS_OBJECT(node)) {
        bg_error_set(doc->errp, EINVAL, "%s: expected an object with the keys nodes, exports, objects",
                     doc->path);
        return false;
    }
    root = json_node_get_object(node);
    return check_keys(doc, root) && add_list(doc, CONFIG_NODE, root) && add_list(doc, CONFIG_EXPORT, root) &&
           add_list(doc, CONFIG_OBJECT, root);
}

bool graph_file_parse_json(Config *config, const char *path, const char *text, const char *base,
                           GError **errp)
{
    g_autoptr(GHashTable) lines = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    Document doc = {config, path, base, lines, errp};
    g_autoptr(JsonNode) node = NULL;
    unsigned line;

    node = json_text_parse(text, strlen(text), lines, &line, errp);
    if (!node) {
        g_prefix_error(errp, "%s:%u: ", path, line);
        return false;
    }
    return add_document(&doc, node);
}
