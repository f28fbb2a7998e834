/*
 * RemoteLink: one connection, its attempts, and the requests that wait for it.
 *
 *   state      | means                           | left by
 *   -----------+---------------------------------+--------------------------------------------
 *   CLOSED     | not opened, or closed           | open -> CONNECTING
 *   CONNECTING | an attempt runs (link->attempt) | success -> CONNECTED
 *              |                                 | failure -> BACKOFF, or RESTING
 *              |                                 | another resource -> CHANGED
 *   CONNECTED  | requests are sent               | loss -> BACKOFF, or RESTING
 *              |                                 | another resource -> CHANGED
 *   BACKOFF    | timer `retry` runs              | timer -> CONNECTING
 *              |                                 | drained section, move -> RESTING
 *   RESTING    | lost, and quiet: in a drained   | a request, the section's end -> BACKOFF
 *              | section, or between two threads |
 *   CHANGED    | requests fail with -ESTALE      |
 *   all        |                                 | close -> CLOSED
 *
 * Attempts go on for as long as the link is down, whether somebody waits or not, but in a drained section:
 * there only while requests wait. An attempt counts in the node's in_flight, so that a section waits for its
 * end, which begins with a disconnect.
 *
 * All of it runs in the thread of link->ctx; other threads send bottom halves there.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "backends/protocol/remote/remote-internal.h"
#include "util/error.h"
#include "util/log.h"

#define NS_PER_S       INT64_C(1000000000)
#define BACKOFF_MIN_NS (NS_PER_S / 10) /* of the first attempt; twice as long for each one after */
#define BACKOFF_MAX_NS (8 * NS_PER_S)

/* A request that waits for the link to change its state. */
typedef struct RemoteWaiter {
    RemoteLink *link;
    Coroutine *co;
    AioTimer timer;
    GList entry;
    bool queued; /* in link->waiters: nobody has woken it */
} RemoteWaiter;

static void set_state(RemoteLink *link, RemoteLinkState state)
{
    static const uint8_t allowed[] = {
        [REMOTE_LINK_CLOSED] = 1 << REMOTE_LINK_CONNECTING,
        [REMOTE_LINK_CONNECTING] = 1 << REMOTE_LINK_CONNECTED | 1 << REMOTE_LINK_BACKOFF |
                                   1 << REMOTE_LINK_RESTING | 1 << REMOTE_LINK_CHANGED |
                                   1 << REMOTE_LINK_CLOSED,
        [REMOTE_LINK_CONNECTED] = 1 << REMOTE_LINK_BACKOFF | 1 << REMOTE_LINK_RESTING |
                                  1 << REMOTE_LINK_CHANGED | 1 << REMOTE_LINK_CLOSED,
        [REMOTE_LINK_BACKOFF] =
            1 << REMOTE_LINK_CONNECTING | 1 << REMOTE_LINK_RESTING | 1 << REMOTE_LINK_CLOSED,
        [REMOTE_LINK_RESTING] = 1 << REMOTE_LINK_BACKOFF | 1 << REMOTE_LINK_CLOSED,
        [REMOTE_LINK_CHANGED] = 1 << REMOTE_LINK_CLOSED,
    };

    if (bg_unlikely(!(allowed[link->state] & 1 << state))) {
        bg_fatal("internal error: node '%s': a connection went from state %d to %d", link->remote->node->name,
                 link->state, state);
    }
    link->state = state;
}

/* To the link's thread; sections wait for it. `bh` ends with block_node_dec_in_flight(). Any thread. */
static void send_bh(RemoteLink *link, AioHandler *bh)
{
    block_node_inc_in_flight(link->remote->node);
    aio_bh_schedule_oneshot(link->ctx, bh, link);
}

/* ---- Waiting */

