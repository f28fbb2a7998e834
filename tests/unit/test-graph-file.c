/*
 * The syntax of graph files, INI and JSON: what it means, and a message with file, line and name for what it
 * does not.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "graph-test.h"

/* The options of node `name`, as JSON in the order of the text. */
static void assert_node(Config *config, const char *name, const char *expected)
{
    ConfigItem *item = config_find(config, CONFIG_NODE, name);
    JsonNode *node;
    g_autofree char *json = NULL;

    g_assert_nonnull(item);
    node = json_node_init_object(json_node_alloc(), item->options);
    json = json_to_string(node, FALSE);
    json_node_unref(node);
    g_assert_cmpstr(json, ==, expected);
}

/* ---- INI */

static void test_ini(void)
{
    g_autoptr(Config) config = config_new();
    g_autoptr(GPtrArray) exports = NULL;
    ExportSpec *spec;

    graph_test_accepted(graph_file_parse_ini, config, graph_test_lab, &exports);
    assert_node(
        config, "base",
        "{\"node-name\":\"base\",\"driver\":\"raw\",\"read-only\":\"on\",\"file\":{\"driver\":\"file\","
        "\"filename\":\"/base/base.img\"}}");
    assert_node(config, "top", "{\"node-name\":\"top\",\"driver\":\"raw\",\"file\":\"base\"}");
    g_assert_cmpuint(exports->len, ==, 1);
    spec = exports->pdata[0];
    g_assert_cmpstr(spec->id, ==, "top.img");
    g_assert_cmpstr(spec->node_name, ==, "top");
    g_assert_cmpint(spec->writable, ==, EXPORT_WRITABLE);
    g_assert_true(spec->growable);
    g_assert_null(spec->mountpoint);
    g_assert_cmpstr(((ConfigItem *)config_objects(config)->pdata[0])->name, ==, "io1");
}

/* What GKeyFile reads from a value, we read. */
static void test_ini_escapes(void)
{
    static const char *const values[] = {
        "plain", "a b", "\\sindented", "two\\nlines", "tab\\there", "back\\\\sl", "cr\\rlf", "a=b=c",
        "a # b", "",    "\\\\",        "\xc3\xa4\\s", "[x]",        "\"quoted\"", "'x'"};

    for (unsigned i = 0; i < G_N_ELEMENTS(values); i++) {
        g_autofree char *text = g_strdup_printf("[node n]\nvalue = %s\n", values[i]);
        g_autoptr(GKeyFile) keyfile = g_key_file_new();
        g_autofree char *expected = NULL;
        g_autoptr(Config) config = config_new();
        g_autoptr(GError) error = NULL;
        ConfigItem *item;

        g_assert_true(g_key_file_load_from_data(keyfile, text, -1, G_KEY_FILE_NONE, &error));
        expected = g_key_file_get_string(keyfile, "node n", "value", &error);
        g_assert_no_error(error);
        graph_test_accepted(graph_file_parse_ini, config, text, NULL);
        item = config_find(config, CONFIG_NODE, "n");
        g_assert_cmpstr(json_object_get_string_member(item->options, "value"), ==, expected);
    }
    refused_ini("[node n]\nvalue = a\\qb\n",
                "g:2: node 'n': option 'value': '\\q' is no escape: '\\\\' stands for one backslash");
    refused_ini("[node n]\nvalue = a\\\n",
                "g:2: node 'n': option 'value': '\\ ' is no escape: '\\\\' stands for one backslash");
}

