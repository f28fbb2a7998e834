/*
 * Reading graph files in unit tests.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "graph-test.h"

#include <glib/gstdio.h>

#include "control/objects.h"
#include "control/resolve.h"

const char graph_test_lab[] = "# a comment\n"
                              "[node base]\n"
                              "driver = raw\n"
                              "  read-only=on  \n"
                              "file.driver = file\n"
                              "file.filename = base.img\r\n"
                              "\n"
                              "[node top]\n"
                              "driver=raw\n"
                              "file=base\n"
                              "[export top.img]\n"
                              "node = top\n"
                              "growable = on\n"
                              "writable = on\n"
                              "[iothread io1]\n";

GPtrArray *graph_test_read(Config *config, GraphTestParse *parse, const char *text, GError **errp)
{
    g_autoptr(GPtrArray) roots = g_ptr_array_new();
    g_autoptr(Objects) objects = NULL;

    if (!parse(config, "g", text, GRAPH_TEST_BASE, errp) || !config_resolve(config, roots, errp)) {
        return NULL;
    }
    objects = objects_read(config, errp);
    return objects ? exports_read(config, roots, errp) : NULL;
}

void graph_test_refused(GraphTestParse *parse, const char *text, const char *message)
{
    g_autoptr(Config) config = config_new();
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) exports = graph_test_read(config, parse, text, &error);

    g_assert_null(exports);
    g_assert_nonnull(error);
    g_assert_cmpstr(error->message, ==, message);
}

void graph_test_accepted(GraphTestParse *parse, Config *config, const char *text, GPtrArray **exports)
{
    g_autoptr(GError) error = NULL;
    GPtrArray *found = graph_test_read(config, parse, text, &error);

    g_assert_no_error(error);
    g_assert_nonnull(found);
    if (exports) {
        *exports = found;
    } else {
        g_ptr_array_unref(found);
    }
}

char *graph_test_dir_new(void)
{
    char *dir = g_dir_make_tmp("blockgraph-test-XXXXXX", NULL);

    g_assert_nonnull(dir);
    return dir;
}

void graph_test_dir_free(char *dir)
{
    GDir *entries = g_dir_open(dir, 0, NULL);
    const char *name;

    while ((name = g_dir_read_name(entries))) {
        g_autofree char *path = g_build_filename(dir, name, NULL);

        g_unlink(path);
    }
    g_dir_close(entries);
    g_rmdir(dir);
    g_free(dir);
}
