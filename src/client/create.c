/*
 * blockgraph create: a new image in a local file.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <json-glib/json-glib.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "block/create.h"
#include "client/block.h"
#include "client/client.h"
#include "control/keyval.h"
#include "util/error.h"
#include "util/text.h"

typedef struct CreateJob {
    JsonObject *image;      /* options of the format; NULL: the file is the image */
    JsonObject *storage[2]; /* options of driver file: of FILE, of an external data file or NULL */
    BlockCreateFlags flags;
} CreateJob;

/* ---- A signal must not leave half an image either */

static const char *volatile unfinished[2]; /* files of ours; NULL: none */
static const int signals[] = {SIGHUP, SIGINT, SIGTERM};

static void remove_unfinished(void)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(unfinished); i++) {
        if (unfinished[i]) {
            unlink(unfinished[i]);
        }
    }
}

static void remove_and_die(int number)
{
    remove_unfinished();
    signal(number, SIG_DFL);
    raise(number);
}

static void set_handlers(void (*handler)(int))
{
    for (unsigned i = 0; i < G_N_ELEMENTS(signals); i++) {
        signal(signals[i], handler);
    }
}

/* ---- Options */

/* qemu-img's names of options are those of blockdev-create but for these. */
static bool rename_option(const char *key, const char **value, char **renamed, GError **errp)
{
    static const char *const compat[][2] = {{"0.10", "v2"}, {"v2", "v2"}, {"1.1", "v3"}, {"v3", "v3"}};
    *renamed = g_strdelimit(g_strdup(key), "_", '-');
    if (strcmp(key, "compat") != 0 || !*value) {
        return true;
    }
    g_free(*renamed);
    *renamed = g_strdup("version");
    for (unsigned i = 0; i < G_N_ELEMENTS(compat); i++) {
        if (strcmp(*value, compat[i][0]) == 0) {
            *value = compat[i][1];
            return true;
        }
    }
    bg_error_set(errp, EINVAL, "option 'compat': '%s' is neither 0.10 nor 1.1", *value);
    return false;
}

static bool add_option(JsonObject *image, const char *key, JsonNode *node, GError **errp)
{
    g_autofree char *renamed = NULL;
    const char *value = JSON_NODE_HOLDS_VALUE(node) ? json_node_get_string(node) : NULL;
    if (!rename_option(key, &value, &renamed, errp)) {
        return false;
    }
    if (json_object_has_member(image, renamed)) {
        bg_error_set(errp, EINVAL, "option '%s': given more than once, or set by an argument", key);
        return false;
    }
    if (value) {
        json_object_set_string_member(image, renamed, value);
    } else {
        json_object_set_member(image, renamed, json_node_copy(node));
    }
    return true;
}

static bool add_options(JsonObject *image, const char *text, GError **errp)
{
    g_autoptr(JsonObject) given = keyval_parse(text, NULL, errp);
    if (!given) {
        g_prefix_error(errp, "-o: ");
        return false;
    }
    g_autoptr(GList) keys = json_object_get_members(given);
    for (GList *l = keys; l; l = l->next) {
        if (!add_option(image, l->data, json_object_get_member(given, l->data), errp)) {
            return false;
        }
    }
    return true;
}

/* As qemu-img: a format that counts in sectors gets whole ones. */
static bool add_size(JsonObject *image, const char *text, bool whole_sectors, GError **errp)
{
    uint64_t size;
    int ret = text_parse_size(text, &size);
    if (ret < 0 || size > (uint64_t)BLOCK_MAX_LENGTH) {
        bg_error_set(errp, EINVAL, "SIZE: '%s' is %s", text,
                     ret == -EINVAL ? "not a size, such as 512M or 10G" : "out of range");
        return false;
    }
    if (whole_sectors) {
        size = (size + 511) & ~UINT64_C(511);
    }
    json_object_set_int_member(image, "size", (gint64)size);
    return true;
}

static bool check_backing(JsonObject *image, GError **errp)
{
    if (json_object_has_member(image, "backing-file") && !json_object_has_member(image, "backing-fmt")) {
        bg_error_set(errp, EINVAL,
                     "option 'backing-file': needs backing-fmt as well: formats are not guessed");
        return false;
    }
    return true;
}

static JsonObject *storage_options(const char *filename)
{
    JsonObject *o = json_object_new();
    json_object_set_string_member(o, "driver", "file");
    json_object_set_string_member(o, "filename", filename);
    return o;
}

/* Here it is named by its file. */
static void take_data_file(CreateJob *job)
{
    JsonNode *node = job->image ? json_object_get_member(job->image, "data-file") : NULL;
    if (node && JSON_NODE_HOLDS_VALUE(node)) {
        g_autofree char *filename = g_strdup(json_node_get_string(node));
        job->storage[1] = storage_options(filename);
        json_object_set_int_member(job->storage[1], "size", 0);
        json_object_set_object_member(job->image, "data-file", storage_options(filename));
    }
}

