/*
 * qcow2 check: who refers to which cluster.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>

#include "backends/format/qcow2/check.h"

#define BITMAP_ENTRY_FIXED 24u
#define BITMAP_CHUNK       8192u /* entries of a bitmap's table read at once */
#define L1_RESERVED        UINT64_C(0x7f000000000001ff)
#define L2_RESERVED        UINT64_C(0x3f000000000001fe)
#define BITMAP_RESERVED    UINT64_C(0xff000000000001fe)

/* Clusters that the bytes touch. False where they are not in the file. */
static bool count_bytes(Qcow2Check *c, uint64_t offset, uint64_t bytes, uint32_t times)
{
    if (!bytes) {
        return true;
    }
    if (!qcow2_check_in_file(c, offset, bytes)) {
        return false;
    }
    uint64_t first = offset >> c->s->cluster_bits, last = (offset + bytes - 1) >> c->s->cluster_bits;
    qcow2_counts_add(&c->refs, first, last - first + 1, times);
    return true;
}

/* An entry that cannot be followed. */
static void G_GNUC_PRINTF(2, 3) bad_entry(Qcow2Check *c, const char *format, ...)
{
    va_list args;
    c->bad_entries = true;
    if (c->tell) {
        va_start(args, format);
        g_autofree char *text = g_strdup_vprintf(format, args);
        va_end(args);
        qcow2_check_corrupt(c, "%s", text);
    }
}

/* ---- L1 and L2 entries */

static int coroutine_fn count_l1_entry(Qcow2Check *c, const Qcow2L1 *l1, uint32_t i, uint64_t entry)
{
    if (entry == QCOW2_ENTRY_COPIED) {
        if (c->tell) {
            qcow2_check_corrupt(c, "L1 table at 0x%" PRIx64 ", entry %" PRIu32 ": a flag, but no L2 table",
                                l1->offset, i);
        }
    } else if (!qcow2_check_l1_usable(c, entry)) {
        bad_entry(c, "L1 table at 0x%" PRIx64 ", entry %" PRIu32 ": 0x%" PRIx64 " leads to no L2 table",
                  l1->offset, i, entry);
    } else if (entry & L1_RESERVED && c->tell) {
        qcow2_check_corrupt(c, "L1 table at 0x%" PRIx64 ", entry %" PRIu32 ": reserved bits in 0x%" PRIx64,
                            l1->offset, i, entry);
    }
    return 0;
}

/* For the user, as far as the image is his: what the active L1 table refers to. */
static void count_allocated(Qcow2Check *c, uint64_t offset, bool compressed)
{
    BlockCheckResult *r = c->result;
    r->allocated_clusters++;
    if (compressed) {
        r->compressed_clusters++;
        r->fragmented_clusters++;
        return;
    }
    if (c->next_contiguous && offset != c->next_contiguous) {
        r->fragmented_clusters++;
    }
    c->next_contiguous = offset + (uint64_t)c->s->cluster_size;
}

static void count_compressed(Qcow2Check *c, uint64_t table, uint32_t i, Qcow2L2Entry e, uint32_t times)
{
    Qcow2Extent x = qcow2_compressed_extent(c->s, e.entry);
    if (c->s->external) {
        bad_entry(c, "L2 table at 0x%" PRIx64 ", entry %" PRIu32 ": compressed, in an external data file",
                  table, i);
        return;
    }
    if (!x.offset || !count_bytes(c, x.offset, x.bytes, times)) {
        bad_entry(c,
                  "L2 table at 0x%" PRIx64 ", entry %" PRIu32 ": compressed data at 0x%" PRIx64
                  " is not in the file",
                  table, i, x.offset);
    }
    if (c->tell && (e.entry & QCOW2_ENTRY_COPIED)) {
        qcow2_check_corrupt(c,
                            "L2 table at 0x%" PRIx64 ", entry %" PRIu32 ": a compressed cluster is marked "
                            "as one that nobody shares",
                            table, i);
    }
    if (c->tell && e.bitmap) {
        qcow2_check_corrupt(c,
                            "L2 table at 0x%" PRIx64 ", entry %" PRIu32 ": a compressed cluster has "
                            "subclusters",
                            table, i);
    }
}

static bool subclusters_contradict(const Qcow2State *s, Qcow2L2Entry e)
{
    uint32_t allocated = (uint32_t)e.bitmap, zero = (uint32_t)(e.bitmap >> 32);
    return s->extended && ((allocated & zero) || (allocated && !qcow2_entry_has_place(s, e.entry)));
}

