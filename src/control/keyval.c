/*
 * Option strings and dotted keys.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/keyval.h"

#include <errno.h>
#include <string.h>

#include "control/node-options.h"
#include "util/error.h"
#include "util/text.h"

static bool key_error(const char *key, GError **errp, const char *cause)
{
    bg_error_set(errp, EINVAL, "option '%s': %s", key, cause);
    return false;
}

/* A step of a key: letters, digits, '-', '_', and no more. */
static bool valid_step(const char *step)
{
    const char *p = step;

    while (g_ascii_isalnum(*p) || *p == '-' || *p == '_') {
        p++;
    }
    return p > step && !*p;
}

static bool check_key(const char *key, char **steps, GError **errp)
{
    if (strlen(key) > KEYVAL_MAX_KEY || g_strv_length(steps) > KEYVAL_MAX_DEPTH) {
        bg_error_set(errp, E2BIG, "option '%.40s...': the name is too long", key);
        return false;
    }
    if (!*steps) {
        return key_error(key, errp, "the name is empty");
    }
    for (char **step = steps; *step; step++) {
        if (!valid_step(*step)) {
            return key_error(key, errp, "not a valid option name");
        }
    }
    return true;
}

/* The object at `step`, made where absent; NULL where something else is there. */
static JsonObject *enter_object(JsonObject *object, const char *step)
{
    JsonNode *node = json_object_get_member(object, step);
    JsonObject *inner;

    if (node) {
        return JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
    }
    inner = json_object_new();
    json_object_set_object_member(object, step, inner);
    return inner;
}

/* The object that the last of the steps is a key of. NULL and *errp naming `key`. */
static JsonObject *enter_objects(JsonObject *object, const char *key, char **steps, GError **errp)
{
    for (char **step = steps; step[1]; step++) {
        object = enter_object(object, *step);
        if (!object) {
            key_error(key, errp, "contradicts an option with a shorter name");
            return NULL;
        }
    }
    return object;
}

/* Takes the value. */
static bool put_new(JsonObject *object, const char *step, JsonNode *value, const char *key, GError **errp)
{
    JsonNode *old = json_object_get_member(object, step);

    if (old) {
        json_node_unref(value);
        return key_error(key, errp,
                         JSON_NODE_HOLDS_OBJECT(old) ? "contradicts an option with a longer name"
                                                     : "given more than once");
    }
    json_object_set_member(object, step, value);
    return true;
}

bool keyval_put(JsonObject *object, const char *key, const char *value, GError **errp)
{
    g_auto(GStrv) steps = g_strsplit(key, ".", -1);

    if (!check_key(key, steps, errp)) {
        return false;
    }
    object = enter_objects(object, key, steps, errp);
    return object && put_new(object, steps[g_strv_length(steps) - 1],
                             json_node_init_string(json_node_alloc(), value), key, errp);
}

/* ---- Lists */

/* Whether the members of a non-empty object are named by numbers. */
static bool is_list(JsonObject *object)
{
    JsonObjectIter iter;
    const char *key;

    json_object_iter_init(&iter, object);
    while (json_object_iter_next(&iter, &key, NULL)) {
        if (strspn(key, "0123456789") != strlen(key)) {
            return false;
        }
    }
    return json_object_get_size(object) > 0;
}

/* The array of members "0" to "n-1"; NULL and *errp naming the gap. */
static JsonArray *list_of(JsonObject *object, const char *path, GError **errp)
{
    JsonArray *array = json_array_new();

    for (guint i = 0; i < json_object_get_size(object); i++) {
        g_autofree char *index = g_strdup_printf("%u", i);
        JsonNode *element = json_object_get_member(object, index);

        if (!element) {
            bg_error_set(errp, EINVAL, "option '%s': the list has no element %u", path, i);
            json_array_unref(array);
            return NULL;
        }
        json_array_add_element(array, json_node_copy(element));
    }
    return array;
}

