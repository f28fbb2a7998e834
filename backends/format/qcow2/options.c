/*
 * qcow2: options that have nothing to do with the image.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "backends/format/qcow2/qcow2.h"
#include "util/error.h"

#define MIB                    (INT64_C(1) << 20)
#define DEFAULT_L2_CACHE       (32 * MIB)
#define DEFAULT_REFCOUNT_CACHE (8 * MIB)
#define MAX_CACHE              (INT64_C(1) << 40)
#define DEFAULT_INTERVAL       600 /* seconds */
/* Below it one operation could not hold what it works on. */
#define MIN_TABLES             4

/* QEMU's; harmless is what we do in any case. */
static const BlockForeignOption foreign_options[] = {
    {"lazy-refcounts", "off"},
    {"pass-discard-request", "on"},
    {"pass-discard-snapshot", "on"},
    {"pass-discard-other", "on"},
    {"discard-no-unref", "off"},
    {"cache-size", NULL},
    {"l2-cache-entry-size", NULL},
    {"encrypt", NULL},
    {NULL, NULL},
};

static unsigned tables_in(const Qcow2State *s, int64_t bytes)
{
    return (unsigned)MAX(MIN(bytes >> s->cluster_bits, INT64_C(1) << 30), MIN_TABLES);
}

static int open_caches(Qcow2State *s, BlockOptions *opts, GError **errp)
{
    int64_t l2 = DEFAULT_L2_CACHE, refcount = DEFAULT_REFCOUNT_CACHE;
    if (!block_options_get_size(opts, "l2-cache-size", &l2, errp) ||
        !block_options_get_size(opts, "refcount-cache-size", &refcount, errp)) {
        return -EINVAL;
    }
    if (l2 > MAX_CACHE || refcount > MAX_CACHE) {
        block_options_error(opts, l2 > MAX_CACHE ? "l2-cache-size" : "refcount-cache-size", errp, ERANGE,
                            "more than 1 TiB");
        return -ERANGE;
    }
    qcow2_cache_init(&s->l2_cache, tables_in(s, l2), true);
    qcow2_cache_init(&s->refcount_cache, tables_in(s, refcount), false);
    return 0;
}

/* The checks that QEMU calls "cached" are those of overlap.c. */
static bool read_overlap_check(BlockOptions *opts, GError **errp)
{
    static const char *const words[] = {"cached", NULL};
    int index = 0;
    bool is_word = block_options_is_string(opts, "overlap-check");
    return block_options_get_enum(opts, is_word ? "overlap-check" : "overlap-check.template", words, &index,
                                  errp);
}

int qcow2_options_read(Qcow2State *s, BlockOptions *opts, GError **errp)
{
    uint64_t interval = DEFAULT_INTERVAL;
    if (!block_options_refuse_foreign(opts, foreign_options, errp) || !read_overlap_check(opts, errp) ||
        !block_options_get_uint64(opts, "cache-clean-interval", 0, UINT32_MAX, &interval, errp)) {
        return -EINVAL;
    }
    s->clean_interval_ns = (int64_t)interval * INT64_C(1000000000);
    return open_caches(s, opts, errp);
}
