/*
 * The control socket: finding messages in bytes, checking arguments by the table, clients, what hostile ones
 * send.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "aio/aio.h"
#include "aio/thread-pool.h"
#include "control/qmp/qmp-framer.h"
#include "control/qmp/qmp-server.h"
#include "control/qmp/qmp-socket.h"
#include "util/thread.h"

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

/* ---- A server with commands of the test's own */

typedef struct Fixture {
    AioContext *ctx;
    CoMutex change_lock;
    QmpServer *server;
    char *dir, *path;
    int running, most_running;
} Fixture;

static JsonNode *negotiate(void *host, JsonObject *arguments, GError **errp)
{
    return NULL;
}

static JsonNode *coroutine_fn echo(void *host, JsonObject *arguments, GError **errp)
{
    return json_node_init_string(json_node_alloc(), qmp_get_string(arguments, "name"));
}

static JsonNode *coroutine_fn change(void *host, JsonObject *arguments, GError **errp)
{
    Fixture *fix = host;

    fix->running++;
    fix->most_running = MAX(fix->most_running, fix->running);
    aio_co_sleep_ns(2 * 1000 * 1000);
    fix->running--;
    return NULL;
}

static JsonNode *coroutine_fn break_down(void *host, JsonObject *arguments, GError **errp)
{
    g_set_error(errp, QMP_ERROR, QMP_DEVICE_NOT_FOUND, "not \xff there");
    return NULL;
}

static JsonNode *coroutine_fn large(void *host, JsonObject *arguments, GError **errp)
{
    g_autofree char *text = g_strnfill(4 * 1024 * 1024, 'l');

    return json_node_init_string(json_node_alloc(), text);
}

static const QmpMember echo_arguments[] = {{"name", &qmp_string, true}, {NULL, NULL, false}};

static const QmpCommand commands[] = {
    {"qmp_capabilities", "begin", NULL, QMP_NEGOTIATE, negotiate},
    {"echo", "say the name", echo_arguments, 0, echo},
    {"change", "change", NULL, QMP_CHANGES, change},
    {"break", "fail", NULL, 0, break_down},
    {"large", "say much", NULL, 0, large},
    {NULL, NULL, NULL, 0, NULL},
};

static void fixture_open(Fixture *fix)
{
    g_autoptr(GError) error = NULL;

    *fix = (Fixture){.ctx = aio_context_new("main", AIO_BACKEND_AUTO, &error)};
    g_assert_no_error(error);
    aio_context_set_current(fix->ctx);
    co_mutex_init(&fix->change_lock);
    fix->dir = g_dir_make_tmp("blockgraph-qmp-XXXXXX", &error);
    g_assert_no_error(error);
    fix->path = g_build_filename(fix->dir, "s", NULL);
    QmpServerConfig config = {
        .ctx = fix->ctx, .commands = commands, .change_lock = &fix->change_lock, .host = fix};
    fix->server = qmp_server_new(&config);
    g_assert_true(qmp_server_listen(fix->server, fix->path, false, &error));
    g_assert_no_error(error);
    qmp_server_start(fix->server);
}

static void coroutine_fn stop_server(void *opaque)
{
    qmp_server_co_stop(opaque);
}

static void fixture_close(Fixture *fix)
{
    aio_context_run_coroutine(fix->ctx, stop_server, fix->server);
    qmp_server_free(fix->server);
    g_assert_false(g_file_test(fix->path, G_FILE_TEST_EXISTS));
    g_assert_cmpint(g_rmdir(fix->dir), ==, 0);
    g_free(fix->path);
    g_free(fix->dir);
    co_mutex_destroy(&fix->change_lock);
    thread_pool_shutdown();
    aio_context_set_current(NULL);
    aio_context_unref(fix->ctx);
}

typedef struct Client {
    Fixture *fix;
    int fd;
    GString *in;
} Client;

static void turn(Fixture *fix)
{
    if (!aio_context_run_once(fix->ctx, false)) {
        g_usleep(200);
    }
}

static void tell(Client *client, const char *bytes, size_t len)
{
    while (len > 0) {
        ssize_t n = send(client->fd, bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n > 0) {
            bytes += n;
            len -= (size_t)n;
        } else {
            g_assert_cmpint(errno, ==, EAGAIN);
        }
        turn(client->fix);
    }
}

