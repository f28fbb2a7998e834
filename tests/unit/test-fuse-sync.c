/*
 * Tests of what makes data durable, as the kernel asks for it: the order in which things reach the leaf and
 * the reply is sent, and who is told of a flush that failed.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <poll.h>
#include <string.h>

#include "tests/unit/driver-test-util.h"
#include "tests/unit/fuse-fixture.h"

#define SIZE    65536
#define CLUSTER 65536

/* ---- A filter that records what has been done below it, and that no reply was sent yet */

typedef struct Event {
    bool flush;
    int64_t offset, bytes;
} Event;

static BgMutex log_lock = BG_MUTEX_INIT;
static GArray *events BG_GUARDED_BY(log_lock);
static _Atomic int reply_fd; /* the kernel's end */
static _Atomic bool replied_early;

static void record(bool flush, int64_t offset, int64_t bytes)
{
    Event e = {flush, offset, bytes};
    struct pollfd p = {.fd = atomic_load(&reply_fd), .events = POLLIN};
    aio_co_sleep_ns(2000000); /* time for a reply that does not wait */
    if (poll(&p, 1, 0) > 0) {
        atomic_store(&replied_early, true);
    }
    bg_mutex_lock(&log_lock);
    g_array_append_val(events, e);
    bg_mutex_unlock(&log_lock);
}

static int coroutine_fn watch_pwritev(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                      size_t qiov_offset, BlockRequestFlags flags)
{
    int ret = block_child_co_pwritev(node->file, offset, bytes, qiov, qiov_offset, 0);
    record(false, offset, bytes);
    return ret;
}

static int coroutine_fn watch_flush(BlockNode *node)
{
    int ret = block_child_co_flush(node->file);
    record(true, 0, 0);
    return ret;
}

static const BlockDriver watch_driver = {
    .name = "test-watch",
    .instance_size = 1,
    .is_filter = true,
    .co_open = test_filter_open,
    .co_pwritev = watch_pwritev,
    .co_flush = watch_flush,
};

/* ---- A mount with one export "disk" of the node "top" */

typedef struct Disk {
    TestEnv *env;
    FuseExport *exp;
    Kernel *k;
    uint64_t nodeid;
} Disk;

static Disk coroutine_fn disk_mount(TestEnv *env, BlockNode *top, bool growable)
{
    int err;
    Disk d = {.env = env};
    d.exp = test_export(env, top, "disk", growable);
    d.k = kernel_mount(env, &d.exp, 1);
    d.nodeid = kernel_lookup(d.k, FUSE_ROOT_ID, "disk", &err);
    g_assert_cmpint(err, ==, 0);
    atomic_store(&reply_fd, d.k->fd[0]);
    atomic_store(&replied_early, false);
    events = g_array_new(false, false, sizeof(Event));
    return d;
}

static void coroutine_fn delete_nodes(TestEnv *env)
{
    static const char *const names[] = {"top", "watch", "leaf"};
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        BlockNode *node = block_graph_find(env->graph, names[i], NULL);
        if (node) {
            test_delete(env, node);
        }
    }
    g_array_unref(events);
}

static void coroutine_fn disk_close(Disk *d)
{
    g_assert_cmpint(kernel_unmount(d->k), ==, 0);
    fuse_export_co_free(d->exp);
    delete_nodes(d->env);
}

static uint64_t coroutine_fn disk_open(Disk *d, int flags)
{
    uint64_t fh;
    g_assert_cmpint(kernel_open(d->k, d->nodeid, flags, &fh), ==, 0);
    return fh;
}

static int coroutine_fn disk_write(Disk *d, uint64_t fh, uint32_t flags)
{
    uint8_t data[512] = {1};
    return kernel_write(d->k, d->nodeid, fh, 0, sizeof data, data, flags);
}

static int coroutine_fn disk_fsync(Disk *d, uint64_t fh)
{
    struct fuse_fsync_in arg = {.fh = fh};
    return kernel_call(d->k, FUSE_FSYNC, d->nodeid, &arg, sizeof arg, NULL, 0);
}

