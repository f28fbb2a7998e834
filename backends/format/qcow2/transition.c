/*
 * qcow2: from one set of tables to another by one write of the header.
 *
 * Creating, deleting and reverting to a snapshot each change refcounts and COPIED flags all over the image,
 * which contradict each other at every moment in between. So nothing is changed in place: new copies of all
 * tables that change are written to free clusters, and the header, whose fields for them lie in one sector,
 * is pointed to them at once.
 *
 *   prepare   tables in memory written out; clusters taken for the copies; counts changed in a copy of the
 *             refcount blocks (shadow.c); copies written; flush
 *   commit    header; flush; the copies become the tables in memory; what they do not use any more is free
 *   abort     the clusters of the copies are given back
 *
 * A cut before the header's write leaves the old tables, with nothing or leaked clusters beside them; a cut
 * after it leaves the new ones.
 *
 *   the new L1 table  comes from the current one (create, delete), or that of the snapshot (revert)
 *   references        create: + all of the current tree, once more by the snapshot, which keeps the old L1
 *                     delete: - all of the snapshot's tree, and its L1 table
 *                     revert: + all of the snapshot's tree, - all of the current one, and its L1 table
 *                     always: - old refcount table and blocks, old snapshot table
 *
 * An L2 table whose COPIED flags become wrong, or that is shared and would have to change, is copied.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/format/qcow2/qcow2.h"
#include "util/error.h"

/* L1 tables that one change holds besides the current one, in bytes. */
#define MAX_L1_BYTES (UINT64_C(8) << 20)
/* Copies are written in pieces of about this size, in bytes. */
#define WRITE_PIECE  ((size_t)1 << 20)

typedef struct L2Move {
    uint64_t from, to; /* offsets in the file */
} L2Move;

struct Qcow2Transition {
    BlockSnapshotAction action;
    Qcow2Snapshot *subject; /* CREATE: new, owned until the commit; else one of the table */
    Qcow2Directory source;  /* the L1 table that the new one comes from; entries change as L2 tables move */
    Qcow2Shadow shadow;
    GArray *moves; /* L2Move */
    int64_t length;

    uint64_t first, n; /* the clusters taken */
    uint64_t reftable_offset, l1_offset;
    uint64_t *reftable; /* new entries, host order */
    Qcow2Extent table;  /* the new snapshot table */

    /* The copies, written one after the other from `first` on. */
    uint8_t *buf;
    size_t used, size;
    uint64_t at; /* offset in the file of buf */
};

static void transition_free(Qcow2Transition *t)
{
    qcow2_directory_free(&t->source);
    qcow2_shadow_free(&t->shadow);
    g_array_unref(t->moves);
    g_free(t->reftable);
    free(t->buf);
    g_free(t);
}

static uint64_t clusters_of(const Qcow2State *s, uint64_t bytes)
{
    return (bytes + (uint64_t)s->cluster_size - 1) >> s->cluster_bits;
}

/* ---- Writing copies */

static int coroutine_fn writer_flush(Qcow2State *s, Qcow2Transition *t)
{
    int ret = t->used ? block_child_co_pwrite(s->node->file, (int64_t)t->at, (int64_t)t->used, t->buf, 0) : 0;
    t->at += t->used;
    t->used = 0;
    return ret;
}

/* Append bytes, and zeroes to the end of the cluster. *offset: where they lie. */
static int coroutine_fn writer_put(Qcow2State *s, Qcow2Transition *t, const void *data, uint64_t bytes,
                                   uint64_t *offset)
{
    *offset = t->at + t->used;
    for (uint64_t done = 0; done < bytes; done += (uint64_t)s->cluster_size) {
        size_t n = (size_t)MIN(bytes - done, (uint64_t)s->cluster_size);
        int ret = t->used == t->size ? writer_flush(s, t) : 0;
        if (ret < 0) {
            return ret;
        }
        memcpy(t->buf + t->used, (const uint8_t *)data + done, n);
        memset(t->buf + t->used + n, 0, (size_t)s->cluster_size - n);
        t->used += (size_t)s->cluster_size;
    }
    return 0;
}

