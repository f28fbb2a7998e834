/*
 * Options, opening, closing.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "backends/protocol/iscsi/iscsi.h"
#include "block/secret.h"
#include "util/error.h"

#define DEFAULT_TIMEOUT_S 30
#define MAX_TRANSFER      (INT64_C(8) << 20) /* so that no request keeps the others waiting for long */
#define MAX_UNMAP         (INT64_C(1) << 30)
#define NAME_MAX_BYTES    223 /* RFC 7143, 4.2.7.1 */

/* ---- Options */

static const char *const digest_words[] = {"none", "none-crc32c", "crc32c-none", "crc32c", NULL};

/* Half a pair is an error: nothing is left out in silence. */
static bool check_pair(BlockOptions *opts, const char *user_key, const char *user, const char *password_key,
                       const char *password, GError **errp)
{
    if (user && !password) {
        return block_options_error(opts, user_key, errp, EINVAL, "a user needs a password: give %s",
                                   password_key);
    }
    if (password && !user) {
        return block_options_error(opts, password_key, errp, EINVAL, "a password needs a user: give %s",
                                   user_key);
    }
    return true;
}

/* Options first, then what the library's own programs take from the environment. */
static bool read_chap(BlockNode *node, BlockOptions *opts, IscsiTarget *t, GError **errp)
{
    g_autofree char *user = NULL;

    if (!block_options_get_string(opts, "user", &user, errp) ||
        !block_graph_read_secret(node->graph, opts, "password-secret", &t->password, errp) ||
        !block_options_get_string(opts, "target-user", &t->target_user, errp) ||
        !block_graph_read_secret(node->graph, opts, "target-password-secret", &t->target_password, errp)) {
        return false;
    }
    if (user && t->user) {
        return block_options_error(opts, "user", errp, EINVAL, "the URL names a user, too");
    }
    if (user) {
        t->user = g_steal_pointer(&user);
    }
    if (!t->user && !t->password) {
        t->user = g_strdup(getenv("LIBISCSI_CHAP_USERNAME"));
    }
    if (t->user && !t->password) {
        t->password = getenv("LIBISCSI_CHAP_PASSWORD");
    }
    if (!t->target_user && !t->target_password) {
        t->target_user = g_strdup(getenv("LIBISCSI_CHAP_TARGET_USERNAME"));
        t->target_password = t->target_user ? getenv("LIBISCSI_CHAP_TARGET_PASSWORD") : NULL;
    }
    if (!check_pair(opts, "user", t->user, "password-secret", t->password, errp) ||
        !check_pair(opts, "target-user", t->target_user, "target-password-secret", t->target_password,
                    errp)) {
        return false;
    }
    if (t->target_user && !t->user) {
        return block_options_error(opts, "target-user", errp, EINVAL,
                                   "the target proves itself only to one who does: give user and "
                                   "password-secret");
    }
    return true;
}

static bool fits(const char *text)
{
    return !text || strlen(text) <= MAX_STRING_SIZE - 1;
}

/* The library cuts longer ones, in silence. */
static bool check_lengths(BlockOptions *opts, const IscsiTarget *t, GError **errp)
{
    if (!fits(t->user) || !fits(t->target_user)) {
        return block_options_error(opts, fits(t->user) ? "target-user" : "user", errp, EINVAL, "too long");
    }
    if (!fits(t->password) || !fits(t->target_password)) {
        const char *key = fits(t->password) ? "target-password-secret" : "password-secret";

        return block_options_error(opts, key, errp, EINVAL, "the password is too long");
    }
    if (!*t->name || strlen(t->name) > NAME_MAX_BYTES) {
        return block_options_error(opts, "target", errp, EINVAL, "not a name of 1 to %d bytes",
                                   NAME_MAX_BYTES);
    }
    if (!*t->initiator || strlen(t->initiator) > NAME_MAX_BYTES) {
        return block_options_error(opts, "initiator-name", errp, EINVAL, "not a name of 1 to %d bytes",
                                   NAME_MAX_BYTES);
    }
    return true;
}

