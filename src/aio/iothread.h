/*
 * IoThread: a thread that runs one AioContext.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_AIO_IOTHREAD_H
#define BG_AIO_IOTHREAD_H

#include "aio/aio.h"

typedef struct IoThread IoThread;

/* Start a thread named `id` (copied; shown by ps -T). cpu >= 0 pins it there. NULL and *errp on failure. Main
 * thread. */
IoThread *iothread_new(const char *id, AioBackend backend, int cpu, GError **errp);
/* Above which no longer busy polling is accepted, and what a new thread has; ns. See
 * aio_context_set_poll_max. */
#define IOTHREAD_POLL_MAX_NS     (1000 * 1000)
#define IOTHREAD_POLL_DEFAULT_NS 32768 /* as in QEMU */

/* Stop the loop after its current round, join, free. No handler of others may be left in it. Main thread. */
void iothread_free(IoThread *t);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(IoThread, iothread_free)

const char *iothread_id(const IoThread *t);
AioContext *iothread_context(const IoThread *t); /* borrowed */

#endif /* BG_AIO_IOTHREAD_H */
