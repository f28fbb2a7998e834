/*
 * libcurl's multi handle in an AioContext: its sockets are fd handlers, its timer an AioTimer.
 *
 * libcurl calls back from inside of its own functions, where it must not be called. So callbacks only note
 * things down and schedule coroutines; what calls libcurl again runs later, from the loop.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backends/protocol/http/http.h"
#include "util/error.h"
#include "util/log.h"

/* A descriptor that libcurl wants to be told of: a connection, or its resolver's. */
typedef struct HttpWatch {
    HttpState *s;
    int fd, what;
} HttpWatch;

/* ---- Events */

static void take_messages(HttpState *s)
{
    CURLMsg *msg;
    int left;

    while ((msg = curl_multi_info_read(s->multi, &left))) {
        if (msg->msg == CURLMSG_DONE) {
            CURLcode code = msg->data.result;
            char *t = NULL;

            curl_easy_getinfo(msg->easy_handle, CURLINFO_PRIVATE, &t);
            http_transfer_ended((HttpTransfer *)t, code);
        }
    }
}

static void socket_action(HttpState *s, curl_socket_t fd, int events)
{
    int running;

    curl_multi_socket_action(s->multi, fd, events, &running);
    take_messages(s);
}

static void readable(void *opaque)
{
    HttpWatch *w = opaque;

    socket_action(w->s, w->fd, CURL_CSELECT_IN);
}

static void writable(void *opaque)
{
    HttpWatch *w = opaque;

    socket_action(w->s, w->fd, CURL_CSELECT_OUT);
}

static void timer_expired(void *opaque)
{
    socket_action(opaque, CURL_SOCKET_TIMEOUT, 0);
}

/* ---- libcurl's callbacks */

static void watch(HttpWatch *w)
{
    aio_set_fd_handler(w->s->link.ctx, w->fd, w->what & CURL_POLL_IN ? readable : NULL,
                       w->what & CURL_POLL_OUT ? writable : NULL, w);
}

static void unwatch(HttpWatch *w)
{
    aio_set_fd_handler(w->s->link.ctx, w->fd, NULL, NULL, NULL);
}

static int socket_changed(CURL *easy, curl_socket_t fd, int what, void *opaque, void *unused)
{
    HttpState *s = opaque;
    HttpWatch *w = g_hash_table_lookup(s->watches, GINT_TO_POINTER(fd));

    if (what == CURL_POLL_REMOVE) {
        if (w) {
            unwatch(w);
            g_hash_table_remove(s->watches, GINT_TO_POINTER(fd));
        }
        return 0;
    }
    if (!w) {
        w = g_new0(HttpWatch, 1);
        w->s = s;
        w->fd = fd;
        g_hash_table_insert(s->watches, GINT_TO_POINTER(fd), w);
    }
    w->what = what;
    watch(w);
    return 0;
}

static int timer_changed(CURLM *multi, long timeout_ms, void *opaque)
{
    HttpState *s = opaque;

    if (timeout_ms < 0) {
        aio_timer_del(&s->timer);
    } else {
        aio_timer_mod(&s->timer, aio_clock_ns() + timeout_ms * INT64_C(1000000));
    }
    return 0;
}

curl_socket_t http_socket_open(void *opaque, curlsocktype purpose, struct curl_sockaddr *address)
{
    HttpState *s = opaque;
    int fd = socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);

    if (fd < 0) {
        return CURL_SOCKET_BAD;
    }
    g_hash_table_add(s->sockets, GINT_TO_POINTER(fd));
    return fd;
}

int http_socket_close(void *opaque, curl_socket_t fd)
{
    HttpState *s = opaque;

    g_hash_table_remove(s->sockets, GINT_TO_POINTER(fd));
    return close(fd);
}

/* ---- */

bool http_multi_init(HttpState *s, GError **errp)
{
    static gsize once;

    if (g_once_init_enter(&once)) {
        gsize done = curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK ? 1 : 2;

        g_once_init_leave(&once, done);
    }
    s->multi = once == 1 ? curl_multi_init() : NULL;
    if (!s->multi) {
        bg_error_set(errp, ENOMEM, "node '%s': libcurl cannot be set up", s->node->name);
        return false;
    }
    s->sockets = g_hash_table_new(NULL, NULL);
    s->watches = g_hash_table_new_full(NULL, NULL, NULL, g_free);
    s->idle = g_ptr_array_new();
    g_queue_init(&s->active);
    aio_timer_init(&s->timer, s->link.ctx, timer_expired, s);
    curl_multi_setopt(s->multi, CURLMOPT_SOCKETFUNCTION, socket_changed);
    curl_multi_setopt(s->multi, CURLMOPT_SOCKETDATA, s);
    curl_multi_setopt(s->multi, CURLMOPT_TIMERFUNCTION, timer_changed);
    curl_multi_setopt(s->multi, CURLMOPT_TIMERDATA, s);
    /* One more than there are fetches: the probe. */
    curl_multi_setopt(s->multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, (long)s->o.connections + 1);
    curl_multi_setopt(s->multi, CURLMOPT_MAXCONNECTS, (long)s->o.connections + 1);
    return true;
}

/* So that libcurl, in closing them, waits for no answer (FTP's QUIT does), and uses none of them again. */
static void break_connections(HttpState *s)
{
    GHashTableIter iter;
    gpointer fd;

    g_hash_table_iter_init(&iter, s->sockets);
    while (g_hash_table_iter_next(&iter, &fd, NULL)) {
        shutdown(GPOINTER_TO_INT(fd), SHUT_RDWR);
    }
}

void http_multi_destroy(HttpState *s)
{
    if (!s->multi) {
        return;
    }
    g_assert(g_queue_is_empty(&s->active));
    break_connections(s);
    for (guint i = 0; i < s->idle->len; i++) {
        curl_easy_cleanup(s->idle->pdata[i]);
    }
    curl_multi_cleanup(s->multi);
    s->multi = NULL;
    aio_timer_del(&s->timer);
    g_ptr_array_unref(s->idle);
    g_hash_table_unref(s->sockets);
    g_hash_table_unref(s->watches);
}

void http_multi_disconnect(HttpState *s)
{
    break_connections(s);
    while (!g_queue_is_empty(&s->active)) {
        HttpTransfer *t = s->active.head->data;

        http_transfer_abort(t);
        t->result = (HttpResult){HTTP_LOST, ENOLINK, g_strdup("disconnected")};
        t->ops->done(t);
    }
}

void http_multi_detach(HttpState *s)
{
    GHashTableIter iter;
    gpointer w;

    g_hash_table_iter_init(&iter, s->watches);
    while (g_hash_table_iter_next(&iter, NULL, &w)) {
        unwatch(w);
    }
    s->timer_was_set = aio_timer_pending(&s->timer);
    aio_timer_del(&s->timer);
}

void http_multi_attach(HttpState *s)
{
    GHashTableIter iter;
    gpointer w;

    aio_timer_init(&s->timer, s->link.ctx, timer_expired, s);
    if (s->timer_was_set) { /* too early is as good: libcurl looks at its clock */
        aio_timer_mod(&s->timer, aio_clock_ns());
    }
    g_hash_table_iter_init(&iter, s->watches);
    while (g_hash_table_iter_next(&iter, NULL, &w)) {
        watch(w);
    }
}