/* In an external data file everything lies at its guest offset, and nothing is counted. */
static void check_external(Qcow2Check *c, uint64_t table, uint32_t i, Qcow2L2Entry e)
{
    uint64_t offset = e.entry & QCOW2_ENTRY_OFFSET;
    uint64_t guest = (c->l2_index << c->s->l2_bits | i) << c->s->cluster_bits;
    if (qcow2_entry_has_place(c->s, e.entry) && offset != guest) {
        bad_entry(c,
                  "L2 table at 0x%" PRIx64 ", entry %" PRIu32 ": 0x%" PRIx64
                  " is not the cluster's place in the data file",
                  table, i, offset);
    }
}

static void count_standard(Qcow2Check *c, uint64_t table, uint32_t i, Qcow2L2Entry e, uint32_t times)
{
    const Qcow2State *s = c->s;
    uint64_t offset = e.entry & QCOW2_ENTRY_OFFSET;
    bool no_zero_flag = s->extended || s->version < 3;
    if (c->tell && (e.entry & (L2_RESERVED | (no_zero_flag ? QCOW2_ENTRY_ZERO : 0)))) {
        qcow2_check_corrupt(c, "L2 table at 0x%" PRIx64 ", entry %" PRIu32 ": reserved bits in 0x%" PRIx64,
                            table, i, e.entry);
    }
    if (c->tell && subclusters_contradict(s, e)) {
        qcow2_check_corrupt(c, "L2 table at 0x%" PRIx64 ", entry %" PRIu32 ": contradictory subclusters",
                            table, i);
    }
    if (s->external) {
        check_external(c, table, i, e);
        return;
    }
    if (!offset) {
        return;
    }
    if (offset & (uint64_t)(s->cluster_size - 1)) {
        bad_entry(c,
                  "L2 table at 0x%" PRIx64 ", entry %" PRIu32 ": 0x%" PRIx64 " is not where a cluster begins",
                  table, i, offset);
    } else if (!count_bytes(c, offset, (uint64_t)s->cluster_size, times)) {
        bad_entry(c,
                  "L2 table at 0x%" PRIx64 ", entry %" PRIu32 ": the cluster at 0x%" PRIx64
                  " is not in the file",
                  table, i, offset);
    }
}

static int coroutine_fn count_l2_table(Qcow2Check *c, uint64_t table, uint32_t times, bool active)
{
    const Qcow2State *s = c->s;
    Qcow2Table t = {.offset = table, .data = c->l2};
    c->next_contiguous = 0;
    count_bytes(c, table, (uint64_t)s->cluster_size, times);
    for (uint32_t i = 0; i < 1u << s->l2_bits && !c->l2_empty; i++) {
        Qcow2L2Entry e = qcow2_l2_load(s, &t, i);
        bool compressed = e.entry & QCOW2_ENTRY_COMPRESSED;
        if (!e.entry && !e.bitmap) {
            continue;
        }
        if (compressed) {
            count_compressed(c, table, i, e, times);
        } else {
            count_standard(c, table, i, e, times);
        }
        if (c->tell && active && (compressed || qcow2_entry_has_place(s, e.entry))) {
            count_allocated(c, e.entry & QCOW2_ENTRY_OFFSET, compressed);
        }
    }
    return 0;
}

/* ---- Bitmaps */

/* Thousands of bitmaps may be said to have one and the same table: that is not gone through each time. */
static bool overlaps_others(const Qcow2Check *c, uint64_t offset, uint32_t n)
{
    uint32_t bits = c->s->cluster_bits;
    return n && (qcow2_counts_get(&c->refs, offset >> bits) > 1 ||
                 qcow2_counts_get(&c->refs, (offset + n * UINT64_C(8) - 1) >> bits) > 1);
}

