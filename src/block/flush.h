/*
 * FlushState: which writes a flush must wait for, and which flushes can share one run.
 *
 * Writes count themselves in one of two epochs. A run of the flush turns the epoch over, waits until
 * the old one is empty (the writes accepted before it), and, if anything was written since the last success,
 * calls the driver. Reads take no part.
 *
 *   IDLE --flush--> RUNNING (ticket t) --done, nobody waits--> IDLE
 *                   RUNNING --done, some wait for ticket t+1--> RUNNING (the first of them leads)
 *
 * A flush that arrives while run t is under way cannot share it (run t may have passed its write already): it
 * takes ticket t+1. All with one ticket share one run and its result.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BLOCK_FLUSH_H
#define BG_BLOCK_FLUSH_H

#include "block/types.h"

typedef struct FlushState FlushState;

FlushState *flush_state_new(void);
void flush_state_free(FlushState *f);

/* A write begins; returns its epoch, for flush_write_end. Any thread; no lock. */
unsigned flush_write_begin(FlushState *f);
/* It has ended, well or not. Any thread. */
void flush_write_end(FlushState *f, unsigned epoch);

/* The newest flush that failed in this very node. Any thread. */
BlockFlushError flush_state_error(const FlushState *f);
void flush_state_set_error(FlushState *f, BlockFlushError error);

typedef int coroutine_fn FlushFunc(BlockNode *node);
/*
 * Run, or share, a flush: func(node) is called unless, with `always` false, nothing was written since it last
 * returned 0. Coroutine, any thread.
 */
int coroutine_fn flush_state_co_run(FlushState *f, FlushFunc *func, BlockNode *node, bool always);

#endif /* BG_BLOCK_FLUSH_H */
