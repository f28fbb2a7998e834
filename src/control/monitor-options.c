/*
 * Reading --qmp, --chardev and --monitor.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/monitor-options.h"

#include <errno.h>
#include <string.h>

#include "block/options.h"
#include "control/keyval.h"
#include "util/error.h"
#include "util/text.h"

static void spec_free(gpointer data)
{
    MonitorSpec *spec = data;

    g_free(spec->path);
    g_free(spec);
}

MonitorOptions *monitor_options_new(void)
{
    MonitorOptions *options = g_new0(MonitorOptions, 1);

    options->specs = g_ptr_array_new_with_free_func(spec_free);
    options->chardevs = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    options->monitors = g_ptr_array_new_with_free_func((GDestroyNotify)json_object_unref);
    return options;
}

void monitor_options_free(MonitorOptions *options)
{
    g_ptr_array_free(options->specs, TRUE);
    g_hash_table_destroy(options->chardevs);
    g_ptr_array_free(options->monitors, TRUE);
    g_free(options);
}

static bool add_spec(MonitorOptions *options, const char *origin, const char *path, bool pretty,
                     GError **errp)
{
    MonitorSpec *spec;

    for (guint i = 0; i < options->specs->len; i++) {
        if (g_str_equal(((MonitorSpec *)options->specs->pdata[i])->path, path)) {
            bg_error_set(errp, EINVAL, "%s: the socket '%s' is given twice", origin, path);
            return false;
        }
    }
    spec = g_new0(MonitorSpec, 1);
    spec->origin = origin;
    spec->path = g_strdup(path);
    spec->pretty = pretty;
    g_ptr_array_add(options->specs, spec);
    return true;
}

/* The absolute path of a socket to listen on. `wait`: what it is where not given. */
static bool read_socket(BlockOptions *opts, const char *cwd, bool server, bool wait, char **path,
                        GError **errp)
{
    g_autofree char *given = NULL;

    if (!block_options_require_string(opts, "path", &given, errp) ||
        !block_options_get_bool(opts, "server", &server, errp) ||
        !block_options_get_bool(opts, "wait", &wait, errp) || !block_options_finish(opts, errp)) {
        return false;
    }
    if (!server) {
        return block_options_error(opts, "server", errp, ENOTSUP,
                                   "only 'on' is supported: clients connect to us");
    }
    if (wait) {
        return block_options_error(opts, "wait", errp, ENOTSUP,
                                   "only 'off' is supported: the daemon does not wait for a client");
    }
    *path = g_path_is_absolute(given) ? g_steal_pointer(&given) : g_build_filename(cwd, given, NULL);
    return true;
}

bool monitor_options_add_qmp(MonitorOptions *options, const char *text, const char *cwd, GError **errp)
{
    g_autoptr(JsonObject) object = NULL;
    g_autoptr(BlockOptions) opts = NULL;
    g_autofree char *path = NULL;

    if (!g_str_has_prefix(text, "unix:")) {
        bg_error_set(errp, ENOTSUP, "--qmp: expected unix:PATH");
        return false;
    }
    object = keyval_parse(text + strlen("unix:"), "path", errp);
    if (!object) {
        g_prefix_error(errp, "--qmp: ");
        return false;
    }
    opts = block_options_new("--qmp", "", object);
    return read_socket(opts, cwd, true, false, &path, errp) && add_spec(options, "--qmp", path, false, errp);
}

bool monitor_options_add_chardev(MonitorOptions *options, const char *text, const char *cwd, GError **errp)
{
    static const char *const backends[] = {"socket", NULL};
    g_autoptr(JsonObject) object = keyval_parse(text, "backend", errp);
    g_autoptr(BlockOptions) opts = NULL;
    g_autofree char *id = NULL, *path = NULL;
    int backend = -1;

    if (!object) {
        g_prefix_error(errp, "--chardev: ");
        return false;
    }
    opts = block_options_new("--chardev", "", object);
    if (!block_options_get_enum(opts, "backend", backends, &backend, errp)) {
        return false;
    }
    if (backend < 0) {
        return block_options_error(opts, "backend", errp, EINVAL, "is required: socket");
    }
    if (!block_options_require_string(opts, "id", &id, errp) ||
        !read_socket(opts, cwd, false, true, &path, errp)) {
        return false;
    }
    if (g_hash_table_contains(options->chardevs, id)) {
        return block_options_error(opts, "id", errp, EEXIST, "'%s' is given twice", id);
    }
    g_hash_table_insert(options->chardevs, g_steal_pointer(&id), g_steal_pointer(&path));
    return true;
}

bool monitor_options_add_monitor(MonitorOptions *options, const char *text, GError **errp)
{
    JsonObject *object = keyval_parse(text, "chardev", errp);

    if (!object) {
        g_prefix_error(errp, "--monitor: ");
        return false;
    }
    g_ptr_array_add(options->monitors, object);
    return true;
}

static bool unknown_chardev(MonitorOptions *options, BlockOptions *opts, const char *id, GError **errp)
{
    g_autofree char **ids = (char **)g_hash_table_get_keys_as_array(options->chardevs, NULL);
    const char *nearest = text_nearest(id, (const char *const *)ids);

    return block_options_error(opts, "chardev", errp, ENOENT, "there is no chardev '%s'%s%s%s", id,
                               nearest ? ", did you mean '" : "", nearest ? nearest : "",
                               nearest ? "'?" : "");
}

static bool finish_monitor(MonitorOptions *options, JsonObject *object, GError **errp)
{
    static const char *const modes[] = {"control", "readline", NULL};
    g_autoptr(BlockOptions) opts = block_options_new("--monitor", "", object);
    g_autofree char *chardev = NULL, *id = NULL;
    bool pretty = false;
    int mode = 0;
    const char *path;

    if (!block_options_require_string(opts, "chardev", &chardev, errp) ||
        !block_options_get_string(opts, "id", &id, errp) ||
        !block_options_get_enum(opts, "mode", modes, &mode, errp) ||
        !block_options_get_bool(opts, "pretty", &pretty, errp) || !block_options_finish(opts, errp)) {
        return false;
    }
    if (mode != 0) {
        return block_options_error(opts, "mode", errp, ENOTSUP, "only 'control' is supported");
    }
    path = g_hash_table_lookup(options->chardevs, chardev);
    return path ? add_spec(options, "--monitor", path, pretty, errp)
                : unknown_chardev(options, opts, chardev, errp);
}

bool monitor_options_finish(MonitorOptions *options, GError **errp)
{
    for (guint i = 0; i < options->monitors->len; i++) {
        if (!finish_monitor(options, options->monitors->pdata[i], errp)) {
            return false;
        }
    }
    return true;
}