/* A line, or NULL at the end. */
static char *hear(Client *client)
{
    gint64 deadline = g_get_monotonic_time() + 60 * G_USEC_PER_SEC;
    char buf[65536];

    while (g_get_monotonic_time() < deadline) {
        char *newline = memchr(client->in->str, '\n', client->in->len);
        ssize_t n;

        if (newline) {
            char *line = g_strndup(client->in->str, newline - client->in->str);

            g_string_erase(client->in, 0, newline + 1 - client->in->str);
            return g_strchomp(line);
        }
        n = recv(client->fd, buf, sizeof(buf), MSG_DONTWAIT);
        if (n == 0) {
            return NULL;
        }
        if (n > 0) {
            g_string_append_len(client->in, buf, n);
        }
        turn(client->fix);
    }
    g_error("no answer");
}

static void expect(Client *client, const char *answer)
{
    g_autofree char *line = hear(client);

    g_assert_cmpstr(line, ==, answer);
}

static void ask(Client *client, const char *question, const char *answer)
{
    tell(client, question, strlen(question));
    expect(client, answer);
}

static void connect_client(Client *client, Fixture *fix)
{
    g_autofree char *greeting = NULL;

    *client = (Client){.fix = fix, .fd = qmp_socket_connect(fix->path, NULL), .in = g_string_new(NULL)};
    g_assert_cmpint(client->fd, >=, 0);
    greeting = hear(client);
    g_assert_true(g_str_has_prefix(greeting, "{\"QMP\":{\"version\":{\"qemu\":"));
    g_assert_true(g_str_has_suffix(greeting, "\"capabilities\":[]}}"));
}

static void negotiate_client(Client *client, Fixture *fix)
{
    connect_client(client, fix);
    ask(client, "{'execute': 'qmp_capabilities'}", "{\"return\":{}}");
}

static void disconnect(Client *client)
{
    close(client->fd);
    g_string_free(client->in, TRUE);
}

/* ---- Clients */

static void test_negotiation(void)
{
    Fixture fix;
    Client c;

    fixture_open(&fix);
    connect_client(&c, &fix);
    ask(&c, "{'execute': 'echo'}",
        "{\"error\":{\"class\":\"CommandNotFound\",\"desc\":\"'qmp_capabilities' must come before "
        "'echo'\"}}");
    ask(&c, "{'execute': 'qmp_capabilities', 'id': [1]}", "{\"return\":{},\"id\":[1]}");
    ask(&c, "{'execute': 'qmp_capabilities', 'id': null}",
        "{\"error\":{\"class\":\"CommandNotFound\",\"desc\":\"'qmp_capabilities' comes once, and has come "
        "already\"},\"id\":null}");
    ask(&c, "{'execute': 'ecoh', 'id': 'x'}",
        "{\"error\":{\"class\":\"CommandNotFound\",\"desc\":\"there is no command 'ecoh', did you mean "
        "'echo'?\"},\"id\":\"x\"}");
    ask(&c, "{'execute': 'break'}",
        "{\"error\":{\"class\":\"DeviceNotFound\",\"desc\":\"not \357\277\275 there\"}}");
    disconnect(&c);
    fixture_close(&fix);
}

#define GENERIC(desc) "{\"error\":{\"class\":\"GenericError\",\"desc\":\"" desc "\"}}"

