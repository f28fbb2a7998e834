/*
 * Opening a file that a user named.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/local-file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/error.h"

static const char *kind_of(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFDIR:
        return "it is a directory";
    case S_IFIFO:
        return "it is a FIFO";
    case S_IFSOCK:
        return "it is a socket";
    case S_IFCHR:
        return "it is a character device";
    case S_IFBLK:
        return "it is a block device";
    default:
        return "it is no regular file";
    }
}

static int check_kind(const struct stat *st, const char *path, LocalFileKind kind, GError **errp)
{
    if (S_ISREG(st->st_mode) || (kind == LOCAL_FILE_IMAGE && S_ISBLK(st->st_mode))) {
        return 0;
    }
    return bg_error_set(errp, S_ISDIR(st->st_mode) ? EISDIR : EINVAL, "cannot open '%s': %s", path,
                        kind_of(st->st_mode));
}

int local_file_open(const char *path, LocalFileKind kind, GError **errp)
{
    struct stat st;
    int fd, ret;

    /* Asked before the open, since opening some devices does things (tapes, watchdogs). */
    if (stat(path, &st) < 0) {
        return bg_error_set_errno(errp, errno, "cannot open '%s'", path);
    }
    ret = check_kind(&st, path, kind, errp);
    if (ret < 0) {
        return ret;
    }
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0) {
        ret = bg_error_set_errno(errp, errno, "cannot open '%s'", path);
    } else {
        ret = check_kind(&st, path, kind, errp); /* again: it may be another file by now */
    }
    if (ret < 0) {
        if (fd >= 0) {
            close(fd);
        }
        return ret;
    }
    return fd;
}
