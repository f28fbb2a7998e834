/*
 * The URL: libcurl takes it apart; what people see of it has no user, no password and no query, which may be
 * a token.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "backends/protocol/http/http.h"

static char *get_part(CURLU *u, CURLUPart part, unsigned flags)
{
    char *text = NULL;

    if (curl_url_get(u, part, &text, flags) != CURLUE_OK) {
        return NULL;
    }
    char *copy = g_strdup(text);

    curl_free(text);
    return copy;
}

static void take_apart(HttpOptions *o, CURLU *u)
{
    g_autofree char *query = get_part(u, CURLUPART_QUERY, 0);

    o->username = get_part(u, CURLUPART_USER, CURLU_URLDECODE);
    curl_url_set(u, CURLUPART_USER, NULL, 0);
    curl_url_set(u, CURLUPART_FRAGMENT, NULL, 0);
    o->url = get_part(u, CURLUPART_URL, 0);
    curl_url_set(u, CURLUPART_QUERY, NULL, 0);
    g_autofree char *bare = get_part(u, CURLUPART_URL, 0);

    o->where = g_strconcat(bare, query ? "?..." : "", NULL);
}

static bool check(CURLU *u, BlockOptions *opts, const char *scheme, GError **errp)
{
    g_autofree char *given = get_part(u, CURLUPART_SCHEME, 0), *password = get_part(u, CURLUPART_PASSWORD, 0);
    g_autofree char *host = get_part(u, CURLUPART_HOST, 0);

    if (password) {
        return block_options_error(
            opts, "url", errp, EINVAL,
            "a password in a URL is seen by too many; use username and password-secret");
    }
    if (!given || strcmp(given, scheme) != 0) {
        return block_options_error(opts, "url", errp, EINVAL, "driver '%s' takes URLs that begin with %s://",
                                   scheme, scheme);
    }
    return host || block_options_error(opts, "url", errp, EINVAL, "names no host");
}

bool http_url_parse(HttpOptions *o, BlockOptions *opts, const char *scheme, const char *url, GError **errp)
{
    CURLU *u = curl_url();
    CURLUcode code = curl_url_set(u, CURLUPART_URL, url, CURLU_NON_SUPPORT_SCHEME);
    bool ok;

    if (code == CURLUE_OK) {
        ok = check(u, opts, scheme, errp);
        if (ok) {
            take_apart(o, u);
        }
    } else {
        ok = block_options_error(opts, "url", errp, EINVAL, "not a URL: %s", curl_url_strerror(code));
    }
    curl_url_cleanup(u);
    return ok;
}
