/*
 * BlockOptions: typed reading of JSON, dotted keys and strings; refusal of the rest.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "block/options.h"
#include "util/error.h"

static BlockOptions *options(const char *json)
{
    g_autoptr(GError) error = NULL;
    JsonNode *node = json_from_string(json, &error);
    BlockOptions *opts;

    g_assert_no_error(error);
    opts = block_options_new("node 'n'", "file.", json_node_get_object(node));
    json_node_unref(node);
    return opts;
}

/* The error is there and reads `message`; it is freed. */
static void assert_message(GError **error, const char *message)
{
    g_assert_nonnull(*error);
    g_assert_cmpstr((*error)->message, ==, message);
    g_clear_error(error);
}

static void test_string(void)
{
    g_autoptr(BlockOptions) opts =
        options("{\"a\": \"x\", \"n\": 5, \"e\": \"\", \"o.p\": \"y\", \"l\": []}");
    g_autofree char *a = NULL, *none = NULL, *dotted = NULL, *required = NULL;
    char *bad = NULL;
    GError *error = NULL;

    g_assert_true(block_options_get_string(opts, "a", &a, &error));
    g_assert_cmpstr(a, ==, "x");
    g_assert_true(block_options_get_string(opts, "absent", &none, &error));
    g_assert_null(none);
    g_assert_true(block_options_get_string(opts, "o.p", &dotted, &error));
    g_assert_cmpstr(dotted, ==, "y");
    g_assert_true(block_options_require_string(opts, "a", &required, &error));
    g_assert_no_error(error);

    g_assert_false(block_options_get_string(opts, "n", &bad, &error));
    assert_message(&error, "node 'n': option 'file.n': expected a string, not a number");
    g_assert_false(block_options_get_string(opts, "o", &bad, &error));
    assert_message(&error, "node 'n': option 'file.o': expected a string, not an object");
    g_assert_false(block_options_get_string(opts, "l", &bad, &error));
    assert_message(&error, "node 'n': option 'file.l': expected a string, not a list");
    g_assert_false(block_options_require_string(opts, "e", &bad, &error));
    assert_message(&error, "node 'n': option 'file.e': must not be empty");
    g_assert_false(block_options_require_string(opts, "absent", &bad, &error));
    assert_message(&error, "node 'n': option 'file.absent': is required");
    g_assert_null(bad);
}

static void test_bool(void)
{
    g_autoptr(BlockOptions) opts =
        options("{\"t\": true, \"on\": \"on\", \"no\": \"no\", \"bad\": \"maybe\", "
                "\"n\": 1, \"z\": null}");
    bool value = false;
    GError *error = NULL;

    g_assert_true(block_options_get_bool(opts, "t", &value, &error) && value);
    value = false;
    g_assert_true(block_options_get_bool(opts, "on", &value, &error) && value);
    g_assert_true(block_options_get_bool(opts, "no", &value, &error) && !value);
    value = true;
    g_assert_true(block_options_get_bool(opts, "absent", &value, &error) && value);
    g_assert_false(block_options_get_bool(opts, "bad", &value, &error));
    assert_message(&error, "node 'n': option 'file.bad': expected on or off, not 'maybe'");
    g_assert_false(block_options_get_bool(opts, "n", &value, &error));
    assert_message(&error, "node 'n': option 'file.n': expected on or off, not a number");
    g_assert_false(block_options_get_bool(opts, "z", &value, &error));
    assert_message(&error, "node 'n': option 'file.z': expected on or off, not null");
}

