/*
 * Tests of the front end as the kernel sees it: requests in, replies out.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <unistd.h>

#include "fuse/ops.h"
#include "tests/unit/fuse-fixture.h"

#define SIZE 65536

/* A mount with one writable export "disk" on a recording leaf, looked up and open. */
typedef struct Disk {
    TestEnv *env;
    BlockNode *leaf;
    FuseExport *exp;
    Kernel *k;
    uint64_t nodeid, fh;
} Disk;

static Disk coroutine_fn disk_open(TestEnv *env)
{
    int err;
    Disk d = {.env = env};
    d.leaf = test_open(env, "{'driver':'test-mem','node-name':'leaf','size':%d}", SIZE);
    d.exp = test_export(env, d.leaf, "disk", false);
    d.k = kernel_mount(env, &d.exp, 1);
    d.nodeid = kernel_lookup(d.k, FUSE_ROOT_ID, "disk", &err);
    g_assert_cmpint(err, ==, 0);
    g_assert_cmpint(kernel_open(d.k, d.nodeid, O_RDWR, &d.fh), ==, 0);
    return d;
}

static void coroutine_fn disk_close(Disk *d)
{
    g_assert_cmpint(kernel_unmount(d->k), ==, 0);
    fuse_export_co_free(d->exp);
    test_delete(d->env, d->leaf);
}

static int coroutine_fn disk_read(Disk *d, uint64_t offset, uint32_t size, void *buf)
{
    return kernel_read(d->k, d->nodeid, d->fh, offset, size, buf);
}

static int coroutine_fn disk_write(Disk *d, uint64_t offset, uint32_t size, const void *data, uint32_t flags)
{
    return kernel_write(d->k, d->nodeid, d->fh, offset, size, data, flags);
}

/* ---- protocol/read-write */

static void coroutine_fn test_read_write(TestEnv *env)
{
    Disk d = disk_open(env);
    uint8_t data[5000], got[5000];
    test_fill(data, sizeof data, 1);
    g_assert_cmpint(disk_write(&d, 1234, sizeof data, data, 0), ==, sizeof data);
    g_assert_cmpint(disk_read(&d, 1234, sizeof got, got), ==, sizeof got);
    test_assert_mem("read back", got, data, sizeof data);
    test_assert_mem("on the leaf", test_mem(d.leaf)->data + 1234, data, sizeof data);
    g_assert_cmpint(disk_read(&d, 0, 0, NULL), ==, 0);
    g_assert_cmpint(disk_write(&d, 0, 0, "", 0), ==, 0);
    g_assert_cmpint(kernel_release(d.k, d.nodeid, d.fh), ==, 0);
    g_assert_cmpint(kernel_release(d.k, d.nodeid, d.fh), ==, -EBADF);
    g_assert_cmpint(disk_read(&d, 0, 1, NULL), ==, -EBADF);
    disk_close(&d);
}

/* ---- protocol/ends */

static void coroutine_fn test_ends(TestEnv *env)
{
    Disk d = disk_open(env);
    uint8_t data[1000] = {0};
    g_assert_cmpint(disk_read(&d, SIZE - 100, 1000, NULL), ==, 100);
    g_assert_cmpint(disk_read(&d, SIZE, 1000, NULL), ==, 0);
    g_assert_cmpint(disk_read(&d, INT64_MAX, 1000, NULL), ==, 0);
    g_assert_cmpint(disk_read(&d, UINT64_MAX, 1000, NULL), ==, 0);
    g_assert_cmpint(disk_write(&d, SIZE - 100, 1000, data, 0), ==, 100);
    g_assert_cmpint(disk_write(&d, SIZE, 1000, data, 0), ==, -ENOSPC);
    g_assert_cmpint(disk_write(&d, INT64_MAX - 10, 1000, data, 0), ==, -EFBIG);
    g_assert_cmpint(disk_write(&d, UINT64_MAX - 10, 1000, data, 0), ==, -EFBIG);
    disk_close(&d);
}

/* ---- protocol/malformed: each gets its error, and the next request is served */

