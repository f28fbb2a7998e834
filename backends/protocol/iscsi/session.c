/*
 * One iSCSI session: name look-up, TCP connection, login, keep-alive, its end.
 *
 *   state of the session      | s->iscsi | commands            | left by
 *   --------------------------+----------+---------------------+----------------------------------------------
 *   none                      | NULL     | none                | an attempt -> connecting
 *   connecting, logging in    | set      | the login only      | login -> open, failure or disconnect -> none
 *   open                      | set      | sent                | failure or disconnect -> none
 *
 * The library calls back from inside iscsi_service() or iscsi_destroy_context(). A callback only moves its
 * IscsiOp to `finished`; coroutines are woken after the library has returned, so that one of them may end
 * the session.
 *
 * The library notices the end of a connection late: without automatic reconnection iscsi_service() cancels
 * its commands, returns success and leaves the descriptor readable for ever. So after a call in which
 * nothing came to an end the socket is looked at.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "aio/thread-pool.h"
#include "backends/protocol/iscsi/iscsi.h"
#include "util/error.h"

#define NS_PER_S           INT64_C(1000000000)
#define KEEPALIVE_NS       (5 * NS_PER_S)
#define KEEPALIVE_LIMIT_NS (15 * NS_PER_S) /* to the answer, where there is no deadline */
#define LOGOUT_NS          NS_PER_S
#define MAX_REDIRECTIONS   4

/* ---- What waits for the library */

void iscsi_op_begin(IscsiState *s, IscsiOp *op)
{
    *op = (IscsiOp){.s = s, .co = coroutine_self()};
    op->link.data = op;
    g_queue_push_tail_link(&s->running, &op->link);
}

static void op_finish(IscsiOp *op, int status)
{
    op->done = true;
    op->status = status;
    g_queue_unlink(&op->s->running, &op->link);
    g_queue_push_tail_link(&op->s->finished, &op->link);
}

void iscsi_op_callback(struct iscsi_context *iscsi, int status, void *data, void *opaque)
{
    IscsiOp *op = opaque;
    IscsiState *s = op->s;

    if (op->done) {
        return;
    }
    if (status == SCSI_STATUS_CANCELLED) {
        s->cancelled = true; /* by the library: the connection has ended */
    } else if (status == SCSI_STATUS_ERROR && s->link.state != REMOTE_LINK_CONNECTED && !s->why) {
        s->why = g_strdup(iscsi_get_error(iscsi)); /* what comes after it in the library's text says less */
        s->why_errnum = ECONNREFUSED;
    }
    op_finish(op, status);
}

int coroutine_fn iscsi_op_co_wait(IscsiOp *op)
{
    coroutine_yield();
    return op->status;
}

static IscsiOp *next_finished(IscsiState *s)
{
    GList *link = g_queue_pop_head_link(&s->finished);

    return link ? link->data : NULL;
}

static void wake_finished(IscsiState *s)
{
    IscsiOp *op;

    while ((op = next_finished(s))) {
        aio_co_wake(op->co);
    }
}

/* ---- The end of a session */

static void unwatch(IscsiState *s)
{
    if (s->fd >= 0) {
        aio_set_fd_handler(s->link.ctx, s->fd, NULL, NULL, NULL);
        s->fd = -1;
        s->watched = 0;
    }
}

/* Everything that runs ends with SCSI_STATUS_CANCELLED. */
static void drop(IscsiState *s)
{
    struct iscsi_context *iscsi = s->iscsi;
    IscsiOp *op;

    if (!iscsi) {
        return;
    }
    unwatch(s);
    aio_timer_del(&s->keepalive);
    s->ping_pending = false;
    s->iscsi = NULL;
    while (!g_queue_is_empty(&s->running)) {
        op_finish(s->running.head->data, SCSI_STATUS_CANCELLED);
    }
    iscsi_destroy_context(iscsi); /* calls back, which finds all done */
    while ((op = next_finished(s))) {
        aio_co_schedule(s->link.ctx, op->co);
    }
}

static void iscsi_disconnect_link(RemoteLink *link)
{
    IscsiState *s = link->opaque;

    s->stopped = true;
    drop(s);
}

/* The session has failed. */
static void session_failed(IscsiState *s, int errnum, const char *cause)
{
    if (s->link.state == REMOTE_LINK_CONNECTED && !s->leaving) {
        remote_link_lost(&s->link, errnum, cause);
        return;
    }
    if (!s->why) {
        s->why = g_strdup(cause);
        s->why_errnum = errnum;
    }
    drop(s);
}

