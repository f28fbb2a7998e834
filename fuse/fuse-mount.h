/*
 * The FUSE front end: mounts and the exports in them.
 *
 * A FuseMount is one session of the kernel's protocol on one mountpoint, with one queue (a /dev/fuse
 * descriptor) per iothread. Its root is either a directory with any number of exports, .graph and .snap, or,
 * mounted over a regular file, one export.
 *
 * States of a mount:
 *
 *   NEW --fuse_mount_start--> RUNNING --fuse_mount_co_stop--> STOPPED
 *                             RUNNING --umount or abort from outside--> GONE (closed callback) --co_stop-->
 * STOPPED
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_FUSE_MOUNT_H
#define BG_FUSE_MOUNT_H

#include "block/graph.h"

typedef struct FuseMount FuseMount;
typedef struct FuseExport FuseExport;

typedef struct FuseExportConfig {
    const char *id;   /* file name in the mounted directory; copied */
    bool writable;    /* refused where the node is read-only */
    bool growable;    /* writes beyond the end extend the node */
    mode_t mode;      /* permission bits; 0: 0600 writable, 0400 read-only */
    bool strict_sync; /* refuse a node whose flush is known not to reach stable storage */
} FuseExportConfig;

typedef enum FuseAllowOther {
    FUSE_ALLOW_OTHER_OFF,
    FUSE_ALLOW_OTHER_ON,
    FUSE_ALLOW_OTHER_AUTO
} FuseAllowOther;

typedef struct FuseMountConfig {
    const char *mountpoint;     /* an existing directory, or a regular file for single_export */
    const char *source;         /* shown in /proc/mounts as the device; secrets redacted by the caller */
    char *const *fuse_options;  /* NULL-terminated, further options for libfuse, each one "-oX" word's X, e.g.
                                   "default_permissions"; may be NULL */
    bool read_only;             /* -o ro */
    FuseAllowOther allow_other; /* AUTO: try on, fall back to off */
    AioContext *const *contexts; /* one queue each; at least one */
    unsigned n_contexts;
    bool debug;          /* log each request at BG_LOG_DEBUG */
    const char *control; /* path of the control socket, for user.blockgraph.control; NULL: none; copied */
    FuseExport *single_export; /* mount this over a regular file; NULL: a directory */
    /* Called once in the main thread when the kernel has ended the mount (umount from outside, abort). */
    void (*closed)(FuseMount *mount, void *opaque);
    void *opaque;
} FuseMountConfig;

/*
 * Export `node`: makes a BlockBackend with the permissions, checks the id. Not visible until added to a
 * mount. NULL and *errp. Main thread.
 */
FuseExport *fuse_export_new(BlockGraph *graph, BlockNode *node, const FuseExportConfig *config,
                            GError **errp);
/* After removal from its mount. Main thread, coroutine: waits for its requests. */
void coroutine_fn fuse_export_co_free(FuseExport *exp);
const char *fuse_export_id(const FuseExport *exp);
BlockBackend *fuse_export_backend(FuseExport *exp);
bool fuse_export_writable(const FuseExport *exp);
bool fuse_export_growable(const FuseExport *exp);

/*
 * Mount: checks the mountpoint, mounts by libfuse. Requests are served from fuse_mount_start on. NULL and
 * *errp (busy or absent mountpoint, no permission on /dev/fuse): nothing is left mounted. Main thread.
 */
FuseMount *fuse_mount_new(BlockGraph *graph, const FuseMountConfig *config, GError **errp);
/* Add an export to a directory mount; -EEXIST and *errp for a used id. Main thread; also while running. */
int fuse_mount_add_export(FuseMount *mount, FuseExport *exp, GError **errp);
/* Remove it: the file vanishes; -EBUSY and *errp while open, unless `force` (then open files give
 * ESTALE). Main thread. */
int coroutine_fn fuse_mount_co_remove_export(FuseMount *mount, FuseExport *exp, bool force, GError **errp);
/*
 * Agree with the kernel on the protocol and start the queues. Main thread, once. On failure the mount is to
 * be stopped and freed.
 */
int fuse_mount_start(FuseMount *mount, GError **errp);
/* Stop serving: unmount (lazily where busy), wait for requests, flush every writable export. 0 or the first
 * flush error. Main thread. */
int coroutine_fn fuse_mount_co_stop(FuseMount *mount);
/* After co_stop. Exports were removed or are freed by the caller after. Main thread. */
void fuse_mount_free(FuseMount *mount);
const char *fuse_mount_mountpoint(const FuseMount *mount);
/* False once the kernel has ended it. */
bool fuse_mount_is_alive(const FuseMount *mount);

#endif /* BG_FUSE_MOUNT_H */
