/*
 * Block drivers defined in the tests.
 *
 *   test-mem     a leaf in memory, instrumented: holds requests back until released, fails on demand,
 *                counts and records its calls, checks that they keep to its limits
 *   test-home    the same, bound to a home AioContext: checks that every call comes in that thread
 *   test-filter  passes everything to `file`, counts, may sleep in the middle of a request
 *   test-format  a parent of any children, attached by the test or by the options a, b, c (optional)
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_TESTS_BLOCK_TEST_DRIVER_H
#define BG_TESTS_BLOCK_TEST_DRIVER_H

#include <stdatomic.h>

#include "block/io.h"
#include "coroutine/lock.h"

/* One recorded call. */
typedef struct TestCall {
    BlockOp op;
    int64_t offset, bytes;
    BlockRequestFlags flags;
    int niov;
} TestCall;

/* A held-back kind of request: those of `op` that touch byte `offset` (-1: all). */
typedef struct TestHold {
    BlockOp op;
    int64_t offset;
} TestHold;

/* First member of every test driver's state. */
typedef struct TestDriver {
    BlockNode *node;
    _Atomic unsigned calls[BLOCK_OP__MAX]; /* begun */
    _Atomic unsigned active;               /* callbacks running now */
    _Atomic unsigned active_data;          /* the same without flushes */
    _Atomic unsigned drain_begins, drain_ends;
    _Atomic unsigned checks, sets, aborts; /* permission callbacks */
    _Atomic int fail_check;                /* errno for check_perm */
    /* Called from drain_begin, drain_end and co_close where set. */
    void (*on_drain_begin)(BlockNode *node, void *opaque);
    void (*on_drain_end)(BlockNode *node, void *opaque);
    void (*on_close)(BlockNode *node, void *opaque);
    void *hook_opaque;
    uint64_t delay_ns; /* each I/O call sleeps that long, 0: none; 1: only a round of the loop */
} TestDriver;

typedef struct TestMem {
    TestDriver d;
    uint8_t *data;
    int64_t capacity;
    _Atomic int64_t size; /* as a file's: grows with writes beyond it */
    bool no_zeroes, no_copy;
    bool erase_discarded; /* a discard overwrites with TEST_DISCARD_BYTE */
    bool torn_writes;     /* a write that fails has written its first half */
    AioContext *home;     /* test-home: where calls must come */
    _Atomic unsigned attaches, detaches;
    _Atomic int fail[BLOCK_OP__MAX]; /* errno that the next calls return; 0: none */
    _Atomic unsigned waiting;        /* calls held back now */
    BgMutex lock;
    GArray *holds BG_GUARDED_BY(lock);  /* TestHold */
    GArray *record BG_GUARDED_BY(lock); /* TestCall */
    CoQueue released;
} TestMem;

#define TEST_DISCARD_BYTE 0xdd

/* Register all of the above. Main thread, once. */
void test_drivers_register(void);

TestDriver *test_driver(BlockNode *node);
TestMem *test_mem(BlockNode *node);

void test_mem_hold(BlockNode *node, BlockOp op, int64_t offset);
/* Remove one such hold, let go whom it held. */
void test_mem_release(BlockNode *node, BlockOp op, int64_t offset);
unsigned test_mem_waiting(BlockNode *node);
void test_mem_fail(BlockNode *node, BlockOp op, int errnum);

/* For a test's own filters: co_open, with a child `file` that may grow. */
int coroutine_fn test_filter_open(BlockNode *node, BlockOptions *opts, GError **errp);

unsigned test_calls(BlockNode *node, BlockOp op);
/* Copy of the calls so far (free with g_array_unref), and start over. */
GArray *test_mem_take_record(BlockNode *node);
/* The same as "write 0+512, flush", for comparison. g_free. */
char *test_mem_record_text(BlockNode *node);

/* ---- Between block-test-driver.c and block-test-mem.c. */

extern const BlockDriver test_mem_driver, test_home_driver;

void coroutine_fn test_io_begin(TestDriver *d, BlockOp op);
int test_io_end(TestDriver *d, BlockOp op, int ret);
bool test_driver_open(BlockNode *node, BlockOptions *opts, GError **errp);
void test_driver_close(TestDriver *d);
void test_driver_drain_begin(BlockNode *node);
void test_driver_drain_end(BlockNode *node);
int test_driver_check_perm(BlockNode *node, BlockPerm perm, BlockPerm shared, GError **errp);
void test_driver_set_perm(BlockNode *node, BlockPerm perm, BlockPerm shared);
void test_driver_abort_perm(BlockNode *node);

#endif /* BG_TESTS_BLOCK_TEST_DRIVER_H */
