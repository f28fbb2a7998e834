/*
 * FuseFile: open files and directories, by the handle that the kernel sends with each request.
 *
 *   FREE --fuse_file_open--> OPEN --RELEASE, fuse_file_release--> CLOSING --last reference--> FREE
 *
 * READ and WRITE on an export find their file by the handle alone: no lock, no reference. This is safe as
 * slots are never freed before the table (a stale handle meets a slot with another handle in it), and an
 * export lives until all queues have passed a checkpoint after its removal (fuse_export_enter). All other
 * kinds are used with a reference, which holds their text, list or backend.
 *
 * Handles are never used twice: slot number + 1 in the low 32 bits, a count in the high ones.
 *
 * A file also keeps which failures of flushes it has still to report (fuse_file_changed).
 *
 * Lock: table.lock guards refs, the free list, exports' `opens` and `removing`; a leaf.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_FUSE_FILE_H
#define BG_FUSE_FILE_H

#include <stdatomic.h>
#include <stdint.h>

#include "block/backend.h"
#include "util/lock.h"

typedef struct FuseExport FuseExport;
typedef struct FuseDirList FuseDirList;

typedef enum FuseFileKind {
    FUSE_FILE_EXPORT,
    FUSE_FILE_DATA, /* .graph/nodes/NODE/data, .snap/SNAPSHOT/EXPORT */
    FUSE_FILE_TEXT, /* text made at open */
    FUSE_FILE_DIR,
} FuseFileKind;

#define FUSE_FILES_PER_CHUNK 64
#define FUSE_FILE_CHUNKS_MAX 1024

typedef struct FuseFile {
    _Atomic uint64_t fh; /* 0: free or closing */
    uint64_t nodeid;
    FuseFileKind kind;
    bool writable;
    _Atomic(FuseExport *) exp;             /* NULL: not of an export, or it was removed */
    BlockBackend *blk;                     /* DATA: own */
    GBytes *text;                          /* TEXT: own */
    FuseDirList *list;                     /* DIR: what is being read; guarded by the table's lock; own */
    _Atomic BlockFlushError changed_since; /* before the first change that no fsync has covered; 0: none */
    _Atomic BlockFlushError told;          /* the newest failed flush that an fsync has reported */

    unsigned refs;
    uint32_t uses;      /* of the slot, for the handle */
    uint32_t number;    /* of the slot */
    uint32_t next_free; /* number + 1; 0: none */
} FuseFile;

typedef struct FuseFileTable {
    BgMutex lock;
    _Atomic(FuseFile *) chunks[FUSE_FILE_CHUNKS_MAX];
    unsigned n_chunks BG_GUARDED_BY(lock);
    uint32_t first_free BG_GUARDED_BY(lock); /* number + 1; 0: none */
} FuseFileTable;

void fuse_file_table_init(FuseFileTable *table);
/* No request runs any more. Frees text and lists. Backends must have been taken by
 * fuse_file_table_take_backend. */
void fuse_file_table_destroy(FuseFileTable *table);
/* The next backend of a file that is still open, taken out of it; NULL: none left. */
BlockBackend *fuse_file_table_take_backend(FuseFileTable *table);

/* Open files: takes over what `init` has (kind, nodeid, exp, blk, text). The handle; -ENFILE, -ESTALE (the
 * export is being removed), and nothing was taken. Any thread. */
int fuse_file_open(FuseFileTable *table, const FuseFile *init, uint64_t *fh);

/*
 * The file of a handle of the inode `nodeid`, NULL where there is none. Any thread. Without a reference: only
 * `kind`, `writable` and `exp` may be used, and only where kind is EXPORT.
 */
FuseFile *fuse_file_peek(FuseFileTable *table, uint64_t fh, uint64_t nodeid);
/* With a reference. */
FuseFile *fuse_file_get(FuseFileTable *table, uint64_t fh, uint64_t nodeid);
/* Drop a reference. With the last one the slot is free; *blk is set to a backend that the caller must free.
 */
void fuse_file_put(FuseFileTable *table, FuseFile *file, BlockBackend **blk);
/* RELEASE: the handle is void from now on. -EBADF: there is none. */
int fuse_file_release(FuseFileTable *table, uint64_t fh, uint64_t nodeid, BlockBackend **blk);

/* The list being read. get returns a reference, or NULL. */
FuseDirList *fuse_file_get_list(FuseFileTable *table, FuseFile *file);
void fuse_file_set_list(FuseFileTable *table, FuseFile *file, FuseDirList *list);

/*
 * Failed flushes, as with errseq_t in the kernel: each is reported once by every file that changed something
 * before it and was not synced since, whoever asked for the flush. `since` is block_graph_flush_errors from
 * before the change, or the fsync. Any thread.
 */
/* The file has changed its export, and nothing says yet that it is on stable storage. */
void fuse_file_changed(FuseFile *file, BlockFlushError since);
/* The same for every writable file of the export: it is not known which. */
void fuse_file_changed_some(FuseFileTable *table, FuseExport *exp, BlockFlushError since);
/* An fsync begins; what to hand to its end. */
BlockFlushError fuse_file_sync_begin(FuseFile *file);
/* It returned ret, with `newest` failed before. What to reply. */
int fuse_file_sync_end(FuseFile *file, BlockFlushError since, BlockFlushError newest, int ret);

/* Mark the export as being removed: -EBUSY where files are open, unless `force`; then they lose it. */
int fuse_file_detach_export(FuseFileTable *table, FuseExport *exp, bool force);

#endif /* BG_FUSE_FILE_H */
