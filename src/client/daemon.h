/*
 * The running daemon behind a mountpoint, over its control socket.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CLIENT_DAEMON_H
#define BG_CLIENT_DAEMON_H

#include <json-glib/json-glib.h>

typedef struct ClientDaemon ClientDaemon;

/* Connect and negotiate. NULL and *errp. */
ClientDaemon *client_daemon_open(const char *mountpoint, GError **errp);
/* Run a command; `arguments` are taken, NULL: none. The value returned, or NULL and *errp. */
JsonNode *client_daemon_call(ClientDaemon *daemon, const char *command, JsonObject *arguments, GError **errp);
void client_daemon_close(ClientDaemon *daemon);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ClientDaemon, client_daemon_close)

/* All three in one. */
JsonNode *client_daemon_ask(const char *mountpoint, const char *command, JsonObject *arguments,
                            GError **errp);

#endif /* BG_CLIENT_DAEMON_H */
