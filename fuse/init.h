/*
 * INIT: what the kernel and we agree on.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_FUSE_INIT_H
#define BG_FUSE_INIT_H

#include <glib.h>
#include <stddef.h>

#include "fuse/protocol.h"

typedef struct FuseInitReply {
    struct fuse_out_header header;
    struct fuse_init_out init;
} FuseInitReply;

/*
 * Make the reply to the INIT request in `size` bytes at `buf`. 0: negotiated; 1: the kernel will ask again
 * with our version; -errno and *errp: we do not understand each other (the reply tells the kernel so where
 * reply->header.len is not 0).
 */
int fuse_init_negotiate(const void *buf, size_t size, FuseInitReply *reply, GError **errp);

#endif /* BG_FUSE_INIT_H */
