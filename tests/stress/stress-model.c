/*
 * Leaves, mirror and workers of the stress test.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "tests/stress/stress-model.h"

#include <errno.h>
#include <string.h>

#define MAX_CELL 20000
#define MAX_BUF  65536

uint32_t stress_rand(StressRand *r)
{
    r->state ^= r->state << 13;
    r->state ^= r->state >> 7;
    r->state ^= r->state << 17;
    return r->state >> 16;
}

uint32_t stress_below(StressRand *r, uint32_t n)
{
    return stress_rand(r) % n;
}

/* ---- Leaves */

void coroutine_fn stress_model_open(StressModel *m, TestEnv *env)
{
    static const char *const options[STRESS_LEAVES] = {
        "'driver':'test-mem'",
        "'driver':'test-mem','align':512,'delay-ns':1",
        ("'driver':'test-mem','align':4096,'memory-align':512,'max-transfer':16384,'max-iov':4,'zeroes':"
         "false,"
         "'copy':false,'delay-ns':20000"),
        "'driver':'test-home','align':512,'max-zeroes':4096,'discard-align':1024",
    };
    for (unsigned i = 0; i < STRESS_LEAVES; i++) {
        g_autofree char *name = g_strdup_printf("leaf%u", i);
        m->leaf[i] = test_open(env, "{'node-name':'%s','size':%d,'erase-discarded':true,%s}", name,
                               STRESS_LENGTH, options[i]);
        m->mirror[i] = g_malloc0(STRESS_LENGTH);
        m->known[i] = g_malloc(STRESS_LENGTH);
        memset(m->known[i], 1, STRESS_LENGTH);
        for (unsigned k = 0; k < 2; k++) {
            g_autofree char *blk = g_strdup_printf("blk%u", 2 * i + k);
            m->blk[2 * i + k] = test_backend(env, blk, m->leaf[i]);
        }
    }
    atomic_store(&m->stop, false);
}

void stress_model_check(StressModel *m)
{
    for (unsigned i = 0; i < STRESS_LEAVES; i++) {
        const uint8_t *data = test_mem(m->leaf[i])->data;
        for (int64_t b = 0; b < STRESS_LENGTH; b++) {
            if (m->known[i][b] && data[b] != m->mirror[i][b]) {
                g_error("leaf%u: byte %" G_GINT64_FORMAT " is 0x%02x at the end, not 0x%02x", i, b, data[b],
                        m->mirror[i][b]);
            }
        }
    }
}

void coroutine_fn stress_model_close(StressModel *m, TestEnv *env)
{
    for (unsigned i = 0; i < STRESS_BACKENDS; i++) {
        block_backend_co_free(m->blk[i]);
    }
    for (unsigned i = 0; i < STRESS_LEAVES; i++) {
        test_delete(env, m->leaf[i]);
        g_free(m->mirror[i]);
        g_free(m->known[i]);
    }
}

/* ---- One operation of a worker */

/* Where it goes: a part of one of the worker's cells, through one of the leaf's backends. */
typedef struct Target {
    BlockBackend *blk;
    uint8_t *mirror, *known;
    int64_t offset, bytes;
} Target;

static Target pick(StressWorker *w)
{
    StressModel *m = w->model;
    const StressCell *cell = &g_array_index(w->cells, StressCell, stress_below(&w->rand, w->cells->len));
    int64_t skip = stress_below(&w->rand, 3) ? stress_below(&w->rand, cell->bytes) : 0;
    int64_t left = cell->bytes - skip;
    Target t = {
        .blk = m->blk[2 * cell->leaf + stress_below(&w->rand, 2)],
        .offset = cell->offset + skip,
        .bytes = stress_below(&w->rand, 3) ? 1 + stress_below(&w->rand, left) : left,
    };
    t.mirror = m->mirror[cell->leaf] + t.offset;
    t.known = m->known[cell->leaf] + t.offset;
    return t;
}

/* The buffer cut into elements of random length: 1 to 6 of them. */
static IoVector scatter(StressWorker *w, struct iovec *iov, int64_t bytes)
{
    IoVector v = {iov, 0, bytes};
    for (int64_t done = 0; done < bytes;) {
        int64_t n = v.niov == 5 ? bytes - done : 1 + stress_below(&w->rand, bytes - done);
        iov[v.niov++] = (struct iovec){w->buf + done, n};
        done += n;
    }
    return v;
}

static void coroutine_fn do_read(StressWorker *w, Target *t)
{
    struct iovec iov[6];
    IoVector v = scatter(w, iov, t->bytes);
    memset(w->buf, 0xee, t->bytes);
    int ret = block_backend_co_preadv(t->blk, t->offset, t->bytes, &v, 0);
    g_assert_cmpint(ret, ==, 0);
    for (int64_t i = 0; i < t->bytes; i++) {
        if (t->known[i] && w->buf[i] != t->mirror[i]) {
            g_error("worker %u, %s: byte %" G_GINT64_FORMAT " reads 0x%02x, not 0x%02x", w->number,
                    block_backend_name(t->blk), t->offset + i, w->buf[i], t->mirror[i]);
        }
    }
}

static void coroutine_fn do_write(StressWorker *w, Target *t)
{
    struct iovec iov[6];
    IoVector v = scatter(w, iov, t->bytes);
    test_fill(w->buf, t->bytes, stress_rand(&w->rand));
    memcpy(t->mirror, w->buf, t->bytes);
    memset(t->known, 1, t->bytes);
    int ret = block_backend_co_pwritev(t->blk, t->offset, t->bytes, &v,
                                       stress_below(&w->rand, 16) ? 0 : BLOCK_REQ_FUA);
    g_assert_cmpint(ret, ==, 0);
}

