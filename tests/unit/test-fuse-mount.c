/*
 * Tests of queues and mounts: drained exports, exports that come and go, the end.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/fuse-fixture.h"

#define SIZE   65536
#define PARKED 300 /* more than the pool of a queue keeps */

/* Two exports, "a" and "b", open. */
typedef struct Pair {
    TestEnv *env;
    BlockNode *leaf[2];
    FuseExport *exp[2];
    Kernel *k;
    uint64_t nodeid[2], fh[2];
} Pair;

static Pair coroutine_fn pair_open(TestEnv *env)
{
    static const char *const names[] = {"a", "b"};
    Pair p = {.env = env};
    for (unsigned i = 0; i < 2; i++) {
        p.leaf[i] = test_open(env, "{'driver':'test-mem','node-name':'leaf-%s','size':%d}", names[i], SIZE);
        p.exp[i] = test_export(env, p.leaf[i], names[i], false);
    }
    p.k = kernel_mount(env, p.exp, 2);
    for (unsigned i = 0; i < 2; i++) {
        int err;
        p.nodeid[i] = kernel_lookup(p.k, FUSE_ROOT_ID, names[i], &err);
        g_assert_cmpint(kernel_open(p.k, p.nodeid[i], O_RDWR, &p.fh[i]), ==, 0);
    }
    return p;
}

static void coroutine_fn pair_free(Pair *p)
{
    for (unsigned i = 0; i < 2; i++) {
        if (p->exp[i]) {
            fuse_export_co_free(p->exp[i]);
        }
        test_delete(p->env, p->leaf[i]);
    }
}

static void coroutine_fn pair_close(Pair *p)
{
    g_assert_cmpint(kernel_unmount(p->k), ==, 0);
    pair_free(p);
}

static int coroutine_fn pair_read(Pair *p, unsigned i)
{
    return kernel_read(p->k, p->nodeid[i], p->fh[i], 0, 512, NULL);
}

static uint64_t send_read(Pair *p, unsigned i, uint64_t offset)
{
    return kernel_send_read(p->k, p->nodeid[i], p->fh[i], offset, 1);
}

/* ---- mount/drained-export: its requests wait, in order; the queue serves the others */

static void coroutine_fn test_drained_export(TestEnv *env)
{
    Pair p = pair_open(env);
    uint64_t parked[PARKED];
    BlockDrain *section = block_drain_co_begin(p.leaf[0]);
    for (unsigned i = 0; i < PARKED; i++) {
        parked[i] = send_read(&p, 0, 0);
    }
    for (unsigned i = 0; i < 100; i++) {
        g_assert_cmpint(pair_read(&p, 1), ==, 512);
    }
    test_wait(block_backend_parked(fuse_export_backend(p.exp[0])) == PARKED);
    g_assert_cmpuint(test_calls(p.leaf[0], BLOCK_OP_READ), ==, 0);
    g_assert_false(kernel_has_reply(p.k, parked[0]));
    g_array_set_size(p.k->order, 0);
    block_drain_end(section);
    for (unsigned i = 0; i < PARKED; i++) {
        KernelReply reply = kernel_wait(p.k, parked[i]);
        g_assert_cmpint(reply.error, ==, 0);
        g_assert_cmpuint(reply.size, ==, 1);
        kernel_reply_clear(&reply);
        g_assert_cmpuint(g_array_index(p.k->order, uint64_t, i), ==, parked[i]);
    }
    pair_close(&p);
}

/* ---- mount/stop-waits: requests in flight get their replies before the stop returns */

static int coroutine_fn unmount_task(void *opaque)
{
    return fuse_mount_co_stop(opaque);
}

static void coroutine_fn test_stop_waits(TestEnv *env)
{
    Pair p = pair_open(env);
    uint8_t data[512] = {7};
    test_mem_hold(p.leaf[0], BLOCK_OP_WRITE, -1);
    uint64_t held = kernel_send_write(p.k, p.nodeid[0], p.fh[0], 0, sizeof data, data, 0);
    test_wait(test_mem_waiting(p.leaf[0]) == 1);
    TestTask *stop = test_spawn(env->ctx, unmount_task, p.k->mount);
    test_settle();
    g_assert_false(test_task_done(stop));
    g_assert_false(kernel_has_reply(p.k, held));
    g_array_unref(test_mem_take_record(p.leaf[0]));
    test_mem_release(p.leaf[0], BLOCK_OP_WRITE, -1);
    g_assert_cmpint(test_join(stop), ==, 0);
    g_assert_true(kernel_has_reply(p.k, held));
    g_autofree char *record = test_mem_record_text(p.leaf[0]);
    g_assert_cmpstr(record, ==, "flush"); /* what was written is safe */
    pair_close(&p);
}

/* ---- mount/stop-reports-flush-error */

