/*
 * Snapshots of exports: what `blockgraph snapshot` asks for.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "control/qmp/qmp-commands.h"
#include "control/snapshot-set.h"
#include "util/error.h"
#include "util/text.h"

#define DEFAULT_PATTERN "%d/%e.%s.qcow2"

const QmpMember qmp_own_create_arguments[] = {
    {"name", &qmp_string, false},  {"exports", &qmp_string_list, true},
    {"external", &qmp_bool, true}, {"file", &qmp_string, true},
    {NULL, NULL, false},
};

const QmpMember qmp_own_change_arguments[] = {
    {"name", &qmp_string, false},
    {"exports", &qmp_string_list, true},
    {NULL, NULL, false},
};

const QmpMember qmp_own_list_arguments[] = {{"exports", &qmp_string_list, true}, {NULL, NULL, false}};

/* ---- Which exports */

typedef struct Chosen {
    char *id;
    BlockNode *node; /* referenced */
} Chosen;

static void add_chosen(GArray *list, FuseExport *exp)
{
    BlockNode *node = block_backend_node(fuse_export_backend(exp));
    Chosen chosen = {g_strdup(fuse_export_id(exp)), block_node_ref(node)};

    g_array_append_val(list, chosen);
}

static void coroutine_fn free_chosen(GArray *list)
{
    for (guint i = 0; list && i < list->len; i++) {
        Chosen *chosen = &g_array_index(list, Chosen, i);

        g_free(chosen->id);
        block_node_co_unref(chosen->node);
    }
    if (list) {
        g_array_free(list, TRUE);
    }
}

static bool is_chosen(GArray *list, const char *id)
{
    for (guint i = 0; i < list->len; i++) {
        if (g_str_equal(g_array_index(list, Chosen, i).id, id)) {
            return true;
        }
    }
    return false;
}

static bool choose(GArray *list, GArray *exports, const char *id, GError **errp)
{
    g_autoptr(GPtrArray) ids = g_ptr_array_new();
    const char *nearest;

    if (is_chosen(list, id)) {
        return true;
    }
    for (guint i = 0; i < exports->len; i++) {
        FuseExport *exp = g_array_index(exports, ServerExport, i).exp;

        if (g_str_equal(fuse_export_id(exp), id)) {
            add_chosen(list, exp);
            return true;
        }
        g_ptr_array_add(ids, (gpointer)fuse_export_id(exp));
    }
    g_ptr_array_add(ids, NULL);
    nearest = text_nearest(id, (const char *const *)ids->pdata);
    bg_error_set(errp, ENOENT, "there is no export '%s'%s%s%s", id, nearest ? ", did you mean '" : "",
                 nearest ? nearest : "", nearest ? "'?" : "");
    return false;
}

/* Those that the arguments name, else all, or all writable ones. NULL and *errp. */
static GArray *coroutine_fn choose_exports(const Server *server, JsonObject *arguments, bool writable,
                                           GError **errp)
{
    JsonArray *ids = qmp_get_list(arguments, "exports");
    g_autoptr(GArray) exports = server_exports(server);
    GArray *list = g_array_new(FALSE, FALSE, sizeof(Chosen));
    bool ok = true;

    for (guint i = 0; ids && ok && i < json_array_get_length(ids); i++) {
        ok = choose(list, exports, json_array_get_string_element(ids, i), errp);
    }
    for (guint i = 0; !ids && i < exports->len; i++) {
        FuseExport *exp = g_array_index(exports, ServerExport, i).exp;

        if (!writable || fuse_export_writable(exp)) {
            add_chosen(list, exp);
        }
    }
    if (ok && list->len == 0 && writable) {
        bg_error_set(errp, EROFS, ids ? "the list of exports is empty" : "no export is writable");
        ok = false;
    }
    if (!ok) {
        free_chosen(list);
    }
    return ok ? list : NULL;
}

/* ---- Create */

/* "%d/%e.%s.qcow2": directory of the present image, export, snapshot. g_free. */
static char *expand(const char *pattern, const Chosen *chosen, const char *name, const char *cwd,
                    GError **errp)
{
    g_autofree char *present = block_node_filename(chosen->node);
    g_autofree char *directory = present ? g_path_get_dirname(present) : g_strdup(cwd);
    g_autoptr(GString) out = g_string_new(NULL);

    for (const char *p = pattern; *p; p++) {
        const char *what = NULL;

        if (*p == '%') {
            p++;
            what = *p == 'd' ? directory : *p == 'e' ? chosen->id : *p == 's' ? name : *p == '%' ? "%" : NULL;
            if (!what) {
                bg_error_set(errp, EINVAL, "argument 'file': in '%s' a '%%' is not followed by d, e, s or %%",
                             pattern);
                return NULL;
            }
        }
        if (what) {
            g_string_append(out, what);
        } else {
            g_string_append_c(out, *p);
        }
    }
    return g_path_is_absolute(out->str) ? g_strdup(out->str) : g_build_filename(cwd, out->str, NULL);
}

/* Each node once: exports may share one. */
static bool is_first(GArray *list, guint i)
{
    for (guint k = 0; k < i; k++) {
        if (g_array_index(list, Chosen, k).node == g_array_index(list, Chosen, i).node) {
            return false;
        }
    }
    return true;
}