static bool read_line(const ClientLine *line, CreateJob *job, GError **errp)
{
    const char *format = client_line_word(line, 0);
    bool plain = strcmp(format, "raw") == 0 || strcmp(format, "file") == 0;
    job->storage[0] = storage_options(client_line_word(line, 1));
    job->flags = client_line_has(line, "force") ? BLOCK_CREATE_OVERWRITE : 0;
    JsonObject *image = job->storage[0];
    if (!plain) {
        image = job->image = json_object_new();
        json_object_set_string_member(image, "driver", format);
        json_object_set_object_member(image, "file", storage_options(client_line_word(line, 1)));
        json_object_set_int_member(job->storage[0], "size", 0);
    }
    if (!add_size(image, client_line_word(line, 2), !plain, errp)) {
        return false;
    }
    g_autoptr(GPtrArray) options = client_line_values(line, "o");
    for (guint i = 0; i < options->len; i++) {
        if (!add_options(image, options->pdata[i], errp)) {
            return false;
        }
    }
    take_data_file(job);
    return check_backing(image, errp);
}

/* ---- Making it */

/* A wrong option is found before anything is touched. */
static int coroutine_fn check_options(BlockGraph *graph, const CreateJob *job, GError **errp)
{
    int ret = job->image ? block_driver_co_create(graph, job->image, BLOCK_CREATE_DRY_RUN, errp) : 0;
    for (unsigned i = 0; i < 2 && job->storage[i] && ret == 0; i++) {
        ret = block_driver_co_create(graph, job->storage[i], BLOCK_CREATE_DRY_RUN, errp);
    }
    return ret;
}

/* One of the files, marked as unfinished where it was not there. */
static int coroutine_fn make_storage(BlockGraph *graph, const CreateJob *job, unsigned i, GError **errp)
{
    const char *filename = json_object_get_string_member(job->storage[i], "filename");
    unfinished[i] = access(filename, F_OK) < 0 && errno == ENOENT ? filename : NULL;
    int ret = block_driver_co_create(graph, job->storage[i], job->flags, errp);
    if (ret == -EEXIST) {
        unfinished[i] = NULL; /* another's, after all */
    }
    return ret;
}

static int coroutine_fn co_create(BlockGraph *graph, void *opaque, GError **errp)
{
    CreateJob *job = opaque;
    int ret = check_options(graph, job, errp);
    set_handlers(remove_and_die);
    for (unsigned i = 0; i < 2 && job->storage[i] && ret == 0; i++) {
        ret = make_storage(graph, job, i, errp);
    }
    if (ret == 0 && job->image) {
        ret = block_driver_co_create(graph, job->image, 0, errp);
    }
    if (ret < 0) {
        remove_unfinished();
    }
    set_handlers(SIG_DFL);
    return ret;
}

static int run_create(const ClientLine *line)
{
    CreateJob job = {0};
    GError *error = NULL;
    bool understood = read_line(line, &job, &error);
    if (understood) {
        client_block_run(co_create, &job, &error);
    }
    g_clear_pointer(&job.image, json_object_unref);
    g_clear_pointer(&job.storage[0], json_object_unref);
    g_clear_pointer(&job.storage[1], json_object_unref);
    if (error) {
        client_fail(error);
        return understood ? CLIENT_FAILED : CLIENT_BAD_USAGE;
    }
    return CLIENT_OK;
}

static const ClientOption create_options[] = {
    {NULL, 'o', "OPTION=VALUE,...", "options of the format; see blockgraph(1)"},
    {"force", 0, NULL, "write over a FILE that is there already"},
    {0},
};

const ClientVerb client_verb_create = {
    .name = "create",
    .arguments = "FORMAT FILE SIZE",
    .summary = "make an image",
    .details = "FORMAT is raw or qcow2; SIZE is in bytes, or with a suffix: 512M, 10G.\n"
               "The options are those of 'qemu-img create -o' and of blockdev-create:\n"
               "  raw     preallocation=off|falloc|full\n"
               "  qcow2   version=v2|v3 (compat=0.10|1.1), cluster-size=, refcount-bits=,\n"
               "          lazy-refcounts=on|off, extended-l2=on|off,\n"
               "          compression-type=zlib|zstd, backing-file=, backing-fmt=,\n"
               "          data-file=, data-file-raw=on|off,\n"
               "          preallocation=off|metadata|falloc|full\n",
    .options = create_options,
    .min_words = 3,
    .max_words = 3,
    .run = run_create,
};
