/*
 * Tests of the driver file: what it opens, what it refuses, and what it says then.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/unit/driver-test-util.h"

/* Opening `path` must fail so, with a message that names node, option, file and `word`. */
static void coroutine_fn check_refused(TestEnv *env, const char *path, const char *options, int errnum,
                                       const char *option, const char *word)
{
    g_autoptr(GError) err =
        test_open_error(env, errnum, "{'driver':'file','node-name':'f','filename':'%s'%s%s}", path,
                        *options ? "," : "", options);
    g_autofree char *key = g_strdup_printf("option '%s'", option);
    test_check_error(&err, errnum, "node 'f'", key, path, word, NULL);
    g_assert_cmpuint(block_graph_nodes(env->graph)->len, ==, 0);
}

static BlockNode *coroutine_fn open_file(TestEnv *env, const char *path, const char *options)
{
    return test_open(env, "{'driver':'file','node-name':'f','filename':'%s'%s%s}", path, *options ? "," : "",
                     options);
}

/* ---- drivers/file/types */

static void coroutine_fn test_types_path(TestEnv *env)
{
    g_autofree char *missing = driver_test_path("no-such-file");
    check_refused(env, missing, "", ENOENT, "filename", "No such file");
    g_autofree char *file = driver_test_file("plain", 0);
    g_autofree char *below = g_strconcat(file, "/disk", NULL);
    check_refused(env, below, "", ENOTDIR, "filename", "Not a directory");
    g_autofree char *name = g_strnfill(300, 'x');
    g_autofree char *too_long = driver_test_path(name);
    check_refused(env, too_long, "", ENAMETOOLONG, "filename", "too long");
    g_autofree char *loop = driver_test_path("symlink-loop");
    g_assert_no_errno(symlink(loop, loop));
    check_refused(env, loop, "", ELOOP, "filename", "Too many levels");
    unlink(loop);

    g_autoptr(GError) err = test_open_error(env, EINVAL, "{'driver':'file','node-name':'f','filename':''}");
    g_assert_nonnull(strstr(err->message, "filename"));
    g_clear_error(&err);
    err = test_open_error(env, EINVAL, "{'driver':'file','node-name':'f'}");
    test_check_error(&err, EINVAL, "node 'f'", "'filename'", NULL);
}

static void coroutine_fn test_types_directory(TestEnv *env)
{
    g_autofree char *path = driver_test_path("directory");
    g_assert_no_errno(mkdir(path, 0700));
    check_refused(env, path, "", EISDIR, "filename", "is a directory");
    check_refused(env, path, "'read-only':true", EISDIR, "filename", "is a directory");
    rmdir(path);
}

