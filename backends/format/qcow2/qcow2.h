/*
 * Driver qcow2: what its files share.
 *
 * A request looks up, under `lock`, where its bytes lie, and moves the bytes without any lock. An allocating
 * write takes new clusters, writes them, and only then links them into the L2 table. docs/qcow2.md says in
 * which order tables reach the file, and why a power cut leaves at worst leaked clusters.
 *
 * Lock order: large_window alone; sync_lock, lock. Functions named _locked are called with `lock` held; they
 * may yield.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_QCOW2_H
#define BG_QCOW2_H

#include <stdatomic.h>

#include "aio/aio.h"
#include "block/graph.h"
#include "block/io.h"
#include "block/snapshot.h"
#include "coroutine/lock.h"

/* ---- The format */

#define QCOW2_MAGIC                    0x514649fbu
#define QCOW2_INCOMPATIBLE_DIRTY       (UINT64_C(1) << 0)
#define QCOW2_INCOMPATIBLE_CORRUPT     (UINT64_C(1) << 1)
#define QCOW2_INCOMPATIBLE_DATA_FILE   (UINT64_C(1) << 2)
#define QCOW2_INCOMPATIBLE_COMPRESSION (UINT64_C(1) << 3)
#define QCOW2_INCOMPATIBLE_EXTENDED_L2 (UINT64_C(1) << 4)

#define QCOW2_AUTOCLEAR_BITMAPS  (UINT64_C(1) << 0) /* the directory of bitmaps is good */
#define QCOW2_AUTOCLEAR_DATA_RAW (UINT64_C(1) << 1) /* the data file alone reads as the guest does */

#define QCOW2_ENTRY_COPIED     (UINT64_C(1) << 63) /* L1 and L2: the refcount is exactly one */
#define QCOW2_ENTRY_COMPRESSED (UINT64_C(1) << 62)
#define QCOW2_ENTRY_ZERO       UINT64_C(1)
#define QCOW2_ENTRY_OFFSET     UINT64_C(0x00fffffffffffe00)

/* Limits, in bytes but for the last: what a hostile image may make us keep in memory. */
#define QCOW2_MAX_L1_BYTES             (INT64_C(32) << 20)
#define QCOW2_MAX_REFTABLE_BYTES       (INT64_C(8) << 20)
#define QCOW2_MAX_SNAPSHOT_TABLE_BYTES (INT64_C(16) << 20)
#define QCOW2_MAX_VIEW_BYTES           (INT64_C(32) << 20) /* L1 tables of snapshots that are read */
#define QCOW2_MAX_SNAPSHOTS            65536u
/* QEMU's, in block/qcow2.h: what it takes no bitmaps beyond. */
#define QCOW2_MAX_BITMAP_DIR_BYTES     (UINT64_C(65535) * 1024)
#define QCOW2_MAX_BITMAP_TABLE_ENTRIES (UINT32_C(1) << 27)

/* Offsets of header fields that are written after the image was opened. */
enum {
    QCOW2_HEADER_SIZE = 24,
    QCOW2_HEADER_L1_SIZE = 36,  /* 4 bytes, followed by the table's offset, 8 bytes */
    QCOW2_HEADER_REFTABLE = 48, /* 8 bytes offset, 4 bytes number of clusters */
    QCOW2_HEADER_INCOMPATIBLE = 72,
    QCOW2_HEADER_AUTOCLEAR = 88,
};

typedef enum Qcow2Compression { QCOW2_ZLIB, QCOW2_ZSTD } Qcow2Compression;

typedef struct Qcow2Header {
    uint32_t version;
    uint64_t backing_offset;
    uint32_t backing_length;
    uint32_t cluster_bits;
    uint64_t size;
    uint32_t encryption;
    uint32_t l1_size; /* entries */
    uint64_t l1_offset;
    uint64_t reftable_offset;
    uint32_t reftable_clusters;
    uint32_t snapshots;
    uint64_t snapshots_offset;
    uint64_t incompatible, compatible, autoclear;
    uint32_t refcount_order;
    uint32_t header_length;
    Qcow2Compression compression;
} Qcow2Header;

