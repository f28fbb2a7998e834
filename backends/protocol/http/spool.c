/*
 * A server without ranges: the whole resource is fetched, in the background, into a file without a name, and
 * reads wait until it is there up to where they need it.
 *
 * The transfer fills one block while a coroutine writes the other one; where both are full, and in a drained
 * section that no read waits in, libcurl is told to pause. A transfer that broke begins at the beginning:
 * what is stored already is compared, not written, so that bytes of another version are noticed also where
 * the server tells no validator.
 *
 *   state     | means                                         | left by
 *   ----------+-----------------------------------------------+-------------------------------------------------
 *   IDLE      | no transfer: the link is down                  | start -> FETCHING
 *   FETCHING  | the transfer runs                             | its end -> ENDED; disconnect -> IDLE
 *   ENDED     | what it left is to be written, and judged     | all is there -> COMPLETE; else IDLE, FETCHING
 *   COMPLETE  | the file has it all                           |
 *   FAILED    | the file cannot be written; `error`           |
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "aio/thread-pool.h"
#include "backends/protocol/http/http.h"
#include "block/io.h"
#include "util/error.h"

#define SPOOL_BLOCK (512 * 1024)

typedef enum SpoolState { SPOOL_IDLE, SPOOL_FETCHING, SPOOL_ENDED, SPOOL_COMPLETE, SPOOL_FAILED } SpoolState;

typedef struct SpoolWaiter {
    Coroutine *co;
    int64_t need;
    int ret;
    bool woken;
    GList entry;
} SpoolWaiter;

struct HttpSpool {
    HttpTransfer t; /* first */
    SpoolState state;
    int fd;
    int error;               /* FAILED: -errno */
    HttpResult ended;        /* ENDED: how */
    bool paused;             /* by us, in libcurl */
    bool writing;            /* a coroutine has `full` */
    uint8_t *block, *full;   /* SPOOL_BLOCK bytes each */
    size_t fill, full_bytes; /* bytes in them */
    int64_t received;        /* of this transfer: up to the end of `block` */
    int64_t begun;           /* `stored` when the transfer began */
    _Atomic int64_t stored;  /* bytes that may be read; any thread reads it */
    GQueue waiters;
};

static void advance(HttpSpool *sp);
static void start(HttpSpool *sp);

/* ---- Waiting */

static void wake(HttpSpool *sp, SpoolWaiter *w, int ret)
{
    g_queue_unlink(&sp->waiters, &w->entry);
    w->ret = ret;
    w->woken = true;
    aio_co_schedule(sp->t.s->link.ctx, w->co);
}

static void wake_satisfied(HttpSpool *sp)
{
    for (GList *l = sp->waiters.head, *next; l; l = next) {
        SpoolWaiter *w = l->data;

        next = l->next;
        if (w->need <= sp->stored) {
            wake(sp, w, 0);
        }
    }
}

static void wake_all(HttpSpool *sp, int ret)
{
    while (!g_queue_is_empty(&sp->waiters)) {
        wake(sp, sp->waiters.head->data, ret);
    }
}

/* ---- Storing */

static int coroutine_fn write_all(int fd, const uint8_t *data, size_t n, int64_t offset)
{
    while (n > 0) {
        struct iovec iov = {(void *)data, n};
        ssize_t done = aio_co_pwritev(fd, &iov, 1, offset, 0);

        if (done <= 0) {
            return done ? (int)done : -EIO;
        }
        data += done;
        n -= (size_t)done;
        offset += done;
    }
    return 0;
}

/* 0, 1 where the file has other bytes, or -errno. */
static int coroutine_fn compare(int fd, const uint8_t *data, size_t n, int64_t offset)
{
    g_autofree uint8_t *there = g_malloc(n);

    for (size_t done = 0; done < n;) {
        struct iovec iov = {there + done, n - done};
        ssize_t got = aio_co_preadv(fd, &iov, 1, offset + (int64_t)done, 0);

        if (got <= 0) {
            return got ? (int)got : -EIO;
        }
        done += (size_t)got;
    }
    return memcmp(there, data, n) != 0;
}

static int coroutine_fn store(HttpSpool *sp, int64_t offset)
{
    size_t known = (size_t)CLAMP(sp->stored - offset, 0, (int64_t)sp->full_bytes);
    int ret = known ? compare(sp->fd, sp->full, known, offset) : 0;

    if (ret == 0 && known < sp->full_bytes) {
        ret = write_all(sp->fd, sp->full + known, sp->full_bytes - known, offset + (int64_t)known);
        if (ret == 0) {
            atomic_store(&sp->stored, offset + (int64_t)sp->full_bytes);
        }
    }
    return ret;
}

