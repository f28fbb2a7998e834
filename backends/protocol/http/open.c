/*
 * Drivers http, https, ftp and ftps: options, opening, closing.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "backends/protocol/http/http.h"
#include "util/error.h"

#define DEFAULT_TIMEOUT_S   30
#define DEFAULT_CONNECTIONS 8
#define DEFAULT_READAHEAD   (256 * 1024)
#define DEFAULT_CACHE_SIZE  (1024 * 1024 * 1024)
#define MIN_CACHE_SIZE      (1024 * 1024)
#define MAX_READAHEAD       (64 * 1024 * 1024)

extern const BlockDriver block_driver_http, block_driver_https, block_driver_ftp, block_driver_ftps;

/* ---- Options */

static bool get_credentials(BlockNode *node, BlockOptions *opts, HttpOptions *o, GError **errp)
{
    g_autofree char *username = NULL;

    if (!block_options_get_string(opts, "username", &username, errp) ||
        !block_graph_read_secret(node->graph, opts, "password-secret", &o->password, errp) ||
        !block_options_get_string(opts, "proxy-username", &o->proxy_username, errp) ||
        !block_graph_read_secret(node->graph, opts, "proxy-password-secret", &o->proxy_password, errp)) {
        return false;
    }
    if (username) {
        g_free(o->username); /* the URL's */
        o->username = g_steal_pointer(&username);
    }
    if (o->password && !o->username) {
        return block_options_error(opts, "password-secret", errp, EINVAL, "there is no username");
    }
    if (o->proxy_password && !o->proxy_username) {
        return block_options_error(opts, "proxy-password-secret", errp, EINVAL, "there is no proxy-username");
    }
    return true;
}

static bool add_header(HttpOptions *o, BlockOptions *opts, const char *key, const char *line, GError **errp)
{
    const char *colon = strchr(line, ':');

    if (!colon || colon == line || strpbrk(line, "\r\n")) {
        return block_options_error(opts, key, errp, EINVAL, "expected 'Name: value' on one line");
    }
    o->headers = curl_slist_append(o->headers, line);
    return true;
}

static bool get_headers(BlockOptions *opts, HttpOptions *o, GError **errp)
{
    g_auto(GStrv) lines = NULL;

    if (block_options_is_string(opts, "header")) { /* with colons of its own: not a list */
        lines = g_new0(char *, 2);
        if (!block_options_get_string(opts, "header", &lines[0], errp)) {
            return false;
        }
    } else if (!block_options_get_strings(opts, "header", &lines, errp)) {
        return false;
    }
    for (char **line = lines; line && *line; line++) {
        if (o->ftp) {
            return block_options_error(opts, "header", errp, EINVAL, "FTP has no headers");
        }
        if (!add_header(o, opts, "header", *line, errp)) {
            return false;
        }
    }
    return true;
}

/* As a header of ours: libcurl sends those to the host of the URL only, not to where a redirect leads. */
static bool get_cookie(BlockNode *node, BlockOptions *opts, HttpOptions *o, GError **errp)
{
    g_autofree char *text = NULL;
    const char *secret = NULL;

    if (!block_options_get_string(opts, "cookie", &text, errp) ||
        !block_graph_read_secret(node->graph, opts, "cookie-secret", &secret, errp)) {
        return false;
    }
    const char *key = secret ? "cookie-secret" : "cookie";

    if (text && secret) {
        return block_options_error(opts, key, errp, EINVAL, "there is the option cookie as well");
    }
    if (!text && !secret) {
        return true;
    }
    if (o->ftp) {
        return block_options_error(opts, key, errp, EINVAL, "FTP has no cookies");
    }
    g_autofree char *line = g_strdup_printf("Cookie: %s", secret ? secret : text);

    return add_header(o, opts, key, line, errp);
}

static bool get_sizes(BlockOptions *opts, HttpOptions *o, GError **errp)
{
    uint64_t connections = DEFAULT_CONNECTIONS;

    o->readahead = DEFAULT_READAHEAD;
    if (!block_options_get_size(opts, "readahead", &o->readahead, errp) ||
        !block_options_get_uint64(opts, "connections", 1, HTTP_CONNECTIONS_MAX, &connections, errp)) {
        return false;
    }
    o->connections = (unsigned)connections;
    if (!block_options_get_string(opts, "spool", &o->spool, errp)) {
        return false;
    }
    if (o->spool && !*o->spool) {
        return block_options_error(opts, "spool", errp, EINVAL, "expected 'auto' or the name of a file");
    }
    return o->readahead <= MAX_READAHEAD ||
           block_options_error(opts, "readahead", errp, EINVAL, "at most %d bytes", MAX_READAHEAD);
}