static void test_malformed(void)
{
    Fixture fix;
    Client c;

    fixture_open(&fix);
    negotiate_client(&c, &fix);
    ask(&c, "[]", GENERIC("expected an object with the member 'execute'"));
    ask(&c, "{}", GENERIC("'execute' is missing"));
    ask(&c, "{'execute': 1}", GENERIC("'execute': expected a string"));
    ask(&c, "{'exec-oob': 'echo'}", GENERIC("'exec-oob': commands out of band are not offered"));
    ask(&c, "{'execute': 'echo', 'argument': {}}", GENERIC("unknown member 'argument' of a command"));
    ask(&c, "{'execute': 'echo', 'arguments': []}", GENERIC("'arguments': expected an object"));
    ask(&c, "{'execute': 'echo', 'arguments': {'nam': ''}}",
        GENERIC("unknown argument 'nam', did you mean 'name'?"));
    ask(&c, "{'execute': 'change', 'arguments': {'name': ''}}", GENERIC("unknown argument 'name'"));
    ask(&c, "{'execute': 'echo', 'execute': 'echo'}", GENERIC("JSON: the key 'execute' is given twice"));
    ask(&c, "{'a': \"\xc3\x28\"}", GENERIC("JSON: the text is not valid UTF-8"));
    ask(&c, "nonsense ", GENERIC("JSON: expected a value, found 'nonsense'"));
    ask(&c, "{'execute': \xff", GENERIC("JSON: a control character: what came before is dropped"));
    ask(&c, "{'execute': 'echo', 'arguments': {'name': 'it\\'s'}}", "{\"return\":\"it's\"}");
    disconnect(&c);
    fixture_close(&fix);
}

static void test_hostile(void)
{
    g_autofree char *open = g_strnfill(100000, '{'), *line = g_strnfill(64 * 1024 * 1024, 'x');
    Fixture fix;
    Client c;

    fixture_open(&fix);
    negotiate_client(&c, &fix);
    tell(&c, open, strlen(open));
    expect(&c, GENERIC("JSON: nested too deeply: what came before is dropped"));
    ask(&c, "\n{'execute': 'echo', 'arguments': {'name': 'a'}}", "{\"return\":\"a\"}");
    tell(&c, "'", 1);
    tell(&c, line, strlen(line));
    expect(&c, GENERIC("JSON: too long: what came before is dropped"));
    ask(&c, "\n{'execute': 'echo', 'arguments': {'name': 'b'}}", "{\"return\":\"b\"}");
    disconnect(&c);
    fixture_close(&fix);
}

/* Commands that change something are never two at a time; events and answers do not mix. */
static void test_several(void)
{
    Fixture fix;
    Client c[8];

    fixture_open(&fix);
    for (int i = 0; i < 8; i++) {
        negotiate_client(&c[i], &fix);
    }
    for (int i = 0; i < 8; i++) {
        tell(&c[i], "{'execute': 'change'}{'execute': 'change'}", 42);
    }
    for (int i = 0; i < 8; i++) {
        expect(&c[i], "{\"return\":{}}");
        expect(&c[i], "{\"return\":{}}");
    }
    g_assert_cmpint(fix.most_running, ==, 1);
    g_assert_cmpint(fix.running, ==, 0);
    for (int i = 0; i < 8; i++) {
        disconnect(&c[i]);
    }
    fixture_close(&fix);
}

static void test_events(void)
{
    g_autoptr(JsonObject) data = json_object_new();
    Fixture fix;
    Client ready, greeted;
    g_autofree char *line = NULL;

    fixture_open(&fix);
    negotiate_client(&ready, &fix);
    connect_client(&greeted, &fix);
    json_object_set_string_member(data, "id", "a");
    qmp_server_event(fix.server, "BLOCK_EXPORT_DELETED", data);
    line = hear(&ready);
    g_assert_true(g_str_has_prefix(line, "{\"timestamp\":{\"seconds\":"));
    g_assert_true(g_str_has_suffix(line, "},\"event\":\"BLOCK_EXPORT_DELETED\",\"data\":{\"id\":\"a\"}}"));
    /* Who has not negotiated hears nothing: the next that comes is the answer. */
    ask(&greeted, "{'execute': 'qmp_capabilities'}", "{\"return\":{}}");
    disconnect(&ready);
    disconnect(&greeted);
    fixture_close(&fix);
}

/* A client that does not read gets no more commands done, and holds up nobody. */
static void test_does_not_read(void)
{
    static const char large_command[] = "{'execute': 'large'}";
    Fixture fix;
    Client lazy, other;

    fixture_open(&fix);
    negotiate_client(&lazy, &fix);
    negotiate_client(&other, &fix);
    for (int i = 0; i < 20; i++) {
        tell(&lazy, large_command, strlen(large_command));
    }
    ask(&other, "{'execute': 'echo', 'arguments': {'name': 'a'}}", "{\"return\":\"a\"}");
    for (int i = 0; i < 20; i++) {
        g_autofree char *line = hear(&lazy);

        g_assert_cmpuint(strlen(line), >, 4 * 1024 * 1024);
    }
    disconnect(&lazy);
    disconnect(&other);
    fixture_close(&fix);
}

