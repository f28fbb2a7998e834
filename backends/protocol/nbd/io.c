/*
 * Requests of driver nbd.
 *
 *   request   | conn | done  | where
 *   ----------+------+-------+-----------------------------------------------------
 *   sent      | set  | false | conn->running; its coroutine sleeps, or is about to
 *   completed | NULL | true  | conn->done where its coroutine sleeps, else nowhere
 *   lost      | NULL | true  | its coroutine is scheduled where it sleeps
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "backends/protocol/nbd/nbd.h"
#include "block/io.h"

#define STATUS_MAX  (1 << 30) /* bytes asked about at once; the protocol has 32 bits */
/* The most that a reply takes besides its data: a structured one's header, and a data chunk's offset. NBD
 * protocol, "Structured reply chunk message". */
#define REPLY_HEAD  20
#define CHUNK_START 8

/* ---- On their way */

static void list_add(NbdRequest *req, NbdConn *conn)
{
    req->conn = conn;
    req->entry.data = req;
    g_queue_push_head_link(&conn->running, &req->entry);
    conn->sent++;
}

static void list_remove(NbdRequest *req)
{
    g_queue_unlink(&req->conn->running, &req->entry);
    req->conn = NULL;
}

/* Inside of a call of libnbd's: nothing may be called, nobody woken. Returns 1: libnbd may forget the
 * command. */
static int completed(void *opaque, int *error)
{
    NbdRequest *req = opaque;
    NbdConn *conn = req->conn;

    if (!conn) { /* lost before */
        return 1;
    }
    req->error = *error;
    req->done = true;
    if (*error == 0 && req->op != NBD_READ && req->op != NBD_STATUS) {
        conn->taken += REPLY_HEAD;
    }
    list_remove(req);
    if (req->co) {
        g_queue_push_tail_link(&conn->done, &req->entry);
    }
    return 1;
}

static int extent_came(void *opaque, const char *context, uint64_t offset, uint32_t *entries,
                       size_t nr_entries, int *error)
{
    NbdRequest *req = opaque;

    if (req->conn && nr_entries >= 2 && strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0) {
        req->extent = entries[0];
        req->extent_flags = entries[1];
    }
    return 0;
}

static int chunk_came(void *opaque, const void *data, size_t count, uint64_t offset, unsigned status,
                      int *error)
{
    NbdRequest *req = opaque;

    if (status != LIBNBD_READ_ERROR && (int64_t)offset == req->offset + req->covered) {
        req->covered += (int64_t)count;
    }
    if (status == LIBNBD_READ_DATA && req->conn) {
        req->conn->taken += REPLY_HEAD + CHUNK_START + (int64_t)count;
    }
    return 0;
}

void nbd_requests_lose(NbdConn *conn)
{
    while (conn->running.head) {
        NbdRequest *req = conn->running.head->data;

        list_remove(req);
        req->error = ENOLINK;
        req->done = true;
        if (req->co) {
            aio_co_schedule(conn->link.ctx, req->co);
        }
    }
}

/* ---- One command */

static int64_t send_command(NbdRequest *req, struct nbd_handle *h)
{
    nbd_completion_callback done = {.callback = completed, .user_data = req};
    uint64_t offset = (uint64_t)req->offset, bytes = (uint64_t)req->bytes;

    switch (req->op) {
    case NBD_READ: {
        nbd_chunk_callback chunk = {.callback = chunk_came, .user_data = req};

        return nbd_aio_pread_structured(h, req->buf, bytes, offset, chunk, done, req->flags);
    }
    case NBD_WRITE:
        return nbd_aio_pwrite(h, req->buf, bytes, offset, done, req->flags);
    case NBD_ZERO:
        return nbd_aio_zero(h, bytes, offset, done, req->flags);
    case NBD_TRIM:
        return nbd_aio_trim(h, bytes, offset, done, req->flags);
    case NBD_STATUS: {
        nbd_extent_callback extent = {.callback = extent_came, .user_data = req};

        return nbd_aio_block_status(h, bytes, offset, extent, done, req->flags);
    }
    case NBD_FLUSH:
    default:
        return nbd_aio_flush(h, done, req->flags);
    }
}

/* libnbd has a handful of errno values for what servers say; and some of its own. */
static int result(NbdConn *conn, int error)
{
    switch (error) {
    case ESHUTDOWN:
        remote_link_lost(&conn->link, ESHUTDOWN, "the server shuts down");
        return REMOTE_LOST;
    case ENOTCONN:
    case ENOLINK:
        return REMOTE_LOST;
    case EPROTO:
        return -EIO;
    default:
        return -error;
    }
}