static int coroutine_fn sync_all(Disk *d)
{
    struct fuse_syncfs_in arg = {0};
    return kernel_call(d->k, FUSE_SYNCFS, FUSE_ROOT_ID, &arg, sizeof arg, NULL, 0);
}

static int coroutine_fn sync_directory(Disk *d)
{
    struct fuse_fsync_in arg = {0};
    return kernel_call(d->k, FUSE_FSYNCDIR, FUSE_ROOT_ID, &arg, sizeof arg, NULL, 0);
}

/* ---- Order */

/* The number of the first event from `from` on that flushes, or that writes to byte `offset`. */
static guint find_event(guint from, bool flush, int64_t offset)
{
    for (guint i = from; i < events->len; i++) {
        const Event *e = &g_array_index(events, Event, i);
        if (e->flush == flush && (flush || (e->offset <= offset && offset < e->offset + e->bytes))) {
            return i;
        }
    }
    g_error("no %s of %" G_GINT64_FORMAT " from event %u on", flush ? "flush" : "write", offset, from);
}

static void take_events(void)
{
    g_assert_false(atomic_load(&replied_early));
    g_array_set_size(events, 0);
}

static Disk coroutine_fn raw_mount(TestEnv *env)
{
    test_open(env, "{'driver':'test-mem','node-name':'leaf','size':%d}", SIZE);
    test_open(env, "{'driver':'test-watch','node-name':'watch','file':'leaf'}");
    return disk_mount(env, test_open(env, "{'driver':'raw','node-name':'top','file':'watch'}"), false);
}

static void check_data_then_flush(void)
{
    find_event(find_event(0, false, 0), true, 0);
    g_assert_true(g_array_index(events, Event, events->len - 1).flush);
    take_events();
}

static void coroutine_fn test_order_raw(TestEnv *env)
{
    Disk d = raw_mount(env);
    uint64_t fh = disk_open(&d, O_RDWR);
    g_assert_cmpint(disk_write(&d, fh, 0), ==, 512);
    g_assert_cmpuint(events->len, ==, 1); /* a plain write is no more than that */
    g_assert_cmpint(disk_fsync(&d, fh), ==, 0);
    check_data_then_flush();
    g_assert_cmpint(disk_write(&d, fh, O_DSYNC), ==, 512);
    check_data_then_flush();
    g_assert_cmpint(disk_write(&d, fh, O_SYNC), ==, 512);
    check_data_then_flush();
    g_assert_cmpint(disk_write(&d, fh, 0), ==, 512);
    g_assert_cmpint(sync_all(&d), ==, 0);
    check_data_then_flush();
    g_assert_cmpint(disk_write(&d, fh, 0), ==, 512);
    g_assert_cmpint(sync_directory(&d), ==, 0);
    check_data_then_flush();
    g_assert_cmpint(disk_write(&d, fh, 0), ==, 512);
    g_assert_cmpint(kernel_unmount(d.k), ==, 0);
    find_event(find_event(0, false, 0), true, 0);
    fuse_export_co_free(d.exp);
    delete_nodes(env);
}

/* A new image in memory, behind the recording filter. */
static Disk coroutine_fn qcow2_mount(TestEnv *env)
{
    g_autofree char *path = driver_test_path("order.qcow2"), *content = NULL;
    gsize n;
    int status = driver_test_command(NULL, "qemu-img", "create", "-f", "qcow2", path, "16M", NULL);
    g_assert_cmpint(status, ==, 0);
    g_assert_true(g_file_get_contents(path, &content, &n, NULL));
    BlockNode *leaf = test_open(
        env, "{'driver':'test-mem','node-name':'leaf','size':%zu,'capacity':'8M','growable':true}", n);
    memcpy(test_mem(leaf)->data, content, n);
    test_open(env, "{'driver':'test-watch','node-name':'watch','file':'leaf'}");
    return disk_mount(env, test_open(env, "{'driver':'qcow2','node-name':'top','file':'watch'}"), false);
}

