/*
 * SnapshotSet: snapshots, inside images and by overlays, that are to be taken at one point in time.
 *
 * The files and nodes of overlays are made as they are added; all that users could notice happens in
 * snapshot_set_co_commit, under one drained section.
 *
 * Main thread, coroutine. The caller holds the server's change lock from the first call to the last.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_SNAPSHOT_SET_H
#define BG_CONTROL_SNAPSHOT_SET_H

#include "block/graph.h"

typedef struct SnapshotSet SnapshotSet;

typedef struct SnapshotOverlayFile {
    const char *filename;  /* absolute */
    const char *format;    /* a driver */
    const char *node_name; /* NULL: made from the file's name */
    bool make;             /* make the image; else it is there */
    bool overwrite;        /* what is there already */
} SnapshotOverlayFile;

SnapshotSet *snapshot_set_new(BlockGraph *graph);
/* An internal snapshot. False and *errp. */
bool coroutine_fn snapshot_set_co_add_internal(SnapshotSet *set, BlockNode *node, const char *name,
                                               GError **errp);
/* An overlay that is a node already, and one that is to be made. False and *errp. */
bool coroutine_fn snapshot_set_co_add_overlay(SnapshotSet *set, BlockNode *node, BlockNode *overlay,
                                              GError **errp);
bool coroutine_fn snapshot_set_co_add_file(SnapshotSet *set, BlockNode *node, const SnapshotOverlayFile *file,
                                           GError **errp);
/* Take them: all, or false and *errp. Once. */
bool coroutine_fn snapshot_set_co_commit(SnapshotSet *set, GError **errp);
/* Takes back what was added, unless it was committed. */
void coroutine_fn snapshot_set_co_free(SnapshotSet *set);

#endif /* BG_CONTROL_SNAPSHOT_SET_H */
