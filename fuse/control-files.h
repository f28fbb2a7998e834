/*
 * .graph: the running graph as files.
 *
 * Their content belongs to the main thread; each function here carries the coroutine there and back to the
 * queue of the request.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_FUSE_CONTROL_FILES_H
#define BG_FUSE_CONTROL_FILES_H

#include "fuse/dir-list.h"
#include "fuse/file.h"
#include "fuse/inode.h"
#include "fuse/request.h"

typedef struct FuseMount FuseMount;

/* Make .graph and .snap of a mount that is not running yet, pinned. */
void control_files_add(FuseMount *mount);

/* The entry `name` of a directory below (or at) .graph: a new reference in *child. 0, -ENOENT. */
int coroutine_fn control_co_lookup(FuseRequest *req, FuseInode *dir, const char *name, FuseInode **child);
/* Add the directory's entries to the list. 0, -ENOENT: its node has gone. */
int coroutine_fn control_co_list(FuseRequest *req, FuseInode *dir, FuseDirList *list);
/* Length of the node that NODE/data shows; -ESTALE: it has gone. */
int64_t coroutine_fn control_co_node_length(FuseRequest *req, const FuseInode *data);
/* Open a file: fill in text or blk of `init`. 0 or -errno. */
int coroutine_fn control_co_open(FuseRequest *req, const FuseInode *inode, FuseFile *init);
/* Free a backend of an open file. */
void coroutine_fn control_co_free_backend(FuseRequest *req, BlockBackend *blk);
/* Target of a link in NODE/children; NULL: gone. g_free. */
char *coroutine_fn control_co_readlink(FuseRequest *req, const FuseInode *link);

#endif /* BG_FUSE_CONTROL_FILES_H */
