/*
 * BlockOptions: typed reading of a node's options, and refusal of what nobody asked for.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "block/options.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "util/error.h"
#include "util/text.h"

struct BlockOptions {
    char *what;
    char *prefix;
    JsonObject *object; /* a copy in which no key is dotted */
    char *twice;        /* the first key found in two spellings; NULL: none */
    GHashTable *known;  /* set of keys that a getter was called for */
    GHashTable *hinted; /* set of keys, known ones included, that messages may propose */
};

static void put_key(GHashTable *set, const char *key)
{
    if (!g_hash_table_contains(set, key)) {
        g_hash_table_add(set, g_strdup(key));
    }
}

static void mark_known(BlockOptions *opts, const char *key)
{
    put_key(opts->known, key);
    put_key(opts->hinted, key);
}

/* ---- From dotted to nested keys */

static void nest_members(BlockOptions *opts, JsonObject *to, const char *path, JsonObject *from);

/* Put `value` at `key` of `to`, whose own path is `path`. The recursion is as deep as keys have dots. */
static void nest_value(BlockOptions *opts, JsonObject *to, const char *path, const char *key, JsonNode *value)
{
    const char *dot = strchr(key, '.');
    g_autofree char *step = dot ? g_strndup(key, dot - key) : g_strdup(key);
    g_autofree char *full = g_strconcat(path, step, NULL);
    g_autofree char *below = g_strconcat(full, ".", NULL);
    bool is_object = dot || JSON_NODE_HOLDS_OBJECT(value);
    JsonNode *there = json_object_get_member(to, step);

    if (there && !(is_object && JSON_NODE_HOLDS_OBJECT(there))) {
        if (!opts->twice) {
            opts->twice = g_steal_pointer(&full);
        }
        return;
    }
    if (!is_object) {
        json_object_set_member(to, step, json_node_copy(value));
        return;
    }
    if (!there) {
        json_object_set_object_member(to, step, json_object_new());
        there = json_object_get_member(to, step);
    }
    if (dot) {
        nest_value(opts, json_node_get_object(there), below, dot + 1, value);
    } else {
        nest_members(opts, json_node_get_object(there), below, json_node_get_object(value));
    }
}

static void nest_members(BlockOptions *opts, JsonObject *to, const char *path, JsonObject *from)
{
    JsonObjectIter iter;
    const char *key;
    JsonNode *value;

    json_object_iter_init(&iter, from);
    while (json_object_iter_next(&iter, &key, &value)) {
        nest_value(opts, to, path, key, value);
    }
}

BlockOptions *block_options_new(const char *what, const char *prefix, JsonObject *object)
{
    BlockOptions *opts = g_new0(BlockOptions, 1);

    opts->what = g_strdup(what);
    opts->prefix = g_strdup(prefix ? prefix : "");
    opts->object = json_object_new();
    opts->known = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    opts->hinted = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    nest_members(opts, opts->object, "", object);
    return opts;
}

void block_options_free(BlockOptions *opts)
{
    if (!opts) {
        return;
    }
    g_hash_table_destroy(opts->known);
    g_hash_table_destroy(opts->hinted);
    json_object_unref(opts->object);
    g_free(opts->twice);
    g_free(opts->prefix);
    g_free(opts->what);
    g_free(opts);
}

const char *block_options_what(const BlockOptions *opts)
{
    return opts->what;
}

const char *block_options_prefix(const BlockOptions *opts)
{
    return opts->prefix;
}

bool block_options_error(const BlockOptions *opts, const char *key, GError **errp, int errnum,
                         const char *fmt, ...)
{
    g_autofree char *message = NULL;
    va_list ap;

    va_start(ap, fmt);
    message = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    bg_error_set(errp, errnum, "%s: option '%s%s': %s", opts->what, opts->prefix, key, message);
    return false;
}

/* The value at the dotted key, NULL if absent. */
static JsonNode *find_value(const BlockOptions *opts, const char *key)
{
    JsonObject *object = opts->object;
    const char *dot;

    while ((dot = strchr(key, '.'))) {
        g_autofree char *step = g_strndup(key, dot - key);
        JsonNode *inner = json_object_get_member(object, step);

        if (!inner || !JSON_NODE_HOLDS_OBJECT(inner)) {
            return NULL;
        }
        object = json_node_get_object(inner);
        key = dot + 1;
    }
    return json_object_get_member(object, key);
}

