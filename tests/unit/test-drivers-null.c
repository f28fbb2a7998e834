/*
 * Tests of the registry and of the drivers null-co and null-aio.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <string.h>

#include "tests/unit/driver-test-util.h"

#define MS INT64_C(1000000)

/* ---- drivers/registry */

static void coroutine_fn test_registry_find(TestEnv *env)
{
    static const char *const names[] = {"file", "host_device", "null-aio", "null-co", "raw"};
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autoptr(GError) err = NULL;
        const BlockDriver *driver = block_driver_find(names[i], &err);
        g_assert_no_error(err);
        g_assert_cmpstr(driver->name, ==, names[i]);
    }
    g_autoptr(GError) err = NULL;
    g_assert_null(block_driver_find("nul-co", &err));
    test_check_error(&err, EINVAL, "nul-co", "did you mean 'null-co'", NULL);
    g_assert_null(block_driver_find("quorum-of-doom", &err));
    test_check_error(&err, EINVAL, "quorum-of-doom", "file", "host_device", "raw", NULL);
    g_assert_null(block_driver_find("", &err));
    test_check_error(&err, EINVAL, "''", NULL);
}

static const BlockDriver late_driver = {.name = "late-driver", .instance_size = 1};

static void coroutine_fn test_registry_for_test(TestEnv *env)
{
    if (!block_driver_find("late-driver", NULL)) {
        block_driver_register_for_test(&late_driver);
    }
    g_assert_true(block_driver_find("late-driver", NULL) == &late_driver);
    g_autoptr(GError) err = NULL;
    g_assert_null(block_driver_find("late-drivr", &err));
    test_check_error(&err, EINVAL, "late-driver", NULL);
}

/* ---- drivers/null */

static void coroutine_fn test_null_defaults(TestEnv *env)
{
    BlockNode *node = test_open(env, "{'driver':'null-co','node-name':'n'}");
    BlockBackend *blk = test_backend(env, "b", node);
    int64_t pnum;
    g_assert_cmpint(block_backend_length(blk), ==, INT64_C(1) << 30);
    g_assert_cmpint(block_backend_co_block_status(blk, 4096, 8192, &pnum), ==,
                    BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED);
    g_assert_cmpint(pnum, ==, 8192);
    g_assert_cmpint(block_backend_co_get_allocated(blk), ==, 0);
    g_assert_cmpint(block_node_durable(node), ==, 0);
    g_assert_null(block_node_filename(node));
    driver_test_close(env, blk);
}

static void coroutine_fn test_null_size(TestEnv *env)
{
    BlockBackend *blk =
        test_backend(env, "b", test_open(env, "{'driver':'null-co','node-name':'n','size':'3k'}"));
    uint8_t buf[1024], zero[1024] = {0};
    g_assert_cmpint(block_backend_length(blk), ==, 3072);
    memset(buf, 0x77, sizeof buf);
    g_assert_cmpint(block_backend_co_pwrite(blk, 2048, sizeof buf, buf, BLOCK_REQ_FUA), ==, 0);
    g_assert_cmpint(block_backend_co_pwrite(blk, 2049, sizeof buf, buf, 0), ==, -ENOSPC);
    g_assert_cmpint(block_backend_co_pread(blk, 2048, sizeof buf, buf), ==, 0);
    test_assert_mem("null", buf, zero, sizeof buf);
    g_assert_cmpint(block_backend_co_pwrite_zeroes(blk, 0, 3072, BLOCK_REQ_NO_FALLBACK | BLOCK_REQ_MAY_UNMAP),
                    ==, 0);
    g_assert_cmpint(block_backend_co_pdiscard(blk, 0, 3072), ==, 0);
    g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
    driver_test_close(env, blk);
}