static void coroutine_fn test_malformed(TestEnv *env)
{
    Disk d = disk_open(env);
    struct fuse_read_in read = {.fh = d.fh, .size = FUSE_PAYLOAD_SIZE + 1};
    struct fuse_write_in write = {.fh = d.fh, .size = 8};
    struct fuse_in_header in = {.len = 999, .opcode = FUSE_READ, .unique = 99999, .nodeid = d.nodeid};
    g_assert_cmpint(kernel_call(d.k, FUSE_READ, d.nodeid, &read, sizeof read, NULL, 0), ==, -EINVAL);
    g_assert_cmpint(kernel_call(d.k, FUSE_READ, d.nodeid, &read, sizeof read - 1, NULL, 0), ==, -EINVAL);
    g_assert_cmpint(kernel_call(d.k, FUSE_WRITE, d.nodeid, &write, sizeof write, NULL, 0), ==, -EINVAL);
    g_assert_cmpint(kernel_call(d.k, FUSE_LOOKUP, FUSE_ROOT_ID, "disk", 4, NULL, 0), ==, -EINVAL);
    g_assert_cmpint(kernel_call(d.k, 4711, FUSE_ROOT_ID, NULL, 0, NULL, 0), ==, -ENOSYS);
    g_assert_cmpint(kernel_call(d.k, FUSE_INIT, 0, &read, sizeof read, NULL, 0), ==, -EPROTO);
    kernel_send_raw(d.k, &in, sizeof in); /* len does not fit: no reply can be due */
    kernel_send_raw(d.k, "short", 5);
    g_assert_cmpint(disk_read(&d, 0, 512, NULL), ==, 512);
    g_assert_false(kernel_has_reply(d.k, in.unique));
    disk_close(&d);
}

/* ---- protocol/unknown-ids */

static void coroutine_fn test_unknown_ids(TestEnv *env)
{
    Disk d = disk_open(env);
    struct fuse_getattr_in getattr = {.fh = 0};
    uint64_t fh;
    int err;
    g_assert_cmpint(kernel_read(d.k, d.nodeid, d.fh + 1, 0, 512, NULL), ==, -EBADF);
    g_assert_cmpint(kernel_read(d.k, d.nodeid + 1, d.fh, 0, 512, NULL), ==, -EBADF);
    g_assert_cmpint(kernel_read(d.k, d.nodeid, UINT64_MAX, 0, 512, NULL), ==, -EBADF);
    g_assert_cmpint(kernel_call(d.k, FUSE_GETATTR, 9999, &getattr, sizeof getattr, NULL, 0), ==, -ESTALE);
    g_assert_cmpint(kernel_open(d.k, 9999, O_RDONLY, &fh), ==, -ESTALE);
    g_assert_cmpint(kernel_open(d.k, FUSE_ROOT_ID, O_RDONLY, &fh), ==, -EISDIR);
    g_assert_cmpint(kernel_open(d.k, d.nodeid, O_DIRECTORY, &fh), ==, -ENOTDIR);
    kernel_lookup(d.k, FUSE_ROOT_ID, "nothing", &err);
    g_assert_cmpint(err, ==, -ENOENT);
    kernel_lookup(d.k, d.nodeid, "below-a-file", &err);
    g_assert_cmpint(err, ==, -ENOTDIR);
    g_autofree char *long_name = g_strnfill(256, 'n');
    kernel_lookup(d.k, FUSE_ROOT_ID, long_name, &err);
    g_assert_cmpint(err, ==, -ENAMETOOLONG);
    disk_close(&d);
}

/* ---- protocol/sync */

static void coroutine_fn test_sync(TestEnv *env)
{
    Disk d = disk_open(env);
    struct fuse_fsync_in fsync = {.fh = d.fh};
    uint8_t data[512] = {1};
    g_array_unref(test_mem_take_record(d.leaf));
    g_assert_cmpint(disk_write(&d, 0, sizeof data, data, 0), ==, sizeof data);
    g_assert_cmpuint(test_calls(d.leaf, BLOCK_OP_FLUSH), ==, 0);
    g_assert_cmpint(kernel_call(d.k, FUSE_FSYNC, d.nodeid, &fsync, sizeof fsync, NULL, 0), ==, 0);
    g_assert_cmpint(disk_write(&d, 512, sizeof data, data, O_DSYNC), ==, sizeof data);
    g_autofree char *record = test_mem_record_text(d.leaf);
    g_assert_cmpstr(record, ==, "write 0+512, flush, write 512+512, flush");
    test_mem_fail(d.leaf, BLOCK_OP_FLUSH, EIO);
    g_assert_cmpint(disk_write(&d, 0, sizeof data, data, 0), ==, sizeof data);
    g_assert_cmpint(kernel_call(d.k, FUSE_FSYNC, d.nodeid, &fsync, sizeof fsync, NULL, 0), ==, -EIO);
    test_mem_fail(d.leaf, BLOCK_OP_FLUSH, 0);
    disk_close(&d);
}

