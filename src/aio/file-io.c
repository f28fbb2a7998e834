/*
 * File I/O from coroutines: an entry in the ring of the current context, or, where that
 * runs on epoll, a blocking call in the thread pool.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <unistd.h>
#ifdef HAVE_VALGRIND_VALGRIND_H
#include <valgrind/memcheck.h>
#endif

#include "aio/aio.h"
#include "aio/thread-pool.h"
#include "util/compiler.h"
#include "util/log.h"

typedef enum FileOpKind {
    FILE_READ,
    FILE_WRITE,
    FILE_FSYNC,
    FILE_FALLOCATE,
} FileOpKind;

typedef struct FileOp {
    FileOpKind kind;
    int fd;
    const struct iovec *iov;
    int niov;
    int flags; /* RWF_*, IORING_FSYNC_DATASYNC, or the mode of fallocate */
    off_t offset;
    off_t len;   /* FILE_FALLOCATE */
    ssize_t ret; /* of the thread pool's call */
} FileOp;

static AioContext *current_context(void)
{
    AioContext *ctx = aio_context_current();

    if (bg_unlikely(!ctx)) {
        bg_fatal("internal error: file I/O in a thread without event loop");
    }
    return ctx;
}

/* ---- io_uring */

typedef struct UringOp {
    AioCqe cqe;
    Coroutine *co;
} UringOp;

static void uring_op_completed(AioCqe *cqe)
{
    aio_co_wake(bg_container_of(cqe, UringOp, cqe)->co);
}

static void prepare_rw(struct io_uring_sqe *sqe, const FileOp *op)
{
    const void *from = op->iov;
    unsigned n = (unsigned)op->niov;
    uint8_t opcode = op->kind == FILE_READ ? IORING_OP_READV : IORING_OP_WRITEV;

    if (op->niov == 1 && op->iov->iov_len <= UINT32_MAX) {
        /* The plain operations spare the kernel the import of a vector. */
        opcode = op->kind == FILE_READ ? IORING_OP_READ : IORING_OP_WRITE;
        from = op->iov->iov_base;
        n = (unsigned)op->iov->iov_len;
    }
    io_uring_prep_rw(opcode, sqe, op->fd, from, n, (uint64_t)op->offset);
    sqe->rw_flags = op->flags;
}

static void prepare(struct io_uring_sqe *sqe, const FileOp *op)
{
    switch (op->kind) {
    case FILE_READ:
    case FILE_WRITE:
        prepare_rw(sqe, op);
        break;
    case FILE_FSYNC:
        io_uring_prep_fsync(sqe, op->fd, (unsigned)op->flags);
        break;
    case FILE_FALLOCATE:
        io_uring_prep_fallocate(sqe, op->fd, op->flags, op->offset, op->len);
        break;
    }
}

static coroutine_fn int uring_run(AioContext *ctx, const FileOp *op, unsigned sqe_flags)
{
    UringOp u = {.cqe.cb = uring_op_completed, .co = coroutine_self()};
    struct io_uring_sqe *sqe = aio_uring_get_sqe(ctx, &u.cqe);

    prepare(sqe, op);
    sqe->flags |= (uint8_t)sqe_flags;
    io_uring_sqe_set_data(sqe, &u.cqe);
    coroutine_yield();
    return u.cqe.res;
}

static coroutine_fn void uring_wait_ready(AioContext *ctx, const FileOp *op)
{
    UringOp u = {.cqe.cb = uring_op_completed, .co = coroutine_self()};
    struct io_uring_sqe *sqe = aio_uring_get_sqe(ctx, &u.cqe);

    io_uring_prep_poll_add(sqe, op->fd, op->kind == FILE_READ ? POLLIN : POLLOUT);
    io_uring_sqe_set_data(sqe, &u.cqe);
    coroutine_yield();
}

