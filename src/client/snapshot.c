/*
 * blockgraph snapshot: snapshots of a mount's exports.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <limits.h>
#include <string.h>

#include "client/client.h"
#include "client/daemon.h"
#include "client/table.h"
#include "util/log.h"
#include "util/text.h"

typedef struct Action {
    const char *word, *command;
    bool has_name;
} Action;

static const Action actions[] = {
    {"create", "x-blockgraph-snapshot-create", true},
    {"list", "x-blockgraph-snapshot-list", false},
    {"delete", "x-blockgraph-snapshot-delete", true},
    {"revert", "x-blockgraph-snapshot-revert", true},
};

static int bad_usage(const char *message, const char *word)
{
    bg_log(BG_LOG_ERROR, "snapshot: %s '%s'", message, word);
    return CLIENT_BAD_USAGE;
}

static const Action *find_action(const char *word)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(actions); i++) {
        if (g_str_equal(actions[i].word, word)) {
            return &actions[i];
        }
    }
    return NULL;
}

/* ---- What to ask for */

/* "%d/..." is relative to nothing; else the user means where he is. */
static char *absolute_pattern(const char *pattern)
{
    if (g_path_is_absolute(pattern) || g_str_has_prefix(pattern, "%d")) {
        return g_strdup(pattern);
    }
    g_autofree char *cwd = g_get_current_dir();
    g_auto(GStrv) parts = g_strsplit(cwd, "%", -1);
    g_autofree char *literal = g_strjoinv("%%", parts);
    return g_build_filename(literal, pattern, NULL);
}

static JsonObject *arguments_of(const ClientLine *line, const Action *action)
{
    JsonObject *arguments = json_object_new();
    unsigned first = 2;
    if (action->has_name) {
        json_object_set_string_member(arguments, "name", client_line_word(line, first++));
    }
    if (client_line_n_words(line) > first) {
        JsonArray *exports = json_array_new();
        for (unsigned i = first; i < client_line_n_words(line); i++) {
            json_array_add_string_element(exports, client_line_word(line, i));
        }
        json_object_set_array_member(arguments, "exports", exports);
    }
    if (client_line_has(line, "external")) {
        const char *pattern = client_line_value(line, "external");
        g_autofree char *absolute = pattern ? absolute_pattern(pattern) : NULL;
        json_object_set_boolean_member(arguments, "external", TRUE);
        if (absolute) {
            json_object_set_string_member(arguments, "file", absolute);
        }
    }
    return arguments;
}

/* ---- What to say */

static char *local_time(gint64 seconds)
{
    g_autoptr(GDateTime) time = g_date_time_new_from_unix_local(seconds);
    return time ? g_date_time_format(time, "%Y-%m-%d %H:%M:%S") : g_strdup("?");
}

static int say_list(JsonNode *result)
{
    JsonArray *list = json_node_get_array(result);
    g_autoptr(ClientTable) table = client_table_new("EXPORT", "SNAPSHOT", "TAKEN", "SIZE", NULL);
    for (guint i = 0; i < json_array_get_length(list); i++) {
        JsonObject *snapshot = json_array_get_object_element(list, i);
        g_autofree char *taken = local_time(json_object_get_int_member(snapshot, "date-sec"));
        g_autofree char *size = text_format_size((uint64_t)json_object_get_int_member(snapshot, "size"));
        client_table_add(table, json_object_get_string_member(snapshot, "export"),
                         json_object_get_string_member(snapshot, "name"), taken, size, NULL);
    }
    g_autofree char *text = client_table_text(table);
    return json_array_get_length(list) > 0 ? client_say(text) : CLIENT_OK;
}

static int say_result(const ClientLine *line, const Action *action, JsonNode *result)
{
    if (client_line_has(line, "json")) {
        g_autofree char *text = client_json_text(result);
        return client_say(text);
    }
    if (!action->has_name) {
        return say_list(result);
    }
    if (client_line_has(line, "external")) {
        g_autofree char *text = g_strdup_printf("the next mount needs the graph file that 'blockgraph graph "
                                                "--format=conf %s' prints\n",
                                                client_line_word(line, 1));
        return client_say(text);
    }
    return CLIENT_OK;
}

static int run_snapshot(const ClientLine *line)
{
    const Action *action = find_action(client_line_word(line, 0));
    GError *error = NULL;
    if (!action) {
        return bad_usage("expected create, list, delete or revert, not", client_line_word(line, 0));
    }
    if (action->has_name && client_line_n_words(line) < 3) {
        return bad_usage("NAME is missing after", client_line_word(line, 1));
    }
    if (client_line_has(line, "external") && action != &actions[0]) {
        return bad_usage("--external goes with create, not with", action->word);
    }
    g_autoptr(JsonNode) result =
        client_daemon_ask(client_line_word(line, 1), action->command, arguments_of(line, action), &error);
    if (!result) {
        g_prefix_error(&error, "snapshot %s: ", action->word);
        return client_fail(error);
    }
    return say_result(line, action, result);
}

static const ClientOption snapshot_options[] = {
    {"external", 0, "[=FILE]",
     "create: make a new qcow2 image for each export,\nwhich takes all later writes. In FILE, %d is the\n"
     "directory of the present image, %e the export,\n%s the snapshot; %d/%e.%s.qcow2 by default"},
    {"json", 0, NULL, "print JSON"},
    {0},
};

const ClientVerb client_verb_snapshot = {
    .name = "snapshot",
    .arguments = "ACTION MOUNTPOINT [NAME] [EXPORT...]",
    .summary = "take, list, delete, go back to snapshots",
    .details = "ACTION is one of\n"
               "  create MOUNTPOINT NAME [EXPORT...]   of all at one point in time, or of none\n"
               "  list MOUNTPOINT [EXPORT...]\n"
               "  delete MOUNTPOINT NAME [EXPORT...]\n"
               "  revert MOUNTPOINT NAME [EXPORT...]   what was written since is lost\n"
               "Without EXPORT they are about every writable export; delete and revert then\n"
               "about those that have the snapshot.\n",
    .options = snapshot_options,
    .min_words = 2,
    .max_words = UINT_MAX,
    .run = run_snapshot,
};
