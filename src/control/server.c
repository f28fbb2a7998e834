/*
 * The life of the daemon.
 *
 *   state     | what is up                     | event                        -> next
 *   ----------+--------------------------------+---------------------------------------------
 *   STARTING  | iothreads, nodes so far        | all mounted                  -> RUNNING
 *             |                                | something fails              -> taken down, error
 *   RUNNING   | all                            | SIGTERM, SIGINT              -> STOPPING
 *             |                                | the kernel ended a mount     -> that one taken down,
 *             |                                |                                the last: STOPPING
 *   STOPPING  | less and less                  | another signal               -> only logged
 *             |                                | nodes closed                 -> STOPPED
 *   STOPPED   | iothreads                      | server_free
 *
 * Invariants: `cleaner` is set while, and only while, its coroutine is scheduled or runs; it alone frees
 * mounts after STARTING. All in the main thread.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <glib-unix.h>
#include <signal.h>
#include <stdlib.h>

#include "aio/iothread.h"
#include "aio/thread-pool.h"
#include "control/daemonize.h"
#include "control/probe.h"
#include "control/server-internal.h"
#include "util/error.h"
#include "util/log.h"

/* Locks of a daemon that is about to end: how long to wait for them, and how often to ask. */
#define LOCK_WAIT_US  G_USEC_PER_SEC
#define LOCK_RETRY_NS (50 * INT64_C(1000000))

/* ---- Taking down */

static void coroutine_fn co_stop_mount(Server *server, ServerMount *m)
{
    if (m->mount) {
        int ret = fuse_mount_co_stop(m->mount);

        if (ret < 0) {
            bg_log(BG_LOG_ERROR, "'%s': the last flush failed: %s", fuse_mount_mountpoint(m->mount),
                   g_strerror(-ret));
            server->status = EXIT_FAILURE;
        }
        fuse_mount_free(m->mount);
    }
    for (guint i = 0; i < m->exports->len; i++) {
        server_export_deleted(server, fuse_export_id(m->exports->pdata[i]));
        fuse_export_co_free(m->exports->pdata[i]);
    }
    g_ptr_array_free(m->exports, TRUE);
    g_free(m);
}

static void coroutine_fn co_close_all(Server *server)
{
    server_co_close_control(server);
    while (server->mounts->len > 0) {
        co_stop_mount(server, g_ptr_array_steal_index(server->mounts, server->mounts->len - 1));
    }
    if (server->graph) {
        block_graph_co_close(server->graph);
        g_clear_pointer(&server->graph, block_graph_free);
    }
}

static void coroutine_fn co_take_down(void *opaque)
{
    Server *server = opaque;

    co_close_all(server);
    server->state = SERVER_STOPPED;
    if (server->loop) {
        g_main_loop_quit(server->loop);
    }
}

static ServerMount *take_gone_mount(Server *server)
{
    for (guint i = 0; i < server->mounts->len; i++) {
        ServerMount *m = server->mounts->pdata[i];

        if (!fuse_mount_is_alive(m->mount)) {
            return g_ptr_array_steal_index(server->mounts, i);
        }
    }
    return NULL;
}

/* Take down the mounts that are gone, or all. */
static void coroutine_fn co_clean(void *opaque)
{
    Server *server = opaque;
    ServerMount *gone;

    while (server->state == SERVER_RUNNING && (gone = take_gone_mount(server))) {
        bg_log(BG_LOG_INFO, "'%s' was unmounted", fuse_mount_mountpoint(gone->mount));
        co_mutex_lock(&server->change_lock);
        co_stop_mount(server, gone);
        co_mutex_unlock(&server->change_lock);
    }
    if (server->mounts->len == 0 && server->state == SERVER_RUNNING) {
        server->state = SERVER_STOPPING;
    }
    if (server->state == SERVER_STOPPING) {
        notify_service_manager("STOPPING=1");
        co_take_down(server);
    }
    server->cleaner = false;
}

static void start_cleaner(Server *server)
{
    if (!server->cleaner) {
        server->cleaner = true;
        aio_co_schedule(server->ctx, coroutine_create(co_clean, server));
    }
}