/* ---- protocol/errors: what the leaf says reaches the caller as itself */

static void coroutine_fn test_errors(TestEnv *env)
{
    Disk d = disk_open(env);
    const int errors[] = {EIO, ENOSPC, EDQUOT, ENOMEM};
    uint8_t data[512] = {1};
    for (unsigned i = 0; i < G_N_ELEMENTS(errors); i++) {
        test_mem_fail(d.leaf, BLOCK_OP_WRITE, errors[i]);
        test_mem_fail(d.leaf, BLOCK_OP_READ, errors[i]);
        g_assert_cmpint(disk_write(&d, 0, sizeof data, data, 0), ==, -errors[i]);
        g_assert_cmpint(disk_read(&d, 0, 512, NULL), ==, -errors[i]);
    }
    test_mem_fail(d.leaf, BLOCK_OP_WRITE, 0);
    test_mem_fail(d.leaf, BLOCK_OP_READ, 0);
    g_assert_cmpint(disk_read(&d, 0, 512, NULL), ==, 512);
    disk_close(&d);
}

/* ---- protocol/fallocate */

static int coroutine_fn disk_fallocate(Disk *d, uint32_t mode, uint64_t offset, uint64_t length)
{
    struct fuse_fallocate_in arg = {.fh = d->fh, .offset = offset, .length = length, .mode = mode};
    return kernel_call(d->k, FUSE_FALLOCATE, d->nodeid, &arg, sizeof arg, NULL, 0);
}

static void coroutine_fn test_fallocate(TestEnv *env)
{
    Disk d = disk_open(env);
    const uint32_t punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    uint8_t data[4096], zeroes[1024] = {0};
    test_fill(data, sizeof data, 3);
    g_assert_cmpint(disk_write(&d, 0, sizeof data, data, 0), ==, sizeof data);
    g_assert_cmpint(disk_fallocate(&d, punch, 1024, 1024), ==, 0);
    g_assert_cmpint(disk_fallocate(&d, FALLOC_FL_ZERO_RANGE, 3072, 1024), ==, 0);
    test_assert_mem("before the hole", test_mem(d.leaf)->data, data, 1024);
    test_assert_mem("the hole", test_mem(d.leaf)->data + 1024, zeroes, 1024);
    test_assert_mem("behind the hole", test_mem(d.leaf)->data + 2048, data + 2048, 1024);
    test_assert_mem("zeroed", test_mem(d.leaf)->data + 3072, zeroes, 1024);
    g_assert_cmpint(disk_fallocate(&d, punch, SIZE - 512, 4096), ==, 0); /* cut at the end */
    g_assert_cmpint(disk_fallocate(&d, punch, SIZE, 4096), ==, 0);
    g_assert_cmpint(disk_fallocate(&d, 0, SIZE - 512, 4096), ==, -ENOSPC);
    g_assert_cmpint(disk_fallocate(&d, FALLOC_FL_KEEP_SIZE, SIZE, 4096), ==, -ENOSPC);
    g_assert_cmpint(disk_fallocate(&d, FALLOC_FL_ZERO_RANGE, SIZE, 4096), ==, -ENOSPC);
    g_assert_cmpint(disk_fallocate(&d, FALLOC_FL_COLLAPSE_RANGE, 0, 4096), ==, -EOPNOTSUPP);
    g_assert_cmpint(disk_fallocate(&d, FALLOC_FL_PUNCH_HOLE, 0, 4096), ==, -EOPNOTSUPP);
    g_assert_cmpint(disk_fallocate(&d, punch, 0, 0), ==, -EINVAL);
    g_assert_cmpint(disk_fallocate(&d, punch, INT64_MAX, 4096), ==, -EFBIG);
    g_assert_cmpint(disk_fallocate(&d, punch, 4096, UINT64_MAX), ==, -EFBIG);
    g_assert_cmpint(block_node_length(d.leaf), ==, SIZE);
    disk_close(&d);
}

/* ---- protocol/copy */