static void cannot_write(HttpSpool *sp, int error)
{
    HttpState *s = sp->t.s;
    g_autofree char *text = g_strdup_printf("the spool file cannot be written: %s", g_strerror(-error));

    http_transfer_abort(&sp->t);
    sp->state = SPOOL_FAILED;
    sp->error = error;
    block_graph_log_error(s->node->graph, s->node->name, BLOCK_OP_READ, sp->stored, 0, -error, text);
    wake_all(sp, error);
}

static void coroutine_fn co_store(void *opaque)
{
    HttpSpool *sp = opaque;
    HttpState *s = sp->t.s;
    int ret = store(sp, sp->received - (int64_t)sp->fill - (int64_t)sp->full_bytes);

    sp->writing = false;
    if (ret > 0) {
        remote_link_changed(&s->link, "the resource has changed: other bytes than before");
    } else if (ret < 0) {
        cannot_write(sp, ret);
    } else {
        remote_link_progress(&s->link);
        wake_satisfied(sp);
        advance(sp);
    }
    block_node_dec_in_flight(s->node);
}

/* Also inside of libcurl. */
static void begin_store(HttpSpool *sp)
{
    HttpState *s = sp->t.s;
    uint8_t *empty = sp->full;

    sp->full = sp->block;
    sp->full_bytes = sp->fill;
    sp->block = empty;
    sp->fill = 0;
    sp->writing = true;
    block_node_inc_in_flight(s->node);
    aio_co_schedule(s->link.ctx, coroutine_create(co_store, sp));
}

/* ---- The transfer */

static bool is_quiet(const HttpSpool *sp)
{
    return sp->t.s->quiet && g_queue_is_empty((GQueue *)&sp->waiters);
}

static size_t spool_data(HttpTransfer *t, const uint8_t *data, size_t n)
{
    HttpSpool *sp = (HttpSpool *)t;

    if (sp->received + (int64_t)n > t->s->pin.size) {
        t->result = (HttpResult){HTTP_REFUSED, EPROTO, g_strdup("the server sends more than it announced")};
        return 0;
    }
    if (is_quiet(sp) || (sp->fill + n > SPOOL_BLOCK && sp->writing)) {
        sp->paused = true;
        return CURL_WRITEFUNC_PAUSE;
    }
    if (sp->fill + n > SPOOL_BLOCK) {
        begin_store(sp);
    }
    memcpy(sp->block + sp->fill, data, n);
    sp->fill += n;
    sp->received += (int64_t)n;
    return n;
}

static void spool_done(HttpTransfer *t)
{
    HttpSpool *sp = (HttpSpool *)t;

    sp->paused = false;
    g_free(sp->ended.text);
    sp->ended = t->result;
    t->result.text = NULL;
    if (sp->ended.outcome == HTTP_LOST) {
        sp->state = SPOOL_IDLE;
        return;
    }
    sp->state = SPOOL_ENDED;
    advance(sp);
}

static const HttpTransferOps spool_ops = {spool_data, spool_done};

static void start(HttpSpool *sp)
{
    sp->state = SPOOL_FETCHING;
    sp->fill = 0;
    sp->received = 0;
    sp->begun = sp->stored;
    http_transfer_start(&sp->t, 0, -1);
}

/* The transfer is over, and what it brought is stored. */
static void judge(HttpSpool *sp)
{
    HttpState *s = sp->t.s;
    const char *text = sp->ended.text ? sp->ended.text : "the server sends less than it announced";
    int errnum = sp->ended.errnum ? sp->ended.errnum : EPROTO;

    if (sp->stored == s->pin.size) {
        sp->state = SPOOL_COMPLETE;
        return;
    }
    sp->state = SPOOL_IDLE;
    if (sp->ended.outcome == HTTP_CHANGED) {
        remote_link_changed(&s->link, text);
    } else if (sp->stored > sp->begun && s->link.state == REMOTE_LINK_CONNECTED) {
        start(sp);
    } else {
        remote_link_lost(&s->link, errnum, text); /* begins again when the server is back */
    }
}

/* Do what there is to do. Not inside of libcurl. */
static void advance(HttpSpool *sp)
{
    if (sp->writing || is_quiet(sp)) {
        return;
    }
    if (sp->state == SPOOL_ENDED) {
        if (sp->fill) {
            begin_store(sp);
        } else {
            judge(sp);
        }
    } else if (sp->state == SPOOL_FETCHING && sp->paused) {
        sp->paused = false;
        curl_easy_pause(sp->t.easy, CURLPAUSE_CONT);
    } else if (sp->state == SPOOL_IDLE && sp->t.s->link.state == REMOTE_LINK_CONNECTED) {
        start(sp);
    }
}

/* ---- From outside */

