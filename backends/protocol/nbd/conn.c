/*
 * One connection of driver nbd: connecting, its descriptor in the loop, and its end.
 *
 *   nbd    | lookup | connector | state
 *   -------+--------+-----------+--------------------------------------------------------
 *   NULL   | NULL   | NULL      | not connected
 *   NULL   | set    | NULL      | a thread looks up the server's name; it has the handle
 *   handle | NULL   | set       | connecting, or agreeing on TLS and the export
 *   handle | NULL   | NULL      | connected
 *
 * disconnect() leads from each to the first; what sleeps is woken and finds `nbd` NULL.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "backends/protocol/nbd/nbd.h"
#include "util/error.h"
#include "util/log.h"

#define MAX_REPLIES      64 /* handled before the loop looks at others again */
#define PAYLOAD_MAX      (32 * 1024 * 1024)
#define SPARE_TIMEOUT_NS INT64_C(1000000000)

const char *nbd_error_text(void)
{
    const char *text = nbd_get_error(), *colon;

    if (!text) {
        return "the server closed the connection";
    }
    while (g_str_has_prefix(text, "nbd_") && (colon = strstr(text, ": "))) {
        text = colon + 2;
    }
    return text;
}

/* ---- The descriptor */

static void on_readable(void *opaque);
static void on_writable(void *opaque);

static void watch(NbdConn *conn, unsigned direction)
{
    if (direction != conn->watched) {
        aio_set_fd_handler(conn->link.ctx, conn->fd,
                           direction & LIBNBD_AIO_DIRECTION_READ ? on_readable : NULL,
                           direction & LIBNBD_AIO_DIRECTION_WRITE ? on_writable : NULL, conn);
        conn->watched = direction;
    }
}

static void wake_done(NbdConn *conn)
{
    GList *entry;

    /* Outside of coroutines each runs at once, and may add others, or close the connection. */
    while ((entry = g_queue_pop_head_link(&conn->done))) {
        NbdRequest *req = entry->data;

        aio_co_wake(req->co);
    }
}

void nbd_conn_after_call(NbdConn *conn)
{
    if (conn->nbd) {
        unsigned direction = nbd_aio_get_direction(conn->nbd);

        if (bg_unlikely(direction == 0)) { /* dead or closed. Before anything is woken, which would go on. */
            int errnum = nbd_aio_is_dead(conn->nbd) ? nbd_get_errno() : 0;
            g_autofree char *cause = g_strdup(errnum ? nbd_error_text() : "the server closed the connection");

            remote_link_lost(&conn->link, errnum && errnum != ETIMEDOUT ? errnum : ECONNRESET, cause);
        } else {
            watch(conn, direction);
        }
    }
    wake_done(conn);
}

/*
 * libnbd may be told that there is something to read only where that is so: else it waits for a reply, and
 * sends nothing meanwhile. An event may come late, when the other direction's handler has read all.
 */
