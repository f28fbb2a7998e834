/*
 * What a server may have forgotten in an outage.
 *
 * A write that was acknowledged and not flushed may be in the server's memory only. A copy of each is kept
 * until a flush has covered it, in the order of the answers, and when a connection is made after an outage
 * all of them are sent again before anything else. So an outage loses nothing, and a flush after it means
 * what it says.
 *
 * With several connections this must not happen while one of them still works: an old write would overwrite a
 * newer one. So they fall together, and the first that is back sends for all:
 *
 *   state     | means                           | left by
 *   ----------+---------------------------------+------------------------------------------------
 *   UP        | every link works, or has closed | a link is lost -> FALLING
 *   FALLING   | the other links are being told  | the last one is down -> DOWN
 *   DOWN      | nothing works                   | a link is connected -> RESENDING
 *   RESENDING | that link sends what is kept    | done -> RESTORED, failed -> DOWN
 *   RESTORED  | links may come up               | the last one is up -> UP, one is lost -> FALLING
 *
 * Memory is bounded by resend-buffer: when half of it is taken a flush begins beside the writes, and a write
 * that goes beyond all of it waits for one. With resend-buffer=0 nothing is kept; then the first flush after
 * an outage that may have cost writes fails with EIO, once.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "backends/protocol/remote/remote-internal.h"
#include "block/io.h"
#include "util/error.h"
#include "util/log.h"

typedef struct KeptWrite {
    GList entry;
    uint64_t number;
    int64_t offset, bytes;
    BlockRequestFlags flags;
    bool zeroes; /* else data */
    uint8_t data[];
} KeptWrite;

static int64_t cost(const KeptWrite *w)
{
    return (int64_t)sizeof *w + (w->zeroes ? 0 : w->bytes);
}

void remote_replay_free(Remote *remote) BG_NO_TSA
{
    GList *l;

    if (!g_queue_is_empty(&remote->kept)) {
        bg_log(BG_LOG_ERROR, "node '%s': %s: %u writes that were not flushed may be lost", remote->node->name,
               remote->where, g_queue_get_length(&remote->kept));
    }
    while ((l = g_queue_pop_head_link(&remote->kept))) {
        g_free(l->data);
    }
}

/* ---- Keeping */

/* NULL: nothing is to be kept, or there is no memory. */
static KeptWrite *kept_new(Remote *remote, int64_t offset, int64_t bytes, bool zeroes)
{
    KeptWrite *w = NULL;

    if (remote->options.resend_bytes > 0) {
        w = g_try_malloc(sizeof *w + (zeroes ? 0 : (size_t)bytes));
    }
    if (w) {
        *w = (KeptWrite){.offset = offset, .bytes = bytes, .zeroes = zeroes};
        w->entry.data = w;
    }
    return w;
}

static void drop_until(Remote *remote, uint64_t number)
{
    GQueue dropped = G_QUEUE_INIT;
    GList *l;

    bg_mutex_lock(&remote->lock);
    /* A late answer to a flush from before the outage; what is being sent may not go. */
    while (remote->outage != REMOTE_RESENDING && (l = remote->kept.head) &&
           ((KeptWrite *)l->data)->number <= number) {
        g_queue_unlink(&remote->kept, l);
        remote->kept_bytes -= cost(l->data);
        g_queue_push_tail_link(&dropped, l);
    }
    remote->forgotten = remote->forgotten <= number ? 0 : remote->forgotten;
    remote->flushed = MAX(remote->flushed, number);
    bg_mutex_unlock(&remote->lock);
    while ((l = g_queue_pop_head_link(&dropped))) {
        g_free(l->data);
    }
}

/* Flush, and forget what that has covered. */
static int coroutine_fn co_flush_and_drop(Remote *remote)
{
    bg_mutex_lock(&remote->lock);
    uint64_t number = remote->last_number;

    bg_mutex_unlock(&remote->lock);
    int ret = remote->write_ops->co_flush(remote->node);

    if (ret == 0) {
        drop_until(remote, number);
    }
    return ret;
}

/* Flush where more than `limit` bytes are kept, one at a time. */
static int coroutine_fn co_make_room(Remote *remote, int64_t limit)
{
    co_mutex_lock(&remote->room_lock);
    bg_mutex_lock(&remote->lock);
    bool wanted = remote->kept_bytes > limit;

    bg_mutex_unlock(&remote->lock);
    int ret = wanted ? co_flush_and_drop(remote) : 0;

    co_mutex_unlock(&remote->room_lock);
    return ret;
}

/* What fails here a write or a flush will meet again. */
static void coroutine_fn co_trim(void *opaque)
{
    Remote *remote = opaque;

    co_make_room(remote, remote->options.resend_bytes / 2);
    bg_mutex_lock(&remote->lock);
    remote->trimming = false;
    bg_mutex_unlock(&remote->lock);
    block_node_dec_in_flight(remote->node);
}

static int coroutine_fn co_keep(Remote *remote, KeptWrite *w)
{
    int64_t most = remote->options.resend_bytes;

    bg_mutex_lock(&remote->lock);
    uint64_t number = ++remote->last_number;

    if (w) {
        w->number = number;
        g_queue_push_tail_link(&remote->kept, &w->entry);
        remote->kept_bytes += cost(w);
    } else {
        remote->forgotten = number;
    }
    bool full = w && remote->kept_bytes > most;
    bool trim =
        w && !full && remote->kept_bytes > most / 2 && !remote->trimming && remote->outage == REMOTE_UP;

    remote->trimming |= trim;
    bg_mutex_unlock(&remote->lock);
    if (trim) {
        block_node_inc_in_flight(remote->node);
        aio_co_schedule(aio_context_current(), coroutine_create(co_trim, remote));
    }
    return full ? co_make_room(remote, most) : 0;
}

