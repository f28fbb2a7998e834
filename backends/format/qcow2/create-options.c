/*
 * qcow2: the options of a new image, and what goes together.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "backends/format/qcow2/create.h"

#define DEFAULT_CLUSTER           (INT64_C(64) << 10)
#define MAX_BACKING_NAME          1023u
#define MAX_FORMAT_NAME           255u
#define MIN_EXTENDED_CLUSTER_BITS 14u

static const BlockForeignOption foreign[] = {{"encrypt", NULL}, {NULL, NULL}};

void qcow2_create_clear(Qcow2Create *c)
{
    g_free(c->backing_file);
    g_free(c->backing_format);
    g_free(c->data_file);
}

static bool read_sizes(BlockOptions *opts, Qcow2Create *c, GError **errp)
{
    int64_t cluster = DEFAULT_CLUSTER;
    uint64_t bits = 16;
    c->size = -1;
    if (!block_options_get_size(opts, "size", &c->size, errp) ||
        !block_options_get_size(opts, "cluster-size", &cluster, errp) ||
        !block_options_get_uint64(opts, "refcount-bits", 1, 64, &bits, errp)) {
        return false;
    }
    if (c->size < 0) {
        return block_options_error(opts, "size", errp, EINVAL, "required");
    }
    if (c->size % 512) {
        return block_options_error(opts, "size", errp, EINVAL, "not a multiple of 512");
    }
    if (cluster < 512 || cluster > 2 << 20 || (cluster & (cluster - 1))) {
        return block_options_error(opts, "cluster-size", errp, EINVAL, "not a power of two from 512 to 2M");
    }
    if (bits & (bits - 1)) {
        return block_options_error(opts, "refcount-bits", errp, EINVAL, "not a power of two from 1 to 64");
    }
    c->cluster_bits = (uint32_t)__builtin_ctzll((uint64_t)cluster);
    c->refcount_order = (uint32_t)__builtin_ctzll(bits);
    return true;
}

static bool read_features(BlockOptions *opts, Qcow2Create *c, GError **errp)
{
    static const char *const versions[] = {"v2", "v3", NULL};
    static const char *const compressions[] = {"zlib", "zstd", NULL};
    static const char *const modes[] = {"off", "metadata", "falloc", "full", NULL};
    int version = 1, compression = QCOW2_ZLIB, mode = BLOCK_PREALLOC_OFF;
    if (!block_options_get_enum(opts, "version", versions, &version, errp) ||
        !block_options_get_enum(opts, "compression-type", compressions, &compression, errp) ||
        !block_options_get_enum(opts, "preallocation", modes, &mode, errp) ||
        !block_options_get_bool(opts, "lazy-refcounts", &c->lazy_refcounts, errp) ||
        !block_options_get_bool(opts, "extended-l2", &c->extended, errp)) {
        return false;
    }
    c->version = (uint32_t)version + 2;
    c->compression = compression;
    c->preallocation = mode;
    return true;
}

static bool read_backing(BlockOptions *opts, Qcow2Create *c, GError **errp)
{
    if (!block_options_get_string(opts, "backing-file", &c->backing_file, errp) ||
        !block_options_get_string(opts, "backing-fmt", &c->backing_format, errp)) {
        return false;
    }
    if (c->backing_file && (!*c->backing_file || strlen(c->backing_file) > MAX_BACKING_NAME)) {
        return block_options_error(opts, "backing-file", errp, EINVAL, "not from 1 to %u bytes long",
                                   MAX_BACKING_NAME);
    }
    if (c->backing_format && (!*c->backing_format || strlen(c->backing_format) > MAX_FORMAT_NAME)) {
        return block_options_error(opts, "backing-fmt", errp, EINVAL, "not from 1 to %u bytes long",
                                   MAX_FORMAT_NAME);
    }
    if (c->backing_format && !c->backing_file) {
        return block_options_error(opts, "backing-fmt", errp, EINVAL, "there is no backing-file");
    }
    return true;
}

/* Marks the children as known, too. */
static bool read_data_file(BlockOptions *opts, Qcow2Create *c, GError **errp)
{
    static const char *const children[] = {"file", "data-file"};
    for (unsigned i = 0; i < G_N_ELEMENTS(children); i++) {
        g_autofree char *ref = NULL;
        g_autoptr(JsonObject) object = NULL;
        if (!block_options_get_child(opts, children[i], &ref, &object, errp)) {
            return false;
        }
        c->external = ref || object; /* of the last */
    }
    if (!block_options_get_bool(opts, "data-file-raw", &c->data_raw, errp)) {
        return false;
    }
    if (c->data_raw && (!c->external || c->backing_file)) {
        return block_options_error(opts, "data-file-raw", errp, EINVAL,
                                   c->external ? "cannot be with a backing-file" : "there is no data-file");
    }
    /* Raw: the image reads as the file does, so every cluster has its place there. */
    if (c->data_raw && c->preallocation == BLOCK_PREALLOC_OFF) {
        c->preallocation = BLOCK_PREALLOC_METADATA;
    }
    return true;
}

/* What version 2 cannot say, and what excludes each other. */
static bool check_together(BlockOptions *opts, const Qcow2Create *c, GError **errp)
{
    const struct {
        bool used;
        const char *key;
    } of_v3[] = {{c->refcount_order != 4, "refcount-bits"},
                 {c->lazy_refcounts, "lazy-refcounts"},
                 {c->extended, "extended-l2"},
                 {c->external, "data-file"},
                 {c->compression != QCOW2_ZLIB, "compression-type"}};
    for (unsigned i = 0; i < G_N_ELEMENTS(of_v3); i++) {
        if (c->version < 3 && of_v3[i].used) {
            return block_options_error(opts, of_v3[i].key, errp, EINVAL, "needs version v3");
        }
    }
    if (c->extended && c->cluster_bits < MIN_EXTENDED_CLUSTER_BITS) {
        return block_options_error(opts, "extended-l2", errp, EINVAL, "needs clusters of 16k or more");
    }
    if (c->backing_file && c->preallocation != BLOCK_PREALLOC_OFF && !c->extended) {
        return block_options_error(opts, "preallocation", errp, EINVAL,
                                   "would hide the backing-file; only with extended-l2=on it does not");
    }
    uint32_t span_bits = 2 * c->cluster_bits - (c->extended ? 4 : 3);
    if ((c->size >> span_bits) >= QCOW2_MAX_L1_BYTES / 8) {
        return block_options_error(opts, "size", errp, EFBIG,
                                   "too large for this cluster-size: the L1 table would exceed 32 MiB");
    }
    return true;
}

bool qcow2_create_read_options(BlockOptions *opts, Qcow2Create *c, GError **errp)
{
    return read_sizes(opts, c, errp) && read_features(opts, c, errp) && read_backing(opts, c, errp) &&
           read_data_file(opts, c, errp) && block_options_refuse_foreign(opts, foreign, errp) &&
           check_together(opts, c, errp);
}
