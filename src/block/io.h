/*
 * I/O on a node through an edge: what drivers call on their children, and backends on their root.
 *
 * Every function: coroutine, any thread with an AioContext. The caller holds a request on the parent (a
 * driver's callback does) or the backend, so that the edge does not change. Offsets and lengths in bytes, any
 * alignment. 0, or -errno: -EINVAL negative, or overflows; -ENOSPC writing
 * beyond the end of a node that cannot grow; -EROFS / -EACCES the edge has no write permission; -ENOTSUP;
 * what the driver returns.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BLOCK_IO_H
#define BG_BLOCK_IO_H

#include "block/node.h"

/* qiov covers `bytes` from qiov_offset on. Reads past the length of the node give zeroes for that part. */
int coroutine_fn block_child_co_preadv(BlockChild *child, int64_t offset, int64_t bytes, const IoVector *qiov,
                                       size_t qiov_offset, BlockRequestFlags flags);
int coroutine_fn block_child_co_pwritev(BlockChild *child, int64_t offset, int64_t bytes,
                                        const IoVector *qiov, size_t qiov_offset, BlockRequestFlags flags);
/* One contiguous buffer. */
int coroutine_fn block_child_co_pread(BlockChild *child, int64_t offset, int64_t bytes, void *buf);
int coroutine_fn block_child_co_pwrite(BlockChild *child, int64_t offset, int64_t bytes, const void *buf,
                                       BlockRequestFlags flags);

/*
 * Flush: the writes that the node accepted before the call have completed, then driver->co_flush, then the
 * children. Concurrent calls share one run that began after each of them. Nothing is done where nothing was
 * written since the last successful one.
 */
int coroutine_fn block_child_co_flush(BlockChild *child);

/* flags: MAY_UNMAP, NO_FALLBACK, ALLOCATE, FUA. */
int coroutine_fn block_child_co_pwrite_zeroes(BlockChild *child, int64_t offset, int64_t bytes,
                                              BlockRequestFlags flags);
/* Advisory; never fails for want of support. */
int coroutine_fn block_child_co_pdiscard(BlockChild *child, int64_t offset, int64_t bytes);
/* Status of a prefix of the range, *pnum bytes (>= 1), down to the leaves; -errno. ZERO is added where the
 * leaf reads as zeroes. */
int coroutine_fn block_child_co_block_status(BlockChild *child, int64_t offset, int64_t bytes, int64_t *pnum);
/* Change the length; new bytes read as zeroes. Needs BLOCK_PERM_RESIZE on the edge. */
int coroutine_fn block_child_co_truncate(BlockChild *child, int64_t length, GError **errp);
/* Copy; the ranges may be in one node but must not overlap (-EINVAL). The drivers' own copy where both ends
 * have it, else a bounded bounce buffer. */
int coroutine_fn block_child_co_copy_range(BlockChild *src, int64_t src_offset, BlockChild *dst,
                                           int64_t dst_offset, int64_t bytes);
/* Bytes allocated, or -errno. */
int64_t coroutine_fn block_node_co_get_allocated(BlockNode *node);

/* Copy between buffer and vector, n bytes from vector offset `skip`. */
void io_vector_from_buf(const IoVector *v, size_t skip, const void *buf, size_t n);
void io_vector_to_buf(const IoVector *v, size_t skip, void *buf, size_t n);
void io_vector_memset(const IoVector *v, size_t skip, int c, size_t n);
bool io_vector_is_zero(const IoVector *v, size_t skip, size_t n);
/*
 * The part [skip, skip + n) of v as an iovec array in `out` (room for v->niov elements). Returns the number
 * of elements.
 */
int io_vector_slice(const IoVector *v, size_t skip, size_t n, struct iovec *out);

#endif /* BG_BLOCK_IO_H */
