/*
 * A mount without a kernel. See fuse-fixture.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "tests/unit/fuse-fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define REPLY_MAX (sizeof(struct fuse_out_header) + FUSE_PAYLOAD_SIZE)

static void on_closed(FuseMount *mount, void *opaque)
{
    Kernel *k = opaque;
    g_assert_true(bg_is_main_thread());
    g_assert_false(fuse_mount_is_alive(mount));
    k->closed++;
}

static void free_reply(gpointer p)
{
    kernel_reply_clear(p);
    g_free(p);
}

Kernel *kernel_mount(TestEnv *env, FuseExport *const *exports, unsigned n)
{
    Kernel *k = g_new0(Kernel, 1);
    AioContext *contexts[KERNEL_QUEUES];
    int fds[KERNEL_QUEUES];
    k->env = env;
    k->replies = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, free_reply);
    k->forgotten = g_string_new(NULL);
    k->order = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    for (unsigned i = 0; i < KERNEL_QUEUES; i++) {
        int pair[2];
        g_assert_cmpint(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), ==, 0);
        /* Room for all replies of a burst: the mount does not wait for the reader, nor does it with a kernel.
         */
        int room = 1024 * 1024;
        g_assert_cmpint(setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &room, sizeof room), ==, 0);
        k->fd[i] = pair[0];
        fds[i] = pair[1];
        contexts[i] = test_iothread(env, i);
    }
    FuseMountConfig config = {
        .contexts = contexts, .n_contexts = KERNEL_QUEUES, .closed = on_closed, .opaque = k};
    k->mount = fuse_mount_new_on_fds(env->graph, &config, fds);
    for (unsigned i = 0; i < n; i++) {
        g_assert_cmpint(fuse_mount_add_export(k->mount, exports[i], NULL), ==, 0);
    }
    g_assert_cmpint(fuse_mount_start(k->mount, NULL), ==, 0);
    return k;
}

int coroutine_fn kernel_unmount(Kernel *k)
{
    int ret = fuse_mount_co_stop(k->mount);
    g_assert_cmpint(fuse_mount_co_stop(k->mount), ==, 0); /* a second time does nothing */
    fuse_mount_free(k->mount);
    for (unsigned i = 0; i < KERNEL_QUEUES; i++) {
        if (k->fd[i] >= 0) {
            close(k->fd[i]);
        }
    }
    g_hash_table_destroy(k->replies);
    g_array_unref(k->order);
    g_string_free(k->forgotten, TRUE);
    g_free(k);
    return ret;
}

/* ---- Requests and replies */

static void send_all(Kernel *k, unsigned queue, struct iovec *iov, int niov)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)niov};
    int64_t deadline = aio_clock_ns() + 60 * INT64_C(1000000000);
    while (sendmsg(k->fd[queue], &msg, MSG_NOSIGNAL) < 0) {
        g_assert_cmpint(errno, ==, EAGAIN);
        g_assert_cmpint(aio_clock_ns(), <, deadline);
        g_usleep(100); /* the queue's thread takes them out */
    }
}

uint64_t kernel_send_to(Kernel *k, unsigned queue, uint32_t opcode, uint64_t nodeid, const void *arg,
                        size_t arg_size, const void *data, size_t data_size)
{
    struct fuse_in_header in = {.len = (uint32_t)(sizeof in + arg_size + data_size),
                                .opcode = opcode,
                                .unique = k->unique += 2,
                                .nodeid = nodeid,
                                .pid = 1};
    struct iovec iov[] = {{&in, sizeof in}, {(void *)arg, arg_size}, {(void *)data, data_size}};
    send_all(k, queue, iov, G_N_ELEMENTS(iov));
    return in.unique;
}

uint64_t kernel_send(Kernel *k, uint32_t opcode, uint64_t nodeid, const void *arg, size_t arg_size,
                     const void *data, size_t data_size)
{
    return kernel_send_to(k, 0, opcode, nodeid, arg, arg_size, data, data_size);
}

void kernel_send_raw(Kernel *k, const void *buf, size_t size)
{
    struct iovec iov = {(void *)buf, size};
    send_all(k, 0, &iov, 1);
}

/* A message that answers no request: "forget this name". */
static void take_notice(Kernel *k, const struct fuse_out_header *out, size_t size)
{
    const struct fuse_notify_inval_entry_out *entry = (const void *)(out + 1);
    const char *name = (const char *)(entry + 1);
    g_assert_cmpint(out->error, ==, FUSE_NOTIFY_INVAL_ENTRY);
    g_assert_cmpuint(size, ==, sizeof *out + sizeof *entry + entry->namelen + 1);
    g_assert_cmpuint(entry->parent, ==, FUSE_ROOT_ID);
    g_assert_cmpuint(strlen(name), ==, entry->namelen);
    g_string_append_printf(k->forgotten, "%s ", name);
}

static void take_reply(Kernel *k, const uint8_t *buf, size_t size)
{
    const struct fuse_out_header *out = (const void *)buf;
    g_assert_cmpuint(size, >=, sizeof *out);
    g_assert_cmpuint(out->len, ==, size);
    if (out->unique == 0) {
        take_notice(k, out, size);
        return;
    }
    g_assert_cmpint(out->error, <=, 0);
    g_assert_cmpint(out->error, >, -512);
    g_assert_true(out->error == 0 || size == sizeof *out);
    KernelReply *reply = g_new(KernelReply, 1);
    *reply = (KernelReply){.error = out->error, .size = size - sizeof *out};
    reply->body = g_memdup2(buf + sizeof *out, reply->size);
    /* A second reply to the same request would replace the first. */
    bool is_new = g_hash_table_insert(k->replies, g_memdup2(&out->unique, sizeof out->unique), reply);
    g_assert_true(is_new);
    g_array_append_val(k->order, out->unique);
}