/* Outside of coroutines this runs the request, which may wait again: so only those that wait now. */
static void wake_all(RemoteLink *link)
{
    GQueue now = link->waiters;
    GList *entry;

    g_queue_init(&link->waiters);
    for (GList *l = now.head; l; l = l->next) {
        ((RemoteWaiter *)l->data)->queued = false;
    }
    while ((entry = g_queue_pop_head_link(&now))) {
        aio_co_wake(((RemoteWaiter *)entry->data)->co);
    }
}

static void waiter_timeout(void *opaque)
{
    RemoteWaiter *waiter = opaque;

    if (waiter->queued) {
        waiter->queued = false;
        g_queue_unlink(&waiter->link->waiters, &waiter->entry);
        aio_co_wake(waiter->co);
    }
}

/* Until the state changes, or `until_ns`. */
static void coroutine_fn co_wait(RemoteLink *link, int64_t until_ns)
{
    RemoteWaiter waiter = {.link = link, .co = coroutine_self(), .queued = true};

    waiter.entry.data = &waiter;

    aio_timer_init(&waiter.timer, link->ctx, waiter_timeout, &waiter);
    if (until_ns != INT64_MAX) {
        aio_timer_mod(&waiter.timer, until_ns);
    }
    g_queue_push_tail_link(&link->waiters, &waiter.entry);
    coroutine_yield();
    aio_timer_del(&waiter.timer);
}

/* ---- Attempts */

/* With jitter, so that the clients of a server that comes back do not all come at once. */
static int64_t backoff_ns(const RemoteLink *link)
{
    int64_t ns = MIN(BACKOFF_MIN_NS << MIN(link->attempts, 16), BACKOFF_MAX_NS);

    return ns / 2 + (int64_t)((double)ns * g_random_double() / 2);
}

/* The link is down: plan an attempt, unless it is to be quiet. */
static void go_down(RemoteLink *link)
{
    if (link->quiet && g_queue_is_empty(&link->waiters)) {
        set_state(link, REMOTE_LINK_RESTING);
    } else {
        set_state(link, REMOTE_LINK_BACKOFF);
        aio_timer_mod(&link->retry, aio_clock_ns() + backoff_ns(link));
    }
}

/* The attempt under way, wherever it is, is to fail. */
static void break_attempt(RemoteLink *link)
{
    link->broken = true;
    link->ops->disconnect(link);
    co_queue_restart_all(&link->remote->changed);
}

static void deadline_passed(void *opaque)
{
    RemoteLink *link = opaque;

    link->timed_out = true;
    break_attempt(link);
}

void remote_link_set_deadline(RemoteLink *link)
{
    if (link->remote->options.timeout_ns) {
        aio_timer_mod(&link->deadline, aio_clock_ns() + link->remote->options.timeout_ns);
    }
}

static int coroutine_fn co_connect(RemoteLink *link, GError **errp)
{
    Remote *remote = link->remote;

    link->attempts++;
    link->timed_out = link->broken = false;
    remote_link_set_deadline(link);
    int ret = link->ops->co_connect(link, link->was_connected, errp);

    aio_timer_del(&link->deadline);
    if (ret == 0 && link->is_down) {
        ret = remote_co_restore(link);
        if (ret < 0) {
            link->ops->disconnect(link);
            bg_error_set(errp, -ret, "the connection was lost again");
        }
    }
    if (ret < 0 && link->timed_out) {
        g_clear_error(errp);
        return bg_error_set(errp, ETIMEDOUT, "no answer within %" G_GINT64_FORMAT " s",
                            remote->options.timeout_ns / NS_PER_S);
    }
    if (ret == 0) {
        link->attempts = 0;
        link->was_connected = true;
    }
    return ret;
}

/* False where the others have fallen again in this moment. */
static bool count_up(RemoteLink *link)
{
    if (link->is_down && !remote_link_up(link->remote)) {
        return false;
    }
    link->is_down = false;
    return true;
}