static void test_ini_syntax(void)
{
    refused_ini("driver = raw\n", "g:1: option 'driver' stands before the first section");
    refused_ini("[node a]\nnonsense\n",
                "g:2: expected KEY = VALUE, [SECTION] or a comment, found 'nonsense'");
    refused_ini("\n\n[node a\n", "g:3: a section does not end with ']'");
    refused_ini("[node a] x\n", "g:1: text after the ']' of a section");
    refused_ini("[node]\n", "g:1: a section of this type needs a name: [node NAME]");
    refused_ini("[node ]\n", "g:1: a section of this type needs a name: [node NAME]");
    refused_ini("[]\n",
                "g:1: unknown section '', expected one of node, export, iothread, throttle-group, secret, "
                "tls-creds-psk, tls-creds-x509");
    refused_ini("[nodes a]\n", "g:1: unknown section 'nodes', did you mean 'node'?");
    refused_ini("[xyzzy a]\n", "g:1: unknown section 'xyzzy', expected one of node, export, iothread, "
                               "throttle-group, secret, tls-creds-psk, tls-creds-x509");
    refused_ini("[node a]\n = x\n", "g:2: node 'a': option '': the name is empty");
    refused_ini("[node a]\nx y = x\n", "g:2: node 'a': option 'x y': not a valid option name");
    refused_ini("[node a]\na..b = x\n", "g:2: node 'a': option 'a..b': not a valid option name");
    refused_ini("[node a]\n.a = x\n", "g:2: node 'a': option '.a': not a valid option name");
}

static void test_ini_duplicates(void)
{
    refused_ini("[node a]\ndriver=raw\n\n[node a]\ndriver=raw\n",
                "g:4: node 'a': the node name 'a' is taken already, at g:1");
    refused_ini("[node a]\ndriver=raw\nfile=b\ndriver=raw\n",
                "g:4: node 'a': option 'driver': given already, in line 2");
    refused_ini("[node a]\nfile=b\nfile.driver=file\n",
                "g:3: node 'a': option 'file.driver': contradicts an option with a shorter name");
    refused_ini("[node a]\nfile.driver=file\nfile=b\n",
                "g:3: node 'a': option 'file': contradicts an option with a longer name");
    refused_ini("[node a]\nnode-name=b\n",
                "g:2: node 'a': option 'node-name': 'b' contradicts the section's name");
    refused_ini("[node a]\nfile.driver=file\nfile.node-name=b\n[node b]\n",
                "g:4: node 'b': the node name 'b' is taken already, at g:3");
    refused_ini("[node b]\n[node a]\nfile.driver=file\nfile.node-name=b\n",
                "g:4: node 'a': option 'file.node-name': the node name 'b' is taken already, at g:1");
    refused_ini("[node n]\n[export a]\nnode=n\n[export a]\nnode=n\n",
                "g:4: export 'a': the export name 'a' is taken already, at g:2");
}

static void test_ini_lists(void)
{
    g_autoptr(Config) config = config_new();

    graph_test_accepted(graph_file_parse_ini, config,
                        "[node a]\nchildren.0=b\nchildren.1.driver=file\nchildren.1.filename=x\n[node b]\n",
                        NULL);
    assert_node(config, "a",
                "{\"node-name\":\"a\",\"children\":[\"b\",{\"driver\":\"file\",\"filename\":\"x\"}]}");
    refused_ini("[node a]\nchildren.0=b\nchildren.2=c\n",
                "g:1: node 'a': option 'children': the list has no element 1");
}

static void test_names(void)
{
    g_autofree char *longest = g_strnfill(255, 'x');
    g_autofree char *too_long = g_strnfill(256, 'x');
    g_autofree char *good = g_strdup_printf("[node %s]\n", longest);
    g_autofree char *bad = g_strdup_printf("[node %s]\n", too_long);
    g_autofree char *message = g_strdup_printf(
        "g:1: node '%s': option 'node-name': not a valid name: it is longer than 255 bytes", too_long);
    g_autoptr(Config) config = config_new();

    graph_test_accepted(graph_file_parse_ini, config, good, NULL);
    refused_ini(bad, message);
    refused_ini("[node a/b]\n", "g:1: node 'a/b': option 'node-name': not a valid name: it contains a '/'");
    refused_ini("[node .]\n", "g:1: node '.': option 'node-name': not a valid name: it means a directory");
    refused_ini("[node ..]\n", "g:1: node '..': option 'node-name': not a valid name: it means a directory");
    refused_ini("[node #a]\n",
                "g:1: node '#a': option 'node-name': not a valid name: those with '#' are given "
                "to nodes without a name");
    refused_ini("[node n]\n[export .graph]\nnode=n\n",
                "g:2: export '.graph': option 'id': not a valid name: it is reserved");
    refused_ini("[node n]\n[export a/b]\nnode=n\n",
                "g:2: export 'a/b': option 'id': not a valid name: it contains a '/'");
    refused_ini("[node .snap]\n",
                "g:1: node '.snap': cannot be exported under its name, which is reserved: give "
                "it an export");
    refused_json("{\"nodes\": [{\"node-name\": \"\"}]}",
                 "g:1: node '': option 'node-name': not a valid name: it is empty");
    refused_json("{\"nodes\": [{\"node-name\": 5}]}", "g:1: node: option 'node-name': expected a string");
    refused_json("{\"nodes\": [{\n\"driver\": \"raw\"}]}", "g:1: node: option 'node-name': is required");
}

