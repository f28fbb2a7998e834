/*
 * qcow2: reading compressed clusters, zlib (raw deflate) and zstd.
 *
 * A cluster is read whole and decompressed in a worker, as that takes long at 2 MiB. However many are read at
 * once, MAX_BYTES for their buffers and one window larger than a cluster are in use; others wait.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <zlib.h>
#include <zstd.h>

#include "aio/thread-pool.h"
#include "backends/format/qcow2/qcow2.h"

#define MAX_BYTES      (UINT64_C(16) << 20) /* or one cluster, where that takes more */
#define MAX_WINDOW_LOG 23u                  /* what every decoder of zstd is to support */

/* The stream may end before its sectors do, and need not be marked as ended once all is there. */
static int inflate_cluster(const uint8_t *in, size_t n_in, uint8_t *out, size_t n_out)
{
    z_stream z = {
        .next_in = (uint8_t *)in, .avail_in = (uInt)n_in, .next_out = out, .avail_out = (uInt)n_out};
    if (inflateInit2(&z, -12) != Z_OK) {
        return -EIO;
    }
    int ret = inflate(&z, Z_FINISH);
    bool whole = z.avail_out == 0 && (ret == Z_STREAM_END || ret == Z_BUF_ERROR || ret == Z_OK);
    inflateEnd(&z);
    return whole ? 0 : -EIO;
}

/* log2 of the window that the first frame asks for, as its header has it; later ones get no more. */
static unsigned zstd_window_log(const uint8_t *in, size_t n_in)
{
    if (n_in < 6) {
        return 10;
    }
    unsigned long long size = ZSTD_getFrameContentSize(in, n_in);
    unsigned log = 10 + (in[5] >> 3) + (in[5] & 7 ? 1 : 0);
    if (in[4] & 0x20) { /* a window byte is not there: all of the content is one */
        for (log = 10; log < 63 && size > 1ull << log; log++) {
        }
    }
    return log;
}

static int unzstd_cluster(const uint8_t *in, size_t n_in, uint8_t *out, size_t n_out)
{
    ZSTD_DStream *z = ZSTD_createDStream();
    if (!z) {
        return -EIO;
    }
    ZSTD_DCtx_setParameter(z, ZSTD_d_windowLogMax, (int)MIN(zstd_window_log(in, n_in), MAX_WINDOW_LOG));
    ZSTD_inBuffer input = {in, n_in, 0};
    ZSTD_outBuffer output = {out, n_out, 0};
    bool going = true;
    while (going && output.pos < n_out) {
        size_t before = input.pos + output.pos;
        size_t ret = ZSTD_decompressStream(z, &output, &input);
        going = !ZSTD_isError(ret) && input.pos + output.pos > before;
    }
    ZSTD_freeDStream(z);
    return output.pos == n_out ? 0 : -EIO;
}

int qcow2_decompress(Qcow2Compression type, const uint8_t *in, size_t n_in, uint8_t *out, size_t n_out)
{
    return type == QCOW2_ZSTD ? unzstd_cluster(in, n_in, out, n_out) : inflate_cluster(in, n_in, out, n_out);
}

typedef struct Job {
    Qcow2Compression type;
    uint8_t *in, *out;
    size_t n_in, n_out;
} Job;

static int run_job(void *opaque)
{
    Job *job = opaque;
    return qcow2_decompress(job->type, job->in, job->n_in, job->out, job->n_out);
}

/* ---- How much at once */

static void coroutine_fn take_memory(Qcow2State *s, uint64_t bytes)
{
    co_mutex_lock(&s->lock);
    while (s->unpacking && s->unpacking + bytes > MAX_BYTES) {
        co_queue_wait(&s->unpackers, &s->lock);
    }
    s->unpacking += bytes;
    co_mutex_unlock(&s->lock);
}

static void coroutine_fn give_memory(Qcow2State *s, uint64_t bytes)
{
    co_mutex_lock(&s->lock);
    s->unpacking -= bytes;
    co_queue_restart_all(&s->unpackers);
    co_mutex_unlock(&s->lock);
}

static int coroutine_fn decompress_in_worker(Qcow2State *s, Job *job) BG_NO_TSA
{
    bool large = job->type == QCOW2_ZSTD && zstd_window_log(job->in, job->n_in) > s->cluster_bits;
    if (large) {
        co_mutex_lock(&s->large_window);
    }
    int ret = thread_pool_co_run(run_job, job);
    if (large) {
        co_mutex_unlock(&s->large_window);
    }
    return ret;
}

/* ---- One cluster */

static int coroutine_fn read_cluster(Qcow2State *s, Qcow2Extent e, int64_t in_cluster, int64_t bytes,
                                     const IoVector *qiov, size_t qiov_offset)
{
    g_autofree uint8_t *in = g_try_malloc(e.bytes), *out = g_try_malloc((size_t)s->cluster_size);
    if (!in || !out) {
        return -ENOMEM;
    }
    int ret = block_child_co_pread(s->node->file, (int64_t)e.offset, (int64_t)e.bytes, in);
    if (ret < 0) {
        return ret;
    }
    Job job = {s->compression, in, out, e.bytes, (size_t)s->cluster_size};
    ret = decompress_in_worker(s, &job);
    if (ret < 0) {
        block_graph_log_error(s->node->graph, s->node->name, BLOCK_OP_READ, (int64_t)e.offset,
                              (int64_t)e.bytes, EIO, "qcow2: a compressed cluster cannot be decompressed");
        return ret;
    }
    io_vector_from_buf(qiov, qiov_offset, out + in_cluster, (size_t)bytes);
    return 0;
}

int coroutine_fn qcow2_read_compressed(Qcow2State *s, uint64_t entry, int64_t in_cluster, int64_t bytes,
                                       const IoVector *qiov, size_t qiov_offset)
{
    Qcow2Extent e = qcow2_compressed_extent(s, entry);
    uint64_t memory = e.bytes + (uint64_t)s->cluster_size;
    take_memory(s, memory);
    int ret = read_cluster(s, e, in_cluster, bytes, qiov, qiov_offset);
    give_memory(s, memory);
    return ret;
}