/* Nobody writes to or reads from the FIFO: opening it would wait for ever. */
static void coroutine_fn test_types_special(TestEnv *env)
{
    g_autofree char *fifo = driver_test_path("fifo");
    g_assert_no_errno(mkfifo(fifo, 0600));
    check_refused(env, fifo, "", EINVAL, "filename", "is a FIFO");
    check_refused(env, fifo, "'read-only':true", EINVAL, "filename", "is a FIFO");
    unlink(fifo);

    struct sockaddr_un address = {.sun_family = AF_UNIX};
    g_autofree char *path = driver_test_path("s");
    g_assert_cmpuint(g_strlcpy(address.sun_path, path, sizeof address.sun_path), <, sizeof address.sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_no_errno(bind(fd, (struct sockaddr *)&address, sizeof address));
    check_refused(env, path, "", EINVAL, "filename", "is a socket");
    close(fd);
    unlink(path);

    check_refused(env, "/dev/null", "", EINVAL, "filename", "is a character device");
}

static void coroutine_fn test_types_host_device(TestEnv *env)
{
    g_autofree char *path = driver_test_file("plain", 4096);
    g_autoptr(GError) err =
        test_open_error(env, EINVAL, "{'driver':'host_device','node-name':'f','filename':'%s'}", path);
    test_check_error(&err, EINVAL, "node 'f'", path, "is a regular file, not a block device", NULL);
}

static void coroutine_fn test_types_symlink(TestEnv *env)
{
    g_autofree char *path = driver_test_filled_file("target", 5000, 1), *link = driver_test_path("link");
    g_assert_no_errno(symlink("target", link));
    g_assert_cmpint(driver_test_length(path), ==, 5000);
    BlockNode *node = open_file(env, link, "");
    g_autofree char *name = block_node_filename(node);
    g_assert_cmpint(block_node_length(node), ==, 5000);
    g_assert_cmpstr(name, ==, link);
    test_delete(env, node);
    unlink(link);
}

/* ---- drivers/file/options */

static void coroutine_fn test_options_aio(TestEnv *env)
{
    g_autofree char *path = driver_test_file("aio", 4096);
    test_delete(env, open_file(env, path, "'aio':'threads'"));
    g_autoptr(GError) err = test_open_error(
        env, ENOTSUP, "{'driver':'file','node-name':'f','filename':'%s','aio':'native'}", path);
    test_check_error(&err, ENOTSUP, "node 'f'", "option 'aio'", "io_uring", "threads", NULL);
    if (env->loop == AIO_BACKEND_URING) {
        test_delete(env, open_file(env, path, "'aio':'io_uring'"));
    } else {
        err = test_open_error(env, ENOTSUP,
                              "{'driver':'file','node-name':'f','filename':'%s','aio':'io_uring'}", path);
        test_check_error(&err, ENOTSUP, "option 'aio'", "threads", NULL);
    }
    err = test_open_error(env, EINVAL, "{'driver':'file','node-name':'f','filename':'%s','aio':'iouring'}",
                          path);
    test_check_error(&err, EINVAL, "option 'aio'", "io_uring", NULL);
}

static void coroutine_fn test_options_unknown(TestEnv *env)
{
    g_autofree char *path = driver_test_file("unknown", 4096);
    g_autoptr(GError) err = test_open_error(
        env, EINVAL, "{'driver':'file','node-name':'f','filename':'%s','lockign':'off'}", path);
    test_check_error(&err, EINVAL, "node 'f'", "lockign", "locking", NULL);
    err = test_open_error(env, EINVAL, "{'driver':'file','node-name':'f','filename':'%s','locking':'maybe'}",
                          path);
    test_check_error(&err, EINVAL, "option 'locking'", NULL);
    err = test_open_error(env, ENOTSUP, "{'driver':'file','node-name':'f','filename':'%s','pr-manager':'x'}",
                          path);
    test_check_error(&err, ENOTSUP, "pr-manager", NULL);
}

/* Descriptors do not leak, neither with an error nor without. */
static unsigned count_descriptors(void)
{
    unsigned n = 0;
    g_autoptr(GDir) dir = g_dir_open("/proc/self/fd", 0, NULL);
    g_assert_nonnull(dir);
    while (g_dir_read_name(dir)) {
        n++;
    }
    return n;
}

static void coroutine_fn test_options_descriptors(TestEnv *env)
{
    g_autofree char *path = driver_test_file("fds", 4096), *directory = driver_test_path("fds.d");
    g_assert_no_errno(mkdir(directory, 0700));
    test_delete(env, open_file(env, path, "")); /* the thread pool has its own by now */
    unsigned before = count_descriptors();
    for (int i = 0; i < 10; i++) {
        test_delete(env, open_file(env, path, "'cache':{'direct':true}"));
        check_refused(env, directory, "", EISDIR, "filename", "");
        g_autoptr(GError) err =
            test_open_error(env, EINVAL, "{'driver':'file','node-name':'f','filename':'%s','no':1}", path);
        g_assert_nonnull(err);
    }
    g_assert_cmpuint(count_descriptors(), ==, before);
    rmdir(directory);
}

/* ---- drivers/file/read-only */

static bool set_immutable(const char *path, bool immutable)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC), flags = 0;
    bool ok = ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0;
    flags = immutable ? flags | FS_IMMUTABLE_FL : flags & ~FS_IMMUTABLE_FL;
    ok = ok && ioctl(fd, FS_IOC_SETFLAGS, &flags) == 0;
    close(fd);
    return ok;
}

static void coroutine_fn test_read_only(TestEnv *env)
{
    g_autofree char *path = driver_test_filled_file("immutable", 4096, 2);
    if (!set_immutable(path, true)) {
        g_test_skip("needs root and a file system with immutable files");
        return;
    }
    check_refused(env, path, "", EPERM, "filename", "read-only=on");
    BlockNode *node = open_file(env, path, "'read-only':true");
    g_assert_true(node->read_only);
    test_delete(env, node);
    node = open_file(env, path, "'auto-read-only':true");
    g_assert_true(node->read_only);
    test_delete(env, node);
    g_assert_true(set_immutable(path, false));
    node = open_file(env, path, "'auto-read-only':true");
    g_assert_false(node->read_only);
    test_delete(env, node);
}

/* Root may read everything, so the test becomes somebody else meanwhile. */
static void coroutine_fn test_unreadable(TestEnv *env)
{
    g_autofree char *path = driver_test_file("unreadable", 4096), *directory = driver_test_path(".");
    g_assert_no_errno(chmod(path, 0));
    g_assert_no_errno(chmod(directory, 0711));
    uid_t uid = geteuid();
    if (uid == 0) {
        g_assert_no_errno(seteuid(65534));
    }
    check_refused(env, path, "", EACCES, "filename", "Permission denied");
    check_refused(env, path, "'read-only':true", EACCES, "filename", "Permission denied");
    g_assert_no_errno(seteuid(uid));
    unlink(path);
}

/* ---- drivers/file/length */

/* A tmpfs of the test's own; NULL and the test skipped where it may not be mounted. */
static char *mount_tmpfs(const char *name, const char *options)
{
    g_autofree char *path = driver_test_path(name);
    g_assert_no_errno(mkdir(path, 0700));
    if (mount("tmpfs", path, "tmpfs", 0, options) < 0) {
        g_test_skip("cannot mount a tmpfs");
        rmdir(path);
        return NULL;
    }
    return g_steal_pointer(&path);
}

