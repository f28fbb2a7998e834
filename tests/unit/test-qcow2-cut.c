/*
 * Power cuts under qcow2: a filter between the driver and its file records every write, discard and flush.
 * The record is played back up to random points, with random parts of what came after the last flush lost or
 * torn at 512 bytes. qemu-img must find no corruption in what is left, and all that was flushed must be
 * there.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/driver-test-util.h"

#define KIB     INT64_C(1024)
#define MIB     (1024 * KIB)
#define SECTOR  512
#define WORKERS 3
#define REGION  MIB /* of each worker */
#define SECTORS (REGION / SECTOR)

typedef enum EventType {
    EVENT_WRITE,
    EVENT_DISCARD,
    EVENT_FLUSHED, /* all writes and discards before are stable */
    EVENT_TOUCH,   /* a worker is about to change sectors */
    EVENT_SYNCED,  /* a worker's flush returned: `data` is what its region holds */
} EventType;

typedef struct Event {
    EventType type;
    unsigned worker;
    int64_t offset, bytes; /* of the file; for TOUCH sectors of the region */
    void *data;
} Event;

/* ---- The record */

static BgMutex log_lock = BG_MUTEX_INIT;
static GArray *events;

static void event_clear(void *p)
{
    g_free(((Event *)p)->data);
}

static void record(EventType type, unsigned worker, int64_t offset, int64_t bytes, void *data)
{
    Event e = {type, worker, offset, bytes, data};
    bg_mutex_lock(&log_lock);
    g_array_append_val(events, e);
    bg_mutex_unlock(&log_lock);
}

static int coroutine_fn log_pwritev(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                    size_t qiov_offset, BlockRequestFlags flags)
{
    uint8_t *copy = g_malloc((size_t)bytes);
    io_vector_to_buf(qiov, qiov_offset, copy, (size_t)bytes);
    aio_co_sleep_ns(g_random_int_range(0, 3) * 20000); /* let others in */
    int ret = block_child_co_pwritev(node->file, offset, bytes, qiov, qiov_offset, 0);
    record(EVENT_WRITE, 0, offset, bytes, copy);
    return ret;
}

static int coroutine_fn log_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    record(EVENT_DISCARD, 0, offset, bytes, NULL);
    return block_child_co_pdiscard(node->file, offset, bytes);
}

/* The core has waited for the writes before, and calls the file's own flush after. */
static int coroutine_fn log_flush(BlockNode *node)
{
    record(EVENT_FLUSHED, 0, 0, 0, NULL);
    return 0;
}

static const BlockDriver log_driver = {
    .name = "test-log",
    .instance_size = 1,
    .is_filter = true,
    .co_open = test_filter_open,
    .co_pwritev = log_pwritev,
    .co_pdiscard = log_pdiscard,
    .co_flush = log_flush,
};

/* ---- The load */

typedef struct Worker {
    unsigned number, operations, seed;
    BlockBackend *blk;
    uint64_t values[SECTORS]; /* what each sector is full of */
} Worker;

static int coroutine_fn change(Worker *w, GRand *rand, uint64_t value)
{
    int64_t first = g_rand_int_range(rand, 0, SECTORS), most = SECTORS - first;
    int64_t n = g_rand_int_range(rand, 1, g_rand_boolean(rand) ? 4 : 80);
    n = MIN(n, most);
    int64_t at = w->number * REGION + first * SECTOR;
    record(EVENT_TOUCH, w->number, first, n, NULL);
    for (int64_t i = 0; i < n; i++) {
        w->values[first + i] = value;
    }
    if (!value) {
        return block_backend_co_pwrite_zeroes(w->blk, at, n * SECTOR, BLOCK_REQ_MAY_UNMAP);
    }
    g_autofree uint64_t *buf = g_malloc((size_t)n * SECTOR);
    for (int64_t i = 0; i < n * SECTOR / 8; i++) {
        buf[i] = value;
    }
    return block_backend_co_pwrite(w->blk, at, n * SECTOR, buf, 0);
}

static int coroutine_fn work(void *opaque)
{
    Worker *w = opaque;
    g_autoptr(GRand) rand = g_rand_new_with_seed(w->seed);
    int ret = 0;
    for (unsigned i = 1; i <= w->operations && ret == 0; i++) {
        int kind = g_rand_int_range(rand, 0, 10);
        if (kind == 0) {
            ret = block_backend_co_flush(w->blk);
            record(EVENT_SYNCED, w->number, 0, 0, g_memdup2(w->values, sizeof w->values));
        } else {
            ret = change(w, rand, kind < 4 ? 0 : (uint64_t)w->number << 32 | i);
        }
    }
    return ret;
}

