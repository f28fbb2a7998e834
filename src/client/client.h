/*
 * blockgraph, the client: its verbs and how they get at their command line. blockgraph(1) describes it for
 * users.
 *
 * A verb is a `const ClientVerb client_verb_NAME` in a file of its own, with a line in verbs.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CLIENT_CLIENT_H
#define BG_CLIENT_CLIENT_H

#include <glib.h>
#include <stdbool.h>

/* Exit statuses that all verbs share. */
enum {
    CLIENT_OK = 0,
    CLIENT_FAILED = 1,
    CLIENT_BAD_USAGE = 2,
};

typedef struct ClientOption {
    const char *name;  /* without the dashes; NULL: only a letter */
    char letter;       /* 0: none */
    const char *value; /* what the help calls it; NULL: takes none; "[=...]": may be left out */
    const char *help;  /* lines are at most 51 bytes */
} ClientOption;

typedef struct ClientLine ClientLine;

typedef struct ClientVerb {
    const char *name;
    const char *arguments;       /* for the usage line: "FORMAT FILE SIZE" */
    const char *summary;         /* one line, as an order: "create an image" */
    const char *details;         /* text before the options, lines of at most 79 bytes, or NULL */
    const ClientOption *options; /* all zero at the end; --help is added to them. NULL: none */
    unsigned min_words, max_words;
    int bad_usage; /* exit status for a wrong command line; 0: CLIENT_BAD_USAGE */
    /* Do it; returns the exit status. Messages by bg_log or client_fail. */
    int (*run)(const ClientLine *line);
} ClientVerb;

/* NULL-terminated, in the order of --help. */
extern const ClientVerb *const client_verbs[];

/* NULL and *errp with the nearest name. */
const ClientVerb *client_verb_find(const char *name, GError **errp);

/* ---- The command line of a verb: line.c */

/* argv: what comes after the verb. NULL and *errp. */
ClientLine *client_line_parse(const ClientVerb *verb, int argc, char *const *argv, GError **errp);
void client_line_free(ClientLine *line);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ClientLine, client_line_free)

bool client_line_wants_help(const ClientLine *line);
/* Words that are not options; i is below their number. */
unsigned client_line_n_words(const ClientLine *line);
const char *client_line_word(const ClientLine *line, unsigned i);
/* Options by name, those without one by their letter ("o"). */
bool client_line_has(const ClientLine *line, const char *option);
/* The last value given; NULL: none. Borrowed. */
const char *client_line_value(const ClientLine *line, const char *option);
/* All values given, in order: const char *, borrowed. Free the array. */
GPtrArray *client_line_values(const ClientLine *line, const char *option);

/* ---- Output: say.c */

/* Text for stdout. CLIENT_OK, or CLIENT_FAILED where it could not be written. */
int client_say(const char *text);
/* Say what is wrong, free `error`; returns CLIENT_FAILED. */
int client_fail(GError *error);
/* Help on all, and on one verb. Free with g_free. */
char *client_help(void);
char *client_verb_help(const ClientVerb *verb);

#endif /* BG_CLIENT_CLIENT_H */
