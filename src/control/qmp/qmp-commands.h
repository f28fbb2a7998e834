/*
 * The daemon's commands. Their host is the Server.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_QMP_COMMANDS_H
#define BG_CONTROL_QMP_COMMANDS_H

#include "block/snapshot.h"
#include "control/qmp/qmp-command.h"
#include "control/server-internal.h"

/* The table; a NULL name ends it. */
extern const QmpCommand qmp_commands[];

typedef JsonNode *coroutine_fn QmpFunction(void *host, JsonObject *arguments, GError **errp);

/* ---- qmp-query.c */
QmpFunction qmp_query_named_block_nodes, qmp_query_block_exports, qmp_debug_query_block_graph;
QmpFunction qmp_query_status, qmp_query_graph;

/* ---- qmp-snapshot.c */
extern const QmpMember qmp_snapshot_internal_arguments[], qmp_snapshot_delete_arguments[];
extern const QmpMember qmp_snapshot_sync_arguments[], qmp_snapshot_arguments[], qmp_transaction_arguments[];
QmpFunction qmp_snapshot_internal, qmp_snapshot_delete, qmp_snapshot_sync, qmp_snapshot, qmp_transaction;

/* ---- qmp-own-snapshot.c: of exports, for the client */
extern const QmpMember qmp_own_create_arguments[], qmp_own_change_arguments[], qmp_own_list_arguments[];
QmpFunction qmp_own_snapshot_create, qmp_own_snapshot_delete, qmp_own_snapshot_revert, qmp_own_snapshot_list;

/* "SnapshotInfo" of QEMU's. */
JsonObject *qmp_snapshot_info(const BlockSnapshotInfo *info);
/* A node by its name or, where none has it, by the id of an export. NULL and *errp. Borrowed. */
BlockNode *qmp_find_node(const Server *server, const char *name, GError **errp);

/* Text, object or list as a value; the latter two are taken. */
JsonNode *qmp_value_string(const char *text);
JsonNode *qmp_value_object(JsonObject *object);
JsonNode *qmp_value_list(JsonArray *list);

#endif /* BG_CONTROL_QMP_COMMANDS_H */
