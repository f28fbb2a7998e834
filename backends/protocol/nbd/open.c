/*
 * Driver nbd: options, opening, closing, and the table of its callbacks.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "backends/protocol/nbd/nbd.h"
#include "util/error.h"
#include "util/log.h"

#define DEFAULT_TIMEOUT_S 30
#define ZEROES_MAX        (32 << 20) /* a server without holes may write them out, and has a deadline */
#define TRIM_MAX          (1 << 30)
#define NS_PER_S          INT64_C(1000000000)

typedef struct NbdOpenOptions {
    unsigned connections; /* 0: as many as there are iothreads */
    int64_t patience_ns;  /* at open */
} NbdOpenOptions;

static const BlockForeignOption foreign_options[] = {
    {"x-dirty-bitmap", NULL}, {"host", NULL}, {"port", NULL}, {"path", NULL}, {NULL, NULL},
};

static bool read_options(NbdState *s, BlockNode *node, BlockOptions *opts, NbdOpenOptions *o, GError **errp)
{
    uint64_t connections = 0, patience = 0;

    if (!block_options_refuse_foreign(opts, foreign_options, errp) ||
        !block_options_get_uint64(opts, "connections", 1, NBD_MAX_CONNECTIONS, &connections, errp) ||
        !block_options_get_uint64(opts, "open-timeout", 0, UINT32_MAX, &patience, errp)) {
        return false;
    }
    o->connections = (unsigned)connections;
    o->patience_ns = (int64_t)patience * NS_PER_S;
    s->target = nbd_target_read(node, opts, errp);
    if (!s->target) {
        return false;
    }
    g_autofree char *where = nbd_target_text(s->target);

    return remote_init(&s->remote, node, opts, where, DEFAULT_TIMEOUT_S, errp) &&
           remote_init_writes(&s->remote, opts, errp);
}

static void free_state(NbdState *s)
{
    remote_destroy(&s->remote);
    g_clear_pointer(&s->target, nbd_target_unref);
    g_free(s->conns);
}

/* ---- What the server says, into the node */

static int take_export(BlockNode *node, NbdState *s, BlockOptions *opts, GError **errp)
{
    const NbdExport *e = &s->export;

    if (!(e->caps & NBD_CAP_WRITE) && !node->read_only) {
        if (!node->auto_read_only) {
            return bg_error_set(
                errp, EROFS, "node '%s': %s: the server lets nobody write; read-only=on opens it for reading",
                node->name, s->remote.where);
        }
        node->read_only = true;
    }
    atomic_store(&node->length, e->size);
    node->limits.request_alignment = (uint32_t)e->min_block;
    node->limits.max_transfer = e->max_block & -e->min_block;
    node->limits.max_pwrite_zeroes = ZEROES_MAX;
    node->limits.pwrite_zeroes_alignment = (uint32_t)e->min_block;
    node->limits.max_pdiscard = TRIM_MAX;
    node->limits.pdiscard_alignment = (uint32_t)e->min_block;
    node->supported_write_flags = e->caps & NBD_CAP_FUA ? BLOCK_REQ_FUA : 0;
    node->supported_zero_flags = node->supported_write_flags | BLOCK_REQ_MAY_UNMAP | BLOCK_REQ_NO_FALLBACK;
    return 0;
}

/* ---- Connections */

/* Where the i-th lives: the first in `home`, the others in the iothreads after it. */
static AioContext *context_of(BlockGraph *graph, AioContext *home, unsigned i)
{
    unsigned n = block_graph_n_homes(graph), first = 0;

    if (n == 0) {
        return home;
    }
    while (first + 1 < n && block_graph_home(graph, first) != home) {
        first++;
    }
    return block_graph_home(graph, (first + i) % n);
}

static int coroutine_fn co_open_first(NbdState *s, AioContext *home, int64_t patience_ns, GError **errp)
{
    nbd_conn_init(&s->conns[0], s, home);
    int ret = remote_link_co_open(&s->conns[0].link, patience_ns, errp);

    if (ret == 0) {
        s->n_conns = 1;
        s->export = s->conns[0].export;
        s->opened = true;
        s->remote.write_ops = s->export.caps & NBD_CAP_FLUSH ? &nbd_write_ops : NULL;
    }
    return ret;
}

/* How many there are to be: *out. */
static int count_connections(BlockNode *node, NbdState *s, const NbdOpenOptions *o, BlockOptions *opts,
                             unsigned *out, GError **errp)
{
    bool allowed = s->export.caps & NBD_CAP_MULTI_CONN || node->read_only;

    if (o->connections > 1 && !allowed) {
        block_options_error(opts, "connections", errp, ENOTSUP,
                            "the server does not say that several may write (multi-conn)");
        return -ENOTSUP;
    }
    *out = o->connections ? o->connections
           : s->export.caps & NBD_CAP_MULTI_CONN
               ? CLAMP(block_graph_n_homes(node->graph), 1, NBD_MAX_CONNECTIONS)
               : 1;
    return 0;
}

