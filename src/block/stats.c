/*
 * Sharded per-node counters.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "block/stats.h"

#define SHARDS 4

typedef struct OpCounters {
    _Atomic uint64_t count, bytes, errors, total_ns;
    _Atomic uint64_t latency[BLOCK_LATENCY_BUCKETS];
} OpCounters;

typedef struct StatsShard {
    OpCounters op[BLOCK_OP__MAX] BG_CACHE_ALIGNED;
} StatsShard;

struct BlockStats {
    StatsShard shard[SHARDS];
};

BlockStats *block_stats_new(void)
{
    BlockStats *stats = aligned_alloc(BG_CACHE_LINE, sizeof *stats);
    g_assert(stats);
    *stats = (BlockStats){0};
    return stats;
}

void block_stats_free(BlockStats *stats)
{
    free(stats);
}

/* A number for the calling thread. Not inlined: a coroutine may have moved since the last call. */
static __attribute__((noinline)) unsigned thread_shard(void)
{
    static _Atomic unsigned next;
    static __thread unsigned mine; /* 0: none yet */
    if (!mine) {
        mine = 1 + atomic_fetch_add_explicit(&next, 1, memory_order_relaxed);
    }
    return mine % SHARDS;
}

static unsigned latency_bucket(int64_t ns)
{
    uint64_t us = ns > 0 ? (uint64_t)ns / 1000 : 0;
    unsigned bits = us ? 64 - (unsigned)__builtin_clzll(us) : 0;
    return MIN(bits, BLOCK_LATENCY_BUCKETS - 1u);
}

static inline void counter_add(_Atomic uint64_t *c, uint64_t n)
{
    atomic_fetch_add_explicit(c, n, memory_order_relaxed);
}

void block_stats_add(BlockStats *stats, BlockOp op, int64_t bytes, int64_t latency_ns, bool failed)
{
    OpCounters *c = &stats->shard[thread_shard()].op[op];
    counter_add(&c->count, 1);
    counter_add(failed ? &c->errors : &c->bytes, failed ? 1 : (uint64_t)bytes);
    counter_add(&c->total_ns, latency_ns > 0 ? (uint64_t)latency_ns : 0);
    counter_add(&c->latency[latency_bucket(latency_ns)], 1);
}

void block_stats_get(BlockStats *stats, BlockOp op, BlockOpStats *out)
{
    *out = (BlockOpStats){0};
    for (int s = 0; s < SHARDS; s++) {
        OpCounters *c = &stats->shard[s].op[op];
        out->count += atomic_load_explicit(&c->count, memory_order_relaxed);
        out->bytes += atomic_load_explicit(&c->bytes, memory_order_relaxed);
        out->errors += atomic_load_explicit(&c->errors, memory_order_relaxed);
        out->total_ns += atomic_load_explicit(&c->total_ns, memory_order_relaxed);
        for (int i = 0; i < BLOCK_LATENCY_BUCKETS; i++) {
            out->latency[i] += atomic_load_explicit(&c->latency[i], memory_order_relaxed);
        }
    }
}
