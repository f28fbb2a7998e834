/*
 * Ranges in memory: those that somebody reads, and those that are read ahead.
 *
 * A fetch is one range of the resource, its memory, and the transfer that fills it from its start on. Readers
 * wait for the part that they need, and copy; who waits for just what comes next gets it from libcurl's
 * memory. What has been read once is dropped: the kernel has it in its cache. States of a fetch:
 *
 *   state    | means                                 | left by
 *   ---------+---------------------------------------+----------------------------------------------------
 *   QUEUED   | all connections are in use            | one gets free -> RUNNING; disconnect -> FAILED
 *   RUNNING  | its transfer runs                     | all is there -> DONE; broken, with progress -> RUNNING
 *            |                                       | (from there on), without -> FAILED; busy -> RESTING
 *   RESTING  | the server wants to be asked later    | timer -> RUNNING; disconnect -> FAILED
 *   DONE     | all of it is there                    | read to its end, or others need the memory: freed
 *   FAILED   | error is set; in no list              | the last reader leaves: freed
 *
 * RUNNING and RESTING count in s->running.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "backends/protocol/http/fetch.h"
#include "block/io.h"

#define GIVE_UP_NS (60 * HTTP_NS_PER_S) /* with busy servers, where there is no deadline */
#define SPARES_MAX 16

/* Somebody who reads [offset, need), and waits for it. */
typedef struct HttpWaiter {
    Coroutine *co;
    int64_t offset, need;
    const IoVector *qiov; /* where it goes, from `skip` on */
    size_t skip;
    bool woken;
    GList entry;
} HttpWaiter;

static const HttpTransferOps fetch_ops;

/* ---- Memory */

static uint8_t *take_buffer(HttpState *s, size_t size)
{
    if (size == HTTP_CHUNK_MAX && s->spares->len) {
        return g_ptr_array_steal_index_fast(s->spares, s->spares->len - 1);
    }
    return g_malloc(size);
}

static void give_buffer(HttpState *s, uint8_t *buf, size_t size)
{
    if (size == HTTP_CHUNK_MAX && s->spares->len < SPARES_MAX) {
        g_ptr_array_add(s->spares, buf);
    } else {
        g_free(buf);
    }
}

void http_fetch_unref(HttpFetch *f)
{
    HttpState *s = f->t.s;

    if (--f->refs == 0) {
        http_transfer_destroy(&f->t);
        give_buffer(s, f->buf, f->capacity);
        g_free(f);
    }
}

/* Out of the list: nobody finds it any more. */
static void unlist(HttpFetch *f)
{
    HttpState *s = f->t.s;

    if (f->listed) {
        f->listed = false;
        g_queue_unlink(&s->fetches, &f->entry);
        s->held_bytes -= f->capacity;
        http_fetch_unref(f);
    }
}

/* ---- Waiting */

static void wake(HttpFetch *f, HttpWaiter *w)
{
    g_queue_unlink(&f->waiters, &w->entry);
    w->woken = true;
    aio_co_schedule(f->t.s->link.ctx, w->co);
}

/* Those that have what they need, or all. Also inside of libcurl. */
static void wake_waiters(HttpFetch *f, bool all)
{
    for (GList *l = f->waiters.head, *next; l; l = next) {
        HttpWaiter *w = l->data;

        next = l->next;
        if (all || w->need <= f->filled) {
            wake(f, w);
        }
    }
}

static void coroutine_fn wait_woken(HttpFetch *f, HttpWaiter *w)
{
    w->entry.data = w;
    g_queue_push_tail_link(&f->waiters, &w->entry);
    while (!w->woken) {
        coroutine_yield();
    }
}

/* ---- Handing out */

/* Whether, but for `w`, nobody waits for bytes before `offset`. */
static bool nobody_before(const HttpFetch *f, const HttpWaiter *w, int64_t offset)
{
    for (const GList *l = f->waiters.head; l; l = l->next) {
        const HttpWaiter *other = l->data;

        if (other != w && other->offset < offset) {
            return false;
        }
    }
    return true;
}

static void give(HttpWaiter *w, const uint8_t *data, int64_t n)
{
    io_vector_from_buf(w->qiov, w->skip, data, (size_t)n);
    w->skip += (size_t)n;
    w->offset += n;
}

/* From memory, as far as it is there. */
static void take_filled(HttpFetch *f, HttpWaiter *w)
{
    int64_t n = MIN(f->filled, w->need) - w->offset;
    bool in_order = w->offset == f->start && !f->t.s->cache;

    if (n > 0) {
        give(w, f->buf + (w->offset - f->base), n);
        if (in_order && nobody_before(f, w, w->offset)) {
            f->start = w->offset;
        }
    }
}