/* ---- Tables in memory */

/* One L2 table or refcount block, one cluster in size, big-endian as in the file. */
typedef struct Qcow2Table Qcow2Table;
struct Qcow2Table {
    uint64_t offset; /* in the file */
    uint8_t *data;
    bool dirty;
    int pins;
    uint64_t last_use; /* the cache's count of uses then */
    Qcow2Table *next_in_bucket;
    Qcow2Table *older, *newer; /* by use */
};

typedef struct Qcow2Cache {
    unsigned max_tables, n_tables, n_dirty;
    uint64_t uses, cleaned; /* so far; when it was cleaned last */
    unsigned n_buckets;     /* power of two */
    Qcow2Table **buckets;
    Qcow2Table *oldest, *newest;
    bool is_l2; /* L2 tables are written after refcounts and data; refcount blocks at any time */
} Qcow2Cache;

/* A table of 64-bit entries (host order here) that is wholly in memory: L1, refcount table. */
typedef struct Qcow2Directory {
    uint64_t *entries;
    uint32_t n;
    uint64_t offset;
    uint8_t *dirty; /* one per QCOW2_DIRECTORY_CHUNK entries */
    bool any_dirty;
} Qcow2Directory;
#define QCOW2_DIRECTORY_CHUNK 64u

/* Clusters to lose one reference. */
typedef struct Qcow2Range {
    uint64_t first, count; /* cluster numbers */
} Qcow2Range;

/* An allocating write, zeroing or discard under way in guest clusters [start, end). */
typedef struct Qcow2Busy Qcow2Busy;
struct Qcow2Busy {
    int64_t start, end;
    CoQueue waiters;
    Qcow2Busy *next;
};

typedef struct Qcow2Extent { /* bytes of the file that hold metadata */
    uint64_t offset, bytes;
} Qcow2Extent;

/* An entry of the snapshot table. */
typedef struct Qcow2Snapshot {
    uint8_t *raw; /* as in the file, with its padding */
    size_t raw_size;
    uint64_t l1_offset;
    uint32_t l1_size; /* entries */
    char *id, *name;
    int64_t date_ns;
    uint64_t vm_state_size;
    int64_t length;    /* of the disk, bytes; -1: as now (version 2) */
    unsigned views;    /* open for reading */
    Qcow2Directory l1; /* while there are any */
} Qcow2Snapshot;

typedef struct Qcow2State {
    /* -- constant after open */
    BlockNode *node;
    uint32_t version, cluster_bits, l2_bits, refcount_order;
    uint32_t refblock_bits; /* log2 of entries of a refcount block */
    int64_t cluster_size;
    bool extended;     /* 32 subclusters and a bitmap per L2 entry */
    uint32_t sub_bits; /* log2 of a subcluster's size; that of a cluster where not extended */
    uint32_t subs;     /* subclusters per cluster: 32, or 1 */
    Qcow2Compression compression;
    bool names_backing; /* the header does */
    /*
     * Where guest data lies: the file, or an external data file. There each cluster has its guest offset as
     * its place, without refcount, and data_raw says that the data file must read as the guest does.
     */
    BlockChild *data;
    bool external, data_raw;
    uint32_t n_bitmaps;
    Qcow2Extent bitmaps; /* their directory */

    /* -- main thread: cache-clean.c */
    AioTimer clean_timer;
    int64_t clean_interval_ns; /* 0: never */
    bool clean_paused;

    CoMutex large_window; /* held while a zstd window larger than a cluster is in use */
    CoMutex sync_lock;
    CoMutex lock; /* guards all below but what is atomic */
    Qcow2Directory l1, reftable;
    Qcow2Cache l2_cache, refcount_cache;
    uint64_t incompatible, autoclear;
    bool bitmaps_marked; /* as not to be relied upon */
    uint64_t free_hint;  /* no cluster below is free */
    uint64_t link_count; /* L2 entries set to new clusters, ever */
    Qcow2Busy *busy;
    uint64_t unpacking; /* bytes of memory for compressed clusters that are being read */
    CoQueue unpackers;  /* those that wait for some of it */
    uint8_t *overlap_filter;
    GPtrArray *snapshots;       /* Qcow2Snapshot, oldest first */
    Qcow2Extent snapshot_table; /* where they lie */
    uint64_t view_bytes;        /* L1 tables of snapshots that are read */
    GArray *snapshot_extents;   /* Qcow2Extent: that, and the snapshots' L1 tables */
    int64_t length; /* as the header has it; changed by truncate alone, of which there is one at a time */
    _Atomic bool corrupt; /* nothing may be written any more */

    /*
     * References that the tables in memory no longer hold, on their way to the refcounts:
     *   dropped   the tables without them are not stable in the file yet
     *   stable    they are, but requests that looked up before may still use the clusters
     *   draining  such requests are counted in io[!io_epoch], newer ones in io[io_epoch]
     */
    GArray *dropped, *stable, *draining; /* Qcow2Range */
    unsigned io_epoch;
    _Atomic unsigned io[2];
} Qcow2State;

