/*
 * Driver blklogwrites: passes everything to `file`, and appends each change to `log`, in the format of the
 * Linux device mapper's log-writes target:
 *
 *   sector 0      super block
 *   then entries  one sector, and behind it the data, if any; all integers are little-endian
 *
 * Where an entry stands says when it happened:
 *   - a write, write of zeroes or discard gets its place after `file` has taken it and before it returns;
 *   - a flush gets its place after `file` has flushed. Writes may have ended meanwhile, so its entry has 8
 *     bytes of inline data: how many entries stood before the flush began. Those are stable. (A sector of 32
 *     bytes has no room for it.)
 *
 * So the entries before any place are what a power cut at that moment finds: those that the last flush covers
 * for certain, the others, and requests in flight, whole, in part or not at all. Of writes that overlap while
 * both are in flight, either may come first, in the file as in the log.
 *
 * The lock is held while an entry is written, so the super block never counts one that is not complete. The
 * core flushes the log after a flush has been logged. Of a request that `file` fails there is no entry. When
 * the log fails, every later change is refused: what it holds stays true.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <string.h>

#include "block/graph.h"
#include "block/io.h"
#include "coroutine/lock.h"
#include "util/error.h"
#include "util/log.h"

#define LOG_MAGIC   UINT64_C(0x6a736677736872)
#define LOG_VERSION 1

#define LOG_FLUSH       1
#define LOG_FUA         2
#define LOG_DISCARD     4
#define LOG_KNOWN_FLAGS 31 /* those above; marks; metadata */

#define SECTOR_SIZE_MIN     32 /* an entry */
#define SECTOR_SIZE_MAX     (8 << 20)
#define SECTOR_SIZE_DEFAULT 512
#define INTERVAL_DEFAULT    4096

typedef struct LogSuper {
    uint64_t magic, version, nr_entries;
    uint32_t sector_size, unused;
} LogSuper;

typedef struct LogEntry {
    uint64_t sector, nr_sectors, flags, data_len; /* of the inline data */
} LogEntry;

typedef struct LogWritesState {
    BlockChild *log;
    uint32_t sector_size; /* 0 until it is known */
    bool append;
    uint64_t interval; /* entries after which the super block is written, without a flush */
    _Atomic int error; /* -errno since the log failed; 0 */
    CoMutex lock;      /* what follows; held while `log` is written */
    int64_t end;       /* where the next entry goes, in bytes */
    uint64_t entries;  /* complete ones */
    uint64_t in_super; /* entries that the super block counts */
    uint8_t *sector;   /* a buffer */
} LogWritesState;

/* ---- The log; `lock` is held */

static int coroutine_fn write_super_locked(LogWritesState *s)
{
    LogSuper super = {
        .magic = GUINT64_TO_LE(LOG_MAGIC),
        .version = GUINT64_TO_LE(LOG_VERSION),
        .nr_entries = GUINT64_TO_LE(s->entries),
        .sector_size = GUINT32_TO_LE(s->sector_size),
    };
    memset(s->sector, 0, s->sector_size);
    memcpy(s->sector, &super, sizeof super);
    int ret = block_child_co_pwrite(s->log, 0, s->sector_size, s->sector, 0);
    if (ret == 0) {
        s->in_super = s->entries;
    }
    return ret;
}

/* What a change puts into the log. */
typedef struct LogRecord {
    uint64_t flags;
    int64_t offset, bytes;
    const IoVector *qiov; /* NULL: zeroes, or no data */
    size_t qiov_offset;
    uint64_t covered; /* LOG_FLUSH: entries before it began */
} LogRecord;

static size_t data_length(const LogRecord *r)
{
    return r->flags & (LOG_FLUSH | LOG_DISCARD) ? 0 : (size_t)r->bytes;
}

