/*
 * blockgraph: the table of verbs.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "client/client.h"
#include "util/error.h"
#include "util/text.h"

extern const ClientVerb client_verb_check, client_verb_create, client_verb_graph, client_verb_help_text,
    client_verb_snapshot, client_verb_status, client_verb_tree;

const ClientVerb *const client_verbs[] = {
    &client_verb_check,  &client_verb_create, &client_verb_graph,     &client_verb_snapshot,
    &client_verb_status, &client_verb_tree,   &client_verb_help_text, NULL,
};

const ClientVerb *client_verb_find(const char *name, GError **errp)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    for (unsigned i = 0; client_verbs[i]; i++) {
        if (strcmp(client_verbs[i]->name, name) == 0) {
            return client_verbs[i];
        }
        g_ptr_array_add(names, (gpointer)client_verbs[i]->name);
    }
    g_ptr_array_add(names, NULL);
    const char *nearest = text_nearest(name, (const char *const *)names->pdata);
    if (nearest) {
        bg_error_set(errp, EINVAL, "unknown verb '%s'; did you mean '%s'?", name, nearest);
    } else {
        bg_error_set(errp, EINVAL, "unknown verb '%s'; --help lists them", name);
    }
    return NULL;
}

static int run_help(const ClientLine *line)
{
    GError *error = NULL;
    if (client_line_n_words(line) == 0) {
        g_autofree char *all = client_help();
        return client_say(all);
    }
    const ClientVerb *verb = client_verb_find(client_line_word(line, 0), &error);
    if (!verb) {
        client_fail(error);
        return CLIENT_BAD_USAGE;
    }
    g_autofree char *text = client_verb_help(verb);
    return client_say(text);
}

const ClientVerb client_verb_help_text = {
    .name = "help",
    .arguments = "[VERB]",
    .summary = "tell about a verb, or list them all",
    .max_words = 1,
    .run = run_help,
};
