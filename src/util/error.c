/*
 * GError domain of blockgraph.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "util/error.h"

#include <errno.h>

G_DEFINE_QUARK(blockgraph - error, bg_error)

static int set_error(GError **errp, int errnum, const char *suffix, const char *fmt, va_list ap)
{
    g_autofree char *message = g_strdup_vprintf(fmt, ap);

    g_set_error(errp, BG_ERROR, errnum, "%s%s%s", message, suffix ? ": " : "", suffix ? suffix : "");
    return -errnum;
}

int bg_error_set(GError **errp, int errnum, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    set_error(errp, errnum, NULL, fmt, ap);
    va_end(ap);
    return -errnum;
}

int bg_error_set_errno(GError **errp, int errnum, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    set_error(errp, errnum, g_strerror(errnum), fmt, ap);
    va_end(ap);
    return -errnum;
}

int bg_error_to_errno(const GError *err)
{
    return err && err->domain == BG_ERROR && err->code > 0 ? -err->code : -EINVAL;
}
