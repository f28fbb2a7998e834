/*
 * Exports: making, counting, what their file shows.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "fuse/mount-internal.h"
#include "util/error.h"
#include "util/text.h"

/* How long an answer about allocation is good, if nothing was written meanwhile. */
#define ALLOCATED_VALID_NS (1000 * 1000 * 1000LL)

/* ---- Life */

static int check_config(BlockNode *node, const FuseExportConfig *config, GError **errp)
{
    const char *why;
    if (!text_valid_name(config->id, &why)) {
        return bg_error_set(errp, EINVAL, "export '%s': invalid id: %s", config->id, why);
    }
    if (config->growable && !config->writable) {
        return bg_error_set(errp, EINVAL, "export '%s': growable=on needs writable=on", config->id);
    }
    if (config->writable && node->read_only) {
        return bg_error_set(errp, EROFS,
                            "export '%s': node '%s' is read-only and cannot be exported writable", config->id,
                            node->name);
    }
    if (config->strict_sync && block_node_durable(node) == 0) {
        return bg_error_set(errp, EINVAL,
                            "export '%s': node '%s' cannot flush to stable storage (refused by strict-sync)",
                            config->id, node->name);
    }
    return 0;
}

FuseExport *fuse_export_new(BlockGraph *graph, BlockNode *node, const FuseExportConfig *config, GError **errp)
{
    bg_assert_main_thread();
    if (check_config(node, config, errp) < 0) {
        return NULL;
    }
    BlockPerm perm = BLOCK_PERM_CONSISTENT_READ, shared = BLOCK_PERM_ALL;
    if (config->writable) {
        perm |= BLOCK_PERM_WRITE | (config->growable ? BLOCK_PERM_RESIZE : 0);
        shared &= ~BLOCK_PERM_WRITE;
    }
    BlockBackend *blk = block_backend_new(graph, config->id, perm, shared);
    if (block_backend_insert(blk, node, errp) < 0) {
        g_prefix_error(errp, "export '%s': ", config->id);
        block_backend_co_free(blk); /* does not yield: there is nothing to drain below it */
        return NULL;
    }
    FuseExport *exp = g_new0(FuseExport, 1);
    int64_t now = fuse_now_ns();
    exp->id = g_strdup(config->id);
    exp->graph = graph;
    exp->blk = blk;
    exp->writable = config->writable;
    exp->growable = config->growable;
    co_mutex_init(&exp->resize_lock);
    bg_mutex_init(&exp->lock);
    bg_mutex_lock(&exp->lock);
    exp->owner = (FuseOwner){.uid = geteuid(),
                             .gid = getegid(),
                             .mode = config->mode ? config->mode & 0777 : (config->writable ? 0600 : 0400),
                             .atime_ns = now,
                             .mtime_ns = now,
                             .ctime_ns = now};
    exp->allocated = -1;
    bg_mutex_unlock(&exp->lock);
    return exp;
}

void coroutine_fn fuse_export_co_free(FuseExport *exp)
{
    bg_assert_main_thread();
    g_assert(!exp->mount);
    block_backend_co_free(exp->blk);
    co_mutex_destroy(&exp->resize_lock);
    bg_mutex_destroy(&exp->lock);
    free(exp->counts);
    g_free(exp->id);
    g_free(exp);
}

const char *fuse_export_id(const FuseExport *exp)
{
    return exp->id;
}

BlockBackend *fuse_export_backend(FuseExport *exp)
{
    return exp->blk;
}

bool fuse_export_writable(const FuseExport *exp)
{
    return exp->writable;
}

bool fuse_export_growable(const FuseExport *exp)
{
    return exp->growable;
}

/* ---- Requests */

void fuse_export_leave(FuseExport *exp, unsigned queue_index)
{
    FuseMount *mount = exp->mount;
    bool removing = atomic_load_explicit(&exp->removing, memory_order_relaxed);
    _Atomic unsigned *n = &exp->counts[queue_index].in_flight;
    /* Release: the remover, which reads the count, frees what the request used. The export may be gone after.
     */
    atomic_store_explicit(n, atomic_load_explicit(n, memory_order_relaxed) - 1, memory_order_release);
    if (bg_unlikely(removing)) {
        fuse_mount_kick(mount);
    }
}

int64_t fuse_export_last_write(FuseExport *exp)
{
    BlockNode *node = block_backend_node(exp->blk);
    return node ? atomic_load_explicit(&node->last_write_ns, memory_order_relaxed) : 0;
}

static bool is_drained(FuseExport *exp)
{
    BlockNode *node = block_backend_node(exp->blk);
    return node && atomic_load_explicit(&node->quiesce, memory_order_relaxed) > 0;
}

int64_t coroutine_fn fuse_export_co_allocated(FuseExport *exp)
{
    int64_t now = aio_clock_ns();
    int64_t write = fuse_export_last_write(exp);
    bg_mutex_lock(&exp->lock);
    bool valid =
        exp->allocated_at && now - exp->allocated_at < ALLOCATED_VALID_NS && exp->allocated_write == write;
    int64_t allocated = exp->allocated;
    bg_mutex_unlock(&exp->lock);
    if (valid || (is_drained(exp) && allocated >= 0)) {
        return allocated;
    }
    allocated = block_backend_co_get_allocated(exp->blk);
    if (allocated < 0) {
        allocated = block_backend_length(exp->blk);
    }
    bg_mutex_lock(&exp->lock);
    exp->allocated = allocated;
    exp->allocated_at = now;
    exp->allocated_write = write;
    bg_mutex_unlock(&exp->lock);
    return allocated;
}