static void coroutine_fn co_send_and_wait(NbdConn *conn, NbdRequest *req)
{
    req->co = NULL;
    req->done = false;
    req->error = 0;
    req->covered = 0;
    req->extent = 0;
    list_add(req, conn);
    if (send_command(req, conn->nbd) < 0 && !req->done) {
        /* Refused by libnbd, or the connection has died in the call, and then takes all with it. */
        req->error = nbd_aio_get_direction(conn->nbd) ? nbd_get_errno() : ENOLINK;
        req->error = req->error ? req->error : EIO;
        req->done = true;
        list_remove(req);
    }
    nbd_conn_after_call(conn);
    if (!req->done) {
        req->co = coroutine_self();
        coroutine_yield();
    }
}

static bool is_up(NbdConn *conn)
{
    return atomic_load_explicit(&conn->link.state, memory_order_relaxed) == REMOTE_LINK_CONNECTED;
}

static void clear(NbdRequest *req)
{
    memset(req->buf, 0, (size_t)req->bytes);
    req->cleared = true;
}

/*
 * libnbd adds up the chunks that a read is answered with, and does not see whether they overlap. What none
 * covers would be what somebody else has read before. To zero every buffer costs; so only those of servers
 * that do not send from start to end.
 */
static int coroutine_fn try_request(RemoteLink *link, void *opaque)
{
    NbdConn *conn = link->opaque;
    NbdRequest *req = opaque;
    bool read = req->op == NBD_READ;

    if (read && atomic_load_explicit(&conn->s->clear_first, memory_order_relaxed)) {
        clear(req);
    }
    co_send_and_wait(conn, req);
    if (read && req->error == 0 && req->covered != req->bytes && !req->cleared) {
        atomic_store_explicit(&conn->s->clear_first, true, memory_order_relaxed);
        if (!is_up(conn)) {
            return REMOTE_LOST;
        }
        clear(req);
        co_send_and_wait(conn, req);
    }
    return result(conn, req->error);
}

/* ---- Which connection */

static bool is_less_busy(const NbdConn *a, const NbdConn *b)
{
    return a->running.length != b->running.length ? a->running.length < b->running.length : a->sent < b->sent;
}

/* The least busy one of this thread, else any that is up, each in turn. */
static NbdConn *pick(NbdState *s)
{
    AioContext *here = aio_context_current();
    NbdConn *best = NULL, *own = NULL;

    if (s->n_conns == 1) {
        return s->conns;
    }
    for (unsigned i = 0; i < s->n_conns; i++) {
        NbdConn *conn = &s->conns[i];

        if (conn->link.ctx == here) {
            own = conn;
            if (is_up(conn) && (!best || is_less_busy(conn, best))) {
                best = conn;
            }
        }
    }
    if (best) {
        return best;
    }
    unsigned turn = atomic_fetch_add_explicit(&s->turn, 1, memory_order_relaxed);

    for (unsigned i = 0; i < s->n_conns; i++) {
        NbdConn *conn = &s->conns[(turn + i) % s->n_conns];

        if (is_up(conn)) {
            return conn;
        }
    }
    return own ? own : &s->conns[turn % s->n_conns];
}

static int coroutine_fn run(BlockNode *node, NbdRequest *req, RemoteResend resend)
{
    NbdConn *conn = pick(node->opaque);
    AioContext *here = aio_context_current();

    aio_co_reschedule_self(conn->link.ctx);
    int ret = remote_link_co_run(&conn->link, try_request, req, resend);

    aio_co_reschedule_self(here);
    return ret;
}

/* ---- Buffers */

/* Where the whole range lies in one piece of memory; else NULL. */
static void *contiguous(const IoVector *qiov, size_t skip, size_t bytes)
{
    for (int i = 0; i < qiov->niov; i++) {
        const struct iovec *v = &qiov->iov[i];

        if (skip < v->iov_len) {
            return v->iov_len - skip >= bytes ? (char *)v->iov_base + skip : NULL;
        }
        skip -= v->iov_len;
    }
    return NULL;
}

int coroutine_fn nbd_co_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                               size_t qiov_offset, BlockRequestFlags flags)
{
    NbdRequest req = {.op = NBD_READ, .offset = offset, .bytes = bytes};
    g_autofree void *bounce = NULL;

    req.buf = contiguous(qiov, qiov_offset, (size_t)bytes);
    if (!req.buf) {
        req.buf = bounce = g_try_malloc((size_t)bytes);
    }
    if (!req.buf) {
        return -ENOMEM;
    }
    int ret = run(node, &req, REMOTE_RESEND);

    if (ret == 0 && bounce) {
        io_vector_from_buf(qiov, qiov_offset, bounce, (size_t)bytes);
    }
    return ret;
}

static uint32_t fua_flag(BlockRequestFlags flags)
{
    return flags & BLOCK_REQ_FUA ? LIBNBD_CMD_FLAG_FUA : 0;
}

