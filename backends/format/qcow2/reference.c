/*
 * qcow2: opening what the image itself names, below directories that the graph lists.
 *
 * Whoever wrote the image chose the name, so it is only ever that of a file or block device, looked at with
 * all symbolic links followed, and opened by the path that came out of that. Formats are never guessed.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "aio/thread-pool.h"
#include "backends/format/qcow2/qcow2.h"
#include "util/error.h"

/* Images that name each other in a row. Each takes a part of the coroutine's stack while it opens. */
#define MAX_ROW 100u

/* ---- Looking for the file, in a worker */

typedef struct Search {
    const char *name; /* as in the image */
    const char *image;
    char **directories;
    GPtrArray *above; /* names of the files of this node, and of those that it is opened for */
    char *path;       /* result */
    bool is_device;
    GError *error; /* the cause alone */
} Search;

static bool lies_below(const char *path, const char *directory)
{
    size_t n = strlen(directory);
    while (n > 0 && directory[n - 1] == '/') {
        n--;
    }
    return strncmp(path, directory, n) == 0 && path[n] == '/';
}

static int check_place(Search *search)
{
    for (char **d = search->directories; *d; d++) {
        g_autofree char *real = NULL;
        char *found = realpath(*d, NULL);
        if (!found) {
            return bg_error_set_errno(&search->error, errno, "the directory '%s' of allow-image-references",
                                      *d);
        }
        real = g_strdup(found);
        free(found);
        if (lies_below(search->path, real)) {
            return 0;
        }
    }
    return bg_error_set(&search->error, EACCES,
                        "'%s' does not lie below a directory of allow-image-references", search->path);
}

static int check_file(Search *search)
{
    struct stat st, above;
    if (stat(search->path, &st) < 0) {
        return bg_error_set_errno(&search->error, errno, "'%s'", search->path);
    }
    search->is_device = S_ISBLK(st.st_mode);
    if (!search->is_device && !S_ISREG(st.st_mode)) {
        return bg_error_set(&search->error, EINVAL, "'%s' is neither a regular file nor a block device",
                            search->path);
    }
    for (guint i = 0; i < search->above->len; i++) {
        if (stat(search->above->pdata[i], &above) == 0 && above.st_dev == st.st_dev &&
            above.st_ino == st.st_ino) {
            return bg_error_set(&search->error, ELOOP, "'%s' would come to lie below itself", search->path);
        }
    }
    return 0;
}

static int run_search(void *opaque)
{
    Search *search = opaque;
    g_autofree char *directory = g_path_get_dirname(search->image);
    g_autofree char *path = g_path_is_absolute(search->name)
                                ? g_strdup(search->name)
                                : g_build_filename(directory, search->name, NULL);
    char *real = realpath(path, NULL);
    if (!real) {
        return bg_error_set_errno(&search->error, errno, "'%s'", path);
    }
    search->path = g_strdup(real);
    free(real);
    if (!g_utf8_validate(search->path, -1, NULL)) {
        return bg_error_set(&search->error, EILSEQ, "a name that is not valid UTF-8");
    }
    int ret = check_place(search);
    return ret < 0 ? ret : check_file(search);
}

/* ---- What the image may name */

/* "scheme:...", which includes json: */
static bool has_scheme(const char *name)
{
    return name[strcspn(name, ":/")] == ':';
}

static const char *name_fault(const char *name)
{
    if (!*name) {
        return "the name is empty";
    }
    return has_scheme(name) ? "only names of local files are followed" : NULL;
}

/* A format on top of a file. */
static bool is_format(const char *name)
{
    const BlockDriver *driver = block_driver_find(name, NULL);
    return driver && !driver->is_filter && driver->child_options &&
           g_strv_contains(driver->child_options, "file");
}

static int check_format(const char *format, GError **errp)
{
    if (!format || !*format) {
        return bg_error_set(errp, EINVAL, "it does not say of which format, and formats are not guessed");
    }
    if (!is_format(format)) {
        g_autofree char *shown = g_strescape(format, NULL);
        return bg_error_set(errp, ENOTSUP, "its format '%s' is not supported", shown);
    }
    return 0;
}

