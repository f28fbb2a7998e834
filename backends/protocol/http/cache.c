/*
 * Blocks kept in a local file, for later mounts and for others at the same time.
 *
 * The file is sparse: a header with the key (a hash of URL, validators and length), a table with a checksum
 * for each block, the blocks. An entry of 0 means that the block is not there. A block is written first, its
 * entry after; who reads compares the block with the entry, whose checksum begins with the key and the
 * block's number. So whatever a crash, a full disk, or another process that makes room leaves behind is at
 * worst not there.
 *
 * Each user holds a shared lock on the first byte. Who finds the file made for another resource takes the
 * lock alone, empties it and makes it anew; where somebody uses it, it is refused.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "aio/thread-pool.h"
#include "backends/protocol/http/fetch.h"
#include "block/io.h"
#include "coroutine/lock.h"

#define MAGIC        "blockgraph cache of blocks, 1\n"
#define HEADER_BYTES 4096
#define KEY_BYTES    32
#define BLOCK        HTTP_CACHE_BLOCK
#define INSERTS_MAX  32 /* that wait; what comes beyond is not kept */
#define SCAN_ENTRIES 512

typedef struct CacheHeader {
    char magic[32];
    uint8_t key[KEY_BYTES];
    uint64_t size; /* little-endian */
} CacheHeader;

struct HttpCache {
    /* -- constant */
    HttpState *s;
    int fd;
    CacheHeader header;
    int64_t size, blocks, data_offset, bound;

    _Atomic bool broken; /* the file fails: it is let alone */

    /* -- home, or the one insert at a time */
    CoMutex mutex; /* of inserts */
    unsigned inserts;
    int64_t hand; /* the next block to go */
};

/* ---- In worker threads: small things */

static int64_t entry_offset(int64_t block)
{
    return HEADER_BYTES + block * (int64_t)sizeof(uint64_t);
}

static int64_t block_offset(const HttpCache *c, int64_t block)
{
    return c->data_offset + block * BLOCK;
}

static size_t block_bytes(const HttpCache *c, int64_t block)
{
    return (size_t)MIN(BLOCK, c->size - block * BLOCK);
}

/* 0 or -errno; the end of the file reads as zeroes. */
static int read_at(int fd, void *buf, size_t n, int64_t offset)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(fd, (char *)buf + done, n - done, offset + (int64_t)done);

        if (got < 0 && errno != EINTR) {
            return -errno;
        }
        if (got == 0) {
            memset((char *)buf + done, 0, n - done);
            return 0;
        }
        done += got > 0 ? (size_t)got : 0;
    }
    return 0;
}

static int write_at(int fd, const void *buf, size_t n, int64_t offset)
{
    for (size_t done = 0; done < n;) {
        ssize_t put = pwrite(fd, (const char *)buf + done, n - done, offset + (int64_t)done);

        if (put < 0 && errno != EINTR) {
            return -errno;
        }
        done += put > 0 ? (size_t)put : 0;
    }
    return 0;
}

/* Never 0. In the file's byte order. */
static uint64_t checksum(const HttpCache *c, int64_t block, const uint8_t *data)
{
    uint64_t number = GUINT64_TO_LE((uint64_t)block);
    uLong crc = crc32(0, c->header.key, KEY_BYTES), adler = adler32(1, c->header.key, KEY_BYTES);
    uInt n = (uInt)block_bytes(c, block);

    crc = crc32(crc32(crc, (const Bytef *)&number, sizeof number), data, n);
    adler = adler32(adler32(adler, (const Bytef *)&number, sizeof number), data, n);
    uint64_t sum = (uint64_t)adler << 32 | (uint64_t)crc;

    return GUINT64_TO_LE(sum ? sum : 1);
}

static void forget(HttpCache *c, int64_t block)
{
    uint64_t none = 0;

    if (write_at(c->fd, &none, sizeof none, entry_offset(block)) == 0) {
        fallocate(c->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, block_offset(c, block), BLOCK);
    }
}

