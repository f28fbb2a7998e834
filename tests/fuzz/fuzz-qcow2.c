/*
 * Fuzzing qcow2: any image gives content, or errors with a message; never a crash, a hang, or much memory.
 *
 * Besides what the sanitizers see it is required that
 *   - an open that fails says why;
 *   - an image that the check finds sound has no errors, at most leaks, after all that is done with it;
 *   - what a repair has repaired is sound for the next check.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "tests/fuzz/fuzz-qcow2.h"

#include <stdio.h>
#include <string.h>

#include "aio/aio.h"
#include "block/check.h"
#include "block/graph.h"
#include "block/snapshot.h"
#include "tests/fuzz/fuzz-file.h"
#include "tests/fuzz/fuzz-memory.h"
#include "util/log.h"

#define MIB        (INT64_C(1) << 20)
#define STEPS      24u
#define BUFFER     ((size_t)256 << 10)
/* The least caches hold 4 tables of at most 2 MiB each; the pages of the file are ours. */
#define MAX_MEMORY (64 * MIB + 2 * 4 * 2 * MIB + (int64_t)FUZZ_MAX_PAGES * (FUZZ_PAGE_SIZE + 64))

typedef struct FuzzRun {
    FuzzInput input;
    unsigned flags;
    uint64_t random;
    BlockGraph *graph;
    BlockNode *node;
    BlockBackend *blk;
    uint8_t *buf;
} FuzzRun;

static AioContext *context;

/* ---- Chance, the same for the same input */

static uint64_t chance(FuzzRun *r, uint64_t below)
{
    r->random ^= r->random << 13;
    r->random ^= r->random >> 7;
    r->random ^= r->random << 17;
    return below ? r->random % below : 0;
}

/* Often near the beginning, where small images have their data, or at the end. */
static int64_t some_offset(FuzzRun *r, int64_t length)
{
    switch (chance(r, 4)) {
    case 0:
        return 0;
    case 1:
        return (int64_t)chance(r, (uint64_t)length);
    case 2:
        return MAX(length - (int64_t)chance(r, 100000), 0);
    default:
        return (int64_t)chance(r, (uint64_t)MIN(length, 2 * MIB)) & ~INT64_C(511);
    }
}

static int64_t some_bytes(FuzzRun *r, int64_t offset, int64_t length)
{
    static const int64_t sizes[] = {1, 512, 4096, 65536, 100000, (int64_t)BUFFER};
    return MIN(sizes[chance(r, G_N_ELEMENTS(sizes))], length - offset);
}

/* ---- Nodes */

static JsonObject *options_of(const char *text)
{
    g_autoptr(GError) err = NULL;
    JsonNode *json = json_from_string(text, &err);
    g_assert_no_error(err);
    JsonObject *object = json_object_ref(json_node_get_object(json));
    json_node_unref(json);
    return object;
}

static BlockNode *coroutine_fn open_node(FuzzRun *r, const char *text, bool to_check)
{
    g_autoptr(GError) err = NULL;
    JsonObject *options = options_of(text);
    BlockNode *node = to_check ? block_node_co_open_to_check(r->graph, options, &err)
                               : block_node_co_open(r->graph, options, &err);
    json_object_unref(options);
    g_assert(node || (err && *err->message));
    return node;
}

static BlockNode *coroutine_fn open_image(FuzzRun *r, bool read_only, bool to_check)
{
    bool backing = r->flags & FUZZ_BACKING && !to_check;
    g_autofree char *text =
        g_strdup_printf("{\"driver\":\"qcow2\",\"node-name\":\"image\",\"file\":\"file\",\"l2-cache-size\":0,"
                        "\"refcount-cache-size\":0,\"backing\":%s,\"read-only\":%s,\"discard\":\"%s\"%s}",
                        backing ? "\"below\"" : "null", read_only ? "true" : "false",
                        r->flags & FUZZ_KEEP_HOLES ? "ignore" : "unmap",
                        r->flags & FUZZ_DATA_FILE ? ",\"data-file\":\"data\"" : "");
    return open_node(r, text, to_check);
}

static void coroutine_fn close_image(FuzzRun *r, BlockNode *node)
{
    g_autoptr(GError) err = NULL;
    block_graph_co_delete_node(r->graph, node, &err);
    g_assert_no_error(err);
}

/* ---- Steps */