static void become_changed(RemoteLink *link, const char *cause)
{
    BlockNode *node = link->remote->node;

    set_state(link, REMOTE_LINK_CHANGED);
    bg_log(BG_LOG_ERROR, "node '%s': %s: %s", node->name, link->remote->where, cause);
    block_graph_log_error(node->graph, node->name, BLOCK_OP_CONNECT, -1, 0, ESTALE, cause);
}

static void coroutine_fn co_attempt(void *opaque)
{
    RemoteLink *link = opaque;
    g_autoptr(GError) err = NULL;
    int ret = co_connect(link, &err);

    link->attempt = NULL;
    if (ret == 0 && !count_up(link)) {
        link->ops->disconnect(link);
        ret = -ECONNABORTED;
    }
    if (ret == 0) {
        set_state(link, REMOTE_LINK_CONNECTED);
    } else if (ret == -ESTALE) {
        become_changed(link, err->message);
    } else {
        go_down(link);
    }
    wake_all(link);
    block_node_dec_in_flight(link->remote->node);
}

static void retry_now(void *opaque)
{
    RemoteLink *link = opaque;

    set_state(link, REMOTE_LINK_CONNECTING);
    block_node_inc_in_flight(link->remote->node);
    link->attempt = coroutine_create(co_attempt, link);
    aio_co_enter(link->ctx, link->attempt);
}

/* ---- The daemon's end */

static void limit_passed(void *opaque)
{
    RemoteLink *link = opaque;

    wake_all(link);
    if (link->running) {
        remote_link_lost(link, ETIMEDOUT, "no answer, and the daemon is to end");
    }
}

static void limit_bh(void *opaque)
{
    RemoteLink *link = opaque;

    aio_timer_mod(&link->limit, remote_limit_waits(link->remote));
    block_node_dec_in_flight(link->remote->node);
}

void remote_link_limit_waits(RemoteLink *link)
{
    if (!link->closing) {
        send_bh(link, limit_bh);
    }
}

/* ---- Opening and closing */

void remote_link_init(RemoteLink *link, Remote *remote, const RemoteLinkOps *ops, void *opaque,
                      AioContext *ctx)
{
    *link = (RemoteLink){.remote = remote, .ops = ops, .opaque = opaque, .ctx = ctx};
    g_queue_init(&link->waiters);
    aio_timer_init(&link->retry, ctx, retry_now, link);
    aio_timer_init(&link->deadline, ctx, deadline_passed, link);
    aio_timer_init(&link->limit, ctx, limit_passed, link);
}

/* Before it can be lost: in its thread. */
static void enlist(RemoteLink *link)
{
    Remote *remote = link->remote;

    bg_mutex_lock(&remote->lock);
    g_ptr_array_add(remote->links, link);
    bg_mutex_unlock(&remote->lock);
}

static void delist(RemoteLink *link)
{
    Remote *remote = link->remote;

    bg_mutex_lock(&remote->lock);
    g_ptr_array_remove(remote->links, link);
    bg_mutex_unlock(&remote->lock);
}

int coroutine_fn remote_link_co_open(RemoteLink *link, int64_t patience_ns, GError **errp)
{
    int64_t until_ns = aio_clock_ns() + patience_ns;
    AioContext *main_context = aio_context_current();
    g_autoptr(GError) err = NULL;

    aio_co_reschedule_self(link->ctx);
    set_state(link, REMOTE_LINK_CONNECTING);
    int ret = co_connect(link, &err);

    while (ret < 0 && ret != -ESTALE && aio_clock_ns() < until_ns) {
        aio_co_sleep_ns(MIN(backoff_ns(link), NS_PER_S));
        g_clear_error(&err);
        ret = co_connect(link, &err);
    }
    set_state(link, ret == 0 ? REMOTE_LINK_CONNECTED : REMOTE_LINK_CLOSED);
    if (ret == 0) {
        enlist(link);
    }
    aio_co_reschedule_self(main_context);
    if (ret < 0) {
        return bg_error_set(errp, -ret, "node '%s': %s: %s", link->remote->node->name, link->remote->where,
                            err->message);
    }
    return 0;
}

