/*
 * Reading exports.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/exports.h"

#include <errno.h>
#include <string.h>

#include "block/options.h"
#include "util/error.h"
#include "util/text.h"

static void spec_free(gpointer data)
{
    ExportSpec *spec = data;

    g_free(spec->id);
    g_free(spec->node_name);
    g_free(spec->mountpoint);
    g_free(spec->iothread);
    g_free(spec);
}

/* ---- One export's options */

static bool read_type(BlockOptions *opts, GError **errp)
{
    static const char *const types[] = {"fuse", "nbd", "vhost-user-blk", "vduse-blk", NULL};
    int type = 0;

    if (!block_options_get_enum(opts, "type", types, &type, errp)) {
        return false;
    }
    if (type != 0) {
        return block_options_error(opts, "type", errp, ENOTSUP,
                                   "exports of type '%s' are not supported, only 'fuse'", types[type]);
    }
    return true;
}

static bool read_node_name(BlockOptions *opts, ExportSpec *spec, GError **errp)
{
    g_autofree char *alias = NULL;

    if (!block_options_get_string(opts, "node-name", &spec->node_name, errp) ||
        !block_options_get_string(opts, "node", &alias, errp)) {
        return false;
    }
    if (spec->node_name && alias) {
        return block_options_error(opts, "node", errp, EINVAL,
                                   "is the same as 'node-name': give one of them");
    }
    if (alias) {
        spec->node_name = g_steal_pointer(&alias);
    }
    if (!spec->node_name) {
        return block_options_error(opts, "node-name", errp, EINVAL, "is required");
    }
    return true;
}

/* QEMU's options whose other value is not there. */
static bool refuse_true(BlockOptions *opts, const char *key, GError **errp)
{
    bool value = false;

    if (!block_options_get_bool(opts, key, &value, errp)) {
        return false;
    }
    return !value || block_options_error(opts, key, errp, ENOTSUP, "is not supported yet");
}

static bool read_allow_other(BlockOptions *opts, ExportSpec *spec, GError **errp)
{
    static const char *const words[] = {"off", "on", "auto", NULL};
    bool is_bool = block_options_has(opts, "allow-other") && !block_options_is_string(opts, "allow-other");
    bool on = false;
    int word = FUSE_ALLOW_OTHER_OFF;

    spec->has_allow_other = block_options_has(opts, "allow-other");
    if (is_bool) {
        spec->allow_other = FUSE_ALLOW_OTHER_OFF;
        if (!block_options_get_bool(opts, "allow-other", &on, errp)) {
            return false;
        }
        word = on ? FUSE_ALLOW_OTHER_ON : FUSE_ALLOW_OTHER_OFF;
    } else if (!block_options_get_enum(opts, "allow-other", words, &word, errp)) {
        return false;
    }
    spec->allow_other = word;
    return true;
}

static bool read_place(BlockOptions *opts, ExportSpec *spec, GError **errp)
{
    bool fixed_iothread = false; /* an export never leaves its thread */

    if (!block_options_get_string(opts, "mountpoint", &spec->mountpoint, errp) ||
        !block_options_get_string(opts, "iothread", &spec->iothread, errp) ||
        !block_options_get_bool(opts, "fixed-iothread", &fixed_iothread, errp)) {
        return false;
    }
    if (spec->mountpoint && !*spec->mountpoint) {
        return block_options_error(opts, "mountpoint", errp, EINVAL, "must not be empty");
    }
    if (spec->iothread && !spec->mountpoint) {
        return block_options_error(
            opts, "iothread", errp, EINVAL,
            "needs a mountpoint of the export's own: files of one directory share queues");
    }
    return true;
}

static bool read_options(BlockOptions *opts, ExportSpec *spec, GError **errp)
{
    bool writable = false;

    if (!read_type(opts, errp) || !block_options_require_string(opts, "id", &spec->id, errp) ||
        !read_node_name(opts, spec, errp) || !read_place(opts, spec, errp) ||
        !block_options_get_bool(opts, "writable", &writable, errp) ||
        !block_options_get_bool(opts, "growable", &spec->growable, errp) ||
        !read_allow_other(opts, spec, errp) || !refuse_true(opts, "writethrough", errp) ||
        !refuse_true(opts, "partitions", errp) || !block_options_finish(opts, errp)) {
        return false;
    }
    spec->writable = writable ? EXPORT_WRITABLE : EXPORT_READ_ONLY;
    if (spec->growable && !writable) {
        return block_options_error(opts, "growable", errp, EINVAL, "needs writable=on");
    }
    return true;
}

/* ---- References to nodes and iothreads */

