/*
 * Tests of the driver blklogwrites: what the log holds, and that it is enough to get the content back.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <string.h>

#include "tests/unit/driver-test-util.h"

#define KIB INT64_C(1024)
#define MIB (1024 * KIB)

/* A filter "w" over test-mem nodes "f" and "l", and a backend on it. */
typedef struct Fixture {
    TestEnv *env;
    BlockNode *file, *log;
    BlockBackend *blk;
} Fixture;

static void coroutine_fn reopen(Fixture *x, const char *options)
{
    BlockNode *node =
        test_open(x->env, "{'driver':'blklogwrites','node-name':'w','file':'f','log':'l'%s}", options);
    x->blk = test_backend(x->env, "w", node);
}

static Fixture coroutine_fn fixture_open(TestEnv *env, int64_t size, const char *options)
{
    Fixture x = {.env = env};
    x.file = test_open(env,
                       "{'driver':'test-mem','node-name':'f','size':%" G_GINT64_FORMAT
                       ",'capacity':'8M','growable':true}",
                       size);
    x.log = test_open(env, "{'driver':'test-mem','node-name':'l','size':0,'capacity':'32M','growable':true}");
    reopen(&x, options);
    return x;
}

static void coroutine_fn fixture_close(Fixture *x)
{
    driver_test_close(x->env, x->blk);
    test_delete(x->env, x->file);
    test_delete(x->env, x->log);
}

/* ---- The log, read on its own terms */

static uint64_t get64(const uint8_t *p)
{
    uint64_t n;
    memcpy(&n, p, sizeof n);
    return GUINT64_FROM_LE(n);
}

static uint64_t log_count(const Fixture *x)
{
    return get64(test_mem(x->log)->data + 16);
}

/* "write 0+8, fua 16+1, discard 0+8, flush 2", in sectors; the image after all of them in *image where asked
 * for. */
static char *log_replay(const Fixture *x, uint8_t *image)
{
    const uint8_t *log = test_mem(x->log)->data;
    uint64_t size = get64(log + 24) & UINT32_MAX, at = size, count = log_count(x);
    GString *text = g_string_new("");
    g_assert_cmphex(get64(log), ==, UINT64_C(0x6a736677736872));
    g_assert_cmpuint(get64(log + 8), ==, 1);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t sector = get64(log + at), n = get64(log + at + 8), flags = get64(log + at + 16);
        static const char *const names[] = {"write", "flush", "fua", "?", "discard"};
        const char *name = flags < G_N_ELEMENTS(names) ? names[flags] : "?";
        g_string_append(text, i ? ", " : "");
        if (flags == 1) {
            g_assert_cmpuint(get64(log + at + 24), ==, 8);
            g_string_append_printf(text, "flush %u", (unsigned)get64(log + at + 32));
        } else {
            g_assert_cmpuint(get64(log + at + 24), ==, 0);
            g_string_append_printf(text, "%s %u+%u", name, (unsigned)sector, (unsigned)n);
        }
        at += size;
        if (image && flags == 4) {
            memset(image + sector * size, 0, n * size);
        } else if (image && n) {
            memcpy(image + sector * size, log + at, n * size);
        }
        at += flags == 4 ? 0 : n * size;
    }
    g_assert_cmpuint(at, <=, atomic_load(&test_mem(x->log)->size));
    return g_string_free(text, false);
}

static void assert_log(const Fixture *x, const char *want)
{
    g_autofree char *text = log_replay(x, NULL);
    g_assert_cmpstr(text, ==, want);
}

/* Applied to nothing but zeroes, the log gives the file. */
static void assert_replay(const Fixture *x)
{
    int64_t size = atomic_load(&test_mem(x->file)->size);
    g_autofree uint8_t *image = g_malloc0(8 * MIB);
    g_free(log_replay(x, image));
    test_assert_mem("replayed", image, test_mem(x->file)->data, (size_t)size);
}

static void coroutine_fn write_pattern(const Fixture *x, int64_t offset, int64_t bytes,
                                       BlockRequestFlags flags)
{
    g_autofree uint8_t *buf = g_malloc((gsize)bytes);
    test_fill(buf, (size_t)bytes, (uint32_t)(offset + bytes));
    g_assert_cmpint(block_backend_co_pwrite(x->blk, offset, bytes, buf, flags), ==, 0);
}

/* ---- Tests */