static void mount_closed(FuseMount *mount, void *opaque)
{
    Server *server = opaque;

    if (server->state == SERVER_RUNNING) {
        start_cleaner(server);
    }
}

void server_stop(Server *server)
{
    if (server->state == SERVER_RUNNING) {
        bg_log(BG_LOG_INFO, "stopping: waiting for requests, flushing");
        server->state = SERVER_STOPPING;
        block_graph_limit_waits(server->graph);
        start_cleaner(server);
    } else {
        if (server->graph) {
            block_graph_limit_waits(server->graph);
        }
        bg_log(BG_LOG_WARNING, "already stopping: waiting for requests and flushes to end");
    }
}

/* ---- Signals */

static gboolean on_stop_signal(gpointer opaque)
{
    server_stop(opaque);
    return G_SOURCE_CONTINUE;
}

static gboolean on_hangup(gpointer opaque)
{
    bg_log(BG_LOG_WARNING, "SIGHUP is ignored: the graph file is read once, at the start");
    return G_SOURCE_CONTINUE;
}

/* They stay to the end of the process, when nobody looks at them any more: a signal that comes late, after a
 * clean end, must not make it look like a crash. */
static void add_signals(Server *server)
{
    g_unix_signal_add(SIGTERM, on_stop_signal, server);
    g_unix_signal_add(SIGINT, on_stop_signal, server);
    g_unix_signal_add(SIGHUP, on_hangup, server);
}

/* ---- Starting: threads and nodes */

static bool start_threads(Server *server, GError **errp)
{
    const Plan *plan = server->plan;

    server->contexts = g_new0(AioContext *, plan->objects->iothreads->len);
    for (guint i = 0; i < plan->objects->iothreads->len; i++) {
        const IothreadSpec *spec = plan->objects->iothreads->pdata[i];
        IoThread *thread = iothread_new(spec->id, plan->line->mount->event_loop, -1, errp);

        if (!thread) {
            return false;
        }
        aio_context_set_poll_max(iothread_context(thread), (int64_t)spec->poll_max_ns);
        g_ptr_array_add(server->iothreads, thread);
        server->contexts[i] = iothread_context(thread);
    }
    return true;
}

static void copy_member(JsonObject *from, const char *key, JsonNode *value, gpointer to)
{
    json_object_set_member(to, key, json_node_copy(value));
}

/* The format of the image that SOURCE names by a URI, where it is to be found out. */
static bool coroutine_fn co_probe(Server *server, const ConfigItem *item)
{
    const char *format;

    if (!server->plan->probe || !g_str_equal(item->name, server->plan->probe)) {
        return true;
    }
    g_autoptr(JsonObject) file = json_object_new();

    json_object_foreach_member(json_object_get_object_member(item->options, "file"), copy_member, file);
    json_object_set_boolean_member(file, "read-only", TRUE);
    format = probe_co_node(server->graph, file, server->open_errp);
    if (!format || !block_driver_find(format, server->open_errp)) {
        return false;
    }
    json_object_set_string_member(item->options, "driver", format);
    if (g_str_equal(format, "raw") && !server->plan->line->mount->read_only) {
        json_object_set_boolean_member(item->options, "read-only", TRUE);
        bg_log(BG_LOG_WARNING,
               "'%s' looks like a raw image and is exported read-only, since the format was guessed: "
               "--format=raw makes it writable",
               item->name);
    }
    return true;
}

static void coroutine_fn co_open_nodes(void *opaque)
{
    Server *server = opaque;
    const GPtrArray *nodes = config_nodes(server->plan->line->config);

    for (guint i = 0; i < nodes->len; i++) {
        const ConfigItem *item = nodes->pdata[i];

        if (!co_probe(server, item) || !block_node_co_open(server->graph, item->options, server->open_errp)) {
            config_item_locate_error(item, server->open_errp);
            return;
        }
    }
}

static bool open_nodes(Server *server, GError **errp)
{
    GError *error = NULL;

    server->open_errp = &error;
    aio_context_run_coroutine(server->ctx, co_open_nodes, server);
    server->open_errp = NULL;
    if (error) {
        g_propagate_error(errp, error);
        return false;
    }
    return true;
}

/* ---- Starting: exports */

