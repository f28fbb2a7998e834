/*
 * The check of qcow2: its counters, and power cuts in the middle of a repair.
 *
 * A filter records the writes and flushes of a repair. Whatever part of them reaches the file, a second
 * repair must come to a clean image with the content that there was.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <string.h>

#include "backends/format/qcow2/check.h"
#include "block/create.h"
#include "tests/unit/driver-test-util.h"

#define CLUSTER 4096
#define SIZE    (3 * 1024 * 1024)
#define SECTOR  512
#define MARKS   (QCOW2_HEADER_INCOMPATIBLE + 7)

/* ---- Counters */

#define MODEL 20000

static void fill_counters(Qcow2Counts *c, GRand *rand, uint32_t *model, uint64_t lo)
{
    memset(model, 0, MODEL * sizeof *model);
    qcow2_counts_begin(c, lo);
    for (unsigned i = 0; i < 3000; i++) {
        uint32_t first = (uint32_t)g_rand_int_range(rand, 0, MODEL - 100);
        uint32_t n = (uint32_t)g_rand_int_range(rand, 1, 100), times = (uint32_t)g_rand_int_range(rand, 1, 5);
        qcow2_counts_add(c, first, n, times);
        for (uint32_t j = first; j < first + n; j++) {
            model[j] += times;
        }
    }
}

/* Window by window, each cluster comes once, with its whole count. */
static void test_counters(TestEnv *env)
{
    g_autofree uint32_t *model = g_new(uint32_t, MODEL);
    unsigned windows = 0;
    Qcow2Counts c;
    qcow2_counts_init(&c, 30000);
    for (uint64_t lo = 0; lo != UINT64_MAX; lo = c.hi, windows++) {
        g_autoptr(GRand) rand = g_rand_new_with_seed(1);
        fill_counters(&c, rand, model, lo);
        g_assert_cmpuint(c.hi, >, lo);
        g_assert_cmpuint(g_hash_table_size(c.pages), <=, c.max_pages);
        for (uint64_t i = 0; i < MODEL; i++) {
            g_assert_cmpuint(qcow2_counts_get(&c, i), ==, i >= lo && i < c.hi ? model[i] : 0);
        }
    }
    g_assert_cmpuint(windows, >, 3);
    qcow2_counts_begin(&c, 0);
    qcow2_counts_add(&c, UINT64_C(1) << 40, 1, UINT32_MAX - 1);
    qcow2_counts_add(&c, UINT64_C(1) << 40, 1, 7); /* stays at the largest */
    g_assert_cmpuint(qcow2_counts_take(&c, UINT64_C(1) << 40), ==, UINT32_MAX);
    g_assert_cmpuint(qcow2_counts_take(&c, UINT64_C(1) << 40), ==, 0);
    qcow2_counts_free(&c);
}

/* ---- The record of a repair */

typedef struct Event {
    int64_t offset;
    GBytes *data; /* NULL: a flush; all before is stable */
} Event;

static GArray *events;

static void event_clear(void *p)
{
    g_clear_pointer(&((Event *)p)->data, g_bytes_unref);
}

static int coroutine_fn log_pwritev(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                    size_t qiov_offset, BlockRequestFlags flags)
{
    uint8_t *copy = g_malloc((size_t)bytes);
    io_vector_to_buf(qiov, qiov_offset, copy, (size_t)bytes);
    Event e = {offset, g_bytes_new_take(copy, (gsize)bytes)};
    g_array_append_val(events, e);
    return block_child_co_pwritev(node->file, offset, bytes, qiov, qiov_offset, 0);
}

static int coroutine_fn log_flush(BlockNode *node)
{
    Event e = {0, NULL};
    g_array_append_val(events, e);
    return 0;
}

static const BlockDriver log_driver = {
    .name = "test-log",
    .instance_size = 1,
    .is_filter = true,
    .co_open = test_filter_open,
    .co_pwritev = log_pwritev,
    .co_flush = log_flush,
};

static void apply(GByteArray *image, const Event *e, size_t skip, size_t n)
{
    size_t end = (size_t)e->offset + skip + n, old = image->len;
    if (end > old) {
        g_byte_array_set_size(image, (guint)end);
        memset(image->data + old, 0, end - old);
    }
    memcpy(image->data + e->offset + skip, (const uint8_t *)g_bytes_get_data(e->data, NULL) + skip, n);
}

