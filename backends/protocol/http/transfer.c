/*
 * One transfer on an easy handle of libcurl's.
 *
 *   state     | easy    | left by
 *   ----------+---------+-------------------------------------------------------
 *   idle      | NULL    | start -> running
 *   running   | set     | libcurl is done -> idle, ops->done; abort -> idle
 *
 * Easy handles keep their options between transfers, and the multi handle keeps the connections.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "backends/protocol/http/http.h"
#include "util/log.h"

#define MAX_REDIRECTS 10L

/* ---- Options of a handle */

static void set_protocols(CURL *easy, const HttpOptions *o)
{
    const char *own = o->ftp ? (o->ssl ? "ftps" : "ftp") : (o->ssl ? "https" : "http,https");

    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, own);
    /* Never from https to http, nor from anywhere to file: and the like. */
    curl_easy_setopt(easy, CURLOPT_REDIR_PROTOCOLS_STR, own);
    curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, o->ftp ? 0L : 1L);
    curl_easy_setopt(easy, CURLOPT_MAXREDIRS, MAX_REDIRECTS);
    curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_2TLS);
    curl_easy_setopt(easy, CURLOPT_FILETIME, o->ftp ? 1L : 0L);
}

static void set_credentials(CURL *easy, const HttpOptions *o)
{
    if (o->username) {
        curl_easy_setopt(easy, CURLOPT_USERNAME, o->username);
        curl_easy_setopt(easy, CURLOPT_PASSWORD, o->password ? o->password : "");
    } else {
        curl_easy_setopt(easy, CURLOPT_NETRC, (long)CURL_NETRC_OPTIONAL);
    }
    if (o->proxy_username) {
        curl_easy_setopt(easy, CURLOPT_PROXYUSERNAME, o->proxy_username);
        curl_easy_setopt(easy, CURLOPT_PROXYPASSWORD, o->proxy_password ? o->proxy_password : "");
    }
}

static void set_file(CURL *easy, CURLoption option, const char *dir, const char *name)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);

    if (option == CURLOPT_CAINFO || access(path, F_OK) == 0) {
        curl_easy_setopt(easy, option, path);
    }
}

static void set_tls(CURL *easy, const HttpOptions *o)
{
    bool verify = o->sslverify && (!o->creds || o->creds->verify_peer);

    curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, verify ? 1L : 0L);
    curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, verify ? 2L : 0L);
    if (o->creds && o->creds->dir) {
        set_file(easy, CURLOPT_CAINFO, o->creds->dir, "ca-cert.pem");
        set_file(easy, CURLOPT_SSLCERT, o->creds->dir, "client-cert.pem");
        set_file(easy, CURLOPT_SSLKEY, o->creds->dir, "client-key.pem");
    }
}

static void set_times(CURL *easy, const HttpState *s)
{
    int64_t timeout_ns = s->remote.options.timeout_ns;

    if (timeout_ns) {
        /* Transfers that nobody waits for have no deadline; those that hang end by this. */
        curl_easy_setopt(easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
        curl_easy_setopt(easy, CURLOPT_LOW_SPEED_TIME, (long)(timeout_ns / HTTP_NS_PER_S));
        curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT, (long)(timeout_ns / HTTP_NS_PER_S));
        curl_easy_setopt(easy, CURLOPT_SERVER_RESPONSE_TIMEOUT, (long)(timeout_ns / HTTP_NS_PER_S));
    }
    curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
}

/* ---- libcurl's callbacks */

static size_t take_header(char *line, size_t one, size_t n, void *opaque)
{
    HttpTransfer *t = opaque;

    if (!t->s->o.ftp) {
        http_reply_line(&t->reply, line, n);
    }
    return n;
}

/* The time of the file as FTP servers tell it. */
static char *ftp_time(CURL *easy)
{
    curl_off_t time = -1;

    curl_easy_getinfo(easy, CURLINFO_FILETIME_T, &time);
    return time == -1 ? NULL : g_strdup_printf("%" CURL_FORMAT_CURL_OFF_T, time);
}

static HttpOutcome check_ftp(HttpTransfer *t, int *errnum, char **text)
{
    const HttpPin *pin = &t->s->pin;
    g_autofree char *time = ftp_time(t->easy);

    if (!pin->set || !g_strcmp0(pin->last_modified, time)) {
        return HTTP_OK;
    }
    *errnum = ESTALE;
    *text = g_strdup("the resource has changed: another time of modification");
    return HTTP_CHANGED;
}

/* Whether its body may be taken; else the result says why not. */
static bool accept_reply(HttpTransfer *t)
{
    int errnum = 0;
    char *text = NULL;
    HttpOutcome outcome = t->s->o.ftp
                              ? check_ftp(t, &errnum, &text)
                              : http_reply_check(&t->reply, &t->s->pin, t->start, t->end, &errnum, &text);

    t->accepted = outcome == HTTP_OK;
    t->result = (HttpResult){outcome, errnum, text};
    return t->accepted;
}

static size_t take_data(char *data, size_t one, size_t n, void *opaque)
{
    HttpTransfer *t = opaque;

    if (n == 0) {
        return 0;
    }
    if (t->head) { /* FTP: what would be headers elsewhere */
        t->reply.has_range |= n >= 20 && g_ascii_strncasecmp(data, "Accept-ranges: bytes", 20) == 0;
        return n;
    }
    if (!t->accepted && !accept_reply(t)) {
        return 0;
    }
    size_t taken = t->ops->data(t, (const uint8_t *)data, n);

    return t->complete ? 0 : taken;
}

