/*
 * Reading graph files in unit tests.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "graph-test.h"

#include "control/objects.h"
#include "control/resolve.h"

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
