/*
 * Driver iscsi: a SCSI disk of an iSCSI target (RFC 7143, SBC-3), on libiscsi's asynchronous interface.
 *
 *   url.c      iscsi:// URLs
 *   open.c     options, opening, closing, the driver's table
 *   session.c  one session: sockets, login, keep-alive, its end
 *   command.c  one SCSI command: sending it, its status, sending it again
 *   sense.c    what sense data mean
 *   probe.c    what the disk is, and whether it is still the same
 *   rw.c       reads, writes, flushes
 *   space.c    discard, zeroes, block status
 *
 * A node has one session, in its home AioContext, and everything here runs in that thread, but for what says
 * otherwise. libiscsi would reconnect by itself, for ever and blocking: it is told not to, and each session
 * is a new context of the library, which is destroyed when the session ends.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BACKENDS_ISCSI_H
#define BG_BACKENDS_ISCSI_H

#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>

#include "backends/protocol/remote/remote.h"

#define ISCSI_DEFAULT_PORT "3260"
#define ISCSI_MAX_LUN      255 /* beyond, the library's way to write a LUN is not that of SAM */

/* Where the disk is, and who asks. Constant after co_open's beginning; owned, but for the passwords. */
typedef struct IscsiTarget {
    char *host; /* a name or an address, without brackets */
    char *port;
    char *name; /* iqn.… */
    unsigned lun;
    char *user;
    const char *password; /* of a secret object, or of the environment */
    char *target_user;    /* whom the target has to prove to be */
    const char *target_password;
    char *initiator;
    enum iscsi_header_digest digest;
    /* The same for every session of the node, see rw.c. */
    uint32_t isid;
    uint16_t isid_qualifier;
} IscsiTarget;

/* What the disk can do, as found when it was opened. */
typedef struct IscsiDisk {
    uint64_t blocks;
    uint32_t block_size;
    char *identity; /* of the logical unit, from VPD page 0x83 or 0x80; NULL: it has none */
    bool write_protected;
    bool fua;                   /* DPO and FUA are honoured */
    bool cache_known, cache_on; /* mode page 8: WCE */
    bool has_sync_cache;
    bool thin;                  /* READ CAPACITY (16): LBPME */
    bool unmapped_reads_zeroes; /* LBPRZ */
    bool has_unmap, has_write_same_16, has_write_same_10;
    bool write_same_16_unmaps, write_same_10_unmaps;
    bool has_lba_status;
    uint64_t max_transfer, max_unmap, max_write_same; /* blocks; 0: not said */
    uint32_t unmap_granularity;                       /* blocks; 0: not said */
} IscsiDisk;

/* One thing that the library was asked for and that a coroutine waits for. On that coroutine's stack. */
typedef struct IscsiOp {
    struct IscsiState *s;
    Coroutine *co;
    int status; /* enum scsi_status; SCSI_STATUS_CANCELLED: the session has ended */
    bool done;
    GList link; /* of state->running, then of state->finished */
} IscsiOp;

typedef struct IscsiState {
    Remote remote;
    RemoteLink link;
    IscsiTarget target;
    IscsiDisk disk;

    /* -- the session; all NULL or false without one */
    struct iscsi_context *iscsi;
    int fd;       /* -1: not watched */
    int watched;  /* POLLIN, POLLOUT */
    bool stopped; /* disconnect was called: the attempt under way ends */
    bool leaving; /* it is closed for good: that the target closes it, too, is no news */
    char *why;    /* why the session of an attempt ended; NULL: it was told to */
    int why_errnum;
    GQueue running;  /* IscsiOp that wait for the library */
    GQueue finished; /* IscsiOp whose coroutines are to be woken */
    bool cancelled;  /* the library gave up commands by itself */
    bool send_soon;  /* send_bh is scheduled */
    AioBh *send_bh;
    AioTimer keepalive;
    bool ping_pending;
    int64_t ping_sent_ns;
    unsigned next_address; /* of those that the host's name stands for: where the next attempt begins */

    bool checking_capacity; /* after a unit attention */
} IscsiState;

/* ---- url.c: any thread */

/* Fill host, port, name, lun and user of *target from a URL. False and *errp, which never has the URL in it.
 */
