/*
 * The inode table. See inode.h for the life of an inode.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "fuse/inode.h"
#include "fuse/protocol.h"

static guint name_hash(gconstpointer key)
{
    const FuseInode *inode = key;
    return g_str_hash(inode->name) ^ g_direct_hash(inode->parent);
}

static gboolean name_equal(gconstpointer a, gconstpointer b)
{
    const FuseInode *x = a, *y = b;
    return x->parent == y->parent && !strcmp(x->name, y->name);
}

static void inode_free(FuseInode *inode)
{
    g_free(inode->name);
    g_free(inode);
}

void fuse_inode_table_init(FuseInodeTable *table)
{
    bg_mutex_init(&table->lock);
    bg_mutex_lock(&table->lock);
    table->by_id = g_hash_table_new(g_int64_hash, g_int64_equal);
    table->by_name = g_hash_table_new(name_hash, name_equal);
    table->next_id = FUSE_ROOT_ID;
    bg_mutex_unlock(&table->lock);
}

void fuse_inode_table_destroy(FuseInodeTable *table)
{
    bg_mutex_lock(&table->lock);
    GHashTableIter it;
    gpointer inode;
    g_hash_table_destroy(table->by_name);
    g_hash_table_iter_init(&it, table->by_id);
    while (g_hash_table_iter_next(&it, NULL, &inode)) {
        g_hash_table_iter_steal(&it);
        inode_free(inode);
    }
    g_hash_table_destroy(table->by_id);
    table->by_id = table->by_name = NULL;
    bg_mutex_unlock(&table->lock);
    bg_mutex_destroy(&table->lock);
}

static void unlink_locked(FuseInodeTable *table, FuseInode *inode) BG_REQUIRES(table->lock)
{
    if (inode->linked) {
        inode->linked = false;
        g_hash_table_remove(table->by_name, inode);
    }
}

/* Drop a reference; a last one frees the inode and drops its own on the parent. */
static void put_locked(FuseInodeTable *table, FuseInode *inode) BG_REQUIRES(table->lock)
{
    while (inode) {
        g_assert(inode->refs > 0);
        if (--inode->refs > 0) {
            return;
        }
        FuseInode *parent = inode->parent;
        unlink_locked(table, inode);
        g_hash_table_remove(table->by_id, &inode->nodeid);
        inode_free(inode);
        inode = parent;
    }
}

static FuseInode *find_locked(FuseInodeTable *table, FuseInode *parent, const char *name)
    BG_REQUIRES(table->lock)
{
    FuseInode key = {.parent = parent, .name = (char *)name};
    return g_hash_table_lookup(table->by_name, &key);
}

static FuseInode *new_locked(FuseInodeTable *table, FuseInode *parent, const char *name,
                             const FuseInodeSpec *spec) BG_REQUIRES(table->lock)
{
    FuseInode *inode = g_new(FuseInode, 1);
    *inode = (FuseInode){.nodeid = table->next_id++,
                         .kind = spec->kind,
                         .detail = spec->detail,
                         .parent = parent,
                         .name = g_strdup(name),
                         .exp = spec->exp,
                         .linked = true};
    if (parent) {
        parent->refs++;
    }
    g_hash_table_insert(table->by_id, &inode->nodeid, inode);
    g_hash_table_insert(table->by_name, inode, inode);
    return inode;
}

FuseInode *fuse_inode_child(FuseInodeTable *table, FuseInode *parent, const char *name,
                            const FuseInodeSpec *spec)
{
    bg_mutex_lock(&table->lock);
    FuseInode *inode = find_locked(table, parent, name);
    if (inode && (inode->kind != spec->kind || inode->detail != spec->detail)) {
        unlink_locked(table, inode);
        inode = NULL;
    }
    if (!inode) {
        inode = new_locked(table, parent, name, spec);
    }
    inode->refs++;
    bg_mutex_unlock(&table->lock);
    return inode;
}

FuseInode *fuse_inode_find(FuseInodeTable *table, FuseInode *parent, const char *name)
{
    bg_mutex_lock(&table->lock);
    FuseInode *inode = find_locked(table, parent, name);
    if (inode) {
        inode->refs++;
    }
    bg_mutex_unlock(&table->lock);
    return inode;
}

FuseInode *fuse_inode_get(FuseInodeTable *table, uint64_t nodeid)
{
    bg_mutex_lock(&table->lock);
    FuseInode *inode = g_hash_table_lookup(table->by_id, &nodeid);
    if (inode) {
        inode->refs++;
    }
    bg_mutex_unlock(&table->lock);
    return inode;
}

void fuse_inode_put(FuseInodeTable *table, FuseInode *inode)
{
    bg_mutex_lock(&table->lock);
    put_locked(table, inode);
    bg_mutex_unlock(&table->lock);
}

void fuse_inode_unlink(FuseInodeTable *table, FuseInode *inode)
{
    bg_mutex_lock(&table->lock);
    unlink_locked(table, inode);
    bg_mutex_unlock(&table->lock);
}

void fuse_inode_looked_up(FuseInodeTable *table, FuseInode *inode)
{
    bg_mutex_lock(&table->lock);
    if (inode->lookups++ == 0) {
        inode->refs++;
    }
    bg_mutex_unlock(&table->lock);
}

int fuse_inode_forget(FuseInodeTable *table, uint64_t nodeid, uint64_t n)
{
    if (n == 0) {
        return 0;
    }
    bg_mutex_lock(&table->lock);
    FuseInode *inode = g_hash_table_lookup(table->by_id, &nodeid);
    int ret = inode && inode->lookups >= n ? 0 : -EINVAL;
    if (ret == 0) {
        inode->lookups -= n;
        if (inode->lookups == 0) {
            put_locked(table, inode);
        }
    }
    bg_mutex_unlock(&table->lock);
    return ret;
}

unsigned fuse_inode_table_size(FuseInodeTable *table)
{
    bg_mutex_lock(&table->lock);
    unsigned n = g_hash_table_size(table->by_id);
    bg_mutex_unlock(&table->lock);
    return n;
}
