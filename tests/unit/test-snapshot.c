/*
 * Tests of snapshots over several nodes, and of qcow2's: whole or nothing, revert, reading, what waits.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <string.h>

#include "block/snapshot.h"
#include "tests/unit/driver-test-util.h"
#include "tests/unit/qcow2-image.h"

#define KIB     INT64_C(1024)
#define MIB     (1024 * KIB)
#define CLUSTER QCOW2_IMAGE_CLUSTER

/* ---- Two images in memory */

typedef struct Images {
    TestEnv *env;
    BlockNode *file[2], *node[2];
    BlockBackend *blk[2];
} Images;

static Images coroutine_fn images_open(TestEnv *env)
{
    Images m = {.env = env};
    for (unsigned i = 0; i < 2; i++) {
        m.file[i] = test_open(env,
                              "{'driver':'test-mem','node-name':'f%u','size':16384,'capacity':'16M',"
                              "'growable':true}",
                              i);
        qcow2_image_make(test_mem(m.file[i])->data, 8 * MIB);
        m.node[i] = test_open(env, "{'driver':'qcow2','node-name':'q%u','file':'f%u'}", i, i);
        m.blk[i] = test_backend(env, "b", m.node[i]);
    }
    return m;
}

/* Closed, opened again by qemu-img's eyes: nothing but what is in the file counts. */
static void coroutine_fn check_file(TestEnv *env, BlockNode *file)
{
    g_autofree char *path = driver_test_path("image");
    g_autofree char *output = NULL;
    g_assert_true(g_file_set_contents(path, (char *)test_mem(file)->data, test_mem(file)->size, NULL));
    int status = driver_test_command(&output, "qemu-img", "check", "-f", "qcow2", path, NULL);
    if (status != 0) {
        g_error("qemu-img check: %s", output);
    }
}

static void coroutine_fn images_close(Images *m)
{
    for (unsigned i = 0; i < 2; i++) {
        driver_test_close(m->env, m->blk[i]);
        check_file(m->env, m->file[i]);
        test_delete(m->env, m->file[i]);
    }
}

static unsigned coroutine_fn count(BlockNode *node)
{
    g_autoptr(GPtrArray) infos = g_ptr_array_new_with_free_func((GDestroyNotify)block_snapshot_info_free);
    g_autoptr(GError) err = NULL;
    g_assert_cmpint(block_snapshot_co_list(node, infos, &err), ==, 0);
    return infos->len;
}

static void coroutine_fn create(Images *m, unsigned n, const char *name)
{
    g_autoptr(GError) err = NULL;
    int ret = block_snapshot_co_create(m->node, n, name, &err);
    g_assert_no_error(err);
    g_assert_cmpint(ret, ==, 0);
}

/* ---- Revert */

static void coroutine_fn test_revert(TestEnv *env)
{
    Images m = images_open(env);
    g_autoptr(GError) err = NULL;
    test_write_bytes(m.blk[0], 0, CLUSTER, 1);
    test_write_bytes(m.blk[0], 3 * MIB, CLUSTER, 2);
    create(&m, 1, "s");
    test_write_bytes(m.blk[0], 0, CLUSTER, 3);
    test_write_bytes(m.blk[0], 6 * MIB, CLUSTER, 4);
    g_assert_cmpint(block_backend_co_pdiscard(m.blk[0], 3 * MIB, CLUSTER), ==, 0);
    for (unsigned round = 0; round < 3; round++) {
        g_assert_cmpint(block_snapshot_co_revert(m.node, 1, "s", &err), ==, 0);
        test_check_bytes(m.blk[0], 0, CLUSTER, 1);
        test_check_bytes(m.blk[0], 3 * MIB, CLUSTER, 2);
        test_check_bytes(m.blk[0], 6 * MIB, CLUSTER, 0);
        test_write_bytes(m.blk[0], 3 * MIB, CLUSTER, 5 + (int)round);
        test_check_bytes(m.blk[0], 3 * MIB, CLUSTER, 5 + (int)round);
    }
    g_assert_cmpint(block_snapshot_co_delete(m.node, 1, "s", &err), ==, 0);
    test_check_bytes(m.blk[0], 0, CLUSTER, 1);
    test_check_bytes(m.blk[0], 3 * MIB, CLUSTER, 7);
    images_close(&m);
}

