/*
 * SOURCE: a graph file, one image, JSON, or nothing.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_SOURCE_H
#define BG_CONTROL_SOURCE_H

#include "control/command-line.h"

/*
 * Add to line->config what line->source stands for. An image gets a node and, with it, an export. *notice is
 * what to tell the user once all is up (newly allocated), or stays NULL. False and *errp.
 */
bool source_add(CommandLine *line, char **notice, GError **errp);

/* SOURCE for the list of mounts: without user and password. Newly allocated. */
char *source_redacted(const char *source);

#endif /* BG_CONTROL_SOURCE_H */