static uint64_t writer_next_cluster(const Qcow2State *s, const Qcow2Transition *t)
{
    return (t->at + t->used) >> s->cluster_bits;
}

/* Entries of a table of tables, big-endian. g_free. */
static uint64_t *to_big_endian(const uint64_t *entries, uint32_t n)
{
    uint64_t *out = g_new(uint64_t, MAX(n, 1));
    for (uint32_t i = 0; i < n; i++) {
        out[i] = GUINT64_TO_BE(entries[i]);
    }
    return out;
}

/* ---- Taking clusters */

static GPtrArray *new_snapshots(const Qcow2State *s, const Qcow2Transition *t)
{
    GPtrArray *list = g_ptr_array_new();
    for (guint i = 0; i < s->snapshots->len; i++) {
        if (t->action != BLOCK_SNAPSHOT_DELETE || s->snapshots->pdata[i] != t->subject) {
            g_ptr_array_add(list, s->snapshots->pdata[i]);
        }
    }
    if (t->action == BLOCK_SNAPSHOT_CREATE) {
        g_ptr_array_add(list, t->subject);
    }
    return list;
}

static uint64_t table_bytes(const GPtrArray *snapshots)
{
    uint64_t bytes = 0;
    for (guint i = 0; i < snapshots->len; i++) {
        bytes += ((const Qcow2Snapshot *)snapshots->pdata[i])->raw_size;
    }
    return bytes;
}

/* The most that the copies can take. */
static uint64_t clusters_needed(const Qcow2State *s, const Qcow2Transition *t, uint64_t snapshot_bytes)
{
    uint64_t n = clusters_of(s, t->source.n * UINT64_C(8)) + clusters_of(s, s->reftable.n * UINT64_C(8)) +
                 clusters_of(s, snapshot_bytes);
    for (uint32_t i = 0; i < t->source.n; i++) {
        n += t->source.entries[i] != 0;
    }
    for (uint32_t i = 0; i < s->reftable.n; i++) {
        n += s->reftable.entries[i] != 0;
    }
    return n;
}

/* Taking clusters can make refcount blocks, which are copied as well: then more are taken. */
static int coroutine_fn take_clusters_locked(Qcow2State *s, Qcow2Transition *t)
{
    g_autoptr(GPtrArray) snapshots = new_snapshots(s, t);
    uint64_t bytes = table_bytes(snapshots);
    for (;;) {
        uint64_t offset, n = clusters_needed(s, t, bytes);
        int ret = qcow2_alloc_locked(s, n, &offset);
        if (ret < 0) {
            return ret;
        }
        t->first = offset >> s->cluster_bits;
        t->n = n;
        t->at = offset;
        if (clusters_needed(s, t, bytes) <= n) {
            return 0;
        }
        ret = qcow2_unref_locked(s, t->first, n, NULL);
        if (ret < 0) {
            return ret;
        }
    }
}

/* ---- Counts */

static int coroutine_fn count_subject_locked(Qcow2State *s, Qcow2Transition *t, const Qcow2Directory *subject)
{
    uint64_t l1_bytes = t->subject->l1_size * UINT64_C(8);
    switch (t->action) {
    case BLOCK_SNAPSHOT_CREATE:
        return qcow2_shadow_add_tree_locked(s, &t->shadow, &s->l1, 1);
    case BLOCK_SNAPSHOT_DELETE: {
        int ret = qcow2_shadow_add_tree_locked(s, &t->shadow, subject, -1);
        ret = ret < 0 ? ret : qcow2_shadow_add(s, &t->shadow, t->subject->l1_offset, l1_bytes, -1);
        return ret < 0 ? ret : qcow2_shadow_add(s, &t->shadow, s->l1.offset, s->l1.n * UINT64_C(8), -1);
    }
    case BLOCK_SNAPSHOT_REVERT: {
        int ret = qcow2_shadow_add_tree_locked(s, &t->shadow, &t->source, 1);
        ret = ret < 0 ? ret : qcow2_shadow_add_tree_locked(s, &t->shadow, &s->l1, -1);
        return ret < 0 ? ret : qcow2_shadow_add(s, &t->shadow, s->l1.offset, s->l1.n * UINT64_C(8), -1);
    }
    }
    return -EINVAL;
}

