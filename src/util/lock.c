/*
 * BgMutex, and the role of the main thread.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "util/lock.h"

#include <stdatomic.h>

#include "util/log.h"

BgThreadRole bg_main_thread_role;

static _Atomic bool main_thread_known;
static _Thread_local bool this_is_main_thread;

void bg_mutex_init(BgMutex *lock)
{
    pthread_mutex_init(&lock->m, NULL);
}

void bg_mutex_destroy(BgMutex *lock)
{
    pthread_mutex_destroy(&lock->m);
}

void bg_main_thread_register(void)
{
    if (!atomic_exchange(&main_thread_known, true)) {
        this_is_main_thread = true;
    }
}

bool bg_is_main_thread(void)
{
    return this_is_main_thread;
}

void bg_assert_main_thread(void)
{
    if (bg_unlikely(!this_is_main_thread)) {
        bg_fatal("internal error: a function of the main thread was called in another thread");
    }
}
