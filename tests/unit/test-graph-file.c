/*
 * The graph file, INI and JSON: what it means, and a message with file, line and name for what it does not.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <glib/gstdio.h>

#include "control/exports.h"
#include "control/graph-file.h"
#include "control/json-text.h"
#include "control/resolve.h"
#include "util/error.h"

#define BASE "/base"

typedef bool Parse(Config *config, const char *path, const char *text, const char *base, GError **errp);

/* Parse, sort, read the exports and objects, as the daemon does. NULL and *errp. */
static GPtrArray *read_all(Config *config, Parse *parse, const char *text, GError **errp)
{
    g_autoptr(GPtrArray) roots = g_ptr_array_new();
    g_autoptr(GPtrArray) threads = NULL;

    if (!parse(config, "g", text, BASE, errp) || !config_resolve(config, roots, errp)) {
        return NULL;
    }
    threads = iothreads_read(config, errp);
    return threads ? exports_read(config, roots, errp) : NULL;
}

static void refused(Parse *parse, const char *text, const char *message)
{
    g_autoptr(Config) config = config_new();
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) exports = read_all(config, parse, text, &error);

    g_assert_null(exports);
    g_assert_nonnull(error);
    g_assert_cmpstr(error->message, ==, message);
}

static void refused_ini(const char *text, const char *message)
{
    refused(graph_file_parse_ini, text, message);
}

static void refused_json(const char *text, const char *message)
{
    refused(graph_file_parse_json, text, message);
}

static void accepted(Parse *parse, Config *config, const char *text, GPtrArray **exports)
{
    g_autoptr(GError) error = NULL;
    GPtrArray *found = read_all(config, parse, text, &error);

    g_assert_no_error(error);
    g_assert_nonnull(found);
    if (exports) {
        *exports = found;
    } else {
        g_ptr_array_unref(found);
    }
}

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

static const char lab[] = "# a comment\n"
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

static void test_ini(void)
{
    g_autoptr(Config) config = config_new();
    g_autoptr(GPtrArray) exports = NULL;
    ExportSpec *spec;

    accepted(graph_file_parse_ini, config, lab, &exports);
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
        accepted(graph_file_parse_ini, config, text, NULL);
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
                "g:1: unknown section '', expected one of node, export, iothread, throttle-group, secret");
    refused_ini("[nodes a]\n", "g:1: unknown section 'nodes', did you mean 'node'?");
    refused_ini("[xyzzy a]\n", "g:1: unknown section 'xyzzy', expected one of node, export, iothread, "
                               "throttle-group, secret");
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

    accepted(graph_file_parse_ini, config,
             "[node a]\nchildren.0=b\nchildren.1.driver=file\nchildren.1.filename=x\n[node b]\n", NULL);
    assert_node(config, "a",
                "{\"node-name\":\"a\",\"children\":[\"b\",{\"driver\":\"file\",\"filename\":\"/base/x\"}]}");
    refused_ini("[node a]\nchildren.0=b\nchildren.2=c\n",
                "g:1: node 'a': option 'children': the list has no element 1");
    refused_ini("[node a]\nchildren.0=nix\n", "g:2: node 'a': option 'children.0': there is no node 'nix'");
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

    accepted(graph_file_parse_ini, config, good, NULL);
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

/* ---- References */

static void assert_order(const char *text, const char *expected)
{
    g_autoptr(Config) config = config_new();
    g_autoptr(GString) names = g_string_new(NULL);

    accepted(graph_file_parse_ini, config, text, NULL);
    for (guint i = 0; i < config_nodes(config)->len; i++) {
        g_string_append_printf(names, "%s%s", i ? " " : "",
                               ((ConfigItem *)config_nodes(config)->pdata[i])->name);
    }
    g_assert_cmpstr(names->str, ==, expected);
}

