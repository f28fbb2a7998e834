/*
 * qcow2: making an image.
 *
 * The place of everything is known before anything is written:
 *
 *   header | refcount table | refcount blocks | L1 table | L2 tables, data: only where preallocated
 *
 * All but the header is written and flushed first, so that a half-made image is not taken for one.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "backends/format/qcow2/create.h"
#include "util/error.h"

#define HEADER_V2                72u
#define HEADER_V3                112u
#define COMPATIBLE_LAZY          UINT64_C(1)
#define EXTENSION_BACKING_FORMAT 0xe2792acau
#define EXTENSION_FEATURE_NAMES  0x6803f857u
#define EXTENSION_DATA_FILE      0x44415441u
#define FEATURE_NAME_BYTES       46u

/* In clusters of the file. */
typedef struct Layout {
    uint64_t n_reftable;
    uint64_t blocks, n_blocks;
    uint64_t l1, n_l1;
    uint64_t l2, n_l2;
    uint64_t data, n_data; /* none with an external data file */
    uint64_t total;
    uint64_t l1_entries, l2_entries;
} Layout;

typedef struct Maker {
    const Qcow2Create *c;
    Layout at;
    uint64_t cluster_size;
    BlockBackend *blk, *data; /* data: that with the data, which may be the same */
    uint8_t *buf;             /* one cluster */
} Maker;

static uint64_t div_up(uint64_t n, uint64_t by)
{
    return n / by + (n % by != 0);
}

/* ---- Layout */

static Layout plan(const Qcow2Create *c)
{
    uint64_t cs = UINT64_C(1) << c->cluster_bits, size = (uint64_t)c->size;
    uint64_t per_block = cs * 8 >> c->refcount_order, per_l2 = cs / (c->extended ? 16 : 8);
    Layout at = {.n_blocks = 1};
    uint64_t clusters = div_up(size, cs);
    at.l1_entries = div_up(clusters, per_l2);
    at.n_l1 = div_up(at.l1_entries * 8, cs);
    if (c->preallocation != BLOCK_PREALLOC_OFF) {
        at.n_data = c->external ? 0 : clusters;
        at.n_l2 = at.l1_entries;
        at.l2_entries = clusters;
    }
    /* Blocks count themselves and the table that points to them. */
    for (;;) {
        at.n_reftable = div_up(at.n_blocks * 8, cs);
        at.blocks = 1 + at.n_reftable;
        at.l1 = at.blocks + at.n_blocks;
        at.l2 = at.l1 + at.n_l1;
        at.data = at.l2 + at.n_l2;
        at.total = at.data + at.n_data;
        if (at.n_blocks * per_block >= at.total) {
            return at;
        }
        at.n_blocks = div_up(at.total, per_block);
    }
}

/* ---- Tables */

static int coroutine_fn write_cluster(Maker *m, uint64_t cluster)
{
    return block_backend_co_pwrite(m->blk, (int64_t)(cluster << m->c->cluster_bits), (int64_t)m->cluster_size,
                                   m->buf, 0);
}

/* Clusters in a row, read as zeroes, with no need for space. */
static int coroutine_fn clear_clusters(Maker *m, uint64_t first, uint64_t n)
{
    return n ? block_backend_co_pwrite_zeroes(m->blk, (int64_t)(first << m->c->cluster_bits),
                                              (int64_t)(n << m->c->cluster_bits), BLOCK_REQ_MAY_UNMAP)
             : 0;
}

/*
 * Write, from cluster `where` on, a table of n entries: the offsets of clusters in a row from `target` on,
 * with `flags`. stride: entries of 8 bytes from one to the next.
 */
static int coroutine_fn write_pointers(Maker *m, uint64_t where, uint64_t n, uint64_t target, uint64_t flags,
                                       unsigned stride)
{
    uint64_t per_cluster = m->cluster_size / 8 / stride;
    for (uint64_t done = 0; done < n; done += per_cluster) {
        memset(m->buf, 0, m->cluster_size);
        for (uint64_t i = 0; i < per_cluster && done + i < n; i++) {
            qcow2_store64(m->buf + i * stride * 8, (target + done + i) << m->c->cluster_bits | flags);
        }
        int ret = write_cluster(m, where + done / per_cluster);
        if (ret < 0) {
            return ret;
        }
    }
    return 0;
}

