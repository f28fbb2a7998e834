/*
 * The words of -o, as mount(8), systemd, fusermount3 and people write them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_MOUNT_OPTIONS_H
#define BG_CONTROL_MOUNT_OPTIONS_H

#include <stdbool.h>

#include "aio/aio.h"

/* Most queues, and so iothreads, of a mount. */
#define MOUNT_MAX_QUEUES 64

typedef struct MountOptions {
    bool read_only;
    bool strict_sync;
    bool allow_other;
    bool auto_unmount;
    unsigned queues; /* 0: not given */
    AioBackend event_loop;
    GPtrArray *fuse_options; /* words for libfuse, owned, escaped for its -o; no NULL at the end */
    char *fsname;            /* NULL: not given */
    char *format;            /* of the image; NULL: not given */
} MountOptions;

MountOptions *mount_options_new(void);
void mount_options_free(MountOptions *options);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(MountOptions, mount_options_free)

/*
 * Add the words of one -o: separated by commas, "\," is a comma and "\\" a backslash. Later words override
 * earlier ones. False and *errp, as "-o WORD: cause".
 */
bool mount_options_add(MountOptions *options, const char *text, GError **errp);

#endif /* BG_CONTROL_MOUNT_OPTIONS_H */
