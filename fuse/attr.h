/*
 * Attributes of inodes.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_FUSE_ATTR_H
#define BG_FUSE_ATTR_H

#include "fuse/inode.h"
#include "fuse/request.h"

/*
 * Fill *attr, and *valid_s: for how many seconds the kernel may keep it. 0; -ESTALE: the export or node has
 * gone. In the thread of the request's queue, there again on return.
 */
int coroutine_fn fuse_inode_co_attr(FuseRequest *req, FuseInode *inode, struct fuse_attr *attr,
                                    uint64_t *valid_s);
/* A whole entry, as LOOKUP and READDIRPLUS send it. The caller counts the look-up. */
int coroutine_fn fuse_inode_co_entry(FuseRequest *req, FuseInode *inode, struct fuse_entry_out *out);

/* The same as the reply to a request, with the look-up counted. Takes over the caller's reference. */
int coroutine_fn fuse_inode_co_reply_entry(FuseRequest *req, FuseInode *inode);

/* S_IFDIR, S_IFREG or S_IFLNK. */
uint32_t fuse_inode_type(const FuseInode *inode);

#endif /* BG_FUSE_ATTR_H */
