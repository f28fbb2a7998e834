/*
 * Opening a file that a user named, without waiting for what is no file.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_LOCAL_FILE_H
#define BG_CONTROL_LOCAL_FILE_H

#include <glib.h>

typedef enum LocalFileKind {
    LOCAL_FILE_REGULAR,
    LOCAL_FILE_IMAGE, /* a regular file or a block device */
} LocalFileKind;

/* A descriptor for reading, or -errno and *errp: "cannot open 'PATH': cause". Opens no FIFO and no device
 * that would block. */
int local_file_open(const char *path, LocalFileKind kind, GError **errp);

#endif /* BG_CONTROL_LOCAL_FILE_H */
