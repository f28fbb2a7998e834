/*
 * FuseExport: a node as a file of a mount.
 *
 * Requests on an export are counted per queue, each count written by its queue's thread only: no cache line
 * is shared. Removal therefore goes in steps, in the main thread:
 *
 *   ATTACHED  --detach: inode and open files lose their pointer--> DETACHED
 *   DETACHED  --a bottom half has run in each queue's thread--> PASSED: nobody can enter any more, and each
 *               leave from now on sees `removing` and tells the mount
 *   PASSED    --sum of the counts is 0--> IDLE: may be freed
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_FUSE_EXPORT_H
#define BG_FUSE_EXPORT_H

#include <stdatomic.h>
#include <sys/stat.h>

#include "coroutine/lock.h"
#include "fuse/fuse-mount.h"
#include "fuse/inode.h"
#include "util/lock.h"

typedef struct FuseExportCount {
    _Atomic unsigned in_flight;
} BG_CACHE_ALIGNED FuseExportCount;

/* Ownership, mode and times; a mount's root directory has them too. */
typedef struct FuseOwner {
    uid_t uid;
    gid_t gid;
    mode_t mode;       /* permission bits */
    int64_t atime_ns;  /* CLOCK_REALTIME, as all here */
    int64_t mtime_ns;  /* as set by utimes, or the start */
    int64_t mtime_set; /* when mtime_ns was set: later writes count more */
    int64_t ctime_ns;
} FuseOwner;

struct FuseExport {
    /* -- constant */
    char *id;
    BlockGraph *graph;
    BlockBackend *blk;
    bool writable, growable;

    /* -- main thread; set while no request can reach the export */
    FuseMount *mount;        /* NULL: none */
    FuseInode *inode;        /* a reference */
    FuseExportCount *counts; /* one for each queue of the mount */

    /* -- guarded by the mount's file table lock */
    unsigned opens;
    _Atomic bool removing; /* written under the lock */

    CoMutex resize_lock; /* a truncate that takes the permission for itself; held across it */
    BgMutex lock;        /* a leaf */
    FuseOwner owner BG_GUARDED_BY(lock);
    int64_t allocated BG_GUARDED_BY(lock);       /* bytes, as last asked; -1: never */
    int64_t allocated_at BG_GUARDED_BY(lock);    /* CLOCK_MONOTONIC */
    int64_t allocated_write BG_GUARDED_BY(lock); /* the node's last write then */
};

/* Count a request in and out. In the thread of queue `queue_index`. */
static inline void fuse_export_enter(FuseExport *exp, unsigned queue_index)
{
    _Atomic unsigned *n = &exp->counts[queue_index].in_flight;
    atomic_store_explicit(n, atomic_load_explicit(n, memory_order_relaxed) + 1, memory_order_relaxed);
}
void fuse_export_leave(FuseExport *exp, unsigned queue_index);

/* CLOCK_REALTIME of the last write to the node; 0: none since it was opened. Any thread. */
int64_t fuse_export_last_write(FuseExport *exp);
/*
 * Bytes of storage taken, at most a second old if nothing was written here; the length where the drivers
 * cannot say.
 */
int64_t coroutine_fn fuse_export_co_allocated(FuseExport *exp);

#endif /* BG_FUSE_EXPORT_H */