static void test_order(void)
{
    assert_order("[node a]\n[node b]\n[node c]\n", "a b c");
    assert_order("[node a]\nfile=c\n[node b]\nfile=a\n[node c]\n", "c a b");
    assert_order("[node a]\nfile=b\nbacking=c\n[node b]\nfile=c\n[node c]\n", "c b a");
    assert_order("[node a]\nfile.driver=raw\nfile.file=b\n[node b]\n", "b a");
    /* A node defined in place may be referred to by its name. */
    assert_order("[node a]\nbacking=inner\n[node b]\nfile.driver=file\nfile.node-name=inner\n", "b a");
}

static void test_references(void)
{
    refused_ini("[node base]\n[node a]\nfile=bsae\n",
                "g:3: node 'a': option 'file': there is no node 'bsae', did you mean 'base'?");
    refused_ini("[node a]\nfile=a\n", "g:2: node 'a': option 'file': the references form a cycle: a -> a");
    refused_ini(
        "[node x]\nfile=a\n[node a]\nfile=b\n[node b]\nbacking=c\n[node c]\nfile.driver=raw\nfile.file=a\n",
        "g:9: node 'c': option 'file.file': the references form a cycle: a -> b -> c -> a");
    refused_ini("[node disk]\n[export e]\nnode=dsik\n",
                "g:3: export 'e': option 'node': there is no node 'dsik', did you mean 'disk'?");
    refused_ini("[iothread io1]\n[node n]\n[export e]\nnode=n\nmountpoint=/x\niothread=io2\n",
                "g:6: export 'e': option 'iothread': there is no iothread 'io2', did you mean 'io1'?");
}

static void test_long_chain(void)
{
    g_autoptr(GString) text = g_string_new("[node n0]\n");
    g_autoptr(Config) config = config_new();

    for (int i = 1; i < 200; i++) {
        g_string_append_printf(text, "[node n%d]\nfile=n%d\n", i, i - 1);
    }
    accepted(graph_file_parse_ini, config, text->str, NULL);
    g_string_printf(text, "[node n0]\nfile=n1\n");
    for (int i = 1; i < 200; i++) {
        g_string_append_printf(text, "[node n%d]\nfile=n%d\n", i, i + 1);
    }
    g_string_append(text, "[node n200]\n");
    refused_ini(text->str, "g:1: node 'n0': a chain of more than 200 nodes hangs below");
}

/* ---- Exports and objects */

static void test_default_exports(void)
{
    g_autoptr(Config) config = config_new();
    g_autoptr(GPtrArray) exports = NULL;

    accepted(graph_file_parse_ini, config, "[node a]\nfile=b\n[node b]\n[node c]\n", &exports);
    g_assert_cmpuint(exports->len, ==, 2);
    g_assert_cmpstr(((ExportSpec *)exports->pdata[0])->id, ==, "a");
    g_assert_cmpstr(((ExportSpec *)exports->pdata[1])->id, ==, "c");
    g_assert_cmpint(((ExportSpec *)exports->pdata[0])->writable, ==, EXPORT_AS_NODE);
}

static void test_exports(void)
{
#define N "[node n]\n[export e]\nnode=n\n"
    refused_ini("[node n]\n[export e]\n", "g:2: export 'e': option 'node-name': is required");
    refused_ini(N "node-name=n\n",
                "g:3: export 'e': option 'node': is the same as 'node-name': give one of them");
    refused_ini(N "writeable=on\n",
                "g:4: export 'e': option 'writeable': unknown option, did you mean 'writable'?");
    refused_ini(N "writable=maybe\n", "g:4: export 'e': option 'writable': expected on or off, not 'maybe'");
    refused_ini(N "growable=on\n", "g:4: export 'e': option 'growable': needs writable=on");
    refused_ini(N "type=nbd\n",
                "g:4: export 'e': option 'type': exports of type 'nbd' are not supported, only 'fuse'");
    refused_ini(N "type=fusee\n",
                "g:4: export 'e': option 'type': unknown value 'fusee', did you mean 'fuse'?");
    refused_ini(N "mountpoint=\n", "g:4: export 'e': option 'mountpoint': must not be empty");
    refused_ini(N "iothread=io\n",
                "g:4: export 'e': option 'iothread': needs a mountpoint of the export's own: "
                "files of one directory share queues");
    refused_ini(N "partitions=on\n", "g:4: export 'e': option 'partitions': is not supported yet");
    refused_ini(N "writethrough=on\n", "g:4: export 'e': option 'writethrough': is not supported yet");
    refused_ini(N "allow-other=yes\n",
                "g:4: export 'e': option 'allow-other': unknown value 'yes', expected one of off, on, auto");
    refused_ini(N "mountpoint=x\n[export f]\nnode=n\nmountpoint=/base/x\n",
                "g:7: export 'f': option 'mountpoint': is that of export 'e' already");
#undef N
}