bool iscsi_parse_url(const char *url, IscsiTarget *target, GError **errp);
/* "host[:port]", "[address]:port": false where it is none. */
bool iscsi_parse_portal(const char *portal, char **host, char **port);

/* ---- session.c */

extern const RemoteLinkOps iscsi_link_ops;

/* Start asking: `op` will be woken when the library has called iscsi_op_callback. */
void iscsi_op_begin(IscsiState *s, IscsiOp *op);
void iscsi_op_callback(struct iscsi_context *iscsi, int status, void *data, void *op);
/* Wait until it is done; returns the status. */
int coroutine_fn iscsi_op_co_wait(IscsiOp *op);
/* The library has something to send. */
void iscsi_send_soon(IscsiState *s);
void iscsi_send_bh(void *state);
/* Before the end: tell the target. In the link's thread. */
void coroutine_fn iscsi_session_co_logout(IscsiState *s);
/* Arm, or stop, the keep-alive timer as the link's state demands. */
void iscsi_keepalive_start(IscsiState *s);
void iscsi_keepalive(void *state);

/* ---- command.c */

typedef enum IscsiAgain {
    ISCSI_NOT_AGAIN,
    ISCSI_AGAIN_NOW,   /* unit attention: the command was not looked at */
    ISCSI_AGAIN_LATER, /* busy */
} IscsiAgain;

typedef struct IscsiRequest IscsiRequest;

/* One SCSI command, made anew for each try. On the stack of who calls iscsi_co_run(). */
struct IscsiRequest {
    /* A new command; NULL: no memory. */
    struct scsi_task *(*make)(const IscsiRequest *r);
    /* Look at the answer to a command that succeeded: 0 or -errno. May be NULL. */
    int (*take)(IscsiRequest *r, struct scsi_task *task);
    void *opaque;
    BlockOp op;      /* for the log of errors */
    bool connecting; /* part of an attempt to connect */
    bool whole;      /* all bytes have to be transferred */

    uint64_t lba;
    uint64_t blocks;
    bool fua, unmap;
    struct scsi_iovec *iov; /* what is read to or written from; the direction is the command's */
    int niov;

    /* -- of the last try */
    IscsiAgain again;
    int key, ascq; /* sense; key -1: none */
};

/*
 * Run a request to its end, over lost connections and everything that asks for another try. 0, what take()
 * returns, or -errno; -ENOTSUP: the target does not know the command.
 */
int coroutine_fn iscsi_co_run(IscsiState *s, IscsiRequest *r);

/* ---- sense.c: any thread */

/* What a CHECK CONDITION means: 0 or -errno. */
int iscsi_sense_error(int key, int ascq, IscsiAgain *again);
const char *iscsi_sense_key_name(int key);

/* ---- probe.c */

/* Log in has happened: look at the disk, or `again`, whether it is the same. 0, -ESTALE, -errno with *errp.
 */
int coroutine_fn iscsi_co_probe(IscsiState *s, bool again, GError **errp);
/* The target says that the capacity has changed. */
void coroutine_fn iscsi_co_capacity_changed(IscsiState *s);

/* ---- rw.c, space.c: of BlockDriver */

int coroutine_fn iscsi_co_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                 size_t qiov_offset, BlockRequestFlags flags);
int coroutine_fn iscsi_co_pwritev(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                  size_t qiov_offset, BlockRequestFlags flags);
int coroutine_fn iscsi_co_flush(BlockNode *node);
/* Write zeroes by one command; `connecting`: as IscsiRequest.connecting. -ENOTSUP where the target has none.
 */
int coroutine_fn iscsi_co_zero(IscsiState *s, int64_t offset, int64_t bytes, BlockRequestFlags flags,
                               bool connecting);
/* For targets with a cache that can be flushed. */
extern const RemoteWriteOps iscsi_write_ops;
int coroutine_fn iscsi_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes);
int coroutine_fn iscsi_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                        BlockRequestFlags flags);
int coroutine_fn iscsi_co_block_status(BlockNode *node, int64_t offset, int64_t bytes, int64_t *pnum,
                                       BlockChild **child, int64_t *child_offset);

#endif /* BG_BACKENDS_ISCSI_H */
