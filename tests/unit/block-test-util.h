/*
 * What the block layer's unit tests share: an environment per test (main AioContext, graph, iothreads),
 * looped over the event loops, tasks in coroutines, and short cuts that abort on failure.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_TESTS_BLOCK_TEST_UTIL_H
#define BG_TESTS_BLOCK_TEST_UTIL_H

#include <stdatomic.h>

#include "aio/aio.h"
#include "aio/iothread.h"
#include "block/drain.h"
#include "block/graph.h"
#include "block/io.h"
#include "tests/unit/block-test-driver.h"

#define TEST_IOTHREADS 4

typedef struct TestEnv {
    AioBackend loop;
    AioContext *ctx; /* the main thread's */
    BlockGraph *graph;
    IoThread *iothread[TEST_IOTHREADS]; /* started on first use */
} TestEnv;

/* Main AioContext (made the current one) and an empty graph. False and *errp where the loop is refused. */
bool test_env_open(TestEnv *env, AioBackend loop, GError **errp);
/* Checks that nothing is in flight or drained, closes the graph, ends the iothreads. */
void test_env_close(TestEnv *env);

typedef void TestFunc(TestEnv *env);

/* Register /NAME/io_uring and /NAME/epoll. `fn` runs at the top level of the main thread, or in a coroutine.
 */
void test_add(const char *name, TestFunc *fn);
void test_add_co(const char *name, TestFunc *fn);
/* The whole of a test program's main(). */
int test_main(int argc, char **argv, void (*register_tests)(void));

/* Run fn(env, opaque) in a coroutine of the main context, and the loop until it returns. Not in a coroutine.
 */
void test_run(TestEnv *env, void coroutine_fn (*fn)(TestEnv *env, void *opaque), void *opaque);
/* Context of iothread i. Main thread. */
AioContext *test_iothread(TestEnv *env, unsigned i);

/* ---- Tasks: coroutines that return an int. */

typedef int TestTaskFunc(void *opaque);
typedef struct TestTask TestTask;
/* Start fn(opaque) in ctx: at once where ctx is the current one. */
TestTask *test_spawn(AioContext *ctx, TestTaskFunc *fn, void *opaque);
bool test_task_done(TestTask *task);
/* Wait for it, free it, return what it returned. */
int coroutine_fn test_join(TestTask *task);

/* Sleep in the main coroutine until `cond` holds; a minute without it fails the test. */
#define test_wait(cond)                                                                                      \
    do {                                                                                                     \
        int64_t deadline_ = aio_clock_ns() + 60 * INT64_C(1000000000);                                       \
        while (!(cond)) {                                                                                    \
            if (aio_clock_ns() > deadline_) {                                                                \
                g_error("%s:%d: waited in vain for %s", __FILE__, __LINE__, #cond);                          \
            }                                                                                                \
            aio_co_sleep_ns(100 * 1000);                                                                     \
        }                                                                                                    \
    } while (0)

/* Let other threads and bottom halves run for a while: before checking that something did not happen. */
void coroutine_fn test_settle(void);

/* ---- One request as a task. */

typedef struct TestRequest {
    BlockBackend *blk;
    BlockOp op; /* read, write, flush, discard, write-zeroes, truncate */
    int64_t offset, bytes;
    BlockRequestFlags flags;
    uint8_t *buf; /* owned; filled with `pattern` for a write */
    TestTask *task;
} TestRequest;

TestRequest *test_request_start(AioContext *ctx, BlockBackend *blk, BlockOp op, int64_t offset, int64_t bytes,
                                int pattern);
bool test_request_done(TestRequest *req);
int coroutine_fn test_request_finish(TestRequest *req);

/* ---- Graph. Options are JSON with ' for ". */

BlockNode *coroutine_fn test_open(TestEnv *env, const char *fmt, ...) G_GNUC_PRINTF(2, 3);
/* The error of an open that must fail; its errno must be `errnum` where that is not 0. */
GError *coroutine_fn test_open_error(TestEnv *env, int errnum, const char *fmt, ...) G_GNUC_PRINTF(3, 4);
/* A backend that reads, writes and resizes and shares all. */
BlockBackend *test_backend(TestEnv *env, const char *name, BlockNode *node);
/* Delete a node that nobody uses. */
void coroutine_fn test_delete(TestEnv *env, BlockNode *node);
/* Attach with the default DATA role; aborts on failure. */
BlockChild *test_attach(BlockNode *parent, BlockNode *child, const char *name);

/* Check errno and that the message holds each of the words (NULL-terminated list); frees *err. */
void test_check_error(GError **err, int errnum, const char *words, ...) G_GNUC_NULL_TERMINATED;

/* ---- Data. */

/* Write `n` times the byte; the range must be full of it. Abort on failure. */
void coroutine_fn test_write_bytes(BlockBackend *blk, int64_t offset, size_t n, int byte);
void coroutine_fn test_check_bytes(BlockBackend *blk, int64_t offset, size_t n, int byte);

/* Fill with bytes that differ by seed and position. */
void test_fill(uint8_t *buf, size_t n, uint32_t seed);
void test_assert_mem(const char *what, const uint8_t *got, const uint8_t *want, size_t n);

#endif /* BG_TESTS_BLOCK_TEST_UTIL_H */
