/*
 * Config: items, their names and their places.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/graph-config.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "block/driver.h"
#include "control/node-options.h"
#include "control/objects.h"
#include "util/error.h"
#include "util/text.h"

/* Who has a name. */
typedef struct NameOwner {
    ConfigItem *item; /* borrowed */
    char *key;        /* of a node defined in place: the option that names it; NULL: the item itself */
} NameOwner;

static void owner_free(gpointer data)
{
    NameOwner *owner = data;

    g_free(owner->key);
    g_free(owner);
}

static void item_free(gpointer data)
{
    ConfigItem *item = data;

    g_free(item->name);
    g_free(item->what);
    g_clear_pointer(&item->options, json_object_unref);
    g_free((char *)item->place.origin);
    g_free((char *)item->place.prefix);
    g_clear_pointer(&item->place.lines, g_hash_table_unref);
    g_free(item);
}

Config *config_new(void)
{
    Config *config = g_new0(Config, 1);

    for (unsigned kind = 0; kind <= CONFIG_OBJECT; kind++) {
        config->items[kind] = g_ptr_array_new_with_free_func(item_free);
        config->names[kind] = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, owner_free);
    }
    return config;
}

void config_free(Config *config)
{
    if (!config) {
        return;
    }
    for (unsigned kind = 0; kind <= CONFIG_OBJECT; kind++) {
        g_hash_table_destroy(config->names[kind]);
        g_ptr_array_free(config->items[kind], TRUE);
    }
    g_free(config);
}

const char *config_name_key(ConfigKind kind)
{
    return kind == CONFIG_NODE ? "node-name" : "id";
}

const char *config_kind_name(ConfigKind kind)
{
    static const char *const names[] = {"node", "export", "object"};

    return names[kind];
}

ConfigItem *config_find(const Config *config, ConfigKind kind, const char *name)
{
    NameOwner *owner = g_hash_table_lookup(config->names[kind], name);

    return owner ? owner->item : NULL;
}

const char *config_nearest(const Config *config, ConfigKind kind, const char *name)
{
    g_autofree char **names = (char **)g_hash_table_get_keys_as_array(config->names[kind], NULL);

    return text_nearest(name, (const char *const *)names);
}

/* ---- Places and messages */

/* The line of `key`, or of the nearest object around it, or of the item. */
static unsigned line_of(const ConfigItem *item, const char *key)
{
    g_autofree char *path = NULL;
    size_t prefix_len = strlen(item->place.prefix);
    char *dot;

    if (!key || !item->place.lines) {
        return item->place.line;
    }
    path = g_strconcat(item->place.prefix, key, NULL);
    do {
        gpointer line = g_hash_table_lookup(item->place.lines, path);

        if (line) {
            return GPOINTER_TO_UINT(line);
        }
        dot = strrchr(path + prefix_len, '.');
        if (dot) {
            *dot = '\0';
        }
    } while (dot);
    return item->place.line;
}

char *config_item_place(const ConfigItem *item, const char *key)
{
    unsigned line = line_of(item, key);

    return line ? g_strdup_printf("%s:%u", item->place.origin, line) : g_strdup(item->place.origin);
}

bool config_item_error(const ConfigItem *item, const char *key, GError **errp, int errnum, const char *fmt,
                       ...)
{
    g_autofree char *place = config_item_place(item, key);
    g_autofree char *option = key ? g_strdup_printf(" option '%s':", key) : g_strdup("");
    g_autofree char *message = NULL;
    va_list ap;

    va_start(ap, fmt);
    message = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    bg_error_set(errp, errnum, "%s: %s:%s %s", place, item->what, option, message);
    return false;
}

/* The KEY of a message "WHAT: option 'KEY': ..."; NULL where it is another. */
static char *option_in_message(const ConfigItem *item, const char *message)
{
    const char *rest, *stop;

    if (!g_str_has_prefix(message, item->what)) {
        return NULL;
    }
    rest = message + strlen(item->what);
    if (!g_str_has_prefix(rest, ": option '")) {
        return NULL;
    }
    rest += strlen(": option '");
    stop = strstr(rest, "':");
    return stop ? g_strndup(rest, stop - rest) : NULL;
}

void config_item_locate_error(const ConfigItem *item, GError **errp)
{
    g_autofree char *key = NULL;
    g_autofree char *place = NULL;

    if (!errp || !*errp) {
        return;
    }
    key = option_in_message(item, (*errp)->message);
    place = config_item_place(item, key);
    if (!g_str_has_prefix((*errp)->message, item->what)) {
        g_prefix_error(errp, "%s: ", item->what);
    }
    g_prefix_error(errp, "%s: ", place);
}

/* ---- Adding */

static ConfigItem *item_new(ConfigKind kind, JsonObject *options, const ConfigPlace *place)
{
    ConfigItem *item = g_new0(ConfigItem, 1);

    item->kind = kind;
    item->options = json_object_ref(options);
    item->place.origin = g_strdup(place->origin);
    item->place.line = place->line;
    item->place.lines = place->lines ? g_hash_table_ref(place->lines) : NULL;
    item->place.prefix = g_strdup(place->prefix ? place->prefix : "");
    item->what = g_strdup(config_kind_name(kind));
    return item;
}

/* The name is missing: of a node whose driver is unknown as well, the driver says more ("--blockdev help").
 */