static void fill_entry(LogWritesState *s, const LogRecord *r)
{
    uint64_t covered = GUINT64_TO_LE(r->covered);
    LogEntry entry = {
        .sector = GUINT64_TO_LE((uint64_t)r->offset / s->sector_size),
        .nr_sectors = GUINT64_TO_LE((uint64_t)r->bytes / s->sector_size),
        .flags = GUINT64_TO_LE(r->flags),
    };
    bool has_room = s->sector_size >= sizeof entry + sizeof covered;
    memset(s->sector, 0, s->sector_size);
    if ((r->flags & LOG_FLUSH) && has_room) {
        entry.data_len = GUINT64_TO_LE(sizeof covered);
        memcpy(s->sector + sizeof entry, &covered, sizeof covered);
    }
    memcpy(s->sector, &entry, sizeof entry);
}

/* Entry and data in one write. */
static int coroutine_fn write_with_data(LogWritesState *s, const LogRecord *r)
{
    g_autofree struct iovec *iov = g_new(struct iovec, (gsize)r->qiov->niov + 1);
    iov[0] = (struct iovec){s->sector, s->sector_size};
    int niov = 1 + io_vector_slice(r->qiov, r->qiov_offset, (size_t)r->bytes, iov + 1);
    IoVector v = {iov, niov, s->sector_size + (size_t)r->bytes};
    return block_child_co_pwritev(s->log, s->end, (int64_t)v.size, &v, 0, 0);
}

static int coroutine_fn append_locked(LogWritesState *s, const LogRecord *r)
{
    int ret;
    int64_t data = (int64_t)data_length(r);
    fill_entry(s, r);
    if (r->qiov && data) {
        ret = write_with_data(s, r);
    } else {
        ret = block_child_co_pwrite(s->log, s->end, s->sector_size, s->sector, 0);
        if (ret == 0 && data) {
            ret = block_child_co_pwrite_zeroes(s->log, s->end + s->sector_size, data, BLOCK_REQ_MAY_UNMAP);
        }
    }
    if (ret < 0) {
        return ret;
    }
    s->end += s->sector_size + data;
    s->entries++;
    bool is_due = (r->flags & LOG_FLUSH) || s->entries - s->in_super >= s->interval;
    return is_due ? write_super_locked(s) : 0;
}

/* ---- Requests */

static int log_error(LogWritesState *s)
{
    return atomic_load_explicit(&s->error, memory_order_relaxed);
}

static int coroutine_fn append(BlockNode *node, const LogRecord *r)
{
    LogWritesState *s = node->opaque;
    co_mutex_lock(&s->lock);
    int ret = log_error(s);
    if (ret == 0) {
        ret = append_locked(s, r);
        if (ret < 0) {
            bg_log(BG_LOG_ERROR, "node '%s': writing the log: %s; nothing more can be changed", node->name,
                   g_strerror(-ret));
            atomic_store(&s->error, ret);
        }
    }
    co_mutex_unlock(&s->lock);
    return ret;
}

static uint64_t fua_flag(BlockRequestFlags flags)
{
    return flags & BLOCK_REQ_FUA ? LOG_FUA : 0;
}

static int coroutine_fn logwrites_co_pwritev(BlockNode *node, int64_t offset, int64_t bytes,
                                             const IoVector *qiov, size_t qiov_offset,
                                             BlockRequestFlags flags)
{
    int ret = log_error(node->opaque);
    ret = ret < 0 ? ret : block_child_co_pwritev(node->file, offset, bytes, qiov, qiov_offset, flags);
    if (ret < 0) {
        return ret;
    }
    return append(node, &(LogRecord){.flags = fua_flag(flags),
                                     .offset = offset,
                                     .bytes = bytes,
                                     .qiov = qiov,
                                     .qiov_offset = qiov_offset});
}

static int coroutine_fn logwrites_co_pwrite_zeroes(BlockNode *node, int64_t offset, int64_t bytes,
                                                   BlockRequestFlags flags)
{
    int ret = log_error(node->opaque);
    ret = ret < 0 ? ret : block_child_co_pwrite_zeroes(node->file, offset, bytes, flags);
    if (ret < 0) {
        return ret;
    }
    return append(node, &(LogRecord){.flags = fua_flag(flags), .offset = offset, .bytes = bytes});
}

static int coroutine_fn log_discard(BlockNode *node, int64_t offset, int64_t bytes)
{
    return append(node, &(LogRecord){.flags = LOG_DISCARD, .offset = offset, .bytes = bytes});
}

