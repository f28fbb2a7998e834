/*
 * Driver qcow2: opening and closing. docs/qcow2.md says what is supported and what is refused.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "backends/format/qcow2/qcow2.h"
#include "util/error.h"
#include "util/log.h"

#define MAX_CLUSTER (INT64_C(2) << 20) /* bytes */

/* ---- Header */

static int coroutine_fn read_header(BlockNode *node, Qcow2Header *h, Qcow2Extras *x, GError **errp)
{
    int64_t length = block_node_length(node->file->node);
    size_t n = (size_t)MIN(length, MAX_CLUSTER); /* header, extensions and names lie in the first cluster */
    g_autofree uint8_t *buf = g_malloc(n + 1);
    int ret = block_child_co_pread(node->file, 0, (int64_t)n, buf);
    if (ret < 0) {
        return bg_error_set_errno(errp, -ret, "node '%s': reading the qcow2 header", node->name);
    }
    ret = qcow2_header_parse(buf, n, length, node->name, node->to_check, h, errp);
    if (ret == 0 && !qcow2_extras_read(buf, n, h, x)) {
        ret = bg_error_set(
            errp, EINVAL,
            "node '%s': qcow2 header: an extension is longer than what is left of the first cluster",
            node->name);
    }
    return ret;
}

/* An image that is marked corrupt, or that nobody can write to, is read, but not written. */
static int check_writable(BlockNode *node, const Qcow2Header *h, GError **errp)
{
    if (node->auto_read_only && node->file->node->read_only) {
        node->read_only = true;
    }
    if (!(h->incompatible & QCOW2_INCOMPATIBLE_CORRUPT) || node->read_only || node->to_check) {
        return 0;
    }
    if (node->auto_read_only) {
        node->read_only = true;
        return 0;
    }
    return bg_error_set(errp, EINVAL,
                        "node '%s': the qcow2 image is marked corrupt: repair it with 'blockgraph check "
                        "--repair', or open it with read-only=on",
                        node->name);
}

static void set_geometry(Qcow2State *s, const Qcow2Header *h)
{
    s->version = h->version;
    s->cluster_bits = h->cluster_bits;
    s->cluster_size = INT64_C(1) << h->cluster_bits;
    s->extended = h->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2;
    s->l2_bits = h->cluster_bits - (s->extended ? 4 : 3);
    s->sub_bits = h->cluster_bits - (s->extended ? 5 : 0);
    s->subs = s->extended ? 32 : 1;
    s->refcount_order = h->refcount_order;
    s->refblock_bits = h->cluster_bits + 3 - h->refcount_order;
    s->compression = h->compression;
    s->names_backing = h->backing_offset != 0;
    s->incompatible = h->incompatible;
    s->autoclear = h->autoclear;
    s->length = (int64_t)h->size;
    s->external = h->incompatible & QCOW2_INCOMPATIBLE_DATA_FILE;
}

/* ---- Backing */

/* A backing file that the image names is opened only where the graph says so. */
static int coroutine_fn open_backing(BlockNode *node, BlockOptions *opts, const Qcow2Extras *x,
                                     char **directories, GError **errp)
{
    if (block_options_is_none(opts, "backing")) {
        return 0;
    }
    if (!x->backing || block_options_has(opts, "backing")) {
        return block_node_co_open_child(node, opts, "backing", BLOCK_ROLE_COW, true, NULL, errp);
    }
    Qcow2Reference ref = {
        .key = "backing",
        .what = "backing file",
        .remedy =
            "name its node, or define it in place (backing.driver, ...), or say with an empty value that "
            "there is none",
        .name = x->backing,
        .format_needed = true,
        .format = x->backing_format,
        .role = BLOCK_ROLE_COW,
    };
    return qcow2_open_reference(node, opts, &ref, directories, NULL, errp);
}

static int coroutine_fn open_children(BlockNode *node, BlockOptions *opts, const Qcow2Extras *x,
                                      GError **errp)
{
    g_auto(GStrv) directories = NULL;
    if (!block_options_get_strings(opts, "allow-image-references", &directories, errp)) {
        return -EINVAL;
    }
    int ret = qcow2_data_file_open(node, opts, x, directories, errp);
    return ret < 0 ? ret : open_backing(node, opts, x, directories, errp);
}

/* ---- Open, close */

