/*
 * blockgraph: the client for people and scripts. One verb a run.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <signal.h>
#include <string.h>

#include "client/client.h"
#include "util/log.h"

static int run_verb(const ClientVerb *verb, int argc, char **argv)
{
    GError *error = NULL;
    g_autoptr(ClientLine) line = client_line_parse(verb, argc, argv, &error);
    if (!line) {
        g_prefix_error(&error, "%s: ", verb->name);
        client_fail(error);
        return verb->bad_usage ? verb->bad_usage : CLIENT_BAD_USAGE;
    }
    if (client_line_wants_help(line)) {
        g_autofree char *text = client_verb_help(verb);
        return client_say(text);
    }
    return verb->run(line);
}

static bool is_option(const char *word, const char *brief, const char *full)
{
    return strcmp(word, brief) == 0 || strcmp(word, full) == 0;
}

int main(int argc, char **argv)
{
    GError *error = NULL;
    bg_log_set_program("blockgraph");
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2) {
        bg_log(BG_LOG_ERROR, "a verb is missing; --help lists them");
        return CLIENT_BAD_USAGE;
    }
    if (is_option(argv[1], "-V", "--version")) {
        return client_say(PACKAGE_NAME " " PACKAGE_VERSION "\n");
    }
    if (is_option(argv[1], "-h", "--help")) {
        g_autofree char *text = client_help();
        return client_say(text);
    }
    const ClientVerb *verb = client_verb_find(argv[1], &error);
    if (!verb) {
        client_fail(error);
        return CLIENT_BAD_USAGE;
    }
    return run_verb(verb, argc - 2, argv + 2);
}