/* ---- Start and end */

CURL *http_easy_new(HttpState *s)
{
    CURL *easy = curl_easy_init();

    if (!easy) {
        bg_fatal("out of memory");
    }
    curl_easy_setopt(easy, CURLOPT_URL, s->o.url);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_QUICK_EXIT, 1L); /* waits for no resolver's thread */
    curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, 256L * 1024);
    curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, http_socket_open);
    curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, s);
    curl_easy_setopt(easy, CURLOPT_CLOSESOCKETFUNCTION, http_socket_close);
    curl_easy_setopt(easy, CURLOPT_CLOSESOCKETDATA, s);
    curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, take_header);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, take_data);
    curl_easy_setopt(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    curl_easy_setopt(easy, CURLOPT_USERAGENT, "blockgraph");
    set_protocols(easy, &s->o);
    set_credentials(easy, &s->o);
    set_tls(easy, &s->o);
    set_times(easy, s);
    return easy;
}

void http_transfer_init(HttpTransfer *t, HttpState *s, const HttpTransferOps *ops)
{
    *t = (HttpTransfer){.s = s, .ops = ops};
    t->entry.data = t;
    http_reply_reset(&t->reply);
}

void http_transfer_destroy(HttpTransfer *t)
{
    http_transfer_abort(t);
    g_clear_pointer(&t->result.text, g_free);
    http_reply_reset(&t->reply);
}

static void set_range(HttpTransfer *t)
{
    if (t->s->o.ftp) {
        curl_easy_setopt(t->easy, CURLOPT_NOBODY, t->head ? 1L : 0L);
        curl_easy_setopt(t->easy, CURLOPT_RESUME_FROM_LARGE, (curl_off_t)t->start);
    } else if (t->end == -1) {
        curl_easy_setopt(t->easy, CURLOPT_RANGE, NULL);
    } else {
        g_autofree char *range = g_strdup_printf("%" PRId64 "-%" PRId64, t->start, t->end - 1);

        curl_easy_setopt(t->easy, CURLOPT_RANGE, range);
    }
    /* If-Match and the like are for ranges only: of the whole the headers tell as well. */
    curl_easy_setopt(t->easy, CURLOPT_HTTPHEADER,
                     t->end != -1 && t->s->pin_headers ? t->s->pin_headers : t->s->o.headers);
}

void http_transfer_start(HttpTransfer *t, int64_t start, int64_t end)
{
    HttpState *s = t->s;

    g_assert(!t->easy);
    t->easy = s->idle->len ? g_ptr_array_remove_index_fast(s->idle, s->idle->len - 1) : http_easy_new(s);
    t->start = start;
    t->end = end;
    t->accepted = t->complete = false;
    t->error[0] = '\0';
    g_clear_pointer(&t->result.text, g_free);
    t->result.outcome = HTTP_OK;
    http_reply_reset(&t->reply);
    set_range(t);
    curl_easy_setopt(t->easy, CURLOPT_PRIVATE, t);
    curl_easy_setopt(t->easy, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(t->easy, CURLOPT_HEADERDATA, t);
    curl_easy_setopt(t->easy, CURLOPT_ERRORBUFFER, t->error);
    g_queue_push_tail_link(&s->active, &t->entry);
    CURLMcode code = curl_multi_add_handle(s->multi, t->easy);

    if (code != CURLM_OK) {
        bg_fatal("node '%s': libcurl: %s", s->node->name, curl_multi_strerror(code));
    }
}

void http_transfer_abort(HttpTransfer *t)
{
    HttpState *s = t->s;

    if (!t->easy) {
        return;
    }
    curl_multi_remove_handle(s->multi, t->easy);
    curl_easy_setopt(t->easy, CURLOPT_ERRORBUFFER, NULL);
    g_ptr_array_add(s->idle, g_steal_pointer(&t->easy));
    g_queue_unlink(&s->active, &t->entry);
    g_clear_pointer(&t->result.text, g_free);
}

static void set_result(HttpTransfer *t, CURLcode code)
{
    int errnum = 0;

    if (t->complete) {
        t->result.outcome = HTTP_OK;
        return;
    }
    if (t->result.outcome != HTTP_OK) { /* refused by us */
        return;
    }
    if (code == CURLE_OK && !t->accepted && !t->head) { /* a reply without a body */
        if (t->s->o.ftp || t->reply.complete) {
            accept_reply(t);
        } else { /* which libcurl does not mind */
            t->result = (HttpResult){HTTP_BROKEN, ECONNRESET,
                                     g_strdup("the connection was closed within the headers")};
        }
        return;
    }
    t->result.outcome = http_code_outcome(code, &errnum);
    t->result.errnum = errnum;
    if (code != CURLE_OK) {
        t->result.text = g_strdup(t->error[0] ? t->error : curl_easy_strerror(code));
        g_strchomp(t->result.text);
    }
}

/* FTP tells by other means. */
static void take_ftp_facts(HttpTransfer *t)
{
    curl_off_t size = -1;

    curl_easy_getinfo(t->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &size);
    t->reply.total = size;
    g_free(t->reply.last_modified);
    t->reply.last_modified = ftp_time(t->easy);
}

void http_transfer_ended(HttpTransfer *t, CURLcode code)
{
    set_result(t, code);
    if (t->head) {
        take_ftp_facts(t);
    }
    HttpResult result = t->result;

    t->result.text = NULL;
    http_transfer_abort(t);
    t->result = result;
    t->ops->done(t);
}
