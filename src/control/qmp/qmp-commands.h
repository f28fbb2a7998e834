/*
 * The daemon's commands. Their host is the Server.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_QMP_COMMANDS_H
#define BG_CONTROL_QMP_COMMANDS_H

#include "control/qmp/qmp-command.h"

/* The table; a NULL name ends it. */
extern const QmpCommand qmp_commands[];

typedef JsonNode *coroutine_fn QmpFunction(void *host, JsonObject *arguments, GError **errp);

/* ---- qmp-query.c */
QmpFunction qmp_query_named_block_nodes, qmp_query_block_exports, qmp_debug_query_block_graph;
QmpFunction qmp_query_status, qmp_query_graph;

/* Text, object or list as a value; the latter two are taken. */
JsonNode *qmp_value_string(const char *text);
JsonNode *qmp_value_object(JsonObject *object);
JsonNode *qmp_value_list(JsonArray *list);

#endif /* BG_CONTROL_QMP_COMMANDS_H */
