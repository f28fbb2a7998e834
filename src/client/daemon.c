/*
 * blockgraph: talking to the daemon.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "client/daemon.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "control/qmp/qmp-socket.h"
#include "util/error.h"

#define CONTROL_XATTR "user.blockgraph.control"

struct ClientDaemon {
    FILE *in; /* the socket */
};

/* ---- Messages */

/*
 * One message. It ends with the line that it begins on or, where the daemon indents its answers, with a line
 * that is a bracket alone.
 */
static bool read_message(FILE *in, GString *message)
{
    char *line = NULL;
    size_t size = 0;
    bool complete = false;
    g_string_truncate(message, 0);
    while (!complete && getline(&line, &size, in) >= 0) {
        g_string_append(message, line);
        g_strchomp(line);
        complete = g_str_has_suffix(line, "}") &&
                   (message->str[1] != '\n' && message->str[1] != '\r' ? true : g_str_equal(line, "}"));
    }
    free(line);
    return complete;
}

/* The next that is not an event. NULL and *errp. */
static JsonObject *read_answer(ClientDaemon *daemon, GError **errp)
{
    g_autoptr(GString) text = g_string_new(NULL);
    while (read_message(daemon->in, text)) {
        g_autoptr(JsonNode) node = json_from_string(text->str, errp);
        if (!node || !JSON_NODE_HOLDS_OBJECT(node)) {
            g_prefix_error(errp, "the daemon's answer is no JSON: ");
            return NULL;
        }
        if (!json_object_has_member(json_node_get_object(node), "event")) {
            return json_node_dup_object(node);
        }
    }
    bg_error_set(errp, ECONNRESET, "the daemon has hung up");
    return NULL;
}

static bool send_text(ClientDaemon *daemon, const char *text, GError **errp)
{
    size_t left = strlen(text);
    while (left > 0) {
        ssize_t n = send(fileno(daemon->in), text, left, MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR) {
            bg_error_set_errno(errp, errno, "cannot talk to the daemon");
            return false;
        }
        text += MAX(n, 0);
        left -= (size_t)MAX(n, 0);
    }
    return true;
}

JsonNode *client_daemon_call(ClientDaemon *daemon, const char *command, JsonObject *arguments, GError **errp)
{
    g_autoptr(JsonObject) message = json_object_new();
    g_autoptr(JsonNode) node = json_node_init_object(json_node_alloc(), message);
    json_object_set_string_member(message, "execute", command);
    if (arguments) {
        json_object_set_object_member(message, "arguments", arguments);
    }
    g_autofree char *text = json_to_string(node, FALSE);
    g_autoptr(JsonObject) answer = send_text(daemon, text, errp) ? read_answer(daemon, errp) : NULL;
    if (!answer) {
        return NULL;
    }
    if (json_object_has_member(answer, "error")) {
        JsonObject *error = json_object_get_object_member(answer, "error");
        bg_error_set(errp, EREMOTEIO, "%s", json_object_get_string_member(error, "desc"));
        return NULL;
    }
    return json_object_dup_member(answer, "return");
}

/* ---- Connecting */

/* Where the daemon of a mountpoint listens. */
static char *find_socket(const char *mountpoint, GError **errp)
{
    char path[PATH_MAX];
    ssize_t n = getxattr(mountpoint, CONTROL_XATTR, path, sizeof(path) - 1);
    if (n > 0) {
        return g_strndup(path, (size_t)n);
    }
    if (n == 0 || errno == ENODATA || errno == ENOTSUP) {
        bg_error_set(errp, ENODATA, "'%s' is not the mountpoint of a blockgraphfs with a control socket",
                     mountpoint);
    } else {
        bg_error_set_errno(errp, errno, "'%s'", mountpoint);
    }
    return NULL;
}

ClientDaemon *client_daemon_open(const char *mountpoint, GError **errp)
{
    g_autofree char *path = find_socket(mountpoint, errp);
    int fd = path ? qmp_socket_connect(path, errp) : -1;
    if (fd < 0) {
        return NULL;
    }
    g_autoptr(ClientDaemon) daemon = g_new0(ClientDaemon, 1);
    daemon->in = fdopen(fd, "r");
    g_assert(daemon->in);
    g_autoptr(JsonObject) greeting = read_answer(daemon, errp);
    g_autoptr(JsonNode) ready = greeting ? client_daemon_call(daemon, "qmp_capabilities", NULL, errp) : NULL;
    return ready ? g_steal_pointer(&daemon) : NULL;
}

void client_daemon_close(ClientDaemon *daemon)
{
    fclose(daemon->in);
    g_free(daemon);
}

JsonNode *client_daemon_ask(const char *mountpoint, const char *command, JsonObject *arguments, GError **errp)
{
    g_autoptr(JsonObject) held = arguments;
    g_autoptr(ClientDaemon) daemon = client_daemon_open(mountpoint, errp);
    return daemon ? client_daemon_call(daemon, command, g_steal_pointer(&held), errp) : NULL;
}
