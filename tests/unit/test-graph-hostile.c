/*
 * Hostile graph files: too much of everything, mutated text, and what is no file at all.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <glib/gstdio.h>

#include "control/json-text.h"
#include "graph-test.h"

/* ---- Bounds */

static void test_deep_json(void)
{
    g_autofree char *open = g_strnfill(100000, '[');
    g_autofree char *deep = g_strconcat("{\"nodes\": ", open, NULL);
    g_autoptr(GString) nested = g_string_new("{\"nodes\": [{\"node-name\": \"a\"");

    refused_json(deep, "g:1: nested deeper than 64 levels");
    for (int i = 0; i < 100; i++) {
        g_string_append(nested, ", \"file\": {\"driver\": \"raw\"");
    }
    refused_json(nested->str, "g:1: nested deeper than 64 levels");
}

static void test_many_json_values(void)
{
    g_autoptr(GString) text = g_string_new("{\"nodes\": [[]");

    for (unsigned i = 0; i < JSON_TEXT_MAX_VALUES; i++) {
        g_string_append(text, ",[]");
    }
    refused_json(text->str, "g:1: more than 100000 values");
}

static void test_long_json_keys(void)
{
    g_autofree char *key = g_strnfill(2000, 'k');
    g_autofree char *text = g_strdup_printf("{\"%s\": 1}", key);

    refused_json(text, "g:1: a key with those around it is longer than 1024 bytes");
}

/* "json:" in "json:" is bounded as well. */
static void test_deep_json_names(void)
{
    g_autofree char *value = g_strdup("x");

    for (int i = 0; i < 4; i++) {
        g_autoptr(JsonObject) object = json_object_new();
        JsonObject *inner = object;
        JsonNode *node;
        g_autofree char *json = NULL;

        for (int depth = 0; depth < 30; depth++) {
            JsonObject *next = json_object_new();

            json_object_set_object_member(inner, "file", next);
            inner = next;
        }
        json_object_set_string_member(inner, "file", value);
        node = json_node_init_object(json_node_alloc(), object);
        json = json_to_string(node, FALSE);
        json_node_unref(node);
        g_free(value);
        value = g_strconcat("json:", json, NULL);
    }
    g_autoptr(Config) config = config_new();
    g_autoptr(JsonObject) options = json_object_new();
    g_autoptr(GError) error = NULL;
    ConfigPlace place = {.origin = "test"};

    json_object_set_string_member(options, "node-name", "a");
    json_object_set_string_member(options, "file", value);
    g_assert_null(config_add(config, CONFIG_NODE, options, &place, GRAPH_TEST_BASE, &error));
    g_assert_cmpstr(error->message, ==, "test: node 'a': nested deeper than 64 levels");
}

static void test_ini_bounds(void)
{
    g_autoptr(GString) text = g_string_new("[node a]\n");
    g_autofree char *filler = g_strnfill(GRAPH_FILE_MAX_LINE + 1, 'x');

    g_string_append_printf(text, "value = %s\n", filler);
    refused_ini(text->str, "g:2: the line is longer than 65536 bytes");

    g_string_assign(text, "[node a]\n");
    for (int i = 0; i <= 64; i++) {
        g_string_append_printf(text, "%sa", i ? "." : "");
    }
    g_string_append(text, " = x\n");
    refused_ini(text->str,
                "g:2: node 'a': option 'a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a....': the name is too long");

    g_string_truncate(text, 0);
    for (int i = 0; i <= CONFIG_MAX_ITEMS; i++) {
        g_string_append_printf(text, "[node n%d]\n", i);
    }
    refused_ini(text->str, "g:4097: node: more than 4096 nodes");

    g_string_assign(text, "[node a]\n");
    for (int i = 0; i <= GRAPH_FILE_MAX_OPTIONS; i++) {
        g_string_append_printf(text, "o%d=\n", i);
    }
    refused_ini(text->str, "g:100002: more than 100000 options");
}

/* ---- Mutations: whatever the text, there is a result or a message, and no crash (more so under ASan) */

#define MUTATIONS 3000

static const char lab_json[] =
    "{\"nodes\": [{\"node-name\": \"a\", \"driver\": \"raw\", \"size\": 512, \"f\": -1.5e3, \"b\": true,\n"
    " \"file\": {\"driver\": \"file\", \"filename\": \"x\\u00e4\\ud83d\\ude00\"}}, {\"node-name\": \"c\",\n"
    " \"children\": [\"a\", null]}], \"exports\": [{\"type\": \"fuse\", \"id\": \"e\", \"node-name\": "
    "\"c\"}]}";

/* Replace, remove or repeat a few stretches of the text, with what the syntax is made of. */
static char *mutate(const char *text)
{
    static const char alphabet[] = "[]{}\",:=.\\# \n\tabu09-e/j";
    g_autoptr(GString) out = g_string_new(text);

    for (int i = g_test_rand_int_range(1, 6); i > 0 && out->len > 0; i--) {
        gssize at = g_test_rand_int_range(0, (int)out->len);
        gssize most = g_test_rand_int_range(1, 12);
        gssize len = MIN(most, (gssize)out->len - at);
        g_autofree char *piece = g_strndup(out->str + at, len);

        switch (g_test_rand_int_range(0, 3)) {
        case 0:
            out->str[at] = alphabet[g_test_rand_int_range(0, sizeof(alphabet) - 1)];
            break;
        case 1:
            g_string_erase(out, at, len);
            break;
        default:
            g_string_insert(out, g_test_rand_int_range(0, (int)out->len), piece);
            break;
        }
    }
    return g_string_free(g_steal_pointer(&out), FALSE);
}

