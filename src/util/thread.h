/*
 * Starting threads.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_UTIL_THREAD_H
#define BG_UTIL_THREAD_H

#include <pthread.h>

/*
 * As pthread_create(3), with every signal blocked in the new thread: signals are the main
 * thread's. `name` is cut to the kernel's 15 bytes. 0 or -errno. Any thread.
 */
int bg_thread_create(pthread_t *thread, const pthread_attr_t *attr, const char *name, void *(*run)(void *),
                     void *arg);

#endif /* BG_UTIL_THREAD_H */
