/*
 * Names of operations and permissions.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "block/types.h"

const char *block_op_name(BlockOp op)
{
    static const char *const names[BLOCK_OP__MAX] = {
        [BLOCK_OP_READ] = "read",
        [BLOCK_OP_WRITE] = "write",
        [BLOCK_OP_FLUSH] = "flush",
        [BLOCK_OP_DISCARD] = "discard",
        [BLOCK_OP_WRITE_ZEROES] = "write-zeroes",
        [BLOCK_OP_BLOCK_STATUS] = "block-status",
        [BLOCK_OP_TRUNCATE] = "truncate",
        [BLOCK_OP_COPY_RANGE] = "copy-range",
        [BLOCK_OP_OPEN] = "open",
        [BLOCK_OP_SNAPSHOT] = "snapshot",
        [BLOCK_OP_CONNECT] = "connect",
    };
    g_assert((unsigned)op < BLOCK_OP__MAX);
    return names[op];
}

char *block_perm_names(BlockPerm perm)
{
    static const char *const names[] = {"consistent-read", "write", "write-unchanged", "resize"};
    g_autoptr(GString) s = g_string_new(NULL);
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        if (perm & (1u << i)) {
            g_string_append_printf(s, "%s%s", s->len ? ", " : "", names[i]);
        }
    }
    return g_string_free(g_steal_pointer(&s), FALSE);
}
