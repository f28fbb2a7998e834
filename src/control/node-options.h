/*
 * What the front needs to know of a node's options before its driver sees them: which are references to other
 * nodes, and which are file names.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_NODE_OPTIONS_H
#define BG_CONTROL_NODE_OPTIONS_H

#include "control/graph-config.h"

/*
 * Make the options of node `item` independent of where they were written: children given as "json:{...}"
 * become objects, relative file names are put behind the directory `base`. In place. False and *errp.
 */
bool node_options_prepare(ConfigItem *item, const char *base, GError **errp);

/* `key` is the dotted path to the value, for messages. False, with *errp, ends the walk. */
typedef bool NodeOptionsVisit(const char *key, const char *value, void *opaque, GError **errp);

/* Visit each reference to another node: a string where a child is expected, also in nested children. */
bool node_options_foreach_reference(JsonObject *options, NodeOptionsVisit *visit, void *opaque,
                                    GError **errp);

/* Visit the node-name of each child that is defined in place and has one. */
bool node_options_foreach_inner_name(JsonObject *options, NodeOptionsVisit *visit, void *opaque,
                                     GError **errp);

/*
 * Open "json:{...}" or "{...}": the object, or NULL with *errp (the cause alone). Behind json: keys may have
 * dots, as in QEMU.
 */
JsonObject *node_options_from_json(const char *text, GError **errp);

/* Whether text is "json:" and an object. */
bool node_options_is_json(const char *text);

#endif /* BG_CONTROL_NODE_OPTIONS_H */
