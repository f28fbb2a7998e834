/*
 * MountSession: the mount itself, made and taken away with libfuse's help; the only user of libfuse.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_FUSE_SESSION_H
#define BG_FUSE_SESSION_H

#include <glib.h>

#include "coroutine/coroutine.h"
#include "fuse/fuse-mount.h"

typedef struct MountSession MountSession;

/* Check the mountpoint and mount. NULL and *errp; nothing is mounted then. Main thread. */
MountSession *mount_session_new(const FuseMountConfig *config, GError **errp);
/* The descriptor that the queues are cloned from, non-blocking. */
int mount_session_fd(const MountSession *session);
const char *mount_session_mountpoint(const MountSession *session);
/*
 * Wait (seconds at most) for the kernel's INIT and answer it. From here on the file system can be used. 0 or
 * -errno and *errp. Main thread, before any queue runs.
 */
int mount_session_init(MountSession *session, GError **errp);
/*
 * Take the mount away, if it is still there: busy files stay usable until the last descriptor is closed.
 * Their dirty pages (shared mappings) are written first. In a worker thread: the queues must still serve
 * meanwhile.
 */
void coroutine_fn mount_session_co_unmount(MountSession *session);
/* Close the descriptor, free. The mount has been taken away. */
void mount_session_free(MountSession *session);

#endif /* BG_FUSE_SESSION_H */
