/*
 * qcow2: reading.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <string.h>

#include "backends/format/qcow2/qcow2.h"

static int coroutine_fn read_unallocated(Qcow2State *s, int64_t offset, int64_t bytes, const IoVector *qiov,
                                         size_t qiov_offset)
{
    if (s->node->backing) { /* zeroes from its end on */
        return block_child_co_preadv(s->node->backing, offset, bytes, qiov, qiov_offset, 0);
    }
    io_vector_memset(qiov, qiov_offset, 0, (size_t)bytes);
    return 0;
}

static int coroutine_fn read_mapped(Qcow2State *s, const Qcow2Mapping *m, int64_t offset,
                                    const IoVector *qiov, size_t qiov_offset)
{
    switch (m->type) {
    case QCOW2_NORMAL:
        return block_child_co_preadv(s->data, (int64_t)m->host, m->bytes, qiov, qiov_offset, 0);
    case QCOW2_COMPRESSED:
        return qcow2_read_compressed(s, m->entry, offset & (s->cluster_size - 1), m->bytes, qiov,
                                     qiov_offset);
    case QCOW2_ZERO:
        io_vector_memset(qiov, qiov_offset, 0, (size_t)m->bytes);
        return 0;
    default:
        return read_unallocated(s, offset, m->bytes, qiov, qiov_offset);
    }
}

int coroutine_fn qcow2_read_range(Qcow2State *s, const Qcow2Directory *l1, int64_t offset, int64_t bytes,
                                  const IoVector *qiov, size_t qiov_offset)
{
    int ret = 0;
    while (bytes > 0 && ret == 0) {
        Qcow2Mapping m;
        co_mutex_lock(&s->lock);
        ret = qcow2_lookup_in_locked(s, l1, offset, bytes, &m);
        unsigned epoch = qcow2_io_enter_locked(s);
        co_mutex_unlock(&s->lock);
        ret = ret < 0 ? ret : read_mapped(s, &m, offset, qiov, qiov_offset);
        qcow2_io_leave(s, epoch);
        offset += m.bytes;
        qiov_offset += (size_t)m.bytes;
        bytes -= m.bytes;
    }
    return ret;
}

int coroutine_fn qcow2_co_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                 size_t qiov_offset, BlockRequestFlags flags)
{
    Qcow2State *s = node->opaque;
    return qcow2_read_range(s, &s->l1, offset, bytes, qiov, qiov_offset);
}

int coroutine_fn qcow2_read_source(Qcow2State *s, int64_t offset, int64_t bytes, uint8_t *buf)
{
    int64_t inside = CLAMP(block_node_length(s->node) - offset, 0, bytes);
    memset(buf + inside, 0, (size_t)(bytes - inside));
    struct iovec iov = {buf, (size_t)inside};
    IoVector v = {&iov, 1, (size_t)inside};
    return qcow2_read_range(s, &s->l1, offset, inside, &v, 0);
}
