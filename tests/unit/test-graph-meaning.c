/*
 * What a graph file says: references between nodes, exports, objects.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <string.h>

#include "graph-test.h"

/* ---- References */

static void assert_order(const char *text, const char *expected)
{
    g_autoptr(Config) config = config_new();
    g_autoptr(GString) names = g_string_new(NULL);

    graph_test_accepted(graph_file_parse_ini, config, text, NULL);
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
    graph_test_accepted(graph_file_parse_ini, config, text->str, NULL);
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

    graph_test_accepted(graph_file_parse_ini, config, "[node a]\nfile=b\n[node b]\n[node c]\n", &exports);
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

    graph_test_accepted(
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

    graph_test_accepted(graph_file_parse_ini, config, text, &exports);
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
    refused_ini("[throttle-group slow]\nlimits.iops-total=500\nlimits.iops-total-max=400\n",
                "g:3: object 'slow': option 'limits.iops-total-max': is less than iops-total");
    refused_ini("[secret s]\ndata=x\n",
                "g:2: object 's': option 'data': a secret in clear would be seen by others: "
                "put it into a file and say file=");
    refused_ini("[secret s]\n", "g:1: object 's': option 'file': either this or 'credential' is required");
    refused_ini("[secret s]\nfile=a\ncredential=b\n",
                "g:2: object 's': option 'file': either this or 'credential' is required");
    refused_ini("[secret s]\ncredential=../b\n",
                "g:2: object 's': option 'credential': '../b' is not a name of a credential");
    refused_ini("[secret s]\nfile=a\nformat=hex\n",
                "g:3: object 's': option 'format': unknown value 'hex', expected one of raw, base64");
    refused_ini("[secret s]\nfile=a\nkeyid=k\n", "g:3: object 's': option 'keyid': is not supported");
    refused_ini("[tls-creds-psk t]\n", "g:1: object 't': option 'dir': is required");
    refused_ini("[tls-creds-x509 t]\nendpoint=server\n",
                "g:2: object 't': option 'endpoint': nothing here is a server: 'client' is supported");
    refused_ini("[tls-creds-x509 t]\npasswordid=s\n",
                "g:2: object 't': option 'passwordid': is not supported");
    refused_ini("[iothread io]\npoll-grow=5\n",
                "g:2: object 'io': option 'poll-grow': is not supported, other than 0");
    refused_ini(
        "[node n]\ndriver=null-co\n[secret s]\nfile=x\n[export e]\nnode=n\nmountpoint=/x\niothread=s\n",
        "g:8: export 'e': option 'iothread': object 's' is not an iothread");
    refused_json("{\"objects\": [{\"id\": \"a\", \"qom-type\": \"iothred\"}]}",
                 "g:1: object 'a': option 'qom-type': unknown type 'iothred', did you mean 'iothread'?");
    refused_json("{\"objects\": [{\"id\": \"a\"}]}", "g:1: object 'a': option 'qom-type': is required");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/graph-meaning/order", test_order);
    g_test_add_func("/graph-meaning/references", test_references);
    g_test_add_func("/graph-meaning/long-chain", test_long_chain);
    g_test_add_func("/graph-meaning/default-exports", test_default_exports);
    g_test_add_func("/graph-meaning/exports", test_exports);
    g_test_add_func("/graph-meaning/export-values", test_export_values);
    g_test_add_func("/graph-meaning/directory-allow-other", test_directory_allow_other);
    g_test_add_func("/graph-meaning/objects", test_objects);
    return g_test_run();
}
