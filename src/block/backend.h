/*
 * BlockBackend: a user of the graph from outside (an export, a job). Its requests park, in order, while a
 * drained section covers the node below; they are never failed for that.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BLOCK_BACKEND_H
#define BG_BLOCK_BACKEND_H

#include "block/node.h"

/*
 * A backend named `name` (copied; for messages) that will take `perm` and share `shared` on its root. Main
 * thread.
 */
BlockBackend *block_backend_new(BlockGraph *graph, const char *name, BlockPerm perm, BlockPerm shared);
/* Needs: no request in flight (drain first). Removes the root. Main thread, coroutine. */
void coroutine_fn block_backend_co_free(BlockBackend *blk);

/* Put `node` below; checks permissions. The backend has no root yet. 0 or -errno and *errp. Main thread. */
int block_backend_insert(BlockBackend *blk, BlockNode *node, GError **errp);
void coroutine_fn block_backend_co_remove(BlockBackend *blk);
/*
 * The root node, NULL if none. Main thread, or with a request in flight. Elsewhere it may have been replaced
 * already when this returns: good for its length and times only, and only because a node that was replaced
 * stays, as the backing of the one that took its place.
 */
BlockNode *block_backend_node(BlockBackend *blk);
const char *block_backend_name(const BlockBackend *blk);
/* Change what the backend holds; 0 or -errno and *errp with the old kept. Main thread. */
int block_backend_set_perm(BlockBackend *blk, BlockPerm perm, BlockPerm shared, GError **errp);

/* Length of the root in bytes. Any thread. */
int64_t block_backend_length(BlockBackend *blk);
/* Requests that wait for a drained section to end. Any thread; for tests and status. */
unsigned block_backend_parked(BlockBackend *blk);

/* As the functions of the same name in block/io.h, on the root. Coroutine, any thread with an AioContext. */
int coroutine_fn block_backend_co_preadv(BlockBackend *blk, int64_t offset, int64_t bytes,
                                         const IoVector *qiov, BlockRequestFlags flags);
int coroutine_fn block_backend_co_pwritev(BlockBackend *blk, int64_t offset, int64_t bytes,
                                          const IoVector *qiov, BlockRequestFlags flags);
int coroutine_fn block_backend_co_pread(BlockBackend *blk, int64_t offset, int64_t bytes, void *buf);
int coroutine_fn block_backend_co_pwrite(BlockBackend *blk, int64_t offset, int64_t bytes, const void *buf,
                                         BlockRequestFlags flags);
int coroutine_fn block_backend_co_flush(BlockBackend *blk);
/* The same; *newest is the newest failure of any flush in the root or below, by whomever it was asked for. */
int coroutine_fn block_backend_co_flush_report(BlockBackend *blk, BlockFlushError *newest);
/* That alone. */
BlockFlushError coroutine_fn block_backend_co_flush_error(BlockBackend *blk);
int coroutine_fn block_backend_co_pwrite_zeroes(BlockBackend *blk, int64_t offset, int64_t bytes,
                                                BlockRequestFlags flags);
int coroutine_fn block_backend_co_pdiscard(BlockBackend *blk, int64_t offset, int64_t bytes);
int coroutine_fn block_backend_co_block_status(BlockBackend *blk, int64_t offset, int64_t bytes,
                                               int64_t *pnum);
int coroutine_fn block_backend_co_truncate(BlockBackend *blk, int64_t length, GError **errp);
int coroutine_fn block_backend_co_copy_range(BlockBackend *src, int64_t src_offset, BlockBackend *dst,
                                             int64_t dst_offset, int64_t bytes);
int64_t coroutine_fn block_backend_co_get_allocated(BlockBackend *blk);

#endif /* BG_BLOCK_BACKEND_H */
