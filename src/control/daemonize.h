/*
 * Going to the background, with the exit status of the start passed to whoever called us; the PID file; the
 * readiness protocol of systemd.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_DAEMONIZE_H
#define BG_CONTROL_DAEMONIZE_H

#include <glib.h>
#include <stdbool.h>

/* Open /dev/null as those of 0, 1 and 2 that are closed, lest a descriptor of ours becomes one. First of all.
 */
void daemonize_open_streams(void);

/*
 * Fork, before any thread exists. The parent stays until the child is ready or ends, then exits with 0 or
 * with the child's status: this call does not return there. In the child, a new session, *ready_fd is for
 * daemonize_ready. False and *errp where there can be no child.
 */
bool daemonize_fork(int *ready_fd, GError **errp);
/* In the child: let go of terminal, pipes and directory, log to syslog, end the parent with status 0. */
void daemonize_ready(int ready_fd);

/* ---- PID file */

typedef struct PidFile PidFile;
/* Write our process id to `path`, which no other living daemon holds. NULL and *errp. */
PidFile *pid_file_new(const char *path, GError **errp);
/* Remove the file, if it is still ours. NULL is allowed. */
void pid_file_free(PidFile *pidfile);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(PidFile, pid_file_free)

/* ---- sd_notify(3): "READY=1", "STOPPING=1"; nothing where NOTIFY_SOCKET is not set. */
void notify_service_manager(const char *state);

#endif /* BG_CONTROL_DAEMONIZE_H */
