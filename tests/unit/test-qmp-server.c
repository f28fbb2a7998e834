/*
 * The control socket's server: clients, what hostile ones send, the sockets themselves.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "aio/thread-pool.h"
#include "control/qmp/qmp-server.h"
#include "control/qmp/qmp-socket.h"
#include "util/error.h"
#include "util/thread.h"

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

/* Without descriptors a client waits, and so does the loop; later it is let in. */
static void test_no_descriptors(void)
{
    Fixture fix;
    struct rlimit limit, none;
    Client c;
    int idle = 0;

    fixture_open(&fix);
    c = (Client){.fix = &fix, .fd = qmp_socket_connect(fix.path, NULL), .in = g_string_new(NULL)};
    g_assert_cmpint(getrlimit(RLIMIT_NOFILE, &limit), ==, 0);
    none = limit;
    none.rlim_cur = 3;
    g_assert_cmpint(setrlimit(RLIMIT_NOFILE, &none), ==, 0);
    for (int i = 0; i < 1000 && idle < 100; i++) {
        idle = aio_context_run_once(fix.ctx, false) ? 0 : idle + 1;
    }
    g_assert_cmpint(setrlimit(RLIMIT_NOFILE, &limit), ==, 0);
    g_assert_cmpint(idle, ==, 100);
    g_free(hear(&c)); /* the greeting */
    ask(&c, "{'execute': 'qmp_capabilities'}", "{\"return\":{}}");
    disconnect(&c);
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

/* ---- The default place, as an ordinary user */

#define ORDINARY_USER 65534

static void check_default_place(const char *runtime)
{
    g_autofree char *directory = g_build_filename(runtime, "blockgraph", NULL);
    g_autofree char *expected = g_strdup_printf("%s/%d.sock", directory, (int)getpid());
    g_autofree char *stale = g_build_filename(directory, "1.sock", NULL);
    g_autofree char *alive = g_build_filename(directory, "2.sock", NULL);
    g_autofree char *other = g_build_filename(directory, "file.sock", NULL);
    g_autofree char *first = NULL, *second = NULL;
    g_autoptr(GError) error = NULL;
    struct stat st;
    int fd;

    first = qmp_socket_default_path(&error);
    g_assert_no_error(error);
    g_assert_cmpstr(first, ==, expected);
    g_assert_cmpint(stat(directory, &st), ==, 0);
    g_assert_cmpuint(st.st_mode, ==, S_IFDIR | 0700);
    close(qmp_socket_listen(stale, NULL));
    fd = qmp_socket_listen(alive, NULL);
    g_assert_true(g_file_set_contents(other, "x", 1, NULL));
    second = qmp_socket_default_path(&error);
    g_assert_no_error(error);
    g_assert_false(g_file_test(stale, G_FILE_TEST_EXISTS));
    g_assert_true(g_file_test(alive, G_FILE_TEST_EXISTS) && g_file_test(other, G_FILE_TEST_EXISTS));
    close(fd);
    g_assert_cmpint(g_chmod(directory, 0750), ==, 0); /* others could enter */
    g_assert_null(qmp_socket_default_path(&error));
    g_assert_error(error, BG_ERROR, EPERM);
    g_assert_true(unlink(alive) == 0 && unlink(other) == 0 && g_rmdir(directory) == 0);
    g_clear_error(&error);
    g_assert_cmpint(symlink("/tmp", directory), ==, 0); /* as somebody else could have made in /tmp */
    g_assert_null(qmp_socket_default_path(&error));
    g_assert_error(error, BG_ERROR, EPERM);
    g_assert_cmpint(unlink(directory), ==, 0);
}

static void test_default_place(void)
{
    g_autofree char *runtime = g_dir_make_tmp("blockgraph-qmp-XXXXXX", NULL);
    uid_t uid = geteuid();

    g_assert_nonnull(runtime);
    if (uid == 0) {
        g_assert_cmpint(chown(runtime, ORDINARY_USER, (gid_t)-1), ==, 0);
        g_assert_cmpint(seteuid(ORDINARY_USER), ==, 0);
    }
    g_setenv("XDG_RUNTIME_DIR", runtime, TRUE);
    check_default_place(runtime);
    g_assert_cmpint(seteuid(uid), ==, 0);
    g_assert_cmpint(g_rmdir(runtime), ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    bg_main_thread_register();
    g_test_add_func("/qmp-server/client/negotiation", test_negotiation);
    g_test_add_func("/qmp-server/client/malformed", test_malformed);
    g_test_add_func("/qmp-server/client/hostile", test_hostile);
    g_test_add_func("/qmp-server/client/several", test_several);
    g_test_add_func("/qmp-server/client/events", test_events);
    g_test_add_func("/qmp-server/client/does-not-read", test_does_not_read);
    g_test_add_func("/qmp-server/client/stop", test_stop);
    g_test_add_func("/qmp-server/client/too-many", test_too_many);
    g_test_add_func("/qmp-server/client/no-descriptors", test_no_descriptors);
    g_test_add_func("/qmp-server/sockets/listen", test_sockets);
    g_test_add_func("/qmp-server/sockets/default-place", test_default_place);
    return g_test_run();
}
