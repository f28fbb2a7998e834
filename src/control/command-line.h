/*
 * The command line of blockgraphfs. blockgraphfs(8) describes it for users.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_COMMAND_LINE_H
#define BG_CONTROL_COMMAND_LINE_H

#include "control/graph-config.h"
#include "control/monitor-options.h"
#include "control/mount-options.h"

typedef enum CommandAction {
    COMMAND_RUN,
    COMMAND_HELP,
    COMMAND_VERSION,
} CommandAction;

typedef struct CommandLine {
    CommandAction action;
    char *source;     /* as given; NULL: absent */
    char *mountpoint; /* absolute; NULL: absent */
    char *format;     /* NULL: absent */
    char *uri_name;   /* the node and export that SOURCE, a URI, stands for: see source.h; else NULL */
    char *pidfile;    /* absolute; NULL: absent */
    char *cwd;        /* where relative names begin */
    bool foreground;
    bool daemonize;
    bool debug; /* implies foreground */
    bool verbose;
    bool one_queue;
    MountOptions *mount;
    MonitorOptions *monitors;
    Config *config; /* the nodes, exports and objects of the command line */
} CommandLine;

/* Parse what main() was given. NULL and *errp: an unknown option with the nearest known, a contradiction. */
CommandLine *command_line_parse(int argc, char *const *argv, GError **errp);
void command_line_free(CommandLine *line);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(CommandLine, command_line_free)

/* Whether the command goes to the background once it is up. */
bool command_line_background(const CommandLine *line);

/* The text of --help. Static. */
const char *command_line_help(void);

#endif /* BG_CONTROL_COMMAND_LINE_H */
