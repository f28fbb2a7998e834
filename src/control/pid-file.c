/*
 * The PID file: locked as long as the daemon lives, so that a stale one is told from one in use.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "control/daemonize.h"
#include "util/error.h"

struct PidFile {
    char *path;
    int fd;
};

/* Whether path still names the file behind fd. */
static bool same_file(int fd, const char *path)
{
    struct stat ours, there;

    return fstat(fd, &ours) == 0 && lstat(path, &there) == 0 && ours.st_dev == there.st_dev &&
           ours.st_ino == there.st_ino;
}

static int lock_and_write(int fd, const char *path, GError **errp)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    g_autofree char *text = g_strdup_printf("%ld\n", (long)getpid());
    ssize_t len = (ssize_t)strlen(text);
    struct stat st;

    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        return bg_error_set(errp, EINVAL, "--pidfile: '%s' is no regular file", path);
    }
    if (fcntl(fd, F_OFD_SETLK, &lock) < 0) {
        if (errno == EAGAIN || errno == EACCES) {
            return bg_error_set(errp, EBUSY, "--pidfile: '%s' is in use by another daemon", path);
        }
        return bg_error_set_errno(errp, errno, "--pidfile: cannot lock '%s'", path);
    }
    if (!same_file(fd, path)) {
        return bg_error_set(errp, EBUSY, "--pidfile: '%s' is in use by another daemon, which just ended",
                            path);
    }
    errno = 0; /* a short write sets none */
    if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t)len, 0) != len) {
        int error = errno ? errno : ENOSPC;

        unlink(path); /* it is ours, and says nothing */
        return bg_error_set_errno(errp, error, "--pidfile: cannot write '%s'", path);
    }
    return 0;
}

PidFile *pid_file_new(const char *path, GError **errp)
{
    PidFile *pidfile;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_NOFOLLOW, 0644);

    if (fd < 0) {
        bg_error_set_errno(errp, errno, "--pidfile: cannot open '%s'", path);
        return NULL;
    }
    if (lock_and_write(fd, path, errp) < 0) {
        close(fd);
        return NULL;
    }
    pidfile = g_new0(PidFile, 1);
    pidfile->path = g_strdup(path);
    pidfile->fd = fd;
    return pidfile;
}

void pid_file_free(PidFile *pidfile)
{
    if (!pidfile) {
        return;
    }
    if (same_file(pidfile->fd, pidfile->path)) {
        unlink(pidfile->path);
    }
    close(pidfile->fd);
    g_free(pidfile->path);
    g_free(pidfile);
}