/* Whether one of the keys is the other, or lies below it. */
static bool overlap(const char *a, const char *b)
{
    size_t len = MIN(strlen(a), strlen(b));

    return strncmp(a, b, len) == 0 && (a[len] == '.' || b[len] == '.' || a[len] == b[len]);
}

/* False with *errp where the key is there in two spellings; else *out is its value, or NULL. */
static bool get_value(BlockOptions *opts, const char *key, JsonNode **out, GError **errp)
{
    mark_known(opts, key);
    *out = find_value(opts, key);
    if (opts->twice && overlap(opts->twice, key)) {
        return block_options_error(opts, opts->twice, errp, EINVAL, "given more than once");
    }
    return true;
}

void block_options_leave(BlockOptions *opts, const char *key)
{
    mark_known(opts, key);
}

bool block_options_has(BlockOptions *opts, const char *key)
{
    put_key(opts->hinted, key);
    return find_value(opts, key) != NULL;
}

static bool holds(JsonNode *value, GType type)
{
    return JSON_NODE_HOLDS_VALUE(value) && json_node_get_value_type(value) == type;
}

static const char *kind_of(JsonNode *value)
{
    switch (json_node_get_node_type(value)) {
    case JSON_NODE_OBJECT:
        return "an object";
    case JSON_NODE_ARRAY:
        return "a list";
    case JSON_NODE_NULL:
        return "null";
    default:
        break;
    }
    if (holds(value, G_TYPE_STRING)) {
        return "a string";
    }
    if (holds(value, G_TYPE_BOOLEAN)) {
        return "a boolean";
    }
    return holds(value, G_TYPE_DOUBLE) ? "a number with a fraction" : "a number";
}

bool block_options_is_string(BlockOptions *opts, const char *key)
{
    JsonNode *value = find_value(opts, key);

    put_key(opts->hinted, key);
    return value && holds(value, G_TYPE_STRING);
}

bool block_options_is_none(BlockOptions *opts, const char *key)
{
    JsonNode *value = find_value(opts, key);

    if (!value ||
        !(JSON_NODE_HOLDS_NULL(value) || (holds(value, G_TYPE_STRING) && !*json_node_get_string(value)))) {
        return false;
    }
    mark_known(opts, key);
    return true;
}

bool block_options_get_string(BlockOptions *opts, const char *key, char **out, GError **errp)
{
    JsonNode *value;

    if (!get_value(opts, key, &value, errp)) {
        return false;
    }
    if (!value) {
        return true;
    }
    if (!holds(value, G_TYPE_STRING)) {
        return block_options_error(opts, key, errp, EINVAL, "expected a string, not %s", kind_of(value));
    }
    *out = g_strdup(json_node_get_string(value));
    return true;
}

/* A key that is there and was probably meant to be `key`; NULL if none. Borrowed. */
static const char *find_misspelt(BlockOptions *opts, const char *key)
{
    const char *const words[] = {key, NULL};
    JsonObjectIter iter;
    const char *name;

    json_object_iter_init(&iter, opts->object);
    while (json_object_iter_next(&iter, &name, NULL)) {
        if (!g_hash_table_contains(opts->hinted, name) && text_nearest(name, words)) {
            return name;
        }
    }
    return NULL;
}

static bool missing_error(BlockOptions *opts, const char *key, GError **errp)
{
    const char *misspelt = find_misspelt(opts, key);

    if (misspelt) {
        return block_options_error(opts, misspelt, errp, EINVAL, "unknown option, did you mean '%s%s'?",
                                   opts->prefix, key);
    }
    return block_options_error(opts, key, errp, EINVAL, "is required");
}

bool block_options_require_string(BlockOptions *opts, const char *key, char **out, GError **errp)
{
    g_autofree char *text = NULL;

    if (!block_options_get_string(opts, key, &text, errp)) {
        return false;
    }
    if (!text) {
        return missing_error(opts, key, errp);
    }
    if (!*text) {
        return block_options_error(opts, key, errp, EINVAL, "must not be empty");
    }
    *out = g_steal_pointer(&text);
    return true;
}