static bool is_readable(NbdConn *conn)
{
    int n = 0;
    char byte;

    if (!(nbd_aio_get_direction(conn->nbd) & LIBNBD_AIO_DIRECTION_READ)) {
        return false;
    }
    if (conn->unread > 0) {
        return true;
    }
    if (ioctl(conn->fd, FIONREAD, &n) == 0 && n > 0) {
        conn->unread = n;
        return true;
    }
    return recv(conn->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0 ||
           errno != EAGAIN; /* the end, or an error */
}

/* One reply, or a chunk of one, or a part of that. */
static int receive(NbdConn *conn)
{
    conn->taken = 0;
    int ret = nbd_aio_notify_read(conn->nbd);
    bool known = conn->taken > 0 && !conn->s->target->creds; /* with TLS the bytes of the socket are others */

    conn->unread = known ? MAX(conn->unread - conn->taken, 0) : 0;
    return ret;
}

/* Several replies, before they are handed out: their requests then go on together. */
static void on_readable(void *opaque)
{
    NbdConn *conn = opaque;

    conn->unread = 0;
    for (unsigned i = 0; i < MAX_REPLIES && is_readable(conn) && receive(conn) == 0; i++) {
        if (g_queue_is_empty(&conn->running)) {
            break;
        }
    }
    nbd_conn_after_call(conn);
}

static void on_writable(void *opaque)
{
    NbdConn *conn = opaque;

    if (nbd_aio_get_direction(conn->nbd) & LIBNBD_AIO_DIRECTION_WRITE) {
        nbd_aio_notify_write(conn->nbd);
    }
    nbd_conn_after_call(conn);
}

/* ---- Connecting */

static bool set_tls(struct nbd_handle *nbd, const BlockTlsCreds *creds)
{
    g_autofree char *keys = creds->psk ? g_build_filename(creds->dir, "keys.psk", NULL) : NULL;

    return nbd_set_tls(nbd, LIBNBD_TLS_REQUIRE) == 0 &&
           nbd_set_tls_verify_peer(nbd, creds->verify_peer) == 0 &&
           (!creds->username || nbd_set_tls_username(nbd, creds->username) == 0) &&
           (creds->psk   ? nbd_set_tls_psk_file(nbd, keys) == 0
            : creds->dir ? nbd_set_tls_certificates(nbd, creds->dir) == 0
                         : true);
}

/* A handle, ready to connect; NULL: libnbd's error. */
static struct nbd_handle *new_handle(const NbdTarget *target)
{
    struct nbd_handle *nbd = nbd_create();

    if (nbd && nbd_set_debug(nbd, false) == 0 && nbd_set_uri_allow_local_file(nbd, false) == 0 &&
        nbd_set_pread_initialize(nbd, false) == 0 &&
        nbd_add_meta_context(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0 &&
        (!target->creds || set_tls(nbd, target->creds)) &&
        (!target->export_name || nbd_set_export_name(nbd, target->export_name) == 0)) {
        return nbd;
    }
    nbd_close(nbd);
    return NULL;
}

/* libnbd may take another socket, with the same number even, where a name has several addresses: so the old
 * one is forgotten before each step. */
static void on_connect_event(void *opaque);

static void watch_connect(NbdConn *conn)
{
    unsigned direction = nbd_aio_get_direction(conn->nbd);

    conn->fd = nbd_aio_get_fd(conn->nbd);
    conn->watched = direction;
    if (conn->fd >= 0 && direction) {
        aio_set_fd_handler(conn->link.ctx, conn->fd,
                           direction & LIBNBD_AIO_DIRECTION_READ ? on_connect_event : NULL,
                           direction & LIBNBD_AIO_DIRECTION_WRITE ? on_connect_event : NULL, conn);
    }
}

static void unwatch(NbdConn *conn)
{
    if (conn->watched && conn->fd >= 0) {
        aio_set_fd_handler(conn->link.ctx, conn->fd, NULL, NULL, NULL);
    }
    conn->watched = 0;
}

static bool is_connecting(const NbdConn *conn)
{
    return nbd_aio_is_connecting(conn->nbd) > 0;
}

static void on_connect_event(void *opaque)
{
    NbdConn *conn = opaque;
    unsigned direction = nbd_aio_get_direction(conn->nbd);

    unwatch(conn);
    if (direction & LIBNBD_AIO_DIRECTION_READ) {
        nbd_aio_notify_read(conn->nbd);
    } else {
        nbd_aio_notify_write(conn->nbd);
    }
    if (is_connecting(conn)) {
        watch_connect(conn);
    } else {
        aio_co_wake(g_steal_pointer(&conn->connector));
    }
}

static int ended_error(GError **errp)
{
    return bg_error_set(errp, ECONNABORTED, "the attempt was ended");
}

static int connect_error(GError **errp)
{
    int errnum = nbd_get_errno();

    return bg_error_set(errp, errnum ? errnum : ECONNABORTED, "%s", nbd_error_text());
}

/* The handle is connected to something, or on its way: 0. Else it is closed. */
static int coroutine_fn co_start(NbdConn *conn, GError **errp)
{
    struct nbd_handle *nbd = new_handle(conn->s->target);
    g_autofree char *error = NULL;

    if (!nbd) {
        return connect_error(errp);
    }
    if (!conn->s->target->lookup) {
        conn->nbd = nbd;
        return nbd_target_start(conn->s->target, nbd) < 0 ? connect_error(errp) : 0;
    }
    int ret = nbd_lookup_co_start(conn, nbd, &error);

    if (ret == -ECANCELED) {
        return ended_error(errp);
    }
    conn->nbd = nbd;
    if (conn->cancelled) { /* after the thread had ended */
        return ended_error(errp);
    }
    return ret < 0 ? bg_error_set(errp, -ret, "%s", error) : 0;
}

/* ---- What the server offers */

/* libnbd answers 1, 0, or -1 where it cannot tell. */
static unsigned cap(int answer, NbdCaps flag)
{
    return answer > 0 ? flag : 0;
}

/*
 * Without a word of the server's on block sizes, those of old take whole sectors only. One that has an odd
 * length, or tells of holes, takes everything.
 */
static int64_t guess_min_block(const NbdExport *e)
{
    return e->caps & NBD_CAP_STATUS || e->size % 512 ? 1 : 512;
}

static void ask_export(struct nbd_handle *h, NbdExport *e)
{
    e->size = nbd_get_size(h);
    e->caps = cap(nbd_is_read_only(h) == 0, NBD_CAP_WRITE) | cap(nbd_can_flush(h), NBD_CAP_FLUSH) |
              cap(nbd_can_fua(h), NBD_CAP_FUA) | cap(nbd_can_zero(h), NBD_CAP_ZERO) |
              cap(nbd_can_fast_zero(h), NBD_CAP_FAST_ZERO) | cap(nbd_can_trim(h), NBD_CAP_TRIM) |
              cap(nbd_can_multi_conn(h), NBD_CAP_MULTI_CONN) |
              cap(nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION), NBD_CAP_STATUS);
    int64_t min = nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM);
    int64_t max = nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM);

    e->min_block = min > 0 ? min : guess_min_block(e);
    e->max_block = max > 0 ? MIN(max, PAYLOAD_MAX) : PAYLOAD_MAX;
}

