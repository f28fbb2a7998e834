/*
 * Mounts: putting the parts together, start, stop, exports that come and go.
 *
 * The states are in fuse-mount.h. What waits here (stop, removal of an export) is a coroutine of the main
 * thread that sleeps until a count, kept by the main thread, is 0; queues report by bottom half.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "aio/thread-pool.h"
#include "fuse/control-files.h"
#include "fuse/mount-internal.h"
#include "util/error.h"
#include "util/log.h"

int64_t fuse_now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

const char *fuse_mount_mountpoint(const FuseMount *mount)
{
    return mount->mountpoint;
}

bool fuse_mount_is_alive(const FuseMount *mount)
{
    return atomic_load_explicit(&mount->alive, memory_order_relaxed);
}

/* ---- Making */

/* Give the export its counts and its place in the mount; no request can reach it yet. */
static void attach_export(FuseMount *mount, FuseExport *exp)
{
    g_assert(!exp->mount);
    size_t size = mount->n_queues * sizeof *exp->counts;
    exp->counts = aligned_alloc(BG_CACHE_LINE, size);
    g_assert(exp->counts);
    memset(exp->counts, 0, size);
    exp->mount = mount;
    exp->removing = false;
}

static void detach_export(FuseExport *exp)
{
    g_clear_pointer(&exp->counts, free);
    exp->mount = NULL;
}

static void make_root(FuseMount *mount)
{
    FuseExport *single = mount->single_export;
    if (single) {
        attach_export(mount, single);
        bg_mutex_lock(&mount->lock);
        g_ptr_array_add(mount->exports, single);
        bg_mutex_unlock(&mount->lock);
    }
    FuseInodeSpec spec = {.kind = single ? FUSE_INODE_EXPORT : FUSE_INODE_ROOT, .exp = single};
    mount->root = fuse_inode_child(&mount->inodes, NULL, "", &spec);
    if (!single) {
        control_files_add(mount);
    }
}

static FuseMount *mount_alloc(BlockGraph *graph, const FuseMountConfig *config)
{
    g_assert(config->n_contexts > 0);
    FuseMount *mount = g_new0(FuseMount, 1);
    mount->graph = graph;
    mount->single_export = config->single_export;
    mount->debug = config->debug;
    mount->control = g_strdup(config->control);
    mount->read_only = config->read_only;
    mount->uid = geteuid();
    mount->gid = getegid();
    mount->start_ns = fuse_now_ns();
    mount->closed = config->closed;
    mount->opaque = config->opaque;
    mount->alive = true;
    mount->n_queues = config->n_contexts;
    mount->queues = aligned_alloc(BG_CACHE_LINE, mount->n_queues * sizeof *mount->queues);
    g_assert(mount->queues);
    for (unsigned i = 0; i < mount->n_queues; i++) {
        fuse_queue_init(&mount->queues[i], mount, i, config->contexts[i], &fuse_transport_dev);
    }
    fuse_watch_init(mount);
    fuse_inode_table_init(&mount->inodes);
    fuse_file_table_init(&mount->files);
    co_mutex_init(&mount->change_lock);
    bg_mutex_init(&mount->lock);
    bg_mutex_lock(&mount->lock);
    mount->owner = (FuseOwner){.uid = mount->uid,
                               .gid = mount->gid,
                               .mode = 0755,
                               .atime_ns = mount->start_ns,
                               .mtime_ns = mount->start_ns,
                               .ctime_ns = mount->start_ns};
    mount->exports = g_ptr_array_new();
    bg_mutex_unlock(&mount->lock);
    make_root(mount);
    return mount;
}

FuseMount *fuse_mount_new(BlockGraph *graph, const FuseMountConfig *config, GError **errp)
{
    bg_assert_main_thread();
    MountSession *session = mount_session_new(config, errp);
    if (!session) {
        return NULL;
    }
    FuseMount *mount = mount_alloc(graph, config);
    mount->session = session;
    mount->mountpoint = g_strdup(mount_session_mountpoint(session));
    return mount;
}

FuseMount *fuse_mount_new_on_fds(BlockGraph *graph, const FuseMountConfig *config, const int *fds)
{
    FuseMount *mount = mount_alloc(graph, config);
    mount->mountpoint = g_strdup("(test)");
    for (unsigned i = 0; i < mount->n_queues; i++) {
        mount->queues[i].fd = fds[i];
    }
    return mount;
}

/* ---- Start */

static int open_queues(FuseMount *mount, GError **errp)
{
    for (unsigned i = 0; i < mount->n_queues; i++) {
        FuseQueue *queue = &mount->queues[i];
        int ret = queue->transport->open(queue, mount_session_fd(mount->session), errp);
        if (ret < 0) {
            return ret;
        }
    }
    return 0;
}

int fuse_mount_start(FuseMount *mount, GError **errp)
{
    bg_assert_main_thread();
    g_assert(mount->state == FUSE_MOUNT_NEW);
    if (mount->session) {
        int ret = mount_session_init(mount->session, errp);
        if (ret < 0 || (ret = open_queues(mount, errp)) < 0) {
            return ret;
        }
    }
    mount->state = FUSE_MOUNT_RUNNING;
    mount->queues_running = mount->n_queues;
    for (unsigned i = 0; i < mount->n_queues; i++) {
        fuse_queue_start(&mount->queues[i]);
    }
    return 0;
}