/* One for each host, which its targets can know it by. */
static char *default_initiator(void)
{
    g_autofree char *id = NULL;
    g_autofree char *sum = NULL;

    if (!g_file_get_contents("/etc/machine-id", &id, NULL, NULL) || !*id) {
        id = g_strdup(g_get_host_name());
    }
    /* The id itself is not for others to see: machine-id(5). */
    sum = g_compute_hmac_for_string(G_CHECKSUM_SHA256, (const guchar *)"blockgraph", strlen("blockgraph"), id,
                                    -1);
    return g_strdup_printf("iqn.2026-01.org.blockgraph:%.16s", sum);
}

static bool read_url(BlockOptions *opts, const char *url, IscsiTarget *t, GError **errp)
{
    static const char *const others[] = {"portal", "target", "lun"};
    g_autoptr(GError) err = NULL;

    for (guint i = 0; i < G_N_ELEMENTS(others); i++) {
        if (block_options_has(opts, others[i])) {
            return block_options_error(opts, others[i], errp, EINVAL, "url is given, too");
        }
    }
    return iscsi_parse_url(url, t, &err) ||
           block_options_error(opts, "url", errp, bg_error_to_errno(err) == -ENOTSUP ? ENOTSUP : EINVAL, "%s",
                               err->message);
}

static bool read_place(BlockOptions *opts, IscsiTarget *t, GError **errp)
{
    g_autofree char *url = NULL;
    g_autofree char *portal = NULL;
    uint64_t lun = 0;

    if (!block_options_get_string(opts, "url", &url, errp)) {
        return false;
    }
    if (url) {
        return read_url(opts, url, t, errp);
    }
    if (!block_options_require_string(opts, "portal", &portal, errp) ||
        !block_options_require_string(opts, "target", &t->name, errp) ||
        !block_options_get_uint64(opts, "lun", 0, ISCSI_MAX_LUN, &lun, errp)) {
        return false;
    }
    t->lun = lun;
    return iscsi_parse_portal(portal, &t->host, &t->port) ||
           block_options_error(opts, "portal", errp, EINVAL, "not of the form HOST[:PORT]");
}

static bool read_options(BlockNode *node, BlockOptions *opts, IscsiTarget *t, GError **errp)
{
    static const char *const transports[] = {"tcp", "iser", NULL};
    int transport = 0, digest = ISCSI_HEADER_DIGEST_NONE_CRC32C;

    if (!block_options_get_enum(opts, "transport", transports, &transport, errp)) {
        return false;
    }
    if (transport != 0) {
        return block_options_error(opts, "transport", errp, ENOTSUP, "iser is not supported, only tcp");
    }
    if (!block_options_get_enum(opts, "header-digest", digest_words, &digest, errp) ||
        !block_options_get_string(opts, "initiator-name", &t->initiator, errp) ||
        !read_place(opts, t, errp) || !read_chap(node, opts, t, errp)) {
        return false;
    }
    t->digest = digest;
    if (!t->initiator) {
        t->initiator = default_initiator();
    }
    t->isid = g_random_int() & 0xffffff;
    t->isid_qualifier = g_random_int() & 0xffff;
    return check_lengths(opts, t, errp);
}

/* ---- Opening */

/*
 * A handler of the session's may have woken us, and be below us on the stack of the link's thread: let it end
 * before its state goes.
 */
static void coroutine_fn co_leave_handlers(IscsiState *s)
{
    AioContext *here = aio_context_current();

    if (s->link.ctx) {
        aio_co_schedule(s->link.ctx, coroutine_self());
        coroutine_yield();
        aio_co_reschedule_self(here);
    }
}

