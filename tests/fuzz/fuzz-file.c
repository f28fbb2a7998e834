/*
 * A sparse file in memory, for fuzzing.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "tests/fuzz/fuzz-file.h"

#include <errno.h>
#include <string.h>

typedef struct FuzzFile {
    GHashTable *pages; /* number: FUZZ_PAGE_SIZE bytes */
} FuzzFile;

static FuzzInput input;
static size_t memory;
static int writes_left = -1;

void fuzz_file_set_input(FuzzInput given)
{
    input = given;
}

size_t fuzz_file_memory(void)
{
    return memory;
}

void fuzz_file_fail_after(int n)
{
    writes_left = n;
}

static int take_write(void)
{
    if (writes_left == 0) {
        return -EIO;
    }
    writes_left -= writes_left > 0;
    return 0;
}

/* ---- Pages */

static void free_page(gpointer page)
{
    memory -= FUZZ_PAGE_SIZE;
    g_free(page);
}

/* It begins with its number, which is its key. */
typedef struct FuzzPage {
    int64_t number;
    uint8_t data[FUZZ_PAGE_SIZE];
} FuzzPage;

static FuzzPage *find_page(const FuzzFile *f, int64_t number)
{
    return g_hash_table_lookup(f->pages, &number);
}

static FuzzPage *make_page(FuzzFile *f, int64_t number)
{
    if (g_hash_table_size(f->pages) >= FUZZ_MAX_PAGES) {
        return NULL;
    }
    FuzzPage *page = g_new0(FuzzPage, 1);
    page->number = number;
    memory += FUZZ_PAGE_SIZE;
    g_hash_table_insert(f->pages, &page->number, page);
    return page;
}

static bool all_zero(const uint8_t *p, size_t n)
{
    return n == 0 || (p[0] == 0 && !memcmp(p, p + 1, n - 1));
}

/* What lies in [offset, +n) of one page; zero bytes need no page. */
static bool store(FuzzFile *f, int64_t offset, const uint8_t *p, size_t n)
{
    int64_t number = offset / FUZZ_PAGE_SIZE;
    FuzzPage *page = find_page(f, number);
    if (!page && all_zero(p, n)) {
        return true;
    }
    page = page ? page : make_page(f, number);
    if (page) {
        memcpy(page->data + offset % FUZZ_PAGE_SIZE, p, n);
    }
    return page;
}

static size_t in_page(int64_t offset, int64_t left)
{
    return (size_t)MIN((int64_t)(FUZZ_PAGE_SIZE - offset % FUZZ_PAGE_SIZE), left);
}

/* ---- The input */

static uint64_t load_be(const uint8_t *p, unsigned n)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < n; i++) {
        v = v << 8 | p[i];
    }
    return v;
}

static int64_t load_pieces(FuzzFile *f)
{
    int64_t end = 0;
    for (size_t at = FUZZ_HEADER; at + FUZZ_PIECE <= input.size;) {
        int64_t offset = (int64_t)load_be(input.data + at, 4) * 512;
        at += FUZZ_PIECE;
        int64_t left = (int64_t)MIN(load_be(input.data + at - 2, 2), input.size - at);
        while (left > 0) {
            size_t n = in_page(offset, left);
            store(f, offset, input.data + at, n);
            at += n;
            offset += (int64_t)n;
            left -= (int64_t)n;
        }
        end = MAX(end, offset);
    }
    return end;
}

static int coroutine_fn co_open(BlockNode *node, BlockOptions *opts, GError **errp)
{
    FuzzFile *f = node->opaque;
    f->pages = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, free_page);
    int64_t end = load_pieces(f);
    unsigned bits = input.size >= FUZZ_HEADER ? input.data[1] % 63 : 0;
    atomic_store(&node->length, MIN(MAX(end, bits ? INT64_C(1) << bits : 0), BLOCK_MAX_LENGTH));
    node->growable = true;
    return 0;
}

static void coroutine_fn co_close(BlockNode *node)
{
    FuzzFile *f = node->opaque;
    g_hash_table_unref(f->pages);
}

/* ---- I/O */

static int coroutine_fn co_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                  size_t qiov_offset, BlockRequestFlags flags)
{
    const FuzzFile *f = node->opaque;
    io_vector_memset(qiov, qiov_offset, 0, (size_t)bytes);
    for (int64_t done = 0; done < bytes && g_hash_table_size(f->pages);) {
        size_t n = in_page(offset + done, bytes - done);
        FuzzPage *page = find_page(f, (offset + done) / FUZZ_PAGE_SIZE);
        if (page) {
            io_vector_from_buf(qiov, qiov_offset + (size_t)done,
                               page->data + (offset + done) % FUZZ_PAGE_SIZE, n);
        }
        done += (int64_t)n;
    }
    return 0;
}

static int coroutine_fn co_pwritev(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                   size_t qiov_offset, BlockRequestFlags flags)
{
    FuzzFile *f = node->opaque;
    int ret = take_write();
    for (int64_t done = 0; done < bytes && ret == 0;) {
        uint8_t buf[FUZZ_PAGE_SIZE];
        size_t n = in_page(offset + done, bytes - done);
        io_vector_to_buf(qiov, qiov_offset + (size_t)done, buf, n);
        ret = store(f, offset + done, buf, n) ? 0 : -ENOSPC;
        done += (int64_t)n;
    }
    return ret;
}

static int coroutine_fn co_flush(BlockNode *node)
{
    return take_write();
}

static int coroutine_fn co_pdiscard(BlockNode *node, int64_t offset, int64_t bytes)
{
    FuzzFile *f = node->opaque;
    for (int64_t done = 0; done < bytes && g_hash_table_size(f->pages);) {
        size_t n = in_page(offset + done, bytes - done);
        FuzzPage *page = find_page(f, (offset + done) / FUZZ_PAGE_SIZE);
        if (page) {
            memset(page->data + (offset + done) % FUZZ_PAGE_SIZE, 0, n);
        }
        done += (int64_t)n;
    }
    return 0;
}

static int coroutine_fn co_block_status(BlockNode *node, int64_t offset, int64_t bytes, int64_t *pnum,
                                        BlockChild **child, int64_t *child_offset)
{
    const FuzzFile *f = node->opaque;
    bool data = find_page(f, offset / FUZZ_PAGE_SIZE);
    int64_t done = (int64_t)in_page(offset, bytes);
    for (; done < bytes && done < INT64_C(1) << 22; done += (int64_t)in_page(offset + done, bytes - done)) {
        if (!!find_page(f, (offset + done) / FUZZ_PAGE_SIZE) != data) {
            break;
        }
    }
    *pnum = done;
    return BLOCK_STATUS_ALLOCATED | (data ? BLOCK_STATUS_DATA : BLOCK_STATUS_ZERO);
}

const BlockDriver fuzz_file_driver = {
    .name = "fuzz-file",
    .instance_size = sizeof(FuzzFile),
    .co_open = co_open,
    .co_close = co_close,
    .co_preadv = co_preadv,
    .co_pwritev = co_pwritev,
    .co_flush = co_flush,
    .co_pdiscard = co_pdiscard,
    .co_block_status = co_block_status,
};
