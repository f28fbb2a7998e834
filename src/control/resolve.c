/*
 * Depth-first sort of the nodes by their references.
 *
 *   node     UNSEEN --visit--> OPEN --all it refers to is DONE--> DONE
 *            OPEN --visited again--> error: the nodes on the stack from it on are a cycle
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/resolve.h"

#include <errno.h>
#include <string.h>

#include "block/types.h"
#include "control/node-options.h"
#include "util/error.h"

typedef struct Sorter {
    Config *config;
    GHashTable *done;    /* set of ConfigItem */
    GHashTable *parents; /* set of ConfigItem that another refers to */
    GPtrArray *open;     /* the stack: from a root to the node being visited */
    GPtrArray *sorted;
} Sorter;

static bool visit(Sorter *sorter, ConfigItem *item, GError **errp);

static bool cycle_error(Sorter *sorter, guint from, ConfigItem *item, const char *key, GError **errp)
{
    g_autoptr(GString) text = g_string_new(NULL);

    for (guint i = from; i < sorter->open->len; i++) {
        g_string_append_printf(text, "%s -> ", ((ConfigItem *)sorter->open->pdata[i])->name);
    }
    g_string_append(text, ((ConfigItem *)sorter->open->pdata[from])->name);
    return config_item_error(item, key, errp, ELOOP, "the references form a cycle: %s", text->str);
}

static bool dangling_error(Sorter *sorter, ConfigItem *item, const char *key, const char *name, GError **errp)
{
    const char *nearest = config_nearest(sorter->config, CONFIG_NODE, name);

    return config_item_error(item, key, errp, ENOENT, "there is no node '%s'%s%s%s", name,
                             nearest ? ", did you mean '" : "", nearest ? nearest : "", nearest ? "'?" : "");
}

static bool follow(const char *key, const char *name, void *opaque, GError **errp)
{
    Sorter *sorter = opaque;
    ConfigItem *item = sorter->open->pdata[sorter->open->len - 1];
    ConfigItem *target = config_find(sorter->config, CONFIG_NODE, name);
    guint position;

    if (!*name) { /* "none", where the driver takes that */
        return true;
    }
    if (!target) {
        return dangling_error(sorter, item, key, name, errp);
    }
    /* A reference to a child in place of the same node is the driver's to judge. */
    if (target == item && strcmp(name, item->name) != 0) {
        return true;
    }
    g_hash_table_add(sorter->parents, target);
    if (g_ptr_array_find(sorter->open, target, &position)) {
        return cycle_error(sorter, position, item, key, errp);
    }
    return visit(sorter, target, errp);
}

/* Recursion is bounded by BLOCK_MAX_DEPTH. */
static bool visit(Sorter *sorter, ConfigItem *item, GError **errp)
{
    if (g_hash_table_contains(sorter->done, item)) {
        return true;
    }
    if (sorter->open->len == BLOCK_MAX_DEPTH) {
        ConfigItem *top = sorter->open->pdata[0];

        return config_item_error(top, NULL, errp, ELOOP, "a chain of more than %d nodes hangs below",
                                 BLOCK_MAX_DEPTH);
    }
    g_ptr_array_add(sorter->open, item);
    if (!node_options_foreach_reference(item->options, follow, sorter, errp)) {
        return false;
    }
    g_ptr_array_set_size(sorter->open, sorter->open->len - 1);
    g_hash_table_add(sorter->done, item);
    g_ptr_array_add(sorter->sorted, item);
    return true;
}

static bool sort(Sorter *sorter, GError **errp)
{
    GPtrArray *nodes = config_nodes(sorter->config);

    for (guint i = 0; i < nodes->len; i++) {
        if (!visit(sorter, nodes->pdata[i], errp)) {
            return false;
        }
    }
    /* The same items in another order: their owner stays the array. */
    for (guint i = 0; i < nodes->len; i++) {
        nodes->pdata[i] = sorter->sorted->pdata[i];
    }
    return true;
}

bool config_resolve(Config *config, GPtrArray *roots, GError **errp)
{
    g_autoptr(GHashTable) done = g_hash_table_new(NULL, NULL);
    g_autoptr(GHashTable) parents = g_hash_table_new(NULL, NULL);
    g_autoptr(GPtrArray) open = g_ptr_array_new();
    g_autoptr(GPtrArray) sorted = g_ptr_array_new();
    Sorter sorter = {config, done, parents, open, sorted};

    if (!sort(&sorter, errp)) {
        return false;
    }
    for (guint i = 0; roots && i < sorted->len; i++) {
        if (!g_hash_table_contains(parents, sorted->pdata[i])) {
            g_ptr_array_add(roots, sorted->pdata[i]);
        }
    }
    return true;
}
