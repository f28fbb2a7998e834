/*
 * blockgraph check: look whether an image is in order, and repair it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <json-glib/json-glib.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "block/check.h"
#include "client/block.h"
#include "client/client.h"
#include "util/error.h"

/* Exit statuses, those of qemu-img check. */
enum {
    CHECK_OK = 0,
    CHECK_FAILED = 1,
    CHECK_CORRUPT = 2,
    CHECK_LEAKS = 3,
};

#define DEFAULT_FORMAT "qcow2"

typedef struct CheckJob {
    const char *filename, *format;
    BlockCheckFix fix;
    bool json, progress;
    int shown;                    /* tenths of a percent; -1: nothing */
    BlockCheckResult found, left; /* left: after the repair */
} CheckJob;

/* ---- While it runs */

static void hide_progress(CheckJob *job)
{
    if (job->shown >= 0) {
        fputs("\r\033[K", stderr);
        job->shown = -1;
    }
}

static void on_problem(void *opaque, const char *text)
{
    CheckJob *job = opaque;
    hide_progress(job);
    fprintf(stderr, "%s\n", text);
}

static void on_progress(void *opaque, double done)
{
    CheckJob *job = opaque;
    int now = (int)(done * 1000);
    if (job->progress && now != job->shown) {
        job->shown = now;
        fprintf(stderr, "\r%5.1f %% checked", now / 10.0);
        fflush(stderr);
    }
}

static JsonObject *node_options(const CheckJob *job)
{
    JsonObject *node = json_object_new(), *file = json_object_new();
    json_object_set_string_member(file, "driver", "file");
    json_object_set_string_member(file, "filename", job->filename);
    json_object_set_string_member(node, "driver", job->format);
    json_object_set_string_member(node, "node-name", "image");
    json_object_set_boolean_member(node, "read-only", !job->fix);
    if (strcmp(job->format, "qcow2") == 0) {
        json_object_set_string_member(node, "backing", "");
    }
    json_object_set_object_member(node, "file", file);
    return node;
}

static int coroutine_fn co_check(BlockGraph *graph, void *opaque, GError **errp)
{
    CheckJob *job = opaque;
    BlockCheckListener listener = {.problem = on_problem, .progress = on_progress, .opaque = job};
    g_autoptr(JsonObject) options = node_options(job);
    BlockNode *node = block_node_co_open_to_check(graph, options, errp);
    if (!node) {
        return -EINVAL;
    }
    int ret = block_node_co_check(node, job->fix, &listener, &job->found, errp);
    job->left = job->found;
    if (ret == 0 && (job->found.corruptions_fixed || job->found.leaks_fixed)) {
        ret = block_node_co_check(node, 0, &listener, &job->left, errp);
    }
    hide_progress(job);
    return ret;
}

/* ---- What comes out */

static void add_repaired(GString *text, const BlockCheckResult *r)
{
    if (r->corruptions_fixed || r->leaks_fixed) {
        g_string_append_printf(text,
                               "Repaired: %" PRIu64 " errors, %" PRIu64 " leaked clusters. This is what a "
                               "second check found:\n\n",
                               r->corruptions_fixed, r->leaks_fixed);
    }
}

static double percent(uint64_t part, uint64_t of)
{
    return of ? 100.0 * (double)part / (double)of : 0;
}

static char *result_text(const CheckJob *job)
{
    const BlockCheckResult *r = &job->left;
    GString *text = g_string_new("");
    add_repaired(text, &job->found);
    if (!r->corruptions && !r->leaks) {
        g_string_append(text, "No errors were found.\n");
    }
    if (r->corruptions) {
        g_string_append_printf(text, "%" PRIu64 " errors: data may be wrong, or be damaged by writing.\n",
                               r->corruptions);
    }
    if (r->leaks) {
        g_string_append_printf(text, "%" PRIu64 " leaked clusters: space is wasted, no data is harmed.\n",
                               r->leaks);
    }
    g_string_append_printf(text,
                           "%" PRIu64 "/%" PRIu64 " = %.2f%% allocated, %.2f%% fragmented, %.2f%% compressed "
                           "clusters\nImage end offset: %" PRId64 "\n",
                           r->allocated_clusters, r->total_clusters,
                           percent(r->allocated_clusters, r->total_clusters),
                           percent(r->fragmented_clusters, r->allocated_clusters),
                           percent(r->compressed_clusters, r->allocated_clusters), r->image_end_offset);
    return g_string_free(text, FALSE);
}

