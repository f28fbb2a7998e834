/*
 * Whether a reply is what was asked for: status, range and validators against those of the first answer.
 *
 * A server is believed nothing: of a reply that does not say clearly that its body is the range that was
 * asked for, of the resource that was opened, no byte is taken.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "backends/protocol/http/http.h"

/* ---- Headers */

void http_reply_reset(HttpReply *reply)
{
    g_free(reply->etag);
    g_free(reply->last_modified);
    *reply = (HttpReply){.total = -1, .length = -1, .retry_after_s = -1};
}

/* A decimal number and what follows it. */
static bool take_number(const char **p, int64_t *out)
{
    char *end;

    if (!g_ascii_isdigit(**p)) {
        return false;
    }
    errno = 0;
    *out = g_ascii_strtoll(*p, &end, 10);
    *p = end;
    return errno == 0;
}

/* "bytes 0-99/1000", "bytes 0-99/ *", "bytes * /1000" (without the spaces). */
static void parse_range(HttpReply *reply, const char *p)
{
    if (g_ascii_strncasecmp(p, "bytes ", 6) != 0) {
        return;
    }
    p += 6;
    p += strspn(p, " ");
    if (*p == '*') {
        reply->range_start = reply->range_last = -1;
        p++;
    } else if (!take_number(&p, &reply->range_start) || *p++ != '-' || !take_number(&p, &reply->range_last)) {
        return;
    }
    if (*p++ != '/') {
        return;
    }
    if (strcmp(p, "*") == 0) {
        reply->has_range = true;
        return;
    }
    reply->has_range = take_number(&p, &reply->total) && *p == '\0';
}

/* Seconds, or a date. */
static int64_t parse_retry_after(const char *value)
{
    int64_t s;

    if (take_number(&value, &s)) {
        return s;
    }
    time_t at = curl_getdate(value, NULL);

    int64_t from_now = (int64_t)at - g_get_real_time() / G_USEC_PER_SEC;

    return at == -1 ? -1 : MAX(from_now, 0);
}

void http_reply_line(HttpReply *reply, const char *line, size_t n)
{
    g_autofree char *text = g_strndup(line, n);

    g_strchomp(text);
    if (g_str_has_prefix(text, "HTTP/")) { /* also after a redirect */
        const char *space = strchr(text, ' ');

        http_reply_reset(reply);
        reply->status = space ? strtol(space, NULL, 10) : 0;
        return;
    }
    reply->complete |= !*text;
    char *value = strchr(text, ':');

    if (!value) {
        return;
    }
    *value++ = '\0';
    g_strstrip(value);
    if (g_ascii_strcasecmp(text, "etag") == 0) {
        g_free(reply->etag);
        reply->etag = g_strdup(value);
    } else if (g_ascii_strcasecmp(text, "last-modified") == 0) {
        g_free(reply->last_modified);
        reply->last_modified = g_strdup(value);
    } else if (g_ascii_strcasecmp(text, "content-range") == 0) {
        parse_range(reply, value);
    } else if (g_ascii_strcasecmp(text, "content-length") == 0) {
        const char *p = value;

        if (!take_number(&p, &reply->length) || *p) {
            reply->length = -1;
        }
    } else if (g_ascii_strcasecmp(text, "retry-after") == 0) {
        reply->retry_after_s = parse_retry_after(value);
    } else if (g_ascii_strcasecmp(text, "content-encoding") == 0) {
        reply->encoded = g_ascii_strcasecmp(value, "identity") != 0;
    }
}

/* ---- Checks */

/* A validator that both have, and that differs. */
static bool differs(const char *pinned, const char *now)
{
    return pinned && now && strcmp(pinned, now) != 0;
}

static HttpOutcome G_GNUC_PRINTF(5, 6)
    fails(HttpOutcome outcome, int *errnum, char **text, int code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    *text = g_strdup_vprintf(format, args);
    va_end(args);
    *errnum = code;
    return outcome;
}

static HttpOutcome changed(int *errnum, char **text, const char *what)
{
    return fails(HTTP_CHANGED, errnum, text, ESTALE, "the resource has changed: %s", what);
}

/* The validators of a reply that has a body of the resource's. */
static HttpOutcome check_validators(const HttpReply *r, const HttpPin *pin, int *errnum, char **text)
{
    if (!pin->set) {
        return HTTP_OK;
    }
    if (differs(pin->etag, r->etag)) {
        return changed(errnum, text, "another ETag");
    }
    if (differs(pin->last_modified, r->last_modified)) {
        return changed(errnum, text, "another time of modification");
    }
    if ((pin->etag && !r->etag) || (!pin->etag && pin->last_modified && !r->last_modified)) {
        return fails(HTTP_REFUSED, errnum, text, EPROTO,
                     "the server leaves out what says that the resource has not changed");
    }
    return HTTP_OK;
}

static HttpOutcome check_partial(const HttpReply *r, const HttpPin *pin, int64_t start, int64_t end,
                                 int *errnum, char **text)
{
    HttpOutcome outcome = check_validators(r, pin, errnum, text);

    if (outcome != HTTP_OK) {
        return outcome;
    }
    if (!r->has_range) {
        return fails(HTTP_REFUSED, errnum, text, EPROTO, "the server does not say which part it sends");
    }
    if (pin->set && r->total != -1 && r->total != pin->size) {
        return changed(errnum, text, "another length");
    }
    if (r->range_start != start || r->range_last != end - 1) {
        return fails(HTTP_REFUSED, errnum, text, EPROTO,
                     "the server sends bytes %" PRId64 "-%" PRId64 " where %" PRId64 "-%" PRId64
                     " were asked for",
                     r->range_start, r->range_last, start, end - 1);
    }
    if (r->length != -1 && r->length != end - start) {
        return fails(HTTP_REFUSED, errnum, text, EPROTO,
                     "the server announces %" PRId64 " bytes where %" PRId64 " were asked for", r->length,
                     end - start);
    }
    return HTTP_OK;
}