/* "cache.direct" and "cache.no-flush" are the core's. */
static bool get_cache(BlockOptions *opts, HttpOptions *o, GError **errp)
{
    g_autoptr(JsonObject) object = NULL;

    o->cache_size = DEFAULT_CACHE_SIZE;
    if (!block_options_get_object(opts, "cache", &object, errp)) {
        return false;
    }
    if (!object) {
        return true;
    }
    g_autofree char *prefix = g_strdup_printf("%scache.", block_options_prefix(opts));
    g_autoptr(BlockOptions) sub = block_options_new(block_options_what(opts), prefix, object);

    if (!block_options_get_string(sub, "file", &o->cache_file, errp) ||
        !block_options_get_size(sub, "size", &o->cache_size, errp)) {
        return false;
    }
    if (!o->cache_file && block_options_has(sub, "size")) {
        return block_options_error(sub, "size", errp, EINVAL, "there is no cache.file");
    }
    return o->cache_size >= MIN_CACHE_SIZE ||
           block_options_error(sub, "size", errp, ERANGE, "less than 1 MiB is no use");
}

static bool get_tls(BlockNode *node, BlockOptions *opts, HttpOptions *o, GError **errp)
{
    o->sslverify = true;
    if (!block_options_get_bool(opts, "sslverify", &o->sslverify, errp)) {
        return false;
    }
    if (!o->ssl && block_options_has(opts, "tls-creds")) {
        return block_options_error(opts, "tls-creds", errp, EINVAL, "driver '%s' has no TLS",
                                   node->driver->name);
    }
    return block_graph_read_tls_creds(node->graph, opts, false, &o->creds, errp);
}

static bool read_options(BlockNode *node, BlockOptions *opts, GError **errp)
{
    HttpState *s = node->opaque;
    HttpOptions *o = &s->o;
    g_autofree char *url = NULL;

    o->ftp = node->driver == &block_driver_ftp || node->driver == &block_driver_ftps;
    o->ssl = node->driver == &block_driver_https || node->driver == &block_driver_ftps;
    return block_options_require_string(opts, "url", &url, errp) &&
           http_url_parse(o, opts, node->driver->name, url, errp) && get_sizes(opts, o, errp) &&
           get_cache(opts, o, errp) && get_tls(node, opts, o, errp) && get_credentials(node, opts, o, errp) &&
           get_headers(opts, o, errp) && get_cookie(node, opts, o, errp);
}

/* It is read-only by its nature: only who asked for more hears of it. */
static bool check_read_only(BlockNode *node, BlockOptions *opts, GError **errp)
{
    if (!node->read_only && !node->auto_read_only && block_options_has(opts, "read-only")) {
        return block_options_error(opts, "read-only", errp, EROFS, "driver '%s' cannot write",
                                   node->driver->name);
    }
    node->read_only = true;
    return true;
}

/* ---- Opening and closing */

static void free_all(HttpState *s)
{
    curl_slist_free_all(s->pin_headers);
    curl_slist_free_all(s->o.headers);
    g_free(s->pin.etag);
    g_free(s->pin.last_modified);
    g_free(s->o.url);
    g_free(s->o.where);
    g_free(s->o.spool);
    g_free(s->o.cache_file);
    g_free(s->o.username);
    g_free(s->o.proxy_username);
    remote_destroy(&s->remote);
}

/* In the home: libcurl's descriptors are watched there. */
static void coroutine_fn leave_home(HttpState *s)
{
    AioContext *main_context = aio_context_current();

    aio_co_reschedule_self(s->link.ctx);
    http_fetches_destroy(s);
    http_spool_co_close(s);
    http_cache_close(s);
    http_multi_destroy(s);
    aio_co_reschedule_self(main_context);
}

/* A server without ranges. */
static int coroutine_fn begin_spool(HttpState *s, BlockOptions *opts, GError **errp)
{
    AioContext *main_context = aio_context_current();

    if (!s->o.spool) {
        block_options_error(
            opts, "url", errp, ENOTSUP,
            "the server does not send parts of the resource (no ranges); with the option spool "
            "it is fetched as a whole");
        return -ENOTSUP;
    }
    if (s->o.cache_file) {
        block_options_error(
            opts, "cache.file", errp, ENOTSUP,
            "the server does not send parts of the resource, and what is spooled is not kept");
        return -ENOTSUP;
    }
    int ret = http_spool_co_open(s, opts, errp);

    if (ret == 0) {
        aio_co_reschedule_self(s->link.ctx);
        http_spool_connected(s);
        aio_co_reschedule_self(main_context);
    }
    return ret;
}

static int coroutine_fn connect_first(HttpState *s, BlockOptions *opts, GError **errp)
{
    int ret = remote_link_co_open(&s->link, 0, errp);

    if (ret < 0) {
        return ret;
    }
    if (!s->ranges) {
        ret = begin_spool(s, opts, errp);
    } else if (s->o.cache_file) {
        ret = http_cache_co_open(s, opts, errp);
    }
    if (ret < 0) {
        remote_link_co_close(&s->link);
    }
    return ret;
}