static void coroutine_fn test_copy(TestEnv *env)
{
    Disk d = disk_open(env);
    struct fuse_copy_file_range_in arg = {
        .fh_in = d.fh, .nodeid_out = d.nodeid, .fh_out = d.fh, .off_out = 8192, .len = 4096};
    struct fuse_write_out out;
    uint8_t data[4096];
    test_fill(data, sizeof data, 4);
    g_assert_cmpint(disk_write(&d, 0, sizeof data, data, 0), ==, sizeof data);
    g_assert_cmpint(kernel_call(d.k, FUSE_COPY_FILE_RANGE, d.nodeid, &arg, sizeof arg, &out, sizeof out), ==,
                    0);
    g_assert_cmpuint(out.size, ==, 4096);
    test_assert_mem("the copy", test_mem(d.leaf)->data + 8192, data, sizeof data);
    arg.off_in = SIZE; /* nothing left to copy */
    g_assert_cmpint(kernel_call(d.k, FUSE_COPY_FILE_RANGE, d.nodeid, &arg, sizeof arg, &out, sizeof out), ==,
                    0);
    g_assert_cmpuint(out.size, ==, 0);
    arg.off_in = 0;
    arg.off_out = SIZE;
    g_assert_cmpint(kernel_call(d.k, FUSE_COPY_FILE_RANGE, d.nodeid, &arg, sizeof arg, NULL, 0), ==, -ENOSPC);
    arg.fh_out++;
    g_assert_cmpint(kernel_call(d.k, FUSE_COPY_FILE_RANGE, d.nodeid, &arg, sizeof arg, NULL, 0), ==, -EBADF);
    arg.flags = 1;
    g_assert_cmpint(kernel_call(d.k, FUSE_COPY_FILE_RANGE, d.nodeid, &arg, sizeof arg, NULL, 0), ==, -EINVAL);
    disk_close(&d);
}

/* ---- protocol/directory: what is listed, and what is only found */

static char *coroutine_fn list_names(Kernel *k, uint64_t nodeid, bool plus)
{
    GString *names = g_string_new(NULL);
    uint64_t fh, offset = 0;
    size_t skip = plus ? sizeof(struct fuse_entry_out) : 0;
    g_assert_cmpint(kernel_open(k, nodeid, O_DIRECTORY, &fh), ==, 0);
    for (;;) {
        struct fuse_read_in arg = {.fh = fh, .offset = offset, .size = 512};
        uint64_t unique =
            kernel_send(k, plus ? FUSE_READDIRPLUS : FUSE_READDIR, nodeid, &arg, sizeof arg, NULL, 0);
        KernelReply reply = kernel_wait(k, unique);
        g_assert_cmpint(reply.error, ==, 0);
        for (size_t at = 0; at < reply.size;) {
            const struct fuse_dirent *e = (const void *)(reply.body + at + skip);
            g_string_append_printf(names, "%.*s ", (int)e->namelen, e->name);
            offset = e->off;
            at += skip + FUSE_DIRENT_SIZE(e);
            if (skip && at % 8) {
                at += 8 - at % 8;
            }
        }
        size_t size = reply.size;
        kernel_reply_clear(&reply);
        if (size == 0) {
            return g_string_free(names, FALSE);
        }
    }
}

static void check_names(Kernel *k, uint64_t nodeid, const char *want)
{
    for (unsigned plus = 0; plus < 2; plus++) {
        g_autofree char *names = list_names(k, nodeid, plus);
        g_assert_cmpstr(names, ==, want);
    }
}

static void coroutine_fn test_directory(TestEnv *env)
{
    Disk d = disk_open(env);
    int err;
    check_names(d.k, FUSE_ROOT_ID, ". .. disk ");
    uint64_t graph = kernel_lookup(d.k, FUSE_ROOT_ID, ".graph", &err);
    check_names(d.k, graph, ". .. graph.txt graph.dot graph.json metrics errors nodes ");
    uint64_t nodes = kernel_lookup(d.k, graph, "nodes", &err);
    check_names(d.k, nodes, ". .. leaf ");
    uint64_t leaf = kernel_lookup(d.k, nodes, "leaf", &err);
    check_names(d.k, leaf, ". .. data options.json stats.json children ");
    kernel_lookup(d.k, nodes, "none", &err);
    g_assert_cmpint(err, ==, -ENOENT);
    uint64_t snap = kernel_lookup(d.k, FUSE_ROOT_ID, ".snap", &err);
    check_names(d.k, snap, ". .. ");
    disk_close(&d);
}

/* ---- protocol/node-data */

