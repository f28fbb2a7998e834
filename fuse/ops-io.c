/*
 * I/O on open files: READ, WRITE, FSYNC, FALLOCATE, LSEEK, COPY_FILE_RANGE.
 *
 * A file ends where its node ends: reads stop there, writes into an export of fixed length are cut there and
 * give ENOSPC beyond, as on a block device. Exports that may grow pass writes beyond the end on.
 *
 * Closing a file implies no flush, as with any other file; nothing is held back here that close could report.
 * Flushes that failed are reported by fsync, as file.h says.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <unistd.h>

#include "block/node.h"
#include "fuse/control-files.h"
#include "fuse/mount-internal.h"
#include "fuse/ops.h"

/* Most bytes that one COPY_FILE_RANGE copies; the caller asks again for the rest. */
#define COPY_RANGE_MAX (64 * 1024 * 1024LL)

/*
 * The open file `fh` of the request's inode, ready for use until the end of the request: an export is
 * entered, other kinds are referenced.
 */
typedef struct OpenFile {
    FuseFile *file;
    FuseExport *exp;   /* EXPORT */
    BlockBackend *blk; /* EXPORT, DATA; else NULL */
    bool referenced;
} OpenFile;

static inline int file_begin(FuseRequest *req, uint64_t fh, uint64_t nodeid, OpenFile *f)
{
    FuseFileTable *table = &req->queue->mount->files;
    *f = (OpenFile){.file = fuse_file_peek(table, fh, nodeid)};
    if (bg_unlikely(!f->file)) {
        return -EBADF;
    }
    if (bg_likely(f->file->kind == FUSE_FILE_EXPORT)) {
        f->exp = fuse_request_enter(req, &f->file->exp);
        f->blk = f->exp ? f->exp->blk : NULL;
        return f->exp ? 0 : -ESTALE;
    }
    f->file = fuse_file_get(table, fh, nodeid);
    if (!f->file) {
        return -EBADF;
    }
    f->blk = f->file->blk;
    f->referenced = true;
    return 0;
}

static inline int coroutine_fn file_end(FuseRequest *req, OpenFile *f, int ret)
{
    if (bg_unlikely(f->referenced)) {
        BlockBackend *blk;
        fuse_file_put(&req->queue->mount->files, f->file, &blk);
        control_co_free_backend(req, blk);
    }
    return ret;
}

/* Bytes from `offset` to `length`, at most `size`; 0 beyond. */
static inline int64_t cut_at_end(uint64_t offset, uint64_t size, int64_t length)
{
    if (length <= 0 || offset >= (uint64_t)length) {
        return 0;
    }
    return (int64_t)MIN(size, (uint64_t)length - offset);
}

/* ---- READ */

static int read_text(FuseRequest *req, GBytes *text, uint64_t offset, uint32_t size)
{
    gsize length;
    const char *data = g_bytes_get_data(text, &length);
    int64_t n = cut_at_end(offset, size, (int64_t)length);
    if (n > 0) {
        memcpy(req->payload, data + offset, (size_t)n);
    }
    fuse_request_payload_reply(req, (size_t)n);
    return 0;
}

static int coroutine_fn read_data(FuseRequest *req, BlockBackend *blk, uint64_t offset, uint32_t size)
{
    int64_t n = cut_at_end(offset, size, block_backend_length(blk));
    if (n > 0) {
        int ret = block_backend_co_pread(blk, (int64_t)offset, n, req->payload);
        if (bg_unlikely(ret < 0)) {
            return ret;
        }
    }
    fuse_request_payload_reply(req, (size_t)n);
    return 0;
}

int coroutine_fn fuse_op_read(FuseRequest *req)
{
    const struct fuse_read_in *arg = req->arg;
    OpenFile f;
    if (bg_unlikely(arg->size > FUSE_PAYLOAD_SIZE)) {
        return -EINVAL;
    }
    int ret = file_begin(req, arg->fh, req->in->nodeid, &f);
    if (bg_unlikely(ret < 0)) {
        return ret;
    }
    if (bg_likely(f.blk)) {
        ret = read_data(req, f.blk, arg->offset, arg->size);
    } else if (f.file->kind == FUSE_FILE_TEXT) {
        ret = read_text(req, f.file->text, arg->offset, arg->size);
    } else {
        ret = -EISDIR;
    }
    return file_end(req, &f, ret);
}

