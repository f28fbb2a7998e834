/*
 * Config: what the graph file and the command line ask for, before anything is opened.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_GRAPH_CONFIG_H
#define BG_CONTROL_GRAPH_CONFIG_H

#include <json-glib/json-glib.h>
#include <stdbool.h>

#include "util/compiler.h"

/* Most nodes, exports and objects, each. */
#define CONFIG_MAX_ITEMS 4096

typedef enum ConfigKind {
    CONFIG_NODE,
    CONFIG_EXPORT,
    CONFIG_OBJECT,
} ConfigKind;

/* Where an item was written. Several items share one `lines`. */
typedef struct ConfigPlace {
    const char *origin; /* graph file as the user named it, or "--blockdev" */
    unsigned line;      /* of the item's beginning; 0: the origin has no lines */
    GHashTable *lines;  /* "PREFIX" "dotted.key" -> line; may be NULL */
    const char *prefix; /* "" where NULL */
} ConfigPlace;

typedef struct ConfigItem {
    ConfigKind kind;
    char *name;          /* node name, or id */
    char *what;          /* for messages: "node 'disk'" */
    JsonObject *options; /* keys of QMP; nested, never dotted */
    ConfigPlace place;   /* own copies and a reference */
} ConfigItem;

typedef struct Config {
    GPtrArray *items[CONFIG_OBJECT + 1]; /* ConfigItem, owned, by kind, in order of definition */
    GHashTable
        *names[CONFIG_OBJECT + 1]; /* name -> ConfigItem, borrowed; nodes: also those defined in place */
} Config;

Config *config_new(void);
void config_free(Config *config);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Config, config_free)

static inline GPtrArray *config_nodes(const Config *config)
{
    return config->items[CONFIG_NODE];
}

static inline GPtrArray *config_exports(const Config *config)
{
    return config->items[CONFIG_EXPORT];
}

static inline GPtrArray *config_objects(const Config *config)
{
    return config->items[CONFIG_OBJECT];
}

/* "node-name" for nodes, else "id". Static. */
const char *config_name_key(ConfigKind kind);
/* "node", "export", "object". Static. */
const char *config_kind_name(ConfigKind kind);

/*
 * Add an item: its name is under config_name_key() in `options` (a reference is taken). Relative file names
 * in it are relative to the directory `base`, an absolute path. Checks names, and that they are unique. NULL
 * and *errp, or the item, which belongs to config.
 */
ConfigItem *config_add(Config *config, ConfigKind kind, JsonObject *options, const ConfigPlace *place,
                       const char *base, GError **errp);

/* The item of this name, or the one in which the node of this name is defined in place. NULL if none. */
ConfigItem *config_find(const Config *config, ConfigKind kind, const char *name);
/* The name nearest to `name` of this kind, NULL if none is near. Borrowed from config. */
const char *config_nearest(const Config *config, ConfigKind kind, const char *name);

/* "lab.conf:12" of option `key` (NULL: of the item), or "--blockdev". Free with g_free. */
char *config_item_place(const ConfigItem *item, const char *key);
/* Set *errp to "lab.conf:12: node 'x': option 'KEY': message"; without the option part where key is NULL.
 * Returns false. */
bool config_item_error(const ConfigItem *item, const char *key, GError **errp, int errnum, const char *fmt,
                       ...) G_GNUC_PRINTF(5, 6);
/*
 * Put the place, and the item where it is not named, before a message that came from elsewhere: the place of
 * the option that the message names as BlockOptions does, else of the item.
 */
void config_item_locate_error(const ConfigItem *item, GError **errp);

#endif /* BG_CONTROL_GRAPH_CONFIG_H */
