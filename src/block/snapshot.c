/*
 * Snapshots of several nodes at one point in time. See snapshot.h for the states of a change.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "block/block-internal.h"
#include "block/snapshot.h"
#include "util/error.h"
#include "util/text.h"

BlockSnapshotInfo *block_snapshot_info_new(const char *id, const char *name)
{
    BlockSnapshotInfo *info = g_new0(BlockSnapshotInfo, 1);
    info->id = g_strdup(id);
    info->name = g_strdup(name);
    return info;
}

void block_snapshot_info_free(BlockSnapshotInfo *info)
{
    g_free(info->id);
    g_free(info->name);
    g_free(info);
}

/* ---- Whose snapshots */

static bool passes_through(BlockNode *node)
{
    const BlockDriver *driver = node->driver;
    return node->file && (driver->passes_through ? driver->passes_through(node) : driver->is_filter);
}

BlockNode *block_snapshot_target(BlockNode *node, GError **errp)
{
    BlockNode *target = node;
    while (!target->driver->snapshots && passes_through(target)) {
        target = target->file->node;
    }
    if (!target->driver->snapshots) {
        bg_error_set(errp, EOPNOTSUPP, "node '%s': driver '%s' has no snapshots", target->name,
                     target->driver->name);
        return NULL;
    }
    return target;
}

/* Each once; NULL and *errp where one has no snapshots, or may not change. */
static GPtrArray *find_targets(BlockNode *const *nodes, unsigned n, GError **errp)
{
    g_autoptr(GPtrArray) targets = g_ptr_array_new();
    for (unsigned i = 0; i < n; i++) {
        BlockNode *target = block_snapshot_target(nodes[i], errp);
        if (!target) {
            return NULL;
        }
        if (target->read_only) {
            bg_error_set(errp, EROFS, "node '%s' is read-only", target->name);
            return NULL;
        }
        if (!g_ptr_array_find(targets, target, NULL)) {
            g_ptr_array_add(targets, target);
        }
    }
    return g_steal_pointer(&targets);
}

/* ---- Names */

bool block_snapshot_check_name(const char *name, GError **errp)
{
    const char *why = !*name                                      ? "is empty"
                      : strlen(name) > BLOCK_SNAPSHOT_NAME_MAX    ? "is longer than 255 bytes"
                      : strchr(name, '/')                         ? "contains '/'"
                      : !strcmp(name, ".") || !strcmp(name, "..") ? "is a directory's own name"
                      : !g_utf8_validate(name, -1, NULL)          ? "is not UTF-8"
                      : text_has_control(name)                    ? "contains a control character"
                                                                  : NULL;
    if (why) {
        bg_error_set(errp, EINVAL, "the snapshot's name %s", why);
    }
    return !why;
}

int coroutine_fn block_snapshot_co_list(BlockNode *node, GPtrArray *infos, GError **errp)
{
    bg_assert_main_thread();
    BlockNode *target = block_snapshot_target(node, errp);
    return target ? target->driver->snapshots->co_list(target, infos, errp) : -EOPNOTSUPP;
}

static int coroutine_fn check_present(BlockNode *target, const BlockSnapshotChange *change, GError **errp)
{
    g_autoptr(GPtrArray) infos = g_ptr_array_new_with_free_func((GDestroyNotify)block_snapshot_info_free);
    int ret = target->driver->snapshots->co_list(target, infos, errp);
    bool found = false;
    for (guint i = 0; i < infos->len && !found; i++) {
        const BlockSnapshotInfo *info = infos->pdata[i];
        found = !strcmp(info->name, change->name);
    }
    if (ret < 0 || found == (change->action != BLOCK_SNAPSHOT_CREATE)) {
        return ret;
    }
    return bg_error_set(errp, found ? EEXIST : ENOENT, "node '%s' has %s snapshot '%s'", target->name,
                        found ? "already a" : "no", change->name);
}

/* ---- Changes */

typedef struct Change {
    const BlockSnapshotChange *what;
    GPtrArray *targets; /* BlockNode */
    void **states;      /* of each prepared and not committed one */
} Change;

static const BlockSnapshotOps *ops_of(const Change *c, guint i)
{
    return ((BlockNode *)c->targets->pdata[i])->driver->snapshots;
}

static int coroutine_fn prepare_all(Change *c, GError **errp)
{
    for (guint i = 0; i < c->targets->len; i++) {
        int ret = ops_of(c, i)->co_prepare(c->targets->pdata[i], c->what, &c->states[i], errp);
        if (ret < 0) {
            while (i-- > 0) {
                ops_of(c, i)->co_abort(c->targets->pdata[i], c->states[i]);
            }
            return ret;
        }
    }
    return 0;
}

