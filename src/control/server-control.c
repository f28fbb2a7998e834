/*
 * The daemon's control sockets.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/qmp/qmp-commands.h"
#include "control/qmp/qmp-socket.h"
#include "control/server-internal.h"
#include "util/log.h"

/* The daemon works without it: only the client does not find it. */
static void open_default_socket(Server *server)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = qmp_socket_default_path(&error);

    if (path && qmp_server_listen(server->qmp, path, false, &error)) {
        server->control = g_steal_pointer(&path);
    } else {
        bg_log(BG_LOG_INFO, "there is no control socket: %s", error->message);
    }
}

bool server_open_control(Server *server, GError **errp)
{
    const GPtrArray *specs = server->plan->line->monitors->specs;
    QmpServerConfig config = {
        .ctx = server->ctx, .commands = qmp_commands, .change_lock = &server->change_lock, .host = server};

    server->qmp = qmp_server_new(&config);
    for (guint i = 0; i < specs->len; i++) {
        const MonitorSpec *spec = specs->pdata[i];

        if (!qmp_server_listen(server->qmp, spec->path, spec->pretty, errp)) {
            g_prefix_error(errp, "%s: ", spec->origin);
            return false;
        }
    }
    if (specs->len > 0) {
        server->control = g_strdup(((MonitorSpec *)specs->pdata[0])->path);
    } else {
        open_default_socket(server);
    }
    return true;
}

void server_export_deleted(Server *server, const char *id)
{
    g_autoptr(JsonObject) data = json_object_new();

    if (server->qmp) {
        json_object_set_string_member(data, "id", id);
        qmp_server_event(server->qmp, "BLOCK_EXPORT_DELETED", data);
    }
}

void coroutine_fn server_co_close_control(Server *server)
{
    if (server->qmp) {
        qmp_server_co_stop(server->qmp);
        g_clear_pointer(&server->qmp, qmp_server_free);
    }
    g_clear_pointer(&server->control, g_free);
}

GArray *server_exports(const Server *server)
{
    GArray *exports = g_array_new(FALSE, FALSE, sizeof(ServerExport));

    for (guint m = 0; m < server->mounts->len; m++) {
        const ServerMount *mount = server->mounts->pdata[m];

        for (guint i = 0; i < mount->exports->len; i++) {
            ServerExport export = {mount->exports->pdata[i], mount};

            g_array_append_val(exports, export);
        }
    }
    return exports;
}