/* ---- Reading */

typedef struct ReadJob {
    HttpCache *c;
    int64_t first, n; /* blocks */
    uint8_t *data;    /* n blocks */
    uint64_t *entries;
} ReadJob;

/* 1: all are there, 0: not, or -errno. */
static int read_blocks(void *opaque)
{
    ReadJob *job = opaque;
    HttpCache *c = job->c;
    size_t bytes = (size_t)(MIN((job->first + job->n) * BLOCK, c->size) - job->first * BLOCK);
    int ret = read_at(c->fd, job->entries, (size_t)job->n * sizeof(uint64_t), entry_offset(job->first));

    for (int64_t i = 0; ret == 0 && i < job->n; i++) {
        if (!job->entries[i]) {
            return 0;
        }
    }
    if (ret == 0) {
        ret = read_at(c->fd, job->data, bytes, block_offset(c, job->first));
    }
    for (int64_t i = 0; ret == 0 && i < job->n; i++) {
        if (checksum(c, job->first + i, job->data + i * BLOCK) != job->entries[i]) {
            forget(c, job->first + i);
            return 0;
        }
    }
    return ret < 0 ? ret : 1;
}

static void give_up(HttpCache *c, int error)
{
    HttpState *s = c->s;
    g_autofree char *text =
        g_strdup_printf("the cache '%s' is not used any more: %s", s->o.cache_file, g_strerror(-error));

    if (!atomic_exchange(&c->broken, true)) {
        block_graph_log_error(s->node->graph, s->node->name, BLOCK_OP_OPEN, -1, 0, -error, text);
    }
}

bool coroutine_fn http_cache_co_read(HttpState *s, int64_t offset, int64_t bytes, const IoVector *qiov,
                                     size_t qiov_offset)
{
    HttpCache *c = s->cache;
    int64_t first = offset / BLOCK, n = (offset + bytes + BLOCK - 1) / BLOCK - first;

    if (atomic_load(&c->broken)) {
        return false;
    }
    g_autofree uint8_t *data = g_malloc((size_t)(n * BLOCK));
    g_autofree uint64_t *entries = g_new(uint64_t, n);
    ReadJob job = {c, first, n, data, entries};
    int ret = thread_pool_co_run(read_blocks, &job);

    if (ret < 0) {
        give_up(c, ret);
    }
    if (ret > 0) {
        io_vector_from_buf(qiov, qiov_offset, data + (offset - first * BLOCK), (size_t)bytes);
    }
    return ret > 0;
}

/* ---- Keeping */

typedef struct InsertJob {
    HttpCache *c;
    HttpFetch *f;
} InsertJob;

/* Drop blocks, from the hand on, until `bytes` are free again. False where there are none. */
static bool evict(HttpCache *c, int64_t bytes)
{
    uint64_t entries[SCAN_ENTRIES];

    for (int64_t seen = 0; seen < c->blocks && bytes > 0;) {
        int64_t n = MIN(SCAN_ENTRIES, c->blocks - c->hand);

        if (read_at(c->fd, entries, (size_t)n * sizeof entries[0], entry_offset(c->hand)) < 0) {
            return false;
        }
        int64_t i;

        for (i = 0; i < n && bytes > 0; i++) {
            if (entries[i]) {
                forget(c, c->hand + i);
                bytes -= BLOCK;
            }
        }
        seen += i;
        c->hand = (c->hand + i) % c->blocks;
    }
    return bytes <= 0;
}

static int64_t excess(const HttpCache *c, int64_t more)
{
    struct stat st;

    return fstat(c->fd, &st) < 0 ? 0 : (int64_t)st.st_blocks * 512 + more - c->bound;
}

/* Room for one more block within the bound. */
static bool make_room(HttpCache *c)
{
    int64_t over = excess(c, BLOCK);

    return over <= 0 || evict(c, over);
}

