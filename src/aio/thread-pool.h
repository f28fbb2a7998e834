/*
 * ThreadPool: runs blocking calls in worker threads. One per process, started on first use,
 * threads come (up to 64) and go (after 10 s idle) with the load.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_AIO_THREAD_POOL_H
#define BG_AIO_THREAD_POOL_H

#include "aio/aio.h"

typedef int ThreadPoolFunc(void *opaque);
typedef void ThreadPoolCompletion(void *opaque, int ret);
typedef struct ThreadPoolJob ThreadPoolJob;

/*
 * Run func(arg) in a worker; then, in the calling thread's AioContext, done(opaque, its return value). Calls
 * in a thread with a context. The job is valid until done was called.
 */
ThreadPoolJob *thread_pool_submit(ThreadPoolFunc *func, void *arg, ThreadPoolCompletion *done, void *opaque);
/* Take back a job that no worker has started: true, and done comes with -ECANCELED; false: it runs or ran.
 * Own thread. */
bool thread_pool_cancel(ThreadPoolJob *job);
/* Run func(arg) in a worker while the calling coroutine sleeps; returns its value. */
int coroutine_fn thread_pool_co_run(ThreadPoolFunc *func, void *arg);
/* Wait for idle, end the workers. Main thread, at exit. */
void thread_pool_shutdown(void);

#endif /* BG_AIO_THREAD_POOL_H */
