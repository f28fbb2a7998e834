/*
 * What the front end's tests share: a mount without a kernel. Each queue is connected to a socket, and the
 * test is the kernel at its other end.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_TESTS_FUSE_FIXTURE_H
#define BG_TESTS_FUSE_FIXTURE_H

#include "fuse/mount-internal.h"
#include "fuse/protocol.h"
#include "tests/unit/block-test-util.h"

#define KERNEL_QUEUES 2

typedef struct KernelReply {
    int error; /* 0 or -errno */
    uint8_t *body;
    size_t size;
} KernelReply;

typedef struct Kernel {
    TestEnv *env;
    FuseMount *mount;
    int fd[KERNEL_QUEUES]; /* the kernel's ends; -1: closed */
    uint64_t unique;
    GHashTable *replies; /* unique -> KernelReply, that have come and were not asked for yet */
    GArray *order;       /* uniques in the order of their replies */
    GString *forgotten;  /* names that the mount told the kernel to forget, each with a space behind it */
    unsigned closed;     /* calls of the mount's closed callback */
} Kernel;

/* A running mount; its queues are in iothreads 0 and 1. */
Kernel *kernel_mount(TestEnv *env, FuseExport *const *exports, unsigned n);
/* Stop and free it. Returns what fuse_mount_co_stop did. Exports are the caller's. */
int coroutine_fn kernel_unmount(Kernel *k);

/* Send a request on queue 0; the pieces are put together. Its unique. */
uint64_t kernel_send(Kernel *k, uint32_t opcode, uint64_t nodeid, const void *arg, size_t arg_size,
                     const void *data, size_t data_size);
uint64_t kernel_send_to(Kernel *k, unsigned queue, uint32_t opcode, uint64_t nodeid, const void *arg,
                        size_t arg_size, const void *data, size_t data_size);
/* Bytes as they are, without a header of ours. */
void kernel_send_raw(Kernel *k, const void *buf, size_t size);
/* Whether the reply has come. */
bool kernel_has_reply(Kernel *k, uint64_t unique);
/* Wait for it. The body is freed by kernel_reply_clear. */
KernelReply coroutine_fn kernel_wait(Kernel *k, uint64_t unique);
void kernel_reply_clear(KernelReply *reply);

/* ---- Whole calls. int: 0, a count, or -errno. */

/* Request and reply; the first `out_size` bytes of its body in out. */
int coroutine_fn kernel_call(Kernel *k, uint32_t opcode, uint64_t nodeid, const void *arg, size_t arg_size,
                             void *out, size_t out_size);
/* LOOKUP: the node id; 0 and *err where there is none. */
uint64_t coroutine_fn kernel_lookup(Kernel *k, uint64_t dir, const char *name, int *err);
int coroutine_fn kernel_open(Kernel *k, uint64_t nodeid, int flags, uint64_t *fh);
int coroutine_fn kernel_release(Kernel *k, uint64_t nodeid, uint64_t fh);
uint64_t kernel_send_read(Kernel *k, uint64_t nodeid, uint64_t fh, uint64_t offset, uint32_t size);
/* Bytes read, or -errno. */
int coroutine_fn kernel_read(Kernel *k, uint64_t nodeid, uint64_t fh, uint64_t offset, uint32_t size,
                             void *buf);
uint64_t kernel_send_write(Kernel *k, uint64_t nodeid, uint64_t fh, uint64_t offset, uint32_t size,
                           const void *data, uint32_t flags);
/* Bytes written, or -errno. */
int coroutine_fn kernel_write(Kernel *k, uint64_t nodeid, uint64_t fh, uint64_t offset, uint32_t size,
                              const void *data, uint32_t flags);

/* A writable export of the node. */
FuseExport *test_export(TestEnv *env, BlockNode *node, const char *id, bool growable);

#endif /* BG_TESTS_FUSE_FIXTURE_H */
