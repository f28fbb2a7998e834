/*
 * qcow2: the header. Everything in it is hostile until checked here.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "backends/format/qcow2/qcow2.h"
#include "util/error.h"

#define V2_LENGTH               72u
#define V3_LENGTH               104u
#define EXTENSION_FEATURE_NAMES 0x6803f857u
#define FEATURE_NAME_SIZE       48u /* type, bit, 46 bytes of name */
#define KNOWN_INCOMPATIBLE                                                                                   \
    (QCOW2_INCOMPATIBLE_DIRTY | QCOW2_INCOMPATIBLE_CORRUPT | QCOW2_INCOMPATIBLE_DATA_FILE |                  \
     QCOW2_INCOMPATIBLE_COMPRESSION | QCOW2_INCOMPATIBLE_EXTENDED_L2)

/* ---- Parsing */

static void parse_fields(const uint8_t *b, Qcow2Header *h)
{
    h->version = qcow2_load32(b + 4);
    h->backing_offset = qcow2_load64(b + 8);
    h->backing_length = qcow2_load32(b + 16);
    h->cluster_bits = qcow2_load32(b + 20);
    h->size = qcow2_load64(b + QCOW2_HEADER_SIZE);
    h->encryption = qcow2_load32(b + 32);
    h->l1_size = qcow2_load32(b + QCOW2_HEADER_L1_SIZE);
    h->l1_offset = qcow2_load64(b + 40);
    h->reftable_offset = qcow2_load64(b + QCOW2_HEADER_REFTABLE);
    h->reftable_clusters = qcow2_load32(b + 56);
    h->snapshots = qcow2_load32(b + 60);
    h->snapshots_offset = qcow2_load64(b + 64);
    h->refcount_order = 4;
    h->header_length = V2_LENGTH;
}

static int parse_v3_fields(const uint8_t *b, size_t n, const char *name, Qcow2Header *h, GError **errp)
{
    h->incompatible = qcow2_load64(b + QCOW2_HEADER_INCOMPATIBLE);
    h->compatible = qcow2_load64(b + 80);
    h->autoclear = qcow2_load64(b + QCOW2_HEADER_AUTOCLEAR);
    h->refcount_order = qcow2_load32(b + 96);
    h->header_length = qcow2_load32(b + 100);
    if (h->header_length < V3_LENGTH || h->header_length > n || h->header_length % 8) {
        return bg_error_set(errp, EINVAL, "node '%s': qcow2 header: impossible length %" PRIu32, name,
                            h->header_length);
    }
    if (h->refcount_order > 6) {
        return bg_error_set(errp, EINVAL, "node '%s': qcow2 header: refcounts of 2^%" PRIu32 " bits", name,
                            h->refcount_order);
    }
    uint8_t type = h->header_length > V3_LENGTH ? b[V3_LENGTH] : 0;
    if (type > QCOW2_ZSTD || (type != 0) != !!(h->incompatible & QCOW2_INCOMPATIBLE_COMPRESSION)) {
        return bg_error_set(errp, EINVAL,
                            "node '%s': qcow2 header: unknown or contradictory compression "
                            "type %u",
                            name, type);
    }
    h->compression = type;
    return 0;
}