static void coroutine_fn check_entries(TestEnv *env, const char *options, unsigned size)
{
    Fixture x = fixture_open(env, MIB, options);
    test_mem(x.file)->erase_discarded = false;
    write_pattern(&x, 0, 8 * size, 0);
    write_pattern(&x, 16 * size, size, BLOCK_REQ_FUA);
    g_assert_cmpint(block_backend_co_pwrite_zeroes(x.blk, 4 * size, 2 * size, BLOCK_REQ_MAY_UNMAP), ==, 0);
    g_assert_cmpint(block_backend_co_flush(x.blk), ==, 0);
    write_pattern(&x, 5 * size + 7, 10, 0);
    g_assert_cmpint(block_backend_co_pdiscard(x.blk, 64 * size, 8 * size), ==, 0);
    g_assert_cmpint(block_backend_co_flush(x.blk), ==, 0);
    bool has_fua = x.file->supported_write_flags & BLOCK_REQ_FUA;
    assert_log(&x, has_fua ? "write 0+8, fua 16+1, write 4+2, flush 3, write 5+1, discard 64+8, flush 6"
                           : "write 0+8, write 16+1, flush 2, write 4+2, flush 4, write 5+1, discard 64+8, "
                             "flush 7");
    assert_replay(&x);
    fixture_close(&x);
}

static void coroutine_fn test_entries(TestEnv *env)
{
    check_entries(env, "", 512);
    check_entries(env, ",'log-sector-size':4096", 4096);
    check_entries(env, ",'log-sector-size':'64'", 64);
}

/* A file that has FUA is asked for it, and the entry says so. */
static void coroutine_fn test_fua(TestEnv *env)
{
    g_autofree char *path = driver_test_file("fua", MIB), *log_path = driver_test_file("fua-log", 0);
    BlockNode *node = test_open(env,
                                "{'driver':'blklogwrites','node-name':'w','file':{'driver':'file',"
                                "'filename':'%s'},'log':{'driver':'file','filename':'%s'}}",
                                path, log_path);
    BlockBackend *blk = test_backend(env, "w", node);
    uint8_t data[512], entry[32], got[512];
    test_fill(data, sizeof data, 1);
    g_assert_cmpint(block_backend_co_pwrite(blk, 1024, sizeof data, data, BLOCK_REQ_FUA), ==, 0);
    driver_test_read(log_path, 512, entry, sizeof entry);
    g_assert_cmpuint(get64(entry), ==, 2);
    g_assert_cmpuint(get64(entry + 8), ==, 1);
    g_assert_cmpuint(get64(entry + 16), ==, 2);
    driver_test_read(log_path, 1024, got, sizeof got);
    test_assert_mem("data", got, data, sizeof data);
    g_assert_cmpint(block_backend_co_get_allocated(blk), ==, driver_test_allocated(path));
    g_autofree char *name = block_node_filename(node);
    g_assert_cmpstr(name, ==, path);
    driver_test_close(env, blk);
}

/* The super block counts at each flush, at the interval, and at the end. */
static void coroutine_fn test_super_block(TestEnv *env)
{
    Fixture x = fixture_open(env, MIB, ",'log-super-update-interval':3");
    static const unsigned counts[] = {0, 0, 3, 3, 3, 6, 6};
    g_assert_cmpuint(log_count(&x), ==, 0);
    for (unsigned i = 0; i < G_N_ELEMENTS(counts); i++) {
        write_pattern(&x, i * 512, 512, 0);
        g_assert_cmpuint(log_count(&x), ==, counts[i]);
    }
    g_assert_cmpint(block_backend_co_flush(x.blk), ==, 0);
    g_assert_cmpuint(log_count(&x), ==, 8);
    write_pattern(&x, 0, 512, 0);
    g_assert_cmpuint(log_count(&x), ==, 8);
    driver_test_close(env, x.blk);
    g_assert_cmpuint(log_count(&x), ==, 10); /* and a flush */
    reopen(&x, ",'cache':{'no-flush':true}");
    g_assert_cmpuint(log_count(&x), ==, 0); /* started over */
    write_pattern(&x, 0, 512, 0);
    driver_test_close(env, x.blk);
    g_assert_cmpuint(log_count(&x), ==, 1);
    reopen(&x, "");
    fixture_close(&x);
}