static int check_export(const NbdExport *e, GError **errp)
{
    if (e->size < 0) {
        return bg_error_set(errp, EOVERFLOW, "the server tells an impossible length");
    }
    if (e->size > BLOCK_MAX_LENGTH) {
        return bg_error_set(errp, EFBIG,
                            "the export is %" PRId64 " bytes long; the longest possible are %" PRId64,
                            e->size, (int64_t)BLOCK_MAX_LENGTH);
    }
    if ((e->min_block & (e->min_block - 1)) || e->min_block > 65536 || e->max_block < e->min_block) {
        return bg_error_set(errp, EPROTO,
                            "the server asks for blocks of %" PRId64 " to %" PRId64 " bytes, which cannot be",
                            e->min_block, e->max_block);
    }
    if (e->size % e->min_block) {
        return bg_error_set(errp, EPROTO,
                            "the export's length %" PRId64
                            " is not a multiple of the server's block size %" PRId64,
                            e->size, e->min_block);
    }
    return 0;
}

/* Is it what the node was opened with? */
static int compare_export(const NbdState *s, const NbdExport *e, GError **errp)
{
    unsigned needed = s->export.caps & (NBD_CAP_WRITE | NBD_CAP_FLUSH | NBD_CAP_FUA);

    if (e->size != s->export.size) {
        return bg_error_set(errp, ESTALE, "the export is %" PRId64 " bytes long now, and was %" PRId64,
                            e->size, s->export.size);
    }
    if (s->remote.node->read_only) {
        needed &= ~(unsigned)NBD_CAP_WRITE;
    }
    if (needed & ~e->caps) {
        return bg_error_set(errp, ESTALE, "the export cannot be %s any more",
                            needed & ~e->caps & NBD_CAP_WRITE ? "written" : "flushed as before");
    }
    if (e->min_block > s->export.min_block || e->max_block < s->export.max_block) {
        return bg_error_set(errp, ESTALE, "the server asks for other block sizes now");
    }
    return 0;
}