static int coroutine_fn write_blocks(Maker *m)
{
    uint64_t per_block = m->cluster_size * 8 >> m->c->refcount_order;
    for (uint64_t b = 0; b < m->at.n_blocks; b++) {
        memset(m->buf, 0, m->cluster_size);
        for (uint64_t i = 0; i < per_block && b * per_block + i < m->at.total; i++) {
            qcow2_refcount_store(m->buf, m->c->refcount_order, i, 1);
        }
        int ret = write_cluster(m, m->at.blocks + b);
        if (ret < 0) {
            return ret;
        }
    }
    return 0;
}

static int coroutine_fn reserve_data(Maker *m)
{
    const Layout *at = &m->at;
    if (!at->l2_entries) {
        return 0;
    }
    if (m->c->preallocation == BLOCK_PREALLOC_METADATA) {
        return clear_clusters(m, at->data, at->n_data);
    }
    return m->c->external
               ? block_create_co_reserve(m->data, 0, m->c->size, m->c->preallocation)
               : block_create_co_reserve(m->blk, (int64_t)(at->data << m->c->cluster_bits),
                                         (int64_t)(at->n_data << m->c->cluster_bits), m->c->preallocation);
}

static int coroutine_fn write_preallocated(Maker *m)
{
    const Layout *at = &m->at;
    int ret = write_pointers(m, at->l1, at->n_l2, at->l2, QCOW2_ENTRY_COPIED, 1);
    /* The L2 tables lie in a row: one long table. */
    ret = ret < 0 ? ret
                  : write_pointers(m, at->l2, at->l2_entries, m->c->external ? 0 : at->data,
                                   QCOW2_ENTRY_COPIED, m->c->extended ? 2 : 1);
    return ret < 0 ? ret : reserve_data(m);
}

static int coroutine_fn write_tables(Maker *m)
{
    int ret = write_pointers(m, 1, m->at.n_blocks, m->at.blocks, 0, 1);
    ret = ret < 0 ? ret : write_blocks(m);
    ret = ret < 0 ? ret : clear_clusters(m, m->at.l1, m->at.n_l1);
    return ret < 0 ? ret : write_preallocated(m);
}

/* ---- Header */

