/*
 * --qmp, --chardev and --monitor: which control sockets the user wants.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_MONITOR_OPTIONS_H
#define BG_CONTROL_MONITOR_OPTIONS_H

#include <glib.h>
#include <stdbool.h>

typedef struct MonitorSpec {
    const char *origin; /* "--qmp" or "--monitor"; static */
    char *path;         /* absolute */
    bool pretty;
} MonitorSpec;

typedef struct MonitorOptions {
    GPtrArray *specs;     /* MonitorSpec, owned; complete after monitor_options_finish */
    GHashTable *chardevs; /* id -> absolute path of the socket */
    GPtrArray *monitors;  /* JsonObject: --monitor as given */
} MonitorOptions;

MonitorOptions *monitor_options_new(void);
void monitor_options_free(MonitorOptions *options);

/* Relative paths are relative to `cwd`. False and *errp, as "--qmp: cause". */
bool monitor_options_add_qmp(MonitorOptions *options, const char *text, const char *cwd, GError **errp);
bool monitor_options_add_chardev(MonitorOptions *options, const char *text, const char *cwd, GError **errp);
bool monitor_options_add_monitor(MonitorOptions *options, const char *text, GError **errp);
/* After the last: find the chardevs of the monitors, which may stand in any order. */
bool monitor_options_finish(MonitorOptions *options, GError **errp);

#endif /* BG_CONTROL_MONITOR_OPTIONS_H */