static void coroutine_fn co_free_state(IscsiState *s)
{
    IscsiTarget *t = &s->target;

    co_leave_handlers(s);
    remote_destroy(&s->remote);
    g_clear_pointer(&s->send_bh, aio_bh_delete);
    g_free(t->host);
    g_free(t->port);
    g_free(t->name);
    g_free(t->user);
    g_free(t->target_user);
    g_free(t->initiator);
    g_free(s->disk.identity);
    g_free(s->why);
}

static char *where(const IscsiTarget *t)
{
    bool v6 = strchr(t->host, ':');
    g_autofree char *name = g_uri_escape_string(t->name, ":", FALSE);

    return g_strdup_printf("iscsi://%s%s%s:%s/%s/%u", v6 ? "[" : "", t->host, v6 ? "]" : "", t->port, name,
                           t->lun);
}

static int64_t blocks_to_limit(uint64_t blocks, uint32_t size, int64_t most)
{
    return blocks && blocks < (uint64_t)most / size ? (int64_t)blocks * size : most;
}

static void set_limits(BlockNode *node, const IscsiDisk *d)
{
    BlockLimits *l = &node->limits;
    int64_t size = d->block_size, granularity = (int64_t)d->unmap_granularity * size;
    /* WRITE SAME (10) has 16 bits for the count, and who knows WRITE SAME (16) is not known yet. */
    int64_t most_same = MIN(UINT16_MAX * size, MAX_UNMAP);

    l->request_alignment = d->block_size;
    l->max_iov = IOV_MAX;
    l->max_transfer = blocks_to_limit(MIN(d->max_transfer ? d->max_transfer : UINT16_MAX, UINT16_MAX),
                                      d->block_size, MAX_TRANSFER);
    l->max_pdiscard = blocks_to_limit(d->max_unmap, d->block_size, MAX_UNMAP);
    l->max_pwrite_zeroes = blocks_to_limit(d->max_write_same, d->block_size, most_same);
    if (granularity > size && granularity <= MIN(l->max_pdiscard, 1 << 30)) {
        l->pdiscard_alignment = (uint32_t)granularity;
        l->max_pdiscard -= l->max_pdiscard % granularity;
    }
    node->supported_write_flags = d->fua ? BLOCK_REQ_FUA : 0;
    node->supported_zero_flags = BLOCK_REQ_MAY_UNMAP;
}

static int check_protection(BlockNode *node, const IscsiDisk *d, GError **errp)
{
    if (!d->write_protected || node->read_only) {
        return 0;
    }
    if (!node->auto_read_only) {
        return bg_error_set(errp, EROFS,
                            "node '%s': the disk is write-protected; read-only=on opens it for reading only",
                            node->name);
    }
    node->read_only = true;
    return 0;
}

static void live_in(IscsiState *s, AioContext *ctx)
{
    s->send_bh = aio_bh_new(ctx, iscsi_send_bh, s);
    aio_timer_init(&s->keepalive, ctx, iscsi_keepalive, s);
}

static int coroutine_fn co_open_remote(BlockNode *node, BlockOptions *opts, GError **errp)
{
    IscsiState *s = node->opaque;
    g_autofree char *name = NULL;

    if (!read_options(node, opts, &s->target, errp)) {
        return -EINVAL;
    }
    name = where(&s->target);
    if (!remote_init(&s->remote, node, opts, name, DEFAULT_TIMEOUT_S, errp) ||
        !remote_init_writes(&s->remote, opts, errp)) {
        return -EINVAL;
    }
    node->aio_context = block_graph_assign_home(node->graph);
    live_in(s, node->aio_context);
    remote_link_init(&s->link, &s->remote, &iscsi_link_ops, s, node->aio_context);
    int ret = remote_link_co_open(&s->link, 0, errp);

    s->remote.write_ops = ret == 0 && s->disk.has_sync_cache ? &iscsi_write_ops : NULL;
    return ret;
}

