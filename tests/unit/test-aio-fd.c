/*
 * Descriptor handlers and file I/O of an AioContext.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "aio-fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- Handlers */

/* One end of a socket pair under test, and what its handlers do. */
typedef struct End {
    AioContext *ctx;
    int fd;
    int reads;
    int writes;
    bool consume;          /* read what is there */
    struct End *forget[2]; /* in the read handler */
    struct End *add;       /* in the read handler */
} End;

static void on_read(void *opaque);
static void on_write(void *opaque);

static void end_watch(End *e, bool rd, bool wr)
{
    aio_set_fd_handler(e->ctx, e->fd, rd ? on_read : NULL, wr ? on_write : NULL, e);
}

static void on_read(void *opaque)
{
    End *e = opaque;
    char buf[64];

    e->reads++;
    if (e->consume) {
        g_assert_cmpint(read(e->fd, buf, sizeof(buf)), >=, 0);
    }
    for (int i = 0; i < 2; i++) {
        if (e->forget[i]) {
            end_watch(e->forget[i], false, false);
        }
    }
    if (e->add) {
        end_watch(e->add, true, false);
    }
}

static void on_write(void *opaque)
{
    End *e = opaque;

    e->writes++;
    end_watch(e, true, false);
}

/* A pair; its first end is under test. Returns the other one. */
static int end_init(End *e, AioContext *ctx)
{
    int fds[2];

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), ==, 0);
    *e = (End){.ctx = ctx, .fd = fds[0], .consume = true};
    return fds[1];
}

static void end_close(End *e, int peer)
{
    end_watch(e, false, false);
    close(e->fd);
    close(peer);
}

static void put(int fd)
{
    g_assert_cmpint(write(fd, "x", 1), ==, 1);
}

static void fd_basic(AioContext *ctx)
{
    End e;
    int peer = end_init(&e, ctx);

    end_watch(&e, true, false);
    aio_test_run_ready(ctx);
    g_assert_cmpint(e.reads, ==, 0);
    for (int i = 1; i <= 3; i++) {
        put(peer);
        aio_test_run_ready(ctx);
        g_assert_cmpint(e.reads, ==, i);
    }
    end_watch(&e, false, false);
    put(peer);
    aio_test_run_ready(ctx);
    g_assert_cmpint(e.reads, ==, 3);
    end_watch(&e, true, false); /* what came meanwhile is seen */
    RUN_UNTIL(ctx, e.reads == 4);
    end_close(&e, peer);
}

static void fd_level_triggered(AioContext *ctx)
{
    End e;
    int peer = end_init(&e, ctx);

    e.consume = false;
    end_watch(&e, true, false);
    put(peer);
    RUN_UNTIL(ctx, e.reads == 5);
    e.consume = true;
    RUN_UNTIL(ctx, e.reads == 6);
    aio_test_run_ready(ctx);
    g_assert_cmpint(e.reads, ==, 6);
    end_close(&e, peer);
}

static void fd_both_directions(AioContext *ctx)
{
    End e;
    int peer = end_init(&e, ctx);

    end_watch(&e, false, true); /* writable at once; the handler then watches for reading */
    RUN_UNTIL(ctx, e.writes == 1);
    aio_test_run_ready(ctx);
    g_assert_cmpint(e.writes, ==, 1);
    put(peer);
    RUN_UNTIL(ctx, e.reads == 1);
    put(peer);
    end_watch(&e, true, true); /* a direction more, with the other being watched already */
    RUN_UNTIL(ctx, e.reads == 2 && e.writes == 2);
    aio_test_run_ready(ctx);
    g_assert_cmpint(e.reads, ==, 2);
    g_assert_cmpint(e.writes, ==, 2);
    end_close(&e, peer);
}

static void fd_hangup(AioContext *ctx)
{
    End e;
    int peer = end_init(&e, ctx);

    end_watch(&e, true, false);
    aio_test_run_ready(ctx);
    close(peer);
    RUN_UNTIL(ctx, e.reads > 0);
    end_watch(&e, false, false);
    close(e.fd);
}