static void umount_tmpfs(const char *path)
{
    g_assert_no_errno(umount(path));
    rmdir(path);
}

static void coroutine_fn check_longest(TestEnv *env, const char *path)
{
    BlockBackend *blk = test_backend(env, "b", open_file(env, path, ""));
    uint8_t data[100], got[100];
    int64_t pnum;
    g_autoptr(GError) err = NULL;
    test_fill(data, sizeof data, 3);
    g_assert_cmpint(block_backend_length(blk), ==, BLOCK_MAX_LENGTH);
    g_assert_cmpint(block_backend_co_pwrite(blk, BLOCK_MAX_LENGTH - 100, 100, data, 0), ==, 0);
    g_assert_cmpint(block_backend_co_pread(blk, BLOCK_MAX_LENGTH - 100, 100, got), ==, 0);
    test_assert_mem("end", got, data, sizeof got);
    g_assert_cmpint(block_backend_co_pwrite(blk, BLOCK_MAX_LENGTH - 50, 100, data, 0), ==, -EINVAL);
    int status = block_backend_co_block_status(blk, 0, BLOCK_MAX_LENGTH, &pnum);
    g_assert_cmpint(status, ==, BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED);
    g_assert_cmpint(pnum, >, BLOCK_MAX_LENGTH - 2 * 1024 * 1024);
    g_assert_cmpint(block_backend_co_truncate(blk, 100, &err), ==, 0);
    g_assert_cmpint(driver_test_length(path), ==, 100);
    driver_test_close(env, blk);
}

static void coroutine_fn test_length_longest(TestEnv *env)
{
    g_autofree char *dir = mount_tmpfs("huge", "size=4m");
    if (!dir) {
        return;
    }
    g_autofree char *path = driver_test_file("huge/image", INT64_MAX);
    check_refused(env, path, "", EFBIG, "filename", "9223372036854775807");
    g_assert_no_errno(truncate(path, BLOCK_MAX_LENGTH + 1));
    check_refused(env, path, "", EFBIG, "filename", "longest");
    g_assert_no_errno(truncate(path, BLOCK_MAX_LENGTH));
    check_longest(env, path);
    umount_tmpfs(dir);
}

static void coroutine_fn test_length_empty(TestEnv *env)
{
    static const char *const options[] = {"", "'cache':{'direct':true}", "'aio':'threads'"};
    for (unsigned i = 0; i < G_N_ELEMENTS(options); i++) {
        g_autofree char *path = driver_test_file("empty", 0);
        BlockBackend *blk = test_backend(env, "b", open_file(env, path, options[i]));
        uint8_t byte = 9;
        int64_t pnum;
        g_assert_cmpint(block_backend_length(blk), ==, 0);
        g_assert_cmpint(block_backend_co_pread(blk, 0, 1, &byte), ==, 0);
        g_assert_cmpint(byte, ==, 0);
        g_assert_cmpint(block_backend_co_block_status(blk, 0, 10, &pnum), ==, BLOCK_STATUS_ZERO);
        byte = 0x5c;
        g_assert_cmpint(block_backend_co_pwrite(blk, 700, 1, &byte, 0), ==, 0);
        g_assert_cmpint(block_backend_length(blk), ==, 701);
        g_assert_cmpint(driver_test_length(path), ==, 701);
        driver_test_close(env, blk);
    }
}

/* ---- drivers/file/durable */

static void coroutine_fn test_durable(TestEnv *env)
{
    g_autofree char *path = driver_test_file("durable", 4096);
    BlockNode *node = open_file(env, path, "'cache':{'no-flush':true}");
    g_assert_cmpint(block_node_durable(node), ==, 0);
    test_delete(env, node);

    g_autofree char *dir = mount_tmpfs("memory", "size=1m");
    if (!dir) {
        return;
    }
    g_autofree char *in_memory = driver_test_file("memory/image", 4096);
    node = open_file(env, in_memory, "");
    g_assert_cmpint(block_node_durable(node), ==, 0);
    test_delete(env, node);
    umount_tmpfs(dir);
}

static void register_tests(void)
{
    test_add_co("drivers/file/types/path", test_types_path);
    test_add_co("drivers/file/types/directory", test_types_directory);
    test_add_co("drivers/file/types/special", test_types_special);
    test_add_co("drivers/file/types/host-device", test_types_host_device);
    test_add_co("drivers/file/types/symlink", test_types_symlink);
    test_add_co("drivers/file/options/aio", test_options_aio);
    test_add_co("drivers/file/options/unknown", test_options_unknown);
    test_add_co("drivers/file/options/descriptors", test_options_descriptors);
    test_add_co("drivers/file/read-only", test_read_only);
    test_add_co("drivers/file/unreadable", test_unreadable);
    test_add_co("drivers/file/length/longest", test_length_longest);
    test_add_co("drivers/file/length/empty", test_length_empty);
    test_add_co("drivers/file/durable", test_durable);
}

int main(int argc, char **argv)
{
    return driver_test_main(argc, argv, register_tests);
}
