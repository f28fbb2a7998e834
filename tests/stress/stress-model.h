/*
 * The data side of the stress test: leaves, what their content must be, and workers that change it.
 *
 * The bytes of each leaf are cut into cells at odd borders, and each cell belongs to one worker: workers
 * share blocks, so that the core's read-modify-write has to keep them apart, but never a byte.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_TESTS_STRESS_MODEL_H
#define BG_TESTS_STRESS_MODEL_H

#include "tests/unit/block-test-util.h"

#define STRESS_LEAVES   4
#define STRESS_BACKENDS (2 * STRESS_LEAVES)
#define STRESS_WORKERS  12
#define STRESS_LENGTH   (192 * 1024 + 333)

/* A xorshift generator, one per actor. */
typedef struct StressRand {
    uint64_t state;
} StressRand;

uint32_t stress_rand(StressRand *r);
/* From 0 to n - 1. */
uint32_t stress_below(StressRand *r, uint32_t n);

typedef struct StressCell {
    unsigned leaf;
    int64_t offset, bytes;
} StressCell;

typedef struct StressModel {
    BlockNode *leaf[STRESS_LEAVES];
    BlockBackend *blk[STRESS_BACKENDS]; /* two per leaf: 2 * leaf, 2 * leaf + 1 */
    uint8_t *mirror[STRESS_LEAVES];     /* each byte touched by its owner only */
    uint8_t *known[STRESS_LEAVES];      /* 0: discarded, may read as anything */
    _Atomic bool stop;
} StressModel;

typedef struct StressWorker {
    StressModel *model;
    unsigned number;
    StressRand rand;
    GArray *cells; /* StressCell */
    uint8_t *buf;
    TestTask *task;
    _Atomic uint64_t progress;
    uint64_t ops[BLOCK_OP__MAX]; /* after the end */
} StressWorker;

void coroutine_fn stress_model_open(StressModel *m, TestEnv *env);
/* Compare all that is known with the leaves. */
void stress_model_check(StressModel *m);
void coroutine_fn stress_model_close(StressModel *m, TestEnv *env);

/* Deal the cells out; start worker i in ctx[i % n]. */
void stress_workers_start(StressModel *m, StressWorker *workers, AioContext **ctx, unsigned n, uint64_t seed);
void coroutine_fn stress_workers_join(StressWorker *workers);

#endif /* BG_TESTS_STRESS_MODEL_H */