static void coroutine_fn test_append(TestEnv *env)
{
    Fixture x = fixture_open(env, MIB, ",'log-sector-size':1024");
    write_pattern(&x, 0, 4096, 0);
    g_assert_cmpint(block_backend_co_pdiscard(x.blk, 65536, 65536), ==, 0);
    driver_test_close(env, x.blk);
    reopen(&x, ",'log-append':true");
    write_pattern(&x, 8192, 1024, 0);
    g_assert_cmpint(block_backend_co_flush(x.blk), ==, 0);
    assert_log(&x, "write 0+4, discard 64+64, flush 2, write 8+1, flush 4");
    assert_replay(&x);
    fixture_close(&x);
    x = fixture_open(env, MIB, ",'log-append':'on'"); /* of nothing: a new one */
    write_pattern(&x, 512, 512, 0);
    driver_test_close(env, x.blk);
    assert_log(&x, "write 1+1, flush 1");
    reopen(&x, "");
    fixture_close(&x);
}

/* Spoil `n` bytes of the log, and see log-append refuse it. */
static void coroutine_fn check_bad_log(Fixture *x, size_t at, uint8_t value, const char *words)
{
    uint8_t *byte = test_mem(x->log)->data + at, old = *byte;
    *byte = value;
    g_autoptr(GError) err = test_open_error(x->env, EINVAL,
                                            "{'driver':'blklogwrites','node-name':'w','file':'f','log':'l',"
                                            "'log-append':true}");
    test_check_error(&err, EINVAL, "node 'w'", "log-append", words, NULL);
    *byte = old;
}

static void coroutine_fn test_bad_log(TestEnv *env)
{
    Fixture x = fixture_open(env, MIB, "");
    write_pattern(&x, 0, 4096, 0);
    driver_test_close(env, x.blk);
    check_bad_log(&x, 0, 'x', "not a log");
    check_bad_log(&x, 8, 2, "version");
    check_bad_log(&x, 24, 7, "sector size");
    check_bad_log(&x, 16, 9, "ends before");
    check_bad_log(&x, 512 + 15, 1, "ends before");
    check_bad_log(&x, 512 + 17, 1, "unknown flags");
    reopen(&x, ",'log-append':true");
    fixture_close(&x);
}

static void coroutine_fn test_bad_options(TestEnv *env)
{
    static const struct {
        const char *options;
        const char *words[2];
    } bad[] = {
        {"'log':'l'", {"'file'", "required"}},
        {"'file':'f'", {"'log'", "required"}},
        {"'file':'f','log':'f'", {"node 'f'", "write"}},
        {"'file':'f','log':'l','log-sector-size':100", {"'log-sector-size'", "power of two"}},
        {"'file':'f','log':'l','log-sector-size':'16M'", {"'log-sector-size'", "power of two"}},
        {"'file':'f','log':'l','log-sector-size':16", {"'log-sector-size'", "power of two"}},
        {"'file':'f','log':'l','log-sector-size':512,'log-append':true", {"'log-sector-size'", "log-append"}},
        {"'file':'f','log':'l','log-append':'perhaps'", {"'log-append'", ""}},
        {"'file':'f','log':'l','log-super-update-interval':0", {"'log-super-update-interval'", ""}},
        {"'file':'f','log':'l','log-sectorsize':512", {"log-sectorsize", "log-sector-size"}},
    };
    BlockNode *file = test_open(env, "{'driver':'test-mem','node-name':'f','size':'1M'}");
    BlockNode *log = test_open(env, "{'driver':'test-mem','node-name':'l','size':'1M'}");
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) err =
            test_open_error(env, 0, "{'driver':'blklogwrites','node-name':'w',%s}", bad[i].options);
        for (unsigned w = 0; w < G_N_ELEMENTS(bad[i].words); w++) {
            if (!strstr(err->message, bad[i].words[w])) {
                g_error("'%s' is missing in: %s", bad[i].words[w], err->message);
            }
        }
    }
    test_delete(env, file);
    file = test_open(env, "{'driver':'test-mem','node-name':'f','size':1000}");
    g_autoptr(GError) err =
        test_open_error(env, EINVAL, "{'driver':'blklogwrites','node-name':'w','file':'f','log':'l'}");
    test_check_error(&err, EINVAL, "node 'w'", "multiple", NULL);
    test_delete(env, file);
    test_delete(env, log);
}