/* ---- Reports of the queues */

/* A count that a coroutine may be waiting for has changed. Main thread. */
static void wake_waiter(FuseMount *mount)
{
    Coroutine *co = g_steal_pointer(&mount->waiter);
    if (co) {
        aio_co_wake(co);
    }
}

/* Sleep until something has been reported. */
static void coroutine_fn co_wait(FuseMount *mount)
{
    g_assert(!mount->waiter);
    mount->waiter = coroutine_self();
    coroutine_yield();
}

static void connection_ended_bh(void *opaque)
{
    FuseMount *mount = opaque;
    if (atomic_exchange(&mount->alive, false) && mount->state == FUSE_MOUNT_RUNNING && mount->closed) {
        mount->closed(mount, mount->opaque);
    }
}

void fuse_mount_connection_ended(FuseMount *mount)
{
    aio_bh_schedule_oneshot(block_graph_main_context(mount->graph), connection_ended_bh, mount);
}

static void queue_stopped_bh(void *opaque)
{
    FuseMount *mount = opaque;
    mount->queues_running--;
    wake_waiter(mount);
}

void fuse_mount_queue_stopped(FuseMount *mount)
{
    aio_bh_schedule_oneshot(block_graph_main_context(mount->graph), queue_stopped_bh, mount);
}

static void kick_bh(void *opaque)
{
    wake_waiter(opaque);
}

void fuse_mount_kick(FuseMount *mount)
{
    aio_bh_schedule_oneshot(block_graph_main_context(mount->graph), kick_bh, mount);
}

static void checkpoint_done_bh(void *opaque)
{
    FuseMount *mount = opaque;
    mount->checkpoints--;
    wake_waiter(mount);
}

/* In a queue's thread: every callback that ran there before has ended. */
static void checkpoint_bh(void *opaque)
{
    FuseMount *mount = opaque;
    aio_bh_schedule_oneshot(block_graph_main_context(mount->graph), checkpoint_done_bh, mount);
}

/* Wait until every callback that is running or scheduled in a queue's thread has ended. */
static void coroutine_fn co_checkpoint(FuseMount *mount)
{
    for (unsigned i = 0; i < mount->n_queues; i++) {
        mount->checkpoints++;
        aio_bh_schedule_oneshot(mount->queues[i].ctx, checkpoint_bh, mount);
    }
    while (mount->checkpoints > 0) {
        co_wait(mount);
    }
}

/* ---- Exports */

int fuse_mount_add_export(FuseMount *mount, FuseExport *exp, GError **errp)
{
    bg_assert_main_thread();
    g_assert(!mount->single_export);
    FuseInode *used = fuse_inode_find(&mount->inodes, mount->root, exp->id);
    if (used) {
        fuse_inode_put(&mount->inodes, used);
        return bg_error_set(errp, EEXIST, "export '%s': the mount has this name already", exp->id);
    }
    attach_export(mount, exp);
    FuseInodeSpec spec = {.kind = FUSE_INODE_EXPORT, .exp = exp};
    exp->inode = fuse_inode_child(&mount->inodes, mount->root, exp->id, &spec);
    /* The kernel is not told: it never remembers that a name does not exist. */
    bg_mutex_lock(&mount->lock);
    g_ptr_array_add(mount->exports, exp);
    bg_mutex_unlock(&mount->lock);
    return 0;
}

static unsigned requests_in_flight(const FuseMount *mount, const FuseExport *exp)
{
    unsigned n = 0;
    for (unsigned i = 0; i < mount->n_queues; i++) {
        /* Acquire: pairs with the release in fuse_export_leave. */
        n += atomic_load_explicit(&exp->counts[i].in_flight, memory_order_acquire);
    }
    return n;
}

/* Wait until nobody uses the export, which no inode or file points to any more. */
static void coroutine_fn wait_for_export(FuseMount *mount, FuseExport *exp)
{
    co_checkpoint(mount);
    while (requests_in_flight(mount, exp) > 0) {
        co_wait(mount);
    }
}

typedef struct Invalidation {
    int fd;
    struct {
        struct fuse_out_header header;
        struct fuse_notify_inval_entry_out entry;
        char name[FUSE_NAME_LENGTH_MAX + 1];
    } message;
} Invalidation;

/* In a worker: the kernel may wait for a look-up that is being served. */
static int invalidate_entry(void *opaque)
{
    const Invalidation *inv = opaque;
    return write(inv->fd, &inv->message, inv->message.header.len) < 0 ? -errno : 0;
}

/* Let the kernel forget the name at once. It does not matter when it does not know it, or is gone. */
static void coroutine_fn forget_name(FuseMount *mount, const char *name)
{
    size_t n = strlen(name);
    Invalidation inv = {.fd = mount->queues[0].fd};
    inv.message.header.len = (uint32_t)(sizeof inv.message.header + sizeof inv.message.entry + n + 1);
    inv.message.header.error = FUSE_NOTIFY_INVAL_ENTRY;
    inv.message.entry.parent = FUSE_ROOT_ID;
    inv.message.entry.namelen = (uint32_t)n;
    memcpy(inv.message.name, name, n + 1);
    thread_pool_co_run(invalidate_entry, &inv);
}

