/*
 * Looking at a mountpoint before the mount, and at the mount table after.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "fuse/mountpoint.h"
#include "util/error.h"
#include "util/lock.h"

#define MOUNT_TABLE "/proc/self/mountinfo"

/* ---- The mount table */

/*
 * Open from the first check on: the end of a mount needs it, also where the process has no descriptor left
 * by then.
 */
static BgMutex table_lock = BG_MUTEX_INIT;
static int table_fd BG_GUARDED_BY(table_lock) = -1;

static int open_table_locked(void) BG_REQUIRES(table_lock)
{
    if (table_fd < 0) {
        table_fd = open(MOUNT_TABLE, O_RDONLY | O_CLOEXEC);
    }
    return table_fd < 0 ? -errno : 0;
}

static int open_table(void)
{
    bg_mutex_lock(&table_lock);
    int ret = open_table_locked();
    bg_mutex_unlock(&table_lock);
    return ret;
}

/* As it is now; empty where it cannot be read. g_free. */
static char *read_table(void)
{
    GString *text = g_string_new(NULL);
    char part[4096];
    ssize_t n = 0;
    bg_mutex_lock(&table_lock);
    if (open_table_locked() == 0 && lseek(table_fd, 0, SEEK_SET) == 0) {
        while ((n = read(table_fd, part, sizeof part)) > 0) {
            g_string_append_len(text, part, n);
        }
    }
    bg_mutex_unlock(&table_lock);
    return g_string_free(text, FALSE);
}

char *mountpoint_unescape(const char *field)
{
    GString *s = g_string_new(NULL);
    for (const char *p = field; *p; p++) {
        if (p[0] == '\\' && g_ascii_isdigit(p[1]) && g_ascii_isdigit(p[2]) && g_ascii_isdigit(p[3])) {
            g_string_append_c(s, (char)((p[1] - '0') * 64 + (p[2] - '0') * 8 + (p[3] - '0')));
            p += 3;
        } else {
            g_string_append_c(s, *p);
        }
    }
    return g_string_free(s, FALSE);
}

/* One line: 36 35 98:0 /root /mountpoint options [optional fields] - type source options */
typedef struct MountLine {
    char *device, *mountpoint, *type;
} MountLine;

static void mount_line_clear(MountLine *line)
{
    g_free(line->device);
    g_free(line->mountpoint);
    g_free(line->type);
}

static bool mount_line_parse(const char *text, MountLine *line)
{
    g_auto(GStrv) field = g_strsplit(text, " ", -1);
    guint n = g_strv_length(field), dash = 6;
    while (dash < n && strcmp(field[dash], "-")) {
        dash++;
    }
    if (dash + 1 >= n) {
        return false;
    }
    *line = (MountLine){.device = g_strdup(field[2]),
                        .mountpoint = mountpoint_unescape(field[4]),
                        .type = g_strdup(field[dash + 1])};
    return true;
}

/* Call visit for each mount at `path`, from the bottom to the top. */
static void for_each_mount_at(const char *path, void (*visit)(const MountLine *line, void *opaque),
                              void *opaque)
{
    g_autofree char *table = read_table();
    g_auto(GStrv) lines = g_strsplit(table, "\n", -1);
    for (char **l = lines; *l; l++) {
        MountLine line;
        if (mount_line_parse(*l, &line)) {
            if (!strcmp(line.mountpoint, path)) {
                visit(&line, opaque);
            }
            mount_line_clear(&line);
        }
    }
}

static void take_device(const MountLine *line, void *opaque)
{
    char **device = opaque;
    g_free(*device);
    *device = g_strdup(line->device);
}

char *mountpoint_top_device(const char *path)
{
    char *device = NULL;
    for_each_mount_at(path, take_device, &device);
    return device;
}

typedef struct DeviceSearch {
    const char *device;
    bool found;
} DeviceSearch;

static void search_device(const MountLine *line, void *opaque)
{
    DeviceSearch *search = opaque;
    search->found = search->found || !strcmp(line->device, search->device);
}

bool mountpoint_has_device(const char *path, const char *device)
{
    DeviceSearch search = {.device = device};
    for_each_mount_at(path, search_device, &search);
    return search.found;
}

static void take_type(const MountLine *line, void *opaque)
{
    char **type = opaque;
    g_free(*type);
    *type = g_strdup(line->type);
}

/* ---- Checks before a mount */

/*
 * As stat(2): 0 or -errno. -ENOTCONN for a FUSE mount whose daemon has died: statfs says so also while the
 * kernel still remembers the attributes.
 */
static int look_at(const char *path, struct stat *st)
{
    struct statfs fs;
    return stat(path, st) < 0 || statfs(path, &fs) < 0 ? -errno : 0;
}

/* The shortest leading part of `path` that is a mount without a daemon. */
static char *dead_part_of(const char *path)
{
    g_autofree char *absolute = g_canonicalize_filename(path, NULL);
    for (char *end = strchr(absolute + 1, '/'); end; end = strchr(end + 1, '/')) {
        struct stat st;
        *end = '\0';
        if (look_at(absolute, &st) == -ENOTCONN) {
            return g_steal_pointer(&absolute);
        }
        *end = '/';
    }
    return g_steal_pointer(&absolute);
}

static int report_stat_failure(const char *path, int err, GError **errp)
{
    if (err != ENOTCONN && err != ECONNABORTED) {
        return bg_error_set_errno(errp, err, "mountpoint '%s'", path);
    }
    g_autofree char *dead = dead_part_of(path);
    g_autofree char *absolute = g_canonicalize_filename(path, NULL);
    g_autofree char *what =
        strcmp(dead, absolute) ? g_strdup_printf("inside '%s',", dead) : g_strdup("busy:");
    return bg_error_set(
        errp, err, "mountpoint '%s': %s a FUSE mount whose daemon has died; clear it with: fusermount3 -u %s",
        path, what, dead);
}

static int check_not_mounted(const char *path, GError **errp)
{
    g_autofree char *real = realpath(path, NULL);
    g_autofree char *type = NULL;
    if (real) {
        for_each_mount_at(real, take_type, &type);
    }
    if (type && g_str_has_prefix(type, "fuse")) {
        return bg_error_set(errp, EBUSY,
                            "mountpoint '%s': busy: a file system of type %s is mounted there already", path,
                            type);
    }
    return 0;
}

int mountpoint_check(const char *path, bool over_file, GError **errp)
{
    struct stat st;
    int ret = look_at(path, &st);
    if (ret < 0) {
        return report_stat_failure(path, -ret, errp);
    }
    if (over_file && !S_ISREG(st.st_mode)) {
        return bg_error_set(errp, EINVAL, "mountpoint '%s': not a regular file", path);
    }
    if (!over_file && !S_ISDIR(st.st_mode)) {
        return bg_error_set(errp, ENOTDIR, "mountpoint '%s': not a directory", path);
    }
    ret = open_table();
    return ret < 0 ? bg_error_set_errno(errp, -ret, "mountpoint '%s': " MOUNT_TABLE, path)
                   : check_not_mounted(path, errp);
}
