/*
 * Directory listings.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <string.h>
#include <sys/stat.h>

#include "fuse/dir-list.h"

struct FuseDirList {
    gatomicrefcount refs;
    GArray *entries; /* FuseDirEntry */
};

static void entry_clear(gpointer entry)
{
    g_free(((FuseDirEntry *)entry)->name);
}

FuseDirList *fuse_dir_list_new(uint64_t ino, uint64_t parent_ino)
{
    FuseDirList *list = g_new(FuseDirList, 1);
    g_atomic_ref_count_init(&list->refs);
    list->entries = g_array_new(FALSE, FALSE, sizeof(FuseDirEntry));
    g_array_set_clear_func(list->entries, entry_clear);
    fuse_dir_list_add(list, ".", ino, S_IFDIR);
    fuse_dir_list_add(list, "..", parent_ino, S_IFDIR);
    return list;
}

FuseDirList *fuse_dir_list_ref(FuseDirList *list)
{
    g_atomic_ref_count_inc(&list->refs);
    return list;
}

void fuse_dir_list_unref(FuseDirList *list)
{
    if (g_atomic_ref_count_dec(&list->refs)) {
        g_array_unref(list->entries);
        g_free(list);
    }
}

void fuse_dir_list_add(FuseDirList *list, const char *name, uint64_t ino, uint32_t type)
{
    FuseDirEntry entry = {.name = g_strdup(name), .ino = ino, .type = type};
    g_array_append_val(list->entries, entry);
}

const FuseDirEntry *fuse_dir_list_get(const FuseDirList *list, uint64_t i)
{
    return i < list->entries->len ? &g_array_index(list->entries, FuseDirEntry, i) : NULL;
}

bool fuse_dir_entry_pack(const FuseDirList *list, uint64_t i, const struct fuse_entry_out *attr, void *buf,
                         size_t room, size_t *used)
{
    const FuseDirEntry *entry = fuse_dir_list_get(list, i);
    size_t name_len = strlen(entry->name);
    size_t attr_len = attr ? sizeof *attr : 0;
    size_t len = attr_len + FUSE_NAME_OFFSET + name_len;
    size_t padded = FUSE_DIRENT_ALIGN(len);
    if (padded > room - *used) {
        return false;
    }
    uint8_t *p = (uint8_t *)buf + *used;
    struct fuse_dirent head = {
        .ino = entry->ino, .off = i + 1, .namelen = (uint32_t)name_len, .type = entry->type >> 12};
    if (attr) {
        memcpy(p, attr, attr_len);
    }
    memcpy(p + attr_len, &head, FUSE_NAME_OFFSET);
    memcpy(p + attr_len + FUSE_NAME_OFFSET, entry->name, name_len);
    memset(p + len, 0, padded - len);
    *used += padded;
    return true;
}