/* Cuts the image short and makes it long again, behind what the workers use; what it writes there has its
 * number. */
static int coroutine_fn resize(void *opaque)
{
    Worker *w = opaque;
    g_autoptr(GRand) rand = g_rand_new_with_seed(w->seed);
    uint64_t buf[40 * SECTOR / 8];
    int ret = 0;
    for (unsigned i = 0; i < G_N_ELEMENTS(buf); i++) {
        buf[i] = (uint64_t)w->number << 32;
    }
    for (unsigned i = 0; i < w->operations && ret == 0; i++) {
        int64_t length = WORKERS * REGION + g_rand_int_range(rand, 0, 2 * SECTORS) * SECTOR;
        ret = block_backend_co_truncate(w->blk, length, NULL);
        int64_t at = length - g_rand_int_range(rand, 1, SECTORS) * SECTOR;
        at = MAX(at, WORKERS * REGION);
        int64_t n = MIN(length - at, (int64_t)sizeof buf);
        ret = ret < 0 ? ret : block_backend_co_pwrite(w->blk, at, n, buf, 0);
    }
    return ret;
}

/* ---- Playing back */

static void apply(GByteArray *image, const Event *e, int64_t skip, int64_t n)
{
    int64_t end = e->offset + skip + n;
    if (end > image->len) {
        guint old = image->len;
        g_byte_array_set_size(image, (guint)end);
        memset(image->data + old, 0, image->len - old);
    }
    if (e->type == EVENT_WRITE) {
        memcpy(image->data + e->offset + skip, (uint8_t *)e->data + skip, (size_t)n);
    } else {
        memset(image->data + e->offset + skip, 0, (size_t)n);
    }
}

/* Each sector of an unstable write is there or not; mostly all or none. */
static void apply_by_chance(GByteArray *image, const Event *e, GRand *rand)
{
    int fate = g_rand_int_range(rand, 0, 5);
    for (int64_t at = 0; at < e->bytes;) {
        int64_t n = MIN(SECTOR - ((e->offset + at) & (SECTOR - 1)), e->bytes - at);
        if (fate < 2 || (fate == 4 && g_rand_boolean(rand))) {
            apply(image, e, at, n);
        }
        at += n;
    }
}

static const Event *event_at(guint i)
{
    return &g_array_index(events, Event, i);
}

static GByteArray *play_back(const GByteArray *start, guint cut, GRand *rand)
{
    GByteArray *image = g_byte_array_sized_new(start->len);
    guint stable = cut;
    g_byte_array_append(image, start->data, start->len);
    while (stable > 0 && event_at(stable - 1)->type != EVENT_FLUSHED) {
        stable--;
    }
    for (guint i = 0; i < cut; i++) {
        const Event *e = event_at(i);
        if (e->type > EVENT_DISCARD) {
            continue;
        }
        if (i < stable) {
            apply(image, e, 0, e->bytes);
        } else {
            apply_by_chance(image, e, rand);
        }
    }
    return image;
}

/* The sectors of the worker that its last flush before the cut covers, and that it has left alone since. */
static unsigned check_flushed(const uint8_t *raw, unsigned worker, guint cut)
{
    const uint64_t *values = NULL;
    g_autofree bool *touched = g_new0(bool, SECTORS);
    unsigned checked = 0;
    for (guint i = cut; i > 0 && !values; i--) {
        const Event *e = event_at(i - 1);
        if (e->worker == worker && e->type == EVENT_SYNCED) {
            values = e->data;
        } else if (e->worker == worker && e->type == EVENT_TOUCH) {
            memset(touched + e->offset, true, (size_t)e->bytes);
        }
    }
    for (int64_t s = 0; values && s < SECTORS; s++) {
        uint64_t got[SECTOR / 8];
        memcpy(got, raw + worker * REGION + s * SECTOR, SECTOR);
        for (unsigned i = 0; i < SECTOR / 8 && !touched[s]; i++) {
            g_assert_cmphex(got[i], ==, values[s]);
        }
        checked += !touched[s];
    }
    return checked;
}

/* Behind the workers' regions: zeroes, or what the resizer wrote. */
static void check_tail(const uint8_t *raw, gsize n)
{
    g_assert_cmpuint(n, >=, WORKERS * REGION);
    for (gsize at = WORKERS * REGION; at < n; at += 8) {
        uint64_t got;
        memcpy(&got, raw + at, 8);
        g_assert_true(got == 0 || got == (uint64_t)WORKERS << 32);
    }
}