/* What ends while a flush runs is not taken for stable, though its entry stands before that of the flush. */
static void coroutine_fn test_flush_covers(TestEnv *env)
{
    Fixture x = fixture_open(env, MIB, "");
    write_pattern(&x, 0, 512, 0);
    test_mem_hold(x.file, BLOCK_OP_FLUSH, -1);
    TestRequest *flush = test_request_start(test_iothread(env, 0), x.blk, BLOCK_OP_FLUSH, 0, 0, 0);
    test_wait(test_mem_waiting(x.file) == 1);
    write_pattern(&x, 512, 512, 0);
    g_assert_false(test_request_done(flush));
    test_mem_release(x.file, BLOCK_OP_FLUSH, -1);
    g_assert_cmpint(test_request_finish(flush), ==, 0);
    assert_log(&x, "write 0+1, write 1+1, flush 1");
    fixture_close(&x);
}

/* A write has no entry before the file has taken it, and a flush waits for it. */
static void coroutine_fn test_flush_waits(TestEnv *env)
{
    Fixture x = fixture_open(env, MIB, ",'log-super-update-interval':1");
    test_mem_hold(x.file, BLOCK_OP_WRITE, 0);
    TestRequest *write = test_request_start(test_iothread(env, 0), x.blk, BLOCK_OP_WRITE, 0, 512, 1);
    test_wait(test_mem_waiting(x.file) == 1);
    TestRequest *flush = test_request_start(test_iothread(env, 1), x.blk, BLOCK_OP_FLUSH, 0, 0, 0);
    write_pattern(&x, 1024, 512, 0);
    test_settle();
    assert_log(&x, "write 2+1");
    test_mem_release(x.file, BLOCK_OP_WRITE, 0);
    g_assert_cmpint(test_request_finish(write), ==, 0);
    g_assert_cmpint(test_request_finish(flush), ==, 0);
    assert_log(&x, "write 2+1, write 0+1, flush 2");
    fixture_close(&x);
}

/* What the file refuses is not logged; once the log fails, nothing changes any more. */
static void coroutine_fn test_failures(TestEnv *env)
{
    Fixture x = fixture_open(env, MIB, ",'log-super-update-interval':1");
    uint8_t data[512] = {1}, got[512];
    test_mem_fail(x.file, BLOCK_OP_WRITE, ENOSPC);
    g_assert_cmpint(block_backend_co_pwrite(x.blk, 0, 512, data, 0), ==, -ENOSPC);
    test_mem_fail(x.file, BLOCK_OP_WRITE, 0);
    test_mem_fail(x.file, BLOCK_OP_FLUSH, EIO);
    write_pattern(&x, 512, 512, 0);
    g_assert_cmpint(block_backend_co_flush(x.blk), ==, -EIO);
    test_mem_fail(x.file, BLOCK_OP_FLUSH, 0);
    assert_log(&x, "write 1+1");

    test_mem_fail(x.log, BLOCK_OP_WRITE, EIO);
    g_assert_cmpint(block_backend_co_pwrite(x.blk, 0, 512, data, 0), ==, -EIO);
    test_mem_fail(x.log, BLOCK_OP_WRITE, 0);
    unsigned before = test_calls(x.file, BLOCK_OP_WRITE);
    g_autoptr(GError) err = NULL;
    g_assert_cmpint(block_backend_co_pwrite(x.blk, 1024, 512, data, 0), ==, -EIO);
    g_assert_cmpint(block_backend_co_pwrite_zeroes(x.blk, 0, 512, 0), ==, -EIO);
    g_assert_cmpint(block_backend_co_pdiscard(x.blk, 0, 512), ==, -EIO);
    g_assert_cmpint(block_backend_co_flush(x.blk), ==, -EIO);
    g_assert_cmpint(block_backend_co_truncate(x.blk, 2 * MIB, &err), ==, -EIO);
    test_check_error(&err, EIO, "node 'w'", "log", NULL);
    g_assert_cmpuint(test_calls(x.file, BLOCK_OP_WRITE), ==, before);
    g_assert_cmpint(block_backend_co_pread(x.blk, 0, 512, got), ==, 0);
    assert_log(&x, "write 1+1");
    fixture_close(&x);
}

static void coroutine_fn test_length(TestEnv *env)
{
    Fixture x = fixture_open(env, 0, "");
    g_autoptr(GError) err = NULL;
    write_pattern(&x, 0, 5000, 0); /* whole sectors, then the rest of it in one more, cut */
    g_assert_cmpint(block_backend_length(x.blk), ==, 5000);
    g_assert_cmpint(block_backend_co_truncate(x.blk, 1000, &err), ==, 0);
    g_assert_cmpint(block_backend_co_truncate(x.blk, 4096, &err), ==, 0);
    g_assert_no_error(err);
    g_assert_cmpint(block_node_length(x.file), ==, 4096);
    g_assert_cmpint(block_backend_co_flush(x.blk), ==, 0);
    assert_log(&x, "write 0+9, write 9+1, write 9+1, write 1+1, discard 2+8, write 2+6, flush 6");
    assert_replay(&x);
    fixture_close(&x);
}

