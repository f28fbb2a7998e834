/*
 * Tests of the driver raw: pass-through and windows.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/driver-test-util.h"

#define KIB INT64_C(1024)
#define MIB (1024 * KIB)

/* A raw node "r" with further options, over a file node in place; and a backend on it. */
static BlockBackend *coroutine_fn raw_open(TestEnv *env, const char *path, const char *options)
{
    BlockNode *node =
        test_open(env, "{'driver':'raw','node-name':'r',%s%s'file':{'driver':'file','filename':'%s'}}",
                  options, *options ? "," : "", path);
    return test_backend(env, "raw", node);
}

static void coroutine_fn test_raw_whole(TestEnv *env)
{
    g_autofree char *path = driver_test_filled_file("whole", MIB, 1);
    BlockBackend *blk = raw_open(env, path, "");
    uint8_t want[4096], got[4096];
    g_assert_cmpint(block_backend_length(blk), ==, MIB);
    g_assert_cmpint(block_backend_co_get_allocated(blk), ==, driver_test_allocated(path));
    g_autofree char *name = block_node_filename(block_backend_node(blk));
    g_assert_cmpstr(name, ==, path);

    driver_test_read(path, 12345, want, sizeof want);
    g_assert_cmpint(block_backend_co_pread(blk, 12345, sizeof got, got), ==, 0);
    test_assert_mem("read", got, want, sizeof want);
    test_fill(want, sizeof want, 2);
    g_assert_cmpint(block_backend_co_pwrite(blk, 777, sizeof want, want, BLOCK_REQ_FUA), ==, 0);
    driver_test_read(path, 777, got, sizeof got);
    test_assert_mem("written", got, want, sizeof want);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    driver_test_close(env, blk);
}

/* Without a size the node grows with its file, by writing and by truncating. */
static void coroutine_fn test_raw_grow(TestEnv *env)
{
    g_autofree char *path = driver_test_file("grow", 64 * KIB);
    BlockBackend *blk = raw_open(env, path, "'offset':4096");
    BlockNode *below = block_backend_node(blk)->file->node;
    g_autoptr(GError) err = NULL;
    uint8_t data[1000];
    memset(data, 0x42, sizeof data);
    g_assert_cmpint(block_backend_length(blk), ==, 60 * KIB);
    g_assert_cmpint(block_backend_co_pwrite(blk, 60 * KIB + 5, sizeof data, data, 0), ==, 0);
    g_assert_cmpint(block_backend_length(blk), ==, 60 * KIB + 1005);
    g_assert_cmpint(block_node_length(below), ==, 64 * KIB + 1005);
    g_assert_cmpint(driver_test_length(path), ==, 64 * KIB + 1005);
    g_assert_cmpint(block_backend_co_truncate(blk, 100 * KIB, &err), ==, 0);
    g_assert_cmpint(block_backend_length(blk), ==, 100 * KIB);
    g_assert_cmpint(driver_test_length(path), ==, 104 * KIB);
    g_assert_cmpint(block_backend_co_truncate(blk, 10, &err), ==, 0);
    g_assert_cmpint(driver_test_length(path), ==, 4106);
    g_assert_cmpint(block_backend_co_truncate(blk, BLOCK_MAX_LENGTH, &err), ==, -EFBIG);
    test_check_error(&err, EFBIG, "node 'r'", NULL);
    driver_test_close(env, blk);
}

