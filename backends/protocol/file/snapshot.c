/*
 * Snapshots of the driver file: reflinks in the directory IMAGE.snapshots beside the image.
 *
 *   create   NONE --O_TMPFILE, FICLONE, fsync--> PREPARED --linkat, fsync of the directory--> THERE
 *   delete   THERE --unlinkat, fsync of the directory--> NONE
 *
 * To revert, the image is cut to the snapshot's length and made a reflink of it; a power cut in the middle
 * can leave parts of both.
 *
 * All calls that may block run in worker threads.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "aio/aio.h"
#include "aio/thread-pool.h"
#include "backends/protocol/file/file.h"
#include "block/io.h"
#include "util/error.h"

#define NSEC_PER_SEC 1000000000

/* What a worker does; 0 or -errno. */
typedef struct Job {
    FileState *s;
    BlockSnapshotAction action;
    char *name;
    int64_t date_ns;
    int dir;        /* IMAGE.snapshots; -1: not open */
    int fd;         /* the snapshot's file; -1: not open */
    int64_t length; /* of the snapshot, bytes */
    GPtrArray *infos;
} Job;

static Job *job_new(BlockNode *node, const char *name)
{
    Job *job = g_new(Job, 1);
    *job = (Job){.s = node->opaque, .name = g_strdup(name), .dir = -1, .fd = -1};
    return job;
}

static void job_free(Job *job)
{
    if (job->dir >= 0) {
        close(job->dir);
    }
    if (job->fd >= 0) {
        close(job->fd);
    }
    g_free(job->name);
    g_free(job);
}

static int explain(BlockNode *node, BlockSnapshotAction action, const char *name, int ret, GError **errp)
{
    static const char *const verbs[] = {"taking", "deleting", "reverting to"};
    const FileState *s = node->opaque;
    bool never = ret == -EOPNOTSUPP || ret == -EXDEV || ret == -ENOTTY;
    if (never || (ret == -EINVAL && action == BLOCK_SNAPSHOT_CREATE)) {
        return bg_error_set(
            errp, EOPNOTSUPP,
            "node '%s': the file system of '%s' cannot share data between files (reflink), so "
            "that there are no snapshots",
            node->name, s->filename);
    }
    return bg_error_set_errno(errp, -ret, "node '%s': %s snapshot '%s' of '%s'", node->name, verbs[action],
                              name, s->filename);
}

/* ---- In worker threads */

