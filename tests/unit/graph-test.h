/*
 * Reading graph files in unit tests as the daemon does, and the two ways in which that may end.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_TEST_GRAPH_TEST_H
#define BG_TEST_GRAPH_TEST_H

#include "control/exports.h"
#include "control/graph-file.h"

/* The directory that relative names are relative to. */
#define GRAPH_TEST_BASE "/base"

typedef bool GraphTestParse(Config *config, const char *path, const char *text, const char *base,
                            GError **errp);

/* A graph file with a section of each kind. */
extern const char graph_test_lab[];

/* Parse as file "g", sort, read the exports and objects. The exports, or NULL and *errp. */
GPtrArray *graph_test_read(Config *config, GraphTestParse *parse, const char *text, GError **errp);

/* The text is refused with this message. */
void graph_test_refused(GraphTestParse *parse, const char *text, const char *message);
#define refused_ini(text, message)  graph_test_refused(graph_file_parse_ini, text, message)
#define refused_json(text, message) graph_test_refused(graph_file_parse_json, text, message)

/* The text is accepted; its exports are in *exports, where that is not NULL. */
void graph_test_accepted(GraphTestParse *parse, Config *config, const char *text, GPtrArray **exports);

/* A new directory for a test program's files, and its end, with all files in it; takes the name over. */
char *graph_test_dir_new(void);
void graph_test_dir_free(char *dir);

#endif /* BG_TEST_GRAPH_TEST_H */
