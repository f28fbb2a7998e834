/*
 * Tests of the driver file: data, holes, zeroes, copies, and errors from below.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/driver-test-util.h"

#define KIB INT64_C(1024)
#define MIB (1024 * KIB)

/* Every test of data runs on each of these. */
static const char *const modes[] = {
    "'aio':'threads'",
    "'cache':{'direct':false}", /* the default: io_uring where the loop has it */
    "'cache':{'direct':true}",
    "'cache':{'direct':true},'aio':'threads'",
};

static BlockBackend *coroutine_fn file_open(TestEnv *env, const char *path, const char *options)
{
    return test_backend(env, "b",
                        test_open(env, "{'driver':'file','node-name':'f','filename':'%s'%s%s}", path,
                                  *options ? "," : "", options));
}

/* ---- drivers/file/model: random requests against a model of the content */

typedef struct Model {
    BlockBackend *blk;
    const char *path;
    GRand *rand;
    uint8_t *data; /* what the file must hold */
    int64_t length;
    uint32_t seed;
} Model;

#define MODEL_MAX (300 * KIB)

/* A vector over buf whose pieces have random lengths; some of them are odd. */
static IoVector random_vector(Model *m, uint8_t *buf, size_t size, struct iovec *iov, int most)
{
    IoVector v = {.iov = iov, .size = size};
    size_t at = 0;
    while (at < size) {
        size_t left = size - at, n = left;
        if (v.niov < most - 1) {
            n = g_rand_int_range(m->rand, 1, MIN(left, 9000) + 1);
            n = g_rand_boolean(m->rand) && n >= 512 ? n / 512 * 512 : n;
        }
        iov[v.niov++] = (struct iovec){buf + at, n};
        at += n;
    }
    return v;
}

static void coroutine_fn model_write(Model *m, int64_t offset, int64_t bytes, BlockRequestFlags flags)
{
    struct iovec iov[40];
    g_autofree uint8_t *buf = g_malloc(bytes);
    test_fill(buf, bytes, m->seed++);
    IoVector v = random_vector(m, buf, bytes, iov, g_rand_int_range(m->rand, 1, 40));
    g_assert_cmpint(block_backend_co_pwritev(m->blk, offset, bytes, &v, flags), ==, 0);
    memcpy(m->data + offset, buf, bytes);
    m->length = MAX(m->length, offset + bytes);
}

static void coroutine_fn model_read(Model *m, int64_t offset, int64_t bytes)
{
    struct iovec iov[40];
    g_autofree uint8_t *buf = g_malloc(bytes);
    memset(buf, 0xee, bytes);
    IoVector v = random_vector(m, buf, bytes, iov, g_rand_int_range(m->rand, 1, 40));
    g_assert_cmpint(block_backend_co_preadv(m->blk, offset, bytes, &v, 0), ==, 0);
    test_assert_mem("read", buf, m->data + offset, bytes);
}

static void coroutine_fn model_zero(Model *m, int64_t offset, int64_t bytes, BlockRequestFlags flags)
{
    g_assert_cmpint(block_backend_co_pwrite_zeroes(m->blk, offset, bytes, flags), ==, 0);
    if (!(flags & BLOCK_REQ_ALLOCATE)) {
        memset(m->data + offset, 0, bytes);
    }
    m->length = MAX(m->length, offset + bytes);
}

static void coroutine_fn model_truncate(Model *m, int64_t length)
{
    g_autoptr(GError) err = NULL;
    g_assert_cmpint(block_backend_co_truncate(m->blk, length, &err), ==, 0);
    g_assert_no_error(err);
    if (length < m->length) {
        memset(m->data + length, 0, m->length - length);
    }
    m->length = length;
}

/* The block status must call nothing a hole that holds data. */
static void coroutine_fn model_status(Model *m, int64_t offset, int64_t bytes)
{
    while (bytes > 0) {
        int64_t pnum;
        int status = block_backend_co_block_status(m->blk, offset, bytes, &pnum);
        g_assert_cmpint(status, >=, 0);
        g_assert_cmpint(pnum, >=, 1);
        g_assert_cmpint(pnum, <=, bytes);
        for (int64_t i = 0; i < pnum && status & BLOCK_STATUS_ZERO; i++) {
            g_assert_cmpint(m->data[offset + i], ==, 0);
        }
        offset += pnum;
        bytes -= pnum;
    }
}