static void test_uint64(void)
{
    g_autoptr(BlockOptions) opts =
        options("{\"a\": 7, \"b\": \"7\", \"neg\": -1, \"negs\": \"-1\", \"big\": \"18446744073709551616\", "
                "\"f\": 1.5, \"x\": \"7k\", \"t\": true}");
    uint64_t value = 42;
    GError *error = NULL;

    g_assert_true(block_options_get_uint64(opts, "absent", 1, 10, &value, &error) && value == 42);
    g_assert_true(block_options_get_uint64(opts, "a", 1, 10, &value, &error) && value == 7);
    value = 0;
    g_assert_true(block_options_get_uint64(opts, "b", 7, 7, &value, &error) && value == 7);
    g_assert_false(block_options_get_uint64(opts, "a", 8, 10, &value, &error));
    assert_message(&error, "node 'n': option 'file.a': 7 is out of range: from 8 to 10");
    g_assert_false(block_options_get_uint64(opts, "neg", 0, 10, &value, &error));
    assert_message(&error, "node 'n': option 'file.neg': -1 is out of range: from 0 to 10");
    g_assert_false(block_options_get_uint64(opts, "negs", 0, 10, &value, &error));
    assert_message(&error, "node 'n': option 'file.negs': -1 is out of range: from 0 to 10");
    g_assert_false(block_options_get_uint64(opts, "big", 0, 10, &value, &error));
    assert_message(&error, "node 'n': option 'file.big': 18446744073709551616 is out of range: from 0 to 10");
    g_assert_false(block_options_get_uint64(opts, "f", 0, 10, &value, &error));
    assert_message(&error, "node 'n': option 'file.f': expected a number, not a number with a fraction");
    g_assert_false(block_options_get_uint64(opts, "x", 0, 10, &value, &error));
    assert_message(&error, "node 'n': option 'file.x': '7k' is not a whole number");
    g_assert_false(block_options_get_uint64(opts, "t", 0, 10, &value, &error));
    assert_message(&error, "node 'n': option 'file.t': expected a number, not a boolean");
    g_assert_cmpuint(value, ==, 7);
}

static void test_size(void)
{
    g_autoptr(BlockOptions) opts = options("{\"a\": 512, \"b\": \"64k\", \"neg\": \"-1\", \"huge\": \"9E\", "
                                           "\"max\": 9223372036854775807, \"bad\": \"1X\"}");
    int64_t value = -7;
    GError *error = NULL;

    g_assert_true(block_options_get_size(opts, "absent", &value, &error) && value == -7);
    g_assert_true(block_options_get_size(opts, "a", &value, &error) && value == 512);
    g_assert_true(block_options_get_size(opts, "b", &value, &error) && value == 65536);
    for (const char *const *key = (const char *const[]){"neg", "huge", "max", NULL}; *key; key++) {
        g_assert_false(block_options_get_size(opts, *key, &value, &error));
        g_assert_error(error, BG_ERROR, ERANGE);
        g_clear_error(&error);
    }
    g_assert_false(block_options_get_size(opts, "bad", &value, &error));
    g_assert_error(error, BG_ERROR, EINVAL);
    g_clear_error(&error);
    g_assert_cmpint(value, ==, 65536);
}

static void test_enum(void)
{
    static const char *const words[] = {"unmap", "ignore", NULL};
    g_autoptr(BlockOptions) opts =
        options("{\"a\": \"ignore\", \"b\": \"ignroe\", \"c\": \"xyzzy\", \"d\": true}");
    int value = -1;
    GError *error = NULL;

    g_assert_true(block_options_get_enum(opts, "absent", words, &value, &error) && value == -1);
    g_assert_true(block_options_get_enum(opts, "a", words, &value, &error) && value == 1);
    g_assert_false(block_options_get_enum(opts, "b", words, &value, &error));
    assert_message(&error, "node 'n': option 'file.b': unknown value 'ignroe', did you mean 'ignore'?");
    g_assert_false(block_options_get_enum(opts, "c", words, &value, &error));
    assert_message(&error, "node 'n': option 'file.c': unknown value 'xyzzy', expected one of unmap, ignore");
    g_assert_false(block_options_get_enum(opts, "d", words, &value, &error));
    assert_message(&error, "node 'n': option 'file.d': expected a string, not a boolean");
    g_assert_cmpint(value, ==, 1);
}

/* Each spelling of {"a": {"b": {"c": "v"}}} gives the same. */
static void check_strings(const char *json, const char *expected)
{
    g_autoptr(BlockOptions) opts = options(json);
    g_auto(GStrv) list = NULL;
    g_autoptr(GError) err = NULL;
    if (!expected) {
        g_assert_false(block_options_get_strings(opts, "k", &list, &err));
        g_assert_cmpstr(err->message, ==,
                        "node 'n': option 'file.k': expected a list of strings, none of them empty");
        return;
    }
    g_assert_true(block_options_get_strings(opts, "k", &list, &err));
    g_autofree char *joined = list ? g_strjoinv("|", list) : g_strdup("none");
    g_assert_cmpstr(joined, ==, expected);
    g_assert_true(block_options_finish(opts, NULL));
}