static int coroutine_fn count_bitmap_table(Qcow2Check *c, uint64_t offset, uint32_t n)
{
    g_autofree uint64_t *chunk = g_new(uint64_t, BITMAP_CHUNK);
    uint64_t in_cluster = (uint64_t)(c->s->cluster_size - 1);
    if (offset & in_cluster || n > QCOW2_MAX_BITMAP_TABLE_ENTRIES ||
        !count_bytes(c, offset, n * UINT64_C(8), 1)) {
        bad_entry(c, "the table of a bitmap at 0x%" PRIx64 " is not in the file", offset);
        return 0;
    }
    if (overlaps_others(c, offset, n)) {
        bad_entry(c, "the table of a bitmap at 0x%" PRIx64 " overlaps another table", offset);
        return 0;
    }
    for (uint32_t at = 0, m; at < n; at += m) {
        uint64_t place = offset + at * UINT64_C(8);
        m = qcow2_check_empty_entries(c, place, n - at);
        if (m) {
            continue;
        }
        m = MIN(n - at, BITMAP_CHUNK);
        int ret = block_child_co_pread(c->s->node->file, (int64_t)place, m * INT64_C(8), chunk);
        if (ret < 0) {
            return ret;
        }
        for (uint32_t i = 0; i < m; i++) {
            uint64_t entry = GUINT64_FROM_BE(chunk[i]), cluster = entry & QCOW2_ENTRY_OFFSET;
            bool wrong = entry & BITMAP_RESERVED || (cluster && (cluster & in_cluster || entry & 1));
            if (wrong || (cluster && !count_bytes(c, cluster, (uint64_t)c->s->cluster_size, 1))) {
                bad_entry(
                    c, "table of a bitmap at 0x%" PRIx64 ", entry %" PRIu32 ": 0x%" PRIx64 " is no cluster",
                    offset, at + i, entry);
            }
        }
    }
    return 0;
}

/* Without the autoclear bit they count for nothing. */
static int coroutine_fn count_bitmaps(Qcow2Check *c)
{
    const Qcow2State *s = c->s;
    uint64_t offset = s->bitmaps.offset, bytes = s->bitmaps.bytes, end = offset + bytes;
    if (!(s->autoclear & QCOW2_AUTOCLEAR_BITMAPS)) {
        return 0;
    }
    if (bytes > QCOW2_MAX_BITMAP_DIR_BYTES || !count_bytes(c, offset, bytes, 1)) {
        bad_entry(c, "the directory of bitmaps at 0x%" PRIx64 " is not in the file, or longer than any",
                  offset);
        return 0;
    }
    for (uint32_t i = 0; i < s->n_bitmaps; i++) {
        uint8_t e[BITMAP_ENTRY_FIXED];
        if (end < offset + sizeof e) {
            bad_entry(c, "the directory of bitmaps ends within entry %" PRIu32, i);
            return 0;
        }
        int ret = block_child_co_pread(s->node->file, (int64_t)offset, sizeof e, e);
        ret = ret < 0 ? ret : count_bitmap_table(c, qcow2_load64(e), qcow2_load32(e + 8));
        if (ret < 0) {
            return ret;
        }
        uint64_t name = (uint64_t)e[18] << 8 | e[19], extra = qcow2_load32(e + 20);
        offset += (sizeof e + name + extra + 7) & ~UINT64_C(7);
    }
    return 0;
}

/* ---- All of it */

static void count_refcounts(Qcow2Check *c)
{
    const Qcow2Directory *d = &c->s->reftable;
    count_bytes(c, d->offset, d->n * UINT64_C(8), 1);
    for (uint32_t i = 0; i < d->n; i++) {
        if (d->entries[i] && !c->bad_blocks[i]) {
            count_bytes(c, d->entries[i], (uint64_t)c->s->cluster_size, 1);
        }
    }
}

static void count_fixed(Qcow2Check *c)
{
    const Qcow2State *s = c->s;
    count_bytes(c, 0, (uint64_t)s->cluster_size, 1);
    for (guint i = 0; i < c->l1s->len; i++) {
        const Qcow2L1 *l1 = &g_array_index(c->l1s, Qcow2L1, i);
        count_bytes(c, l1->offset, l1->n * UINT64_C(8), l1->times);
    }
    count_bytes(c, s->snapshot_table.offset, s->snapshot_table.bytes, 1);
    qcow2_counts_add(&c->refs, c->extra_first, c->extra_n, 1);
    if (!c->skip_refcounts) {
        count_refcounts(c);
    }
}

int coroutine_fn qcow2_check_count(Qcow2Check *c, uint64_t lo)
{
    static const Qcow2Visit visit = {.l1_entry = count_l1_entry, .l2_table = count_l2_table};
    qcow2_counts_begin(&c->refs, lo);
    count_fixed(c);
    int ret = count_bitmaps(c);
    ret = ret < 0 ? ret : qcow2_check_walk(c, &visit);
    c->tell = false; /* whatever there was to say has been said */
    return ret;
}
