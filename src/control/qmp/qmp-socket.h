/*
 * Unix sockets for the control server: where they are, and how they are made and found.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_QMP_SOCKET_H
#define BG_CONTROL_QMP_SOCKET_H

#include <glib.h>

/*
 * A listening socket at `path`, mode 0600 from its first moment, non-blocking. A socket there that nobody
 * listens to is replaced. A descriptor, or -errno and *errp.
 */
int qmp_socket_listen(const char *path, GError **errp);
/* A connected socket, blocking. A descriptor, or -errno and *errp. */
int qmp_socket_connect(const char *path, GError **errp);

/*
 * A path for the socket of this process, in a directory that only its user can enter, which is made where
 * absent: /run/blockgraph for root, $XDG_RUNTIME_DIR/blockgraph for others, /tmp/blockgraph-UID where that is
 * not set. Sockets of daemons that died are removed there. NULL and *errp. g_free.
 */
char *qmp_socket_default_path(GError **errp);

#endif /* BG_CONTROL_QMP_SOCKET_H */