/* The names of the files above, as far as there are such. NULL and *errp where there are too many. */
static GPtrArray *files_above(const BlockNode *node, GError **errp)
{
    g_autoptr(GPtrArray) files = g_ptr_array_new_with_free_func(g_free);
    unsigned height = 0;
    for (; node; node = node->opener, height++) {
        g_autofree char *name = node->file ? block_node_filename(node->file->node) : NULL;
        if (name && g_path_is_absolute(name)) {
            g_ptr_array_add(files, g_steal_pointer(&name));
        }
    }
    if (height >= MAX_ROW) {
        bg_error_set(errp, ELOOP, "more than %u images that name each other", MAX_ROW);
        return NULL;
    }
    return g_steal_pointer(&files);
}

static int coroutine_fn find_file(BlockNode *node, const Qcow2Reference *ref, Search *search, GError **errp)
{
    const char *fault = name_fault(ref->name);
    if (fault) {
        return bg_error_set(errp, EINVAL, "%s", fault);
    }
    int ret = ref->format_needed ? check_format(ref->format, errp) : 0;
    if (ret < 0) {
        return ret;
    }
    g_autofree char *image = block_node_filename(node->file->node);
    if (!image || !g_path_is_absolute(image)) {
        return bg_error_set(errp, ENOTSUP, "but is itself no local file");
    }
    g_autoptr(GPtrArray) above = files_above(node, errp);
    if (!above) {
        return -ELOOP;
    }
    search->name = ref->name;
    search->image = image;
    search->above = above;
    ret = thread_pool_co_run(run_search, search);
    if (search->error) {
        g_propagate_error(errp, search->error);
    }
    return ret;
}

/* ---- Opening */

static JsonObject *file_options(const Search *search)
{
    JsonObject *file = json_object_new();
    json_object_set_string_member(file, "driver", search->is_device ? "host_device" : "file");
    json_object_set_string_member(file, "filename", search->path);
    return file;
}

/* What the format needs to follow names in its turn. */
static void pass_on_directories(const BlockNode *node, JsonObject *options, char **directories)
{
    if (strcmp(json_object_get_string_member(options, "driver"), node->driver->name) != 0) {
        return;
    }
    JsonArray *list = json_array_new();
    for (char **d = directories; *d; d++) {
        json_array_add_string_element(list, *d);
    }
    json_object_set_array_member(options, "allow-image-references", list);
}

/* {KEY: {...}}, as if the graph had said so. */
static JsonObject *child_options(const BlockNode *node, const Qcow2Reference *ref, const Search *search)
{
    JsonObject *outer = json_object_new(), *child = file_options(search);
    if (ref->format_needed) {
        JsonObject *format = json_object_new();
        json_object_set_string_member(format, "driver", ref->format);
        json_object_set_object_member(format, "file", child);
        json_object_set_boolean_member(format, "read-only", TRUE);
        pass_on_directories(node, format, search->directories);
        child = format;
    }
    json_object_set_object_member(outer, ref->key, child);
    return outer;
}

/* Messages of nodes without a name do not say which file they are about. */
static int explain(BlockOptions *opts, const Qcow2Reference *ref, const char *path, int ret, GError *cause,
                   GError **errp)
{
    if (g_str_has_prefix(cause->message, block_options_what(opts))) {
        g_propagate_error(errp, cause);
        return ret;
    }
    block_options_error(opts, ref->key, errp, -ret, "the %s '%s': %s", ref->what, path, cause->message);
    g_error_free(cause);
    return ret;
}

int coroutine_fn qcow2_open_reference(BlockNode *node, BlockOptions *opts, const Qcow2Reference *ref,
                                      char **directories, BlockChild **out, GError **errp)
{
    g_autofree char *shown = g_strescape(ref->name, NULL);
    if (!directories) {
        block_options_error(opts, ref->key, errp, EINVAL,
                            "the image names the %s '%s', which is not opened by itself: %s, or list its "
                            "directory in allow-image-references",
                            ref->what, shown, ref->remedy);
        return -EINVAL;
    }
    g_autoptr(GError) cause = NULL;
    Search search = {.directories = directories};
    int ret = find_file(node, ref, &search, &cause);
    g_autofree char *path = search.path;
    if (ret < 0) {
        block_options_error(opts, ref->key, errp, -ret, "the image names the %s '%s': %s", ref->what, shown,
                            cause->message);
        return ret;
    }
    g_autoptr(JsonObject) options = child_options(node, ref, &search);
    g_autoptr(BlockOptions) named =
        block_options_new(block_options_what(opts), block_options_prefix(opts), options);
    GError *err = NULL;
    ret = block_node_co_open_child(node, named, ref->key, ref->role, false, out, &err);
    return ret < 0 ? explain(opts, ref, path, ret, err, errp) : 0;
}
