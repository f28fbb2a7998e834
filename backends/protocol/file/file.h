/*
 * What the files of the drivers file and host_device share.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BACKENDS_FILE_H
#define BG_BACKENDS_FILE_H

#include <stdatomic.h>

#include "block/driver.h"
#include "block/node.h"
#include "block/snapshot.h"

typedef struct FileState {
    /* -- set at open */
    char *filename; /* as given */
    int fd;
    bool is_device;   /* a block device, not a regular file */
    bool local;       /* on a file system that does not wait for another host: fstat is quick */
    bool use_threads; /* aio=threads */
    int durable;      /* as BlockDriver.durable */

    /* -- any thread: what the file system turned out not to support; only ever set */
    _Atomic bool no_zero_range, no_punch_hole, no_allocate, no_discard, no_seek_data, no_copy_range;
    /*
     * errno of the first failed flush through the page cache, else 0. The kernel may have dropped the
     * dirty pages and reports the failure once, so no later flush can be believed.
     */
    _Atomic int flush_error;

    /* -- main thread: locks.c */
    bool use_locks;
    BlockPerm locked_perm, locked_shared; /* what the lock bytes say now */
} FileState;

/* ---- probe.c: questions about an open file. All may block: in a worker thread. */

/* A word for the type of file, e.g. "a directory". Static. */
const char *file_type_name(mode_t mode);
/* Whether fd lies in a mounted blockgraphfs. fd may be an O_PATH descriptor. */
bool file_is_in_own_mount(int fd);
/* Whether a block device is a loop device over a file that does. */
bool file_is_loop_over_own_mount(int fd);
/* Length in bytes, or -errno. */
int64_t file_probe_length(int fd, bool is_device);
bool file_is_read_only_device(int fd);
/* Fill in durable and local. */
void file_probe_storage(FileState *s);
/* Fill in the limits. 0, or -errno where O_DIRECT does not work on this file. */
int file_probe_limits(const FileState *s, bool direct, BlockLimits *limits);

/* ---- create.c */

int coroutine_fn file_co_create(BlockGraph *graph, BlockOptions *opts, BlockCreateFlags flags, GError **errp);

/* ---- locks.c */

/* Whether the file's file system has OFD locks: 0, or -errno. May block. */
int file_locks_probe(int fd);
int file_check_perm(BlockNode *node, BlockPerm perm, BlockPerm shared, GError **errp);
void file_set_perm(BlockNode *node, BlockPerm perm, BlockPerm shared);
void file_abort_perm_update(BlockNode *node);

/* ---- rw.c */

int coroutine_fn file_co_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                size_t qiov_offset, BlockRequestFlags flags);
int coroutine_fn file_co_pwritev(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                 size_t qiov_offset, BlockRequestFlags flags);
int coroutine_fn file_co_flush(BlockNode *node);

/* ---- space.c */

int coroutine_fn file_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes);
int coroutine_fn file_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                       BlockRequestFlags flags);
int coroutine_fn file_co_truncate(BlockNode *node, int64_t length, GError **errp);
int coroutine_fn file_co_copy_range(BlockNode *src, int64_t src_offset, BlockNode *dst, int64_t dst_offset,
                                    int64_t bytes);

/* ---- status.c */

/* Length of the file as it is now, or -errno. */
int64_t coroutine_fn file_co_size(FileState *s);
int coroutine_fn file_co_block_status(BlockNode *node, int64_t offset, int64_t bytes, int64_t *pnum,
                                      BlockChild **child, int64_t *child_offset);
int64_t coroutine_fn file_co_get_allocated(BlockNode *node);

/* ---- snapshot.c */

extern const BlockSnapshotOps file_snapshot_ops;

#endif /* BG_BACKENDS_FILE_H */
