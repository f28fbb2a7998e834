/*
 * One client of the control socket.
 *
 *   state        | means                          | event                                    -> next
 *   -------------+--------------------------------+--------------------------------------------------------
 *   NEGOTIATING  | greeted                        | qmp_capabilities succeeds                -> READY
 *   READY        | commands are run, events sent  |
 *   either       |                                | end of input, or an error of the socket,
 *                |                                |   or the server stops (`closing`)        -> gone, when
 * its command has returned
 *
 * Invariants: at most one message is being handled; `waiting` is the client's coroutine while, and only
 * while, it waits for the socket; at most QMP_MAX_OUTPUT bytes wait to be sent: who does not read is not read
 * from while replies wait, and is cut off where events would exceed the limit.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "control/qmp/qmp-framer.h"
#include "control/qmp/qmp-internal.h"
#include "util/error.h"
#include "util/log.h"
#include "util/text.h"

#define QMP_MAX_OUTPUT (64 * 1024 * 1024)
#define READ_SIZE      4096

struct QmpClient {
    QmpServer *server;
    int fd;
    bool pretty;
    bool negotiated;
    bool closing;
    QmpFramer framer;
    GString *out;       /* not sent yet */
    Coroutine *waiting; /* for the socket */
    bool wants_input;
};

/* ---- The socket */

static void update_handlers(QmpClient *client);

static void wake(QmpClient *client)
{
    Coroutine *co = client->waiting;

    client->waiting = NULL;
    client->wants_input = false;
    if (co) {
        aio_co_wake(co); /* the client may be gone after it */
    }
}

static void on_readable(void *opaque)
{
    QmpClient *client = opaque;

    if (client->wants_input) {
        wake(client);
    }
}

/* Send what goes at once. */
static void send_some(QmpClient *client)
{
    ssize_t n = 0;

    while (client->out->len > 0 && n >= 0) {
        n = send(client->fd, client->out->str, client->out->len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) {
            g_string_erase(client->out, 0, n);
        }
    }
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        client->closing = true;
        g_string_truncate(client->out, 0);
    }
}

static void on_writable(void *opaque)
{
    QmpClient *client = opaque;

    send_some(client);
    update_handlers(client);
    if (client->out->len == 0 && !client->wants_input) {
        wake(client);
    }
}

static void update_handlers(QmpClient *client)
{
    aio_set_fd_handler(client->server->config.ctx, client->fd, client->wants_input ? on_readable : NULL,
                       client->out->len > 0 ? on_writable : NULL, client);
}

/* Sleep until there is input, or until all is sent. */
static void coroutine_fn wait_for_socket(QmpClient *client, bool input)
{
    client->wants_input = input;
    client->waiting = coroutine_self();
    update_handlers(client);
    coroutine_yield();
    update_handlers(client);
}

/* Bytes read, 0 at the end of input and after errors. */
static size_t coroutine_fn co_read(QmpClient *client, char *buf, size_t size)
{
    while (!client->closing) {
        ssize_t n = recv(client->fd, buf, size, MSG_DONTWAIT);

        if (n >= 0) {
            return (size_t)n;
        }
        if (errno == EAGAIN) {
            wait_for_socket(client, true);
        } else if (errno != EINTR) {
            return 0;
        }
    }
    return 0;
}

static void coroutine_fn co_send_all(QmpClient *client)
{
    while (client->out->len > 0 && !client->closing) {
        wait_for_socket(client, false);
    }
}

/* ---- Messages */

static void send_message(QmpClient *client, JsonObject *message)
{
    g_autoptr(JsonNode) node = json_node_init_object(json_node_alloc(), message);
    g_autofree char *text = json_to_string(node, client->pretty);

    if (client->closing) {
        return;
    }
    if (client->out->len + strlen(text) > QMP_MAX_OUTPUT) {
        bg_log(BG_LOG_WARNING, "a client of the control socket does not read what it is told: hanging up");
        qmp_client_close(client);
        return;
    }
    g_string_append_printf(client->out, "%s\r\n", text);
    send_some(client);
    update_handlers(client);
}

void qmp_client_notify(QmpClient *client, JsonObject *message)
{
    if (client->negotiated) {
        send_message(client, message);
    }
}

