/*
 * What drivers of storage on other machines share: connections that are lost and made again, deadlines, and
 * what requests do meanwhile.
 *
 * A Remote is the server of one node, a RemoteLink one connection to it, which lives in one AioContext. A
 * driver says how to connect and disconnect (RemoteLinkOps), and runs each request through
 * remote_link_co_run(): that waits for the connection, sets the deadline, and where the connection was lost
 * tries again as the user's options say. What the server may have forgotten meanwhile is sent again
 * (replay.c).
 *
 * Options, read by remote_init(): docs/outages.md says what they mean.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BACKENDS_REMOTE_H
#define BG_BACKENDS_REMOTE_H

#include <stdatomic.h>

#include "aio/aio.h"
#include "block/driver.h"
#include "block/graph.h"
#include "coroutine/lock.h"

typedef struct Remote Remote;
typedef struct RemoteLink RemoteLink;

/* What a try returns when the connection went away before the answer came. No server's answer is this. */
#define REMOTE_LOST (-ENOLINK)

/* States and transitions: at the top of link.c. */
typedef enum RemoteLinkState {
    REMOTE_LINK_CLOSED,
    REMOTE_LINK_CONNECTING,
    REMOTE_LINK_CONNECTED,
    REMOTE_LINK_BACKOFF,
    REMOTE_LINK_RESTING,
    REMOTE_LINK_CHANGED,
} RemoteLinkState;

typedef struct RemoteOptions {
    int64_t timeout_ns;         /* 0: none */
    int64_t reconnect_delay_ns; /* 0: requests do not wait */
    int64_t resend_bytes;       /* resend-buffer; 0: nothing is kept */
    bool pause;                 /* on-outage=pause */
} RemoteOptions;

/* States and transitions: at the top of replay.c. */
typedef enum RemoteOutage {
    REMOTE_UP,
    REMOTE_FALLING,
    REMOTE_DOWN,
    REMOTE_RESENDING,
    REMOTE_RESTORED,
} RemoteOutage;

/* Of drivers that write. */
typedef struct RemoteWriteOps {
    /* Flush on the server, by remote_link_co_run(). */
    int coroutine_fn (*co_flush)(BlockNode *node);
    /*
     * Write again, right after link's co_connect and not by remote_link_co_run(). data: `bytes` bytes; NULL:
     * zeroes, with the flags of the first time. The link's thread. 0, REMOTE_LOST or -errno.
     */
    int coroutine_fn (*co_resend)(RemoteLink *link, int64_t offset, int64_t bytes, const void *data,
                                  BlockRequestFlags flags);
} RemoteWriteOps;

struct Remote {
    BlockNode *node;
    char *where; /* for people: "nbd://host:10809/export", without secrets */
    RemoteOptions options;
    _Atomic int64_t
        wait_limit_ns; /* CLOCK_MONOTONIC: no request waits longer (the daemon ends); INT64_MAX: none */

    /* Set by the driver after remote_init; NULL: writes need no flush, or there are none. */
    const RemoteWriteOps *write_ops;

    CoMutex room_lock; /* who flushes to make room; held across that */
    BgMutex lock;      /* a leaf */
    CoQueue changed;   /* for another `outage`; with lock */
    RemoteOutage outage BG_GUARDED_BY(lock);
    GPtrArray *links BG_GUARDED_BY(lock); /* RemoteLink: those that are open */
    unsigned links_down BG_GUARDED_BY(lock);
    int64_t down_since_ns BG_GUARDED_BY(lock); /* CLOCK_MONOTONIC, where a link is down */
    uint64_t outages BG_GUARDED_BY(lock);
    GQueue kept BG_GUARDED_BY(lock); /* KeptWrite, in the order of their answers */
    int64_t kept_bytes BG_GUARDED_BY(lock);
    uint64_t last_number BG_GUARDED_BY(lock); /* of a write, or other change */
    uint64_t flushed BG_GUARDED_BY(lock);     /* the last one that is on stable storage */
    uint64_t forgotten BG_GUARDED_BY(lock);   /* the last one that is not kept; 0: flushed since */
    bool lost BG_GUARDED_BY(lock);            /* the next flush has to fail */
    bool trimming BG_GUARDED_BY(lock);        /* a coroutine flushes to make room */
};

typedef struct RemoteLinkOps {
    /*
     * Connect, the link's thread, coroutine: 0, or -errno and *errp with the cause only (the caller adds node
     * and server). `again`: it was connected before; then the length and identity of the resource are to be
     * checked, and -ESTALE with *errp, which is for good, is the answer where it is another one. The deadline
     * is the caller's: it calls disconnect, after which co_connect has to return soon, with an error.
     */
    int coroutine_fn (*co_connect)(RemoteLink *link, bool again, GError **errp);
    /*
     * Drop the connection, or the attempt under way, now. Every command on it ends with REMOTE_LOST: its
     * coroutine is woken, not entered from here. No-op where there is none. The link's thread; must not
     * yield.
     */
    void (*disconnect)(RemoteLink *link);
    /*
     * Take the descriptors and timers of a live, idle connection out of link->ctx, and into the new
     * link->ctx. In the thread of that; must not yield.
     */
    void (*detach)(RemoteLink *link);
    void (*attach)(RemoteLink *link);
} RemoteLinkOps;

struct RemoteLink {
    /* -- constant */
    Remote *remote;
    const RemoteLinkOps *ops;
    void *opaque; /* the driver's */