/* The length goes back as well, also that of a node on top which passes it on. */
static void coroutine_fn test_revert_length(TestEnv *env)
{
    Images m = images_open(env);
    g_autoptr(GError) err = NULL;
    test_write_bytes(m.blk[0], 0, CLUSTER, 1);
    create(&m, 1, "s");
    g_assert_cmpint(block_backend_co_truncate(m.blk[0], 12 * MIB, &err), ==, 0);
    test_write_bytes(m.blk[0], 11 * MIB, CLUSTER, 2);
    create(&m, 1, "t");
    BlockBackend *view = block_snapshot_co_open(m.node[0], "s", "view", &err);
    g_assert_cmpint(block_backend_length(view), ==, 8 * MIB);
    block_backend_co_free(view);
    g_assert_cmpint(block_snapshot_co_revert(m.node, 1, "s", &err), ==, 0);
    g_assert_cmpint(block_backend_length(m.blk[0]), ==, 8 * MIB);
    test_check_bytes(m.blk[0], 0, CLUSTER, 1);
    g_assert_cmpint(block_snapshot_co_revert(m.node, 1, "t", &err), ==, 0);
    g_assert_cmpint(block_backend_length(m.blk[0]), ==, 12 * MIB);
    test_check_bytes(m.blk[0], 11 * MIB, CLUSTER, 2);
    images_close(&m);
}

/* ---- Whole or nothing */

static void coroutine_fn check_failed(Images *m, const char *name, int errnum)
{
    g_autoptr(GError) err = NULL;
    g_assert_cmpint(block_snapshot_co_create(m->node, 2, name, &err), ==, -errnum);
    g_assert_nonnull(strstr(err->message, "q1"));
    g_assert_cmpuint(count(m->node[0]), ==, 0);
    g_assert_cmpuint(count(m->node[1]), ==, 0);
}

static void coroutine_fn test_prepare_fails(TestEnv *env)
{
    Images m = images_open(env);
    test_write_bytes(m.blk[0], 0, CLUSTER, 1);
    test_write_bytes(m.blk[1], 0, CLUSTER, 2);
    test_mem_fail(m.file[1], BLOCK_OP_WRITE, ENOSPC);
    check_failed(&m, "s", ENOSPC);
    test_mem_fail(m.file[1], BLOCK_OP_WRITE, 0);
    test_mem_fail(m.file[1], BLOCK_OP_FLUSH, EIO);
    check_failed(&m, "s", EIO);
    test_mem_fail(m.file[1], BLOCK_OP_FLUSH, 0);
    test_check_bytes(m.blk[0], 0, CLUSTER, 1);
    test_check_bytes(m.blk[1], 0, CLUSTER, 2);
    create(&m, 2, "s");
    g_assert_cmpuint(count(m.node[0]), ==, 1);
    images_close(&m);
}

typedef struct Creation {
    Images *m;
    GError *err;
} Creation;

static int coroutine_fn create_task(void *opaque)
{
    Creation *c = opaque;
    return block_snapshot_co_create(c->m->node, 2, "s", &c->err);
}

/* The first image has its snapshot already when the header of the second cannot be written: taken back. */
static void coroutine_fn test_commit_fails(TestEnv *env)
{
    Images m = images_open(env);
    test_write_bytes(m.blk[0], 0, CLUSTER, 1);
    test_write_bytes(m.blk[1], 0, CLUSTER, 2);
    test_mem_hold(m.file[1], BLOCK_OP_WRITE, QCOW2_HEADER_SIZE);
    Creation c = {.m = &m};
    TestTask *task = test_spawn(env->ctx, create_task, &c);
    test_wait(test_mem_waiting(m.file[1]) == 1);
    test_mem_fail(m.file[1], BLOCK_OP_WRITE, EIO);
    test_mem_release(m.file[1], BLOCK_OP_WRITE, QCOW2_HEADER_SIZE);
    g_assert_cmpint(test_join(task), ==, -EIO);
    g_assert_nonnull(strstr(c.err->message, "q1"));
    g_error_free(c.err);
    g_assert_cmpuint(count(m.node[0]), ==, 0);
    test_write_bytes(m.blk[0], 0, CLUSTER, 3);
    /* Nobody knows what the header of the second says: it is not written any more. */
    test_mem_fail(m.file[1], BLOCK_OP_WRITE, 0);
    uint8_t buf[CLUSTER] = {0};
    g_assert_cmpint(block_backend_co_pwrite(m.blk[1], 0, CLUSTER, buf, 0), ==, -EIO);
    test_check_bytes(m.blk[1], 0, CLUSTER, 2);
    for (unsigned i = 0; i < 2; i++) {
        driver_test_close(env, m.blk[i]);
    }
    check_file(env, m.file[0]);
    test_delete(env, m.file[0]);
    test_delete(env, m.file[1]);
}

/* ---- Requests meanwhile */

