/*
 * qcow2: block status.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "backends/format/qcow2/qcow2.h"

int coroutine_fn qcow2_block_status_in(Qcow2State *s, const Qcow2Directory *l1, int64_t offset, int64_t bytes,
                                       int64_t *pnum, BlockChild **child, int64_t *child_offset)
{
    BlockNode *node = s->node;
    Qcow2Mapping m;
    co_mutex_lock(&s->lock);
    int ret = qcow2_lookup_in_locked(s, l1, offset, bytes, &m);
    co_mutex_unlock(&s->lock);
    if (ret < 0) {
        return ret;
    }
    *pnum = m.bytes;
    switch (m.type) {
    case QCOW2_NORMAL: /* holes of the file are zeroes: a preallocated image */
        *child = s->data;
        *child_offset = (int64_t)m.host;
        return BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_RECURSE;
    case QCOW2_COMPRESSED:
        return BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED;
    case QCOW2_ZERO:
        return BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED;
    default:
        *child = node->backing;
        *child_offset = offset;
        return node->backing ? BLOCK_STATUS_RECURSE : BLOCK_STATUS_ZERO;
    }
}

int coroutine_fn qcow2_co_block_status(BlockNode *node, int64_t offset, int64_t bytes, int64_t *pnum,
                                       BlockChild **child, int64_t *child_offset)
{
    Qcow2State *s = node->opaque;
    return qcow2_block_status_in(s, &s->l1, offset, bytes, pnum, child, child_offset);
}