static char *result_json(const CheckJob *job)
{
    const BlockCheckResult *r = &job->left;
    const struct {
        const char *key;
        uint64_t value;
    } numbers[] = {{"check-errors", 0},
                   {"corruptions", r->corruptions},
                   {"leaks", r->leaks},
                   {"corruptions-fixed", job->found.corruptions_fixed},
                   {"leaks-fixed", job->found.leaks_fixed},
                   {"image-end-offset", (uint64_t)r->image_end_offset},
                   {"total-clusters", r->total_clusters},
                   {"allocated-clusters", r->allocated_clusters},
                   {"fragmented-clusters", r->fragmented_clusters},
                   {"compressed-clusters", r->compressed_clusters}};
    g_autoptr(JsonNode) root = json_node_init_object(json_node_alloc(), json_object_new());
    JsonObject *o = json_node_get_object(root);
    json_object_unref(o); /* the node has its own */
    json_object_set_string_member(o, "filename", job->filename);
    json_object_set_string_member(o, "format", job->format);
    for (unsigned i = 0; i < G_N_ELEMENTS(numbers); i++) {
        json_object_set_int_member(o, numbers[i].key, (gint64)numbers[i].value);
    }
    g_autofree char *text = json_to_string(root, TRUE);
    return g_strconcat(text, "\n", NULL);
}

static int say_result(const CheckJob *job)
{
    g_autofree char *text = job->json ? result_json(job) : result_text(job);
    if (client_say(text) != CLIENT_OK) {
        return CHECK_FAILED;
    }
    return job->left.corruptions ? CHECK_CORRUPT : job->left.leaks ? CHECK_LEAKS : CHECK_OK;
}

/* ---- The verb */

static bool read_line(const ClientLine *line, CheckJob *job, GError **errp)
{
    const char *repair = client_line_value(line, "repair"), *format = client_line_value(line, "format");
    job->filename = client_line_word(line, 0);
    job->format = format ? format : DEFAULT_FORMAT;
    job->json = client_line_has(line, "json");
    job->progress = !job->json && isatty(STDERR_FILENO);
    job->shown = -1;
    if (client_line_has(line, "repair")) {
        job->fix = BLOCK_CHECK_FIX_ALL;
    }
    if (repair && strcmp(repair, "leaks") == 0) {
        job->fix = BLOCK_CHECK_FIX_LEAKS;
    } else if (repair && strcmp(repair, "all") != 0) {
        bg_error_set(errp, EINVAL, "--repair: '%s' is neither leaks nor all", repair);
        return false;
    }
    return true;
}

static int run_check(const ClientLine *line)
{
    CheckJob job = {0};
    GError *error = NULL;
    if (!read_line(line, &job, &error) || client_block_run(co_check, &job, &error) < 0) {
        client_fail(error);
        return CHECK_FAILED;
    }
    return say_result(&job);
}

static const ClientOption check_options[] = {
    {"repair", 0, "[=leaks|all]", "repair what is wrong, or only free leaked clusters"},
    {"format", 'f', "FORMAT", "the image's format (default: qcow2)"},
    {"json", 0, NULL, "print the result as JSON, as qemu-img does"},
    {0},
};

const ClientVerb client_verb_check = {
    .name = "check",
    .arguments = "FILE",
    .summary = "look whether an image is in order, and repair it",
    .details = "Nothing is changed without --repair. The exit status is 0 where all is in\n"
               "order, 2 with errors, 3 with leaks only, 1 where the check was not possible.\n",
    .options = check_options,
    .min_words = 1,
    .max_words = 1,
    .bad_usage = CHECK_FAILED,
    .run = run_check,
};
