/*
 * Unit tests that run on io_uring and on epoll.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_TESTS_AIO_FIXTURE_H
#define BG_TESTS_AIO_FIXTURE_H

#include "config.h"

#include <glib.h>
#include <stdatomic.h>

#include "aio/aio.h"
#include "aio/iothread.h"
#include "aio/thread-pool.h"

/* ctx is new, and the context of the calling thread; all that the test put into it must be gone at its end.
 */
typedef void AioTest(AioContext *ctx);

/*
 * Add `test` as /io_uring/PATH, /epoll/PATH, and /io_uring-iothread/PATH with a ring set up as in an
 * iothread. io_uring is skipped where the kernel refuses it.
 */
void aio_test_add(const char *path, AioTest *test);
/* The first two only: for what needs a context of the main thread. */
void aio_test_add_main(const char *path, AioTest *test);

/* The backend of the running test: for the contexts and iothreads that it makes itself. */
AioBackend aio_test_backend(void);
IoThread *aio_test_iothread(const char *id);

/* `n` times the environment variable BG_TEST_SCALE. */
unsigned aio_test_scaled(unsigned n);

/* Run the loop until the condition holds. */
#define RUN_UNTIL(ctx, condition)                                                                            \
    do {                                                                                                     \
        while (!(condition)) {                                                                               \
            aio_context_run_once((ctx), true);                                                               \
        }                                                                                                    \
    } while (0)

/* Run what is ready, and nothing after that. */
void aio_test_run_ready(AioContext *ctx);

/* Run the present test in a child process, and expect it to abort with the message `pattern` (a glob). */
#define EXPECT_ABORT(statement, pattern)                                                                     \
    do {                                                                                                     \
        if (g_test_subprocess()) {                                                                           \
            statement;                                                                                       \
            _exit(0);                                                                                        \
        }                                                                                                    \
        g_test_trap_subprocess(NULL, 0, 0);                                                                  \
        g_test_trap_assert_failed();                                                                         \
        g_test_trap_assert_stderr(pattern);                                                                  \
    } while (0)

#endif /* BG_TESTS_AIO_FIXTURE_H */