/* End an attempt under way, in the link's thread. */
static void coroutine_fn co_stop_attempts(RemoteLink *link)
{
    aio_timer_del(&link->retry);
    while (link->attempt) {
        break_attempt(link);
        co_wait(link, INT64_MAX);
    }
    aio_timer_del(&link->retry);
}

void coroutine_fn remote_link_co_close(RemoteLink *link)
{
    AioContext *main_context = aio_context_current();

    link->closing = true;
    delist(link);
    /* Behind the bottom halves that were sent there, also where "there" is here. */
    aio_co_schedule(link->ctx, coroutine_self());
    coroutine_yield();
    co_stop_attempts(link);
    link->ops->disconnect(link);
    aio_timer_del(&link->limit);
    if (link->state != REMOTE_LINK_CLOSED) {
        set_state(link, REMOTE_LINK_CLOSED);
    }
    aio_co_reschedule_self(main_context);
}

/* ---- Requests */

/* A request that is sent. */
typedef struct RemoteRequest {
    RemoteLink *link;
    AioTimer timer;
} RemoteRequest;

static void request_timeout(void *opaque)
{
    RemoteRequest *request = opaque;
    RemoteLink *link = request->link;
    int64_t until_ns = link->progress_ns + link->remote->options.timeout_ns;

    if (aio_clock_ns() < until_ns) {
        aio_timer_mod(&request->timer, until_ns);
        return;
    }
    g_autofree char *cause = g_strdup_printf("no answer within %" G_GINT64_FORMAT " s",
                                             link->remote->options.timeout_ns / NS_PER_S);

    remote_link_lost(link, ETIMEDOUT, cause);
}

/* 0: connected. */
static int coroutine_fn co_wait_connected(RemoteLink *link)
{
    while (link->state != REMOTE_LINK_CONNECTED) {
        if (link->state == REMOTE_LINK_CHANGED) {
            return -ESTALE;
        }
        int64_t until_ns = remote_wait_until(link->remote);

        if (aio_clock_ns() >= until_ns) {
            return -EIO;
        }
        if (link->state == REMOTE_LINK_RESTING) {
            set_state(link, REMOTE_LINK_BACKOFF);
            aio_timer_mod(&link->retry, aio_clock_ns());
        }
        co_wait(link, until_ns);
    }
    return 0;
}

void remote_link_progress(RemoteLink *link)
{
    link->progress_ns = aio_clock_ns();
}

/* Who says on-outage=pause wants no error but for the end of the world: docs/outages.md. */
static bool may_resend(const RemoteLink *link, RemoteResend resend)
{
    return resend == REMOTE_RESEND ||
           (resend == REMOTE_RESEND_IF_BROKEN && (!link->timed_out || link->remote->options.pause));
}

static int coroutine_fn co_try_once(RemoteLink *link, RemoteTry *co_try, void *opaque)
{
    int64_t timeout_ns = link->remote->options.timeout_ns;
    RemoteRequest request = {.link = link};

    aio_timer_init(&request.timer, link->ctx, request_timeout, &request);
    if (timeout_ns) {
        aio_timer_mod(&request.timer, aio_clock_ns() + timeout_ns);
    }
    link->running++;
    int ret = co_try(link, opaque);

    link->running--;
    aio_timer_del(&request.timer);
    return ret;
}

/* A request that takes the connection down each time may not go on for ever. */
static bool patience_ends(const RemoteLink *link, int64_t first_lost_ns)
{
    const RemoteOptions *o = &link->remote->options;

    return !o->pause && aio_clock_ns() - first_lost_ns > o->reconnect_delay_ns;
}

