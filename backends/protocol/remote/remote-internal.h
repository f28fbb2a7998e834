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
/* A connection that was up is lost; it is up again. Each in turn, per link. Any thread. */
void remote_link_down(Remote *remote, int errnum, const char *cause);
void remote_link_up(Remote *remote);

#endif /* BG_BACKENDS_REMOTE_INTERNAL_H */