/* Who may have what comes next without a stop in memory: all before it has been read, and nobody else wants
 * it. */
static HttpWaiter *direct_waiter(const HttpFetch *f)
{
    if (f->start != f->filled || f->t.s->cache) {
        return NULL;
    }
    for (const GList *l = f->waiters.head; l; l = l->next) {
        HttpWaiter *w = l->data;

        if (w->offset == f->filled && w->need > f->filled) {
            return nobody_before(f, w, w->need) ? w : NULL;
        }
    }
    return NULL;
}

static void deliver(HttpFetch *f, const uint8_t *data, int64_t n)
{
    while (n > 0) {
        HttpWaiter *w = direct_waiter(f);
        int64_t part = n;

        if (w) {
            part = MIN(n, w->need - w->offset);
            give(w, data, part);
            f->start += part;
        } else {
            memcpy(f->buf + (f->filled - f->base), data, (size_t)n);
        }
        f->filled += part;
        data += part;
        n -= part;
    }
}

/* ---- States */

static void start_queued(HttpState *s);

static void begin_transfer(HttpFetch *f)
{
    f->state = HTTP_FETCH_RUNNING;
    f->mark = f->filled;
    f->begun_ns = aio_clock_ns();
    http_transfer_start(&f->t, f->filled, f->end);
}

static void leave_running(HttpFetch *f)
{
    HttpState *s = f->t.s;

    if (f->state == HTTP_FETCH_QUEUED) {
        g_queue_unlink(&s->queued, &f->queue_entry);
    } else if (f->state == HTTP_FETCH_RUNNING || f->state == HTTP_FETCH_RESTING) {
        aio_timer_del(&f->retry);
        s->running--;
    }
}

/* error: -errno or REMOTE_LOST. */
static void fail(HttpFetch *f, int error)
{
    HttpState *s = f->t.s;

    f->refs++;
    leave_running(f);
    http_transfer_abort(&f->t);
    f->state = HTTP_FETCH_FAILED;
    f->error = error;
    wake_waiters(f, true);
    unlist(f);
    http_fetch_unref(f);
    start_queued(s);
}

static void finish(HttpFetch *f)
{
    HttpState *s = f->t.s;

    leave_running(f);
    f->state = HTTP_FETCH_DONE;
    wake_waiters(f, true);
    http_cache_insert(s, f);
    if (f->start == f->end) {
        unlist(f);
    }
    start_queued(s);
}

static void start_queued(HttpState *s)
{
    while (!s->disconnecting && s->running < s->o.connections && !g_queue_is_empty(&s->queued)) {
        HttpFetch *f = s->queued.head->data;

        g_queue_unlink(&s->queued, &f->queue_entry);
        s->running++;
        begin_transfer(f);
    }
}

static void retry(void *opaque)
{
    begin_transfer(opaque);
}

/* ---- The transfer */

static void note_delay(HttpFetch *f)
{
    HttpState *s = f->t.s;

    if (f->begun_ns) {
        s->delay_ns += (aio_clock_ns() - f->begun_ns - s->delay_ns) / 8;
        f->begun_ns = 0;
    }
}

static size_t fetch_data(HttpTransfer *t, const uint8_t *data, size_t n)
{
    HttpFetch *f = (HttpFetch *)t;
    note_delay(f);
    size_t fits = MIN(n, (size_t)(f->end - f->filled));

    deliver(f, data, (int64_t)fits);
    wake_waiters(f, false);
    if (t->s->o.ftp) {
        t->complete = f->filled == f->end; /* there a part has no end: the rest is not read */
        return n;
    }
    if (fits < n) {
        t->result = (HttpResult){HTTP_REFUSED, EPROTO, g_strdup("the server sends more than was asked for")};
    }
    return fits;
}

static void log_error(HttpFetch *f, int errnum, const char *text)
{
    HttpState *s = f->t.s;
    g_autofree char *line = g_strdup_printf("%s: %s", s->o.where, text);

    block_graph_log_error(s->node->graph, s->node->name, BLOCK_OP_READ, f->filled, f->end - f->filled, errnum,
                          line);
}

/* What a reader gets: few errors of opening say something to who reads a file. */
static int read_errno(int errnum)
{
    return errnum == EACCES || errnum == ENOMEM || errnum == EBUSY ? errnum : EIO;
}

static void refused(HttpFetch *f, const HttpResult *result)
{
    int errnum = read_errno(result->errnum);

    if (!g_queue_is_empty(&f->waiters)) {
        log_error(f, errnum, result->text);
    }
    fail(f, -errnum);
}

