/*
 * QMP: finding messages in bytes, checking arguments by the table.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <string.h>

#include "control/qmp/qmp-command.h"
#include "control/qmp/qmp-framer.h"

/* ---- Messages */

/* The messages in `bytes`, given in pieces of `piece` bytes, as "message|message|!error|". */
static char *frames(const char *bytes, size_t len, size_t piece)
{
    GString *out = g_string_new(NULL);
    QmpFramer framer;

    qmp_framer_init(&framer);
    for (size_t i = 0; i < len; i += piece) {
        const char *p = bytes + i, *end = bytes + MIN(i + piece, len);
        QmpFrame frame;

        while ((frame = qmp_framer_next(&framer, &p, end)) != QMP_FRAME_NONE) {
            if (frame == QMP_FRAME_ERROR) {
                g_string_append_printf(out, "!%s|", framer.error);
            } else {
                g_string_append_printf(out, "%s|", framer.text->str);
            }
        }
        g_assert_true(p == end);
    }
    qmp_framer_destroy(&framer);
    return g_string_free(out, FALSE);
}

static void check_frames(const char *bytes, const char *expected)
{
    for (size_t piece = 1; piece <= strlen(bytes); piece += 1 + piece / 2) {
        g_autofree char *got = frames(bytes, strlen(bytes), piece);

        g_assert_cmpstr(got, ==, expected);
    }
}

static void test_framer(void)
{
    check_frames("{}", "{}|");
    check_frames("{}{}", "{}|{}|");
    check_frames(" \r\n\t{'a': [1, {}]}\n[2]", "{'a': [1, {}]}|[2]|");
    check_frames("{\"a\": \"}\"}", "{\"a\": \"}\"}|");
    check_frames("{\"a\": \"\\\"}\"}", "{\"a\": \"\\\"}\"}|");
    check_frames("{\"a\": '\"}'}", "{\"a\": '\"}'}|");
    check_frames("{'a': '\\'}'}", "{'a': '\\'}'}|");
    check_frames("word 12{}\"s\"'t'", "word|12|{}|\"s\"|'t'|");
    check_frames("}]", "}|]|");
    check_frames("{]{}", "{]|{}|");
    check_frames("{", "");
    check_frames("\"{", "");
}

static void test_framer_reset(void)
{
    check_frames("{\"a\": [\xff{}", "!a control character|{}|");
    check_frames("{\"a\": \"x\n{}", "!a control character|{}|");
    check_frames("\x1b{}", "!a control character|{}|");
    check_frames("'\x7f{}", "!a control character|{}|");
}

static void test_framer_bounds(void)
{
    g_autofree char *open = g_strnfill(100000, '[');
    g_autofree char *deep = g_strconcat(open, "\n{}", NULL);
    g_autofree char *reset = g_strconcat(open, "\xff{}", NULL);
    g_autofree char *fill = g_strnfill(3 * QMP_MAX_MESSAGE, 'x');
    g_autofree char *string = g_strconcat("{\"", fill, "\n{}", NULL);
    g_autofree char *word = g_strconcat(fill, "\n{}", NULL);
    g_autofree char *got_deep = frames(deep, strlen(deep), 4096);
    g_autofree char *got_reset = frames(reset, strlen(reset), 4096);
    g_autofree char *got_string = frames(string, strlen(string), 4096);
    g_autofree char *got_word = frames(word, strlen(word), 4096);

    g_assert_cmpstr(got_deep, ==, "!nested too deeply|{}|");
    g_assert_cmpstr(got_reset, ==, "!nested too deeply|!a control character|{}|");
    g_assert_cmpstr(got_string, ==, "!too long|{}|");
    g_assert_cmpstr(got_word, ==, "!too long|{}|");
}

/* Random bytes of what JSON is made of: never more kept than allowed, and in step again after a reset. */
static void test_framer_random(void)
{
    static const char alphabet[] = "{}[]\"'\\,: \n1ax\xff\x01";
    char bytes[400];

    for (int round = 0; round < 2000; round++) {
        size_t n = (size_t)g_test_rand_int_range(1, sizeof(bytes) - 3);
        g_autofree char *got = NULL, *bytewise = NULL;

        for (size_t i = 0; i < n; i++) {
            bytes[i] = alphabet[g_test_rand_int_range(0, sizeof(alphabet) - 1)];
        }
        memcpy(bytes + n, "\xff[]", 3);
        got = frames(bytes, n + 3, n + 3);
        bytewise = frames(bytes, n + 3, 1);
        g_assert_cmpstr(got, ==, bytewise);
        g_assert_true(g_str_has_suffix(got, "!a control character|[]|"));
    }
}

/* ---- Arguments */