/* A buffer that held something else never comes back unchanged: it may have been another user's. */
static void coroutine_fn test_null_no_leak(TestEnv *env)
{
    static const char *const settings[] = {"false", "true"};
    for (unsigned i = 0; i < G_N_ELEMENTS(settings); i++) {
        BlockNode *node =
            test_open(env, "{'driver':'null-co','node-name':'n','read-zeroes':%s}", settings[i]);
        BlockBackend *blk = test_backend(env, "b", node);
        g_autofree uint8_t *secret = g_malloc(100000), *zero = g_malloc0(100000);
        int64_t pnum;
        memset(secret, 0x99, 100000);
        g_assert_cmpint(block_backend_co_pread(blk, 12345, 100000, secret), ==, 0);
        test_assert_mem("read", secret, zero, 100000);
        int status = block_backend_co_block_status(blk, 0, 4096, &pnum);
        g_assert_cmpint(status & (BLOCK_STATUS_ZERO | BLOCK_STATUS_DATA), ==,
                        i ? BLOCK_STATUS_ZERO : BLOCK_STATUS_DATA);
        driver_test_close(env, blk);
    }
}

static void coroutine_fn test_null_latency(TestEnv *env)
{
    BlockNode *node = test_open(env, "{'driver':'null-co','node-name':'n','latency-ns':%d}", (int)(20 * MS));
    BlockBackend *blk = test_backend(env, "b", node);
    uint8_t byte = 1;
    int64_t start = aio_clock_ns();
    g_assert_cmpint(block_backend_co_pread(blk, 0, 1, &byte), ==, 0);
    g_assert_cmpint(aio_clock_ns() - start, >=, 20 * MS);
    start = aio_clock_ns();
    g_assert_cmpint(block_backend_co_pwrite(blk, 0, 1, &byte, 0), ==, 0);
    g_assert_cmpint(aio_clock_ns() - start, >=, 20 * MS);
    driver_test_close(env, blk);
}

/* null-co completes within the call, null-aio from the event loop. */
static void coroutine_fn test_null_aio_yields(TestEnv *env)
{
    static const char *const drivers[] = {"null-co", "null-aio"};
    for (unsigned i = 0; i < G_N_ELEMENTS(drivers); i++) {
        BlockNode *node = test_open(env, "{'driver':'%s','node-name':'n'}", drivers[i]);
        BlockBackend *blk = test_backend(env, "b", node);
        TestRequest *req = test_request_start(env->ctx, blk, BLOCK_OP_READ, 0, 512, 1);
        g_assert_cmpint(test_request_done(req), ==, i == 0);
        g_assert_cmpint(test_request_finish(req), ==, 0);
        driver_test_close(env, blk);
    }
}

static void coroutine_fn test_null_bad_options(TestEnv *env)
{
    static const struct {
        const char *option;
        int errnum;
        const char *word;
    } bad[] = {
        {"'size':-1", 0, "size"},
        {"'size':'8E'", 0, "size"},
        {"'size':'much'", EINVAL, "size"},
        {"'latency-ns':-5", 0, "latency-ns"},
        {"'latency-ns':3000000000", 0, "latency-ns"},
        {"'read-zeroes':'maybe'", EINVAL, "read-zeroes"},
        {"'read-zeros':true", EINVAL, "read-zeroes"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) err =
            test_open_error(env, bad[i].errnum, "{'driver':'null-co','node-name':'n',%s}", bad[i].option);
        g_assert_nonnull(strstr(err->message, "node 'n'"));
        g_assert_nonnull(strstr(err->message, bad[i].word));
    }
}

static void register_tests(void)
{
    test_add_co("drivers/registry/find", test_registry_find);
    test_add_co("drivers/registry/for-test", test_registry_for_test);
    test_add_co("drivers/null/defaults", test_null_defaults);
    test_add_co("drivers/null/size", test_null_size);
    test_add_co("drivers/null/no-leak", test_null_no_leak);
    test_add_co("drivers/null/latency", test_null_latency);
    test_add_co("drivers/null/aio-yields", test_null_aio_yields);
    test_add_co("drivers/null/bad-options", test_null_bad_options);
}

int main(int argc, char **argv)
{
    return driver_test_main(argc, argv, register_tests);
}