static void coroutine_fn do_zero(StressWorker *w, Target *t)
{
    static const BlockRequestFlags flags[] = {0, BLOCK_REQ_MAY_UNMAP, BLOCK_REQ_FUA, BLOCK_REQ_NO_FALLBACK};
    int ret = block_backend_co_pwrite_zeroes(t->blk, t->offset, t->bytes, flags[stress_below(&w->rand, 4)]);
    if (ret == -ENOTSUP) {
        return; /* asked for no fallback: nothing has changed, as the next read checks */
    }
    g_assert_cmpint(ret, ==, 0);
    memset(t->mirror, 0, t->bytes);
    memset(t->known, 1, t->bytes);
}

static void coroutine_fn do_discard(StressWorker *w, Target *t)
{
    memset(t->known, 0, t->bytes);
    g_assert_cmpint(block_backend_co_pdiscard(t->blk, t->offset, t->bytes), ==, 0);
}

static void coroutine_fn do_copy(StressWorker *w, Target *src)
{
    Target dst = pick(w);
    int64_t bytes = MIN(src->bytes, dst.bytes);
    bool overlap = src->mirror < dst.mirror + bytes && dst.mirror < src->mirror + bytes;
    int ret = block_backend_co_copy_range(src->blk, src->offset, dst.blk, dst.offset, bytes);
    if (overlap && ret == -EINVAL) {
        return;
    }
    g_assert_cmpint(ret, ==, 0);
    g_assert_false(overlap);
    memcpy(dst.mirror, src->mirror, bytes);
    memcpy(dst.known, src->known, bytes);
}

static void coroutine_fn do_status(StressWorker *w, Target *t)
{
    int64_t pnum = 0;
    int ret = block_backend_co_block_status(t->blk, t->offset, t->bytes, &pnum);
    g_assert_cmpint(ret, >=, 0);
    g_assert_cmpint(pnum, >=, 1);
    g_assert_cmpint(pnum, <=, t->bytes);
}

static void coroutine_fn worker_step(StressWorker *w)
{
    Target t = pick(w);
    unsigned dice = stress_below(&w->rand, 100);
    BlockOp op;
    if (dice < 35) {
        op = BLOCK_OP_READ;
        do_read(w, &t);
    } else if (dice < 70) {
        op = BLOCK_OP_WRITE;
        do_write(w, &t);
    } else if (dice < 78) {
        op = BLOCK_OP_WRITE_ZEROES;
        do_zero(w, &t);
    } else if (dice < 82) {
        op = BLOCK_OP_DISCARD;
        do_discard(w, &t);
    } else if (dice < 92) {
        op = BLOCK_OP_COPY_RANGE;
        do_copy(w, &t);
    } else if (dice < 94) {
        op = BLOCK_OP_BLOCK_STATUS;
        do_status(w, &t);
    } else {
        op = BLOCK_OP_FLUSH;
        g_assert_cmpint(block_backend_co_flush(t.blk), ==, 0);
    }
    w->ops[op]++;
    atomic_fetch_add(&w->progress, 1);
}

static int coroutine_fn worker_run(void *opaque)
{
    StressWorker *w = opaque;
    while (!atomic_load(&w->model->stop)) {
        worker_step(w);
        if (stress_below(&w->rand, 50) == 0) {
            aio_co_sleep_ns(
                stress_below(&w->rand, 100000)); /* let the thread's other workers and its loop run */
        }
    }
    return 0;
}

/* ---- Start, end */

/* Mostly short cells with odd borders, a few long ones. */
static int64_t cell_length(StressRand *r)
{
    switch (stress_below(r, 12)) {
    case 0:
        return 1 + stress_below(r, MAX_CELL);
    case 1:
        return 1 + stress_below(r, 5000);
    default:
        return 1 + stress_below(r, 700);
    }
}

void stress_workers_start(StressModel *m, StressWorker *workers, AioContext **ctx, unsigned n, uint64_t seed)
{
    StressRand r = {seed | 1};
    for (unsigned i = 0; i < STRESS_WORKERS; i++) {
        workers[i] = (StressWorker){.model = m,
                                    .number = i,
                                    .rand = {(seed + i + 1) * UINT64_C(0x9e3779b97f4a7c15) | 1},
                                    .cells = g_array_new(false, false, sizeof(StressCell)),
                                    .buf = g_malloc(MAX_BUF)};
    }
    for (unsigned leaf = 0; leaf < STRESS_LEAVES; leaf++) {
        for (int64_t offset = 0; offset < STRESS_LENGTH;) {
            int64_t length = cell_length(&r), bytes = MIN(length, STRESS_LENGTH - offset);
            StressCell cell = {leaf, offset, bytes};
            g_array_append_val(workers[stress_below(&r, STRESS_WORKERS)].cells, cell);
            offset += bytes;
        }
    }
    for (unsigned i = 0; i < STRESS_WORKERS; i++) {
        g_assert_cmpuint(workers[i].cells->len, >, 0);
        workers[i].task = test_spawn(ctx[i % n], worker_run, &workers[i]);
    }
}

void coroutine_fn stress_workers_join(StressWorker *workers)
{
    for (unsigned i = 0; i < STRESS_WORKERS; i++) {
        test_join(workers[i].task);
        g_array_unref(workers[i].cells);
        g_free(workers[i].buf);
    }
}