static const struct {
    uint8_t type, bit;
    const char *name;
} features[] = {
    {0, 0, "dirty bit"},        {0, 1, "corrupt bit"},         {0, 2, "external data file"},
    {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
    {2, 0, "bitmaps"},          {2, 1, "raw external data"},
};
#define FEATURES_BYTES (G_N_ELEMENTS(features) * (2 + FEATURE_NAME_BYTES))

static void fill_fields(const Maker *m, uint8_t *b)
{
    const Qcow2Create *c = m->c;
    qcow2_store32(b, QCOW2_MAGIC);
    qcow2_store32(b + 4, c->version);
    qcow2_store32(b + 20, c->cluster_bits);
    qcow2_store64(b + QCOW2_HEADER_SIZE, (uint64_t)c->size);
    qcow2_store32(b + QCOW2_HEADER_L1_SIZE, (uint32_t)m->at.l1_entries);
    qcow2_store64(b + 40, m->at.n_l1 ? m->at.l1 << c->cluster_bits : 0);
    qcow2_store64(b + QCOW2_HEADER_REFTABLE, UINT64_C(1) << c->cluster_bits);
    qcow2_store32(b + 56, (uint32_t)m->at.n_reftable);
    if (c->version < 3) {
        return;
    }
    qcow2_store64(b + QCOW2_HEADER_INCOMPATIBLE,
                  (c->compression != QCOW2_ZLIB ? QCOW2_INCOMPATIBLE_COMPRESSION : 0) |
                      (c->extended ? QCOW2_INCOMPATIBLE_EXTENDED_L2 : 0) |
                      (c->external ? QCOW2_INCOMPATIBLE_DATA_FILE : 0));
    qcow2_store64(b + QCOW2_HEADER_AUTOCLEAR, c->data_raw ? QCOW2_AUTOCLEAR_DATA_RAW : 0);
    qcow2_store64(b + 80, c->lazy_refcounts ? COMPATIBLE_LAZY : 0);
    qcow2_store32(b + 96, c->refcount_order);
    qcow2_store32(b + 100, HEADER_V3);
    b[104] = (uint8_t)c->compression;
}

static size_t begin_extension(uint8_t *b, size_t at, uint32_t type, size_t bytes)
{
    qcow2_store32(b + at, type);
    qcow2_store32(b + at + 4, (uint32_t)bytes);
    return at + 8;
}

static size_t extension_bytes(size_t bytes)
{
    return 8 + ((bytes + 7) & ~(size_t)7);
}

static size_t add_text(uint8_t *b, size_t at, uint32_t type, const char *text)
{
    size_t n = text ? strlen(text) : 0;
    if (!n) {
        return at;
    }
    memcpy(b + begin_extension(b, at, type, n), text, n);
    return at + extension_bytes(n);
}

static size_t add_feature_names(uint8_t *b, size_t at)
{
    size_t p = begin_extension(b, at, EXTENSION_FEATURE_NAMES, FEATURES_BYTES);
    for (unsigned i = 0; i < G_N_ELEMENTS(features); i++, p += 2 + FEATURE_NAME_BYTES) {
        b[p] = features[i].type;
        b[p + 1] = features[i].bit;
        memcpy(b + p + 2, features[i].name, strlen(features[i].name));
    }
    return at + extension_bytes(FEATURES_BYTES);
}

static size_t text_bytes(const char *text)
{
    return text ? extension_bytes(strlen(text)) : 0;
}

/* The names of features only help messages: in a small cluster they make room for the rest. */
static bool fill_header(const Maker *m, uint8_t *b)
{
    const Qcow2Create *c = m->c;
    size_t name = c->backing_file ? strlen(c->backing_file) : 0;
    size_t at = c->version < 3 ? HEADER_V2 : HEADER_V3;
    size_t needed = at + text_bytes(c->backing_format) + text_bytes(c->data_file) + 8 + name;
    if (needed > m->cluster_size) {
        return false;
    }
    memset(b, 0, m->cluster_size);
    fill_fields(m, b);
    at = add_text(b, at, EXTENSION_BACKING_FORMAT, c->backing_format);
    at = add_text(b, at, EXTENSION_DATA_FILE, c->data_file);
    if (c->version >= 3 && needed + extension_bytes(FEATURES_BYTES) <= m->cluster_size) {
        at = add_feature_names(b, at);
    }
    if (name) {
        at += 8; /* the end of the extensions */
        qcow2_store64(b + 8, at);
        qcow2_store32(b + 16, (uint32_t)name);
        memcpy(b + at, c->backing_file, name);
    }
    return true;
}

/* ---- All of it */

/* An empty file of the right length, or a device without a header. */
static int coroutine_fn clear_file(Maker *m, GError **errp)
{
    BlockNode *node = block_backend_node(m->blk);
    int64_t end = (int64_t)(m->at.total << m->c->cluster_bits);
    if (node->growable) {
        int ret = block_backend_co_truncate(m->blk, 0, errp);
        return ret < 0 ? ret : block_backend_co_truncate(m->blk, end, errp);
    }
    if (end > block_node_length(node)) {
        return bg_error_set(errp, ENOSPC,
                            "node '%s' is %" PRId64 " bytes long; the new qcow2 image needs %" PRId64,
                            node->name, block_node_length(node), end);
    }
    memset(m->buf, 0, m->cluster_size);
    int ret = write_cluster(m, 0);
    ret = ret < 0 ? ret : block_backend_co_flush(m->blk);
    return ret < 0 ? bg_error_set_errno(errp, -ret, "node '%s': writing", node->name) : 0;
}

/* It reads as zeroes, and is as long as the image. */
static int coroutine_fn clear_data_file(Maker *m, GError **errp)
{
    BlockNode *node = block_backend_node(m->data);
    if (node->growable) {
        int ret = block_backend_co_truncate(m->data, 0, errp);
        return ret < 0 ? ret : block_backend_co_truncate(m->data, m->c->size, errp);
    }
    if (m->c->size > block_node_length(node)) {
        return bg_error_set(errp, ENOSPC,
                            "node '%s' is %" PRId64 " bytes long; the image is to have %" PRId64, node->name,
                            block_node_length(node), m->c->size);
    }
    int ret = block_backend_co_pwrite_zeroes(m->data, 0, m->c->size, BLOCK_REQ_MAY_UNMAP);
    return ret < 0 ? bg_error_set_errno(errp, -ret, "node '%s': writing zeroes", node->name) : 0;
}

static int coroutine_fn make(Maker *m, GError **errp)
{
    int ret = clear_file(m, errp);
    ret = ret < 0 || !m->c->external ? ret : clear_data_file(m, errp);
    if (ret < 0) {
        return ret;
    }
    ret = write_tables(m);
    ret = ret < 0 ? ret : block_backend_co_flush(m->data);
    ret = ret < 0 ? ret : block_backend_co_flush(m->blk);
    if (ret == 0) {
        fill_header(m, m->buf);
        ret = write_cluster(m, 0);
    }
    ret = ret < 0 ? ret : block_backend_co_flush(m->blk);
    return ret < 0 ? bg_error_set_errno(errp, -ret, "node '%s': writing the new qcow2 image",
                                        block_backend_node(m->blk)->name)
                   : 0;
}

/* What can only be said once the layout is known. */
static bool check_layout(BlockOptions *opts, const Maker *m, GError **errp)
{
    if (m->at.n_reftable << m->c->cluster_bits > (uint64_t)QCOW2_MAX_REFTABLE_BYTES ||
        m->at.total > (uint64_t)BLOCK_MAX_LENGTH >> m->c->cluster_bits) {
        return block_options_error(opts, "preallocation", errp, EFBIG,
                                   "the refcount table would exceed 8 MiB");
    }
    if (!fill_header(m, m->buf)) {
        return block_options_error(opts, m->c->data_file ? "data-file" : "backing-file", errp, EINVAL,
                                   "the name does not fit into the first cluster");
    }
    return true;
}

static bool coroutine_fn open_children(BlockGraph *graph, BlockOptions *opts, Maker *m, Qcow2Create *c,
                                       GError **errp)
{
    m->blk = block_create_co_open(graph, opts, "file", errp);
    m->data = m->blk;
    if (!m->blk || !c->external) {
        return m->blk;
    }
    m->data = block_create_co_open(graph, opts, "data-file", errp);
    if (!m->data) {
        return false;
    }
    c->data_file = block_node_filename(block_backend_node(m->data));
    if (!c->data_file) {
        return block_options_error(opts, "data-file", errp, EINVAL, "has no file name to write down");
    }
    return check_layout(opts, m, errp);
}

static void coroutine_fn close_children(Maker *m)
{
    if (m->data && m->data != m->blk) {
        block_backend_co_free(m->data);
    }
    if (m->blk) {
        block_backend_co_free(m->blk);
    }
}

int coroutine_fn qcow2_co_create(BlockGraph *graph, BlockOptions *opts, BlockCreateFlags flags, GError **errp)
{
    g_auto(Qcow2Create) c = {0};
    if (!qcow2_create_read_options(opts, &c, errp)) {
        return -EINVAL;
    }
    g_autofree uint8_t *buf = g_malloc((gsize)1 << c.cluster_bits);
    Maker m = {.c = &c, .at = plan(&c), .cluster_size = UINT64_C(1) << c.cluster_bits, .buf = buf};
    if (!check_layout(opts, &m, errp) || !block_options_finish(opts, errp)) {
        return -EINVAL;
    }
    if (flags & BLOCK_CREATE_DRY_RUN) {
        return 0;
    }
    GError *error = NULL;
    int ret = open_children(graph, opts, &m, &c, &error) ? make(&m, &error) : -EINVAL;
    close_children(&m);
    if (error) {
        ret = bg_error_to_errno(error);
        g_propagate_error(errp, error);
    }
    return ret;
}