/* The file after a cut: what was flushed, and by chance sectors of the rest. */
static GByteArray *play_back(const GByteArray *start, guint cut, GRand *rand)
{
    GByteArray *image = g_byte_array_new();
    g_byte_array_append(image, start->data, start->len);
    guint stable = cut;
    while (stable > 0 && g_array_index(events, Event, stable - 1).data) {
        stable--;
    }
    for (guint i = 0; i < cut; i++) {
        const Event *e = &g_array_index(events, Event, i);
        size_t n = e->data ? g_bytes_get_size(e->data) : 0, step = i < stable ? MAX(n, 1) : SECTOR;
        int fate = g_rand_int_range(rand, 0, 4);
        for (size_t at = 0; at < n; at += step) {
            if (i < stable || fate == 0 || (fate == 1 && g_rand_boolean(rand))) {
                apply(image, e, at, MIN(step, n - at));
            }
        }
    }
    return image;
}

/* ---- Images in memory */

static BlockNode *coroutine_fn open_mem(TestEnv *env, const GByteArray *content)
{
    BlockNode *mem =
        test_open(env, "{'driver':'test-mem','node-name':'mem','size':%u,'capacity':'16M','growable':true}",
                  content ? content->len : 0);
    if (content) {
        memcpy(test_mem(mem)->data, content->data, content->len);
    }
    return mem;
}

static GByteArray *coroutine_fn close_mem(TestEnv *env, BlockNode *mem)
{
    GByteArray *content = g_byte_array_new();
    g_byte_array_append(content, test_mem(mem)->data, (guint)block_node_length(mem));
    test_delete(env, mem);
    return content;
}

static void coroutine_fn create(TestEnv *env, const char *options)
{
    g_autofree char *text = g_strdup_printf("{'driver':'qcow2','file':'mem','size':%d,'cluster-size':%d%s}",
                                            SIZE, CLUSTER, options);
    g_autoptr(JsonNode) json = json_from_string(g_strdelimit(text, "'", '"'), NULL);
    GError *err = NULL;
    block_driver_co_create(env->graph, json_node_get_object(json), 0, &err);
    g_assert_no_error(err);
}

/* An image with some data and holes; *content: what reads there. */
static GByteArray *coroutine_fn make_image(TestEnv *env, const char *options, uint8_t *content)
{
    BlockNode *mem = open_mem(env, NULL);
    create(env, options);
    BlockBackend *blk =
        test_backend(env, "b", test_open(env, "{'driver':'qcow2','node-name':'q','file':'mem'}"));
    memset(content, 0, SIZE);
    for (int i = 0; i < 12; i++) {
        int64_t at = i * (SIZE / 12) + i * 100;
        test_fill(content + at, 30000, (uint32_t)i);
        g_assert_cmpint(block_backend_co_pwrite(blk, at, 30000, content + at, 0), ==, 0);
    }
    driver_test_close(env, blk);
    return close_mem(env, mem);
}

static void coroutine_fn check_content(TestEnv *env, const uint8_t *content)
{
    g_autofree uint8_t *got = g_malloc(SIZE);
    BlockBackend *blk =
        test_backend(env, "b", test_open(env, "{'driver':'qcow2','node-name':'q','file':'mem'}"));
    g_assert_cmpint(block_backend_co_pread(blk, 0, SIZE, got), ==, 0);
    test_assert_mem("content", got, content, SIZE);
    driver_test_close(env, blk);
}

static BlockNode *coroutine_fn open_to_check(TestEnv *env, const char *file)
{
    g_autofree char *text =
        g_strdup_printf("{\"driver\":\"qcow2\",\"node-name\":\"q\",\"file\":\"%s\"}", file);
    g_autoptr(JsonNode) json = json_from_string(text, NULL);
    GError *err = NULL;
    BlockNode *node = block_node_co_open_to_check(env->graph, json_node_get_object(json), &err);
    g_assert_no_error(err);
    return node;
}

static BlockCheckResult coroutine_fn check(BlockNode *node, BlockCheckFix fix)
{
    BlockCheckResult result;
    GError *err = NULL;
    block_node_co_check(node, fix, NULL, &result, &err);
    g_assert_no_error(err);
    return result;
}

static void coroutine_fn assert_clean(BlockNode *node)
{
    BlockCheckResult r = check(node, 0);
    g_assert_cmpuint(r.corruptions, ==, 0);
    g_assert_cmpuint(r.leaks, ==, 0);
}

/* Repair what lies in node `file`; all of it must succeed. Returns how much there was to do. */
static uint64_t coroutine_fn repair(TestEnv *env, const char *file)
{
    BlockNode *node = open_to_check(env, file);
    BlockCheckResult r = check(node, BLOCK_CHECK_FIX_ALL);
    g_assert_cmpuint(r.corruptions, ==, r.corruptions_fixed);
    g_assert_cmpuint(r.leaks, ==, r.leaks_fixed);
    assert_clean(node);
    test_delete(env, node);
    return r.corruptions + r.leaks;
}