static unsigned check_cut(const GByteArray *start, guint cut, GRand *rand)
{
    g_autoptr(GByteArray) image = play_back(start, cut, rand);
    g_autofree char *path = driver_test_path("cut.qcow2"), *raw_path = driver_test_path("cut.raw");
    g_autofree char *output = NULL, *raw = NULL;
    gsize n;
    g_assert_true(g_file_set_contents(path, (char *)image->data, image->len, NULL));
    int status = driver_test_command(&output, "qemu-img", "check", "-f", "qcow2", path, NULL);
    if (status != 0 && status != 3) { /* 3: leaks */
        g_error("cut at event %u of %u: %s", cut, events->len, output);
    }
    g_assert_cmpint(driver_test_command(NULL, "qemu-img", "convert", "-O", "raw", path, raw_path, NULL), ==,
                    0);
    g_assert_true(g_file_get_contents(raw_path, &raw, &n, NULL));
    check_tail((uint8_t *)raw, n);
    unsigned checked = 0;
    for (unsigned w = 0; w < WORKERS; w++) {
        checked += check_flushed((uint8_t *)raw, w, cut);
    }
    return checked;
}

/* ---- One image */

static BlockBackend *coroutine_fn open_image(TestEnv *env, const GByteArray *start, const char *options)
{
    BlockNode *mem = test_open(env,
                               "{'driver':'test-mem','node-name':'mem','size':%u,'capacity':'64M',"
                               "'growable':true}",
                               start->len);
    memcpy(test_mem(mem)->data, start->data, start->len);
    test_open(env, "{'driver':'test-log','node-name':'log','file':'mem'}");
    return test_backend(env, "b",
                        test_open(env, "{'driver':'qcow2','node-name':'q','file':'log'%s}", options));
}

static void coroutine_fn run_cuts_beside(TestEnv *env, const char *create, const char *options, unsigned seed,
                                         TestTaskFunc *resizer)
{
    g_autofree char *path = driver_test_path("start.qcow2"), *content = NULL;
    gsize n;
    unsigned cuts = g_getenv("BG_LONG") ? 200 : 25, checked = 0;
    if (driver_test_lacks("qemu-img")) {
        return;
    }
    int status =
        driver_test_command(NULL, "qemu-img", "create", "-f", "qcow2", "-o", create, path, "3M", NULL);
    g_assert_cmpint(status, ==, 0);
    g_assert_true(g_file_get_contents(path, &content, &n, NULL));
    g_autoptr(GByteArray) start = g_byte_array_new_take((guint8 *)g_steal_pointer(&content), n);
    g_autoptr(GRand) rand = g_rand_new_with_seed(seed);
    events = g_array_new(false, false, sizeof(Event));
    g_array_set_clear_func(events, event_clear);

    BlockBackend *blk = open_image(env, start, options);
    unsigned n_tasks = WORKERS + (resizer != NULL);
    TestTask *tasks[WORKERS + 1];
    Worker *workers = g_new0(Worker, n_tasks);
    for (unsigned i = 0; i < n_tasks; i++) {
        workers[i] = (Worker){.number = i, .operations = 150, .seed = seed + i, .blk = blk};
        tasks[i] = test_spawn(test_iothread(env, i % WORKERS), i < WORKERS ? work : resizer, &workers[i]);
    }
    for (unsigned i = 0; i < n_tasks; i++) {
        g_assert_cmpint(test_join(tasks[i]), ==, 0);
    }
    driver_test_close(env, blk);
    test_delete(env, block_graph_find(env->graph, "log", NULL));
    test_delete(env, block_graph_find(env->graph, "mem", NULL));

    for (unsigned i = 0; i < cuts; i++) {
        checked += check_cut(start, (guint)g_rand_int_range(rand, 1, (gint32)events->len + 1), rand);
    }
    g_assert_cmpuint(checked, >, 1000);
    g_array_unref(events);
    g_free(workers);
}

static void coroutine_fn run_cuts(TestEnv *env, const char *create, const char *options, unsigned seed)
{
    run_cuts_beside(env, create, options, seed, NULL);
}

#define SMALL_CACHES ",'l2-cache-size':1,'refcount-cache-size':1"

static void coroutine_fn test_small_clusters(TestEnv *env)
{
    run_cuts(env, "cluster_size=512,refcount_bits=64", SMALL_CACHES, 1);
}

static void coroutine_fn test_large_caches(TestEnv *env)
{
    run_cuts(env, "cluster_size=4k,refcount_bits=2", "", 2);
}