static void test_strings(void)
{
    check_strings("{}", "none");
    check_strings("{\"k\":\"a\"}", "a");
    check_strings("{\"k\":\"a:/b c:d\"}", "a|/b c|d");
    check_strings("{\"k\":[\"a:b\",\"c\"]}", "a:b|c");
    check_strings("{\"k\":\"\"}", NULL);
    check_strings("{\"k\":\"a:\"}", NULL);
    check_strings("{\"k\":[]}", NULL);
    check_strings("{\"k\":[\"a\",\"\"]}", NULL);
    check_strings("{\"k\":[\"a\",1]}", NULL);
    check_strings("{\"k\":{\"a\":\"b\"}}", NULL);
    check_strings("{\"k\":null}", NULL);
    check_strings("{\"k\":7}", NULL);
}

static void test_dotted(void)
{
    static const char *const spellings[] = {"{\"a\": {\"b\": {\"c\": \"v\"}}}", "{\"a.b\": {\"c\": \"v\"}}",
                                            "{\"a\": {\"b.c\": \"v\"}}", "{\"a.b.c\": \"v\"}"};

    for (unsigned i = 0; i < G_N_ELEMENTS(spellings); i++) {
        g_autoptr(BlockOptions) opts = options(spellings[i]);
        g_autoptr(JsonObject) object = NULL;
        g_autoptr(BlockOptions) inner = NULL;
        g_autofree char *direct = NULL, *nested = NULL;
        GError *error = NULL;

        g_assert_true(block_options_has(opts, "a"));
        g_assert_true(block_options_has(opts, "a.b"));
        g_assert_true(block_options_has(opts, "a.b.c"));
        g_assert_false(block_options_is_string(opts, "a"));
        g_assert_true(block_options_is_string(opts, "a.b.c"));
        g_assert_true(block_options_get_string(opts, "a.b.c", &direct, &error));
        g_assert_cmpstr(direct, ==, "v");
        g_assert_true(block_options_finish(opts, &error));

        g_assert_true(block_options_get_object(opts, "a", &object, &error));
        inner = block_options_new("node 'n'", "a.", object);
        g_assert_true(block_options_get_string(inner, "b.c", &nested, &error));
        g_assert_cmpstr(nested, ==, "v");
        g_assert_true(block_options_finish(inner, &error));
    }
}

static void test_twice(void)
{
    g_autoptr(BlockOptions) opts = options("{\"a\": {\"b\": \"1\"}, \"a.b\": \"2\", \"c\": \"x\"}");
    g_autoptr(BlockOptions) mixed = options("{\"c.d\": \"1\", \"c\": \"x\"}");
    g_autoptr(JsonObject) object = NULL;
    char *value = NULL;
    GError *error = NULL;

    g_assert_false(block_options_get_string(opts, "a.b", &value, &error));
    assert_message(&error, "node 'n': option 'file.a.b': given more than once");
    g_assert_false(block_options_get_object(opts, "a", &object, &error));
    assert_message(&error, "node 'n': option 'file.a.b': given more than once");
    g_assert_false(block_options_get_object(opts, "c", &object, &error));
    assert_message(&error, "node 'n': option 'file.c': expected an object, not a string");
    g_assert_false(block_options_get_object(mixed, "c", &object, &error));
    assert_message(&error, "node 'n': option 'file.c': given more than once");
    g_assert_false(block_options_get_string(mixed, "c.d", &value, &error));
    assert_message(&error, "node 'n': option 'file.c': given more than once");
    g_assert_false(block_options_finish(mixed, &error));
    assert_message(&error, "node 'n': option 'file.c': given more than once");
    g_assert_null(object);
    g_assert_null(value);
}

static void test_merged_object(void)
{
    g_autoptr(BlockOptions) opts = options("{\"a\": {\"x\": \"1\"}, \"a.y\": \"2\"}");
    g_autoptr(JsonObject) object = NULL;
    g_autoptr(JsonObject) none = NULL;
    GError *error = NULL;

    g_assert_true(block_options_get_object(opts, "a", &object, &error));
    g_assert_cmpstr(json_object_get_string_member(object, "x"), ==, "1");
    g_assert_cmpstr(json_object_get_string_member(object, "y"), ==, "2");
    g_assert_true(block_options_get_object(opts, "absent", &none, &error));
    g_assert_null(none);
    g_assert_true(block_options_finish(opts, &error));
}

