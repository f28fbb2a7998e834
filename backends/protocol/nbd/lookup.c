/*
 * Beginning to connect, which looks up names. libnbd does that in the call, and a resolver without an answer
 * blocks for long: so a name is looked up in a thread that nobody has to wait for.
 *
 *   thread  | the connection | who frees the handle
 *   --------+----------------+---------------------
 *   runs    | waits          | (nobody yet)
 *   ended   | goes on        | the connection
 *   runs    | abandoned      | the thread, when it ends
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "backends/protocol/nbd/nbd.h"
#include "util/lock.h"

struct NbdLookup {
    NbdTarget *target;
    struct nbd_handle *nbd;

    BgMutex lock; /* a leaf */
    int refs BG_GUARDED_BY(lock);
    bool ended BG_GUARDED_BY(lock);
    bool abandoned BG_GUARDED_BY(lock);
    Coroutine *waiter BG_GUARDED_BY(lock);
    int error BG_GUARDED_BY(lock); /* an errno value */
    char *text BG_GUARDED_BY(lock);
};

int nbd_target_start(const NbdTarget *target, struct nbd_handle *nbd)
{
    switch (target->transport) {
    case NBD_INET:
        return nbd_aio_connect_tcp(nbd, target->host, target->port);
    case NBD_UNIX:
        return nbd_aio_connect_unix(nbd, target->path);
    case NBD_VSOCK:
        return nbd_aio_connect_vsock(nbd, target->cid, target->vsock_port);
    case NBD_URI:
    default:
        return nbd_aio_connect_uri(nbd, target->uri);
    }
}

static void lookup_unref(NbdLookup *lookup)
{
    bg_mutex_lock(&lookup->lock);
    bool last = --lookup->refs == 0;

    bg_mutex_unlock(&lookup->lock);
    if (last) {
        nbd_target_unref(lookup->target);
        bg_mutex_destroy(&lookup->lock);
        g_free(lookup->text);
        g_free(lookup);
    }
}

static gpointer lookup_thread(gpointer opaque)
{
    NbdLookup *lookup = opaque;
    int ret = nbd_target_start(lookup->target, lookup->nbd);
    int error = ret < 0 ? nbd_get_errno() : 0;

    bg_mutex_lock(&lookup->lock);
    lookup->ended = true;
    if (ret < 0) {
        lookup->error = error ? error : EIO;
        lookup->text = g_strdup(nbd_error_text());
    }
    bool abandoned = lookup->abandoned;

    if (lookup->waiter) {
        aio_co_wake(lookup->waiter);
    }
    bg_mutex_unlock(&lookup->lock);
    if (abandoned) {
        nbd_close(lookup->nbd);
    }
    lookup_unref(lookup);
    return NULL;
}

/* Sleep until the thread has ended. False where it is abandoned. */
static bool coroutine_fn co_wait_ended(NbdLookup *lookup)
{
    bg_mutex_lock(&lookup->lock);
    if (!lookup->ended && !lookup->abandoned) {
        lookup->waiter = coroutine_self();
        bg_mutex_unlock(&lookup->lock);
        coroutine_yield();
        bg_mutex_lock(&lookup->lock);
        lookup->waiter = NULL;
    }
    bool abandoned = lookup->abandoned;

    bg_mutex_unlock(&lookup->lock);
    return !abandoned;
}

int coroutine_fn nbd_lookup_co_start(NbdConn *conn, struct nbd_handle *nbd, char **error)
{
    NbdLookup *lookup = g_new0(NbdLookup, 1);

    lookup->target = nbd_target_ref(conn->s->target);
    lookup->nbd = nbd;
    bg_mutex_init(&lookup->lock);
    lookup->refs = 2;
    conn->lookup = lookup;
    g_thread_unref(g_thread_new("nbd-lookup", lookup_thread, lookup));
    bool ended = co_wait_ended(lookup);

    conn->lookup = NULL;
    bg_mutex_lock(&lookup->lock);
    int ret = ended ? -lookup->error : -ECANCELED;

    *error = g_steal_pointer(&lookup->text);
    bg_mutex_unlock(&lookup->lock);
    lookup_unref(lookup);
    return ret;
}

void nbd_lookup_abandon(NbdLookup *lookup)
{
    bg_mutex_lock(&lookup->lock);
    if (!lookup->ended && !lookup->abandoned) {
        lookup->abandoned = true;
        if (lookup->waiter) {
            aio_co_schedule(coroutine_context(lookup->waiter), lookup->waiter);
        }
        /* The thread must not wake it again. */
        lookup->waiter = NULL;
    }
    bg_mutex_unlock(&lookup->lock);
}