/* A window is where it says, whatever its alignment, and nothing beside it changes. */
static void coroutine_fn check_window(TestEnv *env, const char *cache, int64_t offset, int64_t size)
{
    g_autofree char *path = driver_test_filled_file("window", MIB, 3);
    g_autofree char *options = g_strdup_printf("%s'offset':%" PRId64 ",'size':%" PRId64, cache, offset, size);
    g_autofree uint8_t *want = g_malloc(MIB), *got = g_malloc(MIB);
    driver_test_read(path, 0, want, MIB);
    BlockBackend *blk = raw_open(env, path, options);
    g_assert_cmpint(block_backend_length(blk), ==, size);
    g_assert_cmpint(block_backend_co_pread(blk, 0, size, got), ==, 0);
    test_assert_mem("window", got, want + offset, size);

    test_fill(want + offset, size, 4);
    g_assert_cmpint(block_backend_co_pwrite(blk, 0, size, want + offset, 0), ==, 0);
    g_assert_cmpint(block_backend_co_pwrite(blk, size - 1, 2, got, 0), ==, -ENOSPC);
    memset(want + offset + size / 2, 0, size / 4);
    g_assert_cmpint(block_backend_co_pwrite_zeroes(blk, size / 2, size / 4, BLOCK_REQ_MAY_UNMAP), ==, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    driver_test_read(path, 0, got, MIB);
    test_assert_mem("file", got, want, MIB);
    driver_test_close(env, blk);
}

static void coroutine_fn test_raw_window(TestEnv *env)
{
    static const char *const caches[] = {"", "'cache':{'direct':true},"};
    for (unsigned i = 0; i < G_N_ELEMENTS(caches); i++) {
        check_window(env, caches[i], 64 * KIB, 128 * KIB);
        check_window(env, caches[i], 1000, 99999);
        check_window(env, caches[i], MIB - 1, 1);
    }
}

static void coroutine_fn test_raw_empty_window(TestEnv *env)
{
    g_autofree char *path = driver_test_filled_file("empty", 8192, 5);
    static const char *const options[] = {"'offset':8192", "'offset':4096,'size':0"};
    for (unsigned i = 0; i < G_N_ELEMENTS(options); i++) {
        BlockBackend *blk = raw_open(env, path, options[i]);
        uint8_t byte = 7;
        g_assert_cmpint(block_backend_length(blk), ==, 0);
        g_assert_cmpint(block_backend_co_pread(blk, 0, 1, &byte), ==, 0);
        g_assert_cmpint(byte, ==, 0);
        driver_test_close(env, blk);
    }
}

static void coroutine_fn test_raw_bad_window(TestEnv *env)
{
    g_autofree char *path = driver_test_file("bad", 65536);
    static const struct {
        const char *options;
        const char *words[3];
    } bad[] = {
        {"'offset':65537", {"'offset'", "65537", "65536"}},
        {"'offset':'1G','size':0", {"'offset'", "1073741824", "65536"}},
        {"'size':65537", {"'size'", "65537", "65536"}},
        {"'offset':60000,'size':5537", {"'size'", "5537", "60000"}},
        {"'offset':-1", {"'offset'", "", ""}},
        {"'size':'-4k'", {"'size'", "", ""}},
        {"'offset':'9E'", {"'offset'", "", ""}},
        {"'ofset':0", {"ofset", "offset", ""}},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) err = test_open_error(
            env, 0, "{'driver':'raw','node-name':'r',%s,'file':{'driver':'file','filename':'%s'}}",
            bad[i].options, path);
        g_assert_nonnull(strstr(err->message, "node 'r'"));
        for (unsigned w = 0; w < G_N_ELEMENTS(bad[i].words); w++) {
            if (!strstr(err->message, bad[i].words[w])) {
                g_error("'%s' is missing in: %s", bad[i].words[w], err->message);
            }
        }
    }
    g_autoptr(GError) err = test_open_error(env, EINVAL, "{'driver':'raw','node-name':'r'}");
    test_check_error(&err, EINVAL, "'file'", NULL);
    g_assert_cmpuint(block_graph_nodes(env->graph)->len, ==, 0);
}

static void coroutine_fn test_raw_fixed_length(TestEnv *env)
{
    g_autofree char *path = driver_test_file("fixed", 65536);
    BlockBackend *blk = raw_open(env, path, "'size':4096");
    g_autoptr(GError) err = NULL;
    g_assert_cmpint(block_backend_co_truncate(blk, 8192, &err), ==, -ENOTSUP);
    test_check_error(&err, ENOTSUP, "node 'r'", "'size'", NULL);
    g_assert_cmpint(driver_test_length(path), ==, 65536);
    driver_test_close(env, blk);
}

/* Two windows of one file node, each with a writer; resizing the file is refused meanwhile. */
static void coroutine_fn test_raw_two_windows(TestEnv *env)
{
    g_autofree char *path = driver_test_file("two", MIB);
    BlockNode *file = test_open(env, "{'driver':'file','node-name':'f','filename':'%s'}", path);
    BlockNode *low = test_open(env, "{'driver':'raw','node-name':'low','file':'f','size':524288}");
    BlockNode *high =
        test_open(env, "{'driver':'raw','node-name':'high','file':'f','offset':524288,'size':524288}");
    BlockBackend *a = test_backend(env, "a", low), *b = test_backend(env, "b", high);
    g_autoptr(GError) err = NULL;
    BlockBackend *c = block_backend_new(env->graph, "c", BLOCK_PERM_RESIZE, BLOCK_PERM_ALL);
    g_assert_cmpint(block_backend_insert(c, file, &err), ==, -EBUSY);
    test_check_error(&err, EBUSY, "node 'f'", "resize", NULL);
    block_backend_co_free(c);

    uint8_t data[512], got[512], zero[512] = {0};
    test_fill(data, sizeof data, 6);
    g_assert_cmpint(block_backend_co_pwrite(b, 0, sizeof data, data, 0), ==, 0);
    g_assert_cmpint(block_backend_co_copy_range(b, 0, a, 1024, sizeof data), ==, 0);
    driver_test_read(path, 1024, got, sizeof got);
    test_assert_mem("copy", got, data, sizeof got);
    driver_test_read(path, 524288, got, sizeof got);
    test_assert_mem("write", got, data, sizeof got);
    driver_test_read(path, 0, got, sizeof got);
    test_assert_mem("beside", got, zero, sizeof got);
    driver_test_close(env, a);
    driver_test_close(env, b);
    test_delete(env, file);
}

/* A backend that takes and shares what an export does: one writer only. */
static BlockBackend *exclusive_backend(TestEnv *env, const char *name, BlockNode *node, GError **errp)
{
    BlockBackend *blk = block_backend_new(env->graph, name, BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE,
                                          BLOCK_PERM_ALL & ~BLOCK_PERM_WRITE);
    block_backend_insert(blk, node, errp);
    return blk;
}