/* The others. Where the user has not said how many, as many as the server lets in. */
static int coroutine_fn co_open_others(BlockNode *node, NbdState *s, unsigned n, bool all, GError **errp)
{
    AioContext *home = s->conns[0].link.ctx;

    for (unsigned i = 1; i < n; i++) {
        g_autoptr(GError) err = NULL;
        NbdConn *conn = &s->conns[i];

        nbd_conn_init(conn, s, context_of(node->graph, home, i));
        conn->is_spare = !all;
        int ret = remote_link_co_open(&conn->link, 0, &err);

        if (ret < 0 && all) {
            g_propagate_error(errp, g_steal_pointer(&err));
            return ret;
        }
        if (ret < 0) {
            bg_log(BG_LOG_INFO, "%s; %u of %u connections will do", err->message, i, n);
            break;
        }
        conn->is_spare = false;
        s->n_conns++;
    }
    return 0;
}

static void coroutine_fn co_close_all(NbdState *s)
{
    for (unsigned i = 0; i < s->n_conns; i++) {
        remote_link_co_close(&s->conns[i].link);
    }
}

static int coroutine_fn co_connect_all(BlockNode *node, NbdState *s, const NbdOpenOptions *o,
                                       BlockOptions *opts, GError **errp)
{
    AioContext *home = block_graph_assign_home(node->graph);
    unsigned n = 1;

    s->conns = g_new0(NbdConn, NBD_MAX_CONNECTIONS);
    int ret = co_open_first(s, home, o->patience_ns, errp);

    if (ret == 0) {
        ret = take_export(node, s, opts, errp);
    }
    if (ret == 0) {
        ret = count_connections(node, s, o, opts, &n, errp);
    }
    if (ret == 0) {
        ret = co_open_others(node, s, n, o->connections > 0, errp);
    }
    if (ret < 0) {
        co_close_all(s);
        return ret;
    }
    node->aio_context = s->n_conns > 1 ? NULL : home;
    return 0;
}

/* ---- Callbacks */

static int coroutine_fn nbd_co_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    NbdState *s = node->opaque;
    NbdOpenOptions options = {0};
    int ret = read_options(s, node, opts, &options, errp) ? 0 : -EINVAL;

    if (ret == 0) {
        ret = co_connect_all(node, s, &options, opts, errp);
    }
    if (ret < 0) {
        free_state(s);
    }
    return ret;
}

static void coroutine_fn nbd_co_close(BlockNode *node)
{
    NbdState *s = node->opaque;

    co_close_all(s);
    free_state(s);
}

/* Only of a node with one connection: the others have no home. */
static void coroutine_fn nbd_co_detach_aio_context(BlockNode *node)
{
    NbdState *s = node->opaque;

    remote_link_co_detach(&s->conns[0].link);
}

static void coroutine_fn nbd_co_attach_aio_context(BlockNode *node, AioContext *ctx)
{
    NbdState *s = node->opaque;

    remote_link_co_attach(&s->conns[0].link, ctx);
}

static void for_each_link(BlockNode *node, void (*call)(RemoteLink *link))
{
    NbdState *s = node->opaque;

    for (unsigned i = 0; i < s->n_conns; i++) {
        call(&s->conns[i].link);
    }
}

static void nbd_drain_begin(BlockNode *node)
{
    for_each_link(node, remote_link_drain_begin);
}

static void nbd_drain_end(BlockNode *node)
{
    for_each_link(node, remote_link_drain_end);
}

static void nbd_limit_waits(BlockNode *node)
{
    for_each_link(node, remote_link_limit_waits);
}

/* The server promises stable storage by a flush; what it does nobody can see from here. */
static int nbd_durable(BlockNode *node)
{
    NbdState *s = node->opaque;

    return node->cache_no_flush || !(s->export.caps & NBD_CAP_FLUSH) ? 0 : -1;
}

static char *nbd_filename(BlockNode *node)
{
    NbdState *s = node->opaque;

    return g_strdup(s->remote.where);
}

static char *nbd_status(BlockNode *node)
{
    NbdState *s = node->opaque;
    const BlockTlsCreds *creds = s->target->creds;
    g_autofree char *outage = remote_status(&s->remote);

    if (creds && !creds->psk && !creds->verify_peer) {
        return g_strdup_printf("certificates are not verified%s%s", outage ? ", " : "", outage ? outage : "");
    }
    return g_steal_pointer(&outage);
}

static const char *const file_names[] = {"server.path", NULL};

const BlockDriver block_driver_nbd = {
    .name = "nbd",
    .instance_size = sizeof(NbdState),
    .file_options = file_names,
    .status = nbd_status,
    .co_open = nbd_co_open,
    .co_close = nbd_co_close,
    .co_preadv = nbd_co_preadv,
    .co_pwritev = nbd_co_pwritev,
    .co_flush = nbd_co_flush,
    .co_pdiscard = nbd_co_pdiscard,
    .co_pwrite_zeroes = nbd_co_pwrite_zeroes,
    .co_block_status = nbd_co_block_status,
    .drain_begin = nbd_drain_begin,
    .drain_end = nbd_drain_end,
    .co_detach_aio_context = nbd_co_detach_aio_context,
    .co_attach_aio_context = nbd_co_attach_aio_context,
    .limit_waits = nbd_limit_waits,
    .durable = nbd_durable,
    .filename = nbd_filename,
};
