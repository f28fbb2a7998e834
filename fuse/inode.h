/*
 * FuseInode: the files and directories that the kernel knows of, by node id.
 *
 *   PINNED     part of the mount (root, .graph, .snap, an export): lives until unpinned
 *   LOOKED UP  the kernel holds `lookups` references; FORGET gives them back
 *   IN USE     a request or a child inode holds a reference
 *
 * An inode is freed when it is none of these. Node ids are never used twice, so the generation is always 0.
 *
 * Lock: table.lock guards the tables, every count and `linked`; a leaf. kind, name, parent, nodeid and detail
 * are constant.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_FUSE_INODE_H
#define BG_FUSE_INODE_H

#include <glib.h>
#include <stdatomic.h>
#include <stdint.h>

#include "util/lock.h"

typedef struct FuseExport FuseExport;
typedef struct FuseInode FuseInode;

typedef enum FuseInodeKind {
    FUSE_INODE_ROOT,
    FUSE_INODE_EXPORT,
    FUSE_INODE_SNAP_DIR,      /* .snap */
    FUSE_INODE_SNAPSHOT_DIR,  /* .snap/SNAPSHOT */
    FUSE_INODE_SNAPSHOT_FILE, /* .snap/SNAPSHOT/EXPORT */
    FUSE_INODE_GRAPH_DIR,     /* .graph */
    FUSE_INODE_GRAPH_TEXT,    /* .graph/graph.txt and its like; detail: which */
    FUSE_INODE_NODES_DIR,     /* .graph/nodes */
    FUSE_INODE_NODE_DIR,      /* .graph/nodes/NODE */
    FUSE_INODE_NODE_DATA,     /* .graph/nodes/NODE/data */
    FUSE_INODE_NODE_TEXT,     /* .graph/nodes/NODE/options.json and stats.json; detail: which */
    FUSE_INODE_CHILDREN_DIR,  /* .graph/nodes/NODE/children */
    FUSE_INODE_CHILD_SYMLINK, /* .graph/nodes/NODE/children/ROLE */
} FuseInodeKind;

struct FuseInode {
    uint64_t nodeid;
    FuseInodeKind kind;
    unsigned detail;
    FuseInode *parent; /* NULL: the root; a reference */
    char *name;
    _Atomic(FuseExport *) exp; /* of an export; NULL after its removal */

    uint64_t lookups; /* the kernel's references */
    unsigned refs;    /* ours, and one for lookups > 0 */
    bool linked;      /* found by parent and name */
};

typedef struct FuseInodeTable {
    BgMutex lock;
    GHashTable *by_id BG_GUARDED_BY(lock);   /* &nodeid -> FuseInode */
    GHashTable *by_name BG_GUARDED_BY(lock); /* (parent, name) -> FuseInode */
    uint64_t next_id BG_GUARDED_BY(lock);
} FuseInodeTable;

void fuse_inode_table_init(FuseInodeTable *table);
/* Frees all inodes, whatever the kernel still holds: the mount is gone. */
void fuse_inode_table_destroy(FuseInodeTable *table);

/* What fuse_inode_child is to make where there is none. */
typedef struct FuseInodeSpec {
    FuseInodeKind kind;
    unsigned detail;
    FuseExport *exp;
} FuseInodeSpec;

/*
 * The child `name` of `parent`, made where absent; NULL parent: the root, with nodeid 1. A new reference. One
 * of the same name but another kind is unlinked and replaced. Any thread.
 */
FuseInode *fuse_inode_child(FuseInodeTable *table, FuseInode *parent, const char *name,
                            const FuseInodeSpec *spec);
/* The child, if there is one: a new reference, or NULL. Any thread. */
FuseInode *fuse_inode_find(FuseInodeTable *table, FuseInode *parent, const char *name);
/* By node id: a new reference, or NULL. Any thread. */
FuseInode *fuse_inode_get(FuseInodeTable *table, uint64_t nodeid);
void fuse_inode_put(FuseInodeTable *table, FuseInode *inode);
/* Not found by name any more. Any thread. */
void fuse_inode_unlink(FuseInodeTable *table, FuseInode *inode);

/* The kernel has learnt of it once more, by a reply. Any thread. */
void fuse_inode_looked_up(FuseInodeTable *table, FuseInode *inode);
/* The kernel gives back n references; more than it has, or an unknown id, is -EINVAL and changes nothing
 * more. */
int fuse_inode_forget(FuseInodeTable *table, uint64_t nodeid, uint64_t n);
/* Number of inodes. For tests. */
unsigned fuse_inode_table_size(FuseInodeTable *table);

#endif /* BG_FUSE_INODE_H */