static int coroutine_fn logwrites_co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    int ret = log_error(node->opaque);
    ret = ret < 0 ? ret : block_child_co_pdiscard(node->file, offset, bytes);
    return ret < 0 ? ret : log_discard(node, offset, bytes);
}

static uint64_t coroutine_fn count_entries(LogWritesState *s)
{
    co_mutex_lock(&s->lock);
    uint64_t n = s->entries;
    co_mutex_unlock(&s->lock);
    return n;
}

static int coroutine_fn logwrites_co_flush(BlockNode *node)
{
    LogWritesState *s = node->opaque;
    if (node->read_only) {
        return 0;
    }
    int ret = log_error(s);
    uint64_t covered = count_entries(s);
    ret = ret < 0 ? ret : block_child_co_flush(node->file);
    return ret < 0 ? ret : append(node, &(LogRecord){.flags = LOG_FLUSH, .covered = covered});
}

/* ---- Changing the length: there is no entry for that, but for what it does to the content */

static int64_t round_down(const LogWritesState *s, int64_t n)
{
    return n - n % s->sector_size;
}

static int64_t round_up(const LogWritesState *s, int64_t n)
{
    return round_down(s, n + s->sector_size - 1);
}

/* Whole sectors behind the end are gone, and what the last one holds behind the end has become zeroes. */
static int coroutine_fn log_cut(BlockNode *node, int64_t old, int64_t length)
{
    LogWritesState *s = node->opaque;
    int64_t size = s->sector_size, start = round_down(s, length), end = round_up(s, length);
    int ret = 0;
    if (start < length) {
        g_autofree uint8_t *buf = g_malloc((gsize)size);
        struct iovec iov = {buf, (size_t)size};
        IoVector v = {&iov, 1, (size_t)size};
        ret = block_child_co_pread(node->file, start, size, buf);
        ret = ret < 0 ? ret : append(node, &(LogRecord){.offset = start, .bytes = size, .qiov = &v});
    }
    old = round_up(s, old);
    return ret == 0 && old > end ? log_discard(node, end, old - end) : ret;
}

static int coroutine_fn log_growth(BlockNode *node, int64_t old, int64_t length)
{
    LogWritesState *s = node->opaque;
    int64_t start = round_up(s, old), end = round_up(s, length);
    return end > start ? append(node, &(LogRecord){.offset = start, .bytes = end - start}) : 0;
}

static int coroutine_fn logwrites_co_truncate(BlockNode *node, int64_t length, GError **errp)
{
    int64_t old = block_node_length(node->file->node);
    int ret = log_error(node->opaque);
    if (ret == 0) {
        ret = block_child_co_truncate(node->file, length, errp);
        if (ret < 0) {
            return ret;
        }
        ret = length < old ? log_cut(node, old, length) : log_growth(node, old, length);
    }
    return ret < 0 ? bg_error_set(errp, -ret, "node '%s': writing the log: %s", node->name, g_strerror(-ret))
                   : 0;
}

/* ---- Opening */

static bool is_sector_size(int64_t n)
{
    return n >= SECTOR_SIZE_MIN && n <= SECTOR_SIZE_MAX && (n & (n - 1)) == 0;
}

static int read_options(LogWritesState *s, BlockOptions *opts, GError **errp)
{
    int64_t size = SECTOR_SIZE_DEFAULT;
    s->interval = INTERVAL_DEFAULT;
    if (!block_options_get_bool(opts, "log-append", &s->append, errp) ||
        !block_options_get_size(opts, "log-sector-size", &size, errp) ||
        !block_options_get_uint64(opts, "log-super-update-interval", 1, UINT64_MAX, &s->interval, errp)) {
        return -EINVAL;
    }
    if (s->append && block_options_has(opts, "log-sector-size")) {
        block_options_error(opts, "log-sector-size", errp, EINVAL,
                            "cannot be given with log-append: the log has its own");
        return -EINVAL;
    }
    if (!is_sector_size(size)) {
        block_options_error(opts, "log-sector-size", errp, EINVAL,
                            "%" PRId64 " is not a power of two from %d to 8M", size, SECTOR_SIZE_MIN);
        return -EINVAL;
    }
    s->sector_size = s->append ? 0 : (uint32_t)size;
    return 0;
}