/* A write that comes while the snapshot is taken waits, and is not in it. */
static void coroutine_fn test_writes_wait(TestEnv *env)
{
    Images m = images_open(env);
    g_autoptr(GError) err = NULL;
    test_write_bytes(m.blk[0], 0, CLUSTER, 1);
    test_mem_hold(m.file[0], BLOCK_OP_WRITE, QCOW2_HEADER_SIZE);
    Creation c = {.m = &m};
    TestTask *task = test_spawn(env->ctx, create_task, &c);
    test_wait(test_mem_waiting(m.file[0]) == 1);
    TestRequest *write = test_request_start(test_iothread(env, 0), m.blk[0], BLOCK_OP_WRITE, 0, CLUSTER, 9);
    test_settle();
    g_assert_false(test_request_done(write) || test_task_done(task));
    test_mem_release(m.file[0], BLOCK_OP_WRITE, QCOW2_HEADER_SIZE);
    g_assert_cmpint(test_join(task), ==, 0);
    g_assert_cmpint(test_request_finish(write), ==, 0);
    test_check_bytes(m.blk[0], 0, CLUSTER, 9);
    BlockBackend *view = block_snapshot_co_open(m.node[0], "s", "view", &err);
    test_check_bytes(view, 0, CLUSTER, 1);
    block_backend_co_free(view);
    images_close(&m);
}

/* ---- Reading */

static void coroutine_fn test_view(TestEnv *env)
{
    Images m = images_open(env);
    g_autoptr(GError) err = NULL;
    test_write_bytes(m.blk[0], 0, CLUSTER, 1);
    test_write_bytes(m.blk[0], 2 * CLUSTER, CLUSTER, 2);
    create(&m, 1, "s");
    BlockBackend *view = block_snapshot_co_open(m.node[0], "s", "view", &err);
    g_assert_no_error(err);
    test_write_bytes(m.blk[0], 0, CLUSTER, 3);
    create(&m, 1, "t");
    test_write_bytes(m.blk[0], CLUSTER, CLUSTER, 4);
    test_check_bytes(view, 0, CLUSTER, 1);
    test_check_bytes(view, CLUSTER, CLUSTER, 0);
    test_check_bytes(view, 2 * CLUSTER, CLUSTER, 2);
    int64_t pnum;
    int status = block_backend_co_block_status(view, CLUSTER, CLUSTER * 2, &pnum);
    g_assert_cmpint(pnum, ==, CLUSTER);
    g_assert_true(status & BLOCK_STATUS_ZERO);
    uint8_t byte = 0;
    g_assert_cmpint(block_backend_co_pwrite(view, 0, 1, &byte, 0), ==, -EROFS);
    g_assert_cmpint(block_snapshot_co_delete(m.node, 1, "s", &err), ==, -EBUSY);
    g_clear_error(&err);
    block_backend_co_free(view);
    g_assert_cmpint(block_snapshot_co_delete(m.node, 1, "s", &err), ==, 0);
    g_assert_cmpint(block_snapshot_co_delete(m.node, 1, "s", &err), ==, -ENOENT);
    g_clear_error(&err);
    g_assert_null(block_snapshot_co_open(m.node[0], "s", "view", &err));
    test_check_error(&err, ENOENT, "q0", "'s'", NULL);
    images_close(&m);
}

/* ---- Whose snapshots */

static void coroutine_fn test_target(TestEnv *env)
{
    Images m = images_open(env);
    g_autoptr(GError) err = NULL;
    for (unsigned i = 0; i < 2; i++) { /* raw shares no resizing */
        g_assert_cmpint(block_backend_set_perm(m.blk[i], BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL, &err),
                        ==, 0);
    }
    BlockNode *whole = test_open(env, "{'driver':'raw','node-name':'w','file':'q0'}");
    BlockNode *window = test_open(env, "{'driver':'raw','node-name':'v','file':'q1','offset':512}");
    g_assert_true(block_snapshot_target(whole, &err) == m.node[0]);
    g_assert_null(block_snapshot_target(window, &err));
    test_check_error(&err, EOPNOTSUPP, "'v'", "'raw'", NULL);
    /* Two ways to one image are one snapshot. */
    BlockNode *both[] = {whole, m.node[0]};
    g_assert_cmpint(block_snapshot_co_create(both, 2, "s", &err), ==, 0);
    g_assert_cmpuint(count(whole), ==, 1);
    static const char *const bad[] = {"", ".", "..", "a/b", "\xff"};
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_assert_cmpint(block_snapshot_co_create(both, 2, bad[i], &err), ==, -EINVAL);
        g_clear_error(&err);
    }
    test_delete(env, whole);
    test_delete(env, window);
    images_close(&m);
}

static void register_tests(void)
{
    test_add_co("snapshot/revert", test_revert);
    test_add_co("snapshot/revert-length", test_revert_length);
    test_add_co("snapshot/prepare-fails", test_prepare_fails);
    test_add_co("snapshot/commit-fails", test_commit_fails);
    test_add_co("snapshot/writes-wait", test_writes_wait);
    test_add_co("snapshot/view", test_view);
    test_add_co("snapshot/target", test_target);
}

int main(int argc, char **argv)
{
    return driver_test_main(argc, argv, register_tests);
}