/* ---- File names */

static void test_file_names(void)
{
    g_autoptr(Config) config = config_new();

    graph_test_accepted(
        graph_file_parse_ini, config,
        "[node a]\ndriver=file\nfilename=x/y\n"
        "[node b]\ndriver=file\nfilename=/abs\n"
        "[node c]\ndriver=host_device\nfilename=../dev\n"
        "[node d]\ndriver=null-co\nfilename=kept\n"
        "[node "
        "e]\ndriver=raw\nfile=json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"z\"}}\n"
        "[node f]\ndriver=file\nfilename=file:a:b\n",
        NULL);
    assert_node(config, "a", "{\"node-name\":\"a\",\"driver\":\"file\",\"filename\":\"/base/x/y\"}");
    assert_node(config, "b", "{\"node-name\":\"b\",\"driver\":\"file\",\"filename\":\"/abs\"}");
    assert_node(config, "c",
                "{\"node-name\":\"c\",\"driver\":\"host_device\",\"filename\":\"/base/../dev\"}");
    assert_node(config, "d", "{\"node-name\":\"d\",\"driver\":\"null-co\",\"filename\":\"kept\"}");
    assert_node(
        config, "e",
        "{\"node-name\":\"e\",\"driver\":\"raw\",\"file\":{\"driver\":\"raw\",\"file\":{\"driver\":\"file\","
        "\"filename\":\"/base/z\"}}}");
    assert_node(config, "f", "{\"node-name\":\"f\",\"driver\":\"file\",\"filename\":\"/base/a:b\"}");
    refused_ini("[node a]\nfile=json:{\n",
                "g:2: node 'a': option 'file': JSON: expected a string, found the end of the text");
    refused_ini("[node a]\nfile=json:[]\n", "g:2: node 'a': option 'file': JSON: expected an object");
}

/* ---- JSON */

static void test_json(void)
{
    g_autoptr(Config) config = config_new();

    graph_test_accepted(
        graph_file_parse_json, config,
        "{\"nodes\": [{\"node-name\": \"a\", \"driver\": \"raw\", \"size\": 512, \"x\": true,\n"
        " \"file\": {\"driver\": \"file\", \"filename\": \"a\\u00e4\\ud83d\\ude00\\n\"}}]}",
        NULL);
    assert_node(
        config, "a",
        "{\"node-name\":\"a\",\"driver\":\"raw\",\"size\":512,\"x\":true,\"file\":{\"driver\":\"file\","
        "\"filename\":\"/base/a\xc3\xa4\xf0\x9f\x98\x80\\n\"}}");
}