static uint64_t image_be64(Disk *d, uint64_t offset)
{
    uint64_t value;
    memcpy(&value, test_mem(block_graph_find(d->env->graph, "leaf", NULL))->data + offset, sizeof value);
    return GUINT64_FROM_BE(value);
}

/*
 * After a first write to an empty image: the data and the refcounts, a flush, the L2 entry, a flush, the L1
 * entry, a flush. The places are those that the image itself says.
 */
static void check_tables_follow_data(Disk *d)
{
    const uint64_t place = UINT64_C(0x00fffffffffffe00);
    uint64_t l1 = image_be64(d, 40), refcount_block = image_be64(d, image_be64(d, 48));
    uint64_t l2 = image_be64(d, l1) & place, data = image_be64(d, l2) & place;
    g_assert_cmpuint(l2, >, 0);
    g_assert_cmpuint(data, >, 0);
    guint data_at = find_event(0, false, (int64_t)data);
    guint refcount_at = find_event(0, false, (int64_t)(refcount_block + data / CLUSTER * 2));
    guint l2_at = find_event(find_event(MAX(data_at, refcount_at), true, 0), false, (int64_t)l2);
    guint l1_at = find_event(find_event(l2_at, true, 0), false, (int64_t)l1);
    find_event(l1_at, true, 0);
    g_assert_cmpuint(find_event(0, false, (int64_t)l2), ==, l2_at); /* and not before, too */
    g_assert_cmpuint(find_event(0, false, (int64_t)l1), ==, l1_at);
    g_assert_true(g_array_index(events, Event, events->len - 1).flush);
}

typedef enum Durable { BY_FSYNC, BY_O_SYNC, BY_O_DSYNC, BY_SYNCFS, BY_UMOUNT, DURABLE__MAX } Durable;

static void coroutine_fn make_durable(Disk *d, uint64_t fh, Durable by)
{
    switch (by) {
    case BY_FSYNC:
        g_assert_cmpint(disk_fsync(d, fh), ==, 0);
        return;
    case BY_SYNCFS:
        g_assert_cmpint(sync_all(d), ==, 0);
        return;
    case BY_UMOUNT:
        g_assert_cmpint(kernel_unmount(d->k), ==, 0);
        return;
    default:
        return; /* the write did it */
    }
}

static void coroutine_fn test_order_qcow2(TestEnv *env)
{
    if (driver_test_lacks("qemu-img")) {
        return;
    }
    for (Durable by = 0; by < DURABLE__MAX; by++) {
        Disk d = qcow2_mount(env);
        uint64_t fh = disk_open(&d, O_RDWR);
        uint32_t flags = by == BY_O_SYNC ? O_SYNC : by == BY_O_DSYNC ? O_DSYNC : 0;
        g_assert_cmpint(disk_write(&d, fh, flags), ==, 512);
        make_durable(&d, fh, by);
        if (by != BY_UMOUNT) {
            g_assert_false(atomic_load(&replied_early));
        }
        check_tables_follow_data(&d);
        if (by == BY_UMOUNT) {
            fuse_export_co_free(d.exp);
            delete_nodes(env);
        } else {
            disk_close(&d);
        }
    }
}

/* ---- Errors: each file that changed something is told once */

static Disk coroutine_fn error_mount(TestEnv *env, BlockNode **leaf)
{
    *leaf = test_open(env, "{'driver':'test-mem','node-name':'leaf','size':%d,'growable':true}", SIZE);
    return disk_mount(env, test_open(env, "{'driver':'raw','node-name':'top','file':'leaf'}"), true);
}

static void coroutine_fn fail_one_flush(BlockNode *leaf, Disk *d, uint64_t fh)
{
    test_mem_fail(leaf, BLOCK_OP_FLUSH, ENOSPC);
    g_assert_cmpint(disk_fsync(d, fh), ==, -ENOSPC);
    test_mem_fail(leaf, BLOCK_OP_FLUSH, 0);
}

