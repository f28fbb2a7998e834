/*
 * Mountpoints as the kernel's mount table shows them. Nothing here touches the file system that is mounted.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_FUSE_MOUNTPOINT_H
#define BG_FUSE_MOUNTPOINT_H

#include <glib.h>
#include <stdbool.h>

/*
 * Check that we can mount on `path`: a regular file where `over_file`, else a directory; not below a mount
 * whose daemon has died; not a FUSE mount already. 0 or -errno and *errp. Before mounting only: it looks at
 * the path.
 */
int mountpoint_check(const char *path, bool over_file, GError **errp);

/* Device number "major:minor" of the mount on top at `path` (absolute, without links); NULL: no mount is
 * there. g_free. */
char *mountpoint_top_device(const char *path);
/* Whether the mount of that device is still somewhere at `path`. */
bool mountpoint_has_device(const char *path, const char *device);

/* The value at `path` of a mount table line's field, with \040 and its like taken back. g_free. */
char *mountpoint_unescape(const char *field);

#endif /* BG_FUSE_MOUNTPOINT_H */
