/*
 * References and file names in a node's options.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/node-options.h"

#include <errno.h>
#include <string.h>

#include "block/driver.h"
#include "control/json-text.h"
#include "control/keyval.h"
#include "util/error.h"

static const char *string_of(JsonNode *value)
{
    return value && JSON_NODE_HOLDS_VALUE(value) && json_node_get_value_type(value) == G_TYPE_STRING
               ? json_node_get_string(value)
               : NULL;
}

/* The driver that the options name, as far as there is one; NULL else: opening the node will say so. */
static const BlockDriver *driver_of(JsonObject *object)
{
    const char *name = string_of(json_object_get_member(object, "driver"));

    return name ? block_driver_find(name, NULL) : NULL;
}

static const char *const *child_keys_of(JsonObject *object)
{
    static const char *const none[] = {NULL};
    /* Without a driver the open will fail; until then these are what they are everywhere. */
    static const char *const usual[] = {"file", "backing", NULL};
    const BlockDriver *driver = driver_of(object);

    if (!driver) {
        return usual;
    }
    return driver->child_options ? driver->child_options : none;
}

/* ---- A walk over the children of a node, at `key` from the top. False ends it. */

typedef bool ChildVisit(const char *key, JsonNode *child, void *opaque, GError **errp);

static bool foreach_child(JsonObject *object, const char *prefix, ChildVisit *visit, void *opaque,
                          GError **errp)
{
    for (const char *const *key = child_keys_of(object); *key; key++) {
        JsonNode *child = json_object_get_member(object, *key);
        g_autofree char *path = g_strconcat(prefix, *key, NULL);

        if (child && !visit(path, child, opaque, errp)) {
            return false;
        }
    }
    return true;
}

/* The children of a child defined in place. */
static bool foreach_grandchild(JsonNode *child, const char *key, ChildVisit *visit, void *opaque,
                               GError **errp)
{
    g_autofree char *prefix = g_strconcat(key, ".", NULL);

    return foreach_child(json_node_get_object(child), prefix, visit, opaque, errp);
}

/* ---- References and names */

typedef struct OptionVisitor {
    NodeOptionsVisit *visit;
    void *opaque;
} OptionVisitor;

static bool visit_reference(const char *key, JsonNode *child, void *opaque, GError **errp)
{
    OptionVisitor *visitor = opaque;

    if (string_of(child)) {
        return visitor->visit(key, string_of(child), visitor->opaque, errp);
    }
    return !JSON_NODE_HOLDS_OBJECT(child) || foreach_grandchild(child, key, visit_reference, opaque, errp);
}

bool node_options_foreach_reference(JsonObject *options, NodeOptionsVisit *visit, void *opaque, GError **errp)
{
    OptionVisitor visitor = {visit, opaque};

    return foreach_child(options, "", visit_reference, &visitor, errp);
}

static bool visit_inner_name(const char *key, JsonNode *child, void *opaque, GError **errp)
{
    OptionVisitor *visitor = opaque;
    const char *name;

    if (!JSON_NODE_HOLDS_OBJECT(child)) {
        return true;
    }
    name = string_of(json_object_get_member(json_node_get_object(child), "node-name"));
    if (name) {
        g_autofree char *path = g_strconcat(key, ".node-name", NULL);

        if (!visitor->visit(path, name, visitor->opaque, errp)) {
            return false;
        }
    }
    return foreach_grandchild(child, key, visit_inner_name, opaque, errp);
}

bool node_options_foreach_inner_name(JsonObject *options, NodeOptionsVisit *visit, void *opaque,
                                     GError **errp)
{
    OptionVisitor visitor = {visit, opaque};

    return foreach_child(options, "", visit_inner_name, &visitor, errp);
}

/* ---- json:{...} */

bool node_options_is_json(const char *text)
{
    return g_str_has_prefix(text, "json:");
}

JsonObject *node_options_from_json(const char *text, GError **errp)
{
    const char *json = node_options_is_json(text) ? text + strlen("json:") : text;
    g_autoptr(JsonNode) node = NULL;
    JsonObject *object;
    unsigned line;

    node = json_text_parse(json, strlen(json), NULL, &line, errp);
    if (!node) {
        g_prefix_error(errp, "JSON: ");
        return NULL;
    }
    if (!JSON_NODE_HOLDS_OBJECT(node)) {
        bg_error_set(errp, EINVAL, "JSON: expected an object");
        return NULL;
    }
    if (!node_options_is_json(text)) {
        return json_node_dup_object(node);
    }
    object = keyval_expand(json_node_get_object(node), errp);
    if (!object) {
        g_prefix_error(errp, "JSON: ");
    }
    return object;
}

/* The object in place of a child's "json:{...}"; *out stays NULL where the child is none. */
static bool expand_child(ConfigItem *item, const char *key, JsonNode *child, JsonNode **out, GError **errp)
{
    g_autoptr(GError) error = NULL;
    JsonObject *object;

    *out = NULL;
    if (!string_of(child) || !node_options_is_json(string_of(child))) {
        return true;
    }
    object = node_options_from_json(string_of(child), &error);
    if (!object) {
        return config_item_error(item, key, errp, error->code, "%s", error->message);
    }
    *out = json_node_new(JSON_NODE_OBJECT);
    json_node_take_object(*out, object);
    return true;
}