static void coroutine_fn test_stop_reports_flush_error(TestEnv *env)
{
    Pair p = pair_open(env);
    uint8_t data[512] = {7};
    g_assert_cmpint(kernel_write(p.k, p.nodeid[0], p.fh[0], 0, sizeof data, data, 0), ==, sizeof data);
    g_assert_cmpint(kernel_write(p.k, p.nodeid[1], p.fh[1], 0, sizeof data, data, 0), ==, sizeof data);
    test_mem_fail(p.leaf[0], BLOCK_OP_FLUSH, EIO);
    g_assert_cmpint(kernel_unmount(p.k), ==, -EIO);
    g_assert_cmpuint(test_calls(p.leaf[1], BLOCK_OP_FLUSH), ==,
                     1); /* the other one was flushed all the same */
    test_mem_fail(p.leaf[0], BLOCK_OP_FLUSH, 0);
    pair_free(&p);
}

/* ---- mount/connection-ends: from outside */

static void coroutine_fn test_connection_ends(TestEnv *env)
{
    Pair p = pair_open(env);
    g_assert_true(fuse_mount_is_alive(p.k->mount));
    for (unsigned i = 0; i < KERNEL_QUEUES; i++) {
        close(p.k->fd[i]);
        p.k->fd[i] = -1;
    }
    test_wait(p.k->closed > 0);
    test_settle();
    g_assert_cmpuint(p.k->closed, ==, 1);
    g_assert_false(fuse_mount_is_alive(p.k->mount));
    pair_close(&p);
}

/* ---- mount/remove-export */

typedef struct Removal {
    Pair *pair;
    bool force;
    GError *err;
} Removal;

static int coroutine_fn remove_task(void *opaque)
{
    Removal *r = opaque;
    return fuse_mount_co_remove_export(r->pair->k->mount, r->pair->exp[0], r->force, &r->err);
}

static void coroutine_fn test_remove_export(TestEnv *env)
{
    Pair p = pair_open(env);
    Removal r = {.pair = &p};
    int err;
    g_assert_cmpint(remove_task(&r), ==, -EBUSY);
    test_check_error(&r.err, EBUSY, "'a'", "open", NULL);
    g_assert_cmpint(pair_read(&p, 0), ==, 512);
    g_assert_cmpint(kernel_release(p.k, p.nodeid[0], p.fh[0]), ==, 0);
    g_assert_cmpint(remove_task(&r), ==, 0);
    kernel_lookup(p.k, FUSE_ROOT_ID, "a", &err);
    g_assert_cmpint(err, ==, -ENOENT);
    g_assert_cmpstr(p.k->forgotten->str, ==, "a ");
    g_assert_cmpint(kernel_open(p.k, p.nodeid[0], O_RDONLY, &p.fh[0]), ==, -ESTALE);
    g_assert_cmpint(pair_read(&p, 1), ==, 512);
    /* The name is free again. */
    g_assert_cmpint(fuse_mount_add_export(p.k->mount, p.exp[0], NULL), ==, 0);
    uint64_t nodeid = kernel_lookup(p.k, FUSE_ROOT_ID, "a", &err);
    g_assert_cmpint(err, ==, 0);
    g_assert_cmpuint(nodeid, !=, p.nodeid[0]);
    g_assert_cmpint(fuse_mount_add_export(p.k->mount, p.exp[1], &r.err), ==, -EEXIST);
    test_check_error(&r.err, EEXIST, "'b'", NULL);
    pair_close(&p);
}

/* Forced, with a request in flight: waits for it, then the open file is stale. */
static void coroutine_fn test_remove_busy_export(TestEnv *env)
{
    Pair p = pair_open(env);
    Removal r = {.pair = &p, .force = true};
    test_mem_hold(p.leaf[0], BLOCK_OP_READ, -1);
    uint64_t held = send_read(&p, 0, 0);
    test_wait(test_mem_waiting(p.leaf[0]) == 1);
    TestTask *removal = test_spawn(env->ctx, remove_task, &r);
    test_settle();
    g_assert_false(test_task_done(removal));
    g_assert_cmpint(pair_read(&p, 0), ==, -ESTALE); /* new requests do not come in */
    g_assert_cmpint(pair_read(&p, 1), ==, 512);
    test_mem_release(p.leaf[0], BLOCK_OP_READ, -1);
    g_assert_cmpint(test_join(removal), ==, 0);
    KernelReply reply = kernel_wait(p.k, held);
    g_assert_cmpint(reply.error, ==, 0);
    kernel_reply_clear(&reply);
    fuse_export_co_free(g_steal_pointer(&p.exp[0]));
    g_assert_cmpint(pair_read(&p, 0), ==, -ESTALE);
    g_assert_cmpint(kernel_release(p.k, p.nodeid[0], p.fh[0]), ==, 0);
    pair_close(&p);
}

/* ---- mount/stuck-thread: another queue takes over while a thread hangs in a callback */

typedef struct Stuck {
    _Atomic bool entered, go_on;
} Stuck;

static void get_stuck(void *opaque)
{
    Stuck *stuck = opaque;
    atomic_store(&stuck->entered, true);
    while (!atomic_load(&stuck->go_on)) {
        g_usleep(1000);
    }
}