/* Common start of the scalar getters: *text is set for a string, *value for anything; both NULL: absent. */
static bool get_scalar(BlockOptions *opts, const char *key, const char *expected, GType type,
                       JsonNode **value, const char **text, GError **errp)
{
    *text = NULL;
    if (!get_value(opts, key, value, errp)) {
        return false;
    }
    if (!*value) {
        return true;
    }
    if (holds(*value, G_TYPE_STRING)) {
        *text = json_node_get_string(*value);
    } else if (!holds(*value, type)) {
        return block_options_error(opts, key, errp, EINVAL, "expected %s, not %s", expected, kind_of(*value));
    }
    return true;
}

bool block_options_get_bool(BlockOptions *opts, const char *key, bool *out, GError **errp)
{
    const char *text;
    JsonNode *value;

    if (!get_scalar(opts, key, "on or off", G_TYPE_BOOLEAN, &value, &text, errp)) {
        return false;
    }
    if (text && text_parse_bool(text, out) < 0) {
        return block_options_error(opts, key, errp, EINVAL, "expected on or off, not '%s'", text);
    }
    if (value && !text) {
        *out = json_node_get_boolean(value);
    }
    return true;
}

/* The out-of-range message shows the number as it was written. */
static bool range_error(BlockOptions *opts, const char *key, const char *text, JsonNode *value, uint64_t min,
                        uint64_t max, GError **errp)
{
    g_autofree char *shown =
        text ? g_strdup(text) : g_strdup_printf("%" G_GINT64_FORMAT, json_node_get_int(value));

    return block_options_error(opts, key, errp, ERANGE,
                               "%s is out of range: from %" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT, shown,
                               min, max);
}

bool block_options_get_uint64(BlockOptions *opts, const char *key, uint64_t min, uint64_t max, uint64_t *out,
                              GError **errp)
{
    const char *text;
    JsonNode *value;
    uint64_t number;
    int ret = 0;

    if (!get_scalar(opts, key, "a number", G_TYPE_INT64, &value, &text, errp)) {
        return false;
    }
    if (!value) {
        return true;
    }
    if (text) {
        ret = text_parse_uint64(text, &number);
    } else if (json_node_get_int(value) < 0) {
        ret = -ERANGE;
    } else {
        number = json_node_get_int(value);
    }
    if (ret == -EINVAL) {
        return block_options_error(opts, key, errp, EINVAL, "'%s' is not a whole number", text);
    }
    if (ret < 0 || number < min || number > max) {
        return range_error(opts, key, text, value, min, max, errp);
    }
    *out = number;
    return true;
}

bool block_options_get_size(BlockOptions *opts, const char *key, int64_t *out, GError **errp)
{
    const char *text;
    JsonNode *value;
    uint64_t number;
    int ret = 0;

    if (!get_scalar(opts, key, "a size", G_TYPE_INT64, &value, &text, errp)) {
        return false;
    }
    if (!value) {
        return true;
    }
    if (text) {
        ret = text_parse_size(text, &number);
    } else if (json_node_get_int(value) < 0) {
        ret = -ERANGE;
    } else {
        number = json_node_get_int(value);
    }
    if (ret == -EINVAL) {
        return block_options_error(opts, key, errp, EINVAL,
                                   "'%s' is not a size (bytes, or with a suffix k, M, G, T, P or E)", text);
    }
    if (ret < 0 || number > (uint64_t)BLOCK_MAX_LENGTH) {
        return range_error(opts, key, text, value, 0, BLOCK_MAX_LENGTH, errp);
    }
    *out = (int64_t)number;
    return true;
}

bool block_options_get_enum(BlockOptions *opts, const char *key, const char *const *words, int *out,
                            GError **errp)
{
    g_autofree char *all = NULL;
    g_autofree char *text = NULL;
    const char *nearest;

    if (!block_options_get_string(opts, key, &text, errp)) {
        return false;
    }
    if (!text) {
        return true;
    }
    for (int i = 0; words[i]; i++) {
        if (strcmp(words[i], text) == 0) {
            *out = i;
            return true;
        }
    }
    nearest = text_nearest(text, words);
    if (nearest) {
        return block_options_error(opts, key, errp, EINVAL, "unknown value '%s', did you mean '%s'?", text,
                                   nearest);
    }
    all = g_strjoinv(", ", (char **)words);
    return block_options_error(opts, key, errp, EINVAL, "unknown value '%s', expected one of %s", text, all);
}

/* "" for what is no string. */
static char **strings_of(JsonArray *array)
{
    char **list = g_new0(char *, json_array_get_length(array) + 1);

    for (guint i = 0; i < json_array_get_length(array); i++) {
        JsonNode *value = json_array_get_element(array, i);
        list[i] = g_strdup(holds(value, G_TYPE_STRING) ? json_node_get_string(value) : "");
    }
    return list;
}