/* Asked to come again: as told, as long as that is within the deadline. */
static void busy(HttpFetch *f, const HttpResult *result)
{
    int64_t after_s = f->t.reply.retry_after_s, now_ns = aio_clock_ns();
    int64_t wait_ns =
        after_s >= 0 ? MIN(after_s, 1000000) * HTTP_NS_PER_S : (HTTP_NS_PER_S / 4) << MIN(f->tries, 5);

    if (now_ns + wait_ns > f->give_up_ns || (g_queue_is_empty(&f->waiters) && after_s != 0)) {
        refused(f, result);
        return;
    }
    f->tries++;
    f->state = HTTP_FETCH_RESTING;
    aio_timer_mod(&f->retry, now_ns + MAX(wait_ns, HTTP_NS_PER_S / 100));
}

/* The connection broke. What is there is kept, and the rest asked for again; where nothing came, and somebody
 * waits, the server counts as away. */
static void broken(HttpFetch *f, const HttpResult *result)
{
    if (f->filled > f->mark) {
        begin_transfer(f);
        return;
    }
    bool wanted = !g_queue_is_empty(&f->waiters);
    HttpState *s = f->t.s;

    fail(f, REMOTE_LOST);
    if (wanted) {
        remote_link_lost(&s->link, result->errnum, result->text);
    }
}

static void fetch_done(HttpTransfer *t)
{
    HttpFetch *f = (HttpFetch *)t;
    HttpState *s = t->s;
    HttpResult result = t->result;

    t->result.text = NULL;
    g_autofree char *text = result.text ? result.text : g_strdup("the server sends less than it announced");

    result.text = text;
    switch (result.outcome) {
    case HTTP_OK:
        if (f->filled == f->end) {
            finish(f);
        } else {
            result.errnum = EPROTO;
            broken(f, &result);
        }
        break;
    case HTTP_BROKEN:
        if (f->filled == f->end) {
            finish(f);
        } else {
            broken(f, &result);
        }
        break;
    case HTTP_BUSY:
        busy(f, &result);
        break;
    case HTTP_CHANGED:
        fail(f, REMOTE_LOST);
        remote_link_changed(&s->link, text);
        break;
    case HTTP_LOST:
        fail(f, REMOTE_LOST);
        break;
    default:
        refused(f, &result);
    }
}

static const HttpTransferOps fetch_ops = {fetch_data, fetch_done};

/* ---- The list */

static HttpFetch *find(HttpState *s, int64_t offset)
{
    for (GList *l = s->fetches.head; l; l = l->next) {
        HttpFetch *f = l->data;

        if (offset >= f->start && offset < f->end) {
            return f;
        }
    }
    return NULL;
}

bool http_fetch_has(HttpState *s, int64_t offset)
{
    return find(s, offset) != NULL;
}

/* Where the last fetch before `offset` ends, or `start`. */
static int64_t gap_start(HttpState *s, int64_t start, int64_t offset)
{
    for (GList *l = s->fetches.head; l; l = l->next) {
        HttpFetch *f = l->data;

        if (f->end > start && f->end <= offset) {
            start = f->end;
        }
    }
    return start;
}

/* Where the next fetch after `offset` begins, or `end`. */
static int64_t gap_end(HttpState *s, int64_t offset, int64_t end)
{
    for (GList *l = s->fetches.head; l; l = l->next) {
        HttpFetch *f = l->data;

        if (f->start > offset && f->start < end) {
            end = f->start;
        }
    }
    return end;
}

/* Make room for `more` bytes: the oldest go first, those nobody reads. */
static void make_room(HttpState *s, int64_t more)
{
    int64_t bound = (int64_t)HTTP_CHUNK_MAX * 2 * (s->o.connections + 1);

    for (GList *l = s->fetches.head, *next; l && s->held_bytes + more > bound; l = next) {
        HttpFetch *f = l->data;

        next = l->next;
        if (f->state == HTTP_FETCH_DONE && f->refs == 1) {
            unlist(f);
        }
    }
}

