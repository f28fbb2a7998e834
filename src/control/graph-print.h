/*
 * The running graph as a graph file, see blockgraph-graph(5).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_GRAPH_PRINT_H
#define BG_CONTROL_GRAPH_PRINT_H

#include <glib.h>

typedef struct Server Server;

/*
 * INI text that makes the same objects, nodes and exports: as they are now, not as they were given. Passwords
 * in URIs are left out. NULL and *errp where a graph file cannot say it. Main thread. g_free.
 */
char *graph_print_conf(const Server *server, GError **errp);

#endif /* BG_CONTROL_GRAPH_PRINT_H */
