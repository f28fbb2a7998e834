/*
 * qcow2: what the files of the check share. check.c says what is done in which order.
 *
 * All in the main thread, in one coroutine, while nobody else uses the node: no locks.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_QCOW2_CHECK_H
#define BG_QCOW2_CHECK_H

#include "backends/format/qcow2/qcow2.h"
#include "block/check.h"

/* ---- Counters of clusters: check-counts.c */

#define QCOW2_COUNTS_PER_PAGE 64u

/*
 * Counters for the clusters [lo, hi), in pages that exist where something was counted. Where they would take
 * more than `max_pages`, hi falls, and the rest is left to another pass with lo = hi. hi is UINT64_MAX where
 * nothing was left out.
 */
typedef struct Qcow2Counts {
    GHashTable *pages; /* Qcow2CountPage by number */
    unsigned max_pages;
    uint64_t lo, hi;
} Qcow2Counts;

typedef struct Qcow2CountPage {
    uint64_t number; /* of its first cluster / QCOW2_COUNTS_PER_PAGE */
    uint32_t counts[QCOW2_COUNTS_PER_PAGE];
} Qcow2CountPage;

void qcow2_counts_init(Qcow2Counts *c, size_t max_bytes);
void qcow2_counts_free(Qcow2Counts *c);
/* Forget all; count from cluster lo on. */
void qcow2_counts_begin(Qcow2Counts *c, uint64_t lo);
void qcow2_counts_add(Qcow2Counts *c, uint64_t first, uint64_t n, uint32_t times);
uint32_t qcow2_counts_get(const Qcow2Counts *c, uint64_t cluster);
/* The counter, which becomes 0. */
uint32_t qcow2_counts_take(Qcow2Counts *c, uint64_t cluster);
/* The page of the cluster, NULL where nothing was counted. */
const Qcow2CountPage *qcow2_counts_page(const Qcow2Counts *c, uint64_t cluster);
/* All pages by rising number. Free the array. */
GPtrArray *qcow2_counts_sorted(const Qcow2Counts *c);

/* ---- The check */

typedef struct Qcow2L1 {
    uint64_t offset;
    uint32_t n;     /* entries */
    uint32_t times; /* tables that lie there */
    bool active;
} Qcow2L1;

typedef struct Qcow2Check {
    Qcow2State *s;
    const BlockCheckListener *listener;
    BlockCheckResult *result;
    unsigned lines; /* told to the listener */

    uint64_t n_clusters;     /* of the file, the last may be cut short */
    GArray *l1s;             /* Qcow2L1, the active one first */
    Qcow2Counts refs;        /* references to clusters */
    Qcow2Counts tables;      /* references from L1 tables to L2 tables */
    uint8_t *l2, *block;     /* room for one cluster each */
    bool l2_empty;           /* the L2 table is a hole */
    uint64_t l2_index;       /* of the L1 entry that it was found by */
    uint64_t hole, hole_end; /* bytes of the file that are known to read as zeroes */

    bool tell;                     /* this pass reports what is wrong with entries */
    bool skip_refcounts;           /* count nothing for the refcount table and its blocks */
    uint64_t extra_first, extra_n; /* clusters to count besides: a new refcount structure */
    uint64_t next_contiguous;      /* for fragmented_clusters */

    bool bad_entries;    /* some lead nowhere: what they meant is not known, so nothing is freed */
    bool rebuild;        /* refcount blocks are missing or cannot be used */
    uint8_t *bad_blocks; /* one a reftable entry */
    uint64_t refcount_corruptions;
    unsigned pass, n_passes;
    uint64_t l1_done, l1_total; /* entries, for the progress */
} Qcow2Check;

/* check.c */
void qcow2_check_problem(Qcow2Check *c, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* The same, and it counts as a corruption. */
void qcow2_check_corrupt(Qcow2Check *c, const char *format, ...) G_GNUC_PRINTF(2, 3);
void qcow2_check_progress(Qcow2Check *c);
/* Whether `bytes` at `offset` do not begin, or reach, beyond the file's last cluster. */
bool qcow2_check_in_file(const Qcow2Check *c, uint64_t offset, uint64_t bytes);

/* check-walk.c */
/* Find the L1 tables. */
void qcow2_check_find_l1s(Qcow2Check *c);
/* One cluster of the file, zeroes behind its end. 1: it is a hole, and buf is zeroed; 0 or -errno. */
int coroutine_fn qcow2_check_read_cluster(Qcow2Check *c, uint64_t offset, uint8_t *buf);
/* Write a whole cluster. */
int coroutine_fn qcow2_check_write_cluster(Qcow2Check *c, uint64_t offset, const uint8_t *buf);
/* How many of n entries of 8 bytes from there on lie in a hole of the file. */
uint32_t coroutine_fn qcow2_check_empty_entries(Qcow2Check *c, uint64_t offset, uint32_t n);
typedef struct Qcow2Visit {
    /* An L1 entry; at: where in the file. NULL: not needed. */
    int coroutine_fn (*l1_entry)(Qcow2Check *c, const Qcow2L1 *l1, uint32_t i, uint64_t entry);
    /* An L2 table, read to c->l2, to which `times` L1 entries refer. Each comes once. */
    int coroutine_fn (*l2_table)(Qcow2Check *c, uint64_t offset, uint32_t times, bool active);
    bool only_active;
} Qcow2Visit;
int coroutine_fn qcow2_check_walk(Qcow2Check *c, const Qcow2Visit *v);
/* Whether an L1 entry leads to a table. */
bool qcow2_check_l1_usable(const Qcow2Check *c, uint64_t entry);

/* check-refs.c: count all references to the clusters from c->refs.lo on. */
int coroutine_fn qcow2_check_count(Qcow2Check *c, uint64_t lo);

/* check-compare.c: refcounts against references, in all windows; repair in place what `fix` says. */
int coroutine_fn qcow2_check_compare(Qcow2Check *c, BlockCheckFix fix);
uint64_t qcow2_check_max_refcount(const Qcow2State *s);

/* check-rebuild.c: a new refcount table and new blocks. 0 or -errno and *errp. */
int coroutine_fn qcow2_check_rebuild(Qcow2Check *c, GError **errp);

/* check-copied.c: COPIED flags against refcounts. */
int coroutine_fn qcow2_check_copied(Qcow2Check *c, bool fix);

#endif /* BG_QCOW2_CHECK_H */
