/*
 * blockgraph: output, and the texts of --help.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "client/client.h"
#include "util/log.h"

#define HELP_COLUMN 28

static const ClientOption help_option = {"help", 'h', NULL, "print this text"};

/* A full or closed stdout is a failure as well. */
int client_say(const char *text)
{
    return fputs(text, stdout) == EOF || fflush(stdout) == EOF ? CLIENT_FAILED : CLIENT_OK;
}

int client_fail(GError *error)
{
    bg_log(BG_LOG_ERROR, "%s", error->message);
    g_error_free(error);
    return CLIENT_FAILED;
}

/* `left` in the first column, the lines of `right` in the second. */
static void add_row(GString *text, const char *left, const char *right)
{
    g_auto(GStrv) lines = g_strsplit(right, "\n", -1);
    bool too_long = strlen(left) > HELP_COLUMN - 4;
    g_string_append_printf(text, "  %-*s%s", HELP_COLUMN - 2, left, too_long ? "\n" : "");
    for (unsigned i = 0; lines[i]; i++) {
        g_string_append_printf(text, "%*s%s\n", i > 0 || too_long ? HELP_COLUMN : 0, "", lines[i]);
    }
}

static void add_option(GString *text, const ClientOption *option)
{
    g_autoptr(GString) left = g_string_new("");
    if (option->letter) {
        g_string_append_printf(left, "-%c%s", option->letter, option->name ? ", " : "");
    }
    if (option->name) {
        g_string_append_printf(left, "--%s", option->name);
    }
    if (option->value) {
        g_string_append_printf(left, "%s%s", option->value[0] == '[' ? "" : " ", option->value);
    }
    add_row(text, left->str, option->help);
}

char *client_help(void)
{
    GString *text = g_string_new("usage: blockgraph VERB [OPTIONS] ...\n"
                                 "\n"
                                 "Work on disk images, and with the daemon blockgraphfs.\n"
                                 "\n"
                                 "Verbs\n");
    for (unsigned i = 0; client_verbs[i]; i++) {
        g_autofree char *left = g_strdup_printf("%s %s", client_verbs[i]->name, client_verbs[i]->arguments);
        add_row(text, left, client_verbs[i]->summary);
    }
    g_string_append(text, "\nOptions\n");
    add_row(text, "-V, --version", "print the version");
    add_option(text, &help_option);
    g_string_append(text, "\n'blockgraph VERB --help' tells more about a verb.\n");
    return g_string_free(text, FALSE);
}

char *client_verb_help(const ClientVerb *verb)
{
    GString *text = g_string_new("");
    g_string_append_printf(text, "usage: blockgraph %s [OPTIONS] %s\n\n%c%s.\n", verb->name, verb->arguments,
                           g_ascii_toupper(verb->summary[0]), verb->summary + 1);
    if (verb->details) {
        g_string_append_printf(text, "\n%s", verb->details);
    }
    g_string_append(text, "\nOptions\n");
    for (const ClientOption *o = verb->options; o && (o->name || o->letter); o++) {
        add_option(text, o);
    }
    add_option(text, &help_option);
    return g_string_free(text, FALSE);
}