static bool check_references(const Config *config, const ExportSpec *spec, GError **errp)
{
    const ConfigItem *thread;
    const char *nearest;

    if (!config_find(config, CONFIG_NODE, spec->node_name)) {
        const char *key = json_object_has_member(spec->item->options, "node") ? "node" : "node-name";

        nearest = config_nearest(config, CONFIG_NODE, spec->node_name);
        return config_item_error(spec->item, key, errp, ENOENT, "there is no node '%s'%s%s%s",
                                 spec->node_name, nearest ? ", did you mean '" : "", nearest ? nearest : "",
                                 nearest ? "'?" : "");
    }
    thread = spec->iothread ? config_find(config, CONFIG_OBJECT, spec->iothread) : NULL;
    if (thread && strcmp(json_object_get_string_member(thread->options, "qom-type"), "iothread") != 0) {
        return config_item_error(spec->item, "iothread", errp, EINVAL, "object '%s' is not an iothread",
                                 spec->iothread);
    }
    if (spec->iothread && !thread) {
        nearest = config_nearest(config, CONFIG_OBJECT, spec->iothread);
        return config_item_error(spec->item, "iothread", errp, ENOENT, "there is no iothread '%s'%s%s%s",
                                 spec->iothread, nearest ? ", did you mean '" : "", nearest ? nearest : "",
                                 nearest ? "'?" : "");
    }
    return true;
}

static bool check_mountpoints(const GPtrArray *exports, const ExportSpec *spec, GError **errp)
{
    for (guint i = 0; spec->mountpoint && i < exports->len; i++) {
        const ExportSpec *other = exports->pdata[i];

        if (other != spec && g_strcmp0(other->mountpoint, spec->mountpoint) == 0) {
            return config_item_error(spec->item, "mountpoint", errp, EINVAL, "is that of export '%s' already",
                                     other->id);
        }
    }
    return true;
}

static bool add_export(const Config *config, GPtrArray *exports, const ConfigItem *item, GError **errp)
{
    g_autoptr(BlockOptions) opts = block_options_new(item->what, "", item->options);
    ExportSpec *spec = g_new0(ExportSpec, 1);

    g_ptr_array_add(exports, spec);
    spec->item = item;
    if (!read_options(opts, spec, errp)) {
        config_item_locate_error(item, errp);
        return false;
    }
    return check_references(config, spec, errp) && check_mountpoints(exports, spec, errp);
}

static bool add_default_export(GPtrArray *exports, const ConfigItem *node, GError **errp)
{
    ExportSpec *spec = g_new0(ExportSpec, 1);

    g_ptr_array_add(exports, spec);
    spec->item = node;
    spec->id = g_strdup(node->name);
    spec->node_name = g_strdup(node->name);
    spec->writable = EXPORT_AS_NODE;
    if (!strcmp(node->name, ".graph") || !strcmp(node->name, ".snap")) {
        return config_item_error(node, NULL, errp, EINVAL,
                                 "cannot be exported under its name, which is reserved: give it an export");
    }
    return true;
}

GPtrArray *exports_read(const Config *config, const GPtrArray *roots, GError **errp)
{
    g_autoptr(GPtrArray) exports = g_ptr_array_new_with_free_func(spec_free);
    const GPtrArray *items = config_exports(config);

    for (guint i = 0; i < items->len; i++) {
        if (!add_export(config, exports, items->pdata[i], errp)) {
            return NULL;
        }
    }
    for (guint i = 0; items->len == 0 && i < roots->len; i++) {
        if (!add_default_export(exports, roots->pdata[i], errp)) {
            return NULL;
        }
    }
    return g_steal_pointer(&exports);
}

bool exports_directory_allow_other(const GPtrArray *exports, bool mount_option, FuseAllowOther *out,
                                   GError **errp)
{
    const ExportSpec *decided = NULL;

    *out = mount_option ? FUSE_ALLOW_OTHER_ON : FUSE_ALLOW_OTHER_OFF;
    for (guint i = 0; i < exports->len; i++) {
        const ExportSpec *spec = exports->pdata[i];

        if (spec->mountpoint || !spec->has_allow_other) {
            continue;
        }
        if (mount_option && spec->allow_other == FUSE_ALLOW_OTHER_OFF) {
            return config_item_error(spec->item, "allow-other", errp, EINVAL, "contradicts -o allow_other");
        }
        if (decided && spec->allow_other != decided->allow_other) {
            return config_item_error(spec->item, "allow-other", errp, EINVAL,
                                     "contradicts export '%s', which is in the same directory", decided->id);
        }
        decided = spec;
        *out = mount_option ? FUSE_ALLOW_OTHER_ON : spec->allow_other;
    }
    return true;
}