static JsonObject *error_object(const GError *error)
{
    JsonObject *object = json_object_new();
    g_autofree char *desc = g_utf8_make_valid(error->message, -1);

    json_object_set_string_member(object, "class", qmp_error_class_name(error));
    json_object_set_string_member(object, "desc", desc);
    return object;
}

/* Takes `result` (NULL: {}) or, where it is set, `error`; id may be NULL. */
static void reply(QmpClient *client, JsonNode *id, JsonNode *result, GError *error)
{
    g_autoptr(JsonObject) message = json_object_new();

    if (error) {
        json_object_set_object_member(message, "error", error_object(error));
        g_error_free(error);
    } else if (result) {
        json_object_set_member(message, "return", result);
    } else {
        json_object_set_object_member(message, "return", json_object_new());
    }
    if (id) {
        json_object_set_member(message, "id", json_node_copy(id));
    }
    send_message(client, message);
}

static void greet(QmpClient *client)
{
    g_autoptr(JsonObject) message = json_object_new();
    JsonObject *greeting = json_object_new();

    json_object_set_object_member(greeting, "version", qmp_version());
    json_object_set_array_member(greeting, "capabilities", json_array_new());
    json_object_set_object_member(message, "QMP", greeting);
    send_message(client, message);
}

/* ---- Commands */

static const QmpCommand *find_command(const QmpServer *server, const char *name)
{
    for (const QmpCommand *c = server->config.commands; c->name; c++) {
        if (g_str_equal(c->name, name)) {
            return c;
        }
    }
    return NULL;
}

static void unknown_command(const QmpServer *server, const char *name, GError **errp)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    const char *nearest;

    for (const QmpCommand *c = server->config.commands; c->name; c++) {
        g_ptr_array_add(names, (gpointer)c->name);
    }
    g_ptr_array_add(names, NULL);
    nearest = text_nearest(name, (const char *const *)names->pdata);
    g_set_error(errp, QMP_ERROR, QMP_COMMAND_NOT_FOUND, "there is no command '%s'%s%s%s", name,
                nearest ? ", did you mean '" : "", nearest ? nearest : "", nearest ? "'?" : "");
}

/* The command, if it may come now. */
static const QmpCommand *choose_command(const QmpClient *client, const char *name, GError **errp)
{
    const QmpCommand *command = find_command(client->server, name);

    if (!client->negotiated && (!command || !(command->flags & QMP_NEGOTIATE))) {
        g_set_error(errp, QMP_ERROR, QMP_COMMAND_NOT_FOUND, "'qmp_capabilities' must come before '%s'", name);
        return NULL;
    }
    if (!command) {
        unknown_command(client->server, name, errp);
        return NULL;
    }
    if (client->negotiated && (command->flags & QMP_NEGOTIATE)) {
        g_set_error(errp, QMP_ERROR, QMP_COMMAND_NOT_FOUND, "'%s' comes once, and has come already", name);
        return NULL;
    }
    return command;
}

static JsonNode *coroutine_fn run_command(QmpClient *client, const QmpCommand *command, JsonObject *arguments,
                                          GError **errp) BG_NO_TSA
{
    const QmpServerConfig *config = &client->server->config;
    JsonNode *result;

    if (!(command->flags & QMP_CHANGES)) {
        return command->run(config->host, arguments, errp);
    }
    co_mutex_lock(config->change_lock);
    if (client->server->stopping) {
        bg_error_set(errp, ESHUTDOWN, "the daemon is stopping");
        result = NULL;
    } else {
        result = command->run(config->host, arguments, errp);
    }
    co_mutex_unlock(config->change_lock);
    return result;
}

