/*
 * FuseDirList: the entries of a directory at one moment, and their packing into replies.
 *
 * Constant once filled; shared by reference.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_FUSE_DIR_LIST_H
#define BG_FUSE_DIR_LIST_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fuse/protocol.h"

typedef struct FuseDirEntry {
    char *name;
    uint64_t ino;
    uint32_t type; /* S_IFDIR, S_IFREG, S_IFLNK */
} FuseDirEntry;

typedef struct FuseDirList FuseDirList;

/* Empty but for "." and "..". */
FuseDirList *fuse_dir_list_new(uint64_t ino, uint64_t parent_ino);
FuseDirList *fuse_dir_list_ref(FuseDirList *list);
void fuse_dir_list_unref(FuseDirList *list);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(FuseDirList, fuse_dir_list_unref)

void fuse_dir_list_add(FuseDirList *list, const char *name, uint64_t ino, uint32_t type);
/* Entry `i`, NULL at the end. The offset of an entry in the protocol is that of the next one: i + 1. */
const FuseDirEntry *fuse_dir_list_get(const FuseDirList *list, uint64_t i);

/*
 * Append entry i to the `*used` of `room` bytes at buf, behind `attr` where given (READDIRPLUS); false where
 * it does not fit.
 */
bool fuse_dir_entry_pack(const FuseDirList *list, uint64_t i, const struct fuse_entry_out *attr, void *buf,
                         size_t room, size_t *used);

#endif /* BG_FUSE_DIR_LIST_H */