int coroutine_fn remote_co_wrote(Remote *remote, int64_t offset, int64_t bytes, const IoVector *qiov,
                                 size_t qiov_offset)
{
    if (!remote->write_ops) {
        return 0;
    }
    KeptWrite *w = kept_new(remote, offset, bytes, false);

    if (w) {
        io_vector_to_buf(qiov, qiov_offset, w->data, (size_t)bytes);
    }
    return co_keep(remote, w);
}

int coroutine_fn remote_co_zeroed(Remote *remote, int64_t offset, int64_t bytes, BlockRequestFlags flags)
{
    if (!remote->write_ops) {
        return 0;
    }
    KeptWrite *w = kept_new(remote, offset, bytes, true);

    if (w) {
        w->flags = flags;
    }
    return co_keep(remote, w);
}

/* ---- Flushing */

void remote_touched(Remote *remote)
{
    bg_mutex_lock(&remote->lock);
    remote->last_number++;
    bg_mutex_unlock(&remote->lock);
}

void remote_writes_lost(Remote *remote)
{
    bg_mutex_lock(&remote->lock);
    remote->lost = true;
    bg_mutex_unlock(&remote->lock);
}

int coroutine_fn remote_co_sync(Remote *remote)
{
    bg_mutex_lock(&remote->lock);
    bool wanted = remote->last_number > remote->flushed;

    bg_mutex_unlock(&remote->lock);
    int ret = wanted ? co_flush_and_drop(remote) : 0;

    if (ret < 0) {
        return ret;
    }
    bg_mutex_lock(&remote->lock);
    bool lost = remote->lost;

    remote->lost = false;
    bg_mutex_unlock(&remote->lock);
    if (lost) {
        g_autofree char *text =
            g_strdup_printf("%s: writes that had been answered and not flushed may be gone", remote->where);

        block_graph_log_error(remote->node->graph, remote->node->name, BLOCK_OP_FLUSH, -1, 0, EIO, text);
        return -EIO;
    }
    return 0;
}

/* ---- Sending again */

/* The next one after `number`, NULL at the end. Nobody takes any out while nothing works. */
static KeptWrite *next_kept(Remote *remote, const KeptWrite *w)
{
    bg_mutex_lock(&remote->lock);
    GList *l = w ? w->entry.next : remote->kept.head;

    bg_mutex_unlock(&remote->lock);
    return l ? l->data : NULL;
}

static int coroutine_fn co_resend_all(RemoteLink *link)
{
    Remote *remote = link->remote;

    for (KeptWrite *w = next_kept(remote, NULL); w; w = next_kept(remote, w)) {
        remote_link_set_deadline(link);
        int ret =
            remote->write_ops->co_resend(link, w->offset, w->bytes, w->zeroes ? NULL : w->data, w->flags);

        aio_timer_del(&link->deadline);
        if (ret == REMOTE_LOST || link->broken) {
            return -ECONNABORTED;
        }
        if (ret < 0) {
            block_graph_log_error(remote->node->graph, remote->node->name, BLOCK_OP_WRITE, w->offset,
                                  w->bytes, -ret, "after an outage, sent again");
            remote_writes_lost(remote);
        }
    }
    return 0;
}

static void set_outage(Remote *remote, RemoteOutage state) BG_REQUIRES(remote->lock)
{
    remote->outage = state;
    co_queue_restart_all(&remote->changed);
}

/* Whether this link is to send: true, with the state RESENDING; false: another one has. Neither where it is
 * broken. */
static bool coroutine_fn co_take_turn(RemoteLink *link)
{
    Remote *remote = link->remote;
    bool turn = false;

    bg_mutex_lock(&remote->lock);
    while (!link->broken && (remote->outage == REMOTE_FALLING || remote->outage == REMOTE_RESENDING)) {
        co_queue_wait_locked(&remote->changed, &remote->lock);
    }
    if (!link->broken && remote->outage == REMOTE_DOWN) {
        turn = true;
        set_outage(remote, REMOTE_RESENDING);
    }
    bg_mutex_unlock(&remote->lock);
    return turn;
}

int coroutine_fn remote_co_restore(RemoteLink *link)
{
    Remote *remote = link->remote;

    if (co_take_turn(link)) {
        int ret = co_resend_all(link);

        bg_mutex_lock(&remote->lock);
        set_outage(remote, ret == 0 ? REMOTE_RESTORED : REMOTE_DOWN);
        bg_mutex_unlock(&remote->lock);
    }
    return link->broken ? -ECONNABORTED : 0;
}

void remote_outage_link_down(Remote *remote)
{
    set_outage(remote, remote->links_down == remote->links->len ? REMOTE_DOWN : REMOTE_FALLING);
    if (remote->outage == REMOTE_DOWN && remote->forgotten) {
        remote->lost = true;
    }
}

void remote_outage_end(Remote *remote)
{
    set_outage(remote, REMOTE_UP);
}
