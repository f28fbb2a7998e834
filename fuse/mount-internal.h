/*
 * What the files of fuse/ share about a mount.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_FUSE_MOUNT_INTERNAL_H
#define BG_FUSE_MOUNT_INTERNAL_H

#include "fuse/export.h"
#include "fuse/file.h"
#include "fuse/fuse-mount.h"
#include "fuse/inode.h"
#include "fuse/queue.h"
#include "fuse/session.h"

typedef enum FuseMountState {
    FUSE_MOUNT_NEW,
    FUSE_MOUNT_RUNNING,
    FUSE_MOUNT_STOPPED,
} FuseMountState;

struct FuseMount {
    /* -- constant once running */
    BlockGraph *graph;
    char *mountpoint;      /* also after the session is gone; for messages */
    MountSession *session; /* NULL: tests, which bring their own descriptors */
    FuseQueue *queues;
    unsigned n_queues;
    FuseExport *single_export; /* NULL: the root is a directory */
    FuseInode *root;           /* a reference, as the next two; NULL in a mount over a file */
    FuseInode *graph_dir;
    FuseInode *snap_dir;
    char *control; /* path of the control socket; NULL: none */
    bool debug;
    bool read_only;
    uid_t uid; /* owner of the control files */
    gid_t gid;
    int64_t start_ns; /* CLOCK_REALTIME */
    void *opaque;

    /* -- any thread */
    FuseInodeTable inodes;
    FuseFileTable files;
    FuseWatch watch;
    _Atomic bool alive; /* false once the kernel has ended the connection */

    BgMutex lock;                           /* a leaf */
    FuseOwner owner BG_GUARDED_BY(lock);    /* of the root directory */
    GPtrArray *exports BG_GUARDED_BY(lock); /* FuseExport*; changed by the main thread only */

    /* -- main thread */
    FuseMountState state;
    void (*closed)(FuseMount *mount, void *opaque); /* NULL: nobody cares, or it is being stopped */
    CoMutex change_lock;                            /* removal of exports, stop; held across waits */
    unsigned queues_running;                        /* not yet STOPPED */
    unsigned checkpoints;                           /* bottom halves under way */
    Coroutine *waiter;                              /* in fuse_mount_co_wait */
};

/* A mount without a session, for tests: queue i uses fds[i]. */
FuseMount *fuse_mount_new_on_fds(BlockGraph *graph, const FuseMountConfig *config, const int *fds);

/* ---- From queues. Any thread. */
void fuse_mount_connection_ended(FuseMount *mount);
void fuse_mount_queue_stopped(FuseMount *mount);
/* The last requests on an export that is being removed have gone: look again. */
void fuse_mount_kick(FuseMount *mount);

/* ---- For handlers: carry the coroutine to the main thread, and back to the request's queue. */
static inline void coroutine_fn fuse_request_to_main(FuseRequest *req)
{
    aio_co_reschedule_self(block_graph_main_context(req->queue->mount->graph));
}

static inline void coroutine_fn fuse_request_to_queue(FuseRequest *req)
{
    aio_co_reschedule_self(req->queue->ctx);
}

/* The inode that the request is about, held until its end; NULL where the id is unknown. */
static inline FuseInode *fuse_request_inode(FuseRequest *req)
{
    if (!req->inode) {
        req->inode = fuse_inode_get(&req->queue->mount->inodes, req->in->nodeid);
    }
    return req->inode;
}

/*
 * Count the request on an export, until its end; NULL where that was removed. From a field of an inode or
 * open file. At most twice per request.
 */
static inline FuseExport *fuse_request_enter(FuseRequest *req, _Atomic(FuseExport *) *field)
{
    FuseExport *exp = atomic_load_explicit(field, memory_order_acquire);
    if (exp) {
        fuse_export_enter(exp, req->queue->index);
        req->exports[req->exports[0] ? 1 : 0] = exp;
    }
    return exp;
}

/* Count the request on all exports; they are left with fuse_export_leave. FuseExport*, g_ptr_array_unref. */
GPtrArray *fuse_request_enter_all(FuseRequest *req);

/* CLOCK_REALTIME in nanoseconds. */
int64_t fuse_now_ns(void);

#endif /* BG_FUSE_MOUNT_INTERNAL_H */