static int count_old_tables_locked(Qcow2State *s, Qcow2Transition *t)
{
    int ret = qcow2_shadow_add(s, &t->shadow, s->snapshot_table.offset, s->snapshot_table.bytes, -1);
    if (ret == 0) {
        ret = qcow2_shadow_add(s, &t->shadow, s->reftable.offset, s->reftable.n * UINT64_C(8), -1);
    }
    for (uint32_t i = 0; i < s->reftable.n && ret == 0; i++) {
        uint64_t offset = s->reftable.entries[i] & ~UINT64_C(511);
        ret = offset ? qcow2_shadow_add(s, &t->shadow, offset, 1, -1) : 0;
    }
    return ret;
}

/* ---- L2 tables */

/* The entry with the COPIED flag that its count asks for. */
static uint64_t flagged(const Qcow2State *s, const Qcow2Transition *t, uint64_t entry)
{
    if ((entry & QCOW2_ENTRY_COMPRESSED) || !(entry & QCOW2_ENTRY_OFFSET)) {
        return entry;
    }
    uint64_t count = qcow2_shadow_get(s, &t->shadow, (entry & QCOW2_ENTRY_OFFSET) >> s->cluster_bits);
    return (entry & ~QCOW2_ENTRY_COPIED) | (count == 1 ? QCOW2_ENTRY_COPIED : 0);
}

/* Set the flags of a table's entries; whether any changed. */
static bool set_flags(const Qcow2State *s, const Qcow2Transition *t, uint8_t *table)
{
    uint32_t stride = s->extended ? 16 : 8;
    bool changed = false;
    for (uint32_t i = 0; i < 1u << s->l2_bits; i++) {
        uint64_t old = qcow2_load64(table + i * stride), new = flagged(s, t, old);
        if (new != old) {
            qcow2_store64(table + i * stride, new);
            changed = true;
        }
    }
    return changed;
}

/* Copy the L2 table of entry i where its flags change. */
static int coroutine_fn copy_l2_locked(Qcow2State *s, Qcow2Transition *t, uint32_t i, uint8_t *scratch)
{
    uint64_t from = t->source.entries[i] & QCOW2_ENTRY_OFFSET;
    Qcow2Table *table;
    int ret = qcow2_cache_get_locked(s, &s->l2_cache, from, &table);
    if (ret < 0) {
        return ret;
    }
    memcpy(scratch, table->data, (size_t)s->cluster_size);
    qcow2_cache_put(table);
    if (!set_flags(s, t, scratch)) {
        return 0;
    }
    L2Move move = {.from = from};
    ret = writer_put(s, t, scratch, (uint64_t)s->cluster_size, &move.to);
    ret = ret < 0 ? ret : qcow2_shadow_add(s, &t->shadow, from, 1, -1);
    if (ret == 0) {
        t->source.entries[i] = move.to;
        g_array_append_val(t->moves, move);
    }
    return ret;
}

static int coroutine_fn copy_l2_tables_locked(Qcow2State *s, Qcow2Transition *t)
{
    g_autofree uint8_t *scratch = g_malloc((size_t)s->cluster_size);
    int ret = 0;
    for (uint32_t i = 0; i < t->source.n && ret == 0; i++) {
        ret = t->source.entries[i] ? copy_l2_locked(s, t, i, scratch) : 0;
    }
    for (uint32_t i = 0; i < t->source.n && ret == 0; i++) {
        t->source.entries[i] = flagged(s, t, t->source.entries[i] & QCOW2_ENTRY_OFFSET);
    }
    return ret;
}

/* ---- The other tables */

/* In place, and back again: it may be large. */
static int coroutine_fn copy_l1(Qcow2State *s, Qcow2Transition *t)
{
    uint64_t *entries = t->source.entries;
    for (uint32_t i = 0; i < t->source.n; i++) {
        entries[i] = GUINT64_TO_BE(entries[i]);
    }
    int ret = writer_put(s, t, entries, t->source.n * UINT64_C(8), &t->l1_offset);
    for (uint32_t i = 0; i < t->source.n; i++) {
        entries[i] = GUINT64_FROM_BE(entries[i]);
    }
    return ret;
}

