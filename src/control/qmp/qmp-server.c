/*
 * The sockets of the control server.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/qmp/qmp-internal.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "control/qmp/qmp-socket.h"
#include "util/error.h"
#include "util/log.h"

/* The release of QEMU whose reference manual the commands follow. */
#define QEMU_MAJOR 7
#define QEMU_MINOR 2

#define RETRY_NS (1000 * INT64_C(1000000))

QmpServer *qmp_server_new(const QmpServerConfig *config)
{
    QmpServer *server = g_new0(QmpServer, 1);

    server->config = *config;
    server->listeners = g_ptr_array_new();
    server->clients = g_ptr_array_new();
    co_queue_init(&server->idle);
    return server;
}

static void on_connection(void *opaque);

static void watch(void *opaque)
{
    QmpListener *listener = opaque;

    aio_set_fd_handler(listener->server->config.ctx, listener->fd, on_connection, NULL, listener);
}

/* The connection stays where it is: without a pause the loop would turn for nothing. */
static void pause_listener(QmpListener *listener, int errnum)
{
    bg_log(BG_LOG_WARNING, "a client of the control socket must wait: %s", g_strerror(errnum));
    aio_set_fd_handler(listener->server->config.ctx, listener->fd, NULL, NULL, NULL);
    aio_timer_mod(&listener->retry, aio_clock_ns() + RETRY_NS);
}

static void on_connection(void *opaque)
{
    QmpListener *listener = opaque;
    QmpServer *server = listener->server;
    int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
            pause_listener(listener, errno);
        }
        return;
    }
    if (server->clients->len == QMP_MAX_CLIENTS) {
        bg_log(BG_LOG_WARNING, "more than %d clients of the control socket: one is turned away",
               QMP_MAX_CLIENTS);
        close(fd);
        return;
    }
    qmp_client_start(server, fd, listener->pretty);
}

bool qmp_server_listen(QmpServer *server, const char *path, bool pretty, GError **errp)
{
    int fd = qmp_socket_listen(path, errp);
    QmpListener *listener;

    if (fd < 0) {
        return false;
    }
    listener = g_new0(QmpListener, 1);
    listener->server = server;
    listener->path = g_strdup(path);
    listener->fd = fd;
    listener->pretty = pretty;
    aio_timer_init(&listener->retry, server->config.ctx, watch, listener);
    g_ptr_array_add(server->listeners, listener);
    return true;
}

void qmp_server_start(QmpServer *server)
{
    server->started = true;
    for (guint i = 0; i < server->listeners->len; i++) {
        watch(server->listeners->pdata[i]);
    }
}

static JsonObject *timestamp(void)
{
    JsonObject *object = json_object_new();
    gint64 now = g_get_real_time();

    json_object_set_int_member(object, "seconds", now / G_USEC_PER_SEC);
    json_object_set_int_member(object, "microseconds", now % G_USEC_PER_SEC);
    return object;
}

void qmp_server_event(QmpServer *server, const char *name, JsonObject *data)
{
    g_autoptr(JsonObject) message = json_object_new();

    json_object_set_object_member(message, "timestamp", timestamp());
    json_object_set_string_member(message, "event", name);
    if (data) {
        json_object_set_object_member(message, "data", json_object_ref(data));
    }
    for (guint i = 0; i < server->clients->len; i++) {
        qmp_client_notify(server->clients->pdata[i], message);
    }
}

static void close_listeners(QmpServer *server)
{
    for (guint i = 0; i < server->listeners->len; i++) {
        QmpListener *listener = server->listeners->pdata[i];

        if (server->started) {
            aio_timer_del(&listener->retry);
            aio_set_fd_handler(server->config.ctx, listener->fd, NULL, NULL, NULL);
        }
        unlink(listener->path);
        close(listener->fd);
        g_free(listener->path);
        g_free(listener);
    }
    g_ptr_array_set_size(server->listeners, 0);
}

void coroutine_fn qmp_server_co_stop(QmpServer *server)
{
    server->stopping = true;
    close_listeners(server);
    for (guint i = 0; i < server->clients->len; i++) {
        qmp_client_close(server->clients->pdata[i]);
    }
    while (server->clients->len > 0) {
        co_queue_wait(&server->idle, NULL);
    }
}

void qmp_server_free(QmpServer *server)
{
    g_assert(server->clients->len == 0 && server->listeners->len == 0);
    g_ptr_array_free(server->listeners, TRUE);
    g_ptr_array_free(server->clients, TRUE);
    co_queue_destroy(&server->idle);
    g_free(server);
}

JsonObject *qmp_version(void)
{
    JsonObject *version = json_object_new(), *qemu = json_object_new();

    json_object_set_int_member(qemu, "major", QEMU_MAJOR);
    json_object_set_int_member(qemu, "minor", QEMU_MINOR);
    json_object_set_int_member(qemu, "micro", 0);
    json_object_set_object_member(version, "qemu", qemu);
    json_object_set_string_member(version, "package", PACKAGE_STRING);
    return version;
}
