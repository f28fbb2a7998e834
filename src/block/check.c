/*
 * Checking a node.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "block/check.h"

#include <errno.h>
#include <string.h>

#include "util/error.h"

int coroutine_fn block_node_co_check(BlockNode *node, BlockCheckFix fix, const BlockCheckListener *listener,
                                     BlockCheckResult *result, GError **errp)
{
    bg_assert_main_thread();
    g_assert(node->to_check && node->parents->len == 0);
    if (!node->driver->co_check) {
        return bg_error_set(errp, ENOTSUP, "node '%s': driver '%s' has nothing that could be checked",
                            node->name, node->driver->name);
    }
    if (fix && node->read_only) {
        return bg_error_set(errp, EROFS, "node '%s' is read-only", node->name);
    }
    memset(result, 0, sizeof *result);
    block_node_inc_in_flight(node);
    int ret = node->driver->co_check(node, fix, listener, result, errp);
    block_node_dec_in_flight(node);
    return ret;
}
