/*
 * What the files of the control server share.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_QMP_INTERNAL_H
#define BG_CONTROL_QMP_INTERNAL_H

#include "control/qmp/qmp-server.h"

typedef struct QmpListener {
    QmpServer *server;
    char *path;
    int fd;
    bool pretty;
    AioTimer retry; /* armed while no more descriptors could be had, and so nobody is let in */
} QmpListener;

typedef struct QmpClient QmpClient;

struct QmpServer {
    QmpServerConfig config;
    GPtrArray *listeners; /* QmpListener */
    GPtrArray *clients;   /* QmpClient, each owned by its coroutine */
    CoQueue idle;         /* the last client has gone */
    bool started, stopping;
};

/* Serve the connected socket `fd`, which passes to the client. */
void qmp_client_start(QmpServer *server, int fd, bool pretty);
/* End it as soon as its command has returned. */
void qmp_client_close(QmpClient *client);
/* Send a line, if the client has negotiated. */
void qmp_client_notify(QmpClient *client, JsonObject *message);

#endif /* BG_CONTROL_QMP_INTERNAL_H */
