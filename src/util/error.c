/*
 * GError domain of blockgraph.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "util/error.h"

#include <errno.h>
#include <stdatomic.h>

#ifdef __SANITIZE_THREAD__
const char *__tsan_default_suppressions(void);

/* GLib 2.74 makes the lock of its error domains at its first use, by an exchange that the sanitizer does not
 * see. */
const char *__tsan_default_suppressions(void)
{
    return "race:g_rw_lock_reader_lock\n";
}
#endif

/* Not by G_DEFINE_QUARK: the first errors may be those of several threads. */
GQuark bg_error_quark(void)
{
    static _Atomic GQuark quark;
    GQuark known = atomic_load_explicit(&quark, memory_order_relaxed);

    if (!known) {
        known = g_quark_from_static_string("blockgraph-error-quark");
        atomic_store_explicit(&quark, known, memory_order_relaxed);
    }
    return known;
}

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
