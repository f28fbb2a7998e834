/*
 * A pthread mutex with Clang's thread-safety annotations, and a capability that
 * stands for "running on the main thread".
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_UTIL_LOCK_H
#define BG_UTIL_LOCK_H

#include <pthread.h>

#include "util/compiler.h"

/* A short-section mutex. Never held across a yield, a callback or a blocking call. */
typedef struct BG_CAPABILITY("mutex") BgMutex {
    pthread_mutex_t m;
} BgMutex;

#define BG_MUTEX_INIT                                                                                        \
    {                                                                                                        \
        PTHREAD_MUTEX_INITIALIZER                                                                            \
    }

void bg_mutex_init(BgMutex *lock);
void bg_mutex_destroy(BgMutex *lock);

static inline void bg_mutex_lock(BgMutex *lock) BG_ACQUIRE(lock) BG_NO_TSA
{
    pthread_mutex_lock(&lock->m);
}

static inline void bg_mutex_unlock(BgMutex *lock) BG_RELEASE(lock) BG_NO_TSA
{
    pthread_mutex_unlock(&lock->m);
}

/*
 * The main-thread capability: bg_assert_main_thread() checks at run time and tells
 * the analysis; functions that need it say BG_MAIN_THREAD.
 */
typedef struct BG_CAPABILITY("thread") BgThreadRole {
    char unused;
} BgThreadRole;

extern BgThreadRole bg_main_thread_role;
#define BG_MAIN_THREAD BG_REQUIRES(bg_main_thread_role)

/* The thread that calls this first becomes the main thread of the process. */
void bg_main_thread_register(void);
bool bg_is_main_thread(void);
void bg_assert_main_thread(void) BG_TSA(assert_capability(bg_main_thread_role));

#endif /* BG_UTIL_LOCK_H */