static void take_replies(Kernel *k)
{
    g_autofree uint8_t *buf = g_malloc(REPLY_MAX);
    for (unsigned i = 0; i < KERNEL_QUEUES; i++) {
        ssize_t n;
        while (k->fd[i] >= 0 && (n = recv(k->fd[i], buf, REPLY_MAX, MSG_DONTWAIT)) > 0) {
            take_reply(k, buf, (size_t)n);
        }
    }
}

bool kernel_has_reply(Kernel *k, uint64_t unique)
{
    take_replies(k);
    return g_hash_table_contains(k->replies, &unique);
}

KernelReply coroutine_fn kernel_wait(Kernel *k, uint64_t unique)
{
    gpointer key, reply;
    test_wait(kernel_has_reply(k, unique));
    g_hash_table_steal_extended(k->replies, &unique, &key, &reply);
    KernelReply ret = *(KernelReply *)reply;
    g_free(key);
    g_free(reply);
    return ret;
}

void kernel_reply_clear(KernelReply *reply)
{
    g_clear_pointer(&reply->body, g_free);
}

/* ---- Whole calls */

int coroutine_fn kernel_call(Kernel *k, uint32_t opcode, uint64_t nodeid, const void *arg, size_t arg_size,
                             void *out, size_t out_size)
{
    KernelReply reply = kernel_wait(k, kernel_send(k, opcode, nodeid, arg, arg_size, NULL, 0));
    if (reply.error == 0 && out_size) {
        g_assert_cmpuint(reply.size, >=, out_size);
        memcpy(out, reply.body, out_size);
    }
    kernel_reply_clear(&reply);
    return reply.error;
}

uint64_t coroutine_fn kernel_lookup(Kernel *k, uint64_t dir, const char *name, int *err)
{
    struct fuse_entry_out out = {.nodeid = 0};
    *err = kernel_call(k, FUSE_LOOKUP, dir, name, strlen(name) + 1, &out, sizeof out);
    g_assert_true(*err < 0 || out.nodeid == out.attr.ino);
    return out.nodeid;
}

int coroutine_fn kernel_open(Kernel *k, uint64_t nodeid, int flags, uint64_t *fh)
{
    struct fuse_open_in arg = {.flags = (uint32_t)flags};
    struct fuse_open_out out;
    uint32_t opcode = flags & O_DIRECTORY ? FUSE_OPENDIR : FUSE_OPEN;
    int ret = kernel_call(k, opcode, nodeid, &arg, sizeof arg, &out, sizeof out);
    if (ret == 0) {
        *fh = out.fh;
    }
    return ret;
}

int coroutine_fn kernel_release(Kernel *k, uint64_t nodeid, uint64_t fh)
{
    struct fuse_release_in arg = {.fh = fh};
    return kernel_call(k, FUSE_RELEASE, nodeid, &arg, sizeof arg, NULL, 0);
}

uint64_t kernel_send_read(Kernel *k, uint64_t nodeid, uint64_t fh, uint64_t offset, uint32_t size)
{
    struct fuse_read_in arg = {.fh = fh, .offset = offset, .size = size};
    return kernel_send(k, FUSE_READ, nodeid, &arg, sizeof arg, NULL, 0);
}

int coroutine_fn kernel_read(Kernel *k, uint64_t nodeid, uint64_t fh, uint64_t offset, uint32_t size,
                             void *buf)
{
    KernelReply reply = kernel_wait(k, kernel_send_read(k, nodeid, fh, offset, size));
    int ret = reply.error ? reply.error : (int)reply.size;
    if (ret > 0 && buf) {
        memcpy(buf, reply.body, reply.size);
    }
    kernel_reply_clear(&reply);
    return ret;
}

uint64_t kernel_send_write(Kernel *k, uint64_t nodeid, uint64_t fh, uint64_t offset, uint32_t size,
                           const void *data, uint32_t flags)
{
    struct fuse_write_in arg = {.fh = fh, .offset = offset, .size = size, .flags = flags};
    return kernel_send(k, FUSE_WRITE, nodeid, &arg, sizeof arg, data, size);
}

int coroutine_fn kernel_write(Kernel *k, uint64_t nodeid, uint64_t fh, uint64_t offset, uint32_t size,
                              const void *data, uint32_t flags)
{
    KernelReply reply = kernel_wait(k, kernel_send_write(k, nodeid, fh, offset, size, data, flags));
    int ret = reply.error;
    if (ret == 0) {
        g_assert_cmpuint(reply.size, ==, sizeof(struct fuse_write_out));
        ret = (int)((struct fuse_write_out *)(void *)reply.body)->size;
    }
    kernel_reply_clear(&reply);
    return ret;
}

FuseExport *test_export(TestEnv *env, BlockNode *node, const char *id, bool growable)
{
    FuseExportConfig config = {.id = id, .writable = true, .growable = growable};
    GError *err = NULL;
    FuseExport *exp = fuse_export_new(env->graph, node, &config, &err);
    g_assert_no_error(err);
    return exp;
}