static void coroutine_fn test_once(TestEnv *env)
{
    BlockNode *leaf;
    Disk d = error_mount(env, &leaf);
    uint64_t a = disk_open(&d, O_RDWR), b = disk_open(&d, O_RDWR), synced = disk_open(&d, O_RDWR);
    uint64_t idle = disk_open(&d, O_RDWR), reader = disk_open(&d, O_RDONLY);
    g_assert_cmpint(disk_write(&d, synced, 0), ==, 512);
    g_assert_cmpint(disk_fsync(&d, synced), ==, 0);
    g_assert_cmpint(disk_write(&d, a, 0), ==, 512);
    g_assert_cmpint(disk_write(&d, b, 0), ==, 512);
    fail_one_flush(leaf, &d, a);
    uint64_t later = disk_open(&d, O_RDWR);
    g_assert_cmpint(disk_fsync(&d, a), ==, 0);
    g_assert_cmpint(disk_fsync(&d, later), ==, 0);
    g_assert_cmpint(disk_write(&d, later, 0), ==, 512);
    g_assert_cmpint(disk_fsync(&d, later), ==, 0);
    g_assert_cmpint(disk_fsync(&d, b), ==, -ENOSPC); /* though its own flush went well */
    g_assert_cmpint(disk_fsync(&d, b), ==, 0);
    g_assert_cmpint(disk_fsync(&d, synced), ==, 0);
    g_assert_cmpint(disk_fsync(&d, idle), ==, 0);
    g_assert_cmpint(disk_fsync(&d, reader), ==, 0);
    /* And the next failure is one more. */
    g_assert_cmpint(disk_write(&d, b, 0), ==, 512);
    g_assert_cmpint(disk_write(&d, a, 0), ==, 512);
    fail_one_flush(leaf, &d, b);
    g_assert_cmpint(disk_fsync(&d, a), ==, -ENOSPC);
    g_assert_cmpint(disk_fsync(&d, a), ==, 0);
    disk_close(&d);
}

/* A slot of the table of files keeps nothing for its next user. */
static void coroutine_fn test_reopened(TestEnv *env)
{
    BlockNode *leaf;
    Disk d = error_mount(env, &leaf);
    uint64_t a = disk_open(&d, O_RDWR), b = disk_open(&d, O_RDWR);
    g_assert_cmpint(disk_write(&d, a, 0), ==, 512);
    g_assert_cmpint(disk_write(&d, b, 0), ==, 512);
    fail_one_flush(leaf, &d, a);
    g_assert_cmpint(kernel_release(d.k, d.nodeid, b), ==, 0);
    b = disk_open(&d, O_RDWR);
    g_assert_cmpint(disk_fsync(&d, b), ==, 0);
    disk_close(&d);
}

static int coroutine_fn change_by_fallocate(Disk *d, uint64_t fh)
{
    struct fuse_fallocate_in arg = {.fh = fh, .length = 4096, .mode = FALLOC_FL_ZERO_RANGE};
    return kernel_call(d->k, FUSE_FALLOCATE, d->nodeid, &arg, sizeof arg, NULL, 0);
}

static int coroutine_fn change_by_ftruncate(Disk *d, uint64_t fh)
{
    struct fuse_setattr_in arg = {.valid = FATTR_SIZE | FATTR_FH, .fh = fh, .size = SIZE / 2};
    return kernel_call(d->k, FUSE_SETATTR, d->nodeid, &arg, sizeof arg, NULL, 0);
}

static int coroutine_fn change_by_copy(Disk *d, uint64_t fh)
{
    struct fuse_copy_file_range_in arg = {
        .fh_in = fh, .off_in = 0, .nodeid_out = d->nodeid, .fh_out = fh, .off_out = 4096, .len = 512};
    return kernel_call(d->k, FUSE_COPY_FILE_RANGE, d->nodeid, &arg, sizeof arg, NULL, 0);
}