static GArray *new_ranges(void)
{
    return g_array_new(false, false, sizeof(Qcow2Range));
}

static void state_init(BlockNode *node)
{
    Qcow2State *s = node->opaque;
    s->node = node;
    co_mutex_init(&s->sync_lock);
    co_mutex_init(&s->lock);
    co_mutex_init(&s->large_window);
    co_queue_init(&s->unpackers);
    s->dropped = new_ranges();
    s->stable = new_ranges();
    s->draining = new_ranges();
    s->snapshots = g_ptr_array_new_with_free_func((GDestroyNotify)qcow2_snapshot_free);
    s->snapshot_extents = g_array_new(false, false, sizeof(Qcow2Extent));
}

static void state_destroy(Qcow2State *s)
{
    qcow2_cache_free(&s->l2_cache);
    qcow2_cache_free(&s->refcount_cache);
    qcow2_directory_free(&s->l1);
    qcow2_directory_free(&s->reftable);
    g_array_unref(s->dropped);
    g_array_unref(s->stable);
    g_array_unref(s->draining);
    g_array_unref(s->snapshot_extents);
    g_ptr_array_unref(s->snapshots);
    g_free(s->overlap_filter);
    co_queue_destroy(&s->unpackers);
    co_mutex_destroy(&s->large_window);
    co_mutex_destroy(&s->lock);
    co_mutex_destroy(&s->sync_lock);
}

static int compare_entries(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/*
 * Two entries for one refcount block would make taking a cluster here take another there; and a few blocks
 * could stand for so many full ones that the search for a free cluster had no end.
 */
static int check_reftable(const Qcow2State *s, GError **errp)
{
    const Qcow2Directory *d = &s->reftable;
    if (s->node->read_only || s->node->to_check) {
        return 0;
    }
    uint32_t n = 0;
    g_autofree uint64_t *sorted = g_new(uint64_t, MAX(d->n, 1));
    for (uint32_t i = 0; i < d->n; i++) {
        sorted[n] = d->entries[i];
        n += sorted[n] != 0;
    }
    qsort(sorted, n, sizeof *sorted, compare_entries);
    for (uint32_t i = 1; i < n; i++) {
        if (sorted[i] == sorted[i - 1]) {
            return bg_error_set(
                errp, EINVAL,
                "node '%s': qcow2 refcount table: two entries for one block: repair the image "
                "with 'blockgraph check --repair', or open it with read-only=on",
                s->node->name);
        }
    }
    return 0;
}

static int coroutine_fn read_tables(Qcow2State *s, const Qcow2Header *h, GError **errp)
{
    uint32_t n_reftable = h->reftable_clusters << (h->cluster_bits - 3);
    int ret = qcow2_directory_read(s, &s->l1, h->l1_offset, h->l1_size);
    ret = ret < 0 ? ret : qcow2_directory_read(s, &s->reftable, h->reftable_offset, n_reftable);
    if (ret < 0) {
        return bg_error_set_errno(errp, -ret, "node '%s': reading the qcow2 tables", s->node->name);
    }
    ret = check_reftable(s, errp);
    ret = ret < 0 ? ret : qcow2_snapshot_table_read(s, h, errp);
    if (ret == 0) {
        qcow2_overlap_init(s);
    }
    return ret;
}

static int coroutine_fn open_image(BlockNode *node, BlockOptions *opts, GError **errp)
{
    Qcow2State *s = node->opaque;
    Qcow2Header h;
    g_auto(Qcow2Extras) extras = {0};
    int ret = read_header(node, &h, &extras, errp);
    ret = ret < 0 ? ret : check_writable(node, &h, errp);
    if (ret < 0) {
        return ret;
    }
    set_geometry(s, &h);
    s->n_bitmaps = extras.n_bitmaps;
    s->bitmaps = extras.bitmaps;
    ret = open_children(node, opts, &extras, errp);
    s->data_raw =
        s->external && (s->autoclear & QCOW2_AUTOCLEAR_DATA_RAW) && !node->backing && !extras.backing;
    ret = ret < 0 ? ret : qcow2_options_read(s, opts, errp);
    return ret < 0 ? ret : read_tables(s, &h, errp);
}

/* With lazy refcounts, who ended without closing the image has left refcounts that are not true. */
static int coroutine_fn repair_dirty(BlockNode *node, GError **errp)
{
    Qcow2State *s = node->opaque;
    BlockCheckResult r = {0};
    if (!(s->incompatible & QCOW2_INCOMPATIBLE_DIRTY) || node->read_only || node->to_check) {
        return 0;
    }
    int ret = qcow2_co_check(node, BLOCK_CHECK_FIX_ALL, NULL, &r, errp);
    if (ret < 0) {
        return ret;
    }
    if (s->incompatible & QCOW2_INCOMPATIBLE_DIRTY) {
        return bg_error_set(errp, EINVAL,
                            "node '%s': the qcow2 image was not closed properly while lazy refcounts were in "
                            "use, and has errors that are not repaired on opening: see 'blockgraph check', "
                            "or open it with read-only=on",
                            node->name);
    }
    bg_log(BG_LOG_WARNING,
           "node '%s': the qcow2 image was not closed properly: repaired %" PRIu64 " wrong entries, freed "
           "%" PRIu64 " leaked clusters",
           node->name, r.corruptions_fixed, r.leaks_fixed);
    return 0;
}

static int coroutine_fn qcow2_co_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    Qcow2State *s = node->opaque;
    int ret = block_node_co_open_child(node, opts, "file", BLOCK_ROLE_IMAGE, false, NULL, errp);
    if (ret < 0) {
        return ret;
    }
    if (node->file->node->read_only && !node->read_only) {
        node->read_only = true;
    }
    state_init(node);
    ret = open_image(node, opts, errp);
    ret = ret < 0 ? ret : repair_dirty(node, errp);
    if (ret < 0) {
        state_destroy(s);
        return ret;
    }
    atomic_store(&node->length, s->length);
    node->limits.pwrite_zeroes_alignment = 1u << s->sub_bits;
    node->limits.pdiscard_alignment = (uint32_t)s->cluster_size;
    node->supported_zero_flags = BLOCK_REQ_MAY_UNMAP;
    qcow2_clean_start(s);
    return 0;
}

