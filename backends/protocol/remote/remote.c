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
                 unsigned default_timeout, GError **errp)
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
    return true;
}

void remote_destroy(Remote *remote)
{
    if (remote->where) {
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
    bg_mutex_unlock(&remote->lock);
    if (atomic_load(&remote->writes) > atomic_load(&remote->writes_stable)) {
        atomic_store(&remote->writes_lost, true);
    }
    if (begins) {
        log_outage(remote, errnum, cause);
    }
}

void remote_link_up(Remote *remote)
{
    bg_mutex_lock(&remote->lock);
    bool ends = --remote->links_down == 0;
    int64_t down_ns = aio_clock_ns() - remote->down_since_ns;

    bg_mutex_unlock(&remote->lock);
    if (ends) {
        bg_log(BG_LOG_INFO, "node '%s': %s is back after %.1f s", remote->node->name, remote->where,
               (double)down_ns / (double)NS_PER_S);
    }
}

char *remote_status(Remote *remote)
{
    bg_mutex_lock(&remote->lock);
    bool down = remote->links_down > 0;
    int64_t down_ns = aio_clock_ns() - remote->down_since_ns;

    bg_mutex_unlock(&remote->lock);
    return down ? g_strdup_printf("down for %" G_GINT64_FORMAT " s", down_ns / NS_PER_S)
                : g_strdup("connected");
}

/* ---- Writes and flushes */

void remote_wrote(Remote *remote)
{
    atomic_fetch_add(&remote->writes, 1);
}

static void raise_to(_Atomic uint64_t *counter, uint64_t value)
{
    uint64_t old = atomic_load(counter);

    while (old < value && !atomic_compare_exchange_weak(counter, &old, value)) {
    }
}

int coroutine_fn remote_co_flush(Remote *remote, int coroutine_fn (*co_flush)(BlockNode *node))
{
    uint64_t writes = atomic_load(&remote->writes);
    int ret = co_flush(remote->node);

    /* After the flush: a connection lost meanwhile may have taken writes with it, also where it was sent
     * again. */
    if (ret < 0) {
        return ret;
    }
    raise_to(&remote->writes_stable, writes);
    if (atomic_exchange(&remote->writes_lost, false)) {
        g_autofree char *text = g_strdup_printf(
            "%s: was lost with writes that had not been flushed: they may be gone", remote->where);

        block_graph_log_error(remote->node->graph, remote->node->name, BLOCK_OP_FLUSH, -1, 0, EIO, text);
        return -EIO;
    }
    return 0;
}