static HttpOutcome check_whole(const HttpReply *r, const HttpPin *pin, int64_t end, int *errnum, char **text)
{
    HttpOutcome outcome = check_validators(r, pin, errnum, text);

    if (outcome != HTTP_OK) {
        return outcome;
    }
    if (pin->set && r->length != -1 && r->length != pin->size) {
        return changed(errnum, text, "another length");
    }
    return end == -1 ? HTTP_OK
                     : fails(HTTP_NO_RANGE, errnum, text, ENOTSUP,
                             "the server sends the whole resource where a part was asked for");
}

static HttpOutcome check_error(const HttpReply *r, int *errnum, char **text)
{
    switch (r->status) {
    case 401:
    case 403:
    case 407:
        return fails(HTTP_REFUSED, errnum, text, EACCES, "the server answers %ld: %s", r->status,
                     r->status == 403 ? "access is forbidden" : "it wants other credentials");
    case 404:
    case 410:
        return fails(HTTP_REFUSED, errnum, text, ENOENT, "the server answers %ld: there is no such resource",
                     r->status);
    case 429:
    case 502:
    case 503:
    case 504:
        return fails(HTTP_BUSY, errnum, text, EBUSY, "the server answers %ld: it is busy", r->status);
    default:
        return fails(HTTP_REFUSED, errnum, text, EIO, "the server answers with status %ld", r->status);
    }
}

HttpOutcome http_reply_check(const HttpReply *r, const HttpPin *pin, int64_t start, int64_t end, int *errnum,
                             char **text)
{
    if (r->encoded && r->status / 100 == 2) {
        return fails(HTTP_REFUSED, errnum, text, EPROTO, "the server sends the resource encoded");
    }
    switch (r->status) {
    case 206:
        if (end != -1) {
            return check_partial(r, pin, start, end, errnum, text);
        }
        return fails(HTTP_REFUSED, errnum, text, EPROTO, "the server sends a part, and was asked for all");
    case 200:
        return check_whole(r, pin, end, errnum, text);
    case 412:
        return changed(errnum, text, "the server says so");
    case 416:
        if (pin->set && r->total != -1 && r->total != pin->size) {
            return changed(errnum, text, "another length");
        }
        if (r->total == 0) {
            return fails(HTTP_EMPTY, errnum, text, ERANGE, "the resource is empty");
        }
        return fails(HTTP_REFUSED, errnum, text, EPROTO, "the server says there is no such range");
    default:
        return check_error(r, errnum, text);
    }
}

HttpOutcome http_code_outcome(CURLcode code, int *errnum)
{
    static const struct {
        CURLcode code;
        HttpOutcome outcome;
        int errnum;
    } table[] = {
        {CURLE_OK, HTTP_OK, 0},
        {CURLE_PEER_FAILED_VERIFICATION, HTTP_REFUSED, EACCES},
        {CURLE_SSL_CERTPROBLEM, HTTP_REFUSED, EACCES},
        {CURLE_SSL_ISSUER_ERROR, HTTP_REFUSED, EACCES},
        {CURLE_SSL_CACERT_BADFILE, HTTP_REFUSED, EACCES},
        {CURLE_LOGIN_DENIED, HTTP_REFUSED, EACCES},
        {CURLE_REMOTE_ACCESS_DENIED, HTTP_REFUSED, EACCES},
        {CURLE_REMOTE_FILE_NOT_FOUND, HTTP_REFUSED, ENOENT},
        {CURLE_TOO_MANY_REDIRECTS, HTTP_REFUSED, ELOOP},
        {CURLE_UNSUPPORTED_PROTOCOL, HTTP_REFUSED, EPROTONOSUPPORT},
        {CURLE_URL_MALFORMAT, HTTP_REFUSED, EINVAL},
        {CURLE_FTP_COULDNT_USE_REST, HTTP_NO_RANGE, ENOTSUP},
        {CURLE_RANGE_ERROR, HTTP_NO_RANGE, ENOTSUP},
        {CURLE_COULDNT_RESOLVE_HOST, HTTP_BROKEN, EHOSTUNREACH},
        {CURLE_COULDNT_RESOLVE_PROXY, HTTP_BROKEN, EHOSTUNREACH},
        {CURLE_COULDNT_CONNECT, HTTP_BROKEN, ECONNREFUSED},
        {CURLE_OPERATION_TIMEDOUT, HTTP_BROKEN, ETIMEDOUT},
        {CURLE_RECV_ERROR, HTTP_BROKEN, ECONNRESET},
        {CURLE_PARTIAL_FILE, HTTP_BROKEN, ECONNRESET},
        {CURLE_OUT_OF_MEMORY, HTTP_REFUSED, ENOMEM},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(table); i++) {
        if (table[i].code == code) {
            *errnum = table[i].errnum;
            return table[i].outcome;
        }
    }
    *errnum = EIO;
    return HTTP_BROKEN;
}
