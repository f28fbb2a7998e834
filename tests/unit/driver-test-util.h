/*
 * What the drivers' unit tests share: files in a directory of the test program, other processes, loop
 * devices.
 *
 * The directory is made in BG_TEST_DIR, else in /var/tmp, and removed at the end of the program.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_TESTS_DRIVER_TEST_UTIL_H
#define BG_TESTS_DRIVER_TEST_UTIL_H

#include "tests/unit/block-test-util.h"

/* As test_main, with the directory around it. */
int driver_test_main(int argc, char **argv, void (*register_tests)(void));

/* Path of `name` in the directory; nothing is made there. g_free. */
char *driver_test_path(const char *name);
/* A new sparse file of that length; g_free the path. */
char *driver_test_file(const char *name, int64_t length);
/* The same, full of test_fill's bytes. */
char *driver_test_filled_file(const char *name, size_t length, uint32_t seed);

/* The content as another process sees it; aborts where it is shorter. */
void driver_test_read(const char *path, int64_t offset, void *buf, size_t n);
int64_t driver_test_length(const char *path);
/* Bytes that the file takes on its file system. */
int64_t driver_test_allocated(const char *path);

/*
 * Run a command to its end, which is not waited for in a coroutine. The exit status; its stdout and stderr in
 * *output where that is not NULL (g_free). Aborts where it cannot be started.
 */
int driver_test_command(char **output, const char *program, ...) G_GNUC_NULL_TERMINATED;
/* Skip the test, and true, where the program is not installed. */
bool driver_test_lacks(const char *program);
/* Skip the test, and true, where the process may not do what root may. */
bool driver_test_lacks_root(void);

/* Attach a loop device with the options of losetup(8) (NULL: none); its path, g_free; NULL where the kernel
 * has none. */
char *driver_test_loop_attach(const char *path, const char *option);
void driver_test_loop_detach(const char *device);

/* Free the backend and delete its node. */
void coroutine_fn driver_test_close(TestEnv *env, BlockBackend *blk);

#endif /* BG_TESTS_DRIVER_TEST_UTIL_H */