int coroutine_fn remote_link_co_run(RemoteLink *link, RemoteTry *co_try, void *opaque, RemoteResend resend)
{
    int64_t first_lost_ns = 0;

    for (;;) {
        int ret = co_wait_connected(link);

        if (ret == 0) {
            ret = co_try_once(link, co_try, opaque);
        }
        if (ret != REMOTE_LOST) {
            return ret;
        }
        first_lost_ns = first_lost_ns ? first_lost_ns : aio_clock_ns();
        if (!may_resend(link, resend) || patience_ends(link, first_lost_ns)) {
            return -EIO;
        }
    }
}

static void lose(RemoteLink *link, int errnum, const char *cause)
{
    link->timed_out = errnum == ETIMEDOUT;
    link->is_down = true;
    remote_link_down(link->remote, errnum, cause);
    go_down(link);
    link->ops->disconnect(link);
}

static void follow_bh(void *opaque)
{
    RemoteLink *link = opaque;

    if (link->state == REMOTE_LINK_CONNECTED) {
        lose(link, ECONNABORTED, "another connection to it was lost");
    }
    block_node_dec_in_flight(link->remote->node);
}

/* All links fall together, see replay.c. */
static void tell_others(RemoteLink *link)
{
    Remote *remote = link->remote;

    bg_mutex_lock(&remote->lock);
    for (guint i = 0; i < remote->links->len; i++) {
        RemoteLink *other = remote->links->pdata[i];

        if (other != link) {
            send_bh(other, follow_bh);
        }
    }
    bg_mutex_unlock(&remote->lock);
}

void remote_link_lost(RemoteLink *link, int errnum, const char *cause)
{
    if (link->state == REMOTE_LINK_CONNECTING) {
        link->broken = true;
    } else if (link->state == REMOTE_LINK_CONNECTED) {
        lose(link, errnum, cause);
        tell_others(link);
    }
}

void remote_link_changed(RemoteLink *link, const char *cause)
{
    if (link->state == REMOTE_LINK_CONNECTED) {
        become_changed(link, cause);
        link->ops->disconnect(link);
        wake_all(link);
    }
}

/* ---- Drained sections, and other threads */

static void quiet_bh(void *opaque)
{
    RemoteLink *link = opaque;

    link->quiet = true;
    if (g_queue_is_empty(&link->waiters)) {
        if (link->state == REMOTE_LINK_BACKOFF) {
            aio_timer_del(&link->retry);
            set_state(link, REMOTE_LINK_RESTING);
        } else if (link->attempt) {
            break_attempt(link);
        }
    }
    block_node_dec_in_flight(link->remote->node);
}

void remote_link_drain_begin(RemoteLink *link)
{
    send_bh(link, quiet_bh);
}

static void go_on_bh(void *opaque)
{
    RemoteLink *link = opaque;

    link->quiet = false;
    if (link->state == REMOTE_LINK_RESTING) {
        go_down(link);
    }
    block_node_dec_in_flight(link->remote->node);
}

void remote_link_drain_end(RemoteLink *link)
{
    send_bh(link, go_on_bh);
}

void coroutine_fn remote_link_co_detach(RemoteLink *link)
{
    co_stop_attempts(link);
    aio_timer_del(&link->limit);
    if (link->state == REMOTE_LINK_CONNECTED) {
        link->ops->detach(link);
    } else if (link->state == REMOTE_LINK_BACKOFF) {
        set_state(link, REMOTE_LINK_RESTING);
    }
}

void coroutine_fn remote_link_co_attach(RemoteLink *link, AioContext *ctx)
{
    link->ctx = ctx;
    aio_timer_init(&link->retry, ctx, retry_now, link);
    aio_timer_init(&link->deadline, ctx, deadline_passed, link);
    aio_timer_init(&link->limit, ctx, limit_passed, link);
    if (atomic_load(&link->remote->wait_limit_ns) != INT64_MAX) {
        aio_timer_mod(&link->limit, atomic_load(&link->remote->wait_limit_ns));
    }
    if (link->state == REMOTE_LINK_CONNECTED) {
        link->ops->attach(link);
    }
}
