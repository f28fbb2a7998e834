/*
 * The table of operations.
 *
 * An opcode that is absent gets ENOSYS, which the kernel takes as "never ask again" where it has a behaviour
 * of its own: FLUSH (nothing to do at close, writes went through), ACCESS (default_permissions checks), POLL,
 * locks, BMAP, STATX, INTERRUPT (a request cannot be stopped half-way).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "fuse/ops.h"

/* The answer is always the same. */
static int coroutine_fn op_inappropriate_ioctl(FuseRequest *req)
{
    return -ENOTTY;
}

static int coroutine_fn op_success(FuseRequest *req)
{
    return 0;
}

/* INIT is answered before the queues start; a second one is none of the protocol. */
static int coroutine_fn op_late_init(FuseRequest *req)
{
    return -EPROTO;
}

#define ARG(type) sizeof(struct type)
#define OP(op, fn, size, what)                                                                               \
    [FUSE_##op] = {.name = #op, .handler = fn, .arg_size = size, .body = FUSE_BODY_##what}
#define OP_NO_REPLY(op, fn, size, what)                                                                      \
    [FUSE_##op] = {.name = #op, .handler = fn, .arg_size = size, .body = FUSE_BODY_##what, .no_reply = true}

static const FuseOp op_table[] = {
    OP(LOOKUP, fuse_op_lookup, 0, NAME),
    OP_NO_REPLY(FORGET, fuse_op_forget, ARG(fuse_forget_in), NONE),
    OP(GETATTR, fuse_op_getattr, ARG(fuse_getattr_in), NONE),
    OP(SETATTR, fuse_op_setattr, ARG(fuse_setattr_in), NONE),
    OP(READLINK, fuse_op_readlink, 0, NONE),
    OP(SYMLINK, fuse_op_refuse, 0, TWO_NAMES),
    OP(MKNOD, fuse_op_refuse, ARG(fuse_mknod_in), NAME),
    OP(MKDIR, fuse_op_mkdir, ARG(fuse_mkdir_in), NAME),
    OP(UNLINK, fuse_op_refuse, 0, NAME),
    OP(RMDIR, fuse_op_rmdir, 0, NAME),
    OP(RENAME, fuse_op_refuse, ARG(fuse_rename_in), TWO_NAMES),
    OP(LINK, fuse_op_refuse, ARG(fuse_link_in), NAME),
    OP(OPEN, fuse_op_open, ARG(fuse_open_in), NONE),
    OP(READ, fuse_op_read, ARG(fuse_read_in), NONE),
    OP(WRITE, fuse_op_write, ARG(fuse_write_in), DATA),
    OP(STATFS, fuse_op_statfs, 0, NONE),
    OP(RELEASE, fuse_op_release, ARG(fuse_release_in), NONE),
    OP(FSYNC, fuse_op_fsync, ARG(fuse_fsync_in), NONE),
    OP(SETXATTR, fuse_op_setxattr, FUSE_SETXATTR_HEAD, NAME_DATA),
    OP(GETXATTR, fuse_op_getxattr, ARG(fuse_getxattr_in), NAME),
    OP(LISTXATTR, fuse_op_listxattr, ARG(fuse_getxattr_in), NONE),
    OP(REMOVEXATTR, fuse_op_setxattr, 0, NAME),
    OP(INIT, op_late_init, 0, NONE),
    OP(OPENDIR, fuse_op_opendir, ARG(fuse_open_in), NONE),
    OP(READDIR, fuse_op_readdir, ARG(fuse_read_in), NONE),
    OP(RELEASEDIR, fuse_op_releasedir, ARG(fuse_release_in), NONE),
    OP(FSYNCDIR, fuse_op_fsyncdir, ARG(fuse_fsync_in), NONE),
    OP(CREATE, fuse_op_refuse, ARG(fuse_create_in), NAME),
    OP(DESTROY, op_success, 0, NONE),
    OP(IOCTL, op_inappropriate_ioctl, ARG(fuse_ioctl_in), NONE),
    OP_NO_REPLY(BATCH_FORGET, fuse_op_batch_forget, ARG(fuse_batch_forget_in), DATA),
    OP(FALLOCATE, fuse_op_fallocate, ARG(fuse_fallocate_in), NONE),
    OP(READDIRPLUS, fuse_op_readdirplus, ARG(fuse_read_in), NONE),
    OP(RENAME2, fuse_op_refuse, ARG(fuse_rename2_in), TWO_NAMES),
    OP(SYNCFS, fuse_op_sync_all, ARG(fuse_syncfs_in), NONE),
    OP(LSEEK, fuse_op_lseek, ARG(fuse_lseek_in), NONE),
    OP(COPY_FILE_RANGE, fuse_op_copy_file_range, ARG(fuse_copy_file_range_in), NONE),
};

const FuseOp *fuse_op_find(uint32_t opcode)
{
    if (opcode >= G_N_ELEMENTS(op_table) || !op_table[opcode].name) {
        return NULL;
    }
    return &op_table[opcode];
}