/* No other writer below: its changes would not be in the log. Nobody reaches the log. */
static void coroutine_fn test_permissions(TestEnv *env)
{
    Fixture x = fixture_open(env, MIB, "");
    BlockNode *const nodes[] = {x.file, x.log};
    for (unsigned i = 0; i < G_N_ELEMENTS(nodes); i++) {
        g_autoptr(GError) err = NULL;
        BlockBackend *other = block_backend_new(env->graph, "o", BLOCK_PERM_WRITE, BLOCK_PERM_ALL);
        g_assert_cmpint(block_backend_insert(other, nodes[i], &err), ==, -EBUSY);
        test_check_error(&err, EBUSY, "node 'w'", "write", NULL);
        block_backend_co_free(other);
    }
    driver_test_close(env, x.blk);
    test_open(env, "{'driver':'blklogwrites','node-name':'w','file':'f','log':'l','read-only':true}");
    unsigned writes = test_calls(x.log, BLOCK_OP_WRITE);
    test_delete(env, block_graph_find(env->graph, "w", NULL));
    g_assert_cmpuint(test_calls(x.log, BLOCK_OP_WRITE), ==, writes);
    test_delete(env, x.file);
    test_delete(env, x.log);
}

/* ---- Several threads, each in a part of its own */

#define WORKERS TEST_IOTHREADS

typedef struct Worker {
    BlockBackend *blk;
    unsigned number;
} Worker;

static int coroutine_fn work(void *opaque)
{
    Worker *w = opaque;
    g_autoptr(GRand) rand = g_rand_new_with_seed(w->number);
    g_autofree uint8_t *buf = g_malloc(16 * KIB);
    int ret = 0;
    for (unsigned i = 0; i < 300 && ret == 0; i++) {
        int64_t n = g_rand_int_range(rand, 1, 16 * KIB), most = MIB - n;
        int64_t at = w->number * MIB + g_rand_int_range(rand, 0, (gint32)most);
        int kind = g_rand_int_range(rand, 0, 10);
        test_fill(buf, (size_t)n, w->number * 1000 + i);
        if (kind < 7) {
            ret = block_backend_co_pwrite(w->blk, at, n, buf, kind == 0 ? BLOCK_REQ_FUA : 0);
        } else if (kind < 9) {
            ret = block_backend_co_pwrite_zeroes(w->blk, at, n, kind == 8 ? BLOCK_REQ_MAY_UNMAP : 0);
        } else {
            ret = block_backend_co_flush(w->blk);
        }
    }
    return ret;
}

static void coroutine_fn test_threads(TestEnv *env)
{
    Fixture x = fixture_open(env, 0, ",'log-super-update-interval':7");
    Worker workers[WORKERS];
    TestTask *tasks[WORKERS];
    for (unsigned i = 0; i < WORKERS; i++) {
        workers[i] = (Worker){x.blk, i};
        tasks[i] = test_spawn(test_iothread(env, i), work, &workers[i]);
    }
    for (unsigned i = 0; i < WORKERS; i++) {
        g_assert_cmpint(test_join(tasks[i]), ==, 0);
    }
    g_assert_cmpint(block_backend_co_flush(x.blk), ==, 0);
    assert_replay(&x);
    fixture_close(&x);
}

static void register_tests(void)
{
    test_add_co("drivers/blklogwrites/entries", test_entries);
    test_add_co("drivers/blklogwrites/fua", test_fua);
    test_add_co("drivers/blklogwrites/super-block", test_super_block);
    test_add_co("drivers/blklogwrites/append", test_append);
    test_add_co("drivers/blklogwrites/bad-log", test_bad_log);
    test_add_co("drivers/blklogwrites/bad-options", test_bad_options);
    test_add_co("drivers/blklogwrites/flush-covers", test_flush_covers);
    test_add_co("drivers/blklogwrites/flush-waits", test_flush_waits);
    test_add_co("drivers/blklogwrites/failures", test_failures);
    test_add_co("drivers/blklogwrites/length", test_length);
    test_add_co("drivers/blklogwrites/permissions", test_permissions);
    test_add_co("drivers/blklogwrites/threads", test_threads);
}

int main(int argc, char **argv)
{
    return driver_test_main(argc, argv, register_tests);
}