/* The directory of the snapshots, or -errno. */
static int open_directory(const FileState *s, bool create)
{
    g_autofree char *real = realpath(s->filename, NULL);
    if (!real) {
        return -errno;
    }
    g_autofree char *path = g_strconcat(real, ".snapshots", NULL);
    if (create && mkdir(path, 0700) < 0 && errno != EEXIST) {
        return -errno;
    }
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* The name of the directory itself must last, too. */
static int sync_parent(int dir)
{
    int parent = openat(dir, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int ret = parent < 0 || fsync(parent) < 0 ? -errno : 0;
    if (parent >= 0) {
        close(parent);
    }
    return ret;
}

static int clone_in_thread(void *opaque)
{
    Job *job = opaque;
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT},
                                {job->date_ns / NSEC_PER_SEC, job->date_ns % NSEC_PER_SEC}};
    job->dir = open_directory(job->s, true);
    if (job->dir < 0) {
        return job->dir;
    }
    job->fd = openat(job->dir, ".", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
    if (job->fd < 0 || ioctl(job->fd, FICLONE, job->s->fd) < 0 || futimens(job->fd, times) < 0 ||
        fsync(job->fd) < 0) {
        int err = errno;
        g_autofree char *real = realpath(job->s->filename, NULL);
        g_autofree char *path = g_strconcat(real ? real : "", ".snapshots", NULL);
        rmdir(path); /* only where it is empty */
        return -err;
    }
    return sync_parent(job->dir);
}

static int link_in_thread(void *opaque)
{
    Job *job = opaque;
    g_autofree char *self = g_strdup_printf("/proc/self/fd/%d", job->fd);
    if (linkat(AT_FDCWD, self, job->dir, job->name, AT_SYMLINK_FOLLOW) < 0) {
        return -errno;
    }
    if (fsync(job->dir) < 0) {
        int err = errno;
        unlinkat(job->dir, job->name, 0);
        return -err;
    }
    return 0;
}

static int open_in_thread(void *opaque)
{
    Job *job = opaque;
    struct stat st;
    job->dir = open_directory(job->s, false);
    if (job->dir < 0) {
        return job->dir;
    }
    job->fd = openat(job->dir, job->name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (job->fd < 0 || fstat(job->fd, &st) < 0) {
        return -errno;
    }
    job->length = st.st_size;
    return S_ISREG(st.st_mode) ? 0 : -ENOENT;
}

static int unlink_in_thread(void *opaque)
{
    Job *job = opaque;
    return unlinkat(job->dir, job->name, 0) < 0 || fsync(job->dir) < 0 ? -errno : 0;
}

static int revert_in_thread(void *opaque)
{
    Job *job = opaque;
    int fd = job->s->fd;
    /* First the length: a clone whose end is not that of a block must be the end of both files. */
    return ftruncate(fd, job->length) < 0 || ioctl(fd, FICLONE, job->fd) < 0 || fsync(fd) < 0 ? -errno : 0;
}

static void add_info(Job *job, const char *name)
{
    struct stat st;
    if (fstatat(job->dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode)) {
        BlockSnapshotInfo *info = block_snapshot_info_new("", name);
        info->date_ns = (int64_t)st.st_mtim.tv_sec * NSEC_PER_SEC + st.st_mtim.tv_nsec;
        info->length = st.st_size;
        g_ptr_array_add(job->infos, info);
    }
}

static gint compare_dates(gconstpointer a, gconstpointer b)
{
    const BlockSnapshotInfo *x = *(void *const *)a, *y = *(void *const *)b;
    return x->date_ns < y->date_ns ? -1 : x->date_ns > y->date_ns;
}

static int list_in_thread(void *opaque)
{
    Job *job = opaque;
    job->dir = open_directory(job->s, false);
    if (job->dir < 0) {
        return job->dir == -ENOENT ? 0 : job->dir;
    }
    DIR *dir = fdopendir(job->dir);
    if (!dir) {
        return -errno;
    }
    const struct dirent *entry;
    while ((entry = readdir(dir))) {
        add_info(job, entry->d_name);
    }
    closedir(dir);
    job->dir = -1;
    g_ptr_array_sort(job->infos, compare_dates);
    return 0;
}

/* ---- Changes */

static int coroutine_fn co_list(BlockNode *node, GPtrArray *infos, GError **errp)
{
    FileState *s = node->opaque;
    if (s->is_device) {
        return 0;
    }
    Job *job = job_new(node, NULL);
    job->infos = infos;
    int ret = thread_pool_co_run(list_in_thread, job);
    job_free(job);
    return ret < 0
               ? bg_error_set_errno(errp, -ret, "node '%s': listing '%s.snapshots'", node->name, s->filename)
               : 0;
}

static int coroutine_fn co_prepare(BlockNode *node, const BlockSnapshotChange *change, void **state,
                                   GError **errp)
{
    FileState *s = node->opaque;
    if (s->is_device) {
        return bg_error_set(errp, EOPNOTSUPP, "node '%s': '%s' is a device, which has no snapshots",
                            node->name, s->filename);
    }
    Job *job = job_new(node, change->name);
    job->action = change->action;
    job->date_ns = change->date_ns;
    bool create = job->action == BLOCK_SNAPSHOT_CREATE;
    int ret = thread_pool_co_run(create ? clone_in_thread : open_in_thread, job);
    if (ret < 0) {
        job_free(job);
        return explain(node, change->action, change->name, ret, errp);
    }
    *state = job;
    return 0;
}

static int coroutine_fn co_commit(BlockNode *node, void *state, GError **errp)
{
    static ThreadPoolFunc *const commits[] = {link_in_thread, unlink_in_thread, revert_in_thread};
    Job *job = state;
    int ret = thread_pool_co_run(commits[job->action], job);
    if (job->action == BLOCK_SNAPSHOT_REVERT) { /* also where it failed half-way */
        int64_t length = file_co_size(job->s);
        atomic_store(&node->length, length >= 0 ? length : job->length);
    }
    ret = ret < 0 ? explain(node, job->action, job->name, ret, errp) : 0;
    job_free(job);
    return ret;
}

static void coroutine_fn co_abort(BlockNode *node, void *state)
{
    job_free(state);
}

/* What FICLONE would have to write first. */
static void coroutine_fn co_warm_up(BlockNode *node)
{
    const FileState *s = node->opaque;
    aio_co_fsync(s->fd, true);
}

/* ---- Reading. The snapshot's file stays readable also when it is deleted. */

static int coroutine_fn co_view_open(BlockNode *node, const char *name, void **view, int64_t *length,
                                     GError **errp)
{
    Job *job = job_new(node, name);
    int ret = thread_pool_co_run(open_in_thread, job);
    if (ret < 0) {
        job_free(job);
        return bg_error_set_errno(errp, -ret, "node '%s': opening snapshot '%s'", node->name, name);
    }
    *view = job;
    *length = job->length;
    return 0;
}

static void coroutine_fn co_view_close(BlockNode *node, void *view)
{
    job_free(view);
}

static int coroutine_fn co_view_preadv(BlockNode *node, void *view, int64_t offset, int64_t bytes,
                                       const IoVector *qiov, size_t qiov_offset)
{
    const Job *job = view;
    g_autofree struct iovec *iov = g_new(struct iovec, (size_t)qiov->niov);
    while (bytes > 0) {
        int niov = io_vector_slice(qiov, qiov_offset, (size_t)bytes, iov);
        ssize_t n = aio_co_preadv(job->fd, iov, niov, offset, 0);
        if (n <= 0) {
            return n < 0 ? (int)n : -EIO; /* cut by somebody else */
        }
        offset += n;
        qiov_offset += (size_t)n;
        bytes -= n;
    }
    return 0;
}

static int coroutine_fn co_view_block_status(BlockNode *node, void *view, int64_t offset, int64_t bytes,
                                             int64_t *pnum)
{
    const Job *job = view;
    off_t data = lseek(job->fd, offset, SEEK_DATA);
    if (data > offset || (data < 0 && errno == ENXIO)) {
        *pnum = data < 0 ? bytes : MIN(bytes, data - offset);
        return BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED;
    }
    off_t hole = data < 0 ? -1 : lseek(job->fd, offset, SEEK_HOLE);
    *pnum = hole > offset ? MIN(bytes, hole - offset) : bytes;
    return BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED;
}

const BlockSnapshotOps file_snapshot_ops = {
    .co_list = co_list,
    .co_warm_up = co_warm_up,
    .co_prepare = co_prepare,
    .co_commit = co_commit,
    .co_abort = co_abort,
    .co_view_open = co_view_open,
    .co_view_close = co_view_close,
    .co_view_preadv = co_view_preadv,
    .co_view_block_status = co_view_block_status,
};
