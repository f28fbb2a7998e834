/*
 * Shared by io.c and io-write.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BLOCK_IO_INTERNAL_H
#define BG_BLOCK_IO_INTERNAL_H

#include "block/block-internal.h"

/* Largest buffer of our own for one request, in bytes. */
#define BOUNCE_MAX ((int64_t)1024 * 1024)

#define ROUND_DOWN(n, align) ((n) / (align) * (align))
#define ROUND_UP(n, align)   (((n) + (align)-1) / (align) * (align))

static inline int64_t node_alignment(const BlockNode *node)
{
    return node->limits.request_alignment ? node->limits.request_alignment : 1;
}

/* Aligned for the node; free with free(3); NULL where memory is short. */
void *node_bounce_new(const BlockNode *node, size_t bytes);
int64_t node_piece_length(const BlockNode *node, int64_t bytes, const IoVector *qiov, size_t qiov_offset,
                          bool *bounce);

#endif /* BG_BLOCK_IO_INTERNAL_H */
