/*
 * Discard, zeroes, and which blocks are allocated.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "backends/protocol/iscsi/iscsi.h"
#include "block/io.h"

#define UNMAP_HEADER     8
#define UNMAP_DESCRIPTOR 16
#define STATUS_ANSWER    (8 + 16 * 64) /* of up to 64 descriptors */

/* ---- Discard */

typedef struct UnmapRequest {
    IscsiRequest r; /* first */
    uint8_t parameters[UNMAP_HEADER + UNMAP_DESCRIPTOR];
} UnmapRequest;

static struct scsi_task *make_unmap(const IscsiRequest *r)
{
    struct scsi_task *task = scsi_cdb_unmap(0, 0, UNMAP_HEADER + UNMAP_DESCRIPTOR);

    if (task) {
        scsi_task_set_iov_out(task, r->iov, r->niov);
    }
    return task;
}

int coroutine_fn iscsi_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    IscsiState *s = node->opaque;
    uint32_t size = s->disk.block_size;
    UnmapRequest u = {
        .r = {.make = make_unmap, .op = BLOCK_OP_DISCARD, .lba = offset / size, .blocks = bytes / size}};
    struct scsi_iovec iov = {.iov_base = u.parameters, .iov_len = sizeof(u.parameters)};

    if (!s->disk.has_unmap) {
        return -ENOTSUP;
    }
    u.r.iov = &iov;
    u.r.niov = 1;
    scsi_set_uint16(u.parameters, sizeof(u.parameters) - 2);
    scsi_set_uint16(u.parameters + 2, UNMAP_DESCRIPTOR);
    scsi_set_uint64(u.parameters + UNMAP_HEADER, u.r.lba);
    scsi_set_uint32(u.parameters + UNMAP_HEADER + 8, (uint32_t)u.r.blocks);
    int ret = iscsi_co_run(s, &u.r);

    if (ret == 0) {
        remote_touched(&s->remote);
    } else if (ret == -ENOTSUP) {
        s->disk.has_unmap = false;
    }
    return ret;
}

/* ---- Zeroes */

static struct scsi_task *make_write_same_16(const IscsiRequest *r)
{
    const IscsiState *s = r->opaque;
    struct scsi_task *task =
        scsi_cdb_writesame16(0, 0, r->unmap, r->lba, 0, (uint32_t)r->blocks, s->disk.block_size);

    if (task) {
        scsi_task_set_iov_out(task, r->iov, r->niov);
    }
    return task;
}

static struct scsi_task *make_write_same_10(const IscsiRequest *r)
{
    const IscsiState *s = r->opaque;
    struct scsi_task *task =
        scsi_cdb_writesame10(0, 0, r->unmap, (uint32_t)r->lba, 0, (uint16_t)r->blocks, s->disk.block_size);

    if (task) {
        scsi_task_set_iov_out(task, r->iov, r->niov);
    }
    return task;
}

/* -ENOTSUP: not with this command; remembered in *has. With `unmap` it may be that only this is not known. */
static int coroutine_fn co_write_same(IscsiState *s, IscsiRequest *r, bool *has, bool *unmaps)
{
    int ret;

    if (!*has) {
        return -ENOTSUP;
    }
    r->unmap = r->unmap && *unmaps;
    ret = iscsi_co_run(s, r);
    if (ret == -ENOTSUP && r->unmap) {
        *unmaps = r->unmap = false;
        ret = iscsi_co_run(s, r);
    }
    if (ret == -ENOTSUP) {
        *has = false;
    }
    return ret;
}

int coroutine_fn iscsi_co_zero(IscsiState *s, int64_t offset, int64_t bytes, BlockRequestFlags flags,
                               bool connecting)
{
    IscsiDisk *d = &s->disk;
    uint32_t size = d->block_size;
    g_autofree uint8_t *zeroes = g_malloc0(size);
    struct scsi_iovec iov = {.iov_base = zeroes, .iov_len = size};
    bool may_unmap = (flags & BLOCK_REQ_MAY_UNMAP) && d->unmapped_reads_zeroes;
    IscsiRequest r = {.make = make_write_same_16,
                      .opaque = s,
                      .op = BLOCK_OP_WRITE_ZEROES,
                      .lba = offset / size,
                      .blocks = bytes / size,
                      .unmap = may_unmap,
                      .connecting = connecting,
                      .iov = &iov,
                      .niov = 1};
    int ret = co_write_same(s, &r, &d->has_write_same_16, &d->write_same_16_unmaps);

    if (ret == -ENOTSUP && r.lba + r.blocks <= UINT32_MAX && r.blocks <= UINT16_MAX) {
        r.make = make_write_same_10;
        r.unmap = may_unmap;
        ret = co_write_same(s, &r, &d->has_write_same_10, &d->write_same_10_unmaps);
    }
    return ret;
}

int coroutine_fn iscsi_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                        BlockRequestFlags flags)
{
    IscsiState *s = node->opaque;
    int ret = iscsi_co_zero(s, offset, bytes, flags, false);

    return ret < 0 ? ret : remote_co_zeroed(&s->remote, offset, bytes, flags);
}

/* ---- Block status */

typedef struct StatusRequest {
    IscsiRequest r; /* first */
    uint64_t blocks;
    bool mapped;
} StatusRequest;

static struct scsi_task *make_status(const IscsiRequest *r)
{
    return scsi_cdb_get_lba_status(r->lba, STATUS_ANSWER);
}

static int take_status(IscsiRequest *r, struct scsi_task *task)
{
    StatusRequest *q = (StatusRequest *)r;
    const struct scsi_get_lba_status *status = scsi_datain_unmarshall(task);
    uint64_t next = r->lba;

    for (uint32_t i = 0; status && i < status->num_descriptors; i++) {
        const struct scsi_lba_status_descriptor *d = &status->descriptors[i];
        bool mapped = d->provisioning == SCSI_PROVISIONING_TYPE_MAPPED;

        if (d->lba != next || d->num_blocks == 0 || (i > 0 && mapped != q->mapped)) {
            break;
        }
        q->mapped = mapped;
        q->blocks += d->num_blocks;
        next += d->num_blocks;
    }
    return q->blocks > 0 ? 0 : -EPROTO;
}

int coroutine_fn iscsi_co_block_status(BlockNode *node, int64_t offset, int64_t bytes, int64_t *pnum,
                                       BlockChild **child, int64_t *child_offset)
{
    IscsiState *s = node->opaque;
    int64_t size = s->disk.block_size;
    StatusRequest q = {.r = {.make = make_status,
                             .take = take_status,
                             .op = BLOCK_OP_BLOCK_STATUS,
                             .lba = offset / size,
                             .blocks = bytes / size}};

    *pnum = bytes;
    if (!s->disk.has_lba_status) {
        return BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED;
    }
    int ret = iscsi_co_run(s, &q.r);

    if (ret == -ENOTSUP || ret == -EPROTO || ret == -EINVAL) {
        s->disk.has_lba_status = false;
        return BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED;
    }
    if (ret < 0) {
        return ret;
    }
    int64_t most = bytes / size;

    *pnum = (q.blocks < (uint64_t)most ? (int64_t)q.blocks : most) * size;
    bool zero = !q.mapped && s->disk.unmapped_reads_zeroes;

    return BLOCK_STATUS_ALLOCATED | (zero ? BLOCK_STATUS_ZERO : BLOCK_STATUS_DATA);
}