static bool finish_below(JsonObject *object, const char *prefix, GError **errp)
{
    g_autoptr(GList) keys = json_object_get_members(object);

    for (GList *key = keys; key; key = key->next) {
        g_autofree char *path = g_strconcat(prefix, key->data, NULL);
        g_autofree char *below = g_strconcat(path, ".", NULL);
        JsonNode *value = json_object_get_member(object, key->data);
        JsonArray *array;

        if (!JSON_NODE_HOLDS_OBJECT(value)) {
            continue;
        }
        if (!finish_below(json_node_get_object(value), below, errp)) {
            return false;
        }
        if (!is_list(json_node_get_object(value))) {
            continue;
        }
        array = list_of(json_node_get_object(value), path, errp);
        if (!array) {
            return false;
        }
        json_object_set_array_member(object, key->data, array);
    }
    return true;
}

bool keyval_finish(JsonObject *object, GError **errp)
{
    return finish_below(object, "", errp);
}

/* ---- Objects with dotted keys */

static bool expand_into(JsonObject *out, JsonObject *object, GError **errp);

static bool expand_member(JsonObject *out, const char *key, JsonNode *value, GError **errp)
{
    g_auto(GStrv) steps = g_strsplit(key, ".", -1);
    const char *last = key;

    if (strchr(key, '.')) {
        if (!check_key(key, steps, errp)) {
            return false;
        }
        last = steps[g_strv_length(steps) - 1];
        out = enter_objects(out, key, steps, errp);
        if (!out) {
            return false;
        }
    }
    if (!JSON_NODE_HOLDS_OBJECT(value)) {
        return put_new(out, last, json_node_copy(value), key, errp);
    }
    out = enter_object(out, last);
    if (!out) {
        return key_error(key, errp, "contradicts an option with a shorter name");
    }
    return expand_into(out, json_node_get_object(value), errp);
}

static bool expand_into(JsonObject *out, JsonObject *object, GError **errp)
{
    JsonObjectIter iter;
    const char *key;
    JsonNode *value;

    json_object_iter_init_ordered(&iter, object);
    while (json_object_iter_next_ordered(&iter, &key, &value)) {
        if (!expand_member(out, key, value, errp)) {
            return false;
        }
    }
    return true;
}

JsonObject *keyval_expand(JsonObject *object, GError **errp)
{
    g_autoptr(JsonObject) out = json_object_new();

    return expand_into(out, object, errp) && keyval_finish(out, errp) ? g_steal_pointer(&out) : NULL;
}

/* ---- Option strings */

/* The text up to a single comma, unescaped; *text moves behind the comma, to NULL at the end. */
static char *next_word(const char **text)
{
    GString *word = g_string_new(NULL);
    const char *p = *text;

    while (*p && !(p[0] == ',' && p[1] != ',')) {
        p += *p == ',';
        g_string_append_c(word, *p++);
    }
    *text = *p ? p + 1 : NULL;
    return g_string_free(word, FALSE);
}

static bool put_word(JsonObject *object, char *word, const char *implied, GError **errp)
{
    char *equals = strchr(word, '=');

    if (equals) {
        *equals = '\0';
        return keyval_put(object, word, equals + 1, errp);
    }
    if (implied && *word) {
        return keyval_put(object, implied, word, errp);
    }
    if (!*word) {
        bg_error_set(errp, EINVAL, "an option is empty (a comma in a value is written ',,')");
    } else {
        bg_error_set(errp, EINVAL, "expected '=' after '%s'", word);
    }
    return false;
}

static bool put_words(JsonObject *object, const char *text, const char *implied, GError **errp)
{
    unsigned count = 0;

    /* A comma at the very end is no error, as in QEMU. */
    while (text && (*text || count == 0)) {
        g_autofree char *word = next_word(&text);

        if (++count > KEYVAL_MAX_KEYS) {
            bg_error_set(errp, E2BIG, "more than %u options", KEYVAL_MAX_KEYS);
            return false;
        }
        if (!put_word(object, word, count == 1 ? implied : NULL, errp)) {
            return false;
        }
    }
    return keyval_finish(object, errp);
}

JsonObject *keyval_parse(const char *text, const char *implied, GError **errp)
{
    g_autoptr(JsonObject) object = NULL;

    if (!g_utf8_validate(text, -1, NULL)) {
        bg_error_set(errp, EINVAL, "not valid UTF-8");
        return NULL;
    }
    if (*text == '{' || node_options_is_json(text)) {
        return node_options_from_json(text, errp);
    }
    object = json_object_new();
    return put_words(object, text, implied, errp) ? g_steal_pointer(&object) : NULL;
}
