/*
 * Server: a plan in action, from the first open to the last close.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_SERVER_H
#define BG_CONTROL_SERVER_H

#include "control/plan.h"

typedef struct Server Server;

/*
 * Open the nodes, make the exports, mount. NULL and *errp, a message that names the place in the graph file,
 * the node and the option: then nothing is open and nothing mounted any more. The calling thread becomes the
 * main thread. The plan outlives the server.
 */
Server *server_new(const Plan *plan, GError **errp);
/* Serve until a signal, or until all mounts are gone, and take everything down. The exit status. */
int server_run(Server *server);
void server_free(Server *server);

#endif /* BG_CONTROL_SERVER_H */