static int insert_block(HttpCache *c, int64_t block, const uint8_t *data)
{
    uint64_t entry;
    int ret = read_at(c->fd, &entry, sizeof entry, entry_offset(block));

    if (ret < 0 || entry) { /* there already: the same */
        return ret;
    }
    if (!make_room(c)) {
        return 0;
    }
    ret = write_at(c->fd, data, block_bytes(c, block), block_offset(c, block));
    if (ret == 0) {
        entry = checksum(c, block, data);
        ret = write_at(c->fd, &entry, sizeof entry, entry_offset(block));
    }
    return ret;
}

static int insert(void *opaque)
{
    InsertJob *job = opaque;
    HttpCache *c = job->c;
    const HttpFetch *f = job->f;
    int64_t block = (f->base + BLOCK - 1) / BLOCK;
    int ret = 0;

    for (; ret == 0 && block < c->blocks; block++) {
        int64_t start = block * BLOCK;

        if (start + (int64_t)block_bytes(c, block) > f->end) {
            break;
        }
        ret = insert_block(c, block, f->buf + (start - f->base));
        if (ret == -ENOSPC || ret == -EDQUOT) { /* others need it more: be smaller, and let this one go */
            fallocate(c->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, block_offset(c, block), BLOCK);
            ret = evict(c, 16 * BLOCK) ? 0 : ret;
        }
    }
    return ret == -ENOSPC || ret == -EDQUOT ? 0 : ret;
}

static void coroutine_fn co_insert(void *opaque)
{
    InsertJob job = *(InsertJob *)opaque;
    HttpCache *c = job.c;
    BlockNode *node = c->s->node;

    g_free(opaque);
    co_mutex_lock(&c->mutex);
    int ret = atomic_load(&c->broken) ? 0 : thread_pool_co_run(insert, &job);

    co_mutex_unlock(&c->mutex);
    if (ret < 0) {
        give_up(c, ret);
    }
    c->inserts--;
    http_fetch_unref(job.f);
    block_node_dec_in_flight(node);
}

void http_cache_insert(HttpState *s, HttpFetch *f)
{
    HttpCache *c = s->cache;

    if (!c || c->inserts >= INSERTS_MAX || atomic_load(&c->broken)) {
        return;
    }
    InsertJob *job = g_new(InsertJob, 1);

    *job = (InsertJob){c, f};
    c->inserts++;
    f->refs++;
    block_node_inc_in_flight(s->node);
    aio_co_schedule(s->link.ctx, coroutine_create(co_insert, job));
}

/* ---- Opening */

typedef struct OpenJob {
    HttpCache *c;
    char *message;
} OpenJob;

static int lock(int fd, short type)
{
    struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};

    return fcntl(fd, F_OFD_SETLK, &l) < 0 ? -errno : 0;
}

static int fails(OpenJob *job, int errnum, const char *text)
{
    job->message = g_strdup(text);
    return -errnum;
}

static int make_anew(HttpCache *c)
{
    if (ftruncate(c->fd, 0) < 0 || ftruncate(c->fd, c->data_offset + c->blocks * BLOCK) < 0) {
        return -errno;
    }
    return write_at(c->fd, &c->header, sizeof c->header, 0);
}

/* With the lock alone: nobody else uses it. */
static int take_over(OpenJob *job, const CacheHeader *there)
{
    HttpCache *c = job->c;
    struct stat st;

    if (fstat(c->fd, &st) < 0) {
        return fails(job, errno, g_strerror(errno));
    }
    if (st.st_size != 0 && memcmp(there->magic, c->header.magic, sizeof there->magic) != 0) {
        return fails(job, EEXIST, "the file holds something else, and is let alone");
    }
    int ret = make_anew(c);

    if (ret == 0) {
        ret = lock(c->fd, F_RDLCK);
    }
    return ret < 0 ? fails(job, -ret, g_strerror(-ret)) : 0;
}