/* The file as others see it. */
static void coroutine_fn model_compare(Model *m)
{
    g_autofree uint8_t *got = g_malloc(MODEL_MAX);
    g_assert_cmpint(block_backend_length(m->blk), ==, m->length);
    g_assert_cmpint(driver_test_length(m->path), ==, m->length);
    driver_test_read(m->path, 0, got, m->length);
    test_assert_mem("file", got, m->data, m->length);
}

static void coroutine_fn model_step(Model *m)
{
    int64_t offset = g_rand_int_range(m->rand, 0, MODEL_MAX - 1);
    int64_t bytes = g_rand_int_range(m->rand, 1, MIN(MODEL_MAX - offset, 40 * KIB) + 1);
    if (g_rand_boolean(m->rand)) {
        offset = offset / 4096 * 4096;
        bytes = MIN((bytes + 4095) / 4096 * 4096, MODEL_MAX - offset);
    }
    switch (g_rand_int_range(m->rand, 0, 9)) {
    case 0:
    case 1:
        model_write(m, offset, bytes, 0);
        break;
    case 2:
        model_write(m, offset, bytes, BLOCK_REQ_FUA);
        break;
    case 3:
        model_zero(m, offset, bytes, 0);
        break;
    case 4:
        model_zero(m, offset, bytes, BLOCK_REQ_MAY_UNMAP | BLOCK_REQ_FUA);
        break;
    case 5:
        model_zero(m, offset, bytes, BLOCK_REQ_ALLOCATE);
        break;
    case 6:
        model_truncate(m, offset);
        break;
    case 7:
        model_status(m, offset, bytes);
        break;
    default:
        model_read(m, offset, bytes);
    }
}

static void coroutine_fn model_run(TestEnv *env, const char *name, const char *options, unsigned seed)
{
    g_autofree char *path = driver_test_filled_file(name, 100001, seed);
    g_autofree uint8_t *data = g_malloc0(MODEL_MAX);
    Model m = {
        .path = path, .rand = g_rand_new_with_seed(seed), .data = data, .length = 100001, .seed = seed};
    test_fill(data, m.length, seed);
    m.blk = file_open(env, path, options);
    for (int i = 0; i < 300; i++) {
        model_step(&m);
        g_assert_cmpint(block_backend_length(m.blk), ==, m.length);
        if (i % 20 == 0) {
            model_compare(&m);
        }
    }
    g_assert_cmpint(block_backend_co_flush(m.blk), ==, 0);
    model_compare(&m);
    driver_test_close(env, m.blk);
    g_rand_free(m.rand);
}

static void coroutine_fn test_model(TestEnv *env)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(modes); i++) {
        model_run(env, "model", modes[i], 100 + i);
    }
}

/* Runs fn(env, directory) with a small tmpfs mounted there. */
static void coroutine_fn with_tmpfs(TestEnv *env, const char *name, const char *options,
                                    void coroutine_fn (*fn)(TestEnv *env, const char *name))
{
    g_autofree char *path = driver_test_path(name);
    g_assert_no_errno(mkdir(path, 0700));
    if (mount("tmpfs", path, "tmpfs", 0, options) < 0) {
        g_test_skip("cannot mount a tmpfs");
    } else {
        fn(env, name);
        g_assert_no_errno(umount(path));
    }
    rmdir(path);
}

static void coroutine_fn run_model_in(TestEnv *env, const char *name)
{
    g_autofree char *file = g_strconcat(name, "/image", NULL);
    model_run(env, file, "", 200);
}

/* A file system whose fallocate knows less. */
static void coroutine_fn test_model_tmpfs(TestEnv *env)
{
    with_tmpfs(env, "tmpfs-model", "size=16m", run_model_in);
}

/* ---- drivers/file/concurrent: many requests at once, from several threads, on one node */

typedef struct Worker {
    BlockBackend *blk;
    unsigned index, rounds;
} Worker;

#define WORKER_SPAN (256 * KIB)

