/*
 * BlockOptions: options of QEMU's that are known, but not supported.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "block/options.h"
#include "util/text.h"

/* Whether the option has this value: *out. */
static bool has_value(BlockOptions *opts, const char *key, const char *wanted, bool *out, GError **errp)
{
    bool wanted_bool, flag;
    uint64_t number;

    if (text_parse_bool(wanted, &wanted_bool) == 0) {
        if (!block_options_get_bool(opts, key, &flag, errp)) {
            return false;
        }
        *out = flag == wanted_bool;
        return true;
    }
    if (!block_options_get_uint64(opts, key, 0, UINT64_MAX, &number, errp)) {
        return false;
    }
    *out = number == g_ascii_strtoull(wanted, NULL, 10);
    return true;
}

bool block_options_refuse_foreign(BlockOptions *opts, const BlockForeignOption *list, GError **errp)
{
    for (; list->key; list++) {
        bool harmless = false;

        if (!block_options_has(opts, list->key)) {
            continue;
        }
        if (list->harmless && !has_value(opts, list->key, list->harmless, &harmless, errp)) {
            return false;
        }
        if (!harmless) {
            return block_options_error(opts, list->key, errp, ENOTSUP, "is not supported%s%s",
                                       list->harmless ? ", other than " : "",
                                       list->harmless ? list->harmless : "");
        }
    }
    return true;
}
