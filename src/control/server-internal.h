/*
 * Server: what the control socket's commands see of it. Main thread.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_SERVER_INTERNAL_H
#define BG_CONTROL_SERVER_INTERNAL_H

#include "block/graph.h"
#include "control/qmp/qmp-server.h"
#include "control/server.h"

typedef enum ServerState {
    SERVER_STARTING,
    SERVER_RUNNING,
    SERVER_STOPPING,
    SERVER_STOPPED,
} ServerState;

typedef struct ServerMount {
    const ExportSpec *spec; /* of the export that is mounted over its own file; NULL: the directory */
    FuseMount *mount;       /* NULL: not mounted */
    GPtrArray *exports;     /* FuseExport */
} ServerMount;

struct Server {
    const Plan *plan;
    ServerState state;
    AioContext *ctx;
    GMainLoop *loop;
    GPtrArray *iothreads;  /* IoThread, in the order of plan->objects->iothreads */
    AioContext **contexts; /* theirs */
    BlockGraph *graph;
    GPtrArray *mounts; /* ServerMount */
    QmpServer *qmp;
    char *control;       /* path of its first socket; NULL: none */
    CoMutex change_lock; /* nodes, exports or mounts come, go or change places; held across waits */
    bool cleaner;
    int status;
    GError **open_errp; /* of the coroutine that opens the nodes */
};

/* An export, and its mount. */
typedef struct ServerExport {
    FuseExport *exp;
    const ServerMount *mount;
} ServerExport;

/* All exports, in order: ServerExport. Free the array. */
GArray *server_exports(const Server *server);
/* As by SIGTERM. */
void server_stop(Server *server);

/* ---- server-control.c */

/* Make the sockets that the user asked for and the one that the client finds. False and *errp. */
bool server_open_control(Server *server, GError **errp);
/* Tell the clients. */
void server_export_deleted(Server *server, const char *id);
/* Remove the sockets, and wait for commands. Coroutine. */
void coroutine_fn server_co_close_control(Server *server);

#endif /* BG_CONTROL_SERVER_INTERNAL_H */
