/*
 * qcow2 check: COPIED is set in an entry of the active tables exactly where the refcount is one.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>

#include "backends/format/qcow2/check.h"

/* The refcount in the file; false where there is none to be had. */
static bool coroutine_fn refcount_of(Qcow2Check *c, uint64_t cluster, uint64_t *out)
{
    uint64_t i = cluster >> c->s->refblock_bits;
    if (i < c->s->reftable.n && c->bad_blocks[i]) {
        return false;
    }
    return qcow2_refcount_get_locked(c->s, cluster, out) == 0;
}

static bool coroutine_fn is_wrong(Qcow2Check *c, uint64_t entry)
{
    uint64_t offset = entry & QCOW2_ENTRY_OFFSET, refcount;
    if (!offset || (offset & (uint64_t)(c->s->cluster_size - 1)) ||
        !refcount_of(c, offset >> c->s->cluster_bits, &refcount)) {
        return false;
    }
    return (refcount == 1) != !!(entry & QCOW2_ENTRY_COPIED);
}

static void tell(Qcow2Check *c, const char *table, uint64_t offset, uint32_t i, uint64_t entry)
{
    qcow2_check_corrupt(c,
                        "%s table at 0x%" PRIx64 ", entry %" PRIu32 ": 0x%" PRIx64 ": the copied flag is %s",
                        table, offset, i, entry, entry & QCOW2_ENTRY_COPIED ? "set wrongly" : "missing");
}

static int coroutine_fn check_l1_entry(Qcow2Check *c, const Qcow2L1 *l1, uint32_t i, uint64_t entry)
{
    if (is_wrong(c, entry)) {
        tell(c, "L1", l1->offset, i, entry);
    }
    return 0;
}

static int coroutine_fn fix_l1_entry(Qcow2Check *c, const Qcow2L1 *l1, uint32_t i, uint64_t entry)
{
    bool wrong = is_wrong(c, entry);
    if (wrong) {
        tell(c, "L1", l1->offset, i, entry);
    } else if (entry != QCOW2_ENTRY_COPIED) { /* a flag alone was told of before */
        return 0;
    }
    uint64_t fixed = entry ^ QCOW2_ENTRY_COPIED, be = GUINT64_TO_BE(fixed);
    int ret = block_child_co_pwrite(c->s->node->file, (int64_t)(l1->offset + i * UINT64_C(8)), 8, &be, 0);
    if (ret == 0) {
        c->s->l1.entries[i] = fixed;
        c->result->corruptions_fixed++;
    }
    return ret;
}

static bool coroutine_fn check_entry(Qcow2Check *c, uint64_t offset, uint32_t i, uint64_t entry, bool fix)
{
    /* A flag on a compressed cluster was told of where the references were counted; where there must be no
     * such cluster at all that was told, and it stays. */
    if (entry & QCOW2_ENTRY_COMPRESSED) {
        return fix && !c->s->external && (entry & QCOW2_ENTRY_COPIED);
    }
    bool wrong = !c->s->external && is_wrong(c, entry);
    if (wrong) {
        tell(c, "L2", offset, i, entry);
    }
    return wrong && fix;
}

static int coroutine_fn check_table(Qcow2Check *c, uint64_t offset, bool fix)
{
    const Qcow2State *s = c->s;
    uint32_t stride = s->extended ? 16 : 8;
    uint64_t n_fixed = 0;
    for (uint32_t i = 0; i < 1u << s->l2_bits && !c->l2_empty; i++) {
        uint64_t entry = qcow2_load64(c->l2 + i * stride);
        if (entry && check_entry(c, offset, i, entry, fix)) {
            qcow2_store64(c->l2 + i * stride, entry ^ QCOW2_ENTRY_COPIED);
            n_fixed++;
        }
    }
    int ret = n_fixed ? qcow2_check_write_cluster(c, offset, c->l2) : 0;
    c->result->corruptions_fixed += ret == 0 ? n_fixed : 0;
    return ret;
}

static int coroutine_fn check_l2_table(Qcow2Check *c, uint64_t offset, uint32_t times, bool active)
{
    return check_table(c, offset, false);
}

static int coroutine_fn fix_l2_table(Qcow2Check *c, uint64_t offset, uint32_t times, bool active)
{
    return check_table(c, offset, true);
}

int coroutine_fn qcow2_check_copied(Qcow2Check *c, bool fix)
{
    static const Qcow2Visit check = {
        .l1_entry = check_l1_entry, .l2_table = check_l2_table, .only_active = true};
    static const Qcow2Visit mend = {.l1_entry = fix_l1_entry, .l2_table = fix_l2_table, .only_active = true};
    return qcow2_check_walk(c, fix ? &mend : &check);
}