/* ---- header.c */

/*
 * Parse and check `n` bytes from the start of a file of `file_length`. 0 or -errno and *errp. to_check: a
 * refcount table that is not in the file is taken for an empty one.
 */
int qcow2_header_parse(const uint8_t *buf, size_t n, int64_t file_length, const char *node_name,
                       bool to_check, Qcow2Header *h, GError **errp);
int coroutine_fn qcow2_header_write_locked(Qcow2State *s, unsigned field, const void *value, size_t n);
/* Write down that the image changes: bits of features that we do not keep up to date go. */
int coroutine_fn qcow2_begin_change_locked(Qcow2State *s);
/* The tables contradict themselves: mark the image, refuse to write to it from now on. Returns -EIO. */
int coroutine_fn qcow2_mark_corrupt_locked(Qcow2State *s, uint64_t offset, const char *what);

/* Nobody knows which of two tables the header points to: both are good as long as nothing is written any
 * more. Returns error. */
int qcow2_give_up_locked(Qcow2State *s, int error, const char *what);

/* The bits of autoclear that hold whatever we change. */
static inline uint64_t qcow2_autoclear_kept(const Qcow2State *s)
{
    return (s->data_raw ? QCOW2_AUTOCLEAR_DATA_RAW : 0) | (s->bitmaps_marked ? QCOW2_AUTOCLEAR_BITMAPS : 0);
}

/* ---- header-ext.c */
typedef struct Qcow2Extras { /* as the image has it; NULL where it has not */
    char *backing, *backing_format;
    char *data_file;
    uint32_t n_bitmaps;
    Qcow2Extent bitmaps; /* their directory */
} Qcow2Extras;

/* From the `n` bytes at the start of the file. Into *x, which is zeroed. False: an extension does not fit. */
bool qcow2_extras_read(const uint8_t *buf, size_t n, const Qcow2Header *h, Qcow2Extras *x);
void qcow2_extras_clear(Qcow2Extras *x);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Qcow2Extras, qcow2_extras_clear)

/* ---- bitmaps.c */
/* Before the first change; where it cannot be done, bitmaps_marked stays false. */
int coroutine_fn qcow2_bitmaps_mark_locked(Qcow2State *s);

/* ---- reference.c */
typedef struct Qcow2Reference {
    const char *key;    /* the option by which the graph can say it instead */
    const char *what;   /* "backing file" */
    const char *remedy; /* what the graph can say */
    const char *name;   /* in the image */
    bool format_needed;
    const char *format; /* in the image, or NULL */
    BlockChildRole role;
} Qcow2Reference;

