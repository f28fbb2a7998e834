/*
 * Types and constants that the whole block layer shares.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BLOCK_TYPES_H
#define BG_BLOCK_TYPES_H

#include <glib.h>
#include <stdint.h>
#include <sys/uio.h>

#include "coroutine/coroutine.h"
#include "util/compiler.h"
#include "util/lock.h"

typedef struct BlockGraph BlockGraph;
typedef struct BlockNode BlockNode;
typedef struct BlockChild BlockChild;
typedef struct BlockBackend BlockBackend;
typedef struct BlockDriver BlockDriver;
typedef struct BlockOptions BlockOptions;
typedef struct BlockDrain BlockDrain;

/* Largest length of a node, and offset + length of a request, in bytes. */
#define BLOCK_MAX_LENGTH (INT64_MAX & ~(int64_t)0xfffff)
/* Longest node name in bytes, without the NUL. */
#define BLOCK_NAME_MAX   255
/* Most nodes on a path from a root to a leaf. */
#define BLOCK_MAX_DEPTH  200

/*
 * Scattered memory of a request. The arrays belong to the caller and stay valid until the
 * request has returned. size is the sum of the iov_len.
 */
typedef struct IoVector {
    const struct iovec *iov;
    int niov;
    size_t size;
} IoVector;

typedef enum BlockRequestFlags {
    BLOCK_REQ_FUA = 1 << 0,         /* write: on stable storage when it returns */
    BLOCK_REQ_MAY_UNMAP = 1 << 1,   /* write-zeroes: may free the range */
    BLOCK_REQ_NO_FALLBACK = 1 << 2, /* write-zeroes: -ENOTSUP rather than writing zero bytes */
    BLOCK_REQ_ALLOCATE =
        1 << 3, /* write-zeroes: reserve space, keep what the range reads as (fallocate mode 0) */
} BlockRequestFlags;

/* How an image is made. */
typedef enum BlockCreateFlags {
    BLOCK_CREATE_OVERWRITE = 1 << 0, /* storage that is there already may lose its content */
    BLOCK_CREATE_DRY_RUN = 1 << 1,   /* only see whether the options make sense */
} BlockCreateFlags;

/* ---- Checking, see block/check.h */

typedef enum BlockCheckFix {
    BLOCK_CHECK_FIX_LEAKS = 1 << 0,
    BLOCK_CHECK_FIX_ERRORS = 1 << 1,
    BLOCK_CHECK_FIX_ALL = BLOCK_CHECK_FIX_LEAKS | BLOCK_CHECK_FIX_ERRORS,
} BlockCheckFix;

/* As qemu-img check counts. What was repaired counts in both, found and fixed. */
typedef struct BlockCheckResult {
    uint64_t corruptions, corruptions_fixed;
    uint64_t leaks, leaks_fixed; /* clusters */
    uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters;
    int64_t image_end_offset;
} BlockCheckResult;

/* Who wants to hear of it; NULL callbacks: nobody. */
typedef struct BlockCheckListener {
    /* One line for people. Not more than BLOCK_CHECK_MAX_LINES come. */
    void (*problem)(void *opaque, const char *text);
    /* How much is done, from 0 to 1; never falls. */
    void (*progress)(void *opaque, double done);
    void *opaque;
} BlockCheckListener;

/* ---- */

/* Block status of a range. */
typedef enum BlockStatusFlags {
    BLOCK_STATUS_DATA = 1 << 0,      /* stored in this node */
    BLOCK_STATUS_ZERO = 1 << 1,      /* reads as zeroes */
    BLOCK_STATUS_ALLOCATED = 1 << 2, /* determined by this node rather than its backing */
    BLOCK_STATUS_RECURSE = 1 << 3,   /* driver only: same as `child` at `child_offset`; the core asks there */
} BlockStatusFlags;

/* Permissions on a node, and what a parent lets others do meanwhile. Meanings and bit numbers as QEMU's. */
typedef enum BlockPerm {
    BLOCK_PERM_CONSISTENT_READ = 1 << 0,
    BLOCK_PERM_WRITE = 1 << 1,
    BLOCK_PERM_WRITE_UNCHANGED = 1 << 2,
    BLOCK_PERM_RESIZE = 1 << 3,
    BLOCK_PERM_ALL = (1 << 4) - 1,
} BlockPerm;

/* What a child is to its parent. */
typedef enum BlockChildRole {
    BLOCK_ROLE_DATA = 1 << 0,     /* guest data */
    BLOCK_ROLE_METADATA = 1 << 1, /* the format's own tables */
    BLOCK_ROLE_FILTERED = 1 << 2, /* the parent passes requests through */
    BLOCK_ROLE_COW = 1 << 3,      /* backing: read only */
    BLOCK_ROLE_IMAGE = BLOCK_ROLE_DATA | BLOCK_ROLE_METADATA,
} BlockChildRole;

/*
 * A failed flush: the number of the failure in its graph, and its errno in the low bits. Later ones are
 * greater; 0: none.
 */
typedef uint64_t BlockFlushError;
#define BLOCK_FLUSH_ERRNO_BITS 12

static inline int block_flush_error_errno(BlockFlushError error)
{
    return (int)(error & ((1u << BLOCK_FLUSH_ERRNO_BITS) - 1));
}

/* Operations counted per node. */
typedef enum BlockOp {
    BLOCK_OP_READ,
    BLOCK_OP_WRITE,
    BLOCK_OP_FLUSH,
    BLOCK_OP_DISCARD,
    BLOCK_OP_WRITE_ZEROES,
    BLOCK_OP_BLOCK_STATUS,
    BLOCK_OP_TRUNCATE,
    BLOCK_OP_COPY_RANGE,
    BLOCK_OP_OPEN, /* errors only, as the next two */
    BLOCK_OP_SNAPSHOT,
    BLOCK_OP_CONNECT, /* to a server */
    BLOCK_OP__MAX,
} BlockOp;

/* "read", "write", "write-zeroes", ... Static. */
const char *block_op_name(BlockOp op);
/* "consistent-read, write" for messages. Free with g_free. */
char *block_perm_names(BlockPerm perm);

#endif /* BG_BLOCK_TYPES_H */