static int coroutine_fn worker_run(void *opaque)
{
    Worker *w = opaque;
    int64_t base = w->index * WORKER_SPAN;
    g_autofree uint8_t *buf = g_malloc(WORKER_SPAN), *got = g_malloc(WORKER_SPAN);
    for (unsigned i = 0; i < w->rounds; i++) {
        int64_t offset = base + (i * 5003) % (WORKER_SPAN / 2), bytes = 1 + (i * 7919) % (WORKER_SPAN / 2);
        test_fill(buf, bytes, w->index * 1000 + i);
        int ret = block_backend_co_pwrite(w->blk, offset, bytes, buf, 0);
        if (ret == 0) {
            ret = block_backend_co_pread(w->blk, offset, bytes, got);
        }
        if (ret < 0) {
            return ret;
        }
        test_assert_mem("worker", got, buf, bytes);
        if (i % 8 == 0 && (ret = block_backend_co_flush(w->blk)) < 0) {
            return ret;
        }
    }
    return 0;
}

static void coroutine_fn test_concurrent(TestEnv *env)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(modes); i++) {
        g_autofree char *path = driver_test_file("concurrent", 8 * WORKER_SPAN);
        BlockBackend *blk = file_open(env, path, modes[i]);
        Worker workers[8];
        TestTask *tasks[8];
        for (unsigned w = 0; w < G_N_ELEMENTS(workers); w++) {
            workers[w] = (Worker){.blk = blk, .index = w, .rounds = 20};
            tasks[w] = test_spawn(test_iothread(env, w % 3), worker_run, &workers[w]);
        }
        for (unsigned w = 0; w < G_N_ELEMENTS(workers); w++) {
            g_assert_cmpint(test_join(tasks[w]), ==, 0);
        }
        driver_test_close(env, blk);
    }
}

typedef struct Reader {
    BlockBackend *blk;
    _Atomic bool stop;
} Reader;

static int coroutine_fn reader_run(void *opaque)
{
    Reader *r = opaque;
    g_autofree uint8_t *buf = g_malloc(64 * KIB);
    int ret = 0;
    while (ret == 0 && !atomic_load(&r->stop)) {
        ret = block_backend_co_pread(r->blk, 1000, 64 * KIB - 1000, buf);
    }
    return ret;
}

/* A reader that meets the new end of a file which we cut ourselves gets zeroes, not an error. */
static void coroutine_fn test_read_while_truncated(TestEnv *env)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(modes); i++) {
        g_autofree char *path = driver_test_file("truncated", 64 * KIB);
        BlockBackend *blk = file_open(env, path, modes[i]);
        Reader reader = {.blk = blk};
        TestTask *task = test_spawn(test_iothread(env, 0), reader_run, &reader);
        for (int round = 0; round < 300; round++) {
            g_autoptr(GError) err = NULL;
            g_assert_cmpint(block_backend_co_truncate(blk, round % 2 ? 64 * KIB : 3000, &err), ==, 0);
            g_assert_no_error(err);
        }
        atomic_store(&reader.stop, true);
        g_assert_cmpint(test_join(task), ==, 0);
        driver_test_close(env, blk);
    }
}

/* ---- drivers/file/space */

static void coroutine_fn test_space_holes(TestEnv *env)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(modes); i++) {
        g_autofree char *path = driver_test_filled_file("holes", MIB, 1);
        BlockBackend *blk = file_open(env, path, modes[i]);
        int64_t full = block_backend_co_get_allocated(blk), pnum;
        g_assert_cmpint(full, >=, MIB);
        g_assert_cmpint(block_backend_co_pwrite_zeroes(blk, 0, 256 * KIB, BLOCK_REQ_MAY_UNMAP), ==, 0);
        g_assert_cmpint(block_backend_co_pdiscard(blk, 512 * KIB, 256 * KIB), ==, 0);
        g_assert_cmpint(block_backend_co_get_allocated(blk), ==, full - 512 * KIB);
        g_assert_cmpint(block_backend_co_get_allocated(blk), ==, driver_test_allocated(path));

        int status = block_backend_co_block_status(blk, 0, MIB, &pnum);
        g_assert_cmpint(status, ==, BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED);
        g_assert_cmpint(pnum, ==, 256 * KIB);
        status = block_backend_co_block_status(blk, 256 * KIB, 768 * KIB, &pnum);
        g_assert_cmpint(status, ==, BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED);
        g_assert_cmpint(pnum, ==, 256 * KIB);

        /* Space back, content unchanged. */
        g_assert_cmpint(block_backend_co_pwrite_zeroes(blk, 0, MIB, BLOCK_REQ_ALLOCATE), ==, 0);
        g_assert_cmpint(driver_test_allocated(path), ==, full);
        g_assert_cmpint(driver_test_length(path), ==, MIB);
        driver_test_close(env, blk);
    }
}

