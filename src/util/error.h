/*
 * GError domain of blockgraph: the code is a positive errno value.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_UTIL_ERROR_H
#define BG_UTIL_ERROR_H

#include <glib.h>

#define BG_ERROR (bg_error_quark())
GQuark bg_error_quark(void);

/*
 * Set *errp to a message made from the printf-like arguments, with errnum (a positive
 * errno value) as code. The message names node, option and cause; strerror is not
 * added. Any thread. Returns -errnum, so that callers can return the call.
 */
int bg_error_set(GError **errp, int errnum, const char *fmt, ...) G_GNUC_PRINTF(3, 4);

/* The same, with ": " and strerror(errnum) added at the end. */
int bg_error_set_errno(GError **errp, int errnum, const char *fmt, ...) G_GNUC_PRINTF(3, 4);

/* -errno of an error set by the functions above; -EINVAL for another domain's. */
int bg_error_to_errno(const GError *err);

#endif /* BG_UTIL_ERROR_H */
