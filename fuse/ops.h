/*
 * The operations of the protocol: a table from opcode to the shape of the request and its handler.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_FUSE_OPS_H
#define BG_FUSE_OPS_H

#include "fuse/request.h"

/*
 * Serve a request: fill its reply and return 0, or -errno. In a coroutine, in the thread of the request's
 * queue, where it must also be when it returns.
 */
typedef int coroutine_fn FuseOpHandler(FuseRequest *req);

/* What follows the fixed part of a request. */
typedef enum FuseOpBody {
    FUSE_BODY_NONE, /* nothing of use to us; ignored */
    FUSE_BODY_NAME, /* one name with its NUL */
    FUSE_BODY_TWO_NAMES,
    FUSE_BODY_NAME_DATA, /* a name, then any bytes */
    FUSE_BODY_DATA,
} FuseOpBody;

struct FuseOp {
    const char *name; /* NULL: unknown */
    FuseOpHandler *handler;
    uint16_t arg_size;
    FuseOpBody body;
    bool no_reply; /* the handler is called without a coroutine and must not yield */
};

/* The operation, or NULL where we have none. */
const FuseOp *fuse_op_find(uint32_t opcode);

/* ops-io.c: what READ and its like do with open files */
FuseOpHandler fuse_op_read, fuse_op_write, fuse_op_fsync, fuse_op_fallocate, fuse_op_lseek,
    fuse_op_copy_file_range, fuse_op_sync_all, fuse_op_fsyncdir;
/* ops-open.c */
FuseOpHandler fuse_op_open, fuse_op_release, fuse_op_opendir, fuse_op_releasedir;
/* ops-meta.c */
FuseOpHandler fuse_op_getattr, fuse_op_setattr, fuse_op_statfs, fuse_op_forget, fuse_op_batch_forget;
/* ops-dir.c */
FuseOpHandler fuse_op_lookup, fuse_op_readdir, fuse_op_readdirplus, fuse_op_readlink;
/* ops-change.c: changes of the directory tree: snapshots come and go, all else is refused */
FuseOpHandler fuse_op_refuse, fuse_op_mkdir, fuse_op_rmdir;
/* ops-xattr.c */
FuseOpHandler fuse_op_getxattr, fuse_op_listxattr, fuse_op_setxattr;

#endif /* BG_FUSE_OPS_H */