/* Both are ready in one round; whichever comes first forgets both. */
static void fd_forget_in_callback(AioContext *ctx)
{
    End a, b;
    int peer_a = end_init(&a, ctx), peer_b = end_init(&b, ctx);

    a.forget[0] = b.forget[0] = &a;
    a.forget[1] = b.forget[1] = &b;
    for (unsigned i = aio_test_scaled(50); i > 0; i--) {
        a.reads = b.reads = 0;
        end_watch(&a, true, false);
        end_watch(&b, true, false);
        aio_test_run_ready(ctx);
        put(peer_a);
        put(peer_b);
        RUN_UNTIL(ctx, a.reads + b.reads > 0);
        aio_test_run_ready(ctx);
        g_assert_cmpint(a.reads + b.reads, ==, 1);
        /* The other's byte would be there still. */
        recv(a.fd, (char[8]){0}, 8, MSG_DONTWAIT);
        recv(b.fd, (char[8]){0}, 8, MSG_DONTWAIT);
    }
    end_close(&a, peer_a);
    end_close(&b, peer_b);
}

static void fd_add_in_callback(AioContext *ctx)
{
    End a, b;
    int peer_a = end_init(&a, ctx), peer_b = end_init(&b, ctx);

    a.add = &b;
    a.forget[0] = &a;
    b.add = &a;
    b.forget[0] = &b;
    end_watch(&a, true, false);
    for (int i = 1; i <= 5; i++) {
        put(peer_a);
        put(peer_b);
        RUN_UNTIL(ctx, a.reads == i && b.reads == i);
    }
    aio_test_run_ready(ctx);
    g_assert_cmpint(a.reads, ==, 5);
    end_close(&a, peer_a);
    end_close(&b, peer_b);
}

/*
 * `killer` closes `victim`, whose event is in the same batch, and opens something else under its number:
 * the event must not reach the new one.
 */
typedef struct Reuse {
    End killer, victim, heir;
    int peers[3];
    int replaced;
} Reuse;

static void replace_victim(void *opaque)
{
    Reuse *r = opaque;
    int number = r->victim.fd;

    end_watch(&r->killer, false, false);
    end_watch(&r->victim, false, false);
    close(r->victim.fd);
    r->peers[2] = end_init(&r->heir, r->killer.ctx);
    if (r->heir.fd != number) {
        g_assert_cmpint(dup2(r->heir.fd, number), ==, number);
        close(r->heir.fd);
        r->heir.fd = number;
    }
    end_watch(&r->heir, true, false);
    r->replaced++;
}

static void fd_reuse(AioContext *ctx)
{
    for (unsigned i = aio_test_scaled(50); i > 0; i--) {
        Reuse r = {.replaced = 0};

        r.peers[0] = end_init(&r.killer, ctx);
        r.peers[1] = end_init(&r.victim, ctx);
        aio_set_fd_handler(ctx, r.killer.fd, replace_victim, NULL, &r);
        end_watch(&r.victim, true, false);
        aio_test_run_ready(ctx);
        put(r.peers[0]);
        put(r.peers[1]);
        RUN_UNTIL(ctx, r.replaced == 1);
        aio_test_run_ready(ctx);
        g_assert_cmpint(r.heir.reads, ==, 0);
        put(r.peers[2]);
        RUN_UNTIL(ctx, r.heir.reads == 1);
        close(r.peers[1]);
        end_close(&r.heir, r.peers[2]);
        end_close(&r.killer, r.peers[0]);
    }
}

/* The kernel keeps no hold of a file that was forgotten: its peer sees the end at the close. */
static void fd_close_releases(AioContext *ctx)
{
    End e;
    int peer = end_init(&e, ctx);
    struct pollfd pfd = {.fd = peer, .events = POLLIN};

    end_watch(&e, true, false);
    aio_test_run_ready(ctx);
    end_watch(&e, false, false);
    close(e.fd);
    g_assert_cmpint(poll(&pfd, 1, 1000), ==, 1);
    g_assert_true(pfd.revents & POLLHUP);
    close(peer);
}

/* Freed with cancelled polls whose completions nobody has fetched: for ASan and valgrind. */
static void fd_free_with_cancelled(AioContext *ctx)
{
    AioContext *other = aio_context_new("other", aio_test_backend(), NULL);
    End e;
    int peer = end_init(&e, other);

    aio_context_set_current(other);
    end_watch(&e, true, false);
    aio_context_run_once(other, false);
    put(peer);
    end_close(&e, peer);
    aio_context_unref(other);
    aio_context_set_current(ctx);
}