/* ---- Damage that a repair can undo */

typedef void Damage(GByteArray *image, GRand *rand);

static uint64_t load(const GByteArray *image, uint64_t offset)
{
    return qcow2_load64(image->data + offset);
}

static void damage_refcounts(GByteArray *image, GRand *rand)
{
    uint8_t *block = image->data + load(image, CLUSTER);
    for (int i = 0; i < 40; i++) {
        uint64_t cluster = (uint64_t)g_rand_int_range(rand, 0, (gint32)(image->len / CLUSTER) + 5);
        qcow2_refcount_store(block, 4, cluster, (uint64_t)g_rand_int_range(rand, 0, 4));
    }
    image->data[MARKS] |= 3; /* dirty, corrupt */
}

static void damage_flags(GByteArray *image, GRand *rand)
{
    uint64_t l1 = load(image, 40), l2 = load(image, l1) & QCOW2_ENTRY_OFFSET;
    for (uint64_t i = 0; i < 100; i += (uint64_t)g_rand_int_range(rand, 1, 4)) {
        uint64_t entry = load(image, l2 + i * 8);
        qcow2_store64(image->data + l2 + i * 8, entry ? entry ^ QCOW2_ENTRY_COPIED : 0);
    }
    qcow2_store64(image->data + l1 + 8, load(image, l1 + 8) ^ QCOW2_ENTRY_COPIED);
    damage_refcounts(image, rand);
}

static void damage_table(GByteArray *image, GRand *rand)
{
    static const uint64_t entries[] = {0, 3 * CLUSTER, 1, UINT64_C(1) << 50};
    damage_refcounts(image, rand);
    qcow2_store64(image->data + CLUSTER, entries[g_rand_int_range(rand, 0, G_N_ELEMENTS(entries))]);
}

/* ---- Cuts */

static void coroutine_fn check_cut(TestEnv *env, const GByteArray *start, guint cut, GRand *rand,
                                   const uint8_t *content)
{
    g_autoptr(GByteArray) image = play_back(start, cut, rand);
    BlockNode *mem = open_mem(env, image);
    /* The marks go last; a new refcount table is whole when the header points to it. */
    if (!(image->data[MARKS] & 3) || load(image, QCOW2_HEADER_REFTABLE) != CLUSTER) {
        BlockNode *node = open_to_check(env, "mem");
        assert_clean(node);
        test_delete(env, node);
    }
    repair(env, "mem");
    check_content(env, content);
    test_delete(env, mem);
}

static void coroutine_fn run_cuts(TestEnv *env, const char *options, Damage *damage, unsigned seed)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(seed);
    g_autofree uint8_t *content = g_malloc(SIZE);
    g_autoptr(GByteArray) start = make_image(env, options, content);
    unsigned cuts = g_getenv("BG_LONG") ? 300 : 12;
    events = g_array_new(false, false, sizeof(Event));
    g_array_set_clear_func(events, event_clear);
    damage(start, rand);

    BlockNode *mem = open_mem(env, start);
    BlockNode *log = test_open(env, "{'driver':'test-log','node-name':'log','file':'mem'}");
    g_assert_cmpuint(repair(env, "log"), >, 0);
    test_delete(env, log);
    check_content(env, content);
    test_delete(env, mem);
    g_assert_cmpuint(events->len, >, 3);
    for (unsigned i = 0; i < cuts; i++) {
        check_cut(env, start, (guint)g_rand_int_range(rand, 1, (gint32)events->len + 1), rand, content);
    }
    g_array_unref(events);
}

static void coroutine_fn test_cut_refcounts(TestEnv *env)
{
    run_cuts(env, "", damage_refcounts, 1);
    run_cuts(env, ",'preallocation':'metadata'", damage_refcounts, 2);
}

static void coroutine_fn test_cut_flags(TestEnv *env)
{
    run_cuts(env, "", damage_flags, 3);
    run_cuts(env, "", damage_flags, 4);
}

static void coroutine_fn test_cut_rebuild(TestEnv *env)
{
    for (unsigned seed = 5; seed < 9; seed++) {
        run_cuts(env, "", damage_table, seed);
    }
}

static void register_tests(void)
{
    block_driver_register_for_test(&log_driver);
    test_add("qcow2-check/counters", test_counters);
    test_add_co("qcow2-check/cut-refcounts", test_cut_refcounts);
    test_add_co("qcow2-check/cut-flags", test_cut_flags);
    test_add_co("qcow2-check/cut-rebuild", test_cut_rebuild);
}

int main(int argc, char **argv)
{
    return driver_test_main(argc, argv, register_tests);
}