static void coroutine_fn iscsi_co_close(BlockNode *node)
{
    IscsiState *s = node->opaque;
    AioContext *here = aio_context_current();

    aio_co_reschedule_self(s->link.ctx);
    iscsi_session_co_logout(s);
    aio_co_reschedule_self(here);
    remote_link_co_close(&s->link);
    co_free_state(s);
}

static int coroutine_fn iscsi_co_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    IscsiState *s = node->opaque;

    s->fd = -1;
    g_queue_init(&s->running);
    g_queue_init(&s->finished);
    int ret = co_open_remote(node, opts, errp);

    if (ret < 0) {
        co_free_state(s);
        return ret;
    }
    ret = check_protection(node, &s->disk, errp);
    if (ret < 0) {
        iscsi_co_close(node);
        return ret;
    }
    atomic_store(&node->length, (int64_t)(s->disk.blocks * s->disk.block_size));
    set_limits(node, &s->disk);
    return 0;
}

/* ---- Threads, drained sections, the end */

static void coroutine_fn iscsi_co_detach_aio_context(BlockNode *node)
{
    IscsiState *s = node->opaque;

    remote_link_co_detach(&s->link);
    g_clear_pointer(&s->send_bh, aio_bh_delete);
    s->send_soon = false;
}

static void coroutine_fn iscsi_co_attach_aio_context(BlockNode *node, AioContext *ctx)
{
    IscsiState *s = node->opaque;

    live_in(s, ctx);
    remote_link_co_attach(&s->link, ctx);
}

/* In the link's thread; after that of the link, which says whether it is to be quiet. */
static void keepalive_bh(void *opaque)
{
    IscsiState *s = opaque;

    aio_timer_del(&s->keepalive);
    if (s->link.state == REMOTE_LINK_CONNECTED) {
        iscsi_keepalive_start(s);
    }
    block_node_dec_in_flight(s->remote.node);
}

static void keepalive_follow(IscsiState *s)
{
    block_node_inc_in_flight(s->remote.node);
    aio_bh_schedule_oneshot(s->link.ctx, keepalive_bh, s);
}

static void iscsi_drain_begin(BlockNode *node)
{
    IscsiState *s = node->opaque;

    remote_link_drain_begin(&s->link);
    keepalive_follow(s);
}

static void iscsi_drain_end(BlockNode *node)
{
    IscsiState *s = node->opaque;

    remote_link_drain_end(&s->link);
    keepalive_follow(s);
}

static void iscsi_limit_waits(BlockNode *node)
{
    IscsiState *s = node->opaque;

    remote_link_limit_waits(&s->link);
}

static int iscsi_durable(BlockNode *node)
{
    const IscsiState *s = node->opaque;

    if (!s->disk.cache_known) {
        return -1;
    }
    return !s->disk.cache_on || s->disk.has_sync_cache;
}

static char *iscsi_filename(BlockNode *node)
{
    const IscsiState *s = node->opaque;

    return g_strdup(s->remote.where);
}

static char *iscsi_status(BlockNode *node)
{
    IscsiState *s = node->opaque;

    return remote_status(&s->remote);
}

const BlockDriver block_driver_iscsi = {
    .name = "iscsi",
    .status = iscsi_status,
    .instance_size = sizeof(IscsiState),
    .co_open = iscsi_co_open,
    .co_close = iscsi_co_close,
    .co_preadv = iscsi_co_preadv,
    .co_pwritev = iscsi_co_pwritev,
    .co_flush = iscsi_co_flush,
    .co_pdiscard = iscsi_co_pdiscard,
    .co_pwrite_zeroes = iscsi_co_pwrite_zeroes,
    .co_block_status = iscsi_co_block_status,
    .co_detach_aio_context = iscsi_co_detach_aio_context,
    .co_attach_aio_context = iscsi_co_attach_aio_context,
    .drain_begin = iscsi_drain_begin,
    .drain_end = iscsi_drain_end,
    .limit_waits = iscsi_limit_waits,
    .durable = iscsi_durable,
    .filename = iscsi_filename,
};
