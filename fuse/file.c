/*
 * The table of open files. See file.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "fuse/dir-list.h"
#include "fuse/export.h"
#include "fuse/file.h"

void fuse_file_table_init(FuseFileTable *table)
{
    *table = (FuseFileTable){.n_chunks = 0};
    bg_mutex_init(&table->lock);
}

static FuseFile *slot_at(FuseFileTable *table, uint32_t number)
{
    FuseFile *chunk =
        atomic_load_explicit(&table->chunks[number / FUSE_FILES_PER_CHUNK], memory_order_acquire);
    return chunk ? &chunk[number % FUSE_FILES_PER_CHUNK] : NULL;
}

/* Free what the file holds, but for the backend, which only a coroutine of the main thread can free. */
static void file_clear(FuseFile *file)
{
    g_clear_pointer(&file->text, g_bytes_unref);
    g_clear_pointer(&file->list, fuse_dir_list_unref);
}

void fuse_file_table_destroy(FuseFileTable *table)
{
    bg_mutex_lock(&table->lock);
    for (unsigned i = 0; i < table->n_chunks; i++) {
        FuseFile *chunk = atomic_load(&table->chunks[i]);
        for (unsigned j = 0; j < FUSE_FILES_PER_CHUNK; j++) {
            g_assert(!chunk[j].blk);
            file_clear(&chunk[j]);
        }
        g_free(chunk);
    }
    table->n_chunks = 0;
    bg_mutex_unlock(&table->lock);
    bg_mutex_destroy(&table->lock);
}

BlockBackend *fuse_file_table_take_backend(FuseFileTable *table)
{
    BlockBackend *blk = NULL;
    bg_mutex_lock(&table->lock);
    for (uint32_t i = 0; i < table->n_chunks * FUSE_FILES_PER_CHUNK && !blk; i++) {
        blk = g_steal_pointer(&slot_at(table, i)->blk);
    }
    bg_mutex_unlock(&table->lock);
    return blk;
}

static int add_chunk(FuseFileTable *table) BG_REQUIRES(table->lock)
{
    if (table->n_chunks == FUSE_FILE_CHUNKS_MAX) {
        return -ENFILE;
    }
    FuseFile *chunk = g_new0(FuseFile, FUSE_FILES_PER_CHUNK);
    uint32_t base = table->n_chunks * FUSE_FILES_PER_CHUNK;
    for (uint32_t i = FUSE_FILES_PER_CHUNK; i-- > 0;) {
        chunk[i].number = base + i;
        chunk[i].next_free = table->first_free;
        table->first_free = base + i + 1;
    }
    /* Pairs with the load in slot_at: whoever finds the chunk finds it filled in. */
    atomic_store_explicit(&table->chunks[table->n_chunks++], chunk, memory_order_release);
    return 0;
}

static int open_locked(FuseFileTable *table, const FuseFile *init, uint64_t *fh) BG_REQUIRES(table->lock)
{
    FuseExport *exp = atomic_load_explicit(&init->exp, memory_order_relaxed);
    if (exp && exp->removing) {
        return -ESTALE;
    }
    if (!table->first_free && add_chunk(table) < 0) {
        return -ENFILE;
    }
    FuseFile *file = slot_at(table, table->first_free - 1);
    table->first_free = file->next_free;
    file->nodeid = init->nodeid;
    file->kind = init->kind;
    file->writable = init->writable;
    file->blk = init->blk;
    file->text = init->text;
    file->refs = 1;
    atomic_store_explicit(&file->changed_since, 0, memory_order_relaxed);
    atomic_store_explicit(&file->told, 0, memory_order_relaxed);
    atomic_store_explicit(&file->exp, exp, memory_order_relaxed);
    if (exp) {
        exp->opens++;
    }
    *fh = (uint64_t)++file->uses << 32 | (file->number + 1);
    /* Pairs with the load in fuse_file_peek: who sees the handle sees the fields above. */
    atomic_store_explicit(&file->fh, *fh, memory_order_release);
    return 0;
}

int fuse_file_open(FuseFileTable *table, const FuseFile *init, uint64_t *fh)
{
    bg_mutex_lock(&table->lock);
    int ret = open_locked(table, init, fh);
    bg_mutex_unlock(&table->lock);
    return ret;
}