static void test_export_values(void)
{
    g_autoptr(Config) config = config_new();
    g_autoptr(GPtrArray) exports = NULL;
    ExportSpec *spec;

    accepted(
        graph_file_parse_json, config,
        "{\"nodes\": [{\"node-name\": \"n\"}], \"objects\": [{\"qom-type\": \"iothread\", \"id\": \"io\"}],"
        " \"exports\": [{\"type\": \"fuse\", \"id\": \"e\", \"node-name\": \"n\", \"mountpoint\": \"x\","
        " \"allow-other\": true, \"iothread\": \"io\", \"fixed-iothread\": true, \"writable\": true,"
        " \"writethrough\": false, \"partitions\": false}]}",
        &exports);
    spec = exports->pdata[0];
    g_assert_cmpstr(spec->mountpoint, ==, "/base/x");
    g_assert_cmpstr(spec->iothread, ==, "io");
    g_assert_true(spec->has_allow_other);
    g_assert_cmpint(spec->allow_other, ==, FUSE_ALLOW_OTHER_ON);
    g_assert_cmpint(spec->writable, ==, EXPORT_WRITABLE);
}

static void directory_allow_other(const char *text, bool option, int expected, const char *message)
{
    g_autoptr(Config) config = config_new();
    g_autoptr(GPtrArray) exports = NULL;
    g_autoptr(GError) error = NULL;
    FuseAllowOther found;
    bool ok;

    accepted(graph_file_parse_ini, config, text, &exports);
    ok = exports_directory_allow_other(exports, option, &found, &error);
    g_assert_cmpint(ok, ==, message == NULL);
    if (message) {
        g_assert_cmpstr(error->message, ==, message);
    } else {
        g_assert_cmpint(found, ==, expected);
    }
}

static void test_directory_allow_other(void)
{
#define N "[node n]\n[export a]\nnode=n\nallow-other=on\n"
    directory_allow_other("[node n]\n", false, FUSE_ALLOW_OTHER_OFF, NULL);
    directory_allow_other("[node n]\n", true, FUSE_ALLOW_OTHER_ON, NULL);
    directory_allow_other(N, false, FUSE_ALLOW_OTHER_ON, NULL);
    directory_allow_other(N "[export b]\nnode=n\n", false, FUSE_ALLOW_OTHER_ON, NULL);
    directory_allow_other("[node n]\n[export a]\nnode=n\nallow-other=auto\n", false, FUSE_ALLOW_OTHER_AUTO,
                          NULL);
    directory_allow_other(
        N "[export b]\nnode=n\nallow-other=off\n", false, 0,
        "g:7: export 'b': option 'allow-other': contradicts export 'a', which is in the same "
        "directory");
    directory_allow_other("[node n]\n[export a]\nnode=n\nallow-other=off\n", true, 0,
                          "g:4: export 'a': option 'allow-other': contradicts -o allow_other");
    /* An export with a mountpoint of its own does not count. */
    directory_allow_other(N "[export b]\nnode=n\nallow-other=off\nmountpoint=/x\n", false,
                          FUSE_ALLOW_OTHER_ON, NULL);
#undef N
}

