/*
 * What SOURCE stands for.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/source.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/driver.h"
#include "block/options.h"
#include "control/graph-file.h"
#include "control/local-file.h"
#include "control/node-options.h"
#include "control/probe.h"
#include "util/error.h"
#include "util/text.h"

/* ---- URIs */

/* The length of "scheme" in "scheme://...", or in one of the forms without slashes; 0 for a file name. */
static size_t scheme_length(const char *source)
{
    static const char *const bare[] = {"nbd:", "rbd:", "iscsi:", "ssh:", "nfs:", "gluster:", "sheepdog:"};
    const char *p = source;

    if (!g_ascii_isalpha(*p)) {
        return 0;
    }
    while (g_ascii_isalnum(*p) || (*p && strchr("+-.", *p))) {
        p++;
    }
    if (g_str_has_prefix(p, "://")) {
        return p - source;
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(bare); i++) {
        if (g_str_has_prefix(source, bare[i])) {
            return strlen(bare[i]) - 1;
        }
    }
    return 0;
}

char *source_redacted(const char *source)
{
    size_t scheme = scheme_length(source);
    const char *authority, *at, *stop;

    if (node_options_is_json(source)) {
        return g_strdup("json:{...}");
    }
    if (scheme == 0) {
        return g_strdup(source);
    }
    authority = source + scheme + (g_str_has_prefix(source + scheme, "://") ? 3 : 1);
    at = authority + strcspn(authority, "/?#");
    while (at > authority && at[-1] != '@') {
        at--;
    }
    stop = at + strcspn(at, "?#");
    return g_strdup_printf("%.*s%.*s", (int)(authority - source), source, (int)(stop - at), at);
}

/* ---- Adding node and export */

static bool add_item(CommandLine *line, ConfigKind kind, JsonObject *options, GError **errp)
{
    g_autofree char *cwd = g_get_current_dir();
    g_autofree char *origin = source_redacted(line->source);
    ConfigPlace place = {.origin = origin};

    return config_add(line->config, kind, options, &place, cwd, errp) != NULL;
}

static bool add_export(CommandLine *line, const char *name, bool writable, GError **errp)
{
    g_autoptr(JsonObject) options = json_object_new();

    json_object_set_string_member(options, "type", "fuse");
    json_object_set_string_member(options, "id", name);
    json_object_set_string_member(options, "node-name", name);
    json_object_set_boolean_member(options, "writable", writable);
    return add_item(line, CONFIG_EXPORT, options, errp);
}

typedef struct Image {
    const char *path;
    const char *name;   /* of node and export */
    const char *format; /* its driver */
    const char *driver; /* of the file below */
    bool read_only;
} Image;

static bool add_image_items(CommandLine *line, const Image *image, GError **errp)
{
    g_autoptr(JsonObject) options = json_object_new();
    JsonObject *file = json_object_new();

    json_object_set_string_member(file, "driver", image->driver);
    json_object_set_string_member(file, "filename", image->path);
    json_object_set_string_member(options, "node-name", image->name);
    json_object_set_string_member(options, "driver", image->format);
    json_object_set_object_member(options, "file", file);
    if (image->read_only) {
        json_object_set_boolean_member(options, "read-only", TRUE);
    }
    return add_item(line, CONFIG_NODE, options, errp) &&
           add_export(line, image->name, !image->read_only, errp);
}

/* ---- An image file */

/* The format, given or probed; *guessed_raw: probed as raw. NULL and *errp. */
static const char *choose_format(const CommandLine *line, const char *path, int fd, bool *guessed_raw,
                                 GError **errp)
{
    const char *format = line->format;

    if (format) {
        if (!block_driver_find(format, errp)) {
            g_prefix_error(errp, "--format %s: ", format);
            return NULL;
        }
        return format;
    }
    format = probe_file(fd, path, errp);
    if (format && !block_driver_find(format, NULL)) {
        bg_error_set(errp, ENOTSUP,
                     "'%s' is an image of format %s, for which there is no driver yet (--format=raw exports "
                     "the file's bytes as they are)",
                     path, format);
        return NULL;
    }
    *guessed_raw = format && strcmp(format, "raw") == 0;
    return format;
}

static bool inspect_image(const CommandLine *line, Image *image, GError **errp)
{
    struct stat st;
    int fd = local_file_open(image->path, LOCAL_FILE_IMAGE, errp);

    if (fd < 0) {
        return false;
    }
    image->driver = fstat(fd, &st) == 0 && S_ISBLK(st.st_mode) ? "host_device" : "file";
    image->format = choose_format(line, image->path, fd, &image->read_only, errp);
    close(fd);
    return image->format != NULL;
}

static bool add_image(CommandLine *line, const char *path, char **notice, GError **errp)
{
    g_autofree char *name = g_path_get_basename(path);
    Image image = {.path = path, .name = name};

    if (!g_utf8_validate(path, -1, NULL)) {
        g_autofree char *shown = g_utf8_make_valid(path, -1);

        bg_error_set(errp, EILSEQ, "the file name '%s' is not valid UTF-8", shown);
        return false;
    }
    if (!inspect_image(line, &image, errp) || !add_image_items(line, &image, errp)) {
        return false;
    }
    if (image.read_only && !line->mount->read_only) {
        *notice =
            g_strdup_printf("'%s' looks like a raw image and is exported read-only, since the format was "
                            "guessed: --format=raw makes it writable",
                            path);
    }
    return true;
}

/* ---- json:{...} */

