/*
 * Starting threads.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "util/thread.h"

#include <glib.h>
#include <signal.h>

int bg_thread_create(pthread_t *thread, const pthread_attr_t *attr, const char *name, void *(*run)(void *),
                     void *arg)
{
    char short_name[16];
    sigset_t all, old;
    int errnum;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    errnum = pthread_create(thread, attr, run, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (errnum == 0) {
        g_strlcpy(short_name, name, sizeof(short_name));
        pthread_setname_np(*thread, short_name);
    }
    return -errnum;
}