/* A second window, at `offset` and of `size` if not 0, beside or in conflict with [4096, 8192). */
static void coroutine_fn check_second_window(TestEnv *env, int offset, int size, bool fits)
{
    g_autofree char *path = driver_test_file("overlap", 16384);
    g_autofree char *length = size ? g_strdup_printf(",'size':%d", size) : g_strdup("");
    g_autoptr(GError) err = NULL;
    BlockNode *file = test_open(env, "{'driver':'file','node-name':'f','filename':'%s'}", path);
    BlockNode *one =
        test_open(env, "{'driver':'raw','node-name':'one','file':'f','offset':4096,'size':4096}");
    BlockNode *two =
        test_open(env, "{'driver':'raw','node-name':'two','file':'f','offset':%d%s}", offset, length);
    BlockBackend *a = exclusive_backend(env, "a", one, &err);
    g_assert_no_error(err);
    BlockBackend *b = exclusive_backend(env, "b", two, &err);
    if (fits) {
        g_assert_no_error(err);
        g_assert_cmpint(block_backend_co_pwrite(a, 0, 1, "a", 0), ==, 0);
        g_assert_cmpint(block_backend_co_pwrite(b, 0, 1, "b", 0), ==, 0);
    } else {
        test_check_error(&err, EBUSY, "node 'two'", "", NULL);
    }
    block_backend_co_free(b);
    /* One who takes the whole file alone is refused, window or not. */
    BlockBackend *c = exclusive_backend(env, "c", file, &err);
    test_check_error(&err, EBUSY, "node 'f'", NULL);
    block_backend_co_free(c);
    block_backend_co_free(a);
    test_delete(env, one);
    test_delete(env, two);
    test_delete(env, file);
}

static void coroutine_fn test_raw_overlap(TestEnv *env)
{
    check_second_window(env, 8192, 4096, true);
    check_second_window(env, 0, 4096, true);
    check_second_window(env, 8192, 0, true);
    check_second_window(env, 8191, 4096, false);
    check_second_window(env, 0, 4097, false);
    check_second_window(env, 5000, 100, false);
    check_second_window(env, 4096, 0, false);
}

static void coroutine_fn test_raw_status(TestEnv *env)
{
    g_autofree char *path = driver_test_file("status", MIB);
    BlockBackend *blk = raw_open(env, path, "'offset':65536");
    g_autofree uint8_t *data = g_malloc(65536);
    int64_t pnum;
    test_fill(data, 65536, 7);
    g_assert_cmpint(block_backend_co_pwrite(blk, 65536, 65536, data, 0), ==, 0);
    int status = block_backend_co_block_status(blk, 0, MIB - 65536, &pnum);
    g_assert_cmpint(status, ==, BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED);
    g_assert_cmpint(pnum, ==, 65536);
    status = block_backend_co_block_status(blk, 65536 + 512, 4096, &pnum);
    g_assert_cmpint(status, ==, BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED);
    g_assert_cmpint(pnum, ==, 4096);
    g_assert_cmpint(block_backend_co_pdiscard(blk, 65536, 65536), ==, 0);
    status = block_backend_co_block_status(blk, 0, MIB - 65536, &pnum);
    g_assert_cmpint(status, ==, BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED);
    g_assert_cmpint(pnum, ==, MIB - 65536);
    driver_test_close(env, blk);
}

/* A read-only child makes a read-only node, which no writer gets. */
static void coroutine_fn test_raw_read_only(TestEnv *env)
{
    g_autofree char *path = driver_test_file("ro", 4096);
    BlockNode *file =
        test_open(env, "{'driver':'file','node-name':'f','filename':'%s','read-only':true}", path);
    BlockNode *raw = test_open(env, "{'driver':'raw','node-name':'r','file':'f'}");
    g_autoptr(GError) err = NULL;
    g_assert_true(raw->read_only);
    BlockBackend *blk = block_backend_new(env->graph, "b", BLOCK_PERM_WRITE, BLOCK_PERM_ALL);
    g_assert_cmpint(block_backend_insert(blk, raw, &err), ==, -EROFS);
    test_check_error(&err, EROFS, "node 'r'", "read-only", NULL);
    block_backend_co_free(blk);
    test_delete(env, raw);
    test_delete(env, file);
}

static void register_tests(void)
{
    test_add_co("drivers/raw/whole", test_raw_whole);
    test_add_co("drivers/raw/grow", test_raw_grow);
    test_add_co("drivers/raw/window", test_raw_window);
    test_add_co("drivers/raw/empty-window", test_raw_empty_window);
    test_add_co("drivers/raw/bad-window", test_raw_bad_window);
    test_add_co("drivers/raw/fixed-length", test_raw_fixed_length);
    test_add_co("drivers/raw/two-windows", test_raw_two_windows);
    test_add_co("drivers/raw/overlap", test_raw_overlap);
    test_add_co("drivers/raw/status", test_raw_status);
    test_add_co("drivers/raw/read-only", test_raw_read_only);
}

int main(int argc, char **argv)
{
    return driver_test_main(argc, argv, register_tests);
}
