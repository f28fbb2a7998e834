/*
 * Log lines on stderr: "blockgraphfs: message", or with another program's name. After the daemon has gone to
 * the background they go to syslog (facility daemon).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_UTIL_LOG_H
#define BG_UTIL_LOG_H

#include <glib.h>
#include <stdbool.h>

typedef enum BgLogLevel {
    BG_LOG_ERROR,
    BG_LOG_WARNING,
    BG_LOG_INFO,  /* shown with -d or --verbose */
    BG_LOG_DEBUG, /* shown with -d */
} BgLogLevel;

/* Lines above this level are dropped. Default BG_LOG_WARNING. Main thread, before iothreads. */
void bg_log_set_level(BgLogLevel level);

/* What is before the colon, static. Main thread, before other threads. */
void bg_log_set_program(const char *name);

/* Send what follows to syslog instead of stderr. Main thread. */
void bg_log_to_syslog(const char *ident);

/* One line, without the newline. Any thread; never blocks on a lock shared with I/O. */
void bg_log(BgLogLevel level, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

/* The line at BG_LOG_ERROR, then abort(): for broken invariants, never for bad input. Any thread. */
void bg_fatal(const char *fmt, ...) G_GNUC_PRINTF(1, 2) __attribute__((noreturn));

#endif /* BG_UTIL_LOG_H */