    /* -- the thread of ctx; ctx changes only while the node is drained */
    AioContext *ctx;
    _Atomic RemoteLinkState state; /* any thread may look */
    bool was_connected;            /* ever */
    bool is_down;                  /* counted in remote->links_down */
    bool quiet;                    /* in a drained section: no attempts but for requests that wait */
    bool broken;                   /* CONNECTING: the attempt is to fail */
    bool timed_out;                /* the last loss: no answer within the deadline */
    int64_t progress_ns;           /* of remote_link_progress() */
    unsigned attempts;             /* since it was connected */
    unsigned running;              /* requests that are sent, or about to be */
    Coroutine *attempt;            /* the coroutine that runs co_connect, or NULL */
    AioTimer retry;                /* BACKOFF: the next attempt */
    AioTimer deadline;             /* CONNECTING: of the attempt */
    AioTimer limit;                /* the daemon ends: of everything that waits */
    GQueue waiters;                /* RemoteWaiter, for a change of state */

    /* -- main thread */
    bool closing; /* no more bottom halves may be sent to it */
};

/* ---- The server of a node */

/*
 * Read the options above and set everything up. `where` is copied; default_timeout in s. Main thread. False
 * and *errp.
 */
bool remote_init(Remote *remote, BlockNode *node, BlockOptions *opts, const char *where,
                 unsigned default_timeout, GError **errp);
/* Of drivers that write, right after: read the options for that. Main thread. False and *errp. */
bool remote_init_writes(Remote *remote, BlockOptions *opts, GError **errp);
void remote_destroy(Remote *remote);

/*
 * A write, or write-zeroes, was acknowledged that is not yet on stable storage (no FUA): keep it until it is
 * flushed. May flush to make room: 0, or that flush's error. Coroutine.
 */
int coroutine_fn remote_co_wrote(Remote *remote, int64_t offset, int64_t bytes, const IoVector *qiov,
                                 size_t qiov_offset);
int coroutine_fn remote_co_zeroed(Remote *remote, int64_t offset, int64_t bytes, BlockRequestFlags flags);
/* Something else was acknowledged that a flush makes stable, and that need not be sent again: a discard. Any
 * thread. */
void remote_touched(Remote *remote);
/* The server has said that it lost a write which it had acknowledged: the next flush fails. Any thread. */
void remote_writes_lost(Remote *remote);
/* The driver's co_flush: write_ops->co_flush where anything has changed since the last one, and -EIO once
 * where writes may be gone. Coroutine. */
int coroutine_fn remote_co_sync(Remote *remote);
/* For BlockDriver.status: "down for 12 s"; NULL while connected. Any thread. g_free. */
char *remote_status(Remote *remote);

/* ---- A connection */

/* Not connected yet. Any thread. */
void remote_link_init(RemoteLink *link, Remote *remote, const RemoteLinkOps *ops, void *opaque,
                      AioContext *ctx);
/*
 * Connect for the first time, from co_open: main thread, coroutine. Tries again until `patience_ns` have
 * passed (0: one attempt). 0, or -errno and *errp, when the link is closed.
 */
int coroutine_fn remote_link_co_open(RemoteLink *link, int64_t patience_ns, GError **errp);
/* Disconnect for good, from co_close or a failed co_open. Main thread, coroutine; no request runs. */
void coroutine_fn remote_link_co_close(RemoteLink *link);

/* One request: called with the connection up. REMOTE_LOST where it went down meanwhile, else what the request
 * returns. */
typedef int coroutine_fn RemoteTry(RemoteLink *link, void *opaque);

/* Whether to send a request again of which it is not known whether it was done. */
typedef enum RemoteResend {
    REMOTE_RESEND,           /* doing it twice is as good as once, also much later */
    REMOTE_RESEND_IF_BROKEN, /* only where the connection broke: a server that hangs may do it after later
                                ones */
    REMOTE_SEND_ONCE,        /* never: -EIO */
} RemoteResend;

/*
 * Run a request in the link's thread (coroutine): wait for the connection, as the options say, then try;
 * where the connection is lost on the way, again. One that is not answered within `timeout` counts as lost,
 * with its connection. -EIO when the options say that waiting is over, -ESTALE where the resource is another
 * one.
 */
int coroutine_fn remote_link_co_run(RemoteLink *link, RemoteTry *co_try, void *opaque, RemoteResend resend);

/*
 * The connection is gone: `cause` for people, `errnum` positive. Calls ops->disconnect where it was
 * CONNECTED, and lets an attempt fail. The other links of the remote follow. The link's thread; does not
 * yield.
 */
void remote_link_lost(RemoteLink *link, int errnum, const char *cause);
/*
 * The resource is another one than at the beginning: every request fails with -ESTALE from now on. The link's
 * thread.
 */
void remote_link_changed(RemoteLink *link, const char *cause);

/*
 * The server does what requests wait for, which takes as long as it takes: their deadlines begin anew. The
 * link's thread.
 */
void remote_link_progress(RemoteLink *link);

/* For BlockDriver.co_detach_aio_context and co_attach_aio_context of a node with a home. */
void coroutine_fn remote_link_co_detach(RemoteLink *link);
void coroutine_fn remote_link_co_attach(RemoteLink *link, AioContext *ctx);
/*
 * For BlockDriver.limit_waits: requests fail when the deadline of one has passed, counted from now, or
 * REMOTE_LAST_WAIT_S where they have none. Main thread.
 */
#define REMOTE_LAST_WAIT_S 10
void remote_link_limit_waits(RemoteLink *link);
/* For BlockDriver.drain_begin and drain_end. Main thread. */
void remote_link_drain_begin(RemoteLink *link);
void remote_link_drain_end(RemoteLink *link);

#endif /* BG_BACKENDS_REMOTE_H */