static int coroutine_fn write_snapshot_table(Qcow2State *s, Qcow2Transition *t)
{
    g_autoptr(GPtrArray) snapshots = new_snapshots(s, t);
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    for (guint i = 0; i < snapshots->len; i++) {
        const Qcow2Snapshot *p = snapshots->pdata[i];
        g_byte_array_append(bytes, p->raw, (guint)p->raw_size);
    }
    if (bytes->len > (uint64_t)QCOW2_MAX_SNAPSHOT_TABLE_BYTES || snapshots->len > QCOW2_MAX_SNAPSHOTS) {
        return -EFBIG;
    }
    t->table.bytes = bytes->len;
    int ret = writer_put(s, t, bytes->data, bytes->len, &t->table.offset);
    if (!bytes->len) {
        t->table.offset = 0;
    }
    return ret;
}

/* Last: no count changes any more but those of the clusters that are left over. */
static int coroutine_fn copy_refcounts(Qcow2State *s, Qcow2Transition *t)
{
    uint64_t blocks = 0, reftable_bytes = t->shadow.n * UINT64_C(8);
    for (uint32_t i = 0; i < t->shadow.n; i++) {
        blocks += t->shadow.blocks[i] != NULL;
    }
    uint64_t end = writer_next_cluster(s, t) + blocks + clusters_of(s, reftable_bytes);
    g_assert(end <= t->first + t->n);
    int ret = qcow2_shadow_add(s, &t->shadow, end << s->cluster_bits,
                               (t->first + t->n - end) << s->cluster_bits, -1);
    t->reftable = g_new0(uint64_t, t->shadow.n);
    for (uint32_t i = 0; i < t->shadow.n && ret == 0; i++) {
        if (t->shadow.blocks[i]) {
            ret = writer_put(s, t, t->shadow.blocks[i], (uint64_t)s->cluster_size, &t->reftable[i]);
        }
    }
    g_autofree uint64_t *be = to_big_endian(t->reftable, t->shadow.n);
    return ret < 0 ? ret : writer_put(s, t, be, reftable_bytes, &t->reftable_offset);
}

/* ---- Prepare */

static int explain(Qcow2State *s, const Qcow2Transition *t, int ret, GError **errp)
{
    static const char *const verbs[] = {"creating", "deleting", "reverting to"};
    if (ret == -ERANGE) {
        return bg_error_set(errp, EOPNOTSUPP, "node '%s': refcounts of %u bits cannot count another snapshot",
                            s->node->name, 1u << s->refcount_order);
    }
    if (ret == -EFBIG) {
        return bg_error_set(errp, EFBIG, "node '%s': %s a qcow2 snapshot: the tables are too large",
                            s->node->name, verbs[t->action]);
    }
    return bg_error_set_errno(errp, -ret, "node '%s': %s a qcow2 snapshot", s->node->name, verbs[t->action]);
}

static int coroutine_fn prepare_locked(Qcow2State *s, Qcow2Transition *t, const Qcow2Directory *subject)
{
    int ret = count_subject_locked(s, t, subject);
    ret = ret < 0 ? ret : count_old_tables_locked(s, t);
    ret = ret < 0 ? ret : copy_l2_tables_locked(s, t);
    ret = ret < 0 ? ret : copy_l1(s, t);
    ret = ret < 0 ? ret : write_snapshot_table(s, t);
    ret = ret < 0 ? ret : copy_refcounts(s, t);
    ret = ret < 0 ? ret : writer_flush(s, t);
    return ret < 0 ? ret : qcow2_file_flush(s);
}

/* A copy of an L1 table's first n entries without flags. */
static bool copy_directory(const Qcow2Directory *from, uint32_t n, Qcow2Directory *out)
{
    if (!qcow2_directory_new(out, 0, n)) {
        return false;
    }
    for (uint32_t i = 0; i < MIN(n, from->n); i++) {
        out->entries[i] = from->entries[i] & QCOW2_ENTRY_OFFSET;
    }
    return true;
}

