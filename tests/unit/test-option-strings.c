/*
 * The words of -o, and option strings as QEMU writes them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/keyval.h"
#include "control/mount-options.h"

/* ---- -o */

static void refuse_mount_option(const char *words, const char *message)
{
    g_autoptr(MountOptions) options = mount_options_new();
    g_autoptr(GError) error = NULL;

    g_assert_false(mount_options_add(options, words, &error));
    g_assert_cmpstr(error->message, ==, message);
}

/* The words that reach libfuse, joined by spaces. */
static void assert_passed(const char *words, const char *expected)
{
    g_autoptr(MountOptions) options = mount_options_new();
    g_autoptr(GError) error = NULL;
    g_autofree char *passed = NULL;

    g_assert_true(mount_options_add(options, words, &error));
    g_ptr_array_add(options->fuse_options, NULL);
    passed = g_strjoinv(" ", (char **)options->fuse_options->pdata);
    g_assert_cmpstr(passed, ==, expected);
}

static void test_mount_options(void)
{
    g_autoptr(MountOptions) options = mount_options_new();
    g_autoptr(GError) error = NULL;

    g_assert_true(
        mount_options_add(options, "ro,queues=4,transport=dev,event-loop=epoll,strict-sync", &error));
    g_assert_true(mount_options_add(options, "allow_other,cache=none,fsname=a\\,b", &error));
    g_assert_true(options->read_only && options->strict_sync && options->allow_other);
    g_assert_cmpuint(options->queues, ==, 4);
    g_assert_cmpint(options->event_loop, ==, AIO_BACKEND_EPOLL);
    g_assert_cmpstr(options->fsname, ==, "a,b");
    g_assert_true(
        mount_options_add(options, "rw,queues=2,event-loop=io_uring", &error)); /* later words win */
    g_assert_false(options->read_only);
    g_assert_cmpuint(options->queues, ==, 2);
    g_assert_cmpint(options->event_loop, ==, AIO_BACKEND_URING);

    assert_passed("default_permissions,max_read=131072,nosuid,nodev,noexec,noatime,subtype=x",
                  "default_permissions max_read=131072 nosuid nodev noexec noatime subtype=x");
    assert_passed("subtype=a\\,b", "subtype=a\\,b");
    assert_passed(
        "defaults,_netdev,user,users,noauto,nofail,x-systemd.automount,x-a=b,X-c,comment=d,user=bob,"
        "relatime,,uhelper=e",
        "");
}

static void test_bad_mount_options(void)
{
    refuse_mount_option("queues=0", "-o queues=0: out of range: from 1 to 64");
    refuse_mount_option("queues=-1", "-o queues=-1: out of range: from 1 to 64");
    refuse_mount_option("queues=65", "-o queues=65: out of range: from 1 to 64");
    refuse_mount_option("queues=1000000000", "-o queues=1000000000: out of range: from 1 to 64");
    refuse_mount_option("queues=99999999999999999999",
                        "-o queues=99999999999999999999: out of range: from 1 to 64");
    refuse_mount_option("queues=two", "-o queues=two: expected a whole number");
    refuse_mount_option("queues=", "-o queues=: expected a whole number");
    refuse_mount_option("queues=1.5", "-o queues=1.5: expected a whole number");
    refuse_mount_option("queues", "-o queues: needs a value");
    refuse_mount_option("ro=yes", "-o ro=yes: takes no value");
    refuse_mount_option("queus=2", "-o queus=2: unknown mount option, did you mean 'queues'?");
    refuse_mount_option("ro,xyzzy", "-o xyzzy: unknown mount option");
    refuse_mount_option("umask=077", "-o umask=077: unknown mount option");
    refuse_mount_option("transport=uring",
                        "-o transport=uring: FUSE over io_uring is not supported yet: use auto or dev");
    refuse_mount_option("transport=tcp",
                        "-o transport=tcp: unknown value 'tcp', expected one of auto, dev, uring");
    refuse_mount_option("event-loop=epol", "-o event-loop=epol: unknown value 'epol', did you mean 'epoll'?");
    refuse_mount_option("cache=writeback", "-o cache=writeback: not supported yet: only cache=none is");
    refuse_mount_option("cache=non", "-o cache=non: unknown value 'non', did you mean 'none'?");
    refuse_mount_option("allow_root",
                        "-o allow_root: not supported: use allow_other, and the modes of the files");
    refuse_mount_option("max_read=0", "-o max_read=0: expected a number of bytes, at least 4096");
    refuse_mount_option("fsname=", "-o fsname=: the name is empty");
    refuse_mount_option("fsname=\xff", "-o: not valid UTF-8");
}

/* ---- Option strings */

static void assert_keyval(const char *text, const char *expected)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) object = keyval_parse(text, "driver", &error);
    JsonNode *node;
    g_autofree char *json = NULL;

    g_assert_no_error(error);
    node = json_node_init_object(json_node_alloc(), object);
    json = json_to_string(node, FALSE);
    json_node_unref(node);
    g_assert_cmpstr(json, ==, expected);
}