/* With discard=ignore nothing gives space back; zeroes are zeroes still. */
static void coroutine_fn test_space_keep(TestEnv *env)
{
    g_autofree char *path = driver_test_filled_file("keep", MIB, 2);
    BlockBackend *blk = file_open(env, path, "'discard':'ignore'");
    uint8_t got[4096], zero[4096] = {0};
    int64_t full = driver_test_allocated(path);
    g_assert_cmpint(block_backend_co_pdiscard(blk, 0, MIB), ==, 0);
    g_assert_cmpint(block_backend_co_pwrite_zeroes(blk, 4096, 4096, BLOCK_REQ_MAY_UNMAP), ==, 0);
    g_assert_cmpint(driver_test_allocated(path), ==, full);
    driver_test_read(path, 4096, got, sizeof got);
    test_assert_mem("zeroes", got, zero, sizeof got);
    driver_test_close(env, blk);
}

static void coroutine_fn test_space_detect_zeroes(TestEnv *env)
{
    static const char *const words[] = {"off", "on", "unmap"};
    for (unsigned i = 0; i < G_N_ELEMENTS(words); i++) {
        g_autofree char *path = driver_test_filled_file("detect", MIB, 3);
        g_autofree char *option = g_strdup_printf("'detect-zeroes':'%s'", words[i]);
        g_autofree uint8_t *zero = g_malloc0(MIB), *got = g_malloc(MIB);
        BlockBackend *blk = file_open(env, path, option);
        int64_t full = driver_test_allocated(path);
        g_assert_cmpint(block_backend_co_pwrite(blk, 0, MIB, zero, 0), ==, 0);
        g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
        driver_test_read(path, 0, got, MIB);
        test_assert_mem("zeroes", got, zero, MIB);
        g_assert_cmpint(driver_test_allocated(path), ==, i == 2 ? 0 : full);
        driver_test_close(env, blk);
    }
}

static void coroutine_fn test_space_copy_range(TestEnv *env)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(modes); i++) {
        g_autofree char *from = driver_test_filled_file("from", MIB, 4), *to = driver_test_file("to", 1000);
        g_autofree uint8_t *want = g_malloc(MIB), *got = g_malloc(MIB);
        BlockBackend *dst = file_open(env, to, modes[i]);
        BlockBackend *src = test_backend(
            env, "src",
            test_open(env, "{'driver':'file','node-name':'s','filename':'%s',%s}", from, modes[i]));
        driver_test_read(from, 0, want, MIB);
        /* Beyond the end: the file grows. */
        g_assert_cmpint(block_backend_co_copy_range(src, 4096, dst, 8192, MIB - 4096), ==, 0);
        g_assert_cmpint(block_backend_length(dst), ==, MIB + 4096);
        driver_test_read(to, 8192, got, MIB - 4096);
        test_assert_mem("copy", got, want + 4096, MIB - 4096);
        /* Odd ranges, and within one file. */
        g_assert_cmpint(block_backend_co_copy_range(src, 13, dst, 77, 5000), ==, 0);
        g_assert_cmpint(block_backend_co_copy_range(dst, 77, dst, 100001, 5000), ==, 0);
        driver_test_read(to, 100001, got, 5000);
        test_assert_mem("odd copy", got, want + 13, 5000);
        driver_test_close(env, src);
        driver_test_close(env, dst);
    }
}

static void coroutine_fn test_space_truncate(TestEnv *env)
{
    g_autofree char *path = driver_test_filled_file("truncate", 10000, 5);
    BlockBackend *blk = file_open(env, path, "");
    g_autoptr(GError) err = NULL;
    uint8_t got[10000], zero[10000] = {0};
    g_assert_cmpint(block_backend_co_truncate(blk, 100, &err), ==, 0);
    g_assert_cmpint(block_backend_co_truncate(blk, 10100, &err), ==, 0);
    g_assert_cmpint(block_backend_co_pread(blk, 100, sizeof got, got), ==, 0);
    test_assert_mem("grown", got, zero, sizeof got);
    /* More than this file system's files can be. */
    int ret = block_backend_co_truncate(blk, BLOCK_MAX_LENGTH, &err);
    if (ret < 0) {
        test_check_error(&err, EFBIG, "node 'f'", path, NULL);
        g_assert_cmpint(block_backend_length(blk), ==, 10100);
    }
    driver_test_close(env, blk);
}