static void coroutine_fn test_node_data(TestEnv *env)
{
    Disk d = disk_open(env);
    uint8_t data[512], got[512];
    uint64_t fh;
    int err;
    test_fill(data, sizeof data, 9);
    g_assert_cmpint(disk_write(&d, 4096, sizeof data, data, 0), ==, sizeof data);
    uint64_t id = kernel_lookup(d.k, FUSE_ROOT_ID, ".graph", &err);
    id = kernel_lookup(d.k, id, "nodes", &err);
    id = kernel_lookup(d.k, id, "leaf", &err);
    id = kernel_lookup(d.k, id, "data", &err);
    g_assert_cmpint(kernel_open(d.k, id, O_RDWR, &fh), ==, -EROFS);
    g_assert_cmpint(kernel_open(d.k, id, O_RDONLY, &fh), ==, 0);
    g_assert_cmpint(kernel_read(d.k, id, fh, 4096, 512, got), ==, 512);
    test_assert_mem("through .graph", got, data, sizeof data);
    g_assert_cmpint(kernel_write(d.k, id, fh, 0, 512, data, 0), ==, -EBADF);
    g_assert_cmpuint(block_graph_backends(env->graph)->len, ==, 2);
    g_assert_cmpint(kernel_release(d.k, id, fh), ==, 0);
    g_assert_cmpuint(block_graph_backends(env->graph)->len, ==, 1);
    g_assert_cmpint(kernel_open(d.k, id, O_RDONLY, &fh), ==, 0); /* left open: the stop closes it */
    disk_close(&d);
}

/* ---- protocol/snapshot-refused */

static void coroutine_fn test_snapshot_refused(TestEnv *env)
{
    Disk d = disk_open(env);
    char arg[sizeof(struct fuse_mkdir_in) + 6] = {0};
    int err;
    memcpy(arg + sizeof(struct fuse_mkdir_in), "snap1", 6);
    uint64_t snap = kernel_lookup(d.k, FUSE_ROOT_ID, ".snap", &err);
    g_assert_cmpint(kernel_call(d.k, FUSE_MKDIR, snap, arg, sizeof arg, NULL, 0), ==, -EOPNOTSUPP);
    g_autofree char *errors = block_graph_errors_text(env->graph);
    g_assert_nonnull(strstr(errors, "snap1"));
    g_assert_nonnull(strstr(errors, "EOPNOTSUPP"));
    g_assert_cmpint(kernel_call(d.k, FUSE_MKDIR, FUSE_ROOT_ID, arg, sizeof arg, NULL, 0), ==, -EPERM);
    g_assert_cmpint(kernel_call(d.k, FUSE_UNLINK, FUSE_ROOT_ID, "disk", 5, NULL, 0), ==, -EPERM);
    uint64_t graph = kernel_lookup(d.k, FUSE_ROOT_ID, ".graph", &err);
    g_assert_cmpint(kernel_call(d.k, FUSE_MKDIR, graph, arg, sizeof arg, NULL, 0), ==, -EROFS);
    disk_close(&d);
}

/* ---- protocol/forget */

static void coroutine_fn test_forget(TestEnv *env)
{
    Disk d = disk_open(env);
    unsigned before = fuse_inode_table_size(&d.k->mount->inodes);
    int err;
    uint64_t id = kernel_lookup(d.k, FUSE_ROOT_ID, ".graph", &err);
    uint64_t nodes = kernel_lookup(d.k, id, "nodes", &err);
    struct {
        struct fuse_batch_forget_in arg;
        struct fuse_forget_one one[3];
    } batch = {.arg.count = 3};
    for (unsigned i = 0; i < 3; i++) {
        uint64_t leaf = kernel_lookup(d.k, nodes, "leaf", &err);
        batch.one[i] = (struct fuse_forget_one){.nodeid = leaf, .nlookup = 1};
    }
    g_assert_cmpuint(fuse_inode_table_size(&d.k->mount->inodes), ==, before + 1);
    batch.arg.count = UINT32_MAX; /* more than there are: those that are there count */
    kernel_send(d.k, FUSE_BATCH_FORGET, 0, &batch, sizeof batch, NULL, 0);
    struct fuse_forget_in forget = {.nlookup = 12345}; /* more than the kernel has */
    kernel_send(d.k, FUSE_FORGET, d.nodeid, &forget, sizeof forget, NULL, 0);
    kernel_send(d.k, FUSE_FORGET, 99999, &forget, sizeof forget, NULL, 0);
    g_assert_cmpint(disk_read(&d, 0, 512, NULL), ==, 512);
    g_assert_cmpuint(fuse_inode_table_size(&d.k->mount->inodes), ==, before);
    disk_close(&d);
}

