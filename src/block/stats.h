/*
 * Per-node statistics: counts, bytes, errors and a latency histogram per kind of operation.
 *
 * Spread over a few shards, so that threads that work on one node do not share a cache line; readers sum up.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BLOCK_STATS_H
#define BG_BLOCK_STATS_H

#include "block/types.h"

/* Bucket i counts latencies below 2^i microseconds; the last counts the rest. */
#define BLOCK_LATENCY_BUCKETS 24

typedef struct BlockOpStats {
    uint64_t count; /* completed, failed ones included */
    uint64_t bytes; /* of those that succeeded */
    uint64_t errors;
    uint64_t total_ns; /* sum of the latencies */
    uint64_t latency[BLOCK_LATENCY_BUCKETS];
} BlockOpStats;

typedef struct BlockStats BlockStats;

BlockStats *block_stats_new(void);
void block_stats_free(BlockStats *stats);
/* Count one operation. Any thread. */
void block_stats_add(BlockStats *stats, BlockOp op, int64_t bytes, int64_t latency_ns, bool failed);
/* Sum of the shards; not a snapshot at one instant. Any thread. */
void block_stats_get(BlockStats *stats, BlockOp op, BlockOpStats *out);

#endif /* BG_BLOCK_STATS_H */
