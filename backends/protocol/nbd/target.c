/*
 * Options of driver nbd that say where the server is.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "backends/protocol/nbd/nbd.h"
#include "util/error.h"
#include "util/text.h"

#define DEFAULT_PORT "10809"
#define EXPORT_MAX   4096 /* bytes of a name, by the protocol */

NbdTarget *nbd_target_new(void)
{
    return g_atomic_rc_box_new0(NbdTarget);
}

NbdTarget *nbd_target_ref(NbdTarget *target)
{
    return g_atomic_rc_box_acquire(target);
}

static void target_clear(gpointer opaque)
{
    NbdTarget *target = opaque;

    g_free(target->uri);
    g_free(target->host);
    g_free(target->port);
    g_free(target->path);
    g_free(target->export_name);
}

void nbd_target_unref(NbdTarget *target)
{
    g_atomic_rc_box_release_full(target, target_clear);
}

char *nbd_target_text(const NbdTarget *t)
{
    const char *s = t->creds ? "s" : "";
    const char *raw = t->export_name ? t->export_name : "";
    g_autofree char *name = g_uri_escape_string(raw, "/", false);
    g_autofree char *path = t->path ? g_uri_escape_string(t->path, "/", false) : NULL;

    switch (t->transport) {
    case NBD_INET: {
        const char *open = strchr(t->host, ':') ? "[" : "", *close = *open ? "]" : "";

        return g_strdup_printf("nbd%s://%s%s%s:%s/%s", s, open, t->host, close, t->port, name);
    }
    case NBD_UNIX:
        return g_strdup_printf("nbd%s+unix:///%s?socket=%s", s, name, path);
    case NBD_VSOCK:
        return g_strdup_printf("nbd%s+vsock://%u:%u/%s", s, t->cid, t->vsock_port, name);
    case NBD_URI:
    default:
        return text_without_userinfo(t->uri);
    }
}

/* ---- A URI. Its parts are libnbd's to read, here only what is to be known before. */

static bool read_uri(NbdTarget *t, BlockOptions *opts, GError **errp)
{
    static const char *const schemes[] = {"nbd",       "nbds",       "nbd+unix", "nbds+unix",
                                          "nbd+vsock", "nbds+vsock", NULL};
    g_autoptr(GError) err = NULL;
    g_autoptr(GUri) uri = g_uri_parse(t->uri, G_URI_FLAGS_ENCODED, &err);

    if (!uri) {
        return block_options_error(opts, "uri", errp, EINVAL, "is not a URI: %s", err->message);
    }
    if (!g_strv_contains(schemes, g_uri_get_scheme(uri))) {
        g_autofree char *all = g_strjoinv(", ", (char **)schemes);

        return block_options_error(opts, "uri", errp, EINVAL, "'%s' is not one of %s", g_uri_get_scheme(uri),
                                   all);
    }
    if (g_uri_get_password(uri) || (g_uri_get_userinfo(uri) && strchr(g_uri_get_userinfo(uri), ':'))) {
        return block_options_error(opts, "uri", errp, EINVAL,
                                   "has a password, which NBD does not know; see tls-creds");
    }
    if (t->export_name) {
        return block_options_error(opts, "export", errp, EINVAL, "the URI says which: nbd://HOST/EXPORT");
    }
    const char *host = g_uri_get_host(uri);

    t->transport = NBD_URI;
    t->lookup = !strchr(g_uri_get_scheme(uri), '+') && host && *host && !g_hostname_is_ip_address(host);
    return true;
}

/* ---- QEMU's `server` */

static const BlockForeignOption inet_foreign[] = {
    {"numeric", "off"},    {"to", NULL},     {"ipv4", NULL}, {"ipv6", NULL},
    {"keep-alive", "off"}, {"mptcp", "off"}, {NULL, NULL},
};
static const BlockForeignOption unix_foreign[] = {{"abstract", "off"}, {"tight", "on"}, {NULL, NULL}};

static bool read_inet(NbdTarget *t, BlockOptions *server, GError **errp)
{
    if (!block_options_require_string(server, "host", &t->host, errp) ||
        !block_options_get_string(server, "port", &t->port, errp) ||
        !block_options_refuse_foreign(server, inet_foreign, errp)) {
        return false;
    }
    if (!t->port) {
        t->port = g_strdup(DEFAULT_PORT);
    }
    t->lookup = !g_hostname_is_ip_address(t->host) || strspn(t->port, "0123456789") != strlen(t->port);
    return true;
}

static bool read_unix(NbdTarget *t, BlockOptions *server, GError **errp)
{
    return block_options_require_string(server, "path", &t->path, errp) &&
           block_options_refuse_foreign(server, unix_foreign, errp);
}