/* Take back the creation on the first n. What fails here stays as a snapshot that nobody asked for. */
static void coroutine_fn undo_creation(const Change *c, guint n)
{
    BlockSnapshotChange deletion = {.action = BLOCK_SNAPSHOT_DELETE, .name = c->what->name};
    for (guint i = 0; i < n; i++) {
        BlockNode *target = c->targets->pdata[i];
        g_autoptr(GError) err = NULL;
        void *state;
        int ret = ops_of(c, i)->co_prepare(target, &deletion, &state, &err);
        ret = ret < 0 ? ret : ops_of(c, i)->co_commit(target, state, &err);
        if (ret < 0) {
            block_graph_log_error(target->graph, target->name, BLOCK_OP_SNAPSHOT, -1, 0, -ret, err->message);
        }
    }
}

static int coroutine_fn commit_all(Change *c, GError **errp)
{
    for (guint i = 0; i < c->targets->len; i++) {
        int ret = ops_of(c, i)->co_commit(c->targets->pdata[i], c->states[i], errp);
        if (ret == 0) {
            continue;
        }
        for (guint j = i + 1; j < c->targets->len; j++) {
            ops_of(c, j)->co_abort(c->targets->pdata[j], c->states[j]);
        }
        if (c->what->action == BLOCK_SNAPSHOT_CREATE) {
            undo_creation(c, i);
        } else if (i > 0) {
            g_prefix_error(errp, "%u of %u nodes done, then: ", i, c->targets->len);
        }
        return ret;
    }
    return 0;
}

/* The nodes between a user and its target are as long as the target. */
static void pass_length_up(BlockNode *node)
{
    int64_t length = block_node_length(block_snapshot_target(node, NULL));
    for (; !node->driver->snapshots; node = node->file->node) {
        atomic_store(&node->length, length);
    }
}

static int coroutine_fn change_drained(Change *c, BlockNode *const *nodes, unsigned n, GError **errp)
{
    BlockDrain *section = block_drain_co_begin_nodes((BlockNode *const *)c->targets->pdata, c->targets->len);
    c->states = g_new0(void *, c->targets->len);
    int ret = prepare_all(c, errp);
    ret = ret < 0 ? ret : commit_all(c, errp);
    for (unsigned i = 0; i < n && c->what->action == BLOCK_SNAPSHOT_REVERT; i++) {
        pass_length_up(nodes[i]);
    }
    g_free(c->states);
    block_drain_end(section);
    return ret;
}

static int coroutine_fn change_targets(Change *c, BlockNode *const *nodes, unsigned n, GError **errp)
{
    for (guint i = 0; i < c->targets->len; i++) {
        int ret = check_present(c->targets->pdata[i], c->what, errp);
        if (ret < 0) {
            return ret;
        }
    }
    for (guint i = 0; i < c->targets->len; i++) {
        if (ops_of(c, i)->co_warm_up) {
            ops_of(c, i)->co_warm_up(c->targets->pdata[i]);
        }
    }
    return change_drained(c, nodes, n, errp);
}

/* With the lock: which node is meant changes where an overlay takes its place. */
static int coroutine_fn change_locked(BlockNode *const *nodes, unsigned n, const BlockSnapshotChange *what,
                                      GError **errp)
{
    GError *err = NULL;
    g_autoptr(GPtrArray) targets = find_targets(nodes, n, &err);
    if (!targets) {
        int ret = bg_error_to_errno(err);
        g_propagate_error(errp, err);
        return ret;
    }
    for (guint i = 0; i < targets->len; i++) {
        block_node_ref(targets->pdata[i]);
    }
    int ret = change_targets(&(Change){.what = what, .targets = targets}, nodes, n, errp);
    for (guint i = 0; i < targets->len; i++) {
        block_node_co_unref(targets->pdata[i]);
    }
    return ret;
}

static int coroutine_fn change_nodes(BlockNode *const *nodes, unsigned n, BlockSnapshotChange what,
                                     GError **errp)
{
    bg_assert_main_thread();
    if (n == 0) {
        return bg_error_set(errp, EINVAL, "no node to take a snapshot of");
    }
    BlockGraph *graph = nodes[0]->graph;
    co_mutex_lock(&graph->snapshot_lock);
    int ret = change_locked(nodes, n, &what, errp);
    co_mutex_unlock(&graph->snapshot_lock);
    return ret;
}

int coroutine_fn block_snapshot_co_create(BlockNode *const *nodes, unsigned n, const char *name,
                                          GError **errp)
{
    if (!block_snapshot_check_name(name, errp)) {
        return -EINVAL;
    }
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return change_nodes(nodes, n,
                        (BlockSnapshotChange){.action = BLOCK_SNAPSHOT_CREATE,
                                              .name = name,
                                              .date_ns = now.tv_sec * 1000000000LL + now.tv_nsec},
                        errp);
}

int coroutine_fn block_snapshot_co_delete(BlockNode *const *nodes, unsigned n, const char *name,
                                          GError **errp)
{
    return change_nodes(nodes, n, (BlockSnapshotChange){.action = BLOCK_SNAPSHOT_DELETE, .name = name}, errp);
}

int coroutine_fn block_snapshot_co_revert(BlockNode *const *nodes, unsigned n, const char *name,
                                          GError **errp)
{
    return change_nodes(nodes, n, (BlockSnapshotChange){.action = BLOCK_SNAPSHOT_REVERT, .name = name}, errp);
}