static bool coroutine_fn add_external(const Server *server, SnapshotSet *set, const Chosen *chosen,
                                      JsonObject *arguments, GError **errp)
{
    const char *pattern = qmp_get_string(arguments, "file"), *name = qmp_get_string(arguments, "name");
    g_autofree char *filename =
        expand(pattern ? pattern : DEFAULT_PATTERN, chosen, name, server->plan->line->cwd, errp);
    SnapshotOverlayFile file = {.filename = filename, .format = "qcow2", .make = true};

    return filename && snapshot_set_co_add_file(set, chosen->node, &file, errp);
}

JsonNode *coroutine_fn qmp_own_snapshot_create(void *host, JsonObject *arguments, GError **errp)
{
    const Server *server = host;
    const char *name = qmp_get_string(arguments, "name");
    bool external = qmp_get_bool(arguments, "external", false);
    SnapshotSet *set;
    GArray *list;
    bool ok = true;

    if (!block_snapshot_check_name(name, errp)) {
        return NULL;
    }
    if (!external && json_object_has_member(arguments, "file")) {
        bg_error_set(errp, EINVAL, "argument 'file': only external snapshots have files of their own");
        return NULL;
    }
    list = choose_exports(server, arguments, true, errp);
    if (!list) {
        return NULL;
    }
    set = snapshot_set_new(server->graph);
    for (guint i = 0; ok && i < list->len; i++) {
        const Chosen *chosen = &g_array_index(list, Chosen, i);

        if (is_first(list, i)) {
            ok = external ? add_external(server, set, chosen, arguments, errp)
                          : snapshot_set_co_add_internal(set, chosen->node, name, errp);
        }
    }
    if (ok) {
        snapshot_set_co_commit(set, errp);
    }
    snapshot_set_co_free(set);
    free_chosen(list);
    return NULL;
}

/* ---- List, delete, revert */

/* Empty where the node can have none. NULL and *errp. */
static GPtrArray *coroutine_fn snapshots_of(BlockNode *node, GError **errp)
{
    g_autoptr(GPtrArray) infos = g_ptr_array_new_with_free_func((GDestroyNotify)block_snapshot_info_free);

    if (block_snapshot_target(node, NULL) && block_snapshot_co_list(node, infos, errp) < 0) {
        return NULL;
    }
    return g_steal_pointer(&infos);
}

static bool coroutine_fn has_snapshot(BlockNode *node, const char *name, GError **errp)
{
    g_autoptr(GPtrArray) infos = snapshots_of(node, errp);

    for (guint i = 0; infos && i < infos->len; i++) {
        if (g_str_equal(((BlockSnapshotInfo *)infos->pdata[i])->name, name)) {
            return true;
        }
    }
    return false;
}

static bool coroutine_fn list_snapshots(const Chosen *chosen, JsonArray *result, GError **errp)
{
    g_autoptr(GPtrArray) infos = snapshots_of(chosen->node, errp);

    for (guint i = 0; infos && i < infos->len; i++) {
        JsonObject *object = qmp_snapshot_info(infos->pdata[i]);

        json_object_set_string_member(object, "export", chosen->id);
        json_object_set_int_member(object, "size", ((BlockSnapshotInfo *)infos->pdata[i])->length);
        json_array_add_object_element(result, object);
    }
    return infos != NULL;
}

JsonNode *coroutine_fn qmp_own_snapshot_list(void *host, JsonObject *arguments, GError **errp)
{
    GArray *list = choose_exports(host, arguments, false, errp);
    g_autoptr(JsonArray) result = json_array_new();
    bool ok = list != NULL;

    for (guint i = 0; ok && i < list->len; i++) {
        ok = list_snapshots(&g_array_index(list, Chosen, i), result, errp);
    }
    free_chosen(list);
    return ok ? qmp_value_list(g_steal_pointer(&result)) : NULL;
}

typedef int coroutine_fn ChangeFunction(BlockNode *const *nodes, unsigned n, const char *name, GError **errp);

/* Of the exports that are named, all of which must have the snapshot, or of the writable ones that have it.
 */
static JsonNode *coroutine_fn change(Server *server, ChangeFunction *function, JsonObject *arguments,
                                     GError **errp)
{
    bool named = json_object_has_member(arguments, "exports");
    const char *name = qmp_get_string(arguments, "name");
    GArray *list = choose_exports(server, arguments, true, errp);
    g_autoptr(GPtrArray) nodes = g_ptr_array_new();
    GError *error = NULL;

    for (guint i = 0; list && i < list->len; i++) {
        BlockNode *node = g_array_index(list, Chosen, i).node;

        if (named || (!error && has_snapshot(node, name, &error))) {
            g_ptr_array_add(nodes, node);
        }
    }
    if (error) {
        g_propagate_error(errp, error);
    } else if (nodes->len > 0) {
        function((BlockNode *const *)nodes->pdata, nodes->len, name, errp);
    } else if (list) {
        bg_error_set(errp, ENOENT, "no writable export has a snapshot '%s'", name);
    }
    free_chosen(list);
    return NULL;
}

JsonNode *coroutine_fn qmp_own_snapshot_delete(void *host, JsonObject *arguments, GError **errp)
{
    return change(host, block_snapshot_co_delete, arguments, errp);
}

JsonNode *coroutine_fn qmp_own_snapshot_revert(void *host, JsonObject *arguments, GError **errp)
{
    return change(host, block_snapshot_co_revert, arguments, errp);
}
