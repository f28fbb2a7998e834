/*
 * Checking arguments by the table.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/qmp/qmp-command.h"

#include <errno.h>

#include "util/error.h"
#include "util/text.h"

const QmpType qmp_string = {.kind = QMP_KIND_STRING, .name = "string"};
const QmpType qmp_int = {.kind = QMP_KIND_INT, .name = "integer"};
const QmpType qmp_bool = {.kind = QMP_KIND_BOOL, .name = "boolean"};
const QmpType qmp_string_list = {.kind = QMP_KIND_LIST, .name = "list", .element = &qmp_string};

G_DEFINE_QUARK(blockgraph - qmp - error, qmp_error)

const char *qmp_error_class_name(const GError *error)
{
    static const char *const names[] = {"GenericError", "CommandNotFound", "DeviceNotFound"};

    return names[error->domain == QMP_ERROR ? error->code : QMP_GENERIC_ERROR];
}

/* ---- Values */

static bool check_value(const QmpType *type, JsonNode *value, const char *path, GError **errp);
static bool check_object(const QmpMember *members, JsonObject *object, const char *path, GError **errp);

static const char *kind_of(JsonNode *value)
{
    if (!JSON_NODE_HOLDS_VALUE(value)) {
        return JSON_NODE_HOLDS_OBJECT(value) ? "an object" : JSON_NODE_HOLDS_ARRAY(value) ? "a list" : "null";
    }
    switch (json_node_get_value_type(value)) {
    case G_TYPE_STRING:
        return "a string";
    case G_TYPE_BOOLEAN:
        return "a boolean";
    case G_TYPE_INT64:
        return "an integer";
    default:
        return "a number with a fraction";
    }
}

static bool has_kind(QmpKind kind, JsonNode *value)
{
    GType wanted = kind == QMP_KIND_INT    ? G_TYPE_INT64
                   : kind == QMP_KIND_BOOL ? G_TYPE_BOOLEAN
                                           : G_TYPE_STRING;

    switch (kind) {
    case QMP_KIND_OBJECT:
    case QMP_KIND_UNION:
        return JSON_NODE_HOLDS_OBJECT(value);
    case QMP_KIND_LIST:
        return JSON_NODE_HOLDS_ARRAY(value);
    default:
        return JSON_NODE_HOLDS_VALUE(value) && json_node_get_value_type(value) == wanted;
    }
}

static bool check_word(const char *const *words, const char *word, const char *path, GError **errp)
{
    const char *nearest;
    g_autofree char *all = NULL;

    if (g_strv_contains(words, word)) {
        return true;
    }
    nearest = text_nearest(word, words);
    if (nearest) {
        bg_error_set(errp, EINVAL, "argument '%s': unknown value '%s', did you mean '%s'?", path, word,
                     nearest);
        return false;
    }
    all = g_strjoinv(", ", (char **)words);
    bg_error_set(errp, EINVAL, "argument '%s': unknown value '%s', expected one of %s", path, word, all);
    return false;
}

static bool check_list(const QmpType *type, JsonArray *array, const char *path, GError **errp)
{
    for (guint i = 0; i < json_array_get_length(array); i++) {
        g_autofree char *inner = g_strdup_printf("%s[%u]", path, i);

        if (!check_value(type->element, json_array_get_element(array, i), inner, errp)) {
            return false;
        }
    }
    return true;
}

static const QmpMember *find_member(const QmpMember *members, const char *name)
{
    for (; members && members->name; members++) {
        if (g_str_equal(members->name, name)) {
            return members;
        }
    }
    return NULL;
}

static bool check_union(const QmpType *type, JsonObject *object, const char *path, GError **errp)
{
    g_autoptr(GPtrArray) tags = g_ptr_array_new();
    const QmpMember *member;
    const char *tag;

    for (member = type->members; member->name; member++) {
        g_ptr_array_add(tags, (gpointer)member->name);
    }
    g_ptr_array_add(tags, NULL);
    const QmpType tag_type = {
        .kind = QMP_KIND_ENUM, .name = "tag", .words = (const char *const *)tags->pdata};
    const QmpMember tag_only[] = {{"type", &tag_type, false}, {NULL, NULL, false}};

    if (!json_object_has_member(object, "type")) {
        return check_object(tag_only, object, path, errp);
    }
    g_autofree char *tag_path = g_strconcat(path, ".type", NULL);
    if (!check_value(&tag_type, json_object_get_member(object, "type"), tag_path, errp)) {
        return false;
    }
    tag = json_object_get_string_member(object, "type");
    member = find_member(type->members, tag);
    const QmpMember both[] = {tag_only[0], {"data", member->type, false}, {NULL, NULL, false}};
    return check_object(both, object, path, errp);
}

