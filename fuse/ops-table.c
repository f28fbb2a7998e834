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

static const FuseOp op_table[] = {
    [FUSE_LOOKUP] = {"LOOKUP", fuse_op_lookup, 0, FUSE_BODY_NAME},
    [FUSE_FORGET] = {"FORGET", fuse_op_forget, ARG(fuse_forget_in), FUSE_BODY_NONE, .no_reply = true},
    [FUSE_GETATTR] = {"GETATTR", fuse_op_getattr, ARG(fuse_getattr_in)},
    [FUSE_SETATTR] = {"SETATTR", fuse_op_setattr, ARG(fuse_setattr_in)},
    [FUSE_READLINK] = {"READLINK", fuse_op_readlink, 0},
    [FUSE_SYMLINK] = {"SYMLINK", fuse_op_refuse, 0, FUSE_BODY_TWO_NAMES},
    [FUSE_MKNOD] = {"MKNOD", fuse_op_refuse, ARG(fuse_mknod_in), FUSE_BODY_NAME},
    [FUSE_MKDIR] = {"MKDIR", fuse_op_mkdir, ARG(fuse_mkdir_in), FUSE_BODY_NAME},
    [FUSE_UNLINK] = {"UNLINK", fuse_op_refuse, 0, FUSE_BODY_NAME},
    [FUSE_RMDIR] = {"RMDIR", fuse_op_refuse, 0, FUSE_BODY_NAME},
    [FUSE_RENAME] = {"RENAME", fuse_op_refuse, ARG(fuse_rename_in), FUSE_BODY_TWO_NAMES},
    [FUSE_LINK] = {"LINK", fuse_op_refuse, ARG(fuse_link_in), FUSE_BODY_NAME},
    [FUSE_OPEN] = {"OPEN", fuse_op_open, ARG(fuse_open_in)},
    [FUSE_READ] = {"READ", fuse_op_read, ARG(fuse_read_in)},
    [FUSE_WRITE] = {"WRITE", fuse_op_write, ARG(fuse_write_in), FUSE_BODY_DATA},
    [FUSE_STATFS] = {"STATFS", fuse_op_statfs, 0},
    [FUSE_RELEASE] = {"RELEASE", fuse_op_release, ARG(fuse_release_in)},
    [FUSE_FSYNC] = {"FSYNC", fuse_op_fsync, ARG(fuse_fsync_in)},
    [FUSE_SETXATTR] = {"SETXATTR", fuse_op_setxattr, FUSE_SETXATTR_HEAD, FUSE_BODY_NAME_DATA},
    [FUSE_GETXATTR] = {"GETXATTR", fuse_op_getxattr, ARG(fuse_getxattr_in), FUSE_BODY_NAME},
    [FUSE_LISTXATTR] = {"LISTXATTR", fuse_op_listxattr, ARG(fuse_getxattr_in)},
    [FUSE_REMOVEXATTR] = {"REMOVEXATTR", fuse_op_setxattr, 0, FUSE_BODY_NAME},
    [FUSE_INIT] = {"INIT", op_late_init, 0},
    [FUSE_OPENDIR] = {"OPENDIR", fuse_op_opendir, ARG(fuse_open_in)},
    [FUSE_READDIR] = {"READDIR", fuse_op_readdir, ARG(fuse_read_in)},
    [FUSE_RELEASEDIR] = {"RELEASEDIR", fuse_op_releasedir, ARG(fuse_release_in)},
    [FUSE_FSYNCDIR] = {"FSYNCDIR", op_success, ARG(fuse_fsync_in)},
    [FUSE_CREATE] = {"CREATE", fuse_op_refuse, ARG(fuse_create_in), FUSE_BODY_NAME},
    [FUSE_DESTROY] = {"DESTROY", op_success, 0},
    [FUSE_IOCTL] = {"IOCTL", op_inappropriate_ioctl, ARG(fuse_ioctl_in)},
    [FUSE_BATCH_FORGET] = {"BATCH_FORGET", fuse_op_batch_forget, ARG(fuse_batch_forget_in), FUSE_BODY_DATA,
                           .no_reply = true},
    [FUSE_FALLOCATE] = {"FALLOCATE", fuse_op_fallocate, ARG(fuse_fallocate_in)},
    [FUSE_READDIRPLUS] = {"READDIRPLUS", fuse_op_readdirplus, ARG(fuse_read_in)},
    [FUSE_RENAME2] = {"RENAME2", fuse_op_refuse, ARG(fuse_rename2_in), FUSE_BODY_TWO_NAMES},
    [FUSE_LSEEK] = {"LSEEK", fuse_op_lseek, ARG(fuse_lseek_in)},
    [FUSE_COPY_FILE_RANGE] = {"COPY_FILE_RANGE", fuse_op_copy_file_range, ARG(fuse_copy_file_range_in)},
};

const FuseOp *fuse_op_find(uint32_t opcode)
{
    if (opcode >= G_N_ELEMENTS(op_table) || !op_table[opcode].name) {
        return NULL;
    }
    return &op_table[opcode];
}
