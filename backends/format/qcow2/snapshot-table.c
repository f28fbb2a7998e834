/*
 * qcow2: where the snapshots' tables lie, so that nothing is written over them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>

#include "backends/format/qcow2/qcow2.h"
#include "util/error.h"

#define ENTRY_FIXED 40u

static int refuse(const Qcow2State *s, uint32_t i, const char *what, GError **errp)
{
    return bg_error_set(errp, EINVAL, "node '%s': qcow2 snapshot table, entry %" PRIu32 ": %s", s->node->name,
                        i, what);
}

static int check_l1(const Qcow2State *s, const Qcow2Extent *l1, uint32_t i, uint64_t length, GError **errp)
{
    if (l1->bytes > (uint64_t)QCOW2_MAX_L1_BYTES || l1->offset % (uint64_t)s->cluster_size ||
        l1->offset > length || l1->bytes > length - l1->offset) {
        return refuse(s, i, "its L1 table is not in the file, or too large", errp);
    }
    return 0;
}

int coroutine_fn qcow2_snapshot_table_read(Qcow2State *s, const Qcow2Header *h, GError **errp)
{
    uint64_t at = h->snapshots_offset, length = (uint64_t)block_node_length(s->node->file->node);
    for (uint32_t i = 0; i < h->snapshots; i++) {
        uint8_t fixed[ENTRY_FIXED];
        int ret = block_child_co_pread(s->node->file, (int64_t)at, ENTRY_FIXED, fixed);
        if (ret < 0) {
            return bg_error_set_errno(errp, -ret, "node '%s': reading the qcow2 snapshot table",
                                      s->node->name);
        }
        Qcow2Extent l1 = {qcow2_load64(fixed), qcow2_load32(fixed + 8) * UINT64_C(8)};
        uint64_t id = (uint64_t)fixed[12] << 8 | fixed[13], name = (uint64_t)fixed[14] << 8 | fixed[15];
        uint64_t bytes = (ENTRY_FIXED + (uint64_t)qcow2_load32(fixed + 36) + id + name + 7) & ~UINT64_C(7);
        if (at - h->snapshots_offset + bytes > (uint64_t)QCOW2_MAX_SNAPSHOT_TABLE_BYTES ||
            at + ENTRY_FIXED > length) {
            return refuse(s, i, "not in the file, or the table is too large", errp);
        }
        ret = check_l1(s, &l1, i, length, errp);
        if (ret < 0) {
            return ret;
        }
        if (l1.bytes) {
            g_array_append_val(s->snapshot_extents, l1);
        }
        at += bytes;
    }
    Qcow2Extent table = {h->snapshots_offset, at - h->snapshots_offset};
    if (table.bytes) {
        g_array_append_val(s->snapshot_extents, table);
    }
    return 0;
}