/* ---- The socket */

static void update_watch(IscsiState *s);

/* Why the connection has ended, which the library may not have told; NULL: it has not. */
static const char *why_closed(IscsiState *s)
{
    char byte;
    ssize_t n = recv(s->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

    if (n == 0) {
        return "the target closed the connection";
    }
    return n > 0 || errno == EAGAIN || errno == EINTR || errno == ENOTCONN ? NULL : g_strerror(errno);
}

/* The library's own text may be that of an earlier failure. */
static void failed_in_library(IscsiState *s)
{
    const char *closed = why_closed(s);
    g_autofree char *cause = g_strdup(closed ? closed : iscsi_get_error(s->iscsi));

    g_strchomp(g_strdelimit(cause, "\n", ' '));
    session_failed(s, ECONNRESET, *cause ? cause : "the library gave up the session");
}

/* False: the session is gone. */
static bool call_library(IscsiState *s, int events)
{
    s->cancelled = false;
    if (iscsi_service(s->iscsi, events) < 0 || s->cancelled) {
        failed_in_library(s);
        return false;
    }
    return true;
}

static bool has_output(const IscsiState *s)
{
    return s->iscsi && (iscsi_which_events(s->iscsi) & POLLOUT);
}

/* Send what there is, as far as the socket takes it. */
static void send_now(IscsiState *s)
{
    if (has_output(s) && call_library(s, POLLOUT)) {
        update_watch(s);
    }
}

static void serve(IscsiState *s, int events)
{
    bool alive = call_library(s, events);

    if (alive && g_queue_is_empty(&s->finished) && (events & POLLIN) && why_closed(s)) {
        failed_in_library(s);
        return;
    }
    wake_finished(s);
    /* A coroutine may have ended the session; and what the others asked for goes out at once. */
    send_now(s);
    if (s->iscsi) {
        update_watch(s);
    }
}

static void readable(void *opaque)
{
    serve(opaque, POLLIN);
}

static void writable(void *opaque)
{
    serve(opaque, POLLOUT);
}

static void update_watch(IscsiState *s)
{
    int events = iscsi_which_events(s->iscsi);

    if (!(events & (POLLIN | POLLOUT))) {
        failed_in_library(s); /* it means to reconnect later */
        return;
    }
    if (events != s->watched) {
        s->watched = events;
        aio_set_fd_handler(s->link.ctx, s->fd, events & POLLIN ? readable : NULL,
                           events & POLLOUT ? writable : NULL, s);
    }
}

void iscsi_send_bh(void *opaque)
{
    IscsiState *s = opaque;

    s->send_soon = false;
    send_now(s);
}

void iscsi_send_soon(IscsiState *s)
{
    if (!s->send_soon) {
        s->send_soon = true;
        aio_bh_schedule(s->send_bh);
    }
}

/* ---- Keep-alive */

static void pong(struct iscsi_context *iscsi, int status, void *data, void *opaque)
{
    IscsiState *s = opaque;

    if (status == SCSI_STATUS_GOOD) {
        s->ping_pending = false;
    } else {
        s->cancelled = true;
    }
}

static int64_t ping_limit_ns(const IscsiState *s)
{
    int64_t timeout_ns = s->remote.options.timeout_ns;

    return timeout_ns ? timeout_ns : KEEPALIVE_LIMIT_NS;
}

void iscsi_keepalive(void *opaque)
{
    IscsiState *s = opaque;
    int64_t now_ns = aio_clock_ns();

    if (s->ping_pending && now_ns - s->ping_sent_ns >= ping_limit_ns(s)) {
        remote_link_lost(&s->link, ETIMEDOUT, "the target does not answer pings");
        return;
    }
    if (!s->ping_pending && now_ns - s->ping_sent_ns < KEEPALIVE_NS) {
        aio_timer_mod(&s->keepalive, s->ping_sent_ns + KEEPALIVE_NS);
        return;
    }
    if (!s->ping_pending && iscsi_nop_out_async(s->iscsi, pong, NULL, 0, s) == 0) {
        s->ping_pending = true;
        s->ping_sent_ns = now_ns;
        iscsi_send_soon(s);
    }
    int64_t limit_ns = ping_limit_ns(s);

    aio_timer_mod(&s->keepalive, now_ns + MIN(KEEPALIVE_NS, limit_ns));
}

void iscsi_keepalive_start(IscsiState *s)
{
    if (s->iscsi && !s->link.quiet) {
        aio_timer_mod(&s->keepalive, aio_clock_ns() + KEEPALIVE_NS);
    }
}

/* ---- Looking up the host */

typedef struct LookUp {
    const char *host, *port;
    GPtrArray *addresses; /* "1.2.3.4:3260", "[::1]:3260" */
    int error;            /* of getaddrinfo */
} LookUp;

static void add_address(GPtrArray *addresses, const struct addrinfo *ai)
{
    char host[INET6_ADDRSTRLEN + 32], port[8];

    if (getnameinfo(ai->ai_addr, ai->ai_addrlen, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) == 0) {
        const char *form = ai->ai_family == AF_INET6 ? "[%s]:%s" : "%s:%s";

        g_ptr_array_add(addresses, g_strdup_printf(form, host, port));
    }
}

static bool look_up(LookUp *l, int flags)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = flags}, *list;

    l->error = getaddrinfo(l->host, l->port, &hints, &list);
    if (l->error == 0) {
        for (const struct addrinfo *ai = list; ai; ai = ai->ai_next) {
            add_address(l->addresses, ai);
        }
        freeaddrinfo(list);
    }
    return l->addresses->len > 0;
}