static void test_json_structure(void)
{
    refused_json("[]", "g: expected an object with the keys nodes, exports, objects");
    refused_json("{\n\"node\": []}", "g:2: unknown key 'node', did you mean 'nodes'?");
    refused_json("{\"xyzzy\": []}", "g:1: unknown key 'xyzzy', expected one of nodes, exports, objects");
    refused_json("{\"nodes\": {}}", "g:1: 'nodes': expected an array");
    refused_json("{\"nodes\": [\n1]}", "g:2: 'nodes.0': expected an object");
    refused_json("{\"nodes\": [{\"node-name\": \"a\",\n\n\"file\": \"b\"}]}",
                 "g:3: node 'a': option 'file': there is no node 'b'");
    refused_json(
        "{\"nodes\": [{\"node-name\": \"a\",\n\"file.driver\": \"b\"}]}",
        "g:2: node 'a': option 'file.driver': write nested objects in JSON instead of a name with dots");
    refused_json(
        "{\"nodes\": [{\"node-name\": \"n\"}],\n\"exports\": [{\"id\": \"e\",\n\"node-name\": \"n\",\n"
        "\"writable\": 1}]}",
        "g:4: export 'e': option 'writable': expected on or off, not a number");
}

static void test_json_syntax(void)
{
    refused_json("", "g:1: expected a value, found the end of the text");
    refused_json("{", "g:1: expected a string, found the end of the text");
    refused_json("{}{", "g:1: expected the end of the text, found '{'");
    refused_json("{\n\"nodes\": [}", "g:2: expected a value, found '}'");
    refused_json("{\"nodes\": [],}", "g:1: expected a string, found '}'");
    refused_json("{\"nodes\" []}", "g:1: expected ':', found '['");
    refused_json("{\"nodes\": [1 2]}", "g:1: expected ',' or ']', found '2'");
    refused_json("{'nodes': []}", "g:1: expected a string, found ''nodes'");
    refused_json("{\"nodes\": [],\n\n\"nodes\": []}", "g:3: the key 'nodes' is given twice");
    refused_json("{\"a\\u0000b\": 1}", "g:1: a string contains NUL or half of a surrogate pair");
    refused_json("{\"\\ud800x\": 1}", "g:1: expected the second half of a surrogate pair, found 'x'");
    refused_json("{\"\\udc00\": 1}", "g:1: a string contains NUL or half of a surrogate pair");
    refused_json("{\"\\ud800\\u0041\": 1}", "g:1: a string contains NUL or half of a surrogate pair");
    refused_json("{\"\\q\": 1}", "g:1: expected an escape (one of \"\\/bfnrtu), found 'q'");
    refused_json("{\"\\u12", "g:1: expected four hexadecimal digits, found '12'");
    refused_json("{\"a\nb\": 1}", "g:1: a string does not end on its line");
    refused_json("{\"a\tb\": 1}", "g:1: a string contains a control character");
    refused_json("{\"a", "g:1: a string does not end");
    refused_json("{\"a\": 99999999999999999999}", "g:1: the number 99999999999999999999 is too large");
    refused_json("{\"a\": 1e999}", "g:1: the number 1e999 is too large");
    refused_json("{\"a\": 01}", "g:1: expected a number, found '01'");
    refused_json("{\"a\": -}", "g:1: expected a number, found '-'");
    refused_json("{\"a\": 1.}", "g:1: expected a number, found '1'");
    refused_json("{\"a\": nul}", "g:1: expected a value, found 'nul'");
    refused_json("{\"a\": trueish}", "g:1: expected a value, found 'trueish'");
    refused_json("{\"a\": NaN}", "g:1: expected a value, found 'NaN'");
    refused_json("\xef\xbb\xbf{}", "g:1: expected a value, found '\xef\xbb\xbf'");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/graph-file/ini", test_ini);
    g_test_add_func("/graph-file/ini-escapes", test_ini_escapes);
    g_test_add_func("/graph-file/ini-syntax", test_ini_syntax);
    g_test_add_func("/graph-file/ini-duplicates", test_ini_duplicates);
    g_test_add_func("/graph-file/ini-lists", test_ini_lists);
    g_test_add_func("/graph-file/names", test_names);
    g_test_add_func("/graph-file/file-names", test_file_names);
    g_test_add_func("/graph-file/json", test_json);
    g_test_add_func("/graph-file/json-structure", test_json_structure);
    g_test_add_func("/graph-file/json-syntax", test_json_syntax);
    return g_test_run();
}
