/*
 * Reading a graph file from disk, whatever it turns out to be.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/graph-file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "control/local-file.h"
#include "util/error.h"

bool graph_file_is_name(const char *source)
{
    return g_str_has_suffix(source, ".conf") || g_str_has_suffix(source, ".json");
}

/* Read up to the end or one byte more than the limit. 0 or -errno. */
static int read_all(int fd, GString *out)
{
    char buf[64 * 1024];

    while (out->len <= GRAPH_FILE_MAX_SIZE) {
        ssize_t n = read(fd, buf, sizeof(buf));

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : 0;
        }
        g_string_append_len(out, buf, n);
    }
    return 0;
}

static unsigned line_at(const GString *text, size_t offset)
{
    unsigned line = 1;

    for (size_t i = 0; i < offset; i++) {
        line += text->str[i] == '\n';
    }
    return line;
}

static bool check_text(const GString *text, const char *path, GError **errp)
{
    const char *nul = memchr(text->str, '\0', text->len), *stop;

    if (text->len > GRAPH_FILE_MAX_SIZE) {
        bg_error_set(errp, EFBIG, "%s: larger than %d MiB: this is no graph file", path,
                     GRAPH_FILE_MAX_SIZE / (1024 * 1024));
        return false;
    }
    if (nul) {
        bg_error_set(errp, EINVAL, "%s:%u: contains a NUL byte: this is no graph file", path,
                     line_at(text, nul - text->str));
        return false;
    }
    if (!g_utf8_validate_len(text->str, text->len, &stop)) {
        bg_error_set(errp, EINVAL, "%s:%u: not valid UTF-8", path, line_at(text, stop - text->str));
        return false;
    }
    return true;
}

/* The directory of `path`, absolute. */
static char *directory_of(const char *path)
{
    g_autofree char *dir = g_path_get_dirname(path);
    g_autofree char *cwd = NULL;

    if (g_path_is_absolute(dir)) {
        return g_steal_pointer(&dir);
    }
    cwd = g_get_current_dir();
    return strcmp(dir, ".") == 0 ? g_steal_pointer(&cwd) : g_build_filename(cwd, dir, NULL);
}

bool graph_file_read(Config *config, const char *path, GError **errp)
{
    g_autoptr(GString) text = g_string_new(NULL);
    g_autofree char *base = directory_of(path);
    int fd = local_file_open(path, LOCAL_FILE_REGULAR, errp);
    int ret;

    if (fd < 0) {
        return false;
    }
    ret = read_all(fd, text);
    close(fd);
    if (ret < 0) {
        bg_error_set_errno(errp, -ret, "cannot read '%s'", path);
        return false;
    }
    if (!check_text(text, path, errp)) {
        return false;
    }
    if (g_str_has_suffix(path, ".json")) {
        return graph_file_parse_json(config, path, text->str, base, errp);
    }
    return graph_file_parse_ini(config, path, text->str, base, errp);
}