static void coroutine_fn qcow2_co_close(BlockNode *node)
{
    Qcow2State *s = node->opaque;
    qcow2_clean_stop(s);
    if (!node->read_only) {
        int ret = qcow2_sync(s);
        if (ret < 0) {
            bg_log(BG_LOG_ERROR, "node '%s': writing the qcow2 tables: %s", node->name, g_strerror(-ret));
        }
    }
    state_destroy(s);
}

/*
 * File and data file: tables are written also when no user writes (at the end, what the last flush left), so
 * the permission is held while the node is open. Backing: read.
 */
static void qcow2_child_perm(BlockNode *node, BlockChild *child, BlockPerm perm, BlockPerm shared,
                             BlockPerm *child_perm, BlockPerm *child_shared)
{
    *child_perm = BLOCK_PERM_CONSISTENT_READ;
    *child_shared = BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE_UNCHANGED;
    if (child->role & BLOCK_ROLE_COW) {
        if (shared & BLOCK_PERM_WRITE) {
            *child_shared |= BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE;
        }
    } else if (!node->read_only && !child->node->read_only) {
        *child_perm |= BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE;
    }
}

static const char *const qcow2_children[] = {"file", "data-file", "backing", NULL};
static const char *const qcow2_directories[] = {"allow-image-references", NULL};

const BlockDriver block_driver_qcow2 = {
    .name = "qcow2",
    .child_options = qcow2_children,
    .directory_options = qcow2_directories,
    .instance_size = sizeof(Qcow2State),
    .co_open = qcow2_co_open,
    .co_close = qcow2_co_close,
    .co_create = qcow2_co_create,
    .co_check = qcow2_co_check,
    .co_preadv = qcow2_co_preadv,
    .co_pwritev = qcow2_co_pwritev,
    .co_flush = qcow2_co_flush,
    .co_pwrite_zeroes = qcow2_co_pwrite_zeroes,
    .co_pdiscard = qcow2_co_pdiscard,
    .co_block_status = qcow2_co_block_status,
    .co_truncate = qcow2_co_truncate,
    .co_get_allocated = qcow2_co_get_allocated,
    .drain_begin = qcow2_drain_begin,
    .drain_end = qcow2_drain_end,
    .child_perm = qcow2_child_perm,
    .snapshots = &qcow2_snapshot_ops,
};