static int look_up_in_thread(void *opaque)
{
    return look_up(opaque, AI_NUMERICSERV);
}

/* The library would look up by itself, and block: it gets a number. */
static int coroutine_fn co_look_up(LookUp *l, GError **errp)
{
    if (look_up(l, AI_NUMERICHOST | AI_NUMERICSERV) || thread_pool_co_run(look_up_in_thread, l)) {
        return 0;
    }
    return bg_error_set(errp, EHOSTUNREACH, "cannot find the address of '%s': %s", l->host,
                        gai_strerror(l->error));
}

/* ---- Connecting and logging in */

static struct iscsi_context *new_context(const IscsiTarget *t)
{
    struct iscsi_context *iscsi = iscsi_create_context(t->initiator);

    g_assert(iscsi); /* else there is no memory */
    iscsi_set_noautoreconnect(iscsi, 1);
    iscsi_set_isid_random(iscsi, t->isid, t->isid_qualifier);
    iscsi_set_targetname(iscsi, t->name);
    iscsi_set_session_type(iscsi, ISCSI_SESSION_NORMAL);
    iscsi_set_header_digest(iscsi, t->digest);
    if (t->user) {
        iscsi_set_initiator_username_pwd(iscsi, t->user, t->password);
    }
    if (t->target_user) {
        iscsi_set_target_username_pwd(iscsi, t->target_user, t->target_password);
    }
    return iscsi;
}

/* After an op that did not end well. */
static int attempt_failed(IscsiState *s, GError **errp)
{
    if (s->why) {
        return bg_error_set(errp, s->why_errnum, "%s", s->why);
    }
    if (!s->iscsi) {
        return bg_error_set(errp, ECANCELED, "the attempt was given up");
    }
    const char *text = iscsi_get_error(s->iscsi);

    return bg_error_set(errp, ECONNREFUSED, "%s", text && *text ? text : "the target refused the login");
}

static int coroutine_fn co_connect_to(IscsiState *s, const char *portal, GError **errp)
{
    IscsiOp op;

    s->iscsi = new_context(&s->target);
    iscsi_op_begin(s, &op);
    if (iscsi_connect_async(s->iscsi, portal, iscsi_op_callback, &op) != 0) {
        g_queue_unlink(&s->running, &op.link);
        return attempt_failed(s, errp);
    }
    s->fd = iscsi_get_fd(s->iscsi);
    update_watch(s);
    return iscsi_op_co_wait(&op) == SCSI_STATUS_GOOD ? 0 : attempt_failed(s, errp);
}

/* 0; 1: *portal is where to go instead (g_free); -errno. */
static int coroutine_fn co_log_in(IscsiState *s, char **portal, GError **errp)
{
    IscsiOp op;

    iscsi_op_begin(s, &op);
    if (iscsi_login_async(s->iscsi, iscsi_op_callback, &op) != 0) {
        g_queue_unlink(&s->running, &op.link);
        return attempt_failed(s, errp);
    }
    iscsi_send_soon(s);
    int status = iscsi_op_co_wait(&op);

    if (status == SCSI_STATUS_GOOD) {
        return 0;
    }
    if (status == SCSI_STATUS_REDIRECT && s->iscsi) {
        *portal = g_strdup(iscsi_get_target_address(s->iscsi));
        return 1;
    }
    return attempt_failed(s, errp);
}