static void test_keyval(void)
{
    assert_keyval("raw", "{\"driver\":\"raw\"}");
    assert_keyval("raw,size=1G", "{\"driver\":\"raw\",\"size\":\"1G\"}");
    assert_keyval("driver=raw,file.driver=file,file.filename=a,,b",
                  "{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"a,b\"}}");
    assert_keyval("driver=x,a=,,,,,b=1", "{\"driver\":\"x\",\"a\":\",,\",\"b\":\"1\"}");
    assert_keyval("driver=x,a=b=c", "{\"driver\":\"x\",\"a\":\"b=c\"}");
    assert_keyval("driver=x,a=,b=1,", "{\"driver\":\"x\",\"a\":\"\",\"b\":\"1\"}");
    assert_keyval("driver=x,l.1=b,l.0=a", "{\"driver\":\"x\",\"l\":[\"a\",\"b\"]}");
    assert_keyval("driver=x,l.0.a=1,l.0.b=2", "{\"driver\":\"x\",\"l\":[{\"a\":\"1\",\"b\":\"2\"}]}");
    assert_keyval("{\"driver\": \"raw\", \"size\": 5}", "{\"driver\":\"raw\",\"size\":5}");
    assert_keyval("json:{\"driver\": \"raw\"}", "{\"driver\":\"raw\"}");
    assert_keyval(
        "json:{\"file.driver\":\"x\",\"a\":{\"b.c\":[1],\"d\":null},\"file\":{\"size\":5},\"e\":{}}",
        "{\"file\":{\"driver\":\"x\",\"size\":5},\"a\":{\"b\":{\"c\":[1]},\"d\":null},\"e\":{}}");
    assert_keyval("json:{\"l.1\":true,\"l.0.x\":1}", "{\"l\":[{\"x\":1},true]}");
    assert_keyval("{\"a.b\":1}", "{\"a.b\":1}"); /* QMP's: refused later */
}

static void refuse_keyval(const char *text, const char *message)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) object = keyval_parse(text, "driver", &error);

    g_assert_null(object);
    g_assert_cmpstr(error->message, ==, message);
}

static void test_bad_keyval(void)
{
    g_autoptr(GString) many = g_string_new("driver=x");

    refuse_keyval("", "an option is empty (a comma in a value is written ',,')");
    refuse_keyval("raw,size", "expected '=' after 'size'");
    refuse_keyval("=x", "option '': the name is empty");
    refuse_keyval("a=1,a=2", "option 'a': given more than once");
    refuse_keyval("a=1,a.b=2", "option 'a.b': contradicts an option with a shorter name");
    refuse_keyval("a.b=1,a=2", "option 'a': contradicts an option with a longer name");
    refuse_keyval("l.0=a,l.2=b", "option 'l': the list has no element 1");
    refuse_keyval("l.01=a", "option 'l': the list has no element 0");
    refuse_keyval("a b=1", "option 'a b': not a valid option name");
    refuse_keyval("a.=1", "option 'a.': not a valid option name");
    refuse_keyval("{\"a\"", "JSON: expected ':', found the end of the text");
    refuse_keyval("{} x", "JSON: expected the end of the text, found 'x'");
    refuse_keyval("json:[]", "JSON: expected an object");
    refuse_keyval("a=\xff", "not valid UTF-8");
    refuse_keyval("json:{\"a.b\":1,\"a\":{\"b\":2}}", "JSON: option 'b': given more than once");
    refuse_keyval("json:{\"a\":{\"b\":2},\"a.b\":1}", "JSON: option 'a.b': given more than once");
    refuse_keyval("json:{\"a\":1,\"a.b\":2}",
                  "JSON: option 'a.b': contradicts an option with a shorter name");
    refuse_keyval("json:{\"a.b\":2,\"a\":\"x\"}",
                  "JSON: option 'a': contradicts an option with a longer name");
    refuse_keyval("json:{\"a\":\"x\",\"b\":{},\"a.b.c\":{}}",
                  "JSON: option 'a.b.c': contradicts an option with a shorter name");
    refuse_keyval("json:{\"a..b\":1}", "JSON: option 'a..b': not a valid option name");
    refuse_keyval("json:{\"l.0\":1,\"l.2\":1}", "JSON: option 'l': the list has no element 1");
    for (int i = 0; i < KEYVAL_MAX_KEYS; i++) {
        g_string_append_printf(many, ",k%d=", i);
    }
    refuse_keyval(many->str, "more than 4096 options");
}

/* Whatever the text, there is an object or a message. */
static void test_keyval_mutations(void)
{
    static const char alphabet[] = ",,==..ab019{}[]\": -\\";

    for (int i = 0; i < 20000; i++) {
        char text[32];
        int len = g_test_rand_int_range(0, sizeof(text));
        g_autoptr(GError) error = NULL;
        g_autoptr(JsonObject) object = NULL;

        for (int j = 0; j < len; j++) {
            text[j] = alphabet[g_test_rand_int_range(0, sizeof(alphabet) - 1)];
        }
        text[len] = '\0';
        object = keyval_parse(text, "driver", &error);
        g_assert_true((object != NULL) == (error == NULL));
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/mount-options/good", test_mount_options);
    g_test_add_func("/mount-options/bad", test_bad_mount_options);
    g_test_add_func("/keyval/good", test_keyval);
    g_test_add_func("/keyval/bad", test_bad_keyval);
    g_test_add_func("/keyval/mutations", test_keyval_mutations);
    return g_test_run();
}
