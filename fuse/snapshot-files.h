/*
 * .snap: a directory for each snapshot that an export of the mount has, with a read-only file for each such
 * export.
 *
 * The snapshots belong to the main thread; each function here carries the coroutine there and back to the
 * queue of the request.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_FUSE_SNAPSHOT_FILES_H
#define BG_FUSE_SNAPSHOT_FILES_H

#include "fuse/dir-list.h"
#include "fuse/file.h"
#include "fuse/inode.h"
#include "fuse/request.h"

/* The entry `name` of .snap or of a directory in it: a new reference in *child. 0, -ENOENT. */
int coroutine_fn snapshot_co_lookup(FuseRequest *req, FuseInode *dir, const char *name, FuseInode **child);
int coroutine_fn snapshot_co_list(FuseRequest *req, FuseInode *dir, FuseDirList *list);
/* When it was taken (CLOCK_REALTIME), and of a file its length. 0; -ESTALE: it has gone. */
int coroutine_fn snapshot_co_stat(FuseRequest *req, const FuseInode *inode, int64_t *date_ns,
                                  int64_t *length);
/* Open a file: fills in init->blk. 0 or -errno. */
int coroutine_fn snapshot_co_open(FuseRequest *req, const FuseInode *inode, FuseFile *init);

/*
 * Take a snapshot of every writable export of the mount, or delete it from each. Failures are in
 * .graph/errors with their reason. The new directory in `dir`: a new reference in *child.
 */
int coroutine_fn snapshot_co_create(FuseRequest *req, FuseInode *dir, const char *name, FuseInode **child);
int coroutine_fn snapshot_co_delete(FuseRequest *req, const char *name);

#endif /* BG_FUSE_SNAPSHOT_FILES_H */