static void mutations_of(GraphTestParse *parse, const char *text)
{
    for (int i = 0; i < MUTATIONS; i++) {
        g_autofree char *mutated = mutate(text);
        g_autoptr(Config) config = config_new();
        g_autoptr(GError) error = NULL;
        g_autoptr(GPtrArray) exports = graph_test_read(config, parse, mutated, &error);

        g_assert_true((exports != NULL) == (error == NULL));
        if (error) {
            g_assert_true(g_str_has_prefix(error->message, "g:")); /* the file, and mostly the line */
        }
    }
}

static void test_mutations(void)
{
    mutations_of(graph_file_parse_ini, graph_test_lab);
    mutations_of(graph_file_parse_json, lab_json);
}

/* ---- Files */

static char *dir; /* a temporary one, for all tests below */

static void write_graph(const char *name, const char *text, gssize len)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    g_autoptr(GError) error = NULL;

    g_assert_true(g_file_set_contents(path, text, len, &error));
}

/* `message` is a pattern for g_pattern_match_simple. */
static void unreadable(const char *name, const char *message)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    g_autofree char *pattern = g_strconcat("*", message, NULL);
    g_autoptr(Config) config = config_new();
    g_autoptr(GError) error = NULL;

    g_assert_false(graph_file_read(config, path, &error));
    g_test_message("%s", error->message);
    g_assert_true(g_pattern_match_simple(pattern, error->message));
}

static void test_files(void)
{
    g_autofree char *fifo = g_build_filename(dir, "fifo.conf", NULL);
    g_autofree char *sub = g_build_filename(dir, "dir.conf", NULL);
    g_autofree char *huge = g_build_filename(dir, "huge.conf", NULL);

    unreadable("absent.conf", "cannot open '*absent.conf': No such file or directory");
    g_assert_cmpint(mkfifo(fifo, 0600), ==, 0);
    unreadable("fifo.conf", "cannot open '*fifo.conf': it is a FIFO");
    g_assert_cmpint(mkdir(sub, 0700), ==, 0);
    unreadable("dir.conf", "cannot open '*dir.conf': it is a directory");
    write_graph("nul.conf", "[node a]\nx=\0y\n", 14);
    unreadable("nul.conf", "nul.conf:2: contains a NUL byte: this is no graph file");
    write_graph("latin.conf", "[node a]\n\nx=\xe4\n", -1);
    unreadable("latin.conf", "latin.conf:3: not valid UTF-8");
    write_graph("bad.json", "{\"nodes\": [\n[]]}", -1);
    unreadable("bad.json", "bad.json:2: 'nodes.0': expected an object");
    write_graph("huge.conf", "", 0);
    g_assert_cmpint(truncate(huge, (off_t)1 << 40), ==, 0);
    unreadable("huge.conf", "huge.conf: larger than 16 MiB: this is no graph file");
    g_assert_cmpint(unlink(fifo) | rmdir(sub), ==, 0);
}

static void test_relative_to_file(void)
{
    g_autofree char *path = g_build_filename(dir, "rel.conf", NULL);
    g_autofree char *expected = g_strdup_printf("%s/disk.img", dir);
    g_autoptr(Config) config = config_new();
    g_autoptr(GError) error = NULL;

    write_graph("rel.conf", "[node a]\ndriver=file\nfilename=disk.img\n", -1);
    g_assert_true(graph_file_read(config, path, &error));
    g_assert_cmpstr(json_object_get_string_member(config_find(config, CONFIG_NODE, "a")->options, "filename"),
                    ==, expected);
}

static void test_device(void)
{
    g_autoptr(Config) config = config_new();
    g_autoptr(GError) error = NULL;

    g_assert_false(graph_file_read(config, "/dev/zero", &error));
    g_assert_cmpstr(error->message, ==, "cannot open '/dev/zero': it is a character device");
}

int main(int argc, char **argv)
{
    int status;

    g_test_init(&argc, &argv, NULL);
    dir = graph_test_dir_new();
    g_test_add_func("/graph-hostile/deep-json", test_deep_json);
    g_test_add_func("/graph-hostile/many-json-values", test_many_json_values);
    g_test_add_func("/graph-hostile/long-json-keys", test_long_json_keys);
    g_test_add_func("/graph-hostile/deep-json-names", test_deep_json_names);
    g_test_add_func("/graph-hostile/ini-bounds", test_ini_bounds);
    g_test_add_func("/graph-hostile/mutations", test_mutations);
    g_test_add_func("/graph-hostile/files", test_files);
    g_test_add_func("/graph-hostile/relative-to-file", test_relative_to_file);
    g_test_add_func("/graph-hostile/device", test_device);
    status = g_test_run();
    graph_test_dir_free(dir);
    return status;
}
