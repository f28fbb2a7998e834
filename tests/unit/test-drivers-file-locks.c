/*
 * Tests of the byte locks of the driver file, against real QEMU tools and against itself.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/driver-test-util.h"

#define READER     BLOCK_PERM_CONSISTENT_READ
#define WRITER     (BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE)
#define NO_WRITERS (BLOCK_PERM_ALL & ~(BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE))

static BlockNode *coroutine_fn open_node(TestEnv *env, const char *name, const char *path,
                                         const char *options)
{
    return test_open(env, "{'driver':'file','node-name':'%s','filename':'%s'%s%s}", name, path,
                     *options ? "," : "", options);
}

static BlockBackend *insert(TestEnv *env, BlockNode *node, BlockPerm perm, BlockPerm shared, GError **errp)
{
    BlockBackend *blk = block_backend_new(env->graph, "user", perm, shared);
    block_backend_insert(blk, node, errp);
    return blk;
}

/* ---- Which bytes are locked, as seen by somebody else */

static bool byte_locked(const char *path, off_t byte)
{
    struct flock fl = {.l_whence = SEEK_SET, .l_start = byte, .l_len = 1, .l_type = F_WRLCK};
    int fd = open(path, O_RDWR | O_CLOEXEC);
    g_assert_cmpint(fd, >=, 0);
    g_assert_no_errno(fcntl(fd, F_OFD_GETLK, &fl));
    close(fd);
    return fl.l_type != F_UNLCK;
}

/* Bits of BlockPerm: bytes from 100 on, bytes from 200 on. */
static void check_bytes(const char *path, unsigned taken, unsigned denied)
{
    unsigned got_taken = 0, got_denied = 0;
    for (unsigned p = 0; p < 8; p++) {
        got_taken |= byte_locked(path, 100 + p) << p;
        got_denied |= byte_locked(path, 200 + p) << p;
    }
    g_assert_cmphex(got_taken, ==, taken);
    g_assert_cmphex(got_denied, ==, denied);
}

static void coroutine_fn test_bytes(TestEnv *env)
{
    g_autofree char *path = driver_test_file("bytes", 65536);
    g_autoptr(GError) err = NULL;
    BlockNode *node = open_node(env, "f", path, "");
    check_bytes(path, 0, 0);
    BlockBackend *blk = insert(env, node, WRITER, NO_WRITERS, &err);
    g_assert_no_error(err);
    check_bytes(path, 0x3, 0xa);
    /* A second user adds to it; what changes back is given up. */
    BlockBackend *reader = insert(env, node, READER, BLOCK_PERM_ALL, &err);
    g_assert_no_error(err);
    check_bytes(path, 0x3, 0xa);
    g_assert_cmpint(block_backend_set_perm(blk, READER | BLOCK_PERM_RESIZE, BLOCK_PERM_ALL, &err), ==, 0);
    check_bytes(path, 0x9, 0);
    block_backend_co_free(blk);
    check_bytes(path, 0x1, 0);
    block_backend_co_free(reader);
    check_bytes(path, 0, 0);
    test_delete(env, node);
}

static void coroutine_fn test_off(TestEnv *env)
{
    g_autofree char *path = driver_test_file("off", 65536);
    g_autoptr(GError) err = NULL;
    BlockNode *node = open_node(env, "f", path, "'locking':'off'");
    BlockBackend *blk = insert(env, node, WRITER, NO_WRITERS, &err);
    g_assert_no_error(err);
    check_bytes(path, 0, 0);
    driver_test_close(env, blk);
}

/* ---- Two nodes on one file: as two processes */

static void coroutine_fn test_two_nodes(TestEnv *env)
{
    g_autofree char *path = driver_test_file("two", 65536);
    g_autoptr(GError) err = NULL;
    BlockNode *one = open_node(env, "one", path, "'locking':'on'"), *two = open_node(env, "two", path, "");
    BlockBackend *a = insert(env, one, WRITER, NO_WRITERS, &err);
    g_assert_no_error(err);
    BlockBackend *b = insert(env, two, WRITER, BLOCK_PERM_ALL, &err);
    test_check_error(&err, EAGAIN, "node 'two'", path, "\"write\"", "qemu-nbd", NULL);
    block_backend_co_free(b);
    check_bytes(path, 0x3, 0xa); /* the failed attempt left nothing */

    b = insert(env, two, READER, NO_WRITERS, &err);
    test_check_error(&err, EAGAIN, "node 'two'", "holds the \"write\" lock", path, NULL);
    block_backend_co_free(b);
    check_bytes(path, 0x3, 0xa);

    b = insert(env, two, READER, BLOCK_PERM_ALL, &err);
    g_assert_no_error(err);
    /* Growing what one holds can fail, and then keeps what one had. */
    g_assert_cmpint(block_backend_set_perm(b, WRITER, BLOCK_PERM_ALL, &err), ==, -EAGAIN);
    g_clear_error(&err);
    check_bytes(path, 0x3, 0xa);
    block_backend_co_free(a);
    check_bytes(path, 0x1, 0);
    g_assert_cmpint(block_backend_set_perm(b, WRITER, BLOCK_PERM_ALL, &err), ==, 0);
    check_bytes(path, 0x3, 0);
    driver_test_close(env, b);
    test_delete(env, one);
}

/* ---- QEMU's tools while we hold the file */

