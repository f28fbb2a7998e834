/*
 * Driver nbd: an export of an NBD server, by libnbd.
 *
 * A node has one connection, which lives in the node's home, or several, which live in an iothread each; then
 * the node has no home, and a request takes the connection of its own thread. All of a connection is used in
 * the thread of link.ctx only (libnbd would lock, but a handle's descriptor is watched by one loop).
 *
 * A completion runs inside of a call of libnbd's, which holds the handle's lock: there a request is only
 * marked as done. Whoever made the call wakes the requests after it, see nbd_conn_after_call().
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BACKENDS_NBD_H
#define BG_BACKENDS_NBD_H

#include <libnbd.h>

#include "backends/protocol/remote/remote.h"
#include "block/secret.h"

#define NBD_MAX_CONNECTIONS 16

/* ---- Where the server is. Constant, with a reference count: a thread that looks up a name may outlive the
 * node. */

typedef enum NbdTransport { NBD_URI, NBD_INET, NBD_UNIX, NBD_VSOCK } NbdTransport;

typedef struct NbdTarget {
    NbdTransport transport;
    char *uri;
    char *host, *port; /* NBD_INET */
    char *path;        /* NBD_UNIX */
    uint32_t cid, vsock_port;
    char *export_name; /* NULL where the URI says it */
    const BlockTlsCreds
        *creds;  /* borrowed from the graph, used before a thread is started only; NULL: none */
    bool lookup; /* there is a name to look up, which may block */
} NbdTarget;

NbdTarget *nbd_target_new(void);
NbdTarget *nbd_target_ref(NbdTarget *target);
void nbd_target_unref(NbdTarget *target);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(NbdTarget, nbd_target_unref)
/* Read the options that say where. NULL and *errp. Main thread. */
NbdTarget *nbd_target_read(BlockNode *node, BlockOptions *opts, GError **errp);
/* As a URI, for people. g_free. */
char *nbd_target_text(const NbdTarget *target);

/* ---- What the server says of its export */

typedef enum NbdCaps {
    NBD_CAP_WRITE = 1 << 0,
    NBD_CAP_FLUSH = 1 << 1,
    NBD_CAP_FUA = 1 << 2,
    NBD_CAP_ZERO = 1 << 3,
    NBD_CAP_FAST_ZERO = 1 << 4,
    NBD_CAP_TRIM = 1 << 5,
    NBD_CAP_STATUS = 1 << 6,
    NBD_CAP_MULTI_CONN = 1 << 7,
} NbdCaps;

typedef struct NbdExport {
    int64_t size;
    unsigned caps;
    int64_t min_block, max_block; /* bytes */
} NbdExport;

/* ---- Connections */

typedef struct NbdState NbdState;
typedef struct NbdConn NbdConn;
typedef struct NbdRequest NbdRequest;
typedef struct NbdLookup NbdLookup; /* lookup.c */

struct NbdConn {
    RemoteLink link;
    NbdState *s;

    /* -- the thread of link.ctx */
    struct nbd_handle *nbd; /* NULL: neither connected nor on the way */
    NbdExport export;       /* of the present connection */
    int fd;
    unsigned watched;     /* LIBNBD_AIO_DIRECTION_*: what the loop watches fd for */
    Coroutine *connector; /* sleeps in co_connect */
    NbdLookup *lookup;    /* a thread has the handle */
    bool cancelled;       /* disconnect() was called since the attempt began */
    bool is_spare;        /* it does as well without: an attempt takes SPARE_TIMEOUT_NS at most */
    AioTimer patience;    /* of that */
    GQueue running;       /* NbdRequest: sent, not done */
    GQueue done;          /* NbdRequest: done, and asleep */
    uint64_t sent;        /* requests, ever */
    int64_t unread;       /* bytes that at least lie in the socket; 0: to be asked */
    int64_t taken;        /* bytes that libnbd has at most read in this call; 0: not known */
};

struct NbdState {
    Remote remote;
    NbdTarget *target;
    NbdExport export; /* as the node was opened */
    bool opened;      /* `export` is valid */
    NbdConn *conns;
    unsigned n_conns;
    _Atomic bool clear_first; /* the server's answers to reads are no rows of chunks without gaps */
    _Atomic unsigned turn;    /* for threads without a connection of their own */
};

extern const RemoteLinkOps nbd_link_ops;

void nbd_conn_init(NbdConn *conn, NbdState *s, AioContext *ctx);
/*
 * After each call of libnbd's: watch what it wants now, see whether the connection has died in it, and wake
 * the requests that were completed. The connection's thread.
 */
void nbd_conn_after_call(NbdConn *conn);
/* The text of libnbd's last error in this thread, without the name of the call. */
const char *nbd_error_text(void);

/* ---- Looking up names (lookup.c) */

/*
 * Begin to connect `nbd` to the target in a thread of its own, as the resolver blocks. Sleeps until that is
 * done: 0, or -errno with *error (g_free); or until nbd_lookup_abandon(): -ECANCELED, and the handle is the
 * thread's, which closes it.
 */
int coroutine_fn nbd_lookup_co_start(NbdConn *conn, struct nbd_handle *nbd, char **error);
void nbd_lookup_abandon(NbdLookup *lookup);
/* Begin to connect. 0 or -1, as libnbd. */
int nbd_target_start(const NbdTarget *target, struct nbd_handle *nbd);

/* ---- Requests (io.c) */

typedef enum NbdOp { NBD_READ, NBD_WRITE, NBD_ZERO, NBD_TRIM, NBD_FLUSH, NBD_STATUS } NbdOp;

struct NbdRequest {
    NbdOp op;
    uint32_t flags; /* LIBNBD_CMD_FLAG_* */
    int64_t offset, bytes;
    void *buf;

    NbdConn *conn; /* that has it in `running`; else NULL */
    GList entry;   /* of `running` or `done` */
    Coroutine *co; /* NULL unless it sleeps */
    int error;     /* an errno value, or ENOLINK: lost */
    bool done;
    int64_t covered; /* NBD_READ: bytes from the start that came, one chunk after the other */
    bool cleared;    /* NBD_READ: the buffer was zeroed before */
    int64_t extent;  /* NBD_STATUS: length and flags of the first; 0: none came */
    uint32_t extent_flags;
};

/* For servers that can flush; others have nothing to forget that anybody could know of. */
extern const RemoteWriteOps nbd_write_ops;

/* All that are on their way get lost. The connection's thread. */
void nbd_requests_lose(NbdConn *conn);

int coroutine_fn nbd_co_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                               size_t qiov_offset, BlockRequestFlags flags);
int coroutine_fn nbd_co_pwritev(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                size_t qiov_offset, BlockRequestFlags flags);
int coroutine_fn nbd_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                      BlockRequestFlags flags);
int coroutine_fn nbd_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes);
int coroutine_fn nbd_co_flush(BlockNode *node);
int coroutine_fn nbd_co_block_status(BlockNode *node, int64_t offset, int64_t bytes, int64_t *pnum,
                                     BlockChild **child, int64_t *child_offset);

#endif /* BG_BACKENDS_NBD_H */
