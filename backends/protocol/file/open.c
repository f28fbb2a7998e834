/*
 * Drivers file (regular files and block devices) and host_device (block devices): options, opening, closing.
 *
 * What may block (opening, probing, closing) runs in a worker thread: the main loop goes on, so that a path
 * that leads into a mount of our own is answered rather than waited for.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#include "aio/aio.h"
#include "aio/thread-pool.h"
#include "backends/protocol/file/file.h"
#include "block/graph.h"

typedef enum LockingMode { LOCKING_OFF, LOCKING_ON, LOCKING_AUTO } LockingMode;

static const char *const locking_words[] = {"off", "on", "auto", NULL};

typedef enum AioMode { AIO_THREADS, AIO_NATIVE, AIO_IO_URING } AioMode;

static const char *const aio_words[] = {"threads", "native", "io_uring", NULL};

extern const BlockDriver block_driver_host_device;

/* What the worker thread opens, and what it found. */
typedef struct OpenJob {
    BlockNode *node;
    FileState *s;
    LockingMode locking;
    int64_t length;
    BlockLimits limits;
    bool read_only;
    /* on failure */
    const char *option;
    char *message;
} OpenJob;

/* Note why the job fails, and because of which option. Returns -errnum. */
static int G_GNUC_PRINTF(4, 5)
    open_fails(OpenJob *job, int errnum, const char *option, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    job->option = option;
    job->message = g_strdup_vprintf(format, args);
    va_end(args);
    return -errnum;
}

/* ---- In the worker thread */

/* Refuse what cannot be an image; path_fd is an O_PATH descriptor, which does not wait for FIFOs or devices.
 */
static int check_type(OpenJob *job, int path_fd)
{
    FileState *s = job->s;
    struct stat st;
    if (file_is_in_own_mount(path_fd)) {
        return open_fails(job, EDEADLK, "filename",
                          "'%s' lies in a mounted blockgraphfs; a graph on top of itself would deadlock",
                          s->filename);
    }
    if (fstat(path_fd, &st) < 0) {
        return open_fails(job, errno, "filename", "cannot look at '%s': %s", s->filename, g_strerror(errno));
    }
    bool device_only = job->node->driver == &block_driver_host_device;
    s->is_device = S_ISBLK(st.st_mode);
    if (s->is_device || (S_ISREG(st.st_mode) && !device_only)) {
        return 0;
    }
    return open_fails(job, S_ISDIR(st.st_mode) ? EISDIR : EINVAL, "filename",
                      "'%s' is %s, not a %sblock device", s->filename, file_type_name(st.st_mode),
                      device_only ? "" : "regular file or ");
}