static void coroutine_fn step_read(FuzzRun *r, int64_t offset, int64_t bytes)
{
    block_backend_co_pread(r->blk, offset, bytes, r->buf);
}

static void coroutine_fn step_write(FuzzRun *r, int64_t offset, int64_t bytes)
{
    memset(r->buf, 0x5a, (size_t)bytes);
    block_backend_co_pwrite(r->blk, offset, bytes, r->buf, 0);
}

static void coroutine_fn step_zero(FuzzRun *r, int64_t offset, int64_t bytes)
{
    block_backend_co_pwrite_zeroes(r->blk, offset, bytes, chance(r, 2) ? BLOCK_REQ_MAY_UNMAP : 0);
}

static void coroutine_fn step_discard(FuzzRun *r, int64_t offset, int64_t bytes)
{
    block_backend_co_pdiscard(r->blk, offset & ~INT64_C(65535), bytes);
}

static void coroutine_fn step_flush(FuzzRun *r, int64_t offset, int64_t bytes)
{
    block_backend_co_flush(r->blk);
}

static void coroutine_fn step_grow(FuzzRun *r, int64_t offset, int64_t bytes)
{
    g_autoptr(GError) err = NULL;
    int64_t length = block_backend_length(r->blk);
    int64_t longer = length + (int64_t)chance(r, 1u << chance(r, 24));
    int ret = block_backend_co_truncate(r->blk, MIN(longer, BLOCK_MAX_LENGTH), &err);
    g_assert((ret < 0) == (err != NULL));
}

static void coroutine_fn status_of(BlockBackend *blk, int64_t offset)
{
    int64_t length = block_backend_length(blk), pnum;
    for (unsigned i = 0; i < 16 && offset < length; i++) {
        int64_t bytes = MIN(length - offset, 64 * MIB);
        if (block_backend_co_block_status(blk, offset, bytes, &pnum) < 0) {
            return;
        }
        g_assert(pnum > 0 && pnum <= bytes);
        offset += pnum;
    }
}

static void coroutine_fn step_status(FuzzRun *r, int64_t offset, int64_t bytes)
{
    status_of(r->blk, offset);
}

/* One of the image's snapshots, or one that it need not have. g_free. */
static char *coroutine_fn some_name(FuzzRun *r)
{
    g_autoptr(GPtrArray) infos = g_ptr_array_new_with_free_func((GDestroyNotify)block_snapshot_info_free);
    g_autoptr(GError) err = NULL;
    block_snapshot_co_list(r->node, infos, &err);
    g_assert_no_error(err);
    if (!infos->len || !chance(r, 3)) {
        return g_strdup(chance(r, 2) ? "one" : "two");
    }
    return g_strdup(((BlockSnapshotInfo *)infos->pdata[chance(r, infos->len)])->name);
}

static void coroutine_fn read_snapshot(FuzzRun *r, const char *name)
{
    g_autoptr(GError) err = NULL;
    BlockBackend *view = block_snapshot_co_open(r->node, name, "reader", &err);
    g_assert(view || (err && *err->message));
    for (unsigned i = 0; view && i < 4; i++) {
        int64_t length = block_backend_length(view), offset = some_offset(r, length);
        block_backend_co_pread(view, offset, some_bytes(r, offset, length), r->buf);
        status_of(view, offset);
    }
    if (view) {
        block_backend_co_free(view);
    }
}

static void coroutine_fn step_snapshot(FuzzRun *r, int64_t offset, int64_t bytes)
{
    g_autoptr(GError) err = NULL;
    g_autofree char *name = some_name(r);
    int ret = 0;
    switch (chance(r, 4)) {
    case 0:
        ret = block_snapshot_co_create(&r->node, 1, name, &err);
        break;
    case 1:
        ret = block_snapshot_co_delete(&r->node, 1, name, &err);
        break;
    case 2:
        ret = block_snapshot_co_revert(&r->node, 1, name, &err);
        break;
    default:
        read_snapshot(r, name);
        break;
    }
    g_assert((ret < 0) == (err != NULL));
    g_assert(!err || *err->message);
}

typedef void coroutine_fn FuzzStep(FuzzRun *r, int64_t offset, int64_t bytes);
static FuzzStep *const steps[] = {step_read,  step_write, step_write,  step_zero,     step_discard,
                                  step_flush, step_grow,  step_status, step_snapshot, step_snapshot};