static FuseExport *make_export(Server *server, const ExportSpec *spec, GError **errp)
{
    const MountOptions *mount = server->plan->line->mount;
    BlockNode *node = block_graph_find(server->graph, spec->node_name, errp);
    FuseExport *exp;

    if (!node) {
        config_item_locate_error(spec->item, errp);
        return NULL;
    }
    FuseExportConfig config = {
        .id = spec->id,
        .writable = !mount->read_only && (spec->writable == EXPORT_WRITABLE ||
                                          (spec->writable == EXPORT_AS_NODE && !node->read_only)),
        .growable = spec->growable && !mount->read_only,
        .strict_sync = mount->strict_sync,
    };
    exp = fuse_export_new(server->graph, node, &config, errp);
    if (!exp) {
        config_item_locate_error(spec->item, errp);
    }
    return exp;
}

static ServerMount *add_mount(Server *server, const ExportSpec *spec)
{
    ServerMount *m = g_new0(ServerMount, 1);

    m->spec = spec;
    m->exports = g_ptr_array_new();
    g_ptr_array_add(server->mounts, m);
    return m;
}

/* All exports, before anything is mounted, so that most errors come early. */
static bool make_exports(Server *server, GError **errp)
{
    const GPtrArray *specs = server->plan->exports;
    ServerMount *directory = server->plan->line->mountpoint ? add_mount(server, NULL) : NULL;

    for (guint i = 0; i < specs->len; i++) {
        const ExportSpec *spec = specs->pdata[i];
        FuseExport *exp = make_export(server, spec, errp);

        if (!exp) {
            return false;
        }
        g_ptr_array_add((spec->mountpoint ? add_mount(server, spec) : directory)->exports, exp);
    }
    return true;
}

static bool open_graph(Server *server, GError **errp)
{
    server->graph = block_graph_new(server->ctx);
    block_graph_set_homes(server->graph, server->contexts, server->iothreads->len);
    return objects_add_to_graph(server->plan->objects, server->graph, errp) && open_nodes(server, errp) &&
           make_exports(server, errp);
}

static void coroutine_fn co_retreat(void *opaque)
{
    co_close_all(opaque);
    aio_co_sleep_ns(LOCK_RETRY_NS);
}

/*
 * umount(8) returns before the daemon has let go of its images: who mounts again at once meets its locks.
 * Others' locks are not worth more than a moment, either. Everything is closed between the attempts, so that
 * two daemons that start together do not keep each other from it.
 */
static bool open_graph_patiently(Server *server, GError **errp)
{
    gint64 deadline = g_get_monotonic_time() + LOCK_WAIT_US;
    g_autoptr(GError) error = NULL;

    while (!open_graph(server, &error)) {
        if (bg_error_to_errno(error) != -EAGAIN || g_get_monotonic_time() >= deadline) {
            g_propagate_error(errp, g_steal_pointer(&error));
            return false;
        }
        g_clear_error(&error);
        aio_context_run_coroutine(server->ctx, co_retreat, server);
    }
    return true;
}

/* ---- Starting: mounts */

/* What all mounts have in common. Free fuse_options' array, not its words. */
static FuseMountConfig mount_config(Server *server)
{
    const CommandLine *line = server->plan->line;
    const GPtrArray *words = line->mount->fuse_options;
    char **options = g_new0(char *, words->len + 1);

    for (guint i = 0; i < words->len; i++) {
        options[i] = words->pdata[i];
    }
    return (FuseMountConfig){
        .fuse_options = options,
        .read_only = line->mount->read_only,
        .contexts = server->contexts,
        .n_contexts = server->iothreads->len,
        .debug = line->debug,
        .control = server->control,
        .closed = mount_closed,
        .opaque = server,
    };
}

static AioContext *const *find_context(const Server *server, const char *iothread)
{
    for (guint i = 0; i < server->iothreads->len; i++) {
        if (g_str_equal(((const IothreadSpec *)server->plan->objects->iothreads->pdata[i])->id, iothread)) {
            return &server->contexts[i];
        }
    }
    return NULL;
}