/* ---- WRITE */

/* How much of a write fits. Bytes, -ENOSPC or -EFBIG. */
static int64_t write_room(FuseExport *exp, uint64_t offset, uint32_t size)
{
    if (offset > (uint64_t)BLOCK_MAX_LENGTH - size) {
        return -EFBIG;
    }
    if (exp->growable || size == 0) {
        return size;
    }
    int64_t n = cut_at_end(offset, size, block_backend_length(exp->blk));
    return n > 0 ? n : -ENOSPC;
}

static int coroutine_fn grow(FuseExport *exp, int64_t end)
{
    int ret = 0;
    co_mutex_lock(&exp->resize_lock);
    if (block_backend_length(exp->blk) < end) {
        ret = block_backend_co_truncate(exp->blk, end, NULL);
    }
    co_mutex_unlock(&exp->resize_lock);
    return ret;
}

/* Whether the export may grow, but its node only by being told to: not a regular file, but a format. */
static bool must_grow(FuseExport *exp, int64_t end)
{
    return bg_unlikely(exp->growable) && block_backend_length(exp->blk) < end &&
           !block_backend_node(exp->blk)->growable;
}

static int coroutine_fn write_data(FuseExport *exp, int64_t offset, int64_t n, const void *data,
                                   BlockRequestFlags flags)
{
    int ret = must_grow(exp, offset + n) ? grow(exp, offset + n) : 0;
    ret = ret < 0 ? ret : block_backend_co_pwrite(exp->blk, offset, n, data, flags);
    if (bg_unlikely(ret == -ENOSPC) && must_grow(exp, offset + n)) { /* an overlay took the node's place */
        ret = grow(exp, offset + n);
        ret = ret < 0 ? ret : block_backend_co_pwrite(exp->blk, offset, n, data, flags);
    }
    return ret;
}

/*
 * After a write: an fsync will have to answer for it, unless it was one with O_DSYNC. Where such a one failed
 * as its flush did, it has reported that itself.
 */
static void coroutine_fn note_write(FuseRequest *req, OpenFile *f, const struct fuse_write_in *arg,
                                    BlockFlushError since, int ret)
{
    bool synced = arg->flags & (O_DSYNC | O_SYNC);
    if (bg_unlikely(synced && ret < 0)) {
        BlockFlushError newest = block_backend_co_flush_error(f->blk);
        if (newest > since) {
            fuse_file_sync_end(f->file, 0, newest, ret);
        }
    } else if (bg_unlikely(arg->write_flags & FUSE_WRITE_CACHE)) {
        fuse_file_changed_some(&req->queue->mount->files, f->exp, since); /* the kernel guessed the file */
    } else if (!synced && ret == 0) {
        fuse_file_changed(f->file, since);
    }
}

int coroutine_fn fuse_op_write(FuseRequest *req)
{
    const struct fuse_write_in *arg = req->arg;
    OpenFile f;
    if (bg_unlikely(arg->size != req->body_len || arg->size > FUSE_PAYLOAD_SIZE)) {
        return -EINVAL;
    }
    int ret = file_begin(req, arg->fh, req->in->nodeid, &f);
    if (bg_unlikely(ret < 0)) {
        return ret;
    }
    if (bg_unlikely(!f.exp || !f.file->writable)) {
        return file_end(req, &f, -EBADF);
    }
    int64_t n = write_room(f.exp, arg->offset, arg->size);
    if (bg_unlikely(n < 0)) {
        return (int)n;
    }
    if (n > 0) {
        BlockRequestFlags flags = arg->flags & (O_DSYNC | O_SYNC) ? BLOCK_REQ_FUA : 0;
        BlockFlushError since = block_graph_flush_errors(f.exp->graph);
        ret = write_data(f.exp, (int64_t)arg->offset, n, req->body, flags);
        note_write(req, &f, arg, since, ret);
    }
    if (ret == 0) {
        struct fuse_write_out *out = fuse_request_small_reply(req, sizeof *out);
        out->size = (uint32_t)n;
    }
    return ret;
}

/* ---- FSYNC */