/* ---- protocol/statfs: of a file that grows, half of it a hole, whenever it is asked for its size */

static int coroutine_fn growing_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    atomic_store(&node->length, SIZE);
    return 0;
}

static int64_t coroutine_fn growing_get_allocated(BlockNode *node)
{
    int64_t length = atomic_fetch_add(&node->length, 4 * SIZE);
    atomic_fetch_add(&node->last_write_ns, 1);
    return length / 2;
}

static const BlockDriver growing_driver = {
    .name = "test-growing",
    .instance_size = 1,
    .co_open = growing_open,
    .co_get_allocated = growing_get_allocated,
};

static void coroutine_fn test_statfs(TestEnv *env)
{
    BlockNode *node = test_open(env, "{'driver':'test-growing','node-name':'n'}");
    FuseExport *exp = test_export(env, node, "disk", true);
    Kernel *k = kernel_mount(env, &exp, 1);
    for (unsigned i = 0; i < 10; i++) {
        struct fuse_statfs_out out;
        g_assert_cmpint(kernel_call(k, FUSE_STATFS, FUSE_ROOT_ID, NULL, 0, &out, sizeof out), ==, 0);
        uint64_t length = block_node_length(node);
        g_assert_cmpuint(out.st.bfree, <=, out.st.blocks);
        g_assert_cmpuint(out.st.bavail, ==, out.st.bfree);
        g_assert_cmpuint(out.st.blocks * out.st.frsize, ==, length);
        g_assert_cmpuint(out.st.bfree * out.st.frsize, >=, length / 2);
    }
    g_assert_cmpint(kernel_unmount(k), ==, 0);
    fuse_export_co_free(exp);
    test_delete(env, node);
}

/* ---- protocol/random: every opcode with random arguments; each gets one reply and no more */

static void coroutine_fn test_random(TestEnv *env)
{
    Disk d = disk_open(env);
    for (unsigned round = 0; round < 5000; round++) {
        uint64_t arg[24];
        uint32_t opcode = (uint32_t)g_test_rand_int_range(1, 56);
        uint64_t nodeid = g_test_rand_bit() ? d.nodeid : (uint64_t)g_test_rand_int_range(0, 20);
        for (unsigned i = 0; i < G_N_ELEMENTS(arg); i++) {
            arg[i] = g_test_rand_bit() ? (uint64_t)g_test_rand_int() << (g_test_rand_bit() ? 32 : 0)
                                       : (uint64_t)g_test_rand_int_range(0, 4096);
        }
        if (g_test_rand_bit()) {
            arg[0] = d.fh;
        }
        size_t size = (size_t)g_test_rand_int_range(0, sizeof arg);
        const FuseOp *op = fuse_op_find(opcode);
        if (opcode == FUSE_RELEASE || opcode == FUSE_RELEASEDIR || (op && op->no_reply)) {
            continue; /* would take the ground away; their own tests have them */
        }
        KernelReply reply = kernel_wait(d.k, kernel_send(d.k, opcode, nodeid, arg, size, NULL, 0));
        kernel_reply_clear(&reply);
    }
    g_assert_cmpint(disk_read(&d, 0, 512, NULL), >=, 0); /* a SETATTR may have shortened it */
    disk_close(&d);
}

static void register_tests(void)
{
    block_driver_register_for_test(&growing_driver);
    test_add_co("protocol/read-write", test_read_write);
    test_add_co("protocol/ends", test_ends);
    test_add_co("protocol/malformed", test_malformed);
    test_add_co("protocol/unknown-ids", test_unknown_ids);
    test_add_co("protocol/sync", test_sync);
    test_add_co("protocol/errors", test_errors);
    test_add_co("protocol/fallocate", test_fallocate);
    test_add_co("protocol/copy", test_copy);
    test_add_co("protocol/directory", test_directory);
    test_add_co("protocol/node-data", test_node_data);
    test_add_co("protocol/snapshot-refused", test_snapshot_refused);
    test_add_co("protocol/forget", test_forget);
    test_add_co("protocol/statfs", test_statfs);
    test_add_co("protocol/random", test_random);
}

int main(int argc, char **argv)
{
    return test_main(argc, argv, register_tests);
}