/* Open what the image names where that lies below one of the directories (NULL: none). */
int coroutine_fn qcow2_open_reference(BlockNode *node, BlockOptions *opts, const Qcow2Reference *ref,
                                      char **directories, BlockChild **out, GError **errp);

/* ---- data-file.c */
/* Open the child `data-file` where the image needs it. */
int coroutine_fn qcow2_data_file_open(BlockNode *node, BlockOptions *opts, const Qcow2Extras *x,
                                      char **directories, GError **errp);
/* The image will be longer, or was cut: so shall the data file. */
int coroutine_fn qcow2_data_file_grow(Qcow2State *s, int64_t from, int64_t to);
void coroutine_fn qcow2_data_file_cut(Qcow2State *s, int64_t length);
/* Zero bytes in a raw data file say all; no entry changes. */
int coroutine_fn qcow2_data_file_zero_raw(Qcow2State *s, int64_t offset, int64_t bytes,
                                          BlockRequestFlags flags);
int64_t coroutine_fn qcow2_co_get_allocated(BlockNode *node);

/* ---- directory.c */
int coroutine_fn qcow2_directory_read(Qcow2State *s, Qcow2Directory *d, uint64_t offset, uint32_t n);
/* An empty one in memory alone. False: no memory. */
bool qcow2_directory_new(Qcow2Directory *d, uint64_t offset, uint32_t n);
void qcow2_directory_free(Qcow2Directory *d);
void qcow2_directory_set(Qcow2Directory *d, uint32_t i, uint64_t value);
int coroutine_fn qcow2_directory_write_dirty_locked(Qcow2State *s, Qcow2Directory *d);
/* Write a copy of the first d->n entries at a new place, zero bytes up to n; it becomes the table in memory.
 */
int coroutine_fn qcow2_directory_move_locked(Qcow2State *s, Qcow2Directory *d, uint64_t offset, uint32_t n);

/* ---- cache.c */
void qcow2_cache_init(Qcow2Cache *c, unsigned max_tables, bool is_l2);
void qcow2_cache_free(Qcow2Cache *c);
/* The table at offset, pinned. 0 or -errno. */
int coroutine_fn qcow2_cache_get_locked(Qcow2State *s, Qcow2Cache *c, uint64_t offset, Qcow2Table **out);
/* A new one there, zeroed, dirty, pinned. */
int coroutine_fn qcow2_cache_new_locked(Qcow2State *s, Qcow2Cache *c, uint64_t offset, Qcow2Table **out);
/* The table at `from` lies at `to` from now on. Nothing where it is not in the cache. */
void qcow2_cache_move(Qcow2Cache *c, uint64_t from, uint64_t to);
/* The table at offset where it is in the cache, else NULL; not pinned. */
Qcow2Table *qcow2_cache_peek(Qcow2Cache *c, uint64_t offset);
/* Forget all tables, written or not; none is pinned. */
void qcow2_cache_clear(Qcow2Cache *c);
void qcow2_cache_put(Qcow2Table *t);
/* Forget clean tables without a use since the last call. */
void qcow2_cache_clean(Qcow2Cache *c);
void qcow2_cache_dirty(Qcow2Cache *c, Qcow2Table *t);
/* Forget the table: its cluster is not a table any more. */
void qcow2_cache_forget(Qcow2Cache *c, uint64_t offset);
int coroutine_fn qcow2_cache_write_dirty_locked(Qcow2State *s, Qcow2Cache *c);

/* ---- cache-clean.c. Main thread. */
void qcow2_clean_start(Qcow2State *s);
void qcow2_clean_stop(Qcow2State *s);
void qcow2_drain_begin(BlockNode *node);
void qcow2_drain_end(BlockNode *node);

/* ---- options.c */
int qcow2_options_read(Qcow2State *s, BlockOptions *opts, GError **errp);

