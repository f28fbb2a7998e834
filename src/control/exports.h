/*
 * What is to be exported: the exports of a Config, read and checked.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_EXPORTS_H
#define BG_CONTROL_EXPORTS_H

#include "control/graph-config.h"
#include "fuse/fuse-mount.h"

typedef enum ExportWritable {
    EXPORT_READ_ONLY,
    EXPORT_WRITABLE,
    EXPORT_AS_NODE, /* writable unless the node is read-only */
} ExportWritable;

typedef struct ExportSpec {
    const ConfigItem *item; /* for messages: the export, or the node that is exported by default; borrowed */
    char *id;
    char *node_name;
    char *mountpoint; /* absolute; NULL: in the mounted directory */
    char *iothread;   /* with a mountpoint: the id of the thread that serves it; NULL: all queues */
    ExportWritable writable;
    bool growable;
    bool has_allow_other; /* else allow_other is not set */
    FuseAllowOther allow_other;
} ExportSpec;

/*
 * The exports (ExportSpec, owned by the array) of config, or, where it has none, one for each of `roots`
 * (ConfigItem). Exports are checked in full. NULL and *errp.
 */
GPtrArray *exports_read(const Config *config, const GPtrArray *roots, GError **errp);

/*
 * Who may use the mounted directory: what its exports say, which must be one thing, or off; on where
 * `mount_option` (-o allow_other) says so. False and *errp.
 */
bool exports_directory_allow_other(const GPtrArray *exports, bool mount_option, FuseAllowOther *out,
                                   GError **errp);

#endif /* BG_CONTROL_EXPORTS_H */