/* ---- File I/O */

static int temporary_file(void)
{
    g_autofree char *name = NULL;
    int fd = g_file_open_tmp("blockgraph-test-XXXXXX", &name, NULL);

    g_assert_cmpint(fd, >=, 0);
    unlink(name);
    return fd;
}

static void file_coroutine(void *opaque)
{
    char a[5000], b[3000], c[10000];
    struct iovec out[2] = {{a, sizeof(a)}, {b, sizeof(b)}}, in = {c, sizeof(c)};
    int fd = temporary_file(), read_only;

    memset(a, 'a', sizeof(a));
    memset(b, 'b', sizeof(b));
    g_assert_cmpint(aio_co_pwritev(fd, out, 2, 1000, 0), ==, 8000);
    g_assert_cmpint(aio_co_preadv(fd, &in, 1, 0, 0), ==, 9000); /* short at the end */
    g_assert_cmpint(c[999], ==, 0);
    g_assert_cmpmem(c + 1000, 5000, a, 5000);
    g_assert_cmpmem(c + 6000, 3000, b, 3000);
    g_assert_cmpint(aio_co_preadv(fd, &in, 1, 9000, 0), ==, 0);
    memset(a, 0, sizeof(a));
    g_assert_cmpint(aio_co_preadv(fd, out, 2, 6000, RWF_NOWAIT), >=, 0);
    g_assert_cmpint(a[0], ==, 'b');
    g_assert_cmpint(aio_co_fsync(fd, false), ==, 0);
    g_assert_cmpint(aio_co_fsync(fd, true), ==, 0);
    g_assert_cmpint(aio_co_fallocate(fd, 0, 0, 20000), ==, 0);
    g_assert_cmpint(lseek(fd, 0, SEEK_END), ==, 20000);

    g_assert_cmpint(aio_co_fallocate(fd, 0, 0, -1), ==, -EINVAL);
    g_assert_cmpint(aio_co_pwritev(fd, out, 2, 0, 0x40000000), ==, -EOPNOTSUPP);
    g_assert_cmpint(aio_co_preadv(-1, &in, 1, 0, 0), ==, -EBADF);
    g_assert_cmpint(aio_co_fsync(-1, false), ==, -EBADF);
    read_only = open("/dev/null", O_RDONLY | O_CLOEXEC);
    g_assert_cmpint(aio_co_pwritev(read_only, out, 1, 0, 0), ==, -EBADF);
    close(read_only);
    close(fd);
}

static void file_io(AioContext *ctx)
{
    aio_context_run_coroutine(ctx, file_coroutine, NULL);
}

typedef struct Slow {
    AioContext *ctx;
    int fds[2];
    bool done;
} Slow;

static void slow_reader(void *opaque)
{
    Slow *s = opaque;
    char c = 0;
    struct iovec iov = {&c, 1};

    /* Would be -EAGAIN from a plain read. */
    g_assert_cmpint(aio_co_preadv(s->fds[0], &iov, 1, -1, 0), ==, 1);
    g_assert_cmpint(c, ==, 'x');
    s->done = true;
}

static void slow_writer(void *opaque)
{
    Slow *s = opaque;

    aio_co_sleep_ns(20000000);
    g_assert_false(s->done);
    put(s->fds[1]);
}

/* O_NONBLOCK descriptors: the coroutine waits, the loop goes on. */
static void file_nonblocking(AioContext *ctx)
{
    Slow s = {.ctx = ctx};

    g_assert_cmpint(pipe2(s.fds, O_NONBLOCK | O_CLOEXEC), ==, 0);
    coroutine_enter(coroutine_create(slow_reader, &s));
    coroutine_enter(coroutine_create(slow_writer, &s));
    RUN_UNTIL(ctx, s.done);
    close(s.fds[0]);
    close(s.fds[1]);
}

typedef struct Parallel {
    int fd;
    unsigned next;
    unsigned n;
    unsigned done;
} Parallel;

