/*
 * The graph file: nodes, exports and objects as sections of an INI file or as a JSON object.
 * blockgraph-graph(5) describes it for users.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_GRAPH_FILE_H
#define BG_CONTROL_GRAPH_FILE_H

#include "control/graph-config.h"

/* Bytes of the largest graph file, and of its longest line as INI. */
#define GRAPH_FILE_MAX_SIZE    (16 * 1024 * 1024)
#define GRAPH_FILE_MAX_LINE    (64 * 1024)
/* Most options in all of one INI file. */
#define GRAPH_FILE_MAX_OPTIONS 100000

/* Whether SOURCE names a graph file: *.conf or *.json. */
bool graph_file_is_name(const char *source);

/*
 * Read `path` into config. Relative names in it are relative to its directory. False and *errp, a message
 * that begins with "PATH:LINE: ". Never blocks on a FIFO or device: those are refused.
 */
bool graph_file_read(Config *config, const char *path, GError **errp);

/* The parsers, for graph_file_read and tests: `text` is valid UTF-8 without NUL, `path` for messages. */
bool graph_file_parse_ini(Config *config, const char *path, const char *text, const char *base,
                          GError **errp);
bool graph_file_parse_json(Config *config, const char *path, const char *text, const char *base,
                           GError **errp);

#endif /* BG_CONTROL_GRAPH_FILE_H */