static int coroutine_fn set_source(Qcow2State *s, Qcow2Transition *t, const Qcow2Directory *subject)
{
    bool revert = t->action == BLOCK_SNAPSHOT_REVERT;
    t->length = revert && t->subject->length >= 0 ? t->subject->length : s->length;
    uint32_t n = revert ? (uint32_t)qcow2_l1_entries(s, t->length) : s->l1.n;
    if ((n + (uint64_t)subject->n) * 8 > MAX_L1_BYTES) {
        return -EFBIG;
    }
    t->size = MAX(WRITE_PIECE, (size_t)s->cluster_size);
    t->buf = aligned_alloc(4096, t->size);
    return t->buf && copy_directory(revert ? subject : &s->l1, n, &t->source) ? 0 : -ENOMEM;
}

static int coroutine_fn prepare_with_subject(Qcow2State *s, Qcow2Transition *t, const Qcow2Directory *subject,
                                             GError **errp) BG_NO_TSA
{
    int ret = set_source(s, t, subject);
    ret = ret < 0 ? ret : qcow2_sync(s);
    co_mutex_lock(&s->lock);
    ret = ret < 0 ? ret : qcow2_begin_change_locked(s);
    ret = ret < 0 ? ret : take_clusters_locked(s, t);
    /* Nothing may be on its way to be free: growth of the refcount table drops the old one. */
    if (ret == 0 && s->dropped->len + s->stable->len + s->draining->len > 0) {
        co_mutex_unlock(&s->lock);
        ret = qcow2_sync(s);
        co_mutex_lock(&s->lock);
    }
    if (ret == 0) {
        ret = qcow2_shadow_load_locked(s, &t->shadow, errp);
        if (ret == 0) {
            ret = prepare_locked(s, t, subject);
            ret = ret < 0 ? explain(s, t, ret, errp) : 0;
        }
    } else {
        ret = explain(s, t, ret, errp);
    }
    co_mutex_unlock(&s->lock);
    return ret;
}

int coroutine_fn qcow2_transition_prepare(Qcow2State *s, const BlockSnapshotChange *change,
                                          Qcow2Transition **out, GError **errp)
{
    Qcow2Directory subject = {0};
    Qcow2Transition *t = g_new0(Qcow2Transition, 1);
    t->action = change->action;
    t->moves = g_array_new(false, false, sizeof(L2Move));
    int ret = 0;
    if (t->action == BLOCK_SNAPSHOT_CREATE) {
        t->subject = qcow2_snapshot_new(s, change->name, change->date_ns);
    } else {
        t->subject = qcow2_snapshot_find(s, change->name);
        ret = t->subject->l1_size * UINT64_C(8) > MAX_L1_BYTES ? -EFBIG : 0;
        ret = ret < 0 ? ret : qcow2_directory_read(s, &subject, t->subject->l1_offset, t->subject->l1_size);
        ret = ret < 0 ? explain(s, t, ret, errp) : 0;
    }
    ret = ret < 0 ? ret : prepare_with_subject(s, t, &subject, errp);
    qcow2_directory_free(&subject);
    if (ret < 0) {
        qcow2_transition_abort(s, t);
        return ret;
    }
    *out = t;
    return 0;
}

void coroutine_fn qcow2_transition_abort(Qcow2State *s, Qcow2Transition *t)
{
    co_mutex_lock(&s->lock);
    if (t->n) {
        qcow2_unref_locked(s, t->first, t->n, NULL); /* what fails here stays as a leak */
    }
    co_mutex_unlock(&s->lock);
    if (t->action == BLOCK_SNAPSHOT_CREATE) {
        qcow2_snapshot_free(t->subject);
    }
    transition_free(t);
}

/* ---- Commit */

/* All fields that change lie in one sector. */
static int coroutine_fn write_header_locked(Qcow2State *s, const Qcow2Transition *t, uint32_t snapshots)
{
    uint8_t f[72 - QCOW2_HEADER_SIZE];
    qcow2_store64(f, (uint64_t)t->length);
    qcow2_store32(f + 8, 0); /* not encrypted */
    qcow2_store32(f + 12, t->source.n);
    qcow2_store64(f + 16, t->l1_offset);
    qcow2_store64(f + 24, t->reftable_offset);
    qcow2_store32(f + 32, (uint32_t)clusters_of(s, t->shadow.n * UINT64_C(8)));
    qcow2_store32(f + 36, snapshots);
    qcow2_store64(f + 40, t->table.offset);
    int ret = qcow2_header_write_locked(s, QCOW2_HEADER_SIZE, f, sizeof f);
    return ret < 0 ? ret : qcow2_file_flush(s);
}