static bool check_value(const QmpType *type, JsonNode *value, const char *path, GError **errp)
{
    if (!has_kind(type->kind, value)) {
        bg_error_set(errp, EINVAL, "argument '%s': expected %s, found %s", path, type->name, kind_of(value));
        return false;
    }
    switch (type->kind) {
    case QMP_KIND_ENUM:
        return check_word(type->words, json_node_get_string(value), path, errp);
    case QMP_KIND_OBJECT:
        return check_object(type->members, json_node_get_object(value), path, errp);
    case QMP_KIND_LIST:
        return check_list(type, json_node_get_array(value), path, errp);
    case QMP_KIND_UNION:
        return check_union(type, json_node_get_object(value), path, errp);
    default:
        return true;
    }
}

/* ---- Objects */

static char *path_to(const char *path, const char *name)
{
    return *path ? g_strconcat(path, ".", name, NULL) : g_strdup(name);
}

static bool unknown_member(const QmpMember *members, const char *path, GError **errp, const char *name)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    g_autofree char *inner = path_to(path, name);
    const char *nearest;

    for (; members && members->name; members++) {
        g_ptr_array_add(names, (gpointer)members->name);
    }
    g_ptr_array_add(names, NULL);
    nearest = text_nearest(name, (const char *const *)names->pdata);
    bg_error_set(errp, EINVAL, "unknown argument '%s'%s%s%s", inner, nearest ? ", did you mean '" : "",
                 nearest ? nearest : "", nearest ? "'?" : "");
    return false;
}

static bool check_object(const QmpMember *members, JsonObject *object, const char *path, GError **errp)
{
    JsonObjectIter iter;
    const char *name;
    JsonNode *value;

    json_object_iter_init(&iter, object);
    while (json_object_iter_next(&iter, &name, &value)) {
        const QmpMember *member = find_member(members, name);
        g_autofree char *inner = path_to(path, name);

        if (!member) {
            return unknown_member(members, path, errp, name);
        }
        if (!check_value(member->type, value, inner, errp)) {
            return false;
        }
    }
    for (; members && members->name; members++) {
        if (!members->optional && !json_object_has_member(object, members->name)) {
            g_autofree char *inner = path_to(path, members->name);

            bg_error_set(errp, EINVAL, "argument '%s' is missing", inner);
            return false;
        }
    }
    return true;
}

bool qmp_check_members(const QmpMember *members, JsonObject *object, GError **errp)
{
    return check_object(members, object, "", errp);
}

/* ---- Usage */

static void describe_members(GString *out, const QmpMember *members);

static void describe_type(GString *out, const QmpType *type)
{
    switch (type->kind) {
    case QMP_KIND_ENUM:
        for (unsigned i = 0; type->words[i]; i++) {
            g_string_append_printf(out, "%s%s", i ? "|" : "", type->words[i]);
        }
        break;
    case QMP_KIND_OBJECT:
        describe_members(out, type->members);
        break;
    case QMP_KIND_LIST:
        g_string_append_c(out, '[');
        describe_type(out, type->element);
        g_string_append(out, ", ...]");
        break;
    case QMP_KIND_UNION:
        for (const QmpMember *m = type->members; m->name; m++) {
            g_string_append_printf(out, "%s{type: %s, data: ", m == type->members ? "" : " | ", m->name);
            describe_type(out, m->type);
            g_string_append_c(out, '}');
        }
        break;
    default:
        g_string_append(out, type->name);
        break;
    }
}

static void describe_members(GString *out, const QmpMember *members)
{
    g_string_append_c(out, '{');
    for (const QmpMember *m = members; m && m->name; m++) {
        g_string_append_printf(out, "%s%s%s: ", m == members ? "" : ", ", m->name, m->optional ? "?" : "");
        describe_type(out, m->type);
    }
    g_string_append_c(out, '}');
}

char *qmp_command_usage(const QmpCommand *command)
{
    GString *out = g_string_new(NULL);

    describe_members(out, command->arguments);
    return g_string_free(out, FALSE);
}

/* ---- Getting at them */

const char *qmp_get_string(JsonObject *object, const char *name)
{
    return json_object_has_member(object, name) ? json_object_get_string_member(object, name) : NULL;
}

bool qmp_get_bool(JsonObject *object, const char *name, bool absent)
{
    return json_object_has_member(object, name) ? json_object_get_boolean_member(object, name) : absent;
}

JsonObject *qmp_get_object(JsonObject *object, const char *name)
{
    return json_object_has_member(object, name) ? json_object_get_object_member(object, name) : NULL;
}

JsonArray *qmp_get_list(JsonObject *object, const char *name)
{
    return json_object_has_member(object, name) ? json_object_get_array_member(object, name) : NULL;
}
