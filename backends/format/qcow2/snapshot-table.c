/*
 * qcow2: the snapshot table. Everything in it is hostile until checked here.
 *
 * Entries are kept as they are in the file, so that what we do not know in them lives on.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "backends/format/qcow2/qcow2.h"
#include "util/error.h"

#define ENTRY_FIXED   40u /* then extra data, id, name, padding to 8 bytes */
#define EXTRA_LENGTH  8u  /* where the disk's length lies in the extra data */
#define EXTRA_WRITTEN 24u /* size of the VM state, length of the disk, instruction count */
#define NSEC_PER_SEC  1000000000

/* ---- One entry */

void qcow2_snapshot_free(Qcow2Snapshot *snapshot)
{
    if (snapshot) {
        g_free(snapshot->raw);
        g_free(snapshot->id);
        g_free(snapshot->name);
        g_free(snapshot);
    }
}

static uint32_t load16(const uint8_t *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}

static void store16(uint8_t *p, size_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

/* Bytes of an entry by its fixed part. */
static uint64_t entry_size(const uint8_t *fixed)
{
    return (ENTRY_FIXED + (uint64_t)qcow2_load32(fixed + 36) + load16(fixed + 12) + load16(fixed + 14) + 7) &
           ~UINT64_C(7);
}

/* Takes over raw, which holds a whole entry. */
static Qcow2Snapshot *parse_entry(uint8_t *raw, size_t size)
{
    Qcow2Snapshot *p = g_new0(Qcow2Snapshot, 1);
    uint32_t extra = qcow2_load32(raw + 36), id = load16(raw + 12), name = load16(raw + 14);
    const char *text = (const char *)raw + ENTRY_FIXED + extra;
    p->raw = raw;
    p->raw_size = size;
    p->l1_offset = qcow2_load64(raw);
    p->l1_size = qcow2_load32(raw + 8);
    p->id = g_strndup(text, id);
    p->name = g_strndup(text + id, name);
    p->date_ns = (int64_t)qcow2_load32(raw + 16) * NSEC_PER_SEC + qcow2_load32(raw + 20) % NSEC_PER_SEC;
    p->vm_state_size = extra >= 8 ? qcow2_load64(raw + ENTRY_FIXED) : qcow2_load32(raw + 32);
    p->length = extra >= EXTRA_LENGTH + 8 ? (int64_t)qcow2_load64(raw + ENTRY_FIXED + EXTRA_LENGTH) : -1;
    return p;
}

/* Ids are numbers by habit, not by the format. */
static char *unused_id(const Qcow2State *s)
{
    uint64_t highest = 0;
    for (guint i = 0; i < s->snapshots->len; i++) {
        const Qcow2Snapshot *p = s->snapshots->pdata[i];
        uint64_t id = g_ascii_strtoull(p->id, NULL, 10);
        highest = id < UINT64_MAX - 1 ? MAX(highest, id) : highest;
    }
    return g_strdup_printf("%" PRIu64, highest + 1);
}

Qcow2Snapshot *qcow2_snapshot_new(Qcow2State *s, const char *name, int64_t date_ns)
{
    g_autofree char *id = unused_id(s);
    size_t n_id = strlen(id), n_name = strlen(name);
    size_t size = (ENTRY_FIXED + EXTRA_WRITTEN + n_id + n_name + 7) & ~(size_t)7;
    uint8_t *raw = g_malloc0(size);
    qcow2_store64(raw, s->l1.n ? s->l1.offset : 0); /* of an empty table it may be anything */
    qcow2_store32(raw + 8, s->l1.n);
    store16(raw + 12, n_id);
    store16(raw + 14, n_name);
    qcow2_store32(raw + 16, (uint32_t)(date_ns / NSEC_PER_SEC));
    qcow2_store32(raw + 20, (uint32_t)(date_ns % NSEC_PER_SEC));
    qcow2_store32(raw + 36, EXTRA_WRITTEN);
    qcow2_store64(raw + ENTRY_FIXED + EXTRA_LENGTH, (uint64_t)s->length);
    qcow2_store64(raw + ENTRY_FIXED + 16, UINT64_MAX); /* no instruction count */
    memcpy(raw + ENTRY_FIXED + EXTRA_WRITTEN, id, n_id);
    memcpy(raw + ENTRY_FIXED + EXTRA_WRITTEN + n_id, name, n_name);
    return parse_entry(raw, size);
}

Qcow2Snapshot *qcow2_snapshot_find(Qcow2State *s, const char *name)
{
    for (guint i = 0; i < s->snapshots->len; i++) {
        Qcow2Snapshot *p = s->snapshots->pdata[i];
        if (!strcmp(p->name, name)) {
            return p;
        }
    }
    return NULL;
}

/* ---- The table */

void qcow2_snapshot_extents_update(Qcow2State *s)
{
    g_array_set_size(s->snapshot_extents, 0);
    for (guint i = 0; i < s->snapshots->len; i++) {
        const Qcow2Snapshot *p = s->snapshots->pdata[i];
        Qcow2Extent l1 = {p->l1_offset, p->l1_size * UINT64_C(8)};
        if (l1.bytes) {
            g_array_append_val(s->snapshot_extents, l1);
        }
    }
    if (s->snapshot_table.bytes) {
        g_array_append_val(s->snapshot_extents, s->snapshot_table);
    }
}

static int refuse(const Qcow2State *s, uint32_t i, const char *what, GError **errp)
{
    return bg_error_set(errp, EINVAL, "node '%s': qcow2 snapshot table, entry %" PRIu32 ": %s", s->node->name,
                        i, what);
}

static int check_entry(const Qcow2State *s, const Qcow2Snapshot *p, uint32_t i, uint64_t file_length,
                       GError **errp)
{
    uint64_t l1_bytes = p->l1_size * UINT64_C(8);
    if (l1_bytes > (uint64_t)QCOW2_MAX_L1_BYTES || p->l1_offset % (uint64_t)s->cluster_size ||
        p->l1_offset > file_length || l1_bytes > file_length - p->l1_offset) {
        return refuse(s, i, "its L1 table is not in the file, or too large", errp);
    }
    if (p->length < -1 || p->length > BLOCK_MAX_LENGTH ||
        (p->length >= 0 && qcow2_l1_entries(s, p->length) > p->l1_size)) {
        return refuse(s, i, "its L1 table is too small for the disk's length", errp);
    }
    return 0;
}

/* One entry at *at, of which the next starts there afterwards. */
static int coroutine_fn read_entry(Qcow2State *s, uint32_t i, uint64_t *at, uint64_t end, GError **errp)
{
    uint8_t fixed[ENTRY_FIXED];
    int ret = block_child_co_pread(s->node->file, (int64_t)*at, ENTRY_FIXED, fixed);
    uint64_t size = ret < 0 ? 0 : entry_size(fixed);
    if (ret == 0 && size > end - *at) {
        return refuse(s, i, "not in the file, or the table is too large", errp);
    }
    uint8_t *raw = ret < 0 ? NULL : g_malloc(size);
    if (raw) {
        ret = block_child_co_pread(s->node->file, (int64_t)*at, (int64_t)size, raw);
    }
    if (ret < 0 || entry_size(raw) != size) {
        g_free(raw);
        return bg_error_set_errno(errp, ret < 0 ? -ret : EIO, "node '%s': reading the qcow2 snapshot table",
                                  s->node->name);
    }
    Qcow2Snapshot *p = parse_entry(raw, size);
    g_ptr_array_add(s->snapshots, p);
    *at += size;
    if (s->node->to_check) {
        return 0; /* what is wrong is told by the check */
    }
    return check_entry(s, p, i, (uint64_t)block_node_length(s->node->file->node), errp);
}

int coroutine_fn qcow2_snapshot_table_read(Qcow2State *s, const Qcow2Header *h, GError **errp)
{
    uint64_t length = ((uint64_t)block_node_length(s->node->file->node) + 7) & ~UINT64_C(7);
    uint64_t at = h->snapshots_offset, end = MIN(length, at + (uint64_t)QCOW2_MAX_SNAPSHOT_TABLE_BYTES);
    for (uint32_t i = 0; i < h->snapshots; i++) {
        int ret = at + ENTRY_FIXED > end ? refuse(s, i, "not in the file, or the table is too large", errp)
                                         : read_entry(s, i, &at, end, errp);
        if (ret < 0) {
            return ret;
        }
    }
    s->snapshot_table = (Qcow2Extent){h->snapshots_offset, at - h->snapshots_offset};
    qcow2_snapshot_extents_update(s);
    return 0;
}
