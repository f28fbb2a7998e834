/*
 * Reads, writes and flushes.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "backends/protocol/iscsi/iscsi.h"
#include "block/io.h"

/* Vectors of up to this many pieces are sliced on the stack. */
#define STACK_PIECES 16

_Static_assert(sizeof(struct scsi_iovec) == sizeof(struct iovec), "the library's vectors are those of POSIX");

/* The commands of 10 bytes reach as far as 32 bits; every disk knows those, few know more. */
static bool is_far(const IscsiRequest *r)
{
    return r->lba + r->blocks > UINT32_MAX;
}

static uint32_t bytes_of(const IscsiRequest *r)
{
    const IscsiState *s = r->opaque;

    return (uint32_t)(r->blocks * s->disk.block_size);
}

static struct scsi_task *make_read(const IscsiRequest *r)
{
    const IscsiState *s = r->opaque;
    int size = (int)s->disk.block_size;
    struct scsi_task *task = is_far(r) ? scsi_cdb_read16(r->lba, bytes_of(r), size, 0, 0, 0, 0, 0)
                                       : scsi_cdb_read10((uint32_t)r->lba, bytes_of(r), size, 0, 0, 0, 0, 0);

    if (task) {
        scsi_task_set_iov_in(task, r->iov, r->niov);
    }
    return task;
}

static struct scsi_task *make_write(const IscsiRequest *r)
{
    const IscsiState *s = r->opaque;
    int size = (int)s->disk.block_size;
    struct scsi_task *task = is_far(r)
                                 ? scsi_cdb_write16(r->lba, bytes_of(r), size, 0, 0, r->fua, 0, 0)
                                 : scsi_cdb_write10((uint32_t)r->lba, bytes_of(r), size, 0, 0, r->fua, 0, 0);

    if (task) {
        scsi_task_set_iov_out(task, r->iov, r->niov);
    }
    return task;
}

/* The library changes the vector while it works: it gets a copy. */
static int coroutine_fn co_transfer(IscsiState *s, IscsiRequest *r, const IoVector *qiov, size_t skip,
                                    size_t bytes)
{
    struct iovec few[STACK_PIECES];
    g_autofree struct iovec *many = NULL;
    struct iovec *pieces = few;

    if (qiov->niov > STACK_PIECES) {
        pieces = many = g_new(struct iovec, qiov->niov);
    }
    r->niov = io_vector_slice(qiov, skip, bytes, pieces);
    r->iov = (struct scsi_iovec *)pieces;
    r->opaque = s;
    r->whole = true;
    return iscsi_co_run(s, r);
}

int coroutine_fn iscsi_co_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                 size_t qiov_offset, BlockRequestFlags flags)
{
    IscsiState *s = node->opaque;
    uint32_t size = s->disk.block_size;
    IscsiRequest r = {.make = make_read, .op = BLOCK_OP_READ, .lba = offset / size, .blocks = bytes / size};

    return co_transfer(s, &r, qiov, qiov_offset, bytes);
}

int coroutine_fn iscsi_co_pwritev(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                  size_t qiov_offset, BlockRequestFlags flags)
{
    IscsiState *s = node->opaque;
    uint32_t size = s->disk.block_size;
    IscsiRequest r = {.make = make_write,
                      .op = BLOCK_OP_WRITE,
                      .lba = offset / size,
                      .blocks = bytes / size,
                      .fua = flags & BLOCK_REQ_FUA};
    int ret = co_transfer(s, &r, qiov, qiov_offset, bytes);

    return ret < 0 || r.fua ? ret : remote_co_wrote(&s->remote, offset, bytes, qiov, qiov_offset);
}

/* ---- Flush */

/* From the first block to the last. */
static struct scsi_task *make_flush_10(const IscsiRequest *r)
{
    return scsi_cdb_synchronizecache10(0, 0, 0, 0);
}

static struct scsi_task *make_flush_16(const IscsiRequest *r)
{
    return scsi_cdb_synchronizecache16(0, 0, 0, 0);
}

static int coroutine_fn co_synchronize(BlockNode *node)
{
    IscsiState *s = node->opaque;
    IscsiRequest r = {.make = make_flush_10, .opaque = s, .op = BLOCK_OP_FLUSH};
    int ret = iscsi_co_run(s, &r);

    if (ret == -ENOTSUP) {
        r.make = make_flush_16;
        ret = iscsi_co_run(s, &r);
    }
    return ret == -ENOTSUP ? -EIO : ret;
}

int coroutine_fn iscsi_co_flush(BlockNode *node)
{
    IscsiState *s = node->opaque;

    /* Without: nothing is kept back, or `durable` says no. */
    return s->disk.has_sync_cache ? remote_co_sync(&s->remote) : 0;
}

/* ---- After an outage */

static int coroutine_fn co_resend(RemoteLink *link, int64_t offset, int64_t bytes, const void *data,
                                  BlockRequestFlags flags)
{
    IscsiState *s = link->opaque;
    uint32_t size = s->disk.block_size;
    struct iovec iov = {.iov_base = (void *)data, .iov_len = (size_t)bytes};
    IoVector qiov = {.iov = &iov, .niov = 1, .size = (size_t)bytes};
    IscsiRequest r = {.make = make_write,
                      .op = BLOCK_OP_WRITE,
                      .lba = offset / size,
                      .blocks = bytes / size,
                      .connecting = true};

    return data ? co_transfer(s, &r, &qiov, 0, bytes) : iscsi_co_zero(s, offset, bytes, flags, true);
}

const RemoteWriteOps iscsi_write_ops = {.co_flush = co_synchronize, .co_resend = co_resend};