/* Open what path_fd stands for. A descriptor or -errno. */
static int open_again(const OpenJob *job, int path_fd, bool writable)
{
    int flags = (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY;
    if (job->node->cache_direct) {
        flags |= O_DIRECT;
    }
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", path_fd);
    int fd = open(path, flags);
    if (fd < 0) {
        return -errno;
    }
    /* The kernel opens a read-only device for writing, and fails the writes. */
    if (writable && job->s->is_device && file_is_read_only_device(fd)) {
        close(fd);
        return -EROFS;
    }
    return fd;
}

static bool is_write_refusal(int ret)
{
    return ret == -EACCES || ret == -EROFS || ret == -EPERM;
}

static int open_for_io(OpenJob *job, int path_fd)
{
    const BlockNode *node = job->node;
    const char *filename = job->s->filename;
    int ret = open_again(job, path_fd, !node->read_only);
    if (is_write_refusal(ret) && !node->read_only && node->auto_read_only) {
        job->read_only = true;
        ret = open_again(job, path_fd, false);
    }
    if (ret >= 0) {
        job->s->fd = ret;
        return 0;
    }
    if (ret == -EINVAL && node->cache_direct) {
        return open_fails(job, EINVAL, "cache.direct", "the file system of '%s' does not support O_DIRECT",
                          filename);
    }
    if (is_write_refusal(ret) && !node->read_only) {
        return open_fails(job, -ret, "filename",
                          "cannot open '%s' for writing: %s; read-only=on opens it for reading only",
                          filename, g_strerror(-ret));
    }
    return open_fails(job, -ret, "filename", "cannot open '%s': %s", filename, g_strerror(-ret));
}

static int probe_opened(OpenJob *job)
{
    FileState *s = job->s;
    if (s->is_device && file_is_loop_over_own_mount(s->fd)) {
        return open_fails(
            job, EDEADLK, "filename",
            "'%s' is a loop device over a file in a mounted blockgraphfs; a graph on top of itself "
            "would deadlock",
            s->filename);
    }
    job->length = file_probe_length(s->fd, s->is_device);
    if (job->length < 0) {
        return open_fails(job, -job->length, "filename", "cannot tell the length of '%s': %s", s->filename,
                          g_strerror(-job->length));
    }
    if (job->length > BLOCK_MAX_LENGTH) {
        return open_fails(job, EFBIG, "filename",
                          "'%s' is %" PRId64 " bytes long; the longest possible are %" PRId64, s->filename,
                          job->length, (int64_t)BLOCK_MAX_LENGTH);
    }
    if (file_probe_limits(s, job->node->cache_direct, &job->limits) < 0) {
        return open_fails(job, EINVAL, "cache.direct", "'%s' cannot be read with O_DIRECT at any alignment",
                          s->filename);
    }
    file_probe_storage(s);

    int ret = job->locking == LOCKING_OFF ? -ENOTSUP : file_locks_probe(s->fd);
    s->use_locks = ret == 0;
    if (ret < 0 && job->locking == LOCKING_ON) {
        return open_fails(job, -ret, "locking", "'%s' cannot be locked: %s", s->filename, g_strerror(-ret));
    }
    return 0;
}

static int open_in_thread(void *opaque)
{
    OpenJob *job = opaque;
    const char *filename = job->s->filename;
    int path_fd = open(filename, O_PATH | O_CLOEXEC);
    if (path_fd < 0) {
        /* The first who asks an abandoned mount is told the latter, all others the former. */
        bool dead_mount = errno == ENOTCONN || errno == ECONNABORTED;
        return open_fails(job, errno, "filename",
                          dead_mount ? "'%s' lies in a mount whose daemon is gone: %s"
                                     : "cannot open '%s': %s",
                          filename, g_strerror(errno));
    }
    int ret = check_type(job, path_fd);
    if (ret == 0) {
        ret = open_for_io(job, path_fd);
    }
    close(path_fd);
    if (ret == 0) {
        ret = probe_opened(job);
        if (ret < 0) {
            close(job->s->fd);
        }
    }
    return ret;
}

static int close_in_thread(void *opaque)
{
    FileState *s = opaque;
    return close(s->fd) < 0 ? -errno : 0;
}

/* ---- Callbacks */

/* Of QEMU's drivers of the same names. There is no migration here that would drop a cache. */
static const BlockForeignOption foreign_options[] = {
    {"aio-max-batch", "0"},           {"drop-cache", "on"}, {"force-share", "off"}, {"pr-manager", NULL},
    {"x-check-cache-dropped", "off"}, {NULL, NULL},
};

/* Read the options into the state. False with *errp. */
static bool read_options(BlockNode *node, BlockOptions *opts, LockingMode *locking, GError **errp)
{
    FileState *s = node->opaque;
    int aio = AIO_IO_URING, lock = LOCKING_AUTO;
    bool aio_given = block_options_has(opts, "aio");
    if (!block_options_get_enum(opts, "aio", aio_words, &aio, errp) ||
        !block_options_get_enum(opts, "locking", locking_words, &lock, errp) ||
        !block_options_refuse_foreign(opts, foreign_options, errp)) {
        return false;
    }
    *locking = lock;
    s->use_threads = aio == AIO_THREADS;
    if (aio == AIO_NATIVE) {
        return block_options_error(opts, "aio", errp, ENOTSUP,
                                   "native is not supported; use io_uring or threads");
    }
    bool uring = aio_context_backend(block_graph_main_context(node->graph)) == AIO_BACKEND_URING;
    if (aio == AIO_IO_URING && aio_given && !uring) {
        return block_options_error(opts, "aio", errp, ENOTSUP,
                                   "the event loop does not run on io_uring; use threads");
    }
    return block_options_require_string(opts, "filename", &s->filename, errp);
}

static int coroutine_fn file_co_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    FileState *s = node->opaque;
    OpenJob job = {.node = node, .s = s, .read_only = node->read_only};
    if (!read_options(node, opts, &job.locking, errp)) {
        return -EINVAL;
    }
    int ret = thread_pool_co_run(open_in_thread, &job);
    if (ret < 0) {
        block_options_error(opts, job.option, errp, -ret, "%s", job.message);
        g_free(job.message);
        g_free(s->filename);
        return ret;
    }
    s->locked_shared = BLOCK_PERM_ALL;
    atomic_store(&node->length, job.length);
    node->limits = job.limits;
    node->read_only = job.read_only;
    node->growable = !s->is_device;
    node->supported_write_flags = BLOCK_REQ_FUA;
    node->supported_zero_flags = BLOCK_REQ_MAY_UNMAP | (s->is_device ? 0 : BLOCK_REQ_ALLOCATE);
    return 0;
}

static void coroutine_fn file_co_close(BlockNode *node)
{
    FileState *s = node->opaque;
    thread_pool_co_run(close_in_thread, s);
    g_free(s->filename);
}

static int file_durable(BlockNode *node)
{
    FileState *s = node->opaque;
    return node->cache_no_flush ? 0 : s->durable;
}

static char *file_filename(BlockNode *node)
{
    FileState *s = node->opaque;
    return g_strdup(s->filename);
}

static const char *const file_names[] = {"filename", NULL};

/* clang-format off */
#define FILE_DRIVER(name_) {                                                                                 \
    .name = name_,                                                                                           \
    .file_options = file_names,                                                                              \
    .instance_size = sizeof(FileState),                                                                      \
    .co_open = file_co_open,                                                                                 \
    .co_create = file_co_create,                                                                             \
    .co_close = file_co_close,                                                                               \
    .co_preadv = file_co_preadv,                                                                             \
    .co_pwritev = file_co_pwritev,                                                                           \
    .co_flush = file_co_flush,                                                                               \
    .co_pdiscard = file_co_pdiscard,                                                                         \
    .co_pwrite_zeroes = file_co_pwrite_zeroes,                                                               \
    .co_block_status = file_co_block_status,                                                                 \
    .co_truncate = file_co_truncate,                                                                         \
    .co_copy_range = file_co_copy_range,                                                                     \
    .co_get_allocated = file_co_get_allocated,                                                               \
    .check_perm = file_check_perm,                                                                           \
    .set_perm = file_set_perm,                                                                               \
    .abort_perm_update = file_abort_perm_update,                                                             \
    .durable = file_durable,                                                                                 \
    .snapshots = &file_snapshot_ops,                                                                         \
    .filename = file_filename,                                                                               \
}
/* clang-format on */

extern const BlockDriver block_driver_file;
const BlockDriver block_driver_file = FILE_DRIVER("file");
const BlockDriver block_driver_host_device = FILE_DRIVER("host_device");
