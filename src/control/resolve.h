/*
 * Order and references of the nodes of a Config.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_RESOLVE_H
#define BG_CONTROL_RESOLVE_H

#include "control/graph-config.h"

/*
 * Sort the nodes so that each comes after those it refers to, else in order of definition. False and *errp
 * for a reference to nothing, or a cycle. `roots`, where not NULL, gets the nodes without a parent
 * (ConfigItem, borrowed), in the order of the result.
 */
bool config_resolve(Config *config, GPtrArray *roots, GError **errp);

#endif /* BG_CONTROL_RESOLVE_H */
