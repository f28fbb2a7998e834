/*
 * Mounting and unmounting.
 *
 * libfuse parses the mount options and mounts: by mount(2) as root, else through the set-user-id fusermount3.
 * Unmounting is done here, as libfuse goes by the path alone and would take away whatever is mounted there;
 * the mount table tells whether that is still ours.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define FUSE_USE_VERSION FUSE_MAKE_VERSION(3, 10)
#include <fuse_lowlevel.h>

#include "aio/thread-pool.h"
#include "fuse/init.h"
#include "fuse/mountpoint.h"
#include "fuse/session.h"
#include "util/error.h"
#include "util/log.h"

#define FUSE_CONF       "/etc/fuse.conf"
#define INIT_TIMEOUT_MS 10000

struct MountSession {
    struct fuse_session *se;
    char *mountpoint; /* as given, for messages */
    char *path;       /* absolute, without links */
    char *device;     /* of the mount, as in the mount table; NULL: unknown, it vanished at once */
};

/* ---- Messages of libfuse, which say why a mount failed. Main thread. */

static GString *captured;

static void capture_log(enum fuse_log_level level, const char *fmt, va_list ap)
{
    g_autofree char *line = g_strdup_vprintf(fmt, ap);
    g_strstrip(line);
    if (captured && level <= FUSE_LOG_WARNING) {
        g_string_append_printf(captured, "%s%s", captured->len ? "; " : "", line);
    } else {
        bg_log(level <= FUSE_LOG_WARNING ? BG_LOG_WARNING : BG_LOG_DEBUG, "libfuse: %s", line);
    }
}

/* ---- Mounting */

/* Whether an ordinary user may pass allow_other; asking fusermount3 would make it complain on stderr. */
static bool may_allow_other(void)
{
    g_autofree char *conf = NULL;
    if (geteuid() == 0) {
        return true;
    }
    if (!g_file_get_contents(FUSE_CONF, &conf, NULL, NULL)) {
        return false;
    }
    g_auto(GStrv) lines = g_strsplit(conf, "\n", -1);
    for (char **l = lines; *l; l++) {
        if (!strcmp(g_strstrip(*l), "user_allow_other")) {
            return true;
        }
    }
    return false;
}

/* The text after -o; freed with free. */
static char *mount_options(const FuseMountConfig *config, bool allow_other)
{
    char *opts = NULL;
    g_autofree char *fsname = g_strdup_printf("fsname=%s", config->source);
    g_autofree char *max_read = g_strdup_printf("max_read=%u", FUSE_PAYLOAD_SIZE);
    fuse_opt_add_opt_escaped(&opts, fsname);
    fuse_opt_add_opt(&opts, "subtype=blockgraphfs");
    fuse_opt_add_opt(&opts, "default_permissions");
    fuse_opt_add_opt(&opts, max_read);
    if (config->read_only) {
        fuse_opt_add_opt(&opts, "ro");
    }
    if (allow_other) {
        fuse_opt_add_opt(&opts, "allow_other");
    }
    for (char *const *o = config->fuse_options; o && *o; o++) {
        fuse_opt_add_opt(&opts, *o);
    }
    return opts;
}

static struct fuse_session *new_session(const FuseMountConfig *config, bool allow_other)
{
    static const struct fuse_lowlevel_ops no_ops = {.init = NULL}; /* requests are not libfuse's business */
    struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
    char *opts = mount_options(config, allow_other);
    fuse_opt_add_arg(&args, "blockgraphfs");
    fuse_opt_add_arg(&args, "-o");
    fuse_opt_add_arg(&args, opts);
    struct fuse_session *se = fuse_session_new(&args, &no_ops, sizeof no_ops, NULL);
    fuse_opt_free_args(&args);
    free(opts);
    return se;
}

static struct fuse_session *try_mount(const FuseMountConfig *config, const char *path, bool allow_other)
{
    g_string_truncate(captured, 0);
    struct fuse_session *se = new_session(config, allow_other);
    if (se && fuse_session_mount(se, path) < 0) {
        fuse_session_destroy(se);
        se = NULL;
    }
    return se;
}

static struct fuse_session *do_mount(const FuseMountConfig *config, const char *path, GError **errp)
{
    g_autoptr(GString) messages = g_string_new(NULL);
    captured = messages;
    fuse_set_log_func(capture_log);
    bool allow_other = config->allow_other == FUSE_ALLOW_OTHER_ON ||
                       (config->allow_other == FUSE_ALLOW_OTHER_AUTO && may_allow_other());
    struct fuse_session *se = try_mount(config, path, allow_other);
    if (!se && allow_other && config->allow_other == FUSE_ALLOW_OTHER_AUTO) {
        se = try_mount(config, path, false);
    }
    captured = NULL;
    if (!se) {
        bg_error_set(errp, EIO, "mountpoint '%s': cannot mount%s%s", config->mountpoint,
                     messages->len ? ": " : "", messages->str);
    }
    return se;
}

static int check_device(GError **errp)
{
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        int err = errno;
        const char *hint =
            err == ENOENT || err == ENODEV || err == ENXIO ? " (is the fuse module loaded?)" : "";
        return bg_error_set(errp, err, "/dev/fuse: %s%s", g_strerror(err), hint);
    }
    close(fd);
    return 0;
}