/* The name of a feature bit from the table among the header's extensions, "" where it has none. */
static char *feature_name(const uint8_t *buf, size_t n, size_t at, unsigned bit)
{
    while (at + 8 <= n) {
        uint32_t type = qcow2_load32(buf + at), len = qcow2_load32(buf + at + 4);
        at += 8;
        if (type == 0 || len > n - at) {
            break;
        }
        for (size_t i = 0; type == EXTENSION_FEATURE_NAMES && i + FEATURE_NAME_SIZE <= len;
             i += FEATURE_NAME_SIZE) {
            const uint8_t *e = buf + at + i;
            if (e[0] == 0 && e[1] == bit) {
                g_autofree char *raw = g_strndup((const char *)e + 2, FEATURE_NAME_SIZE - 2);
                char *name = g_utf8_make_valid(raw, -1);
                return g_strcanon(
                    name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .-_()", '?');
            }
        }
        at += (len + 7u) & ~7u;
    }
    return g_strdup("");
}

static int refuse_unknown_features(const uint8_t *buf, size_t n, const Qcow2Header *h, const char *node_name,
                                   GError **errp)
{
    uint64_t unknown = h->incompatible & ~KNOWN_INCOMPATIBLE;
    if (!unknown) {
        return 0;
    }
    g_autoptr(GString) names = g_string_new("");
    for (unsigned bit = 0; bit < 64; bit++) {
        if (unknown & (UINT64_C(1) << bit)) {
            g_autofree char *text = feature_name(buf, n, h->header_length, bit);
            g_string_append_printf(names, "%s%s%s(bit %u)", names->len ? ", " : "", text, *text ? " " : "",
                                   bit);
        }
    }
    return bg_error_set(errp, ENOTSUP, "node '%s': the qcow2 image uses features that are not supported: %s",
                        node_name, names->str);
}

/* ---- Checks */

/* A table of `bytes` at `offset`: aligned, behind the header, in the file. */
static bool table_fits(const Qcow2Header *h, uint64_t offset, uint64_t bytes, int64_t file_length)
{
    uint64_t cluster = UINT64_C(1) << h->cluster_bits;
    uint64_t end = ((uint64_t)file_length + cluster - 1) & ~(cluster - 1);
    return offset % cluster == 0 && offset >= cluster && offset <= end && bytes <= end - offset;
}

static int check_reftable(Qcow2Header *h, int64_t file_length, const char *name, bool to_check, GError **errp)
{
    uint64_t bytes = (uint64_t)h->reftable_clusters << h->cluster_bits;
    bool too_large = bytes > (uint64_t)QCOW2_MAX_REFTABLE_BYTES;
    if (!too_large && bytes && table_fits(h, h->reftable_offset, bytes, file_length)) {
        return 0;
    }
    if (to_check) {
        h->reftable_offset = h->reftable_clusters = 0;
        return 0;
    }
    if (too_large) {
        return bg_error_set(errp, EFBIG, "node '%s': qcow2 header: the refcount table is too large", name);
    }
    return bg_error_set(errp, EINVAL, "node '%s': qcow2 header: the refcount table is not in the file", name);
}

static int check_tables(const Qcow2Header *h, int64_t file_length, const char *name, GError **errp)
{
    uint64_t l1_bytes = (uint64_t)h->l1_size * 8;
    uint32_t l2_bits = h->cluster_bits - (h->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2 ? 4 : 3);
    uint64_t span = UINT64_C(1) << (h->cluster_bits + l2_bits);
    uint64_t needed = h->size / span + (h->size % span != 0);
    if (l1_bytes > (uint64_t)QCOW2_MAX_L1_BYTES || needed * 8 > (uint64_t)QCOW2_MAX_L1_BYTES) {
        return bg_error_set(errp, EFBIG, "node '%s': qcow2 header: the L1 table is too large", name);
    }
    if (h->l1_size < needed) {
        return bg_error_set(errp, EINVAL, "node '%s': qcow2 header: the L1 table is too small for the image",
                            name);
    }
    if (h->l1_size && !table_fits(h, h->l1_offset, l1_bytes, file_length)) {
        return bg_error_set(errp, EINVAL, "node '%s': qcow2 header: the L1 table is not in the file", name);
    }
    if (h->snapshots > QCOW2_MAX_SNAPSHOTS) {
        return bg_error_set(errp, EFBIG, "node '%s': qcow2 header: %" PRIu32 " snapshots are too many", name,
                            h->snapshots);
    }
    if (h->snapshots_offset & ((UINT64_C(1) << h->cluster_bits) - 1)) {
        return bg_error_set(
            errp, EINVAL, "node '%s': qcow2 header: the snapshot table does not begin with a cluster", name);
    }
    /* An entry takes at least 40 bytes. */
    if (h->snapshots && !table_fits(h, h->snapshots_offset, h->snapshots * UINT64_C(40), file_length)) {
        return bg_error_set(errp, EINVAL, "node '%s': qcow2 header: the snapshot table is not in the file",
                            name);
    }
    return 0;
}

static int check_fields(const Qcow2Header *h, const char *name, GError **errp)
{
    if (h->cluster_bits < 9 || h->cluster_bits > 21) {
        return bg_error_set(errp, EINVAL, "node '%s': qcow2 header: clusters of 2^%" PRIu32 " bytes", name,
                            h->cluster_bits);
    }
    if (h->encryption) {
        return bg_error_set(errp, ENOTSUP, "node '%s': the qcow2 image is encrypted, which is not supported",
                            name);
    }
    if (h->size > (uint64_t)BLOCK_MAX_LENGTH) {
        return bg_error_set(errp, EFBIG, "node '%s': qcow2 header: impossible size %" PRIu64, name, h->size);
    }
    if ((h->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2) && h->cluster_bits < 14) {
        return bg_error_set(errp, EINVAL,
                            "node '%s': qcow2 header: extended L2 entries with clusters below "
                            "16 KiB",
                            name);
    }
    if ((h->incompatible & QCOW2_INCOMPATIBLE_DATA_FILE) && h->snapshots) {
        return bg_error_set(errp, EINVAL,
                            "node '%s': qcow2 header: snapshots, and an external data file that cannot have "
                            "them",
                            name);
    }
    if (h->header_length > (UINT64_C(1) << h->cluster_bits)) {
        return bg_error_set(errp, EINVAL, "node '%s': qcow2 header: longer than a cluster", name);
    }
    if (h->backing_offset &&
        (h->backing_length > 1023 || h->backing_offset > (UINT64_C(1) << h->cluster_bits) ||
         h->backing_length > (UINT64_C(1) << h->cluster_bits) - h->backing_offset)) {
        return bg_error_set(errp, EINVAL,
                            "node '%s': qcow2 header: the backing file's name is not in the "
                            "first cluster",
                            name);
    }
    return 0;
}

int qcow2_header_parse(const uint8_t *buf, size_t n, int64_t file_length, const char *node_name,
                       bool to_check, Qcow2Header *h, GError **errp)
{
    memset(h, 0, sizeof *h);
    if (n < V2_LENGTH || qcow2_load32(buf) != QCOW2_MAGIC) {
        return bg_error_set(errp, EINVAL, "node '%s': not a qcow2 image", node_name);
    }
    parse_fields(buf, h);
    if (h->version != 2 && h->version != 3) {
        return bg_error_set(errp, ENOTSUP, "node '%s': qcow2 version %" PRIu32 " is not supported", node_name,
                            h->version);
    }
    if (h->version == 3 && n < V3_LENGTH) {
        return bg_error_set(errp, EINVAL, "node '%s': qcow2 header: the file is too short", node_name);
    }
    int ret = 0;
    if (h->version == 3) {
        /* Unknown features first: they may change what the other fields mean. */
        h->incompatible = qcow2_load64(buf + QCOW2_HEADER_INCOMPATIBLE);
        h->header_length = qcow2_load32(buf + 100);
        ret = refuse_unknown_features(buf, n, h, node_name, errp);
        ret = ret < 0 ? ret : parse_v3_fields(buf, n, node_name, h, errp);
    }
    ret = ret < 0 ? ret : check_fields(h, node_name, errp);
    ret = ret < 0 ? ret : check_reftable(h, file_length, node_name, to_check, errp);
    return ret < 0 ? ret : check_tables(h, file_length, node_name, errp);
}

/* ---- Writing */

int coroutine_fn qcow2_header_write_locked(Qcow2State *s, unsigned field, const void *value, size_t n)
{
    return block_child_co_pwrite(s->node->file, field, (int64_t)n, value, 0);
}

int coroutine_fn qcow2_begin_change_locked(Qcow2State *s)
{
    if (bg_unlikely(atomic_load(&s->corrupt))) {
        return -EIO;
    }
    if (bg_likely(!(s->autoclear & ~qcow2_autoclear_kept(s)))) {
        return 0;
    }
    /* On stable storage before the first change, or a bitmap might be taken for true. */
    int ret = qcow2_bitmaps_mark_locked(s);
    uint64_t kept = s->autoclear & qcow2_autoclear_kept(s), bits = GUINT64_TO_BE(kept);
    if (ret < 0 || kept == s->autoclear) {
        return ret;
    }
    ret = qcow2_header_write_locked(s, QCOW2_HEADER_AUTOCLEAR, &bits, sizeof bits);
    ret = ret < 0 ? ret : qcow2_file_flush(s);
    if (ret == 0) {
        s->autoclear = kept;
    }
    return ret;
}

int coroutine_fn qcow2_mark_corrupt_locked(Qcow2State *s, uint64_t offset, const char *what)
{
    g_autofree char *text = g_strdup_printf("qcow2 image is corrupt: %s", what);
    block_graph_log_error(s->node->graph, s->node->name, BLOCK_OP_WRITE, (int64_t)MIN(offset, INT64_MAX), 0,
                          EIO, text);
    if (atomic_exchange(&s->corrupt, true) || s->node->read_only || s->version < 3) {
        return -EIO;
    }
    s->incompatible |= QCOW2_INCOMPATIBLE_CORRUPT;
    uint64_t bits = GUINT64_TO_BE(s->incompatible);
    if (qcow2_header_write_locked(s, QCOW2_HEADER_INCOMPATIBLE, &bits, sizeof bits) == 0) {
        qcow2_file_flush(s);
    }
    return -EIO;
}

int qcow2_give_up_locked(Qcow2State *s, int error, const char *what)
{
    block_graph_log_error(s->node->graph, s->node->name, BLOCK_OP_WRITE, -1, 0, -error, what);
    atomic_store(&s->corrupt, true);
    return error;
}