/* The base name of the file that a chain of "file" children ends in, or "image". */
static char *innermost_name(JsonObject *object)
{
    JsonNode *file, *name;

    while ((file = json_object_get_member(object, "file")) && JSON_NODE_HOLDS_OBJECT(file)) {
        object = json_node_get_object(file);
    }
    name = json_object_get_member(object, "filename");
    if (name && JSON_NODE_HOLDS_VALUE(name) && json_node_get_string(name) && *json_node_get_string(name)) {
        return g_path_get_basename(json_node_get_string(name));
    }
    return g_strdup("image");
}

static bool add_json(CommandLine *line, GError **errp)
{
    g_autoptr(JsonObject) options = node_options_from_json(line->source, errp);
    g_autoptr(BlockOptions) reader = NULL;
    g_autofree char *name = NULL;
    bool read_only = false;

    if (!options) {
        g_prefix_error(errp, "SOURCE: ");
        return false;
    }
    if (!json_object_has_member(options, "node-name")) {
        g_autofree char *inner = innermost_name(options);

        json_object_set_string_member(options, "node-name", inner);
    }
    reader = block_options_new("SOURCE", "", options);
    return block_options_get_bool(reader, "read-only", &read_only, errp) &&
           block_options_require_string(reader, "node-name", &name, errp) &&
           add_item(line, CONFIG_NODE, options, errp) && add_export(line, name, !read_only, errp);
}

/* ---- URIs of images */

typedef struct UriScheme {
    const char *scheme, *driver, *key; /* the option of the driver that takes the URI */
} UriScheme;

static const UriScheme uri_schemes[] = {
    {"nbd", "nbd", "uri"},       {"nbds", "nbd", "uri"},      {"nbd+unix", "nbd", "uri"},
    {"nbds+unix", "nbd", "uri"}, {"nbd+vsock", "nbd", "uri"}, {"nbds+vsock", "nbd", "uri"},
    {"http", "http", "url"},     {"https", "https", "url"},   {"ftp", "ftp", "url"},
    {"ftps", "ftps", "url"},     {"iscsi", "iscsi", "url"},
};

static const UriScheme *find_scheme(const char *source)
{
    size_t length = scheme_length(source);

    for (unsigned i = 0; i < G_N_ELEMENTS(uri_schemes); i++) {
        const UriScheme *s = &uri_schemes[i];

        if (strlen(s->scheme) == length && g_ascii_strncasecmp(s->scheme, source, length) == 0 &&
            g_str_has_prefix(source + length, "://") && block_driver_find(s->driver, NULL)) {
            return s;
        }
    }
    return NULL;
}

static bool refuse_uri(const CommandLine *line, GError **errp)
{
    g_autofree char *shown = source_redacted(line->source);

    bg_error_set(errp, ENOTSUP, "cannot open '%s': there is no driver for %.*s yet", shown,
                 (int)scheme_length(line->source), line->source);
    return false;
}

/* The last part of the path, where that can be a file's name, or `otherwise`. */
static char *name_of_uri(const char *source, const char *otherwise)
{
    const char *authority = source + scheme_length(source) + strlen("://");
    const char *path = authority + strcspn(authority, "/?#");
    g_autofree char *whole = g_strndup(path, strcspn(path, "?#"));
    char *slash = strrchr(whole, '/');
    g_autofree char *name = slash ? g_uri_unescape_string(slash + 1, "/") : NULL;

    if (!name || !*name || !strcmp(name, ".") || !strcmp(name, "..") || strlen(name) > BLOCK_NAME_MAX ||
        !g_utf8_validate(name, -1, NULL)) {
        return g_strdup(otherwise);
    }
    return g_steal_pointer(&name);
}

/* Without a format given, it is looked for when the server can be asked: see Plan.probe. Whether it is
 * writable, too. */
static bool add_uri(CommandLine *line, GError **errp)
{
    const UriScheme *scheme = find_scheme(line->source);
    g_autoptr(JsonObject) options = json_object_new();
    JsonObject *file = json_object_new();
    g_autofree char *name = NULL;

    json_object_set_object_member(options, "file", file);
    if (!scheme) {
        return refuse_uri(line, errp);
    }
    if (line->format && !block_driver_find(line->format, errp)) {
        g_prefix_error(errp, "--format %s: ", line->format);
        return false;
    }
    name = name_of_uri(line->source, scheme->driver);
    json_object_set_string_member(file, "driver", scheme->driver);
    json_object_set_string_member(file, scheme->key, line->source);
    json_object_set_boolean_member(file, "auto-read-only", TRUE);
    json_object_set_string_member(options, "node-name", name);
    json_object_set_string_member(options, "driver", line->format ? line->format : "raw");
    json_object_set_boolean_member(options, "auto-read-only", TRUE);
    line->uri_name = g_strdup(name);
    return add_item(line, CONFIG_NODE, options, errp) && add_export(line, name, true, errp);
}

/* ---- All of them */

static bool refuse_format(const CommandLine *line, const char *what, GError **errp)
{
    if (line->format) {
        bg_error_set(errp, EINVAL, "--format %s: applies to an image, not to %s", line->format, what);
        return false;
    }
    return true;
}

bool source_add(CommandLine *line, char **notice, GError **errp)
{
    const char *source = line->source;

    if (!source || strcmp(source, "none") == 0) {
        return refuse_format(line, source ? "'none'" : "--blockdev", errp);
    }
    if (node_options_is_json(source)) {
        return refuse_format(line, "json:", errp) && add_json(line, errp);
    }
    if (g_str_has_prefix(source, "file:") && !g_str_has_prefix(source, "file://")) {
        return add_image(line, source + strlen("file:"), notice, errp);
    }
    if (scheme_length(source) > 0) {
        return add_uri(line, errp);
    }
    if (graph_file_is_name(source) && !line->format) {
        return graph_file_read(line->config, source, errp);
    }
    return add_image(line, source, notice, errp);
}