int coroutine_fn nbd_co_pwritev(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                size_t qiov_offset, BlockRequestFlags flags)
{
    NbdRequest req = {.op = NBD_WRITE, .offset = offset, .bytes = bytes, .flags = fua_flag(flags)};
    g_autofree void *bounce = NULL;

    req.buf = contiguous(qiov, qiov_offset, (size_t)bytes);
    if (!req.buf) {
        req.buf = bounce = g_try_malloc((size_t)bytes);
        if (!bounce) {
            return -ENOMEM;
        }
        io_vector_to_buf(qiov, qiov_offset, bounce, (size_t)bytes);
    }
    int ret = run(node, &req, REMOTE_RESEND_IF_BROKEN);

    return ret < 0 || (flags & BLOCK_REQ_FUA)
               ? ret
               : remote_co_wrote(&((NbdState *)node->opaque)->remote, offset, bytes, qiov, qiov_offset);
}

/* ---- Without data */

static uint32_t hole_flag(BlockRequestFlags flags)
{
    return flags & BLOCK_REQ_MAY_UNMAP ? 0 : LIBNBD_CMD_FLAG_NO_HOLE;
}

int coroutine_fn nbd_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes, BlockRequestFlags flags)
{
    NbdState *s = node->opaque;
    NbdRequest req = {
        .op = NBD_ZERO, .offset = offset, .bytes = bytes, .flags = fua_flag(flags) | hole_flag(flags)};
    unsigned needed = NBD_CAP_ZERO;

    /* Where a hole will do, the server may take its time: nothing goes over the wire. */
    if (flags & BLOCK_REQ_NO_FALLBACK && !(flags & BLOCK_REQ_MAY_UNMAP)) {
        req.flags |= LIBNBD_CMD_FLAG_FAST_ZERO;
        needed |= NBD_CAP_FAST_ZERO;
    }
    if (needed & ~s->export.caps) {
        return -ENOTSUP;
    }
    int ret = run(node, &req, REMOTE_RESEND_IF_BROKEN);

    return ret < 0 || (flags & BLOCK_REQ_FUA) ? ret : remote_co_zeroed(&s->remote, offset, bytes, flags);
}

int coroutine_fn nbd_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    NbdState *s = node->opaque;
    NbdRequest req = {.op = NBD_TRIM, .offset = offset, .bytes = bytes};

    if (!(s->export.caps & NBD_CAP_TRIM)) {
        return -ENOTSUP;
    }
    int ret = run(node, &req, REMOTE_RESEND_IF_BROKEN);

    if (ret == 0) {
        remote_touched(&s->remote);
    }
    return ret;
}

/*
 * On one connection. That covers the writes of all where the server promises multi-conn; others have one
 * connection only.
 */
static int coroutine_fn co_flush_server(BlockNode *node)
{
    NbdRequest req = {.op = NBD_FLUSH};

    return run(node, &req, REMOTE_RESEND);
}

int coroutine_fn nbd_co_flush(BlockNode *node)
{
    NbdState *s = node->opaque;

    return s->export.caps & NBD_CAP_FLUSH ? remote_co_sync(&s->remote) : 0;
}

static int coroutine_fn co_resend(RemoteLink *link, int64_t offset, int64_t bytes, const void *data,
                                  BlockRequestFlags flags)
{
    NbdRequest req = {
        .op = data ? NBD_WRITE : NBD_ZERO, .offset = offset, .bytes = bytes, .buf = (void *)data};

    req.flags = data ? 0 : hole_flag(flags);
    return try_request(link, &req);
}

const RemoteWriteOps nbd_write_ops = {.co_flush = co_flush_server, .co_resend = co_resend};

/* As much of an extent as may be reported: whole blocks. A block that is a hole in part only is data. */
static int64_t whole_blocks(const BlockNode *node, int64_t found, int64_t bytes, bool *hole)
{
    int64_t align = node->limits.request_alignment;

    if (found >= bytes) {
        return bytes;
    }
    if (*hole && found >= align) {
        return found / align * align;
    }
    *hole = false;
    return MIN((found + align - 1) / align * align, bytes);
}

int coroutine_fn nbd_co_block_status(BlockNode *node, int64_t offset, int64_t bytes, int64_t *pnum,
                                     BlockChild **child, int64_t *child_offset)
{
    NbdState *s = node->opaque;
    NbdRequest req = {.op = NBD_STATUS,
                      .offset = offset,
                      .bytes = MIN(bytes, STATUS_MAX),
                      .flags = LIBNBD_CMD_FLAG_REQ_ONE};

    *pnum = bytes;
    if (!(s->export.caps & NBD_CAP_STATUS)) {
        return BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED;
    }
    int ret = run(node, &req, REMOTE_RESEND);

    if (ret < 0) {
        return ret;
    }
    bool zero = req.extent > 0 && req.extent_flags & LIBNBD_STATE_ZERO;

    *pnum = req.extent > 0 ? whole_blocks(node, req.extent, req.bytes, &zero) : req.bytes;
    return BLOCK_STATUS_ALLOCATED | (zero ? BLOCK_STATUS_ZERO : BLOCK_STATUS_DATA);
}