/* Stopping waits for the command that runs, and hangs up. */
static void test_stop(void)
{
    Fixture fix;
    Client busy, idle;

    fixture_open(&fix);
    negotiate_client(&busy, &fix);
    negotiate_client(&idle, &fix);
    tell(&busy, "{'execute': 'change'}", 21);
    while (fix.running == 0) {
        turn(&fix);
    }
    aio_context_run_coroutine(fix.ctx, stop_server, fix.server);
    g_assert_cmpint(fix.running, ==, 0);
    g_assert_null(hear(&idle));
    disconnect(&busy);
    disconnect(&idle);
    fixture_close(&fix);
}

static void test_too_many(void)
{
    Fixture fix;
    Client c[QMP_MAX_CLIENTS];
    int fd;
    char byte;

    fixture_open(&fix);
    for (int i = 0; i < QMP_MAX_CLIENTS; i++) {
        connect_client(&c[i], &fix);
    }
    g_test_message("one more is turned away");
    fd = qmp_socket_connect(fix.path, NULL);
    while (recv(fd, &byte, 1, MSG_DONTWAIT) < 0) {
        turn(&fix);
    }
    g_assert_cmpint(recv(fd, &byte, 1, 0), ==, 0);
    close(fd);
    for (int i = 0; i < QMP_MAX_CLIENTS; i++) {
        disconnect(&c[i]);
    }
    fixture_close(&fix);
}

/* ---- Sockets */

static void refuse_socket(const char *path, int errnum)
{
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(qmp_socket_listen(path, &error), ==, -errnum);
    g_assert_nonnull(error);
}

static void test_sockets(void)
{
    Fixture fix;
    struct stat st;
    g_autoptr(GError) error = NULL;
    g_autofree char *stale = NULL, *file = NULL, *longest = g_strnfill(200, 'l');
    int fd;

    fixture_open(&fix);
    g_assert_cmpint(stat(fix.path, &st), ==, 0);
    g_assert_cmpuint(st.st_mode, ==, S_IFSOCK | 0600);
    refuse_socket(fix.path, EADDRINUSE);
    refuse_socket(longest, ENAMETOOLONG);
    file = g_build_filename(fix.dir, "file", NULL);
    g_assert_true(g_file_set_contents(file, "x", 1, NULL));
    refuse_socket(file, EEXIST);
    g_assert_cmpint(unlink(file), ==, 0);
    stale = g_build_filename(fix.dir, "stale", NULL);
    fd = qmp_socket_listen(stale, &error);
    g_assert_cmpint(fd, >=, 0);
    close(fd); /* as a daemon that died */
    g_assert_cmpint(qmp_socket_connect(stale, NULL), ==, -ECONNREFUSED);
    fd = qmp_socket_listen(stale, &error);
    g_assert_no_error(error);
    close(fd);
    g_assert_cmpint(unlink(stale), ==, 0);
    fixture_close(&fix);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    bg_main_thread_register();
    g_test_add_func("/qmp/framer/messages", test_framer);
    g_test_add_func("/qmp/framer/reset", test_framer_reset);
    g_test_add_func("/qmp/framer/bounds", test_framer_bounds);
    g_test_add_func("/qmp/framer/random", test_framer_random);
    g_test_add_func("/qmp/arguments/plain", test_arguments);
    g_test_add_func("/qmp/arguments/union", test_arguments_union);
    g_test_add_func("/qmp/arguments/usage", test_usage);
    g_test_add_func("/qmp/client/negotiation", test_negotiation);
    g_test_add_func("/qmp/client/malformed", test_malformed);
    g_test_add_func("/qmp/client/hostile", test_hostile);
    g_test_add_func("/qmp/client/several", test_several);
    g_test_add_func("/qmp/client/events", test_events);
    g_test_add_func("/qmp/client/does-not-read", test_does_not_read);
    g_test_add_func("/qmp/client/stop", test_stop);
    g_test_add_func("/qmp/client/too-many", test_too_many);
    g_test_add_func("/qmp/sockets", test_sockets);
    return g_test_run();
}
