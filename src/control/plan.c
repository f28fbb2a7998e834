/*
 * Making the plan.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/plan.h"

#include <errno.h>
#include <sched.h>

#include "control/resolve.h"
#include "control/source.h"
#include "util/error.h"
#include "util/log.h"

/* Queues where the user says nothing: one for each CPU that we may use, but few. */
#define DEFAULT_MAX_QUEUES 4

static unsigned default_queues(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof(set), &set) == 0 ? MIN((unsigned)CPU_COUNT(&set), DEFAULT_MAX_QUEUES)
                                                        : DEFAULT_MAX_QUEUES;
}

/* The threads that the user named, else as many as there are queues. */
static bool plan_iothreads(Plan *plan, GError **errp)
{
    const CommandLine *line = plan->line;
    GPtrArray *named = plan->objects->iothreads;
    unsigned asked = line->one_queue ? 1 : line->mount->queues;

    if (named->len > MOUNT_MAX_QUEUES) {
        bg_error_set(errp, E2BIG, "%u iothreads are too many: at most %d", named->len, MOUNT_MAX_QUEUES);
        return false;
    }
    if (named->len > 0 && asked > 0 && asked != named->len) {
        bg_error_set(errp, EINVAL,
                     "%s contradicts the %u iothreads that are defined: leave out one or the other",
                     line->one_queue ? "-s" : "-o queues", named->len);
        return false;
    }
    if (named->len == 0 && asked == 0) {
        asked = default_queues();
    }
    for (unsigned i = named->len; i < asked; i++) {
        g_autofree char *id = g_strdup_printf("queue%u", i);

        g_ptr_array_add(named, iothread_spec_new(id));
    }
    return true;
}

/*
 * fusermount3 looks at the mount as soon as the daemon is gone, and unmounts it where the kernel has ended
 * its connection. A request of io_uring's that waits for /dev/fuse keeps that open a little longer.
 */
static void choose_event_loop(CommandLine *line)
{
    MountOptions *mount = line->mount;

    if (mount->auto_unmount && mount->event_loop == AIO_BACKEND_AUTO) {
        mount->event_loop = AIO_BACKEND_EPOLL;
        bg_log(BG_LOG_INFO, "the event loop is epoll, for the sake of auto_unmount");
    }
}

/* Every export must have somewhere to appear. */
static bool check_places(const Plan *plan, GError **errp)
{
    const CommandLine *line = plan->line;

    if (line->mountpoint) {
        return true;
    }
    for (guint i = 0; i < plan->exports->len; i++) {
        const ExportSpec *spec = plan->exports->pdata[i];

        if (!spec->mountpoint) {
            bg_error_set(errp, EINVAL, "MOUNTPOINT is missing: export '%s' has no mountpoint of its own",
                         spec->id);
            return false;
        }
    }
    return true;
}

static bool check_nodes(const CommandLine *line, GError **errp)
{
    if (config_nodes(line->config)->len > 0) {
        return true;
    }
    if (!line->source && config_exports(line->config)->len == 0) {
        bg_error_set(errp, EINVAL, "SOURCE and MOUNTPOINT are missing; --help tells more");
    } else if (!line->source || g_str_equal(line->source, "none")) {
        bg_error_set(errp, EINVAL, "there is no node: --blockdev defines one");
    } else {
        bg_error_set(errp, EINVAL, "%s: there is no node in it", line->source);
    }
    return false;
}

/* Under -o ro nothing is opened for writing that does not ask for it. */
static void make_read_only(const Config *config)
{
    const GPtrArray *nodes = config_nodes(config);

    for (guint i = 0; i < nodes->len; i++) {
        JsonObject *options = ((ConfigItem *)nodes->pdata[i])->options;

        if (!json_object_has_member(options, "read-only")) {
            json_object_set_boolean_member(options, "read-only", TRUE);
        }
    }
}

/* Of an image behind a URI without --format. Whether it can be written to is known when it is open. */
static void plan_probe(Plan *plan)
{
    const CommandLine *line = plan->line;

    plan->probe = line->format ? NULL : line->uri_name;
    for (guint i = 0; line->uri_name && i < plan->exports->len; i++) {
        ExportSpec *spec = plan->exports->pdata[i];

        if (g_str_equal(spec->id, line->uri_name)) {
            spec->writable = EXPORT_AS_NODE;
        }
    }
}

static bool make(Plan *plan, CommandLine *line, GError **errp)
{
    g_autoptr(GPtrArray) roots = g_ptr_array_new();

    if (!source_add(line, &plan->notice, errp) || !config_resolve(line->config, roots, errp) ||
        !(plan->objects = objects_read(line->config, errp)) || !plan_iothreads(plan, errp)) {
        return false;
    }
    plan->exports = exports_read(line->config, roots, errp);
    if (!plan->exports || !check_nodes(line, errp) || !check_places(plan, errp) ||
        !exports_directory_allow_other(plan->exports, line->mount->allow_other, &plan->allow_other, errp)) {
        return false;
    }
    if (line->mount->read_only) {
        make_read_only(line->config);
    }
    choose_event_loop(line);
    plan_probe(plan);
    return true;
}

Plan *plan_new(CommandLine *line, GError **errp)
{
    g_autoptr(Plan) plan = g_new0(Plan, 1);

    plan->line = line;
    if (!make(plan, line, errp)) {
        return NULL;
    }
    if (line->mount->fsname) {
        plan->fsname = g_strdup(line->mount->fsname);
    } else {
        plan->fsname = line->source ? source_redacted(line->source) : g_strdup("none");
    }
    return g_steal_pointer(&plan);
}

void plan_free(Plan *plan)
{
    if (!plan) {
        return;
    }
    g_clear_pointer(&plan->exports, g_ptr_array_unref);
    g_clear_pointer(&plan->objects, objects_free);
    g_free(plan->fsname);
    g_free(plan->notice);
    g_free(plan);
}
