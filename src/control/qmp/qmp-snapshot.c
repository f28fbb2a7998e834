/*
 * QEMU's commands for snapshots. One alone is a transaction of one action.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "control/qmp/qmp-commands.h"
#include "control/snapshot-set.h"
#include "util/error.h"

#define NS_PER_S INT64_C(1000000000)

/* ---- Arguments */

const QmpMember qmp_snapshot_internal_arguments[] = {
    {"device", &qmp_string, false},
    {"name", &qmp_string, false},
    {NULL, NULL, false},
};

const QmpMember qmp_snapshot_delete_arguments[] = {
    {"device", &qmp_string, false},
    {"id", &qmp_string, true},
    {"name", &qmp_string, true},
    {NULL, NULL, false},
};

static const char *const mode_words[] = {"existing", "absolute-paths", NULL};
static const QmpType mode_type = {.kind = QMP_KIND_ENUM, .name = "string", .words = mode_words};

const QmpMember qmp_snapshot_sync_arguments[] = {
    {"device", &qmp_string, true},
    {"node-name", &qmp_string, true},
    {"snapshot-file", &qmp_string, false},
    {"snapshot-node-name", &qmp_string, true},
    {"format", &qmp_string, true},
    {"mode", &mode_type, true},
    {NULL, NULL, false},
};

const QmpMember qmp_snapshot_arguments[] = {
    {"node", &qmp_string, false},
    {"overlay", &qmp_string, false},
    {NULL, NULL, false},
};

static const QmpMember abort_arguments[] = {{NULL, NULL, false}};

static const QmpType internal_type = {
    .kind = QMP_KIND_OBJECT, .name = "object", .members = qmp_snapshot_internal_arguments};
static const QmpType sync_type = {
    .kind = QMP_KIND_OBJECT, .name = "object", .members = qmp_snapshot_sync_arguments};
static const QmpType snapshot_type = {
    .kind = QMP_KIND_OBJECT, .name = "object", .members = qmp_snapshot_arguments};
static const QmpType abort_type = {.kind = QMP_KIND_OBJECT, .name = "object", .members = abort_arguments};

static const QmpMember action_types[] = {
    {"abort", &abort_type, false},
    {"blockdev-snapshot", &snapshot_type, false},
    {"blockdev-snapshot-internal-sync", &internal_type, false},
    {"blockdev-snapshot-sync", &sync_type, false},
    {NULL, NULL, false},
};
static const QmpType action_type = {.kind = QMP_KIND_UNION, .name = "object", .members = action_types};
static const QmpType action_list = {.kind = QMP_KIND_LIST, .name = "list", .element = &action_type};

/* "grouped" is about jobs, of which no action starts any. */
static const char *const completion_words[] = {"individual", "grouped", NULL};
static const QmpType completion_type = {.kind = QMP_KIND_ENUM, .name = "string", .words = completion_words};
static const QmpMember properties_members[] = {{"completion-mode", &completion_type, true},
                                               {NULL, NULL, false}};
static const QmpType properties_type = {
    .kind = QMP_KIND_OBJECT, .name = "object", .members = properties_members};

const QmpMember qmp_transaction_arguments[] = {
    {"actions", &action_list, false},
    {"properties", &properties_type, true},
    {NULL, NULL, false},
};

/* ---- Nodes */

BlockNode *qmp_find_node(const Server *server, const char *name, GError **errp)
{
    BlockNode *node = block_graph_find(server->graph, name, NULL);
    g_autoptr(GArray) exports = server_exports(server);

    for (guint i = 0; !node && i < exports->len; i++) {
        FuseExport *exp = g_array_index(exports, ServerExport, i).exp;

        if (g_str_equal(fuse_export_id(exp), name)) {
            return block_backend_node(fuse_export_backend(exp));
        }
    }
    return node ? node : block_graph_find(server->graph, name, errp);
}

/* ---- Actions: each adds itself to the set. False and *errp. */

typedef bool coroutine_fn ActionFunction(const Server *server, SnapshotSet *set, JsonObject *data,
                                         GError **errp);

static bool coroutine_fn add_abort(const Server *server, SnapshotSet *set, JsonObject *data, GError **errp)
{
    bg_error_set(errp, ECANCELED, "the transaction was aborted, as its action 'abort' asks");
    return false;
}

static bool coroutine_fn add_internal(const Server *server, SnapshotSet *set, JsonObject *data, GError **errp)
{
    BlockNode *node = qmp_find_node(server, qmp_get_string(data, "device"), errp);

    return node && snapshot_set_co_add_internal(set, node, qmp_get_string(data, "name"), errp);
}

static bool coroutine_fn add_overlay(const Server *server, SnapshotSet *set, JsonObject *data, GError **errp)
{
    BlockNode *node = qmp_find_node(server, qmp_get_string(data, "node"), errp);
    BlockNode *overlay = node ? block_graph_find(server->graph, qmp_get_string(data, "overlay"), errp) : NULL;

    return overlay && snapshot_set_co_add_overlay(set, node, overlay, errp);
}

