/*
 * qcow2: persistent bitmaps, which we do not keep up to date.
 *
 * Before the first change each is marked as in use: QEMU takes such a bitmap for inconsistent, as after a
 * crash of its own, but still counts its clusters and can remove it. Only where the directory makes no sense
 * the autoclear bit goes, by which everybody forgets it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "backends/format/qcow2/qcow2.h"

#define MAX_DIRECTORY (UINT64_C(16) << 20) /* bytes */
#define ENTRY_FIXED   24u
#define ENTRY_FLAGS   12u
#define FLAG_IN_USE   1u

/* False where the directory is malformed. */
static bool mark_entries(uint8_t *dir, size_t bytes, uint32_t n)
{
    size_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (bytes - at < ENTRY_FIXED) {
            return false;
        }
        uint8_t *e = dir + at;
        uint64_t name = (uint64_t)e[18] << 8 | e[19];
        uint64_t size = (ENTRY_FIXED + name + qcow2_load32(e + 20) + 7) & ~UINT64_C(7);
        if (size > bytes - at) {
            return false;
        }
        qcow2_store32(e + ENTRY_FLAGS, qcow2_load32(e + ENTRY_FLAGS) | FLAG_IN_USE);
        at += size;
    }
    return at == bytes;
}

static bool directory_fits(const Qcow2State *s, const Qcow2Extent *d)
{
    uint64_t length = (uint64_t)block_node_length(s->node->file->node);
    return d->bytes && d->bytes <= MAX_DIRECTORY && d->offset % (uint64_t)s->cluster_size == 0 &&
           d->offset <= length && d->bytes <= length - d->offset;
}

int coroutine_fn qcow2_bitmaps_mark_locked(Qcow2State *s)
{
    const Qcow2Extent *d = &s->bitmaps;
    if (!(s->autoclear & QCOW2_AUTOCLEAR_BITMAPS) || s->bitmaps_marked || !directory_fits(s, d)) {
        return 0;
    }
    g_autofree uint8_t *dir = g_try_malloc(d->bytes);
    if (!dir) {
        return -ENOMEM;
    }
    int ret = block_child_co_pread(s->node->file, (int64_t)d->offset, (int64_t)d->bytes, dir);
    if (ret < 0 || !mark_entries(dir, d->bytes, s->n_bitmaps)) {
        return ret;
    }
    ret = qcow2_overlap_check_locked(s, QCOW2_CLASS_DATA, d->offset, d->bytes);
    ret = ret < 0 ? ret : block_child_co_pwrite(s->node->file, (int64_t)d->offset, (int64_t)d->bytes, dir, 0);
    ret = ret < 0 ? ret : qcow2_file_flush(s);
    s->bitmaps_marked = ret == 0;
    return ret;
}