/* What a message may contain besides "id", which can be anything. */
static bool check_message(JsonObject *message, GError **errp)
{
    static const QmpType arguments = {.kind = QMP_KIND_OBJECT, .name = "object"};
    static const char *const known[] = {"execute", "arguments", "id", NULL};
    JsonNode *execute = json_object_get_member(message, "execute");
    JsonNode *args = json_object_get_member(message, "arguments");
    JsonObjectIter iter;
    const char *key;

    if (json_object_has_member(message, "exec-oob")) {
        bg_error_set(errp, EINVAL, "'exec-oob': commands out of band are not offered");
        return false;
    }
    json_object_iter_init(&iter, message);
    while (json_object_iter_next(&iter, &key, NULL)) {
        if (!g_strv_contains(known, key)) {
            bg_error_set(errp, EINVAL, "unknown member '%s' of a command", key);
            return false;
        }
    }
    if (!execute || !JSON_NODE_HOLDS_VALUE(execute) || json_node_get_value_type(execute) != G_TYPE_STRING) {
        bg_error_set(errp, EINVAL, execute ? "'execute': expected a string" : "'execute' is missing");
        return false;
    }
    if (args && !JSON_NODE_HOLDS_OBJECT(args)) {
        bg_error_set(errp, EINVAL, "'arguments': expected an %s", arguments.name);
        return false;
    }
    return true;
}

static JsonNode *coroutine_fn execute(QmpClient *client, JsonObject *message, GError **errp)
{
    g_autoptr(JsonObject) none = json_object_new();
    const QmpCommand *command;
    JsonObject *arguments;
    JsonNode *result;
    GError *error = NULL;

    if (!check_message(message, errp)) {
        return NULL;
    }
    command = choose_command(client, json_object_get_string_member(message, "execute"), errp);
    if (!command) {
        return NULL;
    }
    bg_log(BG_LOG_DEBUG, "control: %s", command->name);
    arguments = qmp_get_object(message, "arguments");
    arguments = arguments ? arguments : none;
    if (!qmp_check_members(command->arguments, arguments, errp)) {
        return NULL;
    }
    result = run_command(client, command, arguments, &error);
    client->negotiated |= !error && (command->flags & QMP_NEGOTIATE);
    g_assert(!error || !result);
    if (error) {
        g_propagate_error(errp, error);
    }
    return result;
}

static void coroutine_fn handle_message(QmpClient *client, const GString *text)
{
    GError *error = NULL;
    g_autoptr(JsonNode) node = json_text_parse_message(text->str, text->len, &error);
    JsonNode *id = NULL, *result = NULL;

    if (!node) {
        g_prefix_error(&error, "JSON: ");
    } else if (!JSON_NODE_HOLDS_OBJECT(node)) {
        bg_error_set(&error, EINVAL, "expected an object with the member 'execute'");
    } else {
        id = json_object_get_member(json_node_get_object(node), "id");
        result = execute(client, json_node_get_object(node), &error);
    }
    reply(client, id, result, error);
}

static void coroutine_fn handle_input(QmpClient *client, const char *p, const char *end)
{
    while (!client->closing) {
        QmpFrame frame = qmp_framer_next(&client->framer, &p, end);

        if (frame == QMP_FRAME_NONE) {
            return;
        }
        if (frame == QMP_FRAME_MESSAGE) {
            handle_message(client, client->framer.text);
        } else {
            GError *error = NULL;

            bg_error_set(&error, EINVAL, "JSON: %s: what came before is dropped", client->framer.error);
            reply(client, NULL, NULL, error);
        }
        co_send_all(client);
    }
}

/* ---- Life */

static void client_free(QmpClient *client)
{
    QmpServer *server = client->server;

    aio_set_fd_handler(server->config.ctx, client->fd, NULL, NULL, NULL);
    close(client->fd);
    qmp_framer_destroy(&client->framer);
    g_string_free(client->out, TRUE);
    g_ptr_array_remove_fast(server->clients, client);
    g_free(client);
    if (server->clients->len == 0) {
        co_queue_restart_all(&server->idle);
    }
}

static void coroutine_fn client_run(void *opaque)
{
    QmpClient *client = opaque;
    char buf[READ_SIZE];
    size_t n;

    greet(client);
    co_send_all(client);
    while ((n = co_read(client, buf, sizeof(buf))) > 0) {
        handle_input(client, buf, buf + n);
    }
    client_free(client);
}

void qmp_client_start(QmpServer *server, int fd, bool pretty)
{
    QmpClient *client = g_new0(QmpClient, 1);

    client->server = server;
    client->fd = fd;
    client->pretty = pretty;
    client->out = g_string_new(NULL);
    qmp_framer_init(&client->framer);
    g_ptr_array_add(server->clients, client);
    aio_co_schedule(server->config.ctx, coroutine_create(client_run, client));
}

void qmp_client_close(QmpClient *client)
{
    client->closing = true;
    wake(client);
}