int coroutine_fn fuse_op_fsync(FuseRequest *req)
{
    const struct fuse_fsync_in *arg = req->arg;
    OpenFile f;
    int ret = file_begin(req, arg->fh, req->in->nodeid, &f);
    if (ret == 0 && f.exp) {
        BlockFlushError newest, since = fuse_file_sync_begin(f.file);
        ret = block_backend_co_flush_report(f.blk, &newest);
        ret = fuse_file_sync_end(f.file, since, newest, ret);
    }
    return file_end(req, &f, ret);
}

/* SYNCFS: every writable export, also after an error; the first one is the answer. */
int coroutine_fn fuse_op_sync_all(FuseRequest *req)
{
    g_autoptr(GPtrArray) exports = fuse_request_enter_all(req);
    int first = 0;
    for (guint i = 0; i < exports->len; i++) {
        FuseExport *exp = exports->pdata[i];
        int ret = exp->writable ? block_backend_co_flush(exp->blk) : 0;
        first = first ? first : ret;
        fuse_export_leave(exp, req->queue->index);
    }
    return first;
}

/* fsync(2) of the root directory is what reaches us of a wish to sync all: the kernel keeps sync(2) to
 * itself. */
int coroutine_fn fuse_op_fsyncdir(FuseRequest *req)
{
    return req->in->nodeid == FUSE_ROOT_ID ? fuse_op_sync_all(req) : 0;
}

/* ---- FALLOCATE */

static int coroutine_fn punch_hole(FuseExport *exp, const struct fuse_fallocate_in *arg)
{
    int64_t n = cut_at_end(arg->offset, arg->length, block_backend_length(exp->blk));
    if (n == 0) {
        return 0;
    }
    return block_backend_co_pwrite_zeroes(exp->blk, (int64_t)arg->offset, n,
                                          BLOCK_REQ_MAY_UNMAP | BLOCK_REQ_NO_FALLBACK);
}

/* Make the file at least `end` bytes long, for a mode that may extend it. */
static int coroutine_fn extend(FuseExport *exp, int64_t end, bool keep_size)
{
    if (block_backend_length(exp->blk) >= end) {
        return 0;
    }
    if (!exp->growable) {
        return -ENOSPC;
    }
    /* A node cannot hold storage beyond its end. */
    return keep_size ? -EOPNOTSUPP : grow(exp, end);
}

/* Reserve storage; where the drivers cannot, the file gets its old length back. */
static int coroutine_fn allocate(FuseExport *exp, const struct fuse_fallocate_in *arg)
{
    int64_t end = (int64_t)(arg->offset + arg->length), old = block_backend_length(exp->blk);
    int ret = extend(exp, end, arg->mode & FALLOC_FL_KEEP_SIZE);
    if (ret < 0) {
        return ret;
    }
    ret = block_backend_co_pwrite_zeroes(exp->blk, (int64_t)arg->offset, (int64_t)arg->length,
                                         BLOCK_REQ_ALLOCATE | BLOCK_REQ_NO_FALLBACK);
    if (ret < 0 && old < end && block_backend_length(exp->blk) == end) {
        block_backend_co_truncate(exp->blk, old, NULL);
    }
    return ret;
}

static int coroutine_fn zero_range(FuseExport *exp, const struct fuse_fallocate_in *arg)
{
    bool keep_size = arg->mode & FALLOC_FL_KEEP_SIZE;
    int64_t n = (int64_t)arg->length;
    if (keep_size) {
        n = cut_at_end(arg->offset, arg->length, block_backend_length(exp->blk));
        if (n == 0) {
            return 0;
        }
    } else {
        int ret = extend(exp, (int64_t)(arg->offset + arg->length), false);
        if (ret < 0) {
            return ret;
        }
    }
    return block_backend_co_pwrite_zeroes(exp->blk, (int64_t)arg->offset, n, 0);
}

static int coroutine_fn fallocate_export(FuseExport *exp, const struct fuse_fallocate_in *arg)
{
    if (arg->length == 0) {
        return -EINVAL;
    }
    /* "All from there on" may be said by any length, where the file stays as long as it is. */
    bool cut = arg->mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE) ||
               arg->mode == (FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE);
    if (!cut && (arg->offset > BLOCK_MAX_LENGTH || arg->length > BLOCK_MAX_LENGTH - arg->offset)) {
        return -EFBIG;
    }
    switch (arg->mode) {
    case 0:
    case FALLOC_FL_KEEP_SIZE:
        return allocate(exp, arg);
    case FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE:
        return punch_hole(exp, arg);
    case FALLOC_FL_ZERO_RANGE:
    case FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE:
        return zero_range(exp, arg);
    default:
        return -EOPNOTSUPP;
    }
}