static void coroutine_fn use_image(FuzzRun *r)
{
    g_autoptr(GError) err = NULL;
    bool read_only = r->flags & FUZZ_READ_ONLY;
    r->node = open_image(r, read_only, false);
    if (!r->node) {
        return;
    }
    r->blk = block_backend_new(r->graph, "user", read_only ? BLOCK_PERM_CONSISTENT_READ : BLOCK_PERM_ALL,
                               BLOCK_PERM_ALL);
    block_backend_insert(r->blk, r->node, &err);
    g_assert_no_error(err);
    step_status(r, 0, 0);
    for (unsigned i = 0; i < STEPS; i++) {
        int64_t length = block_backend_length(r->blk), offset = some_offset(r, length);
        steps[chance(r, G_N_ELEMENTS(steps))](r, offset, some_bytes(r, offset, length));
    }
    block_backend_co_free(r->blk);
    close_image(r, r->node);
}

/* ---- Check */

static void hear_problem(void *opaque, const char *text)
{
    g_assert(*text);
    if (g_getenv("FUZZ_VERBOSE")) {
        fprintf(stderr, "%s\n", text);
    }
}

/* True: it could be checked to the end. */
static bool coroutine_fn check_image(FuzzRun *r, BlockCheckFix fix, BlockCheckResult *result)
{
    g_autoptr(GError) err = NULL;
    BlockCheckListener listener = {.problem = hear_problem};
    BlockNode *node = open_image(r, !fix, true);
    if (!node) {
        return false;
    }
    int ret = block_node_co_check(node, fix, &listener, result, &err);
    g_assert((ret < 0) == (err != NULL));
    close_image(r, node);
    return ret == 0;
}

static bool is_sound(const BlockCheckResult *c)
{
    return c->corruptions == 0;
}

static void coroutine_fn repair_image(FuzzRun *r)
{
    BlockCheckResult repaired, after;
    bool whole = check_image(r, BLOCK_CHECK_FIX_ALL, &repaired) &&
                 repaired.corruptions == repaired.corruptions_fixed && repaired.leaks == repaired.leaks_fixed;
    if (whole) {
        g_assert(check_image(r, 0, &after));
        g_assert(is_sound(&after) && after.leaks == 0);
    }
}

/* ---- One input */

static void coroutine_fn run_entry(void *opaque)
{
    FuzzRun *r = opaque;
    BlockCheckResult before, after;
    open_node(r, "{\"driver\":\"fuzz-file\",\"node-name\":\"file\"}", false);
    open_node(r, "{\"driver\":\"null-co\",\"node-name\":\"below\",\"size\":1000000,\"read-only\":true}",
              false);
    open_node(r, "{\"driver\":\"null-co\",\"node-name\":\"data\",\"size\":\"16M\"}", false);
    bool was_sound = check_image(r, 0, &before) && is_sound(&before);
    fuzz_file_fail_after(r->flags & FUZZ_FAILING ? (int)chance(r, 100) : -1);
    use_image(r);
    fuzz_file_fail_after(-1);
    if (was_sound) {
        g_assert(check_image(r, 0, &after) && is_sound(&after));
    }
    repair_image(r);
    block_graph_co_close(r->graph);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    g_autoptr(GError) err = NULL;
    bg_main_thread_register();
    bg_log_set_level(g_getenv("FUZZ_VERBOSE") ? BG_LOG_WARNING : (BgLogLevel)-1);
    block_driver_register_for_test(&fuzz_file_driver);
    fuzz_memory_init();
    context = aio_context_new("main", AIO_BACKEND_EPOLL, &err);
    g_assert_no_error(err);
    aio_context_set_current(context);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < FUZZ_HEADER) {
        return 0;
    }
    fuzz_memory_limit((size_t)MAX_MEMORY);
    FuzzRun r = {.input = {data, size}, .flags = data[0], .graph = block_graph_new(context)};
    r.random = ((uint64_t)data[2] << 8 | data[3]) + 0x9e3779b97f4a7c15;
    r.buf = g_malloc0(BUFFER);
    fuzz_file_set_input(r.input);
    aio_context_run_coroutine(context, run_entry, &r);
    block_graph_free(r.graph);
    while (aio_context_run_once(context, false)) {
        /* what the closing left to run */
    }
    g_free(r.buf);
    fuzz_memory_limit(0);
    g_assert(fuzz_file_memory() == 0);
    return 0;
}