static void coroutine_fn test_stuck_thread(TestEnv *env)
{
    Pair p = pair_open(env);
    Stuck stuck = {.entered = false};
    struct fuse_read_in arg = {.fh = p.fh[1], .size = 512};
    g_assert_cmpint(pair_read(&p, 0), ==, 512);
    uint64_t dormant = kernel_send_to(p.k, 1, FUSE_READ, p.nodeid[1], &arg, sizeof arg, NULL, 0);
    test_settle();
    g_assert_false(kernel_has_reply(p.k, dormant)); /* one queue is enough */
    aio_bh_schedule_oneshot(test_iothread(env, 0), get_stuck, &stuck);
    test_wait(atomic_load(&stuck.entered));
    uint64_t waiting = send_read(&p, 0, 0);
    KernelReply reply = kernel_wait(p.k, dormant);
    g_assert_cmpint(reply.error, ==, 0);
    kernel_reply_clear(&reply);
    g_assert_false(kernel_has_reply(p.k, waiting));
    atomic_store(&stuck.go_on, true);
    reply = kernel_wait(p.k, waiting);
    g_assert_cmpint(reply.error, ==, 0);
    kernel_reply_clear(&reply);
    pair_close(&p);
}

/* ---- mount/memory: what a burst took is given back */

static unsigned coroutine_fn idle_requests(Kernel *k)
{
    AioContext *here = aio_context_current();
    aio_co_reschedule_self(k->mount->queues[0].ctx);
    unsigned n = k->mount->queues[0].n_idle;
    aio_co_reschedule_self(here);
    return n;
}

static void coroutine_fn test_memory(TestEnv *env)
{
    Pair p = pair_open(env);
    BlockDrain *section = block_drain_co_begin(p.leaf[0]);
    uint64_t last = 0;
    for (unsigned i = 0; i < PARKED; i++) {
        last = send_read(&p, 0, 0);
    }
    test_wait(block_backend_parked(fuse_export_backend(p.exp[0])) == PARKED);
    block_drain_end(section);
    KernelReply reply = kernel_wait(p.k, last);
    kernel_reply_clear(&reply);
    unsigned after = idle_requests(p.k);
    g_assert_cmpuint(after, >, 16);
    g_assert_cmpuint(after, <, PARKED);
    test_wait(idle_requests(p.k) <= 16);
    g_assert_cmpint(pair_read(&p, 0), ==, 512);
    pair_close(&p);
}

/* ---- export/refused */

static void coroutine_fn check_refused(TestEnv *env, BlockNode *node, FuseExportConfig config, int errnum,
                                       const char *word)
{
    GError *err = NULL;
    g_assert_null(fuse_export_new(env->graph, node, &config, &err));
    test_check_error(&err, errnum, word, NULL);
    g_assert_cmpuint(block_graph_backends(env->graph)->len, ==, 0);
}

static void coroutine_fn test_export_refused(TestEnv *env)
{
    BlockNode *node = test_open(env, "{'driver':'test-mem','node-name':'n','size':4096}");
    BlockNode *fixed = test_open(env, "{'driver':'test-mem','node-name':'r','size':4096,'read-only':true}");
    check_refused(env, node, (FuseExportConfig){.id = ""}, EINVAL, "id");
    check_refused(env, node, (FuseExportConfig){.id = "a/b"}, EINVAL, "a/b");
    check_refused(env, node, (FuseExportConfig){.id = ".."}, EINVAL, "..");
    check_refused(env, node, (FuseExportConfig){.id = "x", .growable = true}, EINVAL, "growable");
    check_refused(env, fixed, (FuseExportConfig){.id = "x", .writable = true}, EROFS, "'r'");
    test_delete(env, fixed);
    test_delete(env, node);
}

/* Two writers of one node: the second is refused and leaves nothing behind. */
static void coroutine_fn test_export_two_writers(TestEnv *env)
{
    BlockNode *node = test_open(env, "{'driver':'test-mem','node-name':'n','size':4096}");
    FuseExport *first = test_export(env, node, "first", false);
    FuseExportConfig config = {.id = "second", .writable = true};
    GError *err = NULL;
    g_assert_null(fuse_export_new(env->graph, node, &config, &err));
    g_assert_nonnull(strstr(err->message, "second"));
    g_assert_nonnull(strstr(err->message, "first"));
    g_clear_error(&err);
    config.writable = false;
    FuseExport *reader = fuse_export_new(env->graph, node, &config, &err);
    g_assert_no_error(err);
    fuse_export_co_free(reader);
    fuse_export_co_free(first);
    test_delete(env, node);
}

static void register_tests(void)
{
    test_add_co("mount/drained-export", test_drained_export);
    test_add_co("mount/stop-waits", test_stop_waits);
    test_add_co("mount/stop-reports-flush-error", test_stop_reports_flush_error);
    test_add_co("mount/connection-ends", test_connection_ends);
    test_add_co("mount/remove-export", test_remove_export);
    test_add_co("mount/remove-busy-export", test_remove_busy_export);
    test_add_co("mount/stuck-thread", test_stuck_thread);
    test_add_co("mount/memory", test_memory);
    test_add_co("export/refused", test_export_refused);
    test_add_co("export/two-writers", test_export_two_writers);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv, register_tests);
}