static coroutine_fn ssize_t uring_file_op(AioContext *ctx, FileOp *op)
{
    unsigned sqe_flags = 0;
    int ret;

    while ((ret = uring_run(ctx, op, sqe_flags)) == -EINTR || ret == -EAGAIN) {
        if (ret == -EAGAIN) {
            /* O_NONBLOCK or short of resources: wait until it says ready, then let it block in a kernel
             * worker. */
            op->flags &= op->kind == FILE_READ || op->kind == FILE_WRITE ? ~RWF_NOWAIT : ~0;
            uring_wait_ready(ctx, op);
            sqe_flags = IOSQE_ASYNC;
        }
    }
    return ret;
}

/* ---- Thread pool */

static ssize_t blocking_call(const FileOp *op)
{
    switch (op->kind) {
    case FILE_READ:
        return preadv2(op->fd, op->iov, op->niov, op->offset, op->flags);
    case FILE_WRITE:
        return pwritev2(op->fd, op->iov, op->niov, op->offset, op->flags);
    case FILE_FSYNC:
        return op->flags & IORING_FSYNC_DATASYNC ? fdatasync(op->fd) : fsync(op->fd);
    case FILE_FALLOCATE:
        return fallocate(op->fd, op->flags, op->offset, op->len);
    }
    return -1;
}

static int worker_file_op(void *opaque)
{
    FileOp *op = opaque;

    while ((op->ret = blocking_call(op)) < 0 && (errno == EINTR || errno == EAGAIN)) {
        if (errno == EAGAIN) {
            struct pollfd pfd = {.fd = op->fd, .events = op->kind == FILE_READ ? POLLIN : POLLOUT};

            op->flags &= op->kind == FILE_READ || op->kind == FILE_WRITE ? ~RWF_NOWAIT : ~0;
            poll(&pfd, 1, -1);
        }
    }
    if (op->ret < 0) {
        op->ret = -errno;
    }
    return 0;
}

static coroutine_fn ssize_t pool_file_op(FileOp *op)
{
    int ret = thread_pool_co_run(worker_file_op, op);

    return ret < 0 ? ret : op->ret;
}

/* ---- Interface */

static coroutine_fn ssize_t file_op(FileOp *op)
{
    AioContext *ctx = current_context();

    if (aio_context_backend(ctx) == AIO_BACKEND_URING) {
        return uring_file_op(ctx, op);
    }
    return pool_file_op(op);
}

/* valgrind does not see what the kernel writes for a ring. */
static void mark_defined(const struct iovec *iov, int niov, ssize_t bytes)
{
#ifdef HAVE_VALGRIND_VALGRIND_H
    if (!RUNNING_ON_VALGRIND) {
        return;
    }
    for (int i = 0; i < niov && bytes > 0; i++) {
        size_t n = MIN(iov[i].iov_len, (size_t)bytes);

        VALGRIND_MAKE_MEM_DEFINED(iov[i].iov_base, n);
        bytes -= (ssize_t)n;
    }
#endif
}

ssize_t aio_co_preadv(int fd, const struct iovec *iov, int niov, off_t offset, int flags)
{
    FileOp op = {.kind = FILE_READ, .fd = fd, .iov = iov, .niov = niov, .offset = offset, .flags = flags};
    ssize_t ret = file_op(&op);

    mark_defined(iov, niov, ret);
    return ret;
}

ssize_t aio_co_pwritev(int fd, const struct iovec *iov, int niov, off_t offset, int flags)
{
    FileOp op = {.kind = FILE_WRITE, .fd = fd, .iov = iov, .niov = niov, .offset = offset, .flags = flags};

    return file_op(&op);
}

int aio_co_fsync(int fd, bool data_only)
{
    FileOp op = {.kind = FILE_FSYNC, .fd = fd, .flags = data_only ? IORING_FSYNC_DATASYNC : 0};

    return (int)file_op(&op);
}

int aio_co_fallocate(int fd, int mode, off_t offset, off_t len)
{
    FileOp op = {.kind = FILE_FALLOCATE, .fd = fd, .flags = mode, .offset = offset, .len = len};

    return (int)file_op(&op);
}
