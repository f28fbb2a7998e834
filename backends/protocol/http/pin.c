/*
 * Which resource it is: asked for when the node opens, and after each outage.
 *
 * A "connection" of the common layer is here: the server answers to a request of one byte, and it has the
 * resource that was there at the beginning. libcurl's connections come and go below that.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "backends/protocol/http/http.h"
#include "util/error.h"

#define BUSY_WAIT_NS HTTP_NS_PER_S /* where a busy server does not say when to come again */

typedef struct HttpProbe {
    HttpTransfer t; /* first */
    Coroutine *co;
    bool done;
} HttpProbe;

/* ---- Asking */

static size_t probe_data(HttpTransfer *t, const uint8_t *data, size_t n)
{
    return n;
}

static void probe_done(HttpTransfer *t)
{
    HttpProbe *probe = (HttpProbe *)t;

    probe->done = true;
    aio_co_schedule(t->s->link.ctx, probe->co);
}

static const HttpTransferOps probe_ops = {probe_data, probe_done};

static void coroutine_fn ask(HttpProbe *probe)
{
    probe->done = false;
    probe->t.head = probe->t.s->o.ftp;
    http_transfer_start(&probe->t, 0, 1);
    while (!probe->done) {
        coroutine_yield();
    }
}

/* Wait as a busy server asks. False where that is longer than the attempt may last, or it was given up. */
static bool coroutine_fn wait_busy(HttpProbe *probe, int64_t until_ns)
{
    HttpState *s = probe->t.s;
    int64_t after_s = probe->t.reply.retry_after_s;
    int64_t at_ns = aio_clock_ns() + (after_s >= 0 ? MIN(after_s, 1000000) * HTTP_NS_PER_S : BUSY_WAIT_NS);

    if (at_ns >= until_ns) {
        return false;
    }
    s->probe_waits = true;
    for (int64_t left_ns; s->probe_waits && (left_ns = at_ns - aio_clock_ns()) > 0;) {
        aio_co_sleep_ns(MIN(left_ns, HTTP_NS_PER_S / 2));
    }
    bool go_on = s->probe_waits;

    s->probe_waits = false;
    return go_on;
}

static void coroutine_fn ask_until_answer(HttpProbe *probe)
{
    int64_t timeout_ns = probe->t.s->remote.options.timeout_ns;
    int64_t until_ns = aio_clock_ns() + (timeout_ns ? timeout_ns : 60 * HTTP_NS_PER_S);

    do {
        ask(probe);
    } while (probe->t.result.outcome == HTTP_BUSY && wait_busy(probe, until_ns));
}

/* ---- The answer */

static bool is_strong(const char *etag)
{
    return etag && etag[0] == '"';
}

static void add_header(struct curl_slist **list, const char *name, const char *value)
{
    g_autofree char *line = g_strdup_printf("%s: %s", name, value);

    *list = curl_slist_append(*list, line);
}

/* The conditions under which a range is wanted, beside the user's headers. */
static void make_conditions(HttpState *s)
{
    const HttpPin *pin = &s->pin;
    struct curl_slist *list = NULL;

    for (struct curl_slist *h = s->o.headers; h; h = h->next) {
        list = curl_slist_append(list, h->data);
    }
    if (is_strong(pin->etag)) {
        add_header(&list, "If-Match", pin->etag);
        add_header(&list, "If-Range", pin->etag);
    } else if (pin->last_modified) {
        add_header(&list, "If-Unmodified-Since", pin->last_modified);
        add_header(&list, "If-Range", pin->last_modified);
    }
    s->pin_headers = list;
}

static int refuse(GError **errp, const HttpResult *result)
{
    return bg_error_set(errp, result->errnum, "%s", result->text);
}

/* The length that the answer tells, or -1. *ranges: whether parts may be asked for. */
static int64_t told_length(const HttpProbe *probe, bool *ranges)
{
    const HttpReply *r = &probe->t.reply;

    *ranges = true;
    switch (probe->t.result.outcome) {
    case HTTP_EMPTY:
        return 0;
    case HTTP_NO_RANGE:
        *ranges = r->length == 0;
        return r->length;
    default:
        if (probe->t.s->o.ftp) {
            *ranges = r->has_range;
        }
        return r->total;
    }
}

static int set_pin(HttpState *s, HttpProbe *probe, GError **errp)
{
    bool ranges;
    int64_t size = told_length(probe, &ranges);

    if (size < 0) {
        return bg_error_set(errp, ENOTSUP, "the server does not tell the length");
    }
    if (size > BLOCK_MAX_LENGTH) {
        return bg_error_set(errp, EFBIG, "the server tells a length of %" PRId64 " bytes", size);
    }
    s->pin = (HttpPin){true, size, g_steal_pointer(&probe->t.reply.etag),
                       g_steal_pointer(&probe->t.reply.last_modified)};
    s->ranges = ranges;
    if (!s->o.ftp) {
        make_conditions(s);
    }
    return 0;
}

/* It was asked with the pin set, so that replies of HTTP have been compared. */
static int check_pin(HttpState *s, const HttpProbe *probe, GError **errp)
{
    const HttpReply *r = &probe->t.reply;
    bool ranges;
    int64_t size = told_length(probe, &ranges);

    if (size != -1 && size != s->pin.size) {
        return bg_error_set(errp, ESTALE, "the resource has changed: another length");
    }
    if (s->o.ftp && g_strcmp0(r->last_modified, s->pin.last_modified) != 0) {
        return bg_error_set(errp, ESTALE, "the resource has changed: another time of modification");
    }
    if (s->ranges && !ranges) {
        return bg_error_set(errp, EIO, "the server no longer sends parts of the resource");
    }
    return 0;
}

static int take_answer(HttpState *s, HttpProbe *probe, GError **errp)
{
    switch (probe->t.result.outcome) {
    case HTTP_OK:
    case HTTP_EMPTY:
    case HTTP_NO_RANGE:
        return s->pin.set ? check_pin(s, probe, errp) : set_pin(s, probe, errp);
    default:
        return refuse(errp, &probe->t.result);
    }
}

/* ---- The common layer's callbacks */

static int coroutine_fn link_co_connect(RemoteLink *link, bool again, GError **errp)
{
    HttpState *s = link->opaque;
    HttpProbe probe = {.co = coroutine_self()};

    http_transfer_init(&probe.t, s, &probe_ops);
    ask_until_answer(&probe);
    int ret = take_answer(s, &probe, errp);

    http_transfer_destroy(&probe.t);
    if (ret == 0) {
        http_spool_connected(s);
    }
    return ret;
}

static void link_disconnect(RemoteLink *link)
{
    HttpState *s = link->opaque;

    s->probe_waits = false;
    s->disconnecting = true;
    http_multi_disconnect(s);
    http_fetches_disconnect(s);
    http_spool_disconnect(s);
    s->disconnecting = false;
}

/* The driver moves its descriptors in whatever state the link is: libcurl may have some open. */
static void link_move(RemoteLink *link)
{
}

const RemoteLinkOps http_link_ops = {link_co_connect, link_disconnect, link_move, link_move};
