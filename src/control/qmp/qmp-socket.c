/*
 * Unix sockets.
 *
 * A socket is made under a name of its own and then renamed: at its final name it listens from the first
 * moment on, so that one that refuses connections there is always a dead one.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/qmp/qmp-socket.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "util/error.h"

#define SOCKET_SUFFIX ".sock"

static int fill_address(struct sockaddr_un *address, const char *path, GError **errp)
{
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address->sun_path)) {
        return bg_error_set(errp, ENAMETOOLONG,
                            "'%s' is too long for the path of a socket: at most %zu bytes", path,
                            sizeof(address->sun_path) - 1);
    }
    memcpy(address->sun_path, path, strlen(path));
    return 0;
}

static int new_socket(int flags, GError **errp)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);

    return fd >= 0 ? fd : bg_error_set_errno(errp, errno, "cannot make a socket");
}

int qmp_socket_connect(const char *path, GError **errp)
{
    struct sockaddr_un address;
    int ret = fill_address(&address, path, errp), fd;

    if (ret < 0) {
        return ret;
    }
    fd = new_socket(0, errp);
    if (fd < 0) {
        return fd;
    }
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        ret = bg_error_set_errno(errp, errno, "cannot connect to '%s'", path);
        close(fd);
        return ret;
    }
    return fd;
}

/* ---- Listening */

/* A socket whose daemon is gone. */
static bool is_stale(const char *path)
{
    struct sockaddr_un address;
    struct stat st;
    bool stale;
    int fd;

    if (lstat(path, &st) < 0 || !S_ISSOCK(st.st_mode) || fill_address(&address, path, NULL) < 0) {
        return false;
    }
    fd = new_socket(SOCK_NONBLOCK, NULL);
    if (fd < 0) {
        return false;
    }
    stale = connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 && errno == ECONNREFUSED;
    close(fd);
    return stale;
}

static int check_place(const char *path, GError **errp)
{
    struct stat st;

    if (lstat(path, &st) < 0) {
        return errno == ENOENT ? 0 : bg_error_set_errno(errp, errno, "cannot make the socket '%s'", path);
    }
    if (!S_ISSOCK(st.st_mode)) {
        return bg_error_set(errp, EEXIST, "cannot make the socket '%s': there is something else", path);
    }
    return is_stale(path)
               ? 0
               : bg_error_set(errp, EADDRINUSE, "the socket '%s' is in use by another process", path);
}

/* Linux gives the file the mode that the socket has, so that nobody can connect in between. */
static int bind_and_listen(int fd, const char *name, const char *path, GError **errp)
{
    struct sockaddr_un address;
    int ret = fill_address(&address, name, errp);

    if (ret < 0) {
        return ret;
    }
    unlink(name);
    if (fchmod(fd, 0600) < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        return bg_error_set_errno(errp, errno, "cannot make the socket '%s'", path);
    }
    if (listen(fd, SOMAXCONN) < 0 || rename(name, path) < 0) {
        ret = bg_error_set_errno(errp, errno, "cannot make the socket '%s'", path);
        unlink(name);
    }
    return ret;
}

int qmp_socket_listen(const char *path, GError **errp)
{
    g_autofree char *name = g_strdup_printf("%s.%d", path, (int)getpid());
    int ret = check_place(path, errp), fd;

    if (ret < 0) {
        return ret;
    }
    fd = new_socket(SOCK_NONBLOCK, errp);
    if (fd < 0) {
        return fd;
    }
    ret = bind_and_listen(fd, name, path, errp);
    if (ret < 0) {
        close(fd);
        return ret;
    }
    return fd;
}

/* ---- The default place */

static char *default_directory(void)
{
    const char *runtime = g_getenv("XDG_RUNTIME_DIR");

    if (geteuid() == 0) {
        return g_strdup("/run/blockgraph");
    }
    if (runtime && g_path_is_absolute(runtime)) {
        return g_build_filename(runtime, "blockgraph", NULL);
    }
    return g_strdup_printf("/tmp/blockgraph-%u", (unsigned)geteuid());
}

/* Made by us, or at least nobody else's. */
static int make_directory(const char *path, GError **errp)
{
    struct stat st;

    if (mkdir(path, 0700) < 0 && errno != EEXIST) {
        return bg_error_set_errno(errp, errno, "cannot make the directory '%s'", path);
    }
    if (lstat(path, &st) < 0) {
        return bg_error_set_errno(errp, errno, "cannot look at the directory '%s'", path);
    }
    if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077)) {
        return bg_error_set(errp, EPERM, "'%s' is no directory that only its owner can enter", path);
    }
    return 0;
}

static void remove_stale(const char *directory)
{
    g_autoptr(GDir) dir = g_dir_open(directory, 0, NULL);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *path = g_build_filename(directory, name, NULL);

        if (g_str_has_suffix(name, SOCKET_SUFFIX) && is_stale(path)) {
            unlink(path);
        }
    }
}

char *qmp_socket_default_path(GError **errp)
{
    g_autofree char *directory = default_directory();

    if (make_directory(directory, errp) < 0) {
        return NULL;
    }
    remove_stale(directory);
    return g_strdup_printf("%s/%d" SOCKET_SUFFIX, directory, (int)getpid());
}