/* Of what holds `offset`, which no fetch has, and of [start, end) around it as much as none has. */
static HttpFetch *fetch_new(HttpState *s, int64_t start, int64_t offset, int64_t end)
{
    HttpFetch *f = g_new0(HttpFetch, 1);
    int64_t timeout_ns = s->remote.options.timeout_ns;

    start = gap_start(s, start, offset);
    end = gap_end(s, offset, end);
    f->capacity = (size_t)(end - start);
    make_room(s, (int64_t)f->capacity);
    http_transfer_init(&f->t, s, &fetch_ops);
    f->base = f->start = f->filled = start;
    f->end = end;
    f->buf = take_buffer(s, f->capacity);
    f->give_up_ns = aio_clock_ns() + (timeout_ns ? timeout_ns : GIVE_UP_NS);
    aio_timer_init(&f->retry, s->link.ctx, retry, f);
    g_queue_init(&f->waiters);
    f->entry.data = f->queue_entry.data = f;
    f->refs = 1;
    f->listed = true;
    s->held_bytes += (int64_t)f->capacity;
    g_queue_push_tail_link(&s->fetches, &f->entry);
    f->state = HTTP_FETCH_QUEUED;
    g_queue_push_tail_link(&s->queued, &f->queue_entry);
    start_queued(s);
    return f;
}

/* ---- Reading */

/* A reader leaves: what nobody will want again goes. */
static void leave(HttpFetch *f, int64_t taken)
{
    HttpState *s = f->t.s;

    f->taken += taken;
    if (f->state == HTTP_FETCH_DONE && (f->start == f->end || f->taken >= f->end - f->base)) {
        unlist(f);
    } else if (s->quiet && f->refs == 2 && f->listed && f->state != HTTP_FETCH_DONE) {
        fail(f, REMOTE_LOST);
    }
    http_fetch_unref(f);
}

/* From the fetch that has, or will have, offset, with a reference that it takes: bytes copied, or an error.
 */
static int64_t coroutine_fn read_part(HttpFetch *f, int64_t offset, int64_t bytes, const IoVector *qiov,
                                      size_t skip)
{
    int64_t end = MIN(offset + bytes, f->end);
    HttpWaiter w = {.co = coroutine_self(), .offset = offset, .need = end, .qiov = qiov, .skip = skip};

    take_filled(f, &w);
    if (w.offset < end && f->state != HTTP_FETCH_FAILED) {
        wait_woken(f, &w);
        take_filled(f, &w);
    }
    int64_t ret = w.offset == end ? end - offset : f->error;

    leave(f, MAX(ret, 0));
    return ret;
}

int coroutine_fn http_fetch_co_read(HttpState *s, int64_t offset, int64_t bytes, const IoVector *qiov,
                                    size_t qiov_offset)
{
    HttpStream *stream = http_stream_find(s, offset, bytes);

    while (bytes > 0) {
        HttpFetch *f = find(s, offset);

        if (!f) {
            int64_t end = http_stream_fetch_end(s, stream, offset, bytes);

            f = fetch_new(s, http_fetch_align(s, offset), offset, end);
        }
        f->refs++; /* or what is read ahead might need its memory */
        http_read_ahead(s, stream);
        int64_t n = read_part(f, offset, bytes, qiov, qiov_offset);

        if (n < 0) {
            return (int)n;
        }
        offset += n;
        bytes -= n;
        qiov_offset += (size_t)n;
    }
    return 0;
}

bool http_fetch_ahead(HttpState *s, int64_t *offset, int64_t bytes)
{
    HttpFetch *f = find(s, *offset);

    if (!f) {
        if (s->running + 1 >= MAX(s->o.connections, 2)) {
            return false;
        }
        f = fetch_new(s, *offset, *offset, MIN(*offset + bytes, s->pin.size));
    }
    *offset = f->end;
    return true;
}

/* ---- All of them */

void http_fetches_init(HttpState *s)
{
    g_queue_init(&s->fetches);
    g_queue_init(&s->queued);
    s->spares = g_ptr_array_new_with_free_func(g_free);
    http_streams_init(s);
}

/* fail() takes it out of the list, and may start others: look from the beginning again. */
static void fail_unfinished(HttpState *s, bool only_unwanted)
{
    for (GList *l = s->fetches.head; l;) {
        HttpFetch *f = l->data;

        l = l->next;
        if (f->state != HTTP_FETCH_DONE && (!only_unwanted || f->refs == 1)) {
            fail(f, REMOTE_LOST);
            l = s->fetches.head;
        }
    }
}

void http_fetches_disconnect(HttpState *s)
{
    fail_unfinished(s, false);
}

void http_fetches_quiet(HttpState *s)
{
    fail_unfinished(s, true);
}

void http_fetches_destroy(HttpState *s)
{
    if (!s->spares) {
        return;
    }
    fail_unfinished(s, false);
    while (!g_queue_is_empty(&s->fetches)) {
        unlist(s->fetches.head->data);
    }
    g_clear_pointer(&s->spares, g_ptr_array_unref);
}