static void coroutine_fn test_changes(TestEnv *env)
{
    static int coroutine_fn (*const change[])(Disk *, uint64_t) = {change_by_fallocate, change_by_ftruncate,
                                                                   change_by_copy};
    BlockNode *leaf;
    Disk d = error_mount(env, &leaf);
    uint64_t a = disk_open(&d, O_RDWR), b = disk_open(&d, O_RDWR);
    for (unsigned i = 0; i < G_N_ELEMENTS(change); i++) {
        g_assert_cmpint(change[i](&d, b), ==, 0);
        g_assert_cmpint(disk_write(&d, a, 0), ==, 512);
        fail_one_flush(leaf, &d, a);
        g_assert_cmpint(disk_fsync(&d, b), ==, -ENOSPC);
        g_assert_cmpint(disk_fsync(&d, b), ==, 0);
    }
    disk_close(&d);
}

/* The kernel guesses the file of what it writes back for mappings: every writer may be meant. */
static void coroutine_fn test_mapped(TestEnv *env)
{
    BlockNode *leaf;
    Disk d = error_mount(env, &leaf);
    uint64_t a = disk_open(&d, O_RDWR), b = disk_open(&d, O_RDWR), reader = disk_open(&d, O_RDONLY);
    uint8_t data[512] = {1};
    struct fuse_write_in arg = {.fh = a, .size = sizeof data, .write_flags = FUSE_WRITE_CACHE};
    KernelReply reply =
        kernel_wait(d.k, kernel_send(d.k, FUSE_WRITE, d.nodeid, &arg, sizeof arg, data, sizeof data));
    g_assert_cmpint(reply.error, ==, 0);
    kernel_reply_clear(&reply);
    fail_one_flush(leaf, &d, a);
    g_assert_cmpint(disk_fsync(&d, b), ==, -ENOSPC);
    g_assert_cmpint(disk_fsync(&d, b), ==, 0);
    g_assert_cmpint(disk_fsync(&d, reader), ==, 0);
    disk_close(&d);
}

/* A write with O_DSYNC tells of its own flush; an fsync of that file does not again. */
static void coroutine_fn test_synchronous(TestEnv *env)
{
    BlockNode *leaf;
    Disk d = error_mount(env, &leaf);
    uint64_t a = disk_open(&d, O_RDWR), b = disk_open(&d, O_RDWR);
    g_assert_cmpint(disk_write(&d, a, 0), ==, 512);
    g_assert_cmpint(disk_write(&d, b, 0), ==, 512);
    test_mem_fail(leaf, BLOCK_OP_FLUSH, EIO);
    g_assert_cmpint(disk_write(&d, a, O_DSYNC), ==, -EIO);
    test_mem_fail(leaf, BLOCK_OP_FLUSH, 0);
    g_assert_cmpint(disk_fsync(&d, a), ==, 0);
    g_assert_cmpint(disk_fsync(&d, b), ==, -EIO);
    /* A write that failed by itself takes nothing away of what a flush has to tell. */
    g_assert_cmpint(disk_write(&d, a, 0), ==, 512);
    g_assert_cmpint(disk_write(&d, b, 0), ==, 512);
    fail_one_flush(leaf, &d, b);
    test_mem_fail(leaf, BLOCK_OP_WRITE, EIO);
    g_assert_cmpint(disk_write(&d, a, O_DSYNC), ==, -EIO);
    test_mem_fail(leaf, BLOCK_OP_WRITE, 0);
    g_assert_cmpint(disk_fsync(&d, a), ==, -ENOSPC);
    disk_close(&d);
}

static void coroutine_fn check_last_error(Disk *d)
{
    struct {
        struct fuse_getxattr_in arg;
        char name[27];
    } in = {.arg = {.size = 4096}, .name = "user.blockgraph.last-error"};
    KernelReply reply = kernel_wait(
        d->k, kernel_send(d->k, FUSE_GETXATTR, d->nodeid, &in.arg, sizeof in.arg, in.name, sizeof in.name));
    g_assert_cmpint(reply.error, ==, 0);
    g_assert_nonnull(g_strstr_len((char *)reply.body, (gssize)reply.size, "leaf flush ENOSPC"));
    kernel_reply_clear(&reply);
}