/* ---- refcount.c, refcount-grow.c */
uint64_t qcow2_refcount_load(const uint8_t *block, uint32_t order, uint64_t i);
void qcow2_refcount_store(uint8_t *block, uint32_t order, uint64_t i, uint64_t value);
int coroutine_fn qcow2_refcount_get_locked(Qcow2State *s, uint64_t cluster, uint64_t *out);
/* Take n clusters in a row; their refcounts become 1. *offset: in the file. */
int coroutine_fn qcow2_alloc_locked(Qcow2State *s, uint64_t n, uint64_t *offset);
/* One reference less on each. *freed, where not NULL: Qcow2Range of those without any left. */
int coroutine_fn qcow2_unref_locked(Qcow2State *s, uint64_t first, uint64_t count, GArray *freed);
/* Append a cluster to an array of Qcow2Range. */
void qcow2_range_add(GArray *ranges, uint64_t cluster);
int coroutine_fn qcow2_reftable_grow_locked(Qcow2State *s, uint64_t min_entries);

/* ---- release.c */
unsigned qcow2_io_enter_locked(Qcow2State *s);
void qcow2_io_leave(Qcow2State *s, unsigned epoch);
/* No table in memory refers to these bytes of the file any more. */
void qcow2_drop_locked(Qcow2State *s, uint64_t offset, uint64_t bytes);
/* Enough was dropped that somebody should call qcow2_sync. */
bool qcow2_should_sync(Qcow2State *s);
int coroutine_fn qcow2_release_locked(Qcow2State *s);

/* ---- sync.c */
int coroutine_fn qcow2_file_flush(Qcow2State *s);
/* Guest data, and the file. */
int coroutine_fn qcow2_data_flush(Qcow2State *s);
int coroutine_fn qcow2_write_refcounts_locked(Qcow2State *s);
int coroutine_fn qcow2_write_l2_locked(Qcow2State *s);
int coroutine_fn qcow2_sync(Qcow2State *s);
int coroutine_fn qcow2_co_flush(BlockNode *node);

/* ---- overlap.c */
typedef enum Qcow2Class {
    QCOW2_CLASS_DATA,
    QCOW2_CLASS_L1,
    QCOW2_CLASS_L2,
    QCOW2_CLASS_REFTABLE,
    QCOW2_CLASS_REFBLOCK,
} Qcow2Class;
void qcow2_overlap_init(Qcow2State *s);
void qcow2_overlap_add(Qcow2State *s, uint64_t offset);
/* 0, or -EIO and the image marked corrupt, where a write of that class would hit another's metadata. */
int coroutine_fn qcow2_overlap_check_locked(Qcow2State *s, Qcow2Class class, uint64_t offset, uint64_t bytes);

/* ---- snapshot-table.c */
int coroutine_fn qcow2_snapshot_table_read(Qcow2State *s, const Qcow2Header *h, GError **errp);
/* An entry for the current content. */
Qcow2Snapshot *qcow2_snapshot_new(Qcow2State *s, const char *name, int64_t date_ns);
void qcow2_snapshot_free(Qcow2Snapshot *snapshot);
/* NULL: there is none. Main thread, where they change. */
Qcow2Snapshot *qcow2_snapshot_find(Qcow2State *s, const char *name);
/* What no write may hit. After every change of the table. */
void qcow2_snapshot_extents_update(Qcow2State *s);

/* ---- snapshot.c */
extern const BlockSnapshotOps qcow2_snapshot_ops;

/* ---- shadow.c: refcounts as they are to be, beside those that are */
typedef struct Qcow2Shadow {
    uint32_t n;       /* blocks */
    uint8_t **blocks; /* NULL: there is none */
    GArray *freed;    /* Qcow2Range: clusters that lost their last reference */
} Qcow2Shadow;

int coroutine_fn qcow2_shadow_load_locked(Qcow2State *s, Qcow2Shadow *shadow, GError **errp);
void qcow2_shadow_free(Qcow2Shadow *shadow);
uint64_t qcow2_shadow_get(const Qcow2State *s, const Qcow2Shadow *shadow, uint64_t cluster);
/* Change the counts of the clusters that the bytes touch by +1 or -1. -EIO: a count that cannot be; -ERANGE:
 * more than refcounts of this width can count. */