bool block_options_get_strings(BlockOptions *opts, const char *key, char ***out, GError **errp)
{
    g_auto(GStrv) list = NULL;
    JsonNode *value;

    if (!get_value(opts, key, &value, errp)) {
        return false;
    }
    if (!value) {
        return true;
    }
    if (JSON_NODE_HOLDS_ARRAY(value)) {
        list = strings_of(json_node_get_array(value));
    } else if (holds(value, G_TYPE_STRING)) {
        list = g_strsplit(json_node_get_string(value), ":", -1);
    }
    if (!list || !*list || g_strv_contains((const char *const *)list, "")) {
        return block_options_error(opts, key, errp, EINVAL, "expected a list of strings, none of them empty");
    }
    *out = g_steal_pointer(&list);
    return true;
}

bool block_options_get_object(BlockOptions *opts, const char *key, JsonObject **out, GError **errp)
{
    JsonNode *value;

    if (!get_value(opts, key, &value, errp)) {
        return false;
    }
    if (value && !JSON_NODE_HOLDS_OBJECT(value)) {
        return block_options_error(opts, key, errp, EINVAL, "expected an object, not %s", kind_of(value));
    }
    if (value) {
        *out = json_object_ref(json_node_get_object(value));
    }
    return true;
}

bool block_options_get_child(BlockOptions *opts, const char *key, char **ref, JsonObject **object,
                             GError **errp)
{
    if (!block_options_is_string(opts, key)) {
        return block_options_get_object(opts, key, object, errp);
    }
    return block_options_get_string(opts, key, ref, errp);
}

/* Whether path, or an object that it lies in, was asked for. */
static bool covered(BlockOptions *opts, const char *path)
{
    if (g_hash_table_contains(opts->known, path)) {
        return true;
    }
    for (const char *dot = strchr(path, '.'); dot; dot = strchr(dot + 1, '.')) {
        g_autofree char *head = g_strndup(path, dot - path);

        if (g_hash_table_contains(opts->known, head)) {
            return true;
        }
    }
    return false;
}

static bool unknown_error(BlockOptions *opts, const char *path, GError **errp)
{
    g_autofree char **words = (char **)g_hash_table_get_keys_as_array(opts->hinted, NULL);
    const char *nearest = text_nearest(path, (const char *const *)words);

    if (nearest && strcmp(nearest, path) == 0) { /* looked for, but read only together with others */
        return block_options_error(opts, path, errp, EINVAL, "has no effect here");
    }
    if (nearest) {
        return block_options_error(opts, path, errp, EINVAL, "unknown option, did you mean '%s%s'?",
                                   opts->prefix, nearest);
    }
    return block_options_error(opts, path, errp, EINVAL, "unknown option");
}

/* Whether some known key lies below `path`. */
static bool has_known_below(BlockOptions *opts, const char *path)
{
    size_t len = strlen(path);
    GHashTableIter iter;
    gpointer key;

    g_hash_table_iter_init(&iter, opts->known);
    while (g_hash_table_iter_next(&iter, &key, NULL)) {
        if (strncmp(key, path, len) == 0 && ((const char *)key)[len] == '.') {
            return true;
        }
    }
    return false;
}

/* Recursion ends at the depth of the known keys. */
static bool check_members(BlockOptions *opts, JsonObject *object, const char *path, GError **errp)
{
    JsonObjectIter iter;
    const char *name;
    JsonNode *value;

    json_object_iter_init(&iter, object);
    while (json_object_iter_next(&iter, &name, &value)) {
        g_autofree char *full = g_strconcat(path, name, NULL);
        g_autofree char *below = NULL;

        if (covered(opts, full)) {
            continue;
        }
        if (!JSON_NODE_HOLDS_OBJECT(value) || !has_known_below(opts, full)) {
            return unknown_error(opts, full, errp);
        }
        below = g_strconcat(full, ".", NULL);
        if (!check_members(opts, json_node_get_object(value), below, errp)) {
            return false;
        }
    }
    return true;
}

bool block_options_finish(BlockOptions *opts, GError **errp)
{
    if (opts->twice) {
        return block_options_error(opts, opts->twice, errp, EINVAL, "given more than once");
    }
    return check_members(opts, opts->object, "", errp);
}