/* ---- drivers/file/errors */

static bool log_has(TestEnv *env, const char *word)
{
    g_autofree char *text = block_graph_errors_text(env->graph);
    return strstr(text, word) != NULL;
}

/* A file that is cut while it is open: reads fail and say why, those before the end go on. */
static void coroutine_fn test_errors_shrink(TestEnv *env)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(modes); i++) {
        g_autofree char *path = driver_test_filled_file("shrink", 64 * KIB, 6);
        BlockBackend *blk = file_open(env, path, modes[i]);
        g_autofree uint8_t *buf = g_malloc(64 * KIB);
        int64_t pnum;
        g_assert_no_errno(truncate(path, 5000));
        g_assert_cmpint(block_backend_co_pread(blk, 0, 4096, buf), ==, 0);
        g_assert_cmpint(block_backend_co_pread(blk, 4096, 8192, buf), ==, -EIO);
        g_assert_true(log_has(env, "file shrank from 65536 to 5000 bytes"));
        g_assert_cmpint(block_backend_co_pread(blk, 32 * KIB, 10, buf), ==, -EIO);
        /* What is gone does not pass for a hole. */
        int status = block_backend_co_block_status(blk, 16 * KIB, 4096, &pnum);
        g_assert_cmpint(status, ==, BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED);
        g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
        driver_test_close(env, blk);
    }
}

static void coroutine_fn fill_up(TestEnv *env, const char *name)
{
    for (unsigned i = 0; i < 2; i++) {
        g_autofree char *file = g_strconcat(name, "/image", NULL);
        g_autofree char *path = driver_test_file(file, 4 * MIB);
        g_autofree uint8_t *data = g_malloc(MIB), *got = g_malloc(MIB);
        BlockBackend *blk = file_open(env, path, modes[i]);
        test_fill(data, MIB, 7);
        int ret = 0;
        for (int64_t offset = 0; offset < 4 * MIB && ret == 0; offset += 64 * KIB) {
            ret = block_backend_co_pwrite(blk, offset, 64 * KIB, data, 0);
        }
        g_assert_cmpint(ret, ==, -ENOSPC);
        g_assert_true(log_has(env, "ENOSPC"));
        ret = block_backend_co_pwrite_zeroes(blk, 0, 4 * MIB, BLOCK_REQ_ALLOCATE);
        g_assert_cmpint(ret, ==, -ENOSPC);
        /* What was written is there, flushes succeed, and freed space can be written. */
        g_assert_cmpint(block_backend_co_pread(blk, 0, 64 * KIB, got), ==, 0);
        test_assert_mem("kept", got, data, 64 * KIB);
        g_assert_cmpint(block_backend_co_flush(blk), ==, 0);
        g_assert_cmpint(block_backend_co_pdiscard(blk, 0, 256 * KIB), ==, 0);
        g_assert_cmpint(block_backend_co_pwrite(blk, 3 * MIB, 128 * KIB, data, BLOCK_REQ_FUA), ==, 0);
        driver_test_close(env, blk);
        unlink(path);
    }
}

static void coroutine_fn test_errors_enospc(TestEnv *env)
{
    with_tmpfs(env, "full", "size=1m", fill_up);
}

static void register_tests(void)
{
    test_add_co("drivers/file/model/disk", test_model);
    test_add_co("drivers/file/model/tmpfs", test_model_tmpfs);
    test_add_co("drivers/file/concurrent", test_concurrent);
    test_add_co("drivers/file/read-while-truncated", test_read_while_truncated);
    test_add_co("drivers/file/space/holes", test_space_holes);
    test_add_co("drivers/file/space/keep", test_space_keep);
    test_add_co("drivers/file/space/detect-zeroes", test_space_detect_zeroes);
    test_add_co("drivers/file/space/copy-range", test_space_copy_range);
    test_add_co("drivers/file/space/truncate", test_space_truncate);
    test_add_co("drivers/file/errors/shrink", test_errors_shrink);
    test_add_co("drivers/file/errors/enospc", test_errors_enospc);
}

int main(int argc, char **argv)
{
    return driver_test_main(argc, argv, register_tests);
}