MountSession *mount_session_new(const FuseMountConfig *config, GError **errp)
{
    if (mountpoint_check(config->mountpoint, config->single_export, errp) < 0 || check_device(errp) < 0) {
        return NULL;
    }
    char *path = realpath(config->mountpoint, NULL);
    if (!path) {
        bg_error_set_errno(errp, errno, "mountpoint '%s'", config->mountpoint);
        return NULL;
    }
    struct fuse_session *se = do_mount(config, path, errp);
    if (!se) {
        free(path);
        return NULL;
    }
    fcntl(fuse_session_fd(se), F_SETFL, O_NONBLOCK);
    MountSession *session = g_new(MountSession, 1);
    *session = (MountSession){.se = se,
                              .mountpoint = g_strdup(config->mountpoint),
                              .path = path,
                              .device = mountpoint_top_device(path)};
    return session;
}

int mount_session_fd(const MountSession *session)
{
    return fuse_session_fd(session->se);
}

const char *mount_session_mountpoint(const MountSession *session)
{
    return session->mountpoint;
}

/* ---- INIT */

/* 0 once there is something to read, or -errno. */
static int wait_readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    int ret;
    do {
        ret = poll(&p, 1, INIT_TIMEOUT_MS);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : ret == 0 ? -ETIMEDOUT : 0;
}

/* One INIT request and its answer: as fuse_init_negotiate. */
static int answer_init(MountSession *session, GError **errp)
{
    int fd = mount_session_fd(session);
    g_autofree uint8_t *buf = g_malloc(FUSE_MIN_READ_BUFFER);
    int ret = wait_readable(fd);
    if (ret < 0) {
        return bg_error_set_errno(errp, -ret, "mountpoint '%s': no first request from the kernel",
                                  session->mountpoint);
    }
    ssize_t n = read(fd, buf, FUSE_MIN_READ_BUFFER);
    if (n < 0) {
        return bg_error_set_errno(errp, errno, "mountpoint '%s': reading the first request",
                                  session->mountpoint);
    }
    FuseInitReply reply;
    ret = fuse_init_negotiate(buf, (size_t)n, &reply, errp);
    if (reply.header.len && write(fd, &reply, reply.header.len) < 0 && ret >= 0) {
        ret = bg_error_set_errno(errp, errno, "mountpoint '%s': answering the first request",
                                 session->mountpoint);
    }
    return ret;
}

int mount_session_init(MountSession *session, GError **errp)
{
    int ret;
    do {
        ret = answer_init(session, errp);
    } while (ret > 0);
    return ret;
}

/* ---- Unmounting, in a worker thread */

/* umount(2), or fusermount3 for ordinary users. 0 or -errno (fusermount3 does not tell why: -EBUSY). */
static int unmount(const MountSession *session, bool lazy)
{
    if (geteuid() == 0) {
        return umount2(session->path, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) < 0 ? -errno : 0;
    }
    const char *argv[] = {"fusermount3",
                          "-u",
                          "-q",
                          lazy ? "-z" : "--",
                          lazy ? "--" : session->path,
                          lazy ? session->path : NULL,
                          NULL};
    int status;
    bool ran = g_spawn_sync(NULL, (char **)argv, NULL,
                            G_SPAWN_SEARCH_PATH | G_SPAWN_STDOUT_TO_DEV_NULL | G_SPAWN_STDERR_TO_DEV_NULL,
                            NULL, NULL, NULL, NULL, &status, NULL);
    return ran && status == 0 ? 0 : -EBUSY;
}

/* Write the dirty pages of files that stay open, while the mount can still be reached by its path. */
static void sync_mount(const MountSession *session)
{
    int fd = open(session->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd >= 0) {
        syncfs(fd);
        close(fd);
    }
}

static bool connection_ended(const MountSession *session)
{
    struct pollfd p = {.fd = mount_session_fd(session)};
    return poll(&p, 1, 0) == 1 && (p.revents & POLLERR);
}

static int unmount_ours(void *opaque)
{
    MountSession *session = opaque;
    g_autofree char *top = mountpoint_top_device(session->path);
    if (!session->device || g_strcmp0(top, session->device)) {
        if (session->device && mountpoint_has_device(session->path, session->device)) {
            bg_log(BG_LOG_WARNING, "mountpoint '%s': something else is mounted over it; left in place",
                   session->mountpoint);
        }
        return 0;
    }
    int ret = unmount(session, false);
    if (ret == -EBUSY) {
        if (!connection_ended(session)) {
            sync_mount(session);
        }
        ret = unmount(session, true);
    }
    if (ret < 0) {
        bg_log(BG_LOG_WARNING, "mountpoint '%s': cannot unmount: %s", session->mountpoint, g_strerror(-ret));
    }
    return 0;
}

void coroutine_fn mount_session_co_unmount(MountSession *session)
{
    thread_pool_co_run(unmount_ours, session);
}

void mount_session_free(MountSession *session)
{
    /*
     * libfuse frees what it has allocated for the mount only by unmounting, which it leaves out where the
     * descriptor reports an error, as that of a connection that has ended does. So does a pipe without a
     * reader.
     */
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) == 0) {
        close(ends[0]);
        dup2(ends[1], fuse_session_fd(session->se));
        close(ends[1]);
        fuse_session_unmount(session->se);
    }
    fuse_session_destroy(session->se);
    g_free(session->mountpoint);
    g_free(session->device);
    free(session->path);
    g_free(session);
}