static int coroutine_fn remove_export(FuseMount *mount, FuseExport *exp, bool force, GError **errp)
{
    int ret = fuse_file_detach_export(&mount->files, exp, force);
    if (ret < 0) {
        return bg_error_set(errp, -ret, "export '%s' is open", exp->id);
    }
    bg_mutex_lock(&mount->lock);
    g_ptr_array_remove(mount->exports, exp);
    bg_mutex_unlock(&mount->lock);
    atomic_store(&exp->inode->exp, NULL);
    fuse_inode_unlink(&mount->inodes, exp->inode);
    if (mount->state == FUSE_MOUNT_RUNNING) {
        wait_for_export(mount, exp);
        forget_name(mount, exp->id);
    }
    fuse_inode_put(&mount->inodes, g_steal_pointer(&exp->inode));
    detach_export(exp);
    return 0;
}

int coroutine_fn fuse_mount_co_remove_export(FuseMount *mount, FuseExport *exp, bool force, GError **errp)
{
    bg_assert_main_thread();
    g_assert(exp->mount == mount && exp != mount->single_export);
    co_mutex_lock(&mount->change_lock);
    int ret = remove_export(mount, exp, force, errp);
    co_mutex_unlock(&mount->change_lock);
    return ret;
}

/* ---- Stop */

static void coroutine_fn stop_queues(FuseMount *mount)
{
    if (mount->state != FUSE_MOUNT_RUNNING) {
        return;
    }
    for (unsigned i = 0; i < mount->n_queues; i++) {
        fuse_queue_stop(&mount->queues[i]);
    }
    while (mount->queues_running > 0) {
        co_wait(mount);
    }
    fuse_watch_stop(mount);
    co_checkpoint(mount); /* bottom halves from one queue, or the guard, to another */
}

static int coroutine_fn flush_exports(FuseMount *mount)
{
    int first = 0;
    bg_mutex_lock(&mount->lock);
    g_autoptr(GPtrArray) exports = g_ptr_array_copy(mount->exports, NULL, NULL);
    bg_mutex_unlock(&mount->lock);
    for (guint i = 0; i < exports->len; i++) {
        FuseExport *exp = exports->pdata[i];
        int ret = exp->writable ? block_backend_co_flush(exp->blk) : 0;
        if (ret < 0) {
            bg_log(BG_LOG_ERROR, "export '%s': flush: %s", exp->id, g_strerror(-ret));
            first = first ? first : ret;
        }
    }
    return first;
}

/* Whatever the kernel had open when the connection ended. */
static void coroutine_fn close_files(FuseMount *mount)
{
    BlockBackend *blk;
    while ((blk = fuse_file_table_take_backend(&mount->files))) {
        block_backend_co_free(blk);
    }
}

static int coroutine_fn stop(FuseMount *mount)
{
    FuseMountState before = mount->state;
    mount->closed = NULL; /* what ends now ends by us */
    if (mount->session) {
        mount_session_co_unmount(mount->session); /* the queues still serve what this brings */
    }
    stop_queues(mount);
    mount->state = FUSE_MOUNT_STOPPED;
    atomic_store(&mount->alive, false);
    for (unsigned i = 0; i < mount->n_queues; i++) {
        mount->queues[i].transport->close(&mount->queues[i]);
    }
    if (mount->session) {
        mount_session_free(g_steal_pointer(&mount->session));
    }
    close_files(mount);
    return before == FUSE_MOUNT_RUNNING ? flush_exports(mount) : 0;
}

int coroutine_fn fuse_mount_co_stop(FuseMount *mount)
{
    bg_assert_main_thread();
    co_mutex_lock(&mount->change_lock);
    int ret = mount->state == FUSE_MOUNT_STOPPED ? 0 : stop(mount);
    co_mutex_unlock(&mount->change_lock);
    return ret;
}

void fuse_mount_free(FuseMount *mount)
{
    bg_assert_main_thread();
    g_assert(mount->state == FUSE_MOUNT_STOPPED);
    bg_mutex_lock(&mount->lock);
    for (guint i = 0; i < mount->exports->len; i++) {
        FuseExport *exp = mount->exports->pdata[i];
        exp->inode = NULL; /* freed with the table */
        detach_export(exp);
    }
    g_ptr_array_unref(mount->exports);
    bg_mutex_unlock(&mount->lock);
    fuse_file_table_destroy(&mount->files);
    fuse_inode_table_destroy(&mount->inodes);
    for (unsigned i = 0; i < mount->n_queues; i++) {
        aio_context_unref(mount->queues[i].ctx);
    }
    g_free(mount->mountpoint);
    g_free(mount->control);
    free(mount->queues);
    co_mutex_destroy(&mount->change_lock);
    fuse_watch_destroy(mount);
    bg_mutex_destroy(&mount->lock);
    g_free(mount);
}
