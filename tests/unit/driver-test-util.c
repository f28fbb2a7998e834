/*
 * Files, processes and loop devices of the drivers' unit tests.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "tests/unit/driver-test-util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char *directory;

int driver_test_main(int argc, char **argv, void (*register_tests)(void))
{
    const char *given = g_getenv("BG_TEST_DIR");
    directory = g_strdup_printf("%s/blockgraph-unit-XXXXXX", given ? given : "/var/tmp");
    if (!mkdtemp(directory)) {
        g_error("cannot make %s: %s", directory, g_strerror(errno));
    }
    int ret = test_main(argc, argv, register_tests);
    int status = driver_test_command(NULL, "rm", "-rf", directory, NULL);
    g_free(directory);
    return ret ? ret : status;
}

/* ---- Files */

char *driver_test_path(const char *name)
{
    return g_build_filename(directory, name, NULL);
}

static int open_new(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) {
        g_error("cannot make %s: %s", path, g_strerror(errno));
    }
    return fd;
}

char *driver_test_file(const char *name, int64_t length)
{
    char *path = driver_test_path(name);
    int fd = open_new(path);
    g_assert_no_errno(ftruncate(fd, length));
    close(fd);
    return path;
}

char *driver_test_filled_file(const char *name, size_t length, uint32_t seed)
{
    char *path = driver_test_path(name);
    g_autofree uint8_t *data = g_malloc(length);
    test_fill(data, length, seed);
    int fd = open_new(path);
    g_assert_cmpint(pwrite(fd, data, length, 0), ==, length);
    close(fd);
    return path;
}

void driver_test_read(const char *path, int64_t offset, void *buf, size_t n)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(pread(fd, buf, n, offset), ==, n);
    close(fd);
}

int64_t driver_test_length(const char *path)
{
    struct stat st;
    g_assert_no_errno(stat(path, &st));
    return st.st_size;
}

int64_t driver_test_allocated(const char *path)
{
    struct stat st;
    g_assert_no_errno(stat(path, &st));
    return (int64_t)st.st_blocks * 512;
}

/* ---- Processes */

int driver_test_command(char **output, const char *program, ...)
{
    g_autoptr(GPtrArray) argv = g_ptr_array_new();
    va_list args;
    va_start(args, program);
    for (const char *word = program; word; word = va_arg(args, const char *)) {
        g_ptr_array_add(argv, (gpointer)word);
    }
    va_end(args);
    g_ptr_array_add(argv, NULL);

    g_autoptr(GError) err = NULL;
    g_autofree char *out = NULL, *more = NULL;
    int status;
    g_spawn_sync(NULL, (char **)argv->pdata, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, &out, &more, &status,
                 &err);
    g_assert_no_error(err);
    if (output) {
        *output = g_strconcat(out, more, NULL);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

bool driver_test_lacks(const char *program)
{
    g_autofree char *found = g_find_program_in_path(program);
    if (!found) {
        g_autofree char *why = g_strdup_printf("%s is not installed", program);
        g_test_skip(why);
    }
    return !found;
}

bool driver_test_lacks_root(void)
{
    if (geteuid() != 0) {
        g_test_skip("needs root");
        return true;
    }
    return false;
}

char *driver_test_loop_attach(const char *path, const char *option)
{
    char *output = NULL;
    int status = option ? driver_test_command(&output, "losetup", "--find", "--show", option, path, NULL)
                        : driver_test_command(&output, "losetup", "--find", "--show", path, NULL);
    g_strstrip(output);
    if (status != 0) {
        g_test_skip(output);
        g_free(output);
        return NULL;
    }
    return output;
}

void driver_test_loop_detach(const char *device)
{
    g_assert_cmpint(driver_test_command(NULL, "losetup", "--detach", device, NULL), ==, 0);
}

void coroutine_fn driver_test_close(TestEnv *env, BlockBackend *blk)
{
    BlockNode *node = block_backend_node(blk);
    block_backend_co_free(blk);
    test_delete(env, node);
}