/* Whoever asked for the flush that failed: other users of the leaf, syncfs, fsync of the directory. */
static void coroutine_fn test_by_others(TestEnv *env)
{
    BlockNode *leaf;
    Disk d = error_mount(env, &leaf);
    uint64_t a = disk_open(&d, O_RDWR);
    BlockBackend *other = block_backend_new(env->graph, "other", BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL);
    g_assert_cmpint(block_backend_insert(other, leaf, NULL), ==, 0);
    for (unsigned i = 0; i < 3; i++) {
        g_assert_cmpint(disk_write(&d, a, 0), ==, 512);
        test_mem_fail(leaf, BLOCK_OP_FLUSH, ENOSPC);
        int ret = i == 0 ? block_backend_co_flush(other) : i == 1 ? sync_all(&d) : sync_directory(&d);
        g_assert_cmpint(ret, ==, -ENOSPC);
        test_mem_fail(leaf, BLOCK_OP_FLUSH, 0);
        g_assert_cmpint(disk_fsync(&d, a), ==, -ENOSPC);
        g_assert_cmpint(disk_fsync(&d, a), ==, 0);
        check_last_error(&d); /* it stays there */
    }
    block_backend_co_free(other);
    disk_close(&d);
}

/* Many flushes at once that share a failing run, or come after it: one error a file. */
static void coroutine_fn test_many(TestEnv *env)
{
    enum { FILES = 20 };
    BlockNode *leaf;
    Disk d = error_mount(env, &leaf);
    uint64_t fh[FILES], sent[FILES];
    for (unsigned i = 0; i < FILES; i++) {
        fh[i] = disk_open(&d, O_RDWR);
        g_assert_cmpint(disk_write(&d, fh[i], 0), ==, 512);
    }
    test_mem_hold(leaf, BLOCK_OP_FLUSH, -1);
    test_mem_fail(leaf, BLOCK_OP_FLUSH, EIO);
    for (unsigned i = 0; i < FILES / 2; i++) {
        struct fuse_fsync_in arg = {.fh = fh[i]};
        sent[i] = kernel_send(d.k, FUSE_FSYNC, d.nodeid, &arg, sizeof arg, NULL, 0);
    }
    test_wait(test_mem_waiting(leaf) == 1);
    test_mem_release(leaf, BLOCK_OP_FLUSH, -1);
    for (unsigned i = 0; i < FILES / 2; i++) {
        KernelReply reply = kernel_wait(d.k, sent[i]);
        g_assert_cmpint(reply.error, ==, -EIO);
        kernel_reply_clear(&reply);
    }
    test_mem_fail(leaf, BLOCK_OP_FLUSH, 0);
    for (unsigned i = 0; i < FILES; i++) {
        g_assert_cmpint(disk_fsync(&d, fh[i]), ==, i < FILES / 2 ? 0 : -EIO);
        g_assert_cmpint(disk_fsync(&d, fh[i]), ==, 0);
    }
    disk_close(&d);
}

static void register_tests(void)
{
    block_driver_register_for_test(&watch_driver);
    test_add_co("sync/order-raw", test_order_raw);
    test_add_co("sync/order-qcow2", test_order_qcow2);
    test_add_co("sync/error-once", test_once);
    test_add_co("sync/error-reopened", test_reopened);
    test_add_co("sync/error-of-changes", test_changes);
    test_add_co("sync/error-of-mappings", test_mapped);
    test_add_co("sync/error-of-synchronous-writes", test_synchronous);
    test_add_co("sync/error-by-others", test_by_others);
    test_add_co("sync/error-of-many", test_many);
}

int main(int argc, char **argv)
{
    return driver_test_main(argc, argv, register_tests);
}