static bool coroutine_fn add_file(const Server *server, SnapshotSet *set, JsonObject *data, GError **errp)
{
    const char *device = qmp_get_string(data, "device"), *node_name = qmp_get_string(data, "node-name");
    const char *filename = qmp_get_string(data, "snapshot-file"), *format = qmp_get_string(data, "format");
    g_autofree char *absolute = NULL;
    BlockNode *node;

    if (!device == !node_name) {
        bg_error_set(errp, EINVAL, "give one of the arguments 'device' and 'node-name'");
        return false;
    }
    node = qmp_find_node(server, device ? device : node_name, errp);
    absolute = g_path_is_absolute(filename) ? g_strdup(filename)
                                            : g_build_filename(server->plan->line->cwd, filename, NULL);
    SnapshotOverlayFile file = {
        .filename = absolute,
        .format = format ? format : "qcow2",
        .node_name = qmp_get_string(data, "snapshot-node-name"),
        .make = g_strcmp0(qmp_get_string(data, "mode"), "existing") != 0,
        .overwrite = true,
    };
    return node && snapshot_set_co_add_file(set, node, &file, errp);
}

static JsonNode *coroutine_fn finish(SnapshotSet *set, bool ok, GError **errp)
{
    if (ok) {
        snapshot_set_co_commit(set, errp);
    }
    snapshot_set_co_free(set);
    return NULL;
}

static JsonNode *coroutine_fn run_alone(Server *server, ActionFunction *add, JsonObject *data, GError **errp)
{
    SnapshotSet *set = snapshot_set_new(server->graph);

    return finish(set, add(server, set, data, errp), errp);
}

JsonNode *coroutine_fn qmp_snapshot_internal(void *host, JsonObject *arguments, GError **errp)
{
    return run_alone(host, add_internal, arguments, errp);
}

JsonNode *coroutine_fn qmp_snapshot_sync(void *host, JsonObject *arguments, GError **errp)
{
    return run_alone(host, add_file, arguments, errp);
}

JsonNode *coroutine_fn qmp_snapshot(void *host, JsonObject *arguments, GError **errp)
{
    return run_alone(host, add_overlay, arguments, errp);
}

static bool coroutine_fn add_action(const Server *server, SnapshotSet *set, JsonObject *action, GError **errp)
{
    static const struct {
        const char *type;
        ActionFunction *add;
    } actions[] = {
        {"abort", add_abort},
        {"blockdev-snapshot", add_overlay},
        {"blockdev-snapshot-internal-sync", add_internal},
        {"blockdev-snapshot-sync", add_file},
    };
    unsigned i = 0;

    while (!g_str_equal(actions[i].type, qmp_get_string(action, "type"))) {
        i++; /* the table of types has no others */
    }
    return actions[i].add(server, set, qmp_get_object(action, "data"), errp);
}

JsonNode *coroutine_fn qmp_transaction(void *host, JsonObject *arguments, GError **errp)
{
    const Server *server = host;
    JsonArray *actions = qmp_get_list(arguments, "actions");
    SnapshotSet *set = snapshot_set_new(server->graph);
    bool ok = true;

    for (guint i = 0; ok && i < json_array_get_length(actions); i++) {
        ok = add_action(server, set, json_array_get_object_element(actions, i), errp);
        if (!ok) {
            g_prefix_error(errp, "action %u: ", i);
        }
    }
    return finish(set, ok, errp);
}

/* ---- Deleting */

JsonObject *qmp_snapshot_info(const BlockSnapshotInfo *info)
{
    JsonObject *object = json_object_new();
    g_autofree char *name = g_utf8_make_valid(info->name, -1);
    g_autofree char *id = g_utf8_make_valid(info->id, -1);

    json_object_set_string_member(object, "id", id);
    json_object_set_string_member(object, "name", name);
    json_object_set_int_member(object, "vm-state-size", (gint64)info->vm_state_size);
    json_object_set_int_member(object, "date-sec", info->date_ns / NS_PER_S);
    json_object_set_int_member(object, "date-nsec", info->date_ns % NS_PER_S);
    json_object_set_int_member(object, "vm-clock-sec", 0);
    json_object_set_int_member(object, "vm-clock-nsec", 0);
    return object;
}

/* The snapshot that both id and name, where given, fit. */
static const BlockSnapshotInfo *coroutine_fn find_snapshot(BlockNode *node, const char *id, const char *name,
                                                           GPtrArray *infos, GError **errp)
{
    if (block_snapshot_co_list(node, infos, errp) < 0) {
        return NULL;
    }
    for (guint i = 0; i < infos->len; i++) {
        const BlockSnapshotInfo *info = infos->pdata[i];

        if ((!id || g_str_equal(info->id, id)) && (!name || g_str_equal(info->name, name))) {
            return info;
        }
    }
    bg_error_set(errp, ENOENT, "node '%s' has no snapshot with %s '%s'%s%s%s", node->name, id ? "id" : "name",
                 id ? id : name, id && name ? " and name '" : "", id && name ? name : "",
                 id && name ? "'" : "");
    return NULL;
}

JsonNode *coroutine_fn qmp_snapshot_delete(void *host, JsonObject *arguments, GError **errp)
{
    g_autoptr(GPtrArray) infos = g_ptr_array_new_with_free_func((GDestroyNotify)block_snapshot_info_free);
    const char *id = qmp_get_string(arguments, "id"), *name = qmp_get_string(arguments, "name");
    BlockNode *node = qmp_find_node(host, qmp_get_string(arguments, "device"), errp);
    const BlockSnapshotInfo *info;
    JsonNode *result = NULL;

    if (!node) {
        return NULL;
    }
    if (!id && !name) {
        bg_error_set(errp, EINVAL, "give at least one of the arguments 'id' and 'name'");
        return NULL;
    }
    block_node_ref(node);
    info = find_snapshot(node, id, name, infos, errp);
    if (info && block_snapshot_co_delete(&node, 1, info->name, errp) == 0) {
        result = qmp_value_object(qmp_snapshot_info(info));
    }
    block_node_co_unref(node);
    return result;
}
