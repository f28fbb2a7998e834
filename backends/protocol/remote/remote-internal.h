/*
 * Between remote.c and link.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BACKENDS_REMOTE_INTERNAL_H
#define BG_BACKENDS_REMOTE_INTERNAL_H

#include "backends/protocol/remote/remote.h"

/* Until when a request may wait for a connection that is down, CLOCK_MONOTONIC; INT64_MAX: for ever. Any
 * thread. */
int64_t remote_wait_until(Remote *remote);
/* No request may wait longer than until what this returns, CLOCK_MONOTONIC. Any thread. */
int64_t remote_limit_waits(Remote *remote);
/* A connection that was up is lost. Any thread. */
void remote_link_down(Remote *remote, int errnum, const char *cause);
/* It is up again; false where it may not, because all have fallen meanwhile. Any thread. */
bool remote_link_up(Remote *remote);

/* ---- replay.c */

void remote_replay_free(Remote *remote);
/* A link that was up is down; links_down says so already. */
void remote_outage_link_down(Remote *remote) BG_REQUIRES(remote->lock);
/* All are up. */
void remote_outage_end(Remote *remote) BG_REQUIRES(remote->lock);
/*
 * After co_connect: send again what the server may have forgotten, or wait for the link that does. 0, or
 * -errno: the attempt failed. The link's thread, coroutine.
 */
int coroutine_fn remote_co_restore(RemoteLink *link);

/* ---- link.c */

/* Let the attempt fail when the deadline passes, counted from now. */
void remote_link_set_deadline(RemoteLink *link);

#endif /* BG_BACKENDS_REMOTE_INTERNAL_H */
