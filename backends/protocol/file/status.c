/*
 * Where the drivers file and host_device have data and holes, and how much.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "aio/thread-pool.h"
#include "backends/protocol/file/file.h"
#include "block/io.h"

/* ---- Length and space taken */

typedef struct StatQuery {
    FileState *s;
    int64_t size;      /* bytes, or -errno */
    int64_t allocated; /* bytes, or -errno */
} StatQuery;

static int stat_file(void *opaque)
{
    StatQuery *q = opaque;
    struct stat st;
    q->size = file_probe_length(q->s->fd, q->s->is_device);
    if (q->s->is_device) {
        q->allocated = q->size; /* a device does not tell */
    } else {
        q->allocated = fstat(q->s->fd, &st) < 0 ? -errno : (int64_t)st.st_blocks * 512;
    }
    return 0;
}

static void coroutine_fn co_stat_file(StatQuery *q)
{
    if (q->s->local) {
        stat_file(q);
    } else {
        thread_pool_co_run(stat_file, q);
    }
}

int64_t coroutine_fn file_co_size(FileState *s)
{
    StatQuery q = {.s = s};
    co_stat_file(&q);
    return q.size;
}

int64_t coroutine_fn file_co_get_allocated(BlockNode *node)
{
    StatQuery q = {.s = node->opaque};
    co_stat_file(&q);
    return q.allocated;
}

/* ---- Data and holes */

typedef struct Extent {
    FileState *s;
    int64_t start; /* asked for */
    int64_t end;   /* found; INT64_MAX: up to the end of the file */
    bool hole;
} Extent;

/*
 * The kind of the byte at `start`, and how far it goes. 0, -ENXIO where the file ends before it, -ENOTSUP
 * where the file system cannot tell, or -errno.
 */
static int find_extent(void *opaque)
{
    Extent *e = opaque;
    off_t data = lseek(e->s->fd, e->start, SEEK_DATA);
    if (data < 0) {
        if (errno != ENXIO) {
            return errno == EINVAL ? -ENOTSUP : -errno;
        }
        /* No data from here on: a hole at the end, or the file is shorter. */
        int64_t size = file_probe_length(e->s->fd, e->s->is_device);
        e->hole = true;
        e->end = INT64_MAX;
        return size >= 0 && size <= e->start ? -ENXIO : MIN(size, 0);
    }
    if (data > e->start) {
        e->hole = true;
        e->end = data;
        return 0;
    }
    off_t hole = lseek(e->s->fd, e->start, SEEK_HOLE);
    if (hole < 0) {
        return errno == ENXIO ? -ENXIO : -errno;
    }
    /* Punched between the two calls: data, to be on the safe side, for as little as can be said. */
    e->hole = false;
    e->end = MAX(hole, e->start + 1);
    return 0;
}

/* Length of the extent's prefix that may be reported: a multiple of the alignment, hole or not. */
static int64_t extent_bytes(BlockNode *node, Extent *e, int64_t bytes)
{
    int64_t align = node->limits.request_alignment;
    int64_t found = MIN(e->end - e->start, bytes);
    if (found == bytes) {
        return bytes;
    }
    if (e->hole && found >= align) {
        return found / align * align;
    }
    e->hole = false; /* less than one unit is a hole: the unit counts as data */
    return MIN((found + align - 1) / align * align, bytes);
}

int coroutine_fn file_co_block_status(BlockNode *node, int64_t offset, int64_t bytes, int64_t *pnum,
                                      BlockChild **child, int64_t *child_offset)
{
    FileState *s = node->opaque;
    *pnum = bytes;
    if (s->is_device || atomic_load_explicit(&s->no_seek_data, memory_order_relaxed)) {
        return BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED;
    }
    Extent e = {.s = s, .start = offset};
    int ret = thread_pool_co_run(find_extent, &e);
    if (ret == -ENOTSUP) {
        atomic_store_explicit(&s->no_seek_data, true, memory_order_relaxed);
    }
    if (ret == -ENOTSUP || ret == -ENXIO) {
        /* Reads of a file that was cut must fail, so it must not pass for a hole. */
        return BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED;
    }
    if (ret < 0) {
        return ret;
    }
    *pnum = extent_bytes(node, &e, bytes);
    return BLOCK_STATUS_ALLOCATED | (e.hole ? BLOCK_STATUS_ZERO : BLOCK_STATUS_DATA);
}
