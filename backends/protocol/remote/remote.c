/*
 * The server of a node: options, outages, and what is promised of writes.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "backends/protocol/remote/remote-internal.h"
#include "util/error.h"
#include "util/log.h"
#include "util/thread.h"

#define NS_PER_S            INT64_C(1000000000)
#define MAX_SECONDS         (UINT64_C(365) * 24 * 3600)
#define DEFAULT_RECONNECT_S 30
#define DEFAULT_RESEND      (INT64_C(64) << 20)

/* ---- Options */

static bool read_options(RemoteOptions *o, BlockOptions *opts, unsigned default_timeout, GError **errp)
{
    static const char *const outage[] = {"eio", "pause", NULL};
    uint64_t timeout = default_timeout, delay = DEFAULT_RECONNECT_S;
    int on_outage = 0;

    if (!block_options_get_uint64(opts, "timeout", 0, MAX_SECONDS, &timeout, errp) ||
        !block_options_get_uint64(opts, "reconnect-delay", 0, MAX_SECONDS, &delay, errp) ||
        !block_options_get_enum(opts, "on-outage", outage, &on_outage, errp)) {
        return false;
    }
    o->timeout_ns = (int64_t)timeout * NS_PER_S;
    o->reconnect_delay_ns = (int64_t)delay * NS_PER_S;
    o->pause = on_outage == 1;
    return true;
}

bool remote_init(Remote *remote, BlockNode *node, BlockOptions *opts, const char *where,
                 unsigned default_timeout, GError **errp) BG_NO_TSA
{
    RemoteOptions options = {0};

    if (!read_options(&options, opts, default_timeout, errp)) {
        return false;
    }
    remote->node = node;
    remote->where = g_strdup(where);
    remote->options = options;
    atomic_init(&remote->wait_limit_ns, INT64_MAX);
    bg_mutex_init(&remote->lock);
    co_mutex_init(&remote->room_lock);
    co_queue_init(&remote->changed);
    remote->links = g_ptr_array_new();
    g_queue_init(&remote->kept);
    return true;
}

bool remote_init_writes(Remote *remote, BlockOptions *opts, GError **errp)
{
    remote->options.resend_bytes = DEFAULT_RESEND;
    return block_options_get_size(opts, "resend-buffer", &remote->options.resend_bytes, errp);
}

void remote_destroy(Remote *remote) BG_NO_TSA
{
    if (remote->where) {
        remote_replay_free(remote);
        g_ptr_array_unref(remote->links);
        co_queue_destroy(&remote->changed);
        co_mutex_destroy(&remote->room_lock);
        bg_mutex_destroy(&remote->lock);
        g_clear_pointer(&remote->where, g_free);
    }
}

/* ---- Waiting */

int64_t remote_wait_until(Remote *remote)
{
    int64_t limit_ns = atomic_load(&remote->wait_limit_ns);

    if (remote->options.pause) {
        return limit_ns;
    }
    bg_mutex_lock(&remote->lock);
    int64_t until_ns = remote->down_since_ns + remote->options.reconnect_delay_ns;

    bg_mutex_unlock(&remote->lock);
    return MIN(until_ns, limit_ns);
}

int64_t remote_limit_waits(Remote *remote)
{
    int64_t wait_ns = remote->options.timeout_ns ? remote->options.timeout_ns : REMOTE_LAST_WAIT_S * NS_PER_S;
    int64_t limit_ns = INT64_MAX, until_ns = aio_clock_ns() + wait_ns;

    /* The first one counts: the daemon may be told twice. */
    return atomic_compare_exchange_strong(&remote->wait_limit_ns, &limit_ns, until_ns) ? until_ns : limit_ns;
}

/* ---- Outages */

static void log_outage(Remote *remote, int errnum, const char *cause)
{
    const RemoteOptions *o = &remote->options;
    g_autofree char *policy = NULL;
    g_autofree char *text = g_strdup_printf("%s: %s", remote->where, cause);

    if (o->pause) {
        policy = g_strdup("requests wait until it is back");
    } else if (o->reconnect_delay_ns == 0) {
        policy = g_strdup("requests fail until it is back");
    } else {
        policy = g_strdup_printf("requests fail if it is not back in %" G_GINT64_FORMAT " s",
                                 o->reconnect_delay_ns / NS_PER_S);
    }
    bg_log(BG_LOG_WARNING, "node '%s': %s; %s", remote->node->name, text, policy);
    block_graph_log_error(remote->node->graph, remote->node->name, BLOCK_OP_CONNECT, -1, 0, errnum, text);
}

void remote_link_down(Remote *remote, int errnum, const char *cause)
{
    bg_mutex_lock(&remote->lock);
    bool begins = remote->links_down++ == 0;

    if (begins) {
        remote->down_since_ns = aio_clock_ns();
        remote->outages++;
    }
    remote_outage_link_down(remote);
    bg_mutex_unlock(&remote->lock);
    if (begins) {
        log_outage(remote, errnum, cause);
    }
}

bool remote_link_up(Remote *remote)
{
    bg_mutex_lock(&remote->lock);
    bool up = remote->outage == REMOTE_RESTORED, ends = up && --remote->links_down == 0;
    int64_t down_ns = aio_clock_ns() - remote->down_since_ns;

    if (ends) {
        remote_outage_end(remote);
    }
    bg_mutex_unlock(&remote->lock);
    if (ends) {
        bg_log(BG_LOG_INFO, "node '%s': %s is back after %.1f s", remote->node->name, remote->where,
               (double)down_ns / (double)NS_PER_S);
    }
    return up;
}

char *remote_status(Remote *remote)
{
    bg_mutex_lock(&remote->lock);
    bool down = remote->links_down > 0;
    int64_t down_ns = aio_clock_ns() - remote->down_since_ns;

    bg_mutex_unlock(&remote->lock);
    return down ? g_strdup_printf("down for %" G_GINT64_FORMAT " s", down_ns / NS_PER_S) : NULL;
}