/* Try each address in turn, beginning with the one that was good, or after the one that did not answer. */
static int coroutine_fn co_connect_to_one(IscsiState *s, const GPtrArray *addresses, GError **errp)
{
    unsigned first = s->next_address;

    for (unsigned i = 0;; i++) {
        unsigned index = (first + i) % addresses->len;
        int ret = co_connect_to(s, addresses->pdata[index], errp);

        s->next_address = ret == 0 ? index : index + 1;
        if (ret == 0 || s->stopped || i + 1 == addresses->len) {
            return ret;
        }
        drop(s);
        g_clear_error(errp);
        g_clear_pointer(&s->why, g_free);
    }
}

/* One connection to host:port. As co_log_in. */
static int coroutine_fn co_try(IscsiState *s, const char *host, const char *port, char **redirection,
                               GError **errp)
{
    g_autoptr(GPtrArray) addresses = g_ptr_array_new_with_free_func(g_free);
    LookUp l = {.host = host, .port = port, .addresses = addresses};
    int ret = co_look_up(&l, errp);

    if (ret == 0 && s->stopped) {
        return bg_error_set(errp, ECANCELED, "the attempt was given up");
    }
    if (ret == 0) {
        ret = co_connect_to_one(s, addresses, errp);
    }
    return ret == 0 ? co_log_in(s, redirection, errp) : ret;
}

static int coroutine_fn co_open_session(IscsiState *s, GError **errp)
{
    g_autofree char *host = g_strdup(s->target.host);
    g_autofree char *port = g_strdup(s->target.port);

    for (int i = 0; i <= MAX_REDIRECTIONS; i++) {
        g_autofree char *portal = NULL;
        int ret = co_try(s, host, port, &portal, errp);

        if (ret <= 0) {
            return ret;
        }
        drop(s);
        g_strdelimit(portal, ",", '\0'); /* a portal group's tag may follow */
        g_clear_pointer(&host, g_free);
        g_clear_pointer(&port, g_free);
        if (!iscsi_parse_portal(portal, &host, &port)) {
            return bg_error_set(errp, EPROTO, "the target points to '%s', which is no address", portal);
        }
    }
    return bg_error_set(errp, ELOOP, "the target points to others for ever");
}

static int coroutine_fn iscsi_co_connect(RemoteLink *link, bool again, GError **errp)
{
    IscsiState *s = link->opaque;

    s->stopped = false;
    g_clear_pointer(&s->why, g_free);
    int ret = co_open_session(s, errp);

    if (ret == 0) {
        ret = iscsi_co_probe(s, again, errp);
    }
    if (ret < 0) {
        drop(s);
        return ret;
    }
    iscsi_keepalive_start(s);
    return 0;
}

static void logout_timeout(void *opaque)
{
    drop(opaque);
}

void coroutine_fn iscsi_session_co_logout(IscsiState *s)
{
    AioTimer timer;
    IscsiOp op;

    if (s->link.state != REMOTE_LINK_CONNECTED || !s->iscsi) {
        return;
    }
    aio_timer_init(&timer, s->link.ctx, logout_timeout, s);
    aio_timer_mod(&timer, aio_clock_ns() + LOGOUT_NS);
    s->leaving = true;
    iscsi_op_begin(s, &op);
    if (iscsi_logout_async(s->iscsi, iscsi_op_callback, &op) == 0) {
        iscsi_send_soon(s);
        iscsi_op_co_wait(&op);
    } else {
        g_queue_unlink(&s->running, &op.link);
    }
    aio_timer_del(&timer);
    drop(s);
}

/* ---- To another thread */

static void iscsi_detach(RemoteLink *link)
{
    IscsiState *s = link->opaque;

    unwatch(s);
    aio_timer_del(&s->keepalive);
}

static void iscsi_attach(RemoteLink *link)
{
    IscsiState *s = link->opaque;

    s->fd = iscsi_get_fd(s->iscsi);
    update_watch(s);
    iscsi_keepalive_start(s);
}

const RemoteLinkOps iscsi_link_ops = {
    .co_connect = iscsi_co_connect,
    .disconnect = iscsi_disconnect_link,
    .detach = iscsi_detach,
    .attach = iscsi_attach,
};