typedef struct Preparation {
    ConfigItem *item;
    const char *base;
    unsigned depth;
} Preparation;

static bool expand_children(Preparation *prep, JsonObject *object, const char *prefix, GError **errp)
{
    for (const char *const *key = child_keys_of(object); *key; key++) {
        g_autofree char *path = g_strconcat(prefix, *key, NULL);
        JsonNode *child = json_object_get_member(object, *key), *expanded;

        if (child && !expand_child(prep->item, path, child, &expanded, errp)) {
            return false;
        }
        if (child && expanded) {
            json_object_set_member(object, *key, expanded);
        }
    }
    return true;
}

/* ---- File names */

/* "file:NAME" is NAME, as in QEMU, so that a name with a colon can be written. */
static char *absolute_name(const char *name, const char *base)
{
    if (g_str_has_prefix(name, "file:")) {
        name += strlen("file:");
    }
    return !*name || g_path_is_absolute(name) ? g_strdup(name) : g_build_filename(base, name, NULL);
}

/* The elements of a list, which may be one string with ':' between them; NULL where it is neither. */
static JsonArray *anchored_list(JsonNode *value, const char *base)
{
    g_auto(GStrv) parts = string_of(value) ? g_strsplit(string_of(value), ":", -1) : NULL;
    JsonArray *from = JSON_NODE_HOLDS_ARRAY(value) ? json_node_get_array(value) : NULL, *list;
    guint n = from ? json_array_get_length(from) : parts ? g_strv_length(parts) : 0;

    if (!from && !parts) {
        return NULL;
    }
    list = json_array_new();
    for (guint i = 0; i < n; i++) {
        const char *name = from ? string_of(json_array_get_element(from, i)) : parts[i];

        if (name && *name && !g_path_is_absolute(name)) {
            g_autofree char *absolute = g_build_filename(base, name, NULL);

            json_array_add_string_element(list, absolute);
        } else {
            json_array_add_element(list, name ? json_node_init_string(json_node_alloc(), name)
                                              : json_node_copy(json_array_get_element(from, i)));
        }
    }
    return list;
}

static void anchor_directories(JsonObject *object, const char *base)
{
    const BlockDriver *driver = driver_of(object);

    for (const char *const *key = driver ? driver->directory_options : NULL; key && *key; key++) {
        JsonNode *value = json_object_get_member(object, *key);
        JsonArray *list = value ? anchored_list(value, base) : NULL;

        if (list) {
            json_object_set_array_member(object, *key, list);
        }
    }
}

/* A key with dots is an object in JSON. */
static void anchor_file_name(JsonObject *object, const char *key, const char *const *words, const char *base)
{
    const char *name = string_of(json_object_get_member(object, key)), *dot = strchr(key, '.');

    if (name && words && g_strv_contains(words, name)) {
        return;
    }
    if (name) {
        g_autofree char *absolute = absolute_name(name, base);

        json_object_set_string_member(object, key, absolute);
    } else if (dot) {
        g_autofree char *outer = g_strndup(key, (gsize)(dot - key));
        JsonNode *inner = json_object_get_member(object, outer);

        if (inner && JSON_NODE_HOLDS_OBJECT(inner)) {
            anchor_file_name(json_node_get_object(inner), dot + 1, words, base);
        }
    }
}

static void anchor_file_names(JsonObject *object, const char *base)
{
    const BlockDriver *driver = driver_of(object);

    for (const char *const *key = driver ? driver->file_options : NULL; key && *key; key++) {
        anchor_file_name(object, *key, driver->file_option_words, base);
    }
}

static bool prepare_child(const char *key, JsonNode *child, void *opaque, GError **errp);

static bool prepare_node(Preparation *prep, JsonObject *object, const char *prefix, GError **errp)
{
    bool ok;

    /* json: inside json: adds to the depth that the readers bound. */
    if (++prep->depth > JSON_TEXT_MAX_DEPTH) {
        return config_item_error(prep->item, NULL, errp, E2BIG, "nested deeper than %u levels",
                                 JSON_TEXT_MAX_DEPTH);
    }
    anchor_file_names(object, prep->base);
    anchor_directories(object, prep->base);
    ok = expand_children(prep, object, prefix, errp) &&
         foreach_child(object, prefix, prepare_child, prep, errp);
    prep->depth--;
    return ok;
}

static bool prepare_child(const char *key, JsonNode *child, void *opaque, GError **errp)
{
    g_autofree char *prefix = g_strconcat(key, ".", NULL);

    return !JSON_NODE_HOLDS_OBJECT(child) || prepare_node(opaque, json_node_get_object(child), prefix, errp);
}

bool node_options_prepare(ConfigItem *item, const char *base, GError **errp)
{
    Preparation prep = {.item = item, .base = base};

    return prepare_node(&prep, item->options, "", errp);
}