static void adopt_l2_tables_locked(Qcow2State *s, Qcow2Transition *t)
{
    for (guint i = 0; i < t->moves->len; i++) {
        const L2Move *m = &g_array_index(t->moves, L2Move, i);
        qcow2_cache_move(&s->l2_cache, m->from, m->to);
        qcow2_overlap_add(s, m->to);
        Qcow2Table *table = qcow2_cache_peek(&s->l2_cache, m->to);
        if (table) {
            set_flags(s, t, table->data);
        }
    }
}

static void adopt_tables_locked(Qcow2State *s, Qcow2Transition *t)
{
    adopt_l2_tables_locked(s, t);
    qcow2_directory_free(&s->l1);
    s->l1 = t->source;
    s->l1.offset = t->l1_offset;
    t->source = (Qcow2Directory){0};
    qcow2_cache_clear(&s->refcount_cache);
    memcpy(s->reftable.entries, t->reftable, s->reftable.n * sizeof *t->reftable);
    s->reftable.offset = t->reftable_offset;
    for (uint32_t i = 0; i < s->reftable.n; i++) {
        qcow2_overlap_add(s, t->reftable[i]);
    }
    s->snapshot_table = t->table;
    s->length = t->length;
    atomic_store(&s->node->length, t->length);
}

static void adopt_snapshots_locked(Qcow2State *s, Qcow2Transition *t)
{
    if (t->action == BLOCK_SNAPSHOT_CREATE) {
        g_ptr_array_add(s->snapshots, t->subject);
    } else if (t->action == BLOCK_SNAPSHOT_DELETE) {
        g_ptr_array_remove(s->snapshots, t->subject);
    }
    qcow2_snapshot_extents_update(s);
}

/* What the new tables do not use. After a creation it is a few tables, which are not worth a discard while
 * everybody waits; one that fails costs only room. */
static void coroutine_fn release_freed_locked(Qcow2State *s, const Qcow2Transition *t)
{
    for (guint i = 0; i < t->shadow.freed->len; i++) {
        const Qcow2Range *r = &g_array_index(t->shadow.freed, Qcow2Range, i);
        s->free_hint = MIN(s->free_hint, r->first);
        for (uint64_t c = r->first; c < r->first + r->count; c++) {
            qcow2_cache_forget(&s->l2_cache, c << s->cluster_bits);
        }
        int ret = qcow2_overlap_check_locked(s, QCOW2_CLASS_DATA, r->first << s->cluster_bits,
                                             r->count << s->cluster_bits);
        if (ret == 0 && s->node->discard_unmap && t->action != BLOCK_SNAPSHOT_CREATE) {
            block_child_co_pdiscard(s->node->file, (int64_t)(r->first << s->cluster_bits),
                                    (int64_t)(r->count << s->cluster_bits));
        }
    }
}

int coroutine_fn qcow2_transition_commit(Qcow2State *s, Qcow2Transition *t, GError **errp)
{
    guint n = s->snapshots->len;
    n += t->action == BLOCK_SNAPSHOT_CREATE ? 1 : 0;
    n -= t->action == BLOCK_SNAPSHOT_DELETE ? 1 : 0;
    co_mutex_lock(&s->lock);
    int ret = write_header_locked(s, t, n);
    if (ret == 0) {
        adopt_tables_locked(s, t);
        adopt_snapshots_locked(s, t);
        release_freed_locked(s, t);
    } else {
        qcow2_give_up_locked(s, ret, "qcow2: the header could not be pointed to new tables");
        explain(s, t, ret, errp);
    }
    co_mutex_unlock(&s->lock);
    if (ret < 0 && t->action == BLOCK_SNAPSHOT_CREATE) {
        qcow2_snapshot_free(t->subject);
    }
    transition_free(t);
    return ret;
}
