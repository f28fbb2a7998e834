/*
 * QmpServer: QMP over Unix sockets, for any number of clients up to QMP_MAX_CLIENTS.
 *
 * Each client has a coroutine, which runs its commands one after the other; those of different clients run
 * side by side, but for commands that change the graph. Everything happens in the main thread.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_QMP_SERVER_H
#define BG_CONTROL_QMP_SERVER_H

#include "aio/aio.h"
#include "control/qmp/qmp-command.h"
#include "coroutine/lock.h"

#define QMP_MAX_CLIENTS 64

typedef struct QmpServer QmpServer;

typedef struct QmpServerConfig {
    AioContext *ctx;            /* the main thread's */
    const QmpCommand *commands; /* a NULL name ends them */
    CoMutex *change_lock;       /* held by commands with QMP_CHANGES */
    void *host;                 /* for the commands */
} QmpServerConfig;

QmpServer *qmp_server_new(const QmpServerConfig *config);
/*
 * Make a socket at `path`, mode 0600. One that nobody listens to any more is replaced; anything else there is
 * an error. Clients can connect, but are not answered before qmp_server_start. False and *errp.
 */
bool qmp_server_listen(QmpServer *server, const char *path, bool pretty, GError **errp);
void qmp_server_start(QmpServer *server);
/* Tell all clients that have negotiated; `data` (a reference is taken; NULL: none). */
void qmp_server_event(QmpServer *server, const char *name, JsonObject *data);
/* Remove the sockets, begin no more commands, wait for those that run, hang up. Coroutine. */
void coroutine_fn qmp_server_co_stop(QmpServer *server);
void qmp_server_free(QmpServer *server);

/* {"qemu": {...}, "package": ...} of greeting and query-version. A new reference. */
JsonObject *qmp_version(void);

#endif /* BG_CONTROL_QMP_SERVER_H */