static void coroutine_fn test_version_2(TestEnv *env)
{
    run_cuts(env, "compat=0.10,cluster_size=1k", SMALL_CACHES, 3);
}

static void coroutine_fn test_subclusters(TestEnv *env)
{
    run_cuts(env, "extended_l2=on,cluster_size=16k", "", 4);
}

static void coroutine_fn test_resized(TestEnv *env)
{
    run_cuts_beside(env, "cluster_size=512", SMALL_CACHES, 5, resize);
    run_cuts_beside(env, "extended_l2=on,cluster_size=16k", "", 6, resize);
}

/* ---- A file that fails now and then */

static int coroutine_fn work_on(void *opaque)
{
    Worker *w = opaque;
    g_autoptr(GRand) rand = g_rand_new_with_seed(w->seed);
    int failed = 0;
    for (unsigned i = 1; i <= w->operations; i++) {
        int kind = g_rand_int_range(rand, 0, 10);
        failed += (kind == 0 ? block_backend_co_flush(w->blk) : change(w, rand, kind < 4 ? 0 : i)) < 0;
    }
    return failed;
}

/* Whatever fails in between, the tables stay sound; leaks at most. */
static void coroutine_fn run_failures(TestEnv *env, const char *create, const char *options, unsigned seed)
{
    g_autofree char *path = driver_test_path("fail.qcow2"), *content = NULL, *output = NULL;
    gsize n;
    if (driver_test_lacks("qemu-img")) {
        return;
    }
    g_assert_cmpint(
        driver_test_command(NULL, "qemu-img", "create", "-f", "qcow2", "-o", create, path, "3M", NULL), ==,
        0);
    g_assert_true(g_file_get_contents(path, &content, &n, NULL));
    g_autoptr(GByteArray) start = g_byte_array_new_take((guint8 *)g_steal_pointer(&content), n);
    g_autoptr(GRand) rand = g_rand_new_with_seed(seed);
    events = g_array_new(false, false, sizeof(Event));
    g_array_set_clear_func(events, event_clear);
    BlockBackend *blk = open_image(env, start, options);
    BlockNode *mem = block_graph_find(env->graph, "mem", NULL);
    TestTask *tasks[WORKERS];
    Worker *workers = g_new0(Worker, WORKERS);
    for (unsigned i = 0; i < WORKERS; i++) {
        workers[i] = (Worker){.number = i, .operations = 200, .seed = seed + i, .blk = blk};
        tasks[i] = test_spawn(test_iothread(env, i), work_on, &workers[i]);
    }
    int failed = 0;
    for (unsigned i = 0; i < WORKERS; i++) {
        while (!test_task_done(tasks[i])) {
            static const BlockOp ops[] = {BLOCK_OP_READ, BLOCK_OP_WRITE, BLOCK_OP_FLUSH};
            BlockOp op = ops[g_rand_int_range(rand, 0, 3)];
            test_mem_fail(mem, op, ENOSPC);
            aio_co_sleep_ns(200000);
            test_mem_fail(mem, op, 0);
            aio_co_sleep_ns(500000);
        }
        failed += test_join(tasks[i]);
    }
    g_assert_cmpint(failed, >, 0);
    block_backend_co_flush(blk); /* fails where the driver has given up */
    driver_test_close(env, blk);
    g_assert_true(
        g_file_set_contents(path, (char *)test_mem(mem)->data, atomic_load(&test_mem(mem)->size), NULL));
    int status = driver_test_command(&output, "qemu-img", "check", "-f", "qcow2", path, NULL);
    if (status != 0 && status != 3) {
        g_error("%s", output);
    }
    test_delete(env, block_graph_find(env->graph, "log", NULL));
    test_delete(env, mem);
    g_array_unref(events);
    g_free(workers);
}

static void coroutine_fn test_failures(TestEnv *env)
{
    for (unsigned seed = 1; seed <= 4; seed++) {
        run_failures(env, "cluster_size=512,refcount_bits=64", SMALL_CACHES, seed);
        run_failures(env, "cluster_size=4k", "", 10 + seed);
    }
}

static void register_tests(void)
{
    block_driver_register_for_test(&log_driver);
    test_add_co("qcow2-cut/small-clusters", test_small_clusters);
    test_add_co("qcow2-cut/large-caches", test_large_caches);
    test_add_co("qcow2-cut/version-2", test_version_2);
    test_add_co("qcow2-cut/subclusters", test_subclusters);
    test_add_co("qcow2-cut/resized", test_resized);
    test_add_co("qcow2-cut/failures", test_failures);
}

int main(int argc, char **argv)
{
    return driver_test_main(argc, argv, register_tests);
}