int qcow2_shadow_add(Qcow2State *s, Qcow2Shadow *shadow, uint64_t offset, uint64_t bytes, int delta);
/* The same for all that the L1 table refers to: L2 tables, and what those refer to. */
int coroutine_fn qcow2_shadow_add_tree_locked(Qcow2State *s, Qcow2Shadow *shadow, const Qcow2Directory *l1,
                                              int delta);

/* ---- transition.c: from one set of tables to another by one write of the header */
typedef struct Qcow2Transition Qcow2Transition;

/* The node is drained. Nothing that the header reaches changes before the commit. */
int coroutine_fn qcow2_transition_prepare(Qcow2State *s, const BlockSnapshotChange *change,
                                          Qcow2Transition **out, GError **errp);
int coroutine_fn qcow2_transition_commit(Qcow2State *s, Qcow2Transition *t, GError **errp);
void coroutine_fn qcow2_transition_abort(Qcow2State *s, Qcow2Transition *t);

/* ---- cluster.c */
typedef enum Qcow2Type {
    QCOW2_UNALLOCATED,
    QCOW2_NORMAL,
    QCOW2_ZERO,
    QCOW2_COMPRESSED,
    QCOW2_INVALID,
} Qcow2Type;

typedef struct Qcow2Mapping {
    Qcow2Type type;
    uint64_t host;  /* NORMAL: where the first byte lies in the file */
    uint64_t entry; /* the L2 entry of the first byte */
    int64_t bytes;  /* all of one type, and in a row in the file */
} Qcow2Mapping;

typedef struct Qcow2L2Entry {
    uint64_t entry, bitmap;
} Qcow2L2Entry;

Qcow2L2Entry qcow2_l2_load(const Qcow2State *s, const Qcow2Table *t, uint32_t i);
void qcow2_l2_store(Qcow2State *s, Qcow2Table *t, uint32_t i, Qcow2L2Entry e);
/* Whether it says where a cluster lies, in use or not. */
static inline bool qcow2_entry_has_place(const Qcow2State *s, uint64_t entry)
{
    return entry & (s->external ? QCOW2_ENTRY_OFFSET | QCOW2_ENTRY_COPIED : QCOW2_ENTRY_OFFSET);
}

Qcow2Type qcow2_l2_type(const Qcow2State *s, Qcow2L2Entry e, uint32_t sub);
/* Where compressed data lies. */
Qcow2Extent qcow2_compressed_extent(const Qcow2State *s, uint64_t entry);
/* Type and place of a prefix of the range, by the current tables or by those of an L1 table. */
int coroutine_fn qcow2_lookup_locked(Qcow2State *s, int64_t offset, int64_t bytes, Qcow2Mapping *m);
int coroutine_fn qcow2_lookup_in_locked(Qcow2State *s, const Qcow2Directory *l1, int64_t offset,
                                        int64_t bytes, Qcow2Mapping *m);
/* The L2 table of a guest offset, pinned, for changing it: made, or made our own, where necessary. */
int coroutine_fn qcow2_l2_writable_locked(Qcow2State *s, int64_t offset, Qcow2Table **out);
/* Drop what the entry refers to. */
void qcow2_drop_entry_locked(Qcow2State *s, uint64_t entry);

static inline uint32_t qcow2_l2_index(const Qcow2State *s, int64_t offset)
{
    return (uint32_t)(offset >> s->cluster_bits) & ((1u << s->l2_bits) - 1);
}

static inline int64_t qcow2_cluster_start(const Qcow2State *s, int64_t offset)
{
    return offset & ~(s->cluster_size - 1);
}

static inline int64_t qcow2_cluster_end(const Qcow2State *s, int64_t end)
{
    return (end + s->cluster_size - 1) & ~(s->cluster_size - 1);
}