static int finish_connect(NbdConn *conn, GError **errp)
{
    if (!nbd_aio_is_ready(conn->nbd)) {
        return connect_error(errp);
    }
    ask_export(conn->nbd, &conn->export);
    int ret = check_export(&conn->export, errp);

    if (ret == 0 && conn->s->opened) {
        ret = compare_export(conn->s, &conn->export, errp);
    }
    if (ret == 0) {
        conn->fd = nbd_aio_get_fd(conn->nbd);
        watch(conn, nbd_aio_get_direction(conn->nbd));
    }
    return ret;
}

static void disconnect(RemoteLink *link);

static int coroutine_fn co_connect_and_ask(NbdConn *conn, GError **errp)
{
    int ret = co_start(conn, errp);

    if (ret == 0 && is_connecting(conn)) {
        conn->connector = coroutine_self();
        watch_connect(conn);
        coroutine_yield();
    }
    if (ret == 0 && !conn->nbd) {
        return ended_error(errp);
    }
    return ret < 0 ? ret : finish_connect(conn, errp);
}

static void patience_ended(void *opaque)
{
    NbdConn *conn = opaque;

    disconnect(&conn->link);
}

static int coroutine_fn conn_co_connect(RemoteLink *link, bool again, GError **errp)
{
    NbdConn *conn = link->opaque;

    conn->cancelled = false;
    if (conn->is_spare) {
        aio_timer_init(&conn->patience, link->ctx, patience_ended, conn);
        aio_timer_mod(&conn->patience, aio_clock_ns() + SPARE_TIMEOUT_NS);
    }
    int ret = co_connect_and_ask(conn, errp);

    if (conn->is_spare) {
        aio_timer_del(&conn->patience);
    }
    if (ret < 0) {
        disconnect(link);
    }
    return ret;
}

/* ---- The end, and other threads */

static void disconnect(RemoteLink *link)
{
    NbdConn *conn = link->opaque;
    struct nbd_handle *nbd = g_steal_pointer(&conn->nbd);

    conn->cancelled = true;
    if (conn->lookup) {
        nbd_lookup_abandon(conn->lookup);
    }
    if (!nbd) {
        return;
    }
    unwatch(conn);
    nbd_requests_lose(conn);
    if (nbd_aio_is_ready(nbd) > 0) {
        nbd_aio_disconnect(nbd, 0); /* says goodbye where the socket takes it at once */
    }
    nbd_close(nbd);
    if (conn->connector) {
        aio_co_schedule(link->ctx, g_steal_pointer(&conn->connector));
    }
}

static void conn_detach(RemoteLink *link)
{
    unwatch(link->opaque);
}

static void conn_attach(RemoteLink *link)
{
    NbdConn *conn = link->opaque;

    watch(conn, nbd_aio_get_direction(conn->nbd));
}

const RemoteLinkOps nbd_link_ops = {
    .co_connect = conn_co_connect,
    .disconnect = disconnect,
    .detach = conn_detach,
    .attach = conn_attach,
};

void nbd_conn_init(NbdConn *conn, NbdState *s, AioContext *ctx)
{
    *conn = (NbdConn){.s = s, .fd = -1};
    g_queue_init(&conn->running);
    g_queue_init(&conn->done);
    remote_link_init(&conn->link, &s->remote, &nbd_link_ops, conn, ctx);
}