static int settle(OpenJob *job)
{
    HttpCache *c = job->c;

    for (int i = 0; i < 100; i++) { /* another one may be making it */
        CacheHeader there;
        int ret = lock(c->fd, F_RDLCK);

        if (ret == 0) {
            ret = read_at(c->fd, &there, sizeof there, 0);
            if (ret < 0) {
                return fails(job, -ret, g_strerror(-ret));
            }
            if (memcmp(&there, &c->header, sizeof there) == 0) {
                return 0;
            }
            ret = lock(c->fd, F_WRLCK);
            if (ret == 0) {
                return take_over(job, &there);
            }
            lock(c->fd, F_UNLCK); /* or two of us would wait for each other */
        }
        if (ret != -EAGAIN && ret != -EACCES) {
            return fails(job, -ret, g_strerror(-ret));
        }
        g_usleep((gulong)g_random_int_range(1000, 10000));
    }
    return fails(job, EBUSY, "it is in use for another resource, or another version of it");
}

static int open_file(void *opaque)
{
    OpenJob *job = opaque;
    HttpCache *c = job->c;
    struct stat st;

    c->fd = open(c->s->o.cache_file, O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0600);
    if (c->fd < 0) {
        return fails(job, errno, g_strerror(errno));
    }
    int ret = fstat(c->fd, &st) < 0 || !S_ISREG(st.st_mode) ? fails(job, EINVAL, "it is no regular file")
                                                            : settle(job);

    if (ret < 0) {
        close(c->fd);
    }
    return ret;
}

static void make_header(HttpCache *c)
{
    const HttpPin *pin = &c->s->pin;
    g_autoptr(GChecksum) hash = g_checksum_new(G_CHECKSUM_SHA256);
    const char *parts[] = {c->s->o.url, pin->etag ? pin->etag : "",
                           pin->last_modified ? pin->last_modified : ""};
    gsize n = KEY_BYTES;

    c->header.size = GUINT64_TO_LE((uint64_t)pin->size);
    for (size_t i = 0; i < G_N_ELEMENTS(parts); i++) {
        g_checksum_update(hash, (const guchar *)parts[i], (gssize)strlen(parts[i]) + 1);
    }
    g_checksum_update(hash, (const guchar *)&c->header.size, sizeof c->header.size);
    g_checksum_get_digest(hash, c->header.key, &n);
    memcpy(c->header.magic, MAGIC, strlen(MAGIC));
}

int coroutine_fn http_cache_co_open(HttpState *s, BlockOptions *opts, GError **errp)
{
    if (!s->pin.etag && !s->pin.last_modified) {
        block_options_error(
            opts, "cache.file", errp, ENOTSUP,
            "the server tells neither ETag nor time, so nobody can know what the cache holds");
        return -ENOTSUP;
    }
    HttpCache *c = g_new0(HttpCache, 1);
    OpenJob job = {.c = c};

    c->s = s;
    c->size = s->pin.size;
    c->blocks = (c->size + BLOCK - 1) / BLOCK;
    c->data_offset = (entry_offset(c->blocks) + BLOCK - 1) / BLOCK * BLOCK;
    c->bound = s->o.cache_size;
    c->hand = c->blocks ? (int64_t)(g_random_double() * (double)c->blocks) : 0;
    make_header(c);
    int ret = thread_pool_co_run(open_file, &job);

    if (ret < 0) {
        block_options_error(opts, "cache.file", errp, -ret, "'%s': %s", s->o.cache_file, job.message);
        g_free(job.message);
        g_free(c);
        return ret;
    }
    co_mutex_init(&c->mutex);
    s->cache = c;
    return 0;
}

void http_cache_close(HttpState *s)
{
    HttpCache *c = s->cache;

    if (c) {
        close(c->fd);
        co_mutex_destroy(&c->mutex);
        g_free(c);
        s->cache = NULL;
    }
}