static void parallel_writer(void *opaque)
{
    Parallel *p = opaque;
    unsigned me = p->next++, back = 0;
    struct iovec out = {&me, sizeof(me)}, in = {&back, sizeof(back)};
    off_t offset = (off_t)me * (off_t)sizeof(me);

    g_assert_cmpint(aio_co_pwritev(p->fd, &out, 1, offset, 0), ==, sizeof(me));
    g_assert_cmpint(aio_co_preadv(p->fd, &in, 1, offset, 0), ==, sizeof(back));
    g_assert_cmpuint(back, ==, me);
    p->done++;
}

/* More requests than the ring has entries. */
static void file_parallel(AioContext *ctx)
{
    for (unsigned round = aio_test_scaled(1); round > 0; round--) {
        Parallel p = {.fd = temporary_file(), .n = 1500};

        for (unsigned i = 0; i < p.n; i++) {
            coroutine_enter(coroutine_create(parallel_writer, &p));
        }
        g_assert_cmpuint(p.next, ==, p.n);
        RUN_UNTIL(ctx, p.done == p.n);
        g_assert_cmpint(lseek(p.fd, 0, SEEK_END), ==, p.n * sizeof(unsigned));
        close(p.fd);
    }
}

/* ---- Raw entries */

typedef struct Nop {
    AioCqe cqe;
    int number;
    int *done;
} Nop;

static void nop_done(AioCqe *cqe)
{
    Nop *nop = (Nop *)cqe;

    g_assert_cmpint(cqe->res, ==, 0);
    g_assert_cmpint(nop->number, ==, *nop->done);
    ++*nop->done;
}

static void queue_nop(AioContext *ctx, Nop *nop)
{
    struct io_uring_sqe *sqe = aio_uring_get_sqe(ctx, &nop->cqe);

    io_uring_prep_nop(sqe);
    io_uring_sqe_set_data(sqe, &nop->cqe);
}

/* Far more than both queues hold, with no turn of the loop in between. */
static void uring_overflow(AioContext *ctx)
{
    enum { N = 20000 };
    g_autofree Nop *nops = g_new0(Nop, N);
    int done = 0;

    if (aio_context_backend(ctx) != AIO_BACKEND_URING) {
        g_assert_null(aio_uring_get_sqe(ctx, &nops[0].cqe));
        return;
    }
    for (int i = 0; i < N; i++) {
        nops[i] = (Nop){.cqe.cb = nop_done, .cqe.res = -1, .number = i, .done = &done};
        queue_nop(ctx, &nops[i]);
    }
    g_assert_cmpint(done, ==, 0); /* callbacks run in the loop only */
    RUN_UNTIL(ctx, done == N);
}

/* This program is linked with --wrap=io_uring_submit: the kernel can be made to refuse. */
int __real_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring);

static bool refuse_submit;
static int refused;

/* As Linux before 5.19 does while completions wait for room. */
int __wrap_io_uring_submit(struct io_uring *ring)
{
    if (refuse_submit && (io_uring_cq_ready(ring) > 0 || refused == 0)) {
        refused++;
        return -EBUSY;
    }
    return __real_io_uring_submit(ring);
}

static void uring_busy(AioContext *ctx)
{
    refused = 0;
    refuse_submit = true;
    uring_overflow(ctx);
    refuse_submit = false;
    g_assert_true(refused > 0 || aio_context_backend(ctx) == AIO_BACKEND_EPOLL);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    aio_test_add("fd/basic", fd_basic);
    aio_test_add("fd/level-triggered", fd_level_triggered);
    aio_test_add("fd/both-directions", fd_both_directions);
    aio_test_add("fd/hangup", fd_hangup);
    aio_test_add("fd/forget-in-callback", fd_forget_in_callback);
    aio_test_add("fd/add-in-callback", fd_add_in_callback);
    aio_test_add("fd/reuse", fd_reuse);
    aio_test_add("fd/close-releases", fd_close_releases);
    aio_test_add("fd/free-with-cancelled", fd_free_with_cancelled);
    aio_test_add("file/io", file_io);
    aio_test_add("file/nonblocking", file_nonblocking);
    aio_test_add("file/parallel", file_parallel);
    aio_test_add("uring/overflow", uring_overflow);
    aio_test_add("uring/busy", uring_busy);
    return g_test_run();
}