static int coroutine_fn http_co_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    HttpState *s = node->opaque;
    int ret = -EINVAL;

    s->node = node;
    if (!check_read_only(node, opts, errp) || !read_options(node, opts, errp) ||
        !remote_init(&s->remote, node, opts, s->o.where, DEFAULT_TIMEOUT_S, errp)) {
        free_all(s);
        return -EINVAL;
    }
    node->aio_context = block_graph_assign_home(node->graph);
    remote_link_init(&s->link, &s->remote, &http_link_ops, s, node->aio_context);
    if (http_multi_init(s, errp)) {
        http_fetches_init(s);
        ret = connect_first(s, opts, errp);
    }
    if (ret < 0) {
        leave_home(s);
        free_all(s);
        return ret;
    }
    atomic_store(&node->length, s->pin.size);
    node->limits.max_transfer = HTTP_MAX_TRANSFER;
    return 0;
}

static void coroutine_fn http_co_close(BlockNode *node)
{
    HttpState *s = node->opaque;

    /* The bottom half of a drained section's end may not have run, where the home is this thread. */
    aio_co_schedule(aio_context_current(), coroutine_self());
    coroutine_yield();
    remote_link_co_close(&s->link);
    leave_home(s);
    free_all(s);
}

/* ---- Drained sections, other threads, the end */

static void quiet_bh(void *opaque)
{
    HttpState *s = opaque;

    s->quiet = true;
    http_fetches_quiet(s);
    block_node_dec_in_flight(s->node);
}

static void http_drain_begin(BlockNode *node)
{
    HttpState *s = node->opaque;

    remote_link_drain_begin(&s->link);
    block_node_inc_in_flight(node);
    aio_bh_schedule_oneshot(s->link.ctx, quiet_bh, s);
}

static void loud_bh(void *opaque)
{
    HttpState *s = opaque;

    s->quiet = false;
    http_spool_loud(s);
    block_node_dec_in_flight(s->node);
}

static void http_drain_end(BlockNode *node)
{
    HttpState *s = node->opaque;

    remote_link_drain_end(&s->link);
    block_node_inc_in_flight(node);
    aio_bh_schedule_oneshot(s->link.ctx, loud_bh, s);
}

static void coroutine_fn http_co_detach(BlockNode *node)
{
    HttpState *s = node->opaque;

    remote_link_co_detach(&s->link);
    http_multi_detach(s);
}

static void coroutine_fn http_co_attach(BlockNode *node, AioContext *ctx)
{
    HttpState *s = node->opaque;

    remote_link_co_attach(&s->link, ctx);
    http_multi_attach(s);
}

static void http_limit_waits(BlockNode *node)
{
    HttpState *s = node->opaque;

    remote_link_limit_waits(&s->link);
}

/* ---- What people see */

static char *http_filename(BlockNode *node)
{
    HttpState *s = node->opaque;

    return g_strdup(s->o.where);
}

static char *http_status(BlockNode *node)
{
    HttpState *s = node->opaque;
    g_autoptr(GPtrArray) words = g_ptr_array_new_with_free_func(g_free);
    g_autofree char *outage = remote_status(&s->remote);
    bool verified = s->o.sslverify && (!s->o.creds || s->o.creds->verify_peer);

    if (outage) {
        g_ptr_array_add(words, g_steal_pointer(&outage));
    }
    if (s->o.ssl && !verified) {
        g_ptr_array_add(words, g_strdup("certificates are not verified"));
    }
    if (!s->pin.etag && !s->pin.last_modified) {
        g_ptr_array_add(words, g_strdup("the server does not tell when it changes"));
    }
    if (s->spool) {
        g_ptr_array_add(words, http_spool_status(s));
    }
    g_ptr_array_add(words, NULL);
    return words->len > 1 ? g_strjoinv(", ", (char **)words->pdata) : NULL;
}

/* Nothing is ever written. */
static int http_durable(BlockNode *node)
{
    return 1;
}

/* clang-format off */
static const char *const file_options[] = {"spool", "cache.file", NULL};
static const char *const cache_options[] = {"file", "size", NULL};
static const char *const file_words[] = {"auto", NULL};

#define HTTP_DRIVER(name_) {                                                                                 \
    .name = name_,                                                                                           \
    .file_options = file_options,                                                                            \
    .file_option_words = file_words,                                                                         \
    .cache_options = cache_options,                                                                          \
    .instance_size = sizeof(HttpState),                                                                      \
    .co_open = http_co_open,                                                                                 \
    .co_close = http_co_close,                                                                               \
    .co_preadv = http_co_preadv,                                                                             \
    .drain_begin = http_drain_begin,                                                                         \
    .drain_end = http_drain_end,                                                                             \
    .co_detach_aio_context = http_co_detach,                                                                 \
    .co_attach_aio_context = http_co_attach,                                                                 \
    .limit_waits = http_limit_waits,                                                                         \
    .durable = http_durable,                                                                                 \
    .filename = http_filename,                                                                               \
    .status = http_status,                                                                                   \
}
/* clang-format on */

const BlockDriver block_driver_http = HTTP_DRIVER("http");
const BlockDriver block_driver_https = HTTP_DRIVER("https");
const BlockDriver block_driver_ftp = HTTP_DRIVER("ftp");
const BlockDriver block_driver_ftps = HTTP_DRIVER("ftps");