FuseFile *fuse_file_peek(FuseFileTable *table, uint64_t fh, uint64_t nodeid)
{
    uint32_t number = (uint32_t)fh - 1;
    if (number >= FUSE_FILES_PER_CHUNK * FUSE_FILE_CHUNKS_MAX) {
        return NULL;
    }
    FuseFile *file = slot_at(table, number);
    if (!file || atomic_load_explicit(&file->fh, memory_order_acquire) != fh || file->nodeid != nodeid) {
        return NULL;
    }
    return file;
}

FuseFile *fuse_file_get(FuseFileTable *table, uint64_t fh, uint64_t nodeid)
{
    bg_mutex_lock(&table->lock);
    FuseFile *file = fuse_file_peek(table, fh, nodeid);
    if (file) {
        file->refs++;
    }
    bg_mutex_unlock(&table->lock);
    return file;
}

static void put_locked(FuseFileTable *table, FuseFile *file, BlockBackend **blk) BG_REQUIRES(table->lock)
{
    *blk = NULL;
    if (--file->refs > 0) {
        return;
    }
    *blk = g_steal_pointer(&file->blk);
    file_clear(file);
    file->next_free = table->first_free;
    table->first_free = file->number + 1;
}

void fuse_file_put(FuseFileTable *table, FuseFile *file, BlockBackend **blk)
{
    bg_mutex_lock(&table->lock);
    put_locked(table, file, blk);
    bg_mutex_unlock(&table->lock);
}

int fuse_file_release(FuseFileTable *table, uint64_t fh, uint64_t nodeid, BlockBackend **blk)
{
    *blk = NULL;
    bg_mutex_lock(&table->lock);
    FuseFile *file = fuse_file_peek(table, fh, nodeid);
    if (file) {
        FuseExport *exp = atomic_load(&file->exp);
        atomic_store(&file->fh, 0);
        atomic_store(&file->exp, NULL);
        if (exp) {
            exp->opens--;
        }
        put_locked(table, file, blk);
    }
    bg_mutex_unlock(&table->lock);
    return file ? 0 : -EBADF;
}

FuseDirList *fuse_file_get_list(FuseFileTable *table, FuseFile *file)
{
    bg_mutex_lock(&table->lock);
    FuseDirList *list = file->list ? fuse_dir_list_ref(file->list) : NULL;
    bg_mutex_unlock(&table->lock);
    return list;
}

void fuse_file_set_list(FuseFileTable *table, FuseFile *file, FuseDirList *list)
{
    bg_mutex_lock(&table->lock);
    FuseDirList *old = file->list;
    file->list = fuse_dir_list_ref(list);
    bg_mutex_unlock(&table->lock);
    if (old) {
        fuse_dir_list_unref(old);
    }
}

/* ---- Failed flushes */

void fuse_file_changed(FuseFile *file, BlockFlushError since)
{
    BlockFlushError clean = 0;
    if (atomic_load_explicit(&file->changed_since, memory_order_relaxed) == 0) {
        atomic_compare_exchange_strong(&file->changed_since, &clean, since);
    }
}

void fuse_file_changed_some(FuseFileTable *table, FuseExport *exp, BlockFlushError since)
{
    bg_mutex_lock(&table->lock);
    for (uint32_t i = 0; i < table->n_chunks * FUSE_FILES_PER_CHUNK; i++) {
        FuseFile *file = slot_at(table, i);
        if (atomic_load(&file->exp) == exp && file->writable) {
            fuse_file_changed(file, since);
        }
    }
    bg_mutex_unlock(&table->lock);
}

BlockFlushError fuse_file_sync_begin(FuseFile *file)
{
    return atomic_exchange(&file->changed_since, 0);
}

int fuse_file_sync_end(FuseFile *file, BlockFlushError since, BlockFlushError newest, int ret)
{
    BlockFlushError told = atomic_load(&file->told);
    bool is_new = since && newest > MAX(since, told);
    while (told < newest && !atomic_compare_exchange_weak(&file->told, &told, newest)) {
    }
    return ret == 0 && is_new ? -block_flush_error_errno(newest) : ret;
}

int fuse_file_detach_export(FuseFileTable *table, FuseExport *exp, bool force)
{
    bg_mutex_lock(&table->lock);
    int ret = exp->opens > 0 && !force ? -EBUSY : 0;
    if (ret == 0) {
        exp->removing = true;
        for (uint32_t i = 0; i < table->n_chunks * FUSE_FILES_PER_CHUNK; i++) {
            FuseFile *file = slot_at(table, i);
            if (atomic_load(&file->exp) == exp) {
                atomic_store(&file->exp, NULL);
            }
        }
        exp->opens = 0;
    }
    bg_mutex_unlock(&table->lock);
    return ret;
}
