/*
 * qcow2: reading compressed clusters, zlib (raw deflate) and zstd.
 *
 * A cluster is read whole and decompressed in a worker, as that takes long at 2 MiB.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <zlib.h>
#include <zstd.h>

#include "aio/thread-pool.h"
#include "backends/format/qcow2/qcow2.h"

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

static int unzstd_cluster(const uint8_t *in, size_t n_in, uint8_t *out, size_t n_out)
{
    ZSTD_DStream *z = ZSTD_createDStream();
    if (!z) {
        return -EIO;
    }
    ZSTD_DCtx_setParameter(z, ZSTD_d_windowLogMax, 23);
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

int coroutine_fn qcow2_read_compressed(Qcow2State *s, uint64_t entry, int64_t in_cluster, int64_t bytes,
                                       const IoVector *qiov, size_t qiov_offset)
{
    Qcow2Extent e = qcow2_compressed_extent(s, entry);
    g_autofree uint8_t *in = g_try_malloc(e.bytes), *out = g_try_malloc((size_t)s->cluster_size);
    if (!in || !out) {
        return -ENOMEM;
    }
    int ret = block_child_co_pread(s->node->file, (int64_t)e.offset, (int64_t)e.bytes, in);
    if (ret < 0) {
        return ret;
    }
    Job job = {s->compression, in, out, e.bytes, (size_t)s->cluster_size};
    ret = thread_pool_co_run(run_job, &job);
    if (ret < 0) {
        block_graph_log_error(s->node->graph, s->node->name, BLOCK_OP_READ, (int64_t)e.offset,
                              (int64_t)e.bytes, EIO, "qcow2: a compressed cluster cannot be decompressed");
        return ret;
    }
    io_vector_from_buf(qiov, qiov_offset, out + in_cluster, (size_t)bytes);
    return 0;
}