static bool read_vsock(NbdTarget *t, BlockOptions *server, GError **errp)
{
    uint64_t cid = UINT64_MAX, port = strtoul(DEFAULT_PORT, NULL, 10);

    if (!block_options_get_uint64(server, "cid", 0, UINT32_MAX, &cid, errp) ||
        !block_options_get_uint64(server, "port", 0, UINT32_MAX, &port, errp)) {
        return false;
    }
    if (cid == UINT64_MAX) {
        return block_options_error(server, "cid", errp, EINVAL, "is required");
    }
    t->cid = (uint32_t)cid;
    t->vsock_port = (uint32_t)port;
    return true;
}

static bool read_server(NbdTarget *t, BlockOptions *opts, JsonObject *object, GError **errp)
{
    static const char *const types[] = {"inet", "unix", "vsock", NULL};
    g_autofree char *prefix = g_strconcat(block_options_prefix(opts), "server.", NULL);
    g_autoptr(BlockOptions) server = block_options_new(block_options_what(opts), prefix, object);
    int type = -1;

    if (!block_options_get_enum(server, "type", types, &type, errp)) {
        return false;
    }
    if (type < 0) {
        return block_options_error(server, "type", errp, EINVAL, "is required: inet, unix or vsock");
    }
    t->transport = type == 0 ? NBD_INET : type == 1 ? NBD_UNIX : NBD_VSOCK;
    bool ok = type == 0   ? read_inet(t, server, errp)
              : type == 1 ? read_unix(t, server, errp)
                          : read_vsock(t, server, errp);

    if (!t->export_name) {
        t->export_name = g_strdup("");
    }
    return ok && block_options_finish(server, errp);
}

/* ---- TLS */

static bool read_creds(NbdTarget *t, BlockNode *node, BlockOptions *opts, GError **errp)
{
    g_autofree char *hostname = NULL;

    if (!block_graph_read_tls_creds(node->graph, opts, true, &t->creds, errp) ||
        !block_options_get_string(opts, "tls-hostname", &hostname, errp)) {
        return false;
    }
    if (hostname && !t->creds) {
        return block_options_error(opts, "tls-hostname", errp, EINVAL, "makes sense with tls-creds only");
    }
    if (hostname && g_strcmp0(hostname, t->host) != 0) {
        return block_options_error(opts, "tls-hostname", errp, ENOTSUP,
                                   "libnbd checks the certificate against server.host only");
    }
    return true;
}

/*
 * libnbd 1.14 compares a certificate with the host's name, and where there is none it checks nothing at all
 * (CVE-2024-7383); nor does it where it is told of no CA. Any server would do.
 */
static bool check_verifiable(const NbdTarget *t, BlockOptions *opts, GError **errp)
{
    const char *scheme = t->uri ? g_uri_peek_scheme(t->uri) : NULL;
    bool tls = t->creds || (scheme && g_str_has_prefix(scheme, "nbds"));
    bool named = scheme ? !strchr(scheme, '+') : t->transport == NBD_INET;

    if (!tls || (named && t->creds && t->creds->dir) ||
        (t->creds && (t->creds->psk || !t->creds->verify_peer))) {
        return true;
    }
    if (named) {
        return block_options_error(
            opts, "tls-creds", errp, ENOTSUP,
            "libnbd verifies a certificate by the CA in an object's dir only; there is "
            "none, and no verify-peer=off");
    }
    return block_options_error(opts, t->uri ? "uri" : "server.type", errp, ENOTSUP,
                               "libnbd verifies no certificate without a host's name; use tls-creds-psk, or "
                               "tls-creds-x509 with verify-peer=off");
}

/* ---- All of it */

static bool read_where(NbdTarget *t, BlockNode *node, BlockOptions *opts, GError **errp)
{
    g_autoptr(JsonObject) server = NULL;

    if (!block_options_get_string(opts, "uri", &t->uri, errp) ||
        !block_options_get_string(opts, "export", &t->export_name, errp) ||
        !block_options_get_object(opts, "server", &server, errp)) {
        return false;
    }
    if (!t->uri == !server) {
        return block_options_error(opts, "uri", errp, EINVAL, "%s",
                                   server ? "and 'server' exclude each other" : "or 'server' is required");
    }
    if (t->export_name && strlen(t->export_name) > EXPORT_MAX) {
        return block_options_error(opts, "export", errp, EINVAL, "is longer than %d bytes", EXPORT_MAX);
    }
    return (server ? read_server(t, opts, server, errp) : read_uri(t, opts, errp)) &&
           read_creds(t, node, opts, errp) && check_verifiable(t, opts, errp);
}

NbdTarget *nbd_target_read(BlockNode *node, BlockOptions *opts, GError **errp)
{
    g_autoptr(NbdTarget) t = nbd_target_new();

    return read_where(t, node, opts, errp) ? g_steal_pointer(&t) : NULL;
}