/* Mount one export over its own file. */
static bool mount_file(Server *server, ServerMount *m, GError **errp)
{
    const MountOptions *options = server->plan->line->mount;
    const ExportSpec *spec = m->spec;
    FuseMountConfig config = mount_config(server);

    config.mountpoint = spec->mountpoint;
    config.source = options->fsname ? options->fsname : spec->id;
    config.single_export = m->exports->pdata[0];
    config.allow_other = options->allow_other ? FUSE_ALLOW_OTHER_ON : FUSE_ALLOW_OTHER_AUTO;
    if (spec->has_allow_other) {
        config.allow_other = spec->allow_other;
    }
    if (spec->iothread) {
        config.contexts = find_context(server, spec->iothread);
        config.n_contexts = 1;
    }
    m->mount = fuse_mount_new(server->graph, &config, errp);
    g_free((gpointer)config.fuse_options);
    if (!m->mount) {
        config_item_locate_error(spec->item, errp);
    }
    return m->mount && fuse_mount_start(m->mount, errp) == 0;
}

static bool mount_directory(Server *server, ServerMount *m, GError **errp)
{
    FuseMountConfig config = mount_config(server);

    config.mountpoint = server->plan->line->mountpoint;
    config.source = server->plan->fsname;
    config.allow_other = server->plan->allow_other;
    m->mount = fuse_mount_new(server->graph, &config, errp);
    g_free((gpointer)config.fuse_options);
    if (!m->mount) {
        return false;
    }
    for (guint i = 0; i < m->exports->len; i++) {
        if (fuse_mount_add_export(m->mount, m->exports->pdata[i], errp) < 0) {
            return false;
        }
    }
    return fuse_mount_start(m->mount, errp) == 0;
}

static bool mount_all(Server *server, GError **errp)
{
    for (guint i = 0; i < server->mounts->len; i++) {
        ServerMount *m = server->mounts->pdata[i];

        if (!(m->spec ? mount_file(server, m, errp) : mount_directory(server, m, errp))) {
            return false;
        }
    }
    return true;
}

static bool start(Server *server, GError **errp)
{
    server->ctx = aio_context_new("main", server->plan->line->mount->event_loop, errp);
    if (!server->ctx) {
        return false;
    }
    aio_context_set_current(server->ctx);
    signal(SIGPIPE, SIG_IGN); /* servers hang up, from the first connection on */
    if (!start_threads(server, errp) || !open_graph_patiently(server, errp)) {
        return false;
    }
    add_signals(server); /* a signal during the mounts waits for the main loop */
    return server_open_control(server, errp) && mount_all(server, errp);
}

Server *server_new(const Plan *plan, GError **errp)
{
    Server *server = g_new0(Server, 1);

    bg_main_thread_register();
    server->plan = plan;
    server->iothreads = g_ptr_array_new_with_free_func((GDestroyNotify)iothread_free);
    server->mounts = g_ptr_array_new();
    co_mutex_init(&server->change_lock);
    if (!start(server, errp)) {
        if (server->ctx) {
            aio_context_run_coroutine(server->ctx, co_take_down, server);
        }
        server_free(server);
        return NULL;
    }
    server->state = SERVER_RUNNING;
    return server;
}

int server_run(Server *server)
{
    GSource *source = aio_context_source_new(server->ctx);

    server->loop = g_main_loop_new(NULL, FALSE);
    g_source_attach(source, NULL);
    qmp_server_start(server->qmp);
    for (guint i = 0; i < server->mounts->len; i++) {
        ServerMount *m = server->mounts->pdata[i];

        if (!fuse_mount_is_alive(m->mount)) { /* closed before we were RUNNING */
            start_cleaner(server);
        }
    }
    g_main_loop_run(server->loop);
    g_source_destroy(source);
    g_source_unref(source);
    g_clear_pointer(&server->loop, g_main_loop_unref);
    return server->status;
}

void server_free(Server *server)
{
    g_ptr_array_free(server->iothreads, TRUE);
    g_free(server->contexts);
    g_ptr_array_free(server->mounts, TRUE);
    co_mutex_destroy(&server->change_lock);
    if (server->ctx) {
        thread_pool_shutdown();
        aio_context_set_current(NULL);
        aio_context_unref(server->ctx);
    }
    g_free(server);
}