static int qemu_io_write(const char *path, char **output)
{
    return driver_test_command(output, "qemu-io", "-f", "raw", "-c", "write 0 512", path, NULL);
}

static void coroutine_fn test_keeps_qemu_out(TestEnv *env)
{
    if (driver_test_lacks("qemu-io") || driver_test_lacks("qemu-img")) {
        return;
    }
    g_autofree char *path = driver_test_file("ours", 65536);
    g_autofree char *said = NULL, *more = NULL, *later = NULL;
    g_autoptr(GError) err = NULL;
    BlockNode *node = open_node(env, "f", path, "");
    BlockBackend *blk = insert(env, node, WRITER, NO_WRITERS, &err);
    g_assert_no_error(err);
    g_assert_cmpint(qemu_io_write(path, &said), !=, 0);
    g_assert_nonnull(strstr(said, "Failed to get \"write\" lock"));
    g_assert_cmpint(driver_test_command(&more, "qemu-img", "resize", "-f", "raw", path, "128k", NULL), !=, 0);
    g_assert_nonnull(strstr(more, "lock"));
    g_assert_cmpint(driver_test_length(path), ==, 65536);
    /* The tools' way to look all the same. */
    g_assert_cmpint(driver_test_command(NULL, "qemu-img", "info", "-U", "-f", "raw", path, NULL), ==, 0);
    block_backend_co_free(blk);
    g_assert_cmpint(qemu_io_write(path, &later), ==, 0);
    test_delete(env, node);
}

/* A reader that shares writing lets a writer in. */
static void coroutine_fn test_lets_qemu_in(TestEnv *env)
{
    if (driver_test_lacks("qemu-io")) {
        return;
    }
    g_autofree char *path = driver_test_file("shared", 65536);
    g_autoptr(GError) err = NULL;
    BlockNode *node = open_node(env, "f", path, "");
    BlockBackend *blk = insert(env, node, READER, BLOCK_PERM_ALL, &err);
    g_assert_no_error(err);
    g_assert_cmpint(qemu_io_write(path, NULL), ==, 0);
    driver_test_close(env, blk);
}

/* ---- The file in QEMU's hands */

/* Start a program that keeps the file open until it is killed. */
static GPid start_holder(const char *const *argv)
{
    g_autoptr(GError) err = NULL;
    GPid pid;
    g_spawn_async(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD, NULL, NULL,
                  &pid, &err);
    g_assert_no_error(err);
    return pid;
}

static void end_holder(GPid pid)
{
    g_assert_no_errno(kill(pid, SIGKILL));
    g_assert_cmpint(waitpid(pid, NULL, 0), ==, pid);
}

static void coroutine_fn check_held_by(TestEnv *env, const char *path, const char *const *argv)
{
    g_autoptr(GError) err = NULL;
    GPid pid = start_holder(argv);
    test_wait(byte_locked(path, 101)); /* it writes */
    BlockNode *node = open_node(env, "f", path, "");
    BlockBackend *blk = insert(env, node, WRITER, NO_WRITERS, &err);
    test_check_error(&err, EAGAIN, "node 'f'", path, "\"write\"", "is a VM or qemu-nbd using it?", NULL);
    block_backend_co_free(blk);
    end_holder(pid);
    blk = insert(env, node, WRITER, NO_WRITERS, &err);
    g_assert_no_error(err);
    driver_test_close(env, blk);
}

static void coroutine_fn test_held_by_qemu_nbd(TestEnv *env)
{
    if (driver_test_lacks("qemu-nbd")) {
        return;
    }
    g_autofree char *path = driver_test_file("nbd", 65536), *sock = driver_test_path("nbd.sock");
    const char *argv[] = {"qemu-nbd", "-t", "-k", sock, "-f", "raw", path, NULL};
    check_held_by(env, path, argv);
    unlink(sock);
}

static void coroutine_fn test_held_by_daemon(TestEnv *env)
{
    if (driver_test_lacks("qemu-storage-daemon")) {
        return;
    }
    g_autofree char *path = driver_test_file("qsd", 65536), *sock = driver_test_path("qsd.sock");
    g_autofree char *blockdev = g_strdup_printf("driver=file,node-name=f,filename=%s", path);
    g_autofree char *server = g_strdup_printf("addr.type=unix,addr.path=%s", sock);
    const char *argv[] = {"qemu-storage-daemon",
                          "--blockdev",
                          blockdev,
                          "--nbd-server",
                          server,
                          "--export",
                          "type=nbd,id=e,node-name=f,writable=on",
                          NULL};
    check_held_by(env, path, argv);
    unlink(sock);
}

static void register_tests(void)
{
    test_add_co("drivers/file/locks/bytes", test_bytes);
    test_add_co("drivers/file/locks/off", test_off);
    test_add_co("drivers/file/locks/two-nodes", test_two_nodes);
    test_add_co("drivers/file/locks/keeps-qemu-out", test_keeps_qemu_out);
    test_add_co("drivers/file/locks/lets-qemu-in", test_lets_qemu_in);
    test_add_co("drivers/file/locks/held-by-qemu-nbd", test_held_by_qemu_nbd);
    test_add_co("drivers/file/locks/held-by-daemon", test_held_by_daemon);
}

int main(int argc, char **argv)
{
    return driver_test_main(argc, argv, register_tests);
}