void http_spool_connected(HttpState *s)
{
    HttpSpool *sp = s->spool;

    if (sp && sp->state == SPOOL_IDLE && !sp->writing) {
        start(sp);
    }
}

void http_spool_disconnect(HttpState *s)
{
    HttpSpool *sp = s->spool;

    if (sp) {
        if (sp->state == SPOOL_ENDED && !sp->writing) {
            sp->state = SPOOL_IDLE;
        }
        wake_all(sp, REMOTE_LOST);
    }
}

void http_spool_loud(HttpState *s)
{
    if (s->spool) {
        advance(s->spool);
    }
}

static int coroutine_fn try_wait(RemoteLink *link, void *opaque)
{
    HttpState *s = link->opaque;
    HttpSpool *sp = s->spool;
    SpoolWaiter w = {.co = coroutine_self(), .need = *(int64_t *)opaque};

    if (sp->state == SPOOL_FAILED || w.need <= sp->stored) {
        return w.need <= sp->stored ? 0 : sp->error;
    }
    w.entry.data = &w;
    g_queue_push_tail_link(&sp->waiters, &w.entry);
    advance(sp);
    while (!w.woken) {
        coroutine_yield();
    }
    return w.ret;
}

static int coroutine_fn read_file(int fd, int64_t offset, int64_t bytes, const IoVector *qiov, size_t skip)
{
    g_autofree struct iovec *iov = g_new(struct iovec, qiov->niov);

    while (bytes > 0) {
        int n = io_vector_slice(qiov, skip, (size_t)bytes, iov);
        ssize_t got = aio_co_preadv(fd, iov, n, offset, 0);

        if (got <= 0) {
            return got ? (int)got : -EIO;
        }
        offset += got;
        bytes -= got;
        skip += (size_t)got;
    }
    return 0;
}

int coroutine_fn http_spool_co_read(HttpState *s, int64_t offset, int64_t bytes, const IoVector *qiov,
                                    size_t qiov_offset)
{
    int64_t need = offset + bytes;

    if (s->link.state == REMOTE_LINK_CHANGED) {
        return -ESTALE;
    }
    int ret = s->spool->stored >= need ? 0 : remote_link_co_run(&s->link, try_wait, &need, REMOTE_RESEND);

    return ret < 0 ? ret : read_file(s->spool->fd, offset, bytes, qiov, qiov_offset);
}

char *http_spool_status(HttpState *s)
{
    int64_t stored = s->spool ? atomic_load(&s->spool->stored) : 0;

    return s->spool ? g_strdup_printf("spooled %d %%", (int)((double)stored * 100 / (double)s->pin.size))
                    : NULL;
}

/* ---- Opening and closing */

/* A file that nobody else can find. */
static int open_file(void *opaque)
{
    HttpState *s = opaque;
    const char *dir = g_getenv("TMPDIR") ? g_getenv("TMPDIR") : "/var/tmp";
    int fd;

    if (strcmp(s->o.spool, "auto") != 0) {
        fd = open(s->o.spool, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd >= 0) {
            unlink(s->o.spool);
        }
    } else {
        fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {
            g_autofree char *path = g_build_filename(dir, "blockgraph-spool-XXXXXX", NULL);

            fd = mkostemp(path, O_CLOEXEC);
            if (fd >= 0) {
                unlink(path);
            }
        }
    }
    return fd < 0 || ftruncate(fd, s->pin.size) < 0 ? -errno : fd;
}

int coroutine_fn http_spool_co_open(HttpState *s, BlockOptions *opts, GError **errp)
{
    int fd = thread_pool_co_run(open_file, s);

    if (fd < 0) {
        block_options_error(opts, "spool", errp, -fd, "cannot make the file '%s': %s", s->o.spool,
                            g_strerror(-fd));
        return fd;
    }
    HttpSpool *sp = s->spool = g_new0(HttpSpool, 1);

    http_transfer_init(&sp->t, s, &spool_ops);
    sp->fd = fd;
    sp->block = g_malloc(SPOOL_BLOCK);
    sp->full = g_malloc(SPOOL_BLOCK);
    g_queue_init(&sp->waiters);
    return 0;
}

void coroutine_fn http_spool_co_close(HttpState *s)
{
    HttpSpool *sp = s->spool;

    if (!sp) {
        return;
    }
    http_transfer_destroy(&sp->t);
    sp->state = SPOOL_FAILED;
    while (sp->writing) { /* only where the node's opening failed after this: otherwise it is drained */
        aio_co_sleep_ns(HTTP_NS_PER_S / 1000);
    }
    close(sp->fd);
    g_free(sp->ended.text);
    g_free(sp->block);
    g_free(sp->full);
    g_free(sp);
    s->spool = NULL;
}