static int refuse_log(BlockOptions *opts, const BlockNode *log, const char *why, GError **errp)
{
    block_options_error(opts, "log-append", errp, EINVAL, "node '%s' %s", log->name, why);
    return -EINVAL;
}

/* Find the end of the log, one entry after the other. */
static int coroutine_fn walk_log(LogWritesState *s, BlockOptions *opts, uint64_t nr_entries, GError **errp)
{
    BlockNode *log = s->log->node;
    int64_t length = block_node_length(log), size = s->sector_size;
    for (s->end = size; s->entries < nr_entries; s->entries++) {
        LogEntry entry = {0};
        int ret = s->end > length - size ? -EIO : block_child_co_pread(s->log, s->end, sizeof entry, &entry);
        uint64_t flags = GUINT64_FROM_LE(entry.flags), sectors = GUINT64_FROM_LE(entry.nr_sectors);
        sectors = flags & LOG_DISCARD ? 0 : sectors;
        if (ret < 0 || sectors > (uint64_t)((length - s->end) / size - 1)) {
            return refuse_log(opts, log, "ends before its last entry", errp);
        }
        if (flags & ~(uint64_t)LOG_KNOWN_FLAGS) {
            return refuse_log(opts, log, "has an entry with unknown flags", errp);
        }
        s->end += size + (int64_t)sectors * size;
    }
    return 0;
}

static int coroutine_fn read_log(LogWritesState *s, BlockOptions *opts, GError **errp)
{
    LogSuper super;
    BlockNode *log = s->log->node;
    int ret = block_child_co_pread(s->log, 0, sizeof super, &super);
    if (ret < 0) {
        return bg_error_set(errp, -ret, "node '%s': reading the super block: %s", log->name,
                            g_strerror(-ret));
    }
    if (GUINT64_FROM_LE(super.magic) != LOG_MAGIC) {
        return refuse_log(opts, log, "is not a log of writes", errp);
    }
    if (GUINT64_FROM_LE(super.version) != LOG_VERSION) {
        return refuse_log(opts, log, "is a log of another version than 1", errp);
    }
    s->sector_size = GUINT32_FROM_LE(super.sector_size);
    if (!is_sector_size(s->sector_size)) {
        s->sector_size = 0;
        return refuse_log(opts, log, "is a log with an impossible sector size", errp);
    }
    return walk_log(s, opts, GUINT64_FROM_LE(super.nr_entries), errp);
}

static int coroutine_fn open_log(BlockNode *node, BlockOptions *opts, GError **errp)
{
    LogWritesState *s = node->opaque;
    int ret = block_node_co_open_child(node, opts, "log", BLOCK_ROLE_METADATA, false, &s->log, errp);
    if (ret < 0) {
        return ret;
    }
    if (s->append && block_node_length(s->log->node) > 0) {
        ret = read_log(s, opts, errp);
    } else {
        s->sector_size = s->append ? SECTOR_SIZE_DEFAULT : s->sector_size;
        s->end = s->sector_size;
    }
    if (ret == 0 && !node->file->node->growable && block_node_length(node->file->node) % s->sector_size) {
        ret = bg_error_set(
            errp, EINVAL, "node '%s': the length of node '%s' is not a multiple of the log's sector size, %u",
            node->name, node->file->node->name, s->sector_size);
    }
    return ret;
}

static int coroutine_fn start_log(BlockNode *node, GError **errp)
{
    LogWritesState *s = node->opaque;
    s->sector = g_malloc(s->sector_size);
    co_mutex_init(&s->lock);
    if (node->read_only) {
        return 0;
    }
    co_mutex_lock(&s->lock);
    int ret = write_super_locked(s);
    co_mutex_unlock(&s->lock);
    if (ret < 0) {
        co_mutex_destroy(&s->lock);
        g_free(s->sector);
        bg_error_set(errp, -ret, "node '%s': writing the log: %s", node->name, g_strerror(-ret));
    }
    return ret;
}

