/*
 * References and file names in a node's options.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/node-options.h"

#include <errno.h>
#include <string.h>

#include "control/json-text.h"
#include "util/error.h"

/* Options that name a child: a string there is a reference, an object a node defined in place. */
static const char *const child_keys[] = {"file", "backing", "data-file", "target", "bottom",
                                         "test", "raw",     "source",    "log",    "header"};
/* Options that are lists of such. */
static const char *const child_list_keys[] = {"children", "extents"};

/* Options that are names of local files, by driver. */
static const struct {
    const char *driver, *key;
} file_names[] = {
    {"file", "filename"},
    {"host_device", "filename"},
};

static const char *string_of(JsonNode *value)
{
    return value && JSON_NODE_HOLDS_VALUE(value) && json_node_get_value_type(value) == G_TYPE_STRING
               ? json_node_get_string(value)
               : NULL;
}

static JsonArray *array_at(JsonObject *object, const char *key)
{
    JsonNode *value = json_object_get_member(object, key);

    return value && JSON_NODE_HOLDS_ARRAY(value) ? json_node_get_array(value) : NULL;
}

/* ---- A walk over the children of a node, at `key` from the top. False ends it. */

typedef bool ChildVisit(const char *key, JsonNode *child, void *opaque, GError **errp);

static bool visit_list(JsonArray *array, const char *key, ChildVisit *visit, void *opaque, GError **errp)
{
    for (guint i = 0; i < json_array_get_length(array); i++) {
        g_autofree char *path = g_strdup_printf("%s.%u", key, i);

        if (!visit(path, json_array_get_element(array, i), opaque, errp)) {
            return false;
        }
    }
    return true;
}

static bool foreach_child(JsonObject *object, const char *prefix, ChildVisit *visit, void *opaque,
                          GError **errp)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(child_keys); i++) {
        JsonNode *child = json_object_get_member(object, child_keys[i]);
        g_autofree char *path = g_strconcat(prefix, child_keys[i], NULL);

        if (child && !visit(path, child, opaque, errp)) {
            return false;
        }
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(child_list_keys); i++) {
        JsonArray *array = array_at(object, child_list_keys[i]);
        g_autofree char *path = g_strconcat(prefix, child_list_keys[i], NULL);

        if (array && !visit_list(array, path, visit, opaque, errp)) {
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
    return json_node_dup_object(node);
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

static bool expand_list(Preparation *prep, JsonObject *object, const char *key, const char *path,
                        GError **errp)
{
    JsonArray *old = array_at(object, key);
    JsonArray *new = json_array_new();

    for (guint i = 0; i < json_array_get_length(old); i++) {
        g_autofree char *element = g_strdup_printf("%s.%u", path, i);
        JsonNode *child = json_array_get_element(old, i), *expanded;

        if (!expand_child(prep->item, element, child, &expanded, errp)) {
            json_array_unref(new);
            return false;
        }
        json_array_add_element(new, expanded ? expanded : json_node_copy(child));
    }
    json_object_set_array_member(object, key, new);
    return true;
}

static bool expand_children(Preparation *prep, JsonObject *object, const char *prefix, GError **errp)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(child_keys); i++) {
        g_autofree char *path = g_strconcat(prefix, child_keys[i], NULL);
        JsonNode *child = json_object_get_member(object, child_keys[i]), *expanded;

        if (child && !expand_child(prep->item, path, child, &expanded, errp)) {
            return false;
        }
        if (child && expanded) {
            json_object_set_member(object, child_keys[i], expanded);
        }
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(child_list_keys); i++) {
        g_autofree char *path = g_strconcat(prefix, child_list_keys[i], NULL);

        if (array_at(object, child_list_keys[i]) &&
            !expand_list(prep, object, child_list_keys[i], path, errp)) {
            return false;
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

static void anchor_file_names(JsonObject *object, const char *base)
{
    const char *driver = string_of(json_object_get_member(object, "driver"));

    for (unsigned i = 0; driver && i < G_N_ELEMENTS(file_names); i++) {
        const char *name = string_of(json_object_get_member(object, file_names[i].key));

        if (name && strcmp(driver, file_names[i].driver) == 0) {
            g_autofree char *absolute = absolute_name(name, base);

            json_object_set_string_member(object, file_names[i].key, absolute);
        }
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