static const char *const colours[] = {"red", "green", NULL};
static const QmpType colour = {.kind = QMP_KIND_ENUM, .name = "Colour", .words = colours};
static const QmpMember point_members[] = {{"x", &qmp_int, false}, {"y", &qmp_int, true}, {NULL, NULL, false}};
static const QmpType point = {.kind = QMP_KIND_OBJECT, .name = "object", .members = point_members};
static const QmpMember choices[] = {{"point", &point, false}, {"none", &point, false}, {NULL, NULL, false}};
static const QmpType choice = {.kind = QMP_KIND_UNION, .name = "object", .members = choices};
static const QmpType choice_list = {.kind = QMP_KIND_LIST, .name = "list", .element = &choice};
static const QmpMember members[] = {
    {"name", &qmp_string, false}, {"fast", &qmp_bool, true},       {"colour", &colour, true},
    {"point", &point, true},      {"actions", &choice_list, true}, {"tags", &qmp_string_list, true},
    {NULL, NULL, false},
};

static void check_arguments(const char *json, const char *message)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonNode) node = json_text_parse_message(json, strlen(json), &error);
    bool ok;

    g_assert_no_error(error);
    ok = qmp_check_members(members, json_node_get_object(node), &error);
    g_assert_cmpstr(error ? error->message : NULL, ==, message);
    g_assert_true(ok == !message);
}

static void test_arguments(void)
{
    check_arguments("{'name': 'a'}", NULL);
    check_arguments("{'name': 'a', 'fast': true, 'colour': 'red', 'point': {'x': 1, 'y': -2}, 'tags': ['t'],"
                    "'actions': [{'type': 'point', 'data': {'x': 0}}]}",
                    NULL);
    check_arguments("{}", "argument 'name' is missing");
    check_arguments("{'name': 1}", "argument 'name': expected string, found an integer");
    check_arguments("{'name': null}", "argument 'name': expected string, found null");
    check_arguments("{'name': 'a', 'fast': 'on'}", "argument 'fast': expected boolean, found a string");
    check_arguments("{'name': 'a', 'fsat': true}", "unknown argument 'fsat', did you mean 'fast'?");
    check_arguments("{'name': 'a', 'colour': 'gren'}",
                    "argument 'colour': unknown value 'gren', did you mean 'green'?");
    check_arguments("{'name': 'a', 'colour': 'xyzzy'}",
                    "argument 'colour': unknown value 'xyzzy', expected one of red, green");
    check_arguments("{'name': 'a', 'point': {'y': 1}}", "argument 'point.x' is missing");
    check_arguments("{'name': 'a', 'point': {'x': 1.5}}",
                    "argument 'point.x': expected integer, found a number with a fraction");
    check_arguments("{'name': 'a', 'point': []}", "argument 'point': expected object, found a list");
    check_arguments("{'name': 'a', 'tags': ['t', 2]}",
                    "argument 'tags[1]': expected string, found an integer");
}

static void test_arguments_union(void)
{
    check_arguments("{'name': 'a', 'actions': [{'type': 'pint', 'data': {}}]}",
                    "argument 'actions[0].type': unknown value 'pint', did you mean 'point'?");
    check_arguments("{'name': 'a', 'actions': [{'data': {}}]}", "unknown argument 'actions[0].data'");
    check_arguments("{'name': 'a', 'actions': [{}]}", "argument 'actions[0].type' is missing");
    check_arguments("{'name': 'a', 'actions': [{'type': 'point'}]}", "argument 'actions[0].data' is missing");
    check_arguments("{'name': 'a', 'actions': [{'type': 'point', 'data': {'z': 1}}]}",
                    "unknown argument 'actions[0].data.z'");
    check_arguments("{'name': 'a', 'actions': [{'type': 'point', 'data': {'x': 1}, 'more': 1}]}",
                    "unknown argument 'actions[0].more'");
}

static void test_usage(void)
{
    const QmpCommand command = {.name = "c", .arguments = members};
    const QmpCommand bare = {.name = "b"};
    g_autofree char *usage = qmp_command_usage(&command), *none = qmp_command_usage(&bare);

    g_assert_cmpstr(usage, ==,
                    "{name: string, fast?: boolean, colour?: red|green, point?: {x: integer, y?: integer}, "
                    "actions?: [{type: point, data: {x: integer, y?: integer}} | {type: none, data: {x: "
                    "integer, y?: integer}}, ...], tags?: [string, ...]}");
    g_assert_cmpstr(none, ==, "{}");
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qmp/framer/messages", test_framer);
    g_test_add_func("/qmp/framer/reset", test_framer_reset);
    g_test_add_func("/qmp/framer/bounds", test_framer_bounds);
    g_test_add_func("/qmp/framer/random", test_framer_random);
    g_test_add_func("/qmp/arguments/plain", test_arguments);
    g_test_add_func("/qmp/arguments/union", test_arguments_union);
    g_test_add_func("/qmp/arguments/usage", test_usage);
    return g_test_run();
}