static void test_objects(void)
{
    refused_ini(
        "[throttle-group slow]\nlimits.iops-total=500\n",
        "g:1: object 'slow': option 'qom-type': objects of type 'throttle-group' are not supported yet");
    refused_ini("[secret s]\nfile=x\n",
                "g:1: object 's': option 'qom-type': objects of type 'secret' are not supported yet");
    refused_ini("[iothread io]\npoll-max-ns=5\n", "g:2: object 'io': option 'poll-max-ns': unknown option");
    refused_json("{\"objects\": [{\"id\": \"a\", \"qom-type\": \"iothred\"}]}",
                 "g:1: object 'a': option 'qom-type': unknown type 'iothred', did you mean 'iothread'?");
    refused_json("{\"objects\": [{\"id\": \"a\"}]}", "g:1: object 'a': option 'qom-type': is required");
}

/* ---- File names */

static void test_file_names(void)
{
    g_autoptr(Config) config = config_new();

    accepted(
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
    refused_ini("[node a]\nchildren.0=json:[]\n",
                "g:2: node 'a': option 'children.0': JSON: expected an object");
}

/* ---- JSON */

static void test_json(void)
{
    g_autoptr(Config) config = config_new();

    accepted(graph_file_parse_json, config,
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
    g_assert_null(config_add(config, CONFIG_NODE, options, &place, BASE, &error));
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

static void mutations_of(Parse *parse, const char *text)
{
    for (int i = 0; i < MUTATIONS; i++) {
        g_autofree char *mutated = mutate(text);
        g_autoptr(Config) config = config_new();
        g_autoptr(GError) error = NULL;
        g_autoptr(GPtrArray) exports = read_all(config, parse, mutated, &error);

        g_assert_true((exports != NULL) == (error == NULL));
        if (error) {
            g_assert_true(g_str_has_prefix(error->message, "g:")); /* the file, and mostly the line */
        }
    }
}

static void test_mutations(void)
{
    mutations_of(graph_file_parse_ini, lab);
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

static void remove_dir(void)
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

int main(int argc, char **argv)
{
    int status;

    g_test_init(&argc, &argv, NULL);
    dir = g_dir_make_tmp("test-graph-file-XXXXXX", NULL);
    g_test_add_func("/graph-file/ini", test_ini);
    g_test_add_func("/graph-file/ini-escapes", test_ini_escapes);
    g_test_add_func("/graph-file/ini-syntax", test_ini_syntax);
    g_test_add_func("/graph-file/ini-duplicates", test_ini_duplicates);
    g_test_add_func("/graph-file/ini-lists", test_ini_lists);
    g_test_add_func("/graph-file/names", test_names);
    g_test_add_func("/graph-file/order", test_order);
    g_test_add_func("/graph-file/references", test_references);
    g_test_add_func("/graph-file/long-chain", test_long_chain);
    g_test_add_func("/graph-file/default-exports", test_default_exports);
    g_test_add_func("/graph-file/exports", test_exports);
    g_test_add_func("/graph-file/export-values", test_export_values);
    g_test_add_func("/graph-file/directory-allow-other", test_directory_allow_other);
    g_test_add_func("/graph-file/objects", test_objects);
    g_test_add_func("/graph-file/file-names", test_file_names);
    g_test_add_func("/graph-file/json", test_json);
    g_test_add_func("/graph-file/json-structure", test_json_structure);
    g_test_add_func("/graph-file/json-syntax", test_json_syntax);
    g_test_add_func("/graph-file/deep-json", test_deep_json);
    g_test_add_func("/graph-file/many-json-values", test_many_json_values);
    g_test_add_func("/graph-file/long-json-keys", test_long_json_keys);
    g_test_add_func("/graph-file/deep-json-names", test_deep_json_names);
    g_test_add_func("/graph-file/ini-bounds", test_ini_bounds);
    g_test_add_func("/graph-file/mutations", test_mutations);
    g_test_add_func("/graph-file/files", test_files);
    g_test_add_func("/graph-file/relative-to-file", test_relative_to_file);
    g_test_add_func("/graph-file/device", test_device);
    status = g_test_run();
    remove_dir();
    return status;
}
