/*
 * qcow2: what the files that make images share.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_QCOW2_CREATE_H
#define BG_QCOW2_CREATE_H

#include "backends/format/qcow2/qcow2.h"
#include "block/create.h"

typedef struct Qcow2Create {
    int64_t size;
    uint32_t version, cluster_bits, refcount_order;
    bool lazy_refcounts, extended;
    Qcow2Compression compression;
    BlockPreallocation preallocation;
    char *backing_file, *backing_format; /* NULL: none */
    bool external, data_raw;             /* option "data-file" names a node for the data */
    char *data_file;                     /* its file's name; known once it is open */
} Qcow2Create;

/* All options; children are not opened. False with *errp. */
bool qcow2_create_read_options(BlockOptions *opts, Qcow2Create *c, GError **errp);
void qcow2_create_clear(Qcow2Create *c);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Qcow2Create, qcow2_create_clear)

#endif /* BG_QCOW2_CREATE_H */