int coroutine_fn fuse_op_fallocate(FuseRequest *req)
{
    const struct fuse_fallocate_in *arg = req->arg;
    OpenFile f;
    int ret = file_begin(req, arg->fh, req->in->nodeid, &f);
    if (ret == 0 && f.exp && f.file->writable) {
        BlockFlushError since = block_graph_flush_errors(f.exp->graph);
        ret = fallocate_export(f.exp, arg);
        fuse_file_changed(f.file, since); /* also where it failed: a part may be done */
    } else if (ret == 0) {
        ret = -EBADF;
    }
    return file_end(req, &f, ret);
}

/* ---- LSEEK */

/* The next offset from `offset` on that is data or a hole; a hole is what reads as zeroes without storage. */
static int64_t coroutine_fn seek(BlockBackend *blk, int64_t offset, bool data)
{
    int64_t length = block_backend_length(blk);
    if (offset < 0 || offset >= length) {
        return -ENXIO;
    }
    while (offset < length) {
        int64_t n = 0;
        int status = block_backend_co_block_status(blk, offset, length - offset, &n);
        if (status < 0) {
            return status;
        }
        bool is_hole = status & BLOCK_STATUS_ZERO;
        if (is_hole != data) {
            return offset;
        }
        offset += n;
    }
    /* Every file ends with a hole. */
    return data ? -ENXIO : length;
}

int coroutine_fn fuse_op_lseek(FuseRequest *req)
{
    const struct fuse_lseek_in *arg = req->arg;
    OpenFile f;
    if (arg->whence != SEEK_DATA && arg->whence != SEEK_HOLE) {
        return -EINVAL;
    }
    int ret = file_begin(req, arg->fh, req->in->nodeid, &f);
    if (ret < 0) {
        return ret;
    }
    int64_t found = f.blk ? seek(f.blk, (int64_t)arg->offset, arg->whence == SEEK_DATA) : -EINVAL;
    if (found >= 0) {
        struct fuse_lseek_out *out = fuse_request_small_reply(req, sizeof *out);
        out->offset = (uint64_t)found;
    }
    return file_end(req, &f, (int)MIN(found, 0));
}

/* ---- COPY_FILE_RANGE */

static int coroutine_fn copy_range(FuseRequest *req, BlockBackend *from, FuseExport *to,
                                   const struct fuse_copy_file_range_in *arg)
{
    uint64_t most = MIN(arg->len, (uint64_t)COPY_RANGE_MAX);
    int64_t n = cut_at_end(arg->off_in, most, block_backend_length(from));
    if (n > 0) {
        n = write_room(to, arg->off_out, (uint32_t)n);
        if (n < 0) {
            return (int)n;
        }
        int64_t end = (int64_t)arg->off_out + n;
        int ret = must_grow(to, end) ? grow(to, end) : 0;
        if (ret == 0) {
            ret = block_backend_co_copy_range(from, (int64_t)arg->off_in, to->blk, (int64_t)arg->off_out, n);
        }
        if (ret < 0) {
            return ret;
        }
    }
    struct fuse_write_out *out = fuse_request_small_reply(req, sizeof *out);
    out->size = (uint32_t)n;
    return 0;
}

int coroutine_fn fuse_op_copy_file_range(FuseRequest *req)
{
    const struct fuse_copy_file_range_in *arg = req->arg;
    OpenFile in, out;
    if (arg->flags != 0) {
        return -EINVAL;
    }
    int ret = file_begin(req, arg->fh_in, req->in->nodeid, &in);
    if (ret < 0) {
        return ret;
    }
    ret = file_begin(req, arg->fh_out, arg->nodeid_out, &out);
    if (ret == 0) {
        bool ok = out.exp && out.file->writable;
        BlockFlushError since = block_graph_flush_errors(req->queue->mount->graph);
        /* Text files are copied by reading them: EXDEV makes the caller do so. */
        ret = !ok ? -EBADF : !in.blk ? -EXDEV : copy_range(req, in.blk, out.exp, arg);
        if (ok) {
            fuse_file_changed(out.file, since);
        }
        ret = file_end(req, &out, ret);
    }
    return file_end(req, &in, ret);
}
