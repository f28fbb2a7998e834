/*
 * Log lines on stderr or to syslog.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "util/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

static _Atomic int max_level = BG_LOG_WARNING;
static _Atomic bool use_syslog;
static const char *program = "blockgraphfs";

void bg_log_set_level(BgLogLevel level)
{
    atomic_store(&max_level, (int)level);
}

void bg_log_set_program(const char *name)
{
    program = name;
}

void bg_log_to_syslog(const char *ident)
{
    openlog(ident, LOG_PID, LOG_DAEMON);
    atomic_store(&use_syslog, true);
}

static int syslog_priority(BgLogLevel level)
{
    static const int priorities[] = {
        [BG_LOG_ERROR] = LOG_ERR,
        [BG_LOG_WARNING] = LOG_WARNING,
        [BG_LOG_INFO] = LOG_INFO,
        [BG_LOG_DEBUG] = LOG_DEBUG,
    };

    return priorities[level];
}

/* One write(2) per line keeps lines of several threads apart without a lock. */
static void write_line(const char *message)
{
    g_autofree char *line = g_strdup_printf("%s: %s\n", program, message);
    const char *p = line;
    size_t left = strlen(line);

    while (left > 0) {
        ssize_t n = write(STDERR_FILENO, p, left);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return; /* nowhere to report it */
        }
        p += n;
        left -= (size_t)n;
    }
}

static void log_va(BgLogLevel level, const char *fmt, va_list ap)
{
    g_autofree char *message = g_strdup_vprintf(fmt, ap);
    int saved_errno = errno;

    /* A file name with a line break must not forge a second log line. */
    g_strdelimit(message, "\r\n", ' ');
    if (atomic_load_explicit(&use_syslog, memory_order_relaxed)) {
        syslog(syslog_priority(level), "%s", message);
    } else {
        write_line(message);
    }
    errno = saved_errno;
}

void bg_log(BgLogLevel level, const char *fmt, ...)
{
    va_list ap;

    if ((int)level > atomic_load_explicit(&max_level, memory_order_relaxed)) {
        return;
    }
    va_start(ap, fmt);
    log_va(level, fmt, ap);
    va_end(ap);
}

void bg_fatal(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    log_va(BG_LOG_ERROR, fmt, ap);
    va_end(ap);
    abort();
}