/* ---- busy.c */
/* Wait until nobody works on the clusters of [offset, offset + bytes); bytes shrinks to what is free at once.
 */
void coroutine_fn qcow2_busy_wait_locked(Qcow2State *s, int64_t offset, int64_t *bytes);
void qcow2_busy_begin_locked(Qcow2State *s, Qcow2Busy *b, int64_t start, int64_t end);
void qcow2_busy_end_locked(Qcow2State *s, Qcow2Busy *b);

/* ---- resize.c, shrink.c */
/* L1 entries for an image of `length` bytes. */
uint64_t qcow2_l1_entries(const Qcow2State *s, int64_t length);
/* Write all tables, then the length, to stable storage. */
int coroutine_fn qcow2_write_length(Qcow2State *s, int64_t length);
int coroutine_fn qcow2_shrink(Qcow2State *s, int64_t length);
int coroutine_fn qcow2_co_truncate(BlockNode *node, int64_t length, GError **errp);

/* ---- read.c, compress.c, write.c, zero.c, status.c */
int coroutine_fn qcow2_co_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                 size_t qiov_offset, BlockRequestFlags flags);
int coroutine_fn qcow2_read_range(Qcow2State *s, const Qcow2Directory *l1, int64_t offset, int64_t bytes,
                                  const IoVector *qiov, size_t qiov_offset);
/* Guest bytes for copy-on-write: zeroes from the end of the node on. */
int coroutine_fn qcow2_read_source(Qcow2State *s, int64_t offset, int64_t bytes, uint8_t *buf);
/* 0 or -EIO; in the calling thread. */
int qcow2_decompress(Qcow2Compression type, const uint8_t *in, size_t n_in, uint8_t *out, size_t n_out);
int coroutine_fn qcow2_read_compressed(Qcow2State *s, uint64_t entry, int64_t in_cluster, int64_t bytes,
                                       const IoVector *qiov, size_t qiov_offset);
int coroutine_fn qcow2_co_pwritev(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                  size_t qiov_offset, BlockRequestFlags flags);
int coroutine_fn qcow2_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                        BlockRequestFlags flags);
/* Write zero bytes, through the driver's own writing. */
int coroutine_fn qcow2_write_zero_bytes(BlockNode *node, int64_t offset, int64_t end);
int coroutine_fn qcow2_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes);
int coroutine_fn qcow2_block_status_in(Qcow2State *s, const Qcow2Directory *l1, int64_t offset, int64_t bytes,
                                       int64_t *pnum, BlockChild **child, int64_t *child_offset);
int coroutine_fn qcow2_co_block_status(BlockNode *node, int64_t offset, int64_t bytes, int64_t *pnum,
                                       BlockChild **child, int64_t *child_offset);

/* ---- check.c */
int coroutine_fn qcow2_co_check(BlockNode *node, BlockCheckFix fix, const BlockCheckListener *listener,
                                BlockCheckResult *result, GError **errp);

/* ---- create.c */
int coroutine_fn qcow2_co_create(BlockGraph *graph, BlockOptions *opts, BlockCreateFlags flags,
                                 GError **errp);

/* ---- Big-endian numbers at any address */

static inline uint32_t qcow2_load32(const void *p)
{
    uint32_t v;
    __builtin_memcpy(&v, p, sizeof v);
    return GUINT32_FROM_BE(v);
}

static inline uint64_t qcow2_load64(const void *p)
{
    uint64_t v;
    __builtin_memcpy(&v, p, sizeof v);
    return GUINT64_FROM_BE(v);
}

static inline void qcow2_store32(void *p, uint32_t v)
{
    v = GUINT32_TO_BE(v);
    __builtin_memcpy(p, &v, sizeof v);
}

static inline void qcow2_store64(void *p, uint64_t v)
{
    v = GUINT64_TO_BE(v);
    __builtin_memcpy(p, &v, sizeof v);
}

#endif /* BG_QCOW2_H */
