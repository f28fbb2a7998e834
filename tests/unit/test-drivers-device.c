/*
 * Tests of block devices under the drivers file and host_device, on loop devices: they need root.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/driver-test-util.h"

#define KIB INT64_C(1024)
#define MIB (1024 * KIB)

static const char *const modes[] = {
    "'cache':{'direct':false}",
    "'cache':{'direct':true}",
    "'cache':{'direct':true},'aio':'threads'",
};

static BlockBackend *coroutine_fn device_open(TestEnv *env, const char *driver, const char *path,
                                              const char *options)
{
    return test_backend(env, "b",
                        test_open(env, "{'driver':'%s','node-name':'d','filename':'%s'%s%s}", driver, path,
                                  *options ? "," : "", options));
}

/* ---- drivers/device/io */

static void coroutine_fn check_io(TestEnv *env, BlockBackend *blk)
{
    g_autofree uint8_t *want = g_malloc(MIB), *got = g_malloc(MIB);
    test_fill(want, MIB, 1);
    g_assert_cmpint(block_backend_co_pwrite(blk, 0, MIB, want, 0), ==, 0);
    memset(want + 10 * KIB, 0, 100 * KIB);
    g_assert_cmpint(block_backend_co_pwrite_zeroes(blk, 10 * KIB, 100 * KIB, 0), ==, 0);
    memset(want + 200001, 0, 50000);
    g_assert_cmpint(block_backend_co_pwrite_zeroes(blk, 200001, 50000, BLOCK_REQ_MAY_UNMAP), ==, 0);
    test_fill(want + 300001, 7777, 2);
    g_assert_cmpint(block_backend_co_pwrite(blk, 300001, 7777, want + 300001, BLOCK_REQ_FUA), ==, 0);
    g_assert_cmpint(block_backend_co_pdiscard(blk, MIB, MIB), ==, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    g_assert_cmpint(block_backend_co_pread(blk, 0, MIB, got), ==, 0);
    test_assert_mem("device", got, want, MIB);
    g_assert_cmpint(block_backend_co_pread(blk, 299999, 10000, got), ==, 0);
    test_assert_mem("odd read", got, want + 299999, 10000);
}

static void coroutine_fn check_fixed(TestEnv *env, BlockBackend *blk)
{
    g_autoptr(GError) err = NULL;
    int64_t pnum;
    uint8_t byte = 1;
    BlockNode *node = block_backend_node(blk);
    g_assert_cmpint(block_backend_length(blk), ==, 4 * MIB);
    g_assert_cmpint(block_backend_co_get_allocated(blk), ==, 4 * MIB);
    g_assert_cmpint(block_node_durable(node), ==, -1); /* a loop device: who knows */
    g_assert_cmpint(block_backend_co_pwrite(blk, 4 * MIB, 1, &byte, 0), ==, -ENOSPC);
    g_assert_cmpint(block_backend_co_truncate(blk, 4 * MIB, &err), ==, 0);
    g_assert_cmpint(block_backend_co_truncate(blk, 5 * MIB, &err), ==, -ENOTSUP);
    test_check_error(&err, ENOTSUP, "node 'd'", "block device", NULL);
    g_assert_cmpint(block_backend_co_pwrite_zeroes(blk, 0, 4096, BLOCK_REQ_ALLOCATE), ==, -ENOTSUP);
    g_assert_cmpint(block_backend_co_block_status(blk, 0, 4 * MIB, &pnum), ==,
                    BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED);
    g_assert_cmpint(pnum, ==, 4 * MIB);
}

static void coroutine_fn test_io(TestEnv *env)
{
    g_autofree char *image = driver_test_file("io", 4 * MIB);
    g_autofree char *device = driver_test_loop_attach(image, NULL);
    static const char *const drivers[] = {"file", "host_device"};
    if (!device) {
        return;
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(modes); i++) {
        for (unsigned d = 0; d < G_N_ELEMENTS(drivers); d++) {
            BlockBackend *blk = device_open(env, drivers[d], device, modes[i]);
            check_io(env, blk);
            check_fixed(env, blk);
            driver_test_close(env, blk);
        }
    }
    driver_test_loop_detach(device);
}

/* Sectors of 4 KiB: smaller requests are read, changed and written back. */
static void coroutine_fn test_large_sectors(TestEnv *env)
{
    g_autofree char *image = driver_test_file("sectors", 4 * MIB);
    g_autofree char *device = driver_test_loop_attach(image, "--sector-size=4096");
    if (!device) {
        return;
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(modes); i++) {
        BlockBackend *blk = device_open(env, "host_device", device, modes[i]);
        g_assert_cmpuint(block_backend_node(blk)->limits.request_alignment, ==, i ? 4096 : 1);
        check_io(env, blk);
        driver_test_close(env, blk);
    }
    driver_test_loop_detach(device);
}

static void coroutine_fn test_read_only(TestEnv *env)
{
    g_autofree char *image = driver_test_filled_file("ro", MIB, 3);
    g_autofree char *device = driver_test_loop_attach(image, "--read-only");
    if (!device) {
        return;
    }
    g_autoptr(GError) err =
        test_open_error(env, 0, "{'driver':'host_device','node-name':'d','filename':'%s'}", device);
    g_assert_nonnull(strstr(err->message, "for writing"));
    BlockNode *node = test_open(
        env, "{'driver':'host_device','node-name':'d','filename':'%s','auto-read-only':true}", device);
    g_assert_true(node->read_only);
    test_delete(env, node);
    driver_test_loop_detach(device);
}

/* ---- drivers/device/flush: what reaches the device */

/* Flushes that the device has done. */
static uint64_t flushes(const char *device)
{
    g_autofree char *name = g_path_get_basename(device);
    g_autofree char *path = g_strdup_printf("/sys/block/%s/stat", name);
    g_autofree char *text = NULL;
    uint64_t n = 0;
    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    int found = sscanf(text, "%*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %" SCNu64, &n);
    g_assert_cmpint(found, ==, 1);
    return n;
}

static void coroutine_fn test_flush(TestEnv *env)
{
    g_autofree char *image = driver_test_file("flush", 4 * MIB);
    g_autofree char *device = driver_test_loop_attach(image, NULL);
    uint8_t data[4096] = {1};
    if (!device) {
        return;
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(modes); i++) {
        BlockBackend *blk = device_open(env, "host_device", device, modes[i]);
        uint64_t before = flushes(device);
        g_assert_cmpint(block_backend_co_pwrite(blk, 0, sizeof data, data, 0), ==, 0);
        g_assert_cmpuint(flushes(device), ==, before);
        g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
        g_assert_cmpuint(flushes(device), >=, before + 1);
        g_assert_cmpint(block_backend_co_pwrite(blk, 8192, sizeof data, data, BLOCK_REQ_FUA), ==, 0);
        g_assert_cmpuint(flushes(device), >=, before + 2);
        driver_test_close(env, blk);
    }
    BlockBackend *blk = device_open(env, "host_device", device, "'cache':{'no-flush':true}");
    uint64_t before = flushes(device);
    g_assert_cmpint(block_backend_co_pwrite(blk, 0, sizeof data, data, BLOCK_REQ_FUA), ==, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    g_assert_cmpuint(flushes(device), ==, before);
    driver_test_close(env, blk);
    driver_test_loop_detach(device);
}

/* ---- drivers/device/errors */

static bool log_has(TestEnv *env, const char *word)
{
    g_autofree char *text = block_graph_errors_text(env->graph);
    return strstr(text, word) != NULL;
}

/* The device's file is cut: reads of what is gone fail. */
static void coroutine_fn test_read_error(TestEnv *env)
{
    g_autofree char *image = driver_test_filled_file("cut", 4 * MIB, 5);
    g_autofree char *device = driver_test_loop_attach(image, NULL);
    g_autofree uint8_t *buf = g_malloc(MIB);
    if (!device) {
        return;
    }
    g_assert_no_errno(truncate(image, MIB));
    for (unsigned i = 0; i < G_N_ELEMENTS(modes); i++) {
        BlockBackend *blk = device_open(env, "host_device", device, modes[i]);
        g_assert_cmpint(block_backend_co_pread(blk, 0, 4096, buf), ==, 0);
        g_assert_cmpint(block_backend_co_pread(blk, 2 * MIB, 4096, buf), ==, -EIO);
        g_assert_true(log_has(env, "EIO"));
        g_assert_false(log_has(env, "shrank"));
        driver_test_close(env, blk);
    }
    driver_test_loop_detach(device);
}

/* A device on a file on a full tmpfs, to which freeing the `filler` gives room. */
typedef struct FullDevice {
    char *directory, *filler, *image, *device;
} FullDevice;

static bool full_device_new(FullDevice *f)
{
    *f = (FullDevice){.directory = driver_test_path("full")};
    g_assert_no_errno(mkdir(f->directory, 0700));
    if (mount("tmpfs", f->directory, "tmpfs", 0, "size=6m") < 0) {
        g_test_skip("cannot mount a tmpfs");
        rmdir(f->directory);
        g_free(f->directory);
        return false;
    }
    f->filler = driver_test_filled_file("full/filler", 5 * MIB, 6);
    f->image = driver_test_file("full/image", 4 * MIB);
    f->device = driver_test_loop_attach(f->image, NULL);
    return true;
}

static void full_device_free(FullDevice *f)
{
    if (f->device) {
        driver_test_loop_detach(f->device);
    }
    g_assert_no_errno(umount2(f->directory, MNT_DETACH)); /* the device lets go of the file a little later */
    rmdir(f->directory);
    g_free(f->directory);
    g_free(f->filler);
    g_free(f->image);
    g_free(f->device);
}

/*
 * A flush fails, so the kernel may have thrown away the pages: no later flush may claim success, though the
 * device works again. A node opened anew can be believed.
 */
static void coroutine_fn check_failed_flush(TestEnv *env, FullDevice *f, BlockRequestFlags flags)
{
    g_autofree uint8_t *data = g_malloc(3 * MIB);
    test_fill(data, 3 * MIB, 7);
    BlockBackend *blk = device_open(env, "host_device", f->device, "");
    int ret = block_backend_co_pwrite(blk, 0, 3 * MIB, data, flags);
    g_assert_cmpint(ret, ==, flags ? -EIO : 0);
    if (!flags) {
        g_assert_cmpint(block_backend_co_flush(blk), ==, -EIO);
    }
    g_assert_true(log_has(env, "until the node is opened again"));

    g_assert_no_errno(unlink(f->filler));
    g_assert_cmpint(block_backend_co_pwrite(blk, 0, 3 * MIB, data, 0), ==, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, -EIO);
    g_assert_cmpint(block_backend_co_flush(blk), ==, -EIO);
    driver_test_close(env, blk);

    blk = device_open(env, "host_device", f->device, "");
    g_assert_cmpint(block_backend_co_pwrite(blk, 0, 3 * MIB, data, flags), ==, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    driver_test_close(env, blk);
}

static void coroutine_fn test_failed_flush(TestEnv *env)
{
    static const BlockRequestFlags flags[] = {0, BLOCK_REQ_FUA};
    for (unsigned i = 0; i < G_N_ELEMENTS(flags); i++) {
        FullDevice f;
        if (!full_device_new(&f)) {
            return;
        }
        if (f.device) {
            check_failed_flush(env, &f, flags[i]);
        }
        full_device_free(&f);
    }
}

/* Past the page cache the write itself fails, and flushes can be believed still. */
static void coroutine_fn test_direct_error(TestEnv *env)
{
    FullDevice f;
    if (!full_device_new(&f)) {
        return;
    }
    if (f.device) {
        g_autofree uint8_t *data = g_malloc(3 * MIB);
        test_fill(data, 3 * MIB, 8);
        BlockBackend *blk = device_open(env, "host_device", f.device, "'cache':{'direct':true}");
        int ret = block_backend_co_pwrite(blk, 0, 3 * MIB, data, 0);
        g_assert_true(ret == -EIO || ret == -ENOSPC);
        g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
        g_assert_no_errno(unlink(f.filler));
        g_assert_cmpint(block_backend_co_pwrite(blk, 0, 3 * MIB, data, BLOCK_REQ_FUA), ==, 0);
        driver_test_close(env, blk);
    }
    full_device_free(&f);
}

static void register_tests(void)
{
    test_add_co("drivers/device/io", test_io);
    test_add_co("drivers/device/large-sectors", test_large_sectors);
    test_add_co("drivers/device/read-only", test_read_only);
    test_add_co("drivers/device/flush", test_flush);
    test_add_co("drivers/device/errors/read", test_read_error);
    test_add_co("drivers/device/errors/failed-flush", test_failed_flush);
    test_add_co("drivers/device/errors/direct", test_direct_error);
}

int main(int argc, char **argv)
{
    return driver_test_main(argc, argv, register_tests);
}