static int coroutine_fn logwrites_co_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    LogWritesState *s = node->opaque;
    BlockChild *file;
    int ret = read_options(s, opts, errp);
    if (ret == 0) {
        ret = block_node_co_open_child(node, opts, "file", BLOCK_ROLE_DATA | BLOCK_ROLE_FILTERED, false,
                                       &file, errp);
    }
    if (ret < 0) {
        return ret;
    }
    BlockNode *below = file->node;
    node->read_only |= below->read_only;
    ret = open_log(node, opts, errp);
    ret = ret < 0 ? ret : start_log(node, errp);
    if (ret < 0) {
        return ret;
    }
    atomic_store(&node->length, block_node_length(below));
    node->growable = below->growable;
    node->limits.request_alignment = s->sector_size;
    node->supported_write_flags = below->supported_write_flags & BLOCK_REQ_FUA;
    node->supported_zero_flags =
        (below->supported_zero_flags & BLOCK_REQ_FUA) | BLOCK_REQ_MAY_UNMAP | BLOCK_REQ_NO_FALLBACK;
    return 0;
}

static void coroutine_fn logwrites_co_close(BlockNode *node)
{
    LogWritesState *s = node->opaque;
    if (!node->read_only && s->in_super < s->entries && log_error(s) == 0) {
        co_mutex_lock(&s->lock);
        int ret = write_super_locked(s);
        co_mutex_unlock(&s->lock);
        ret = ret < 0 ? ret : block_child_co_flush(s->log);
        if (ret < 0) {
            bg_log(BG_LOG_ERROR, "node '%s': writing the log: %s", node->name, g_strerror(-ret));
        }
    }
    co_mutex_destroy(&s->lock);
    g_free(s->sector);
}

/* ---- Beside requests */

/*
 * The log is ours alone while the node is open. Nobody else may change the file: that would not be in the
 * log. A file whose length is no multiple of a sector is written beyond its end, and cut.
 */
static void logwrites_child_perm(BlockNode *node, BlockChild *child, BlockPerm perm, BlockPerm shared,
                                 BlockPerm *child_perm, BlockPerm *child_shared)
{
    LogWritesState *s = node->opaque;
    if (child->role & BLOCK_ROLE_METADATA) {
        bool writes = !node->read_only;
        *child_perm = BLOCK_PERM_CONSISTENT_READ | (writes ? BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE : 0);
        *child_shared = BLOCK_PERM_CONSISTENT_READ;
        return;
    }
    bool ragged = s->sector_size && block_node_length(child->node) % s->sector_size;
    *child_perm = perm | ((perm & BLOCK_PERM_WRITE) && ragged ? BLOCK_PERM_RESIZE : 0);
    *child_shared = shared & ~(BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE);
}

static int logwrites_durable(BlockNode *node)
{
    return block_node_durable(node->file->node);
}

static int64_t coroutine_fn logwrites_co_get_allocated(BlockNode *node)
{
    return block_node_co_get_allocated(node->file->node);
}

/* A snapshot below could be taken, but a return to it would not be in the log. */
static bool logwrites_passes_through(BlockNode *node)
{
    return false;
}

static const char *const logwrites_children[] = {"file", "log", NULL};

const BlockDriver block_driver_blklogwrites = {
    .name = "blklogwrites",
    .child_options = logwrites_children,
    .instance_size = sizeof(LogWritesState),
    .is_filter = true,
    .co_open = logwrites_co_open,
    .co_close = logwrites_co_close,
    .co_pwritev = logwrites_co_pwritev,
    .co_flush = logwrites_co_flush,
    .co_pdiscard = logwrites_co_pdiscard,
    .co_pwrite_zeroes = logwrites_co_pwrite_zeroes,
    .co_truncate = logwrites_co_truncate,
    .co_get_allocated = logwrites_co_get_allocated,
    .child_perm = logwrites_child_perm,
    .durable = logwrites_durable,
    .passes_through = logwrites_passes_through,
};