static void finish_says(const char *json, const char *message)
{
    g_autoptr(BlockOptions) opts = options(json);
    g_autofree char *text = NULL;
    bool flag = false;
    GError *error = NULL;

    g_assert_true(block_options_get_string(opts, "filename", &text, &error));
    g_assert_true(block_options_get_bool(opts, "cache.direct", &flag, &error));
    g_assert_false(block_options_has(opts, "backing"));
    g_assert_no_error(error);
    if (message) {
        g_assert_false(block_options_finish(opts, &error));
        assert_message(&error, message);
    } else {
        g_assert_true(block_options_finish(opts, &error));
        g_assert_no_error(error);
    }
}

static void test_finish(void)
{
    finish_says("{}", NULL);
    finish_says("{\"filename\": \"x\", \"cache\": {\"direct\": true}}", NULL);
    finish_says("{\"filename\": \"x\", \"cache.direct\": true}", NULL);
    finish_says("{\"filname\": \"x\"}",
                "node 'n': option 'file.filname': unknown option, did you mean 'file.filename'?");
    finish_says("{\"xyzzy\": \"x\"}", "node 'n': option 'file.xyzzy': unknown option");
    /* A key that was only looked for is proposed, but not accepted. */
    finish_says("{\"baking\": \"x\"}",
                "node 'n': option 'file.baking': unknown option, did you mean 'file.backing'?");
    finish_says("{\"cache\": {\"direct\": true, \"dirct\": true}}",
                "node 'n': option 'file.cache.dirct': unknown option, did you mean 'file.cache.direct'?");
    finish_says("{\"cache\": \"x\"}", "node 'n': option 'file.cache': unknown option");
    finish_says("{\"\": \"x\"}", "node 'n': option 'file.': unknown option");
}

/* Where a required key is absent, a misspelt one is the better news. */
static void test_misspelt(void)
{
    g_autoptr(BlockOptions) opts = options("{\"filname\": \"x\", \"size\": 5}");
    char *text = NULL;
    GError *error = NULL;

    g_assert_false(block_options_require_string(opts, "filename", &text, &error));
    assert_message(&error, "node 'n': option 'file.filname': unknown option, did you mean 'file.filename'?");
    g_assert_false(block_options_require_string(opts, "driver", &text, &error));
    assert_message(&error, "node 'n': option 'file.driver': is required");
    g_assert_null(text);
}

static void test_child(void)
{
    g_autoptr(BlockOptions) opts = options("{\"a\": \"name\", \"b\": {\"driver\": \"x\"}, \"c\": 5}");
    g_autofree char *name = NULL;
    g_autoptr(JsonObject) object = NULL;
    char *no_name = NULL;
    JsonObject *no_object = NULL;
    GError *error = NULL;

    g_assert_true(block_options_get_child(opts, "a", &name, &no_object, &error));
    g_assert_cmpstr(name, ==, "name");
    g_assert_true(block_options_get_child(opts, "b", &no_name, &object, &error));
    g_assert_cmpstr(json_object_get_string_member(object, "driver"), ==, "x");
    g_assert_true(block_options_get_child(opts, "absent", &no_name, &no_object, &error));
    g_assert_false(block_options_get_child(opts, "c", &no_name, &no_object, &error));
    assert_message(&error, "node 'n': option 'file.c': expected an object, not a number");
    g_assert_null(no_name);
    g_assert_null(no_object);
}

/* Probed with has() only, a key is still refused. */
static void test_finish_after_has(void)
{
    g_autoptr(BlockOptions) opts = options("{\"a\": \"x\"}");
    GError *error = NULL;

    g_assert_true(block_options_has(opts, "a"));
    g_assert_false(block_options_finish(opts, &error));
    assert_message(&error, "node 'n': option 'file.a': has no effect here");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/options/string", test_string);
    g_test_add_func("/options/bool", test_bool);
    g_test_add_func("/options/uint64", test_uint64);
    g_test_add_func("/options/size", test_size);
    g_test_add_func("/options/enum", test_enum);
    g_test_add_func("/options/strings", test_strings);
    g_test_add_func("/options/dotted", test_dotted);
    g_test_add_func("/options/twice", test_twice);
    g_test_add_func("/options/merged-object", test_merged_object);
    g_test_add_func("/options/finish", test_finish);
    g_test_add_func("/options/misspelt", test_misspelt);
    g_test_add_func("/options/child", test_child);
    g_test_add_func("/options/finish-after-has", test_finish_after_has);
    return g_test_run();
}
