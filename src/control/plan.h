/*
 * Plan: all that is known before anything is opened, checked as far as it can be.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_PLAN_H
#define BG_CONTROL_PLAN_H

#include "control/command-line.h"
#include "control/exports.h"
#include "control/objects.h"

typedef struct Plan {
    const CommandLine *line;    /* borrowed; its nodes are in the order to open them in */
    GPtrArray *exports;         /* ExportSpec */
    const char *probe;          /* the node whose format is to be looked for when it is opened; NULL: none */
    Objects *objects;           /* with at least one iothread */
    FuseAllowOther allow_other; /* of the mounted directory */
    char *fsname;               /* the device in the list of mounts */
    char *notice;               /* what to tell the user once all is up; may be NULL */
} Plan;

/* Read SOURCE into line->config, sort, check. NULL and *errp. */
Plan *plan_new(CommandLine *line, GError **errp);
void plan_free(Plan *plan);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Plan, plan_free)

#endif /* BG_CONTROL_PLAN_H */