static bool missing_name(const ConfigItem *item, GError **errp)
{
    JsonNode *driver = item->kind == CONFIG_NODE ? json_object_get_member(item->options, "driver") : NULL;
    g_autoptr(GError) unknown = NULL;

    if (driver && JSON_NODE_HOLDS_VALUE(driver) && json_node_get_value_type(driver) == G_TYPE_STRING &&
        !block_driver_find(json_node_get_string(driver), &unknown)) {
        return config_item_error(item, "driver", errp, EINVAL, "%s", unknown->message);
    }
    return config_item_error(item, config_name_key(item->kind), errp, EINVAL, "is required");
}

/* Set item->name from its options; false and *errp where it is no good name. */
static bool take_name(ConfigItem *item, GError **errp)
{
    const char *key = config_name_key(item->kind);
    JsonNode *value = json_object_get_member(item->options, key);
    const char *why;

    if (!value) {
        return missing_name(item, errp);
    }
    if (!JSON_NODE_HOLDS_VALUE(value) || json_node_get_value_type(value) != G_TYPE_STRING) {
        return config_item_error(item, key, errp, EINVAL, "expected a string");
    }
    item->name = g_strdup(json_node_get_string(value));
    g_free(item->what);
    item->what = g_strdup_printf("%s '%s'", config_kind_name(item->kind), item->name);
    if (!text_valid_name(item->name, &why)) {
        return config_item_error(item, key, errp, EINVAL, "not a valid name: %s", why);
    }
    if (item->kind == CONFIG_NODE && item->name[0] == '#') {
        return config_item_error(item, key, errp, EINVAL,
                                 "not a valid name: those with '#' are given to nodes without a name");
    }
    if (item->kind == CONFIG_EXPORT && (!strcmp(item->name, ".graph") || !strcmp(item->name, ".snap"))) {
        return config_item_error(item, key, errp, EINVAL, "not a valid name: it is reserved");
    }
    return true;
}

/* `key` is as in NameOwner. */
static bool claim_name(Config *config, ConfigItem *item, const char *name, const char *key, GError **errp)
{
    NameOwner *owner = g_hash_table_lookup(config->names[item->kind], name);

    if (owner) {
        g_autofree char *place = config_item_place(owner->item, owner->key);

        return config_item_error(item, key, errp, EEXIST, "the %s name '%s' is taken already, at %s",
                                 config_kind_name(item->kind), name, place);
    }
    owner = g_new0(NameOwner, 1);
    owner->item = item;
    owner->key = g_strdup(key);
    g_hash_table_insert(config->names[item->kind], g_strdup(name), owner);
    return true;
}

typedef struct ClaimInner {
    Config *config;
    ConfigItem *item;
} ClaimInner;

static bool claim_inner_name(const char *key, const char *name, void *opaque, GError **errp)
{
    ClaimInner *claim = opaque;

    return claim_name(claim->config, claim->item, name, key, errp);
}

/* Members with a dot in their name would be invisible as children and file names: JSON has objects for that.
 */
static bool check_keys(ConfigItem *item, JsonObject *object, GError **errp)
{
    JsonObjectIter iter;
    const char *key;
    JsonNode *value;

    json_object_iter_init(&iter, object);
    while (json_object_iter_next(&iter, &key, &value)) {
        if (strchr(key, '.')) {
            return config_item_error(item, key, errp, EINVAL,
                                     "write nested objects in JSON instead of a name with dots");
        }
        if (JSON_NODE_HOLDS_OBJECT(value) && !check_keys(item, json_node_get_object(value), errp)) {
            return false;
        }
    }
    return true;
}

static void anchor_mountpoint(JsonObject *options, const char *base)
{
    JsonNode *value = json_object_get_member(options, "mountpoint");
    const char *text = value && JSON_NODE_HOLDS_VALUE(value) ? json_node_get_string(value) : NULL;

    if (text && *text && !g_path_is_absolute(text)) {
        g_autofree char *absolute = g_build_filename(base, text, NULL);

        json_object_set_string_member(options, "mountpoint", absolute);
    }
}

static bool check_and_claim(Config *config, ConfigItem *item, const char *base, GError **errp)
{
    ClaimInner claim = {config, item};

    if (!take_name(item, errp) || !check_keys(item, item->options, errp) ||
        !claim_name(config, item, item->name, NULL, errp)) {
        return false;
    }
    if (item->kind == CONFIG_EXPORT) {
        anchor_mountpoint(item->options, base);
    }
    if (item->kind == CONFIG_OBJECT) {
        object_options_anchor(item->options, base);
    }
    if (item->kind != CONFIG_NODE) {
        return true;
    }
    return node_options_prepare(item, base, errp) &&
           node_options_foreach_inner_name(item->options, claim_inner_name, &claim, errp);
}

ConfigItem *config_add(Config *config, ConfigKind kind, JsonObject *options, const ConfigPlace *place,
                       const char *base, GError **errp)
{
    ConfigItem *item = item_new(kind, options, place);
    bool ok = config->items[kind]->len < CONFIG_MAX_ITEMS;

    g_ptr_array_add(config->items[kind], item);
    if (!ok) {
        config_item_error(item, NULL, errp, E2BIG, "more than %u %ss", CONFIG_MAX_ITEMS,
                          config_kind_name(kind));
        return NULL;
    }
    return check_and_claim(config, item, base, errp) ? item : NULL;
}
