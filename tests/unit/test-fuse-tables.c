/*
 * Tests of the tables of inodes and of open files.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>

#include "fuse/dir-list.h"
#include "fuse/export.h"
#include "fuse/file.h"
#include "fuse/inode.h"
#include "fuse/protocol.h"

/* ---- Inodes */

typedef struct Tree {
    FuseInodeTable table;
    FuseInode *root, *dir;
} Tree;

static const FuseInodeSpec dir_spec = {.kind = FUSE_INODE_NODES_DIR};
static const FuseInodeSpec node_spec = {.kind = FUSE_INODE_NODE_DIR};

static void tree_open(Tree *t)
{
    fuse_inode_table_init(&t->table);
    t->root = fuse_inode_child(&t->table, NULL, "", &(FuseInodeSpec){.kind = FUSE_INODE_ROOT});
    t->dir = fuse_inode_child(&t->table, t->root, "dir", &dir_spec);
}

static void test_inode_life(void)
{
    Tree t;
    tree_open(&t);
    g_assert_cmpuint(t.root->nodeid, ==, FUSE_ROOT_ID);
    FuseInode *a = fuse_inode_child(&t.table, t.dir, "a", &node_spec);
    uint64_t id = a->nodeid;
    g_assert_true(fuse_inode_child(&t.table, t.dir, "a", &node_spec) == a); /* the same, one more reference */
    fuse_inode_put(&t.table, a);
    fuse_inode_looked_up(&t.table, a);
    fuse_inode_looked_up(&t.table, a);
    fuse_inode_put(&t.table, a); /* only the kernel knows it now */
    g_assert_cmpuint(fuse_inode_table_size(&t.table), ==, 3);
    g_assert_cmpint(fuse_inode_forget(&t.table, id, 1), ==, 0);
    a = fuse_inode_get(&t.table, id);
    g_assert_nonnull(a);
    fuse_inode_put(&t.table, a);
    g_assert_cmpint(fuse_inode_forget(&t.table, id, 1), ==, 0);
    g_assert_cmpuint(fuse_inode_table_size(&t.table), ==, 2);
    g_assert_null(fuse_inode_get(&t.table, id));
    g_assert_null(fuse_inode_find(&t.table, t.dir, "a"));
    a = fuse_inode_child(&t.table, t.dir, "a", &node_spec);
    g_assert_cmpuint(a->nodeid, !=, id); /* ids are not used twice */
    fuse_inode_put(&t.table, a);
    fuse_inode_table_destroy(&t.table);
}

static void test_inode_forget_too_much(void)
{
    Tree t;
    tree_open(&t);
    g_assert_cmpint(fuse_inode_forget(&t.table, 12345, 1), ==, -EINVAL);
    g_assert_cmpint(fuse_inode_forget(&t.table, t.dir->nodeid, 1), ==, -EINVAL); /* never looked up */
    fuse_inode_looked_up(&t.table, t.dir);
    g_assert_cmpint(fuse_inode_forget(&t.table, t.dir->nodeid, UINT64_MAX), ==, -EINVAL);
    g_assert_cmpint(fuse_inode_forget(&t.table, t.dir->nodeid, 0), ==, 0);
    g_assert_cmpuint(t.dir->lookups, ==, 1);
    fuse_inode_table_destroy(&t.table);
}

/* A child keeps its parents, and lets them go with it. */
static void test_inode_parents(void)
{
    Tree t;
    tree_open(&t);
    FuseInode *node = fuse_inode_child(&t.table, t.dir, "node", &node_spec);
    FuseInode *children =
        fuse_inode_child(&t.table, node, "children", &(FuseInodeSpec){.kind = FUSE_INODE_CHILDREN_DIR});
    fuse_inode_put(&t.table, node);
    g_assert_cmpuint(fuse_inode_table_size(&t.table), ==, 4);
    g_assert_cmpstr(children->parent->name, ==, "node");
    fuse_inode_put(&t.table, children);
    g_assert_cmpuint(fuse_inode_table_size(&t.table), ==, 2);
    fuse_inode_table_destroy(&t.table);
}

static void test_inode_unlink(void)
{
    Tree t;
    tree_open(&t);
    FuseInode *old = fuse_inode_child(&t.table, t.root, "disk", &(FuseInodeSpec){.kind = FUSE_INODE_EXPORT});
    fuse_inode_looked_up(&t.table, old);
    fuse_inode_unlink(&t.table, old);
    g_assert_null(fuse_inode_find(&t.table, t.root, "disk"));
    FuseInode *new = fuse_inode_child(&t.table, t.root, "disk", &(FuseInodeSpec){.kind = FUSE_INODE_EXPORT});
    g_assert_true(new != old);
    uint64_t old_id = old->nodeid;
    fuse_inode_put(&t.table, old); /* the kernel still holds it */
    g_assert_cmpint(fuse_inode_forget(&t.table, old_id, 1), ==, 0);
    FuseInode *found = fuse_inode_find(&t.table, t.root, "disk");
    g_assert_true(found == new); /* the end of the old one did not unlink the new one */
    fuse_inode_put(&t.table, found);
    fuse_inode_put(&t.table, new);
    fuse_inode_table_destroy(&t.table);
}

/* ---- Open files */

static FuseExport *export_new(void)
{
    return g_new0(FuseExport, 1); /* what the table looks at: opens, removing */
}

static uint64_t open_on(FuseFileTable *table, FuseExport *exp, uint64_t nodeid)
{
    FuseFile init = {.kind = FUSE_FILE_EXPORT, .nodeid = nodeid, .writable = true};
    uint64_t fh = 0;
    atomic_store(&init.exp, exp);
    g_assert_cmpint(fuse_file_open(table, &init, &fh), ==, 0);
    return fh;
}

static void test_file_handles(void)
{
    FuseFileTable table;
    g_autofree FuseExport *exp = export_new();
    BlockBackend *blk;
    fuse_file_table_init(&table);
    uint64_t a = open_on(&table, exp, 10), b = open_on(&table, exp, 11);
    g_assert_cmpuint(exp->opens, ==, 2);
    g_assert_true(fuse_file_peek(&table, a, 10)->writable);
    g_assert_null(fuse_file_peek(&table, a, 11)); /* of another inode */
    g_assert_null(fuse_file_peek(&table, 0, 10));
    g_assert_null(fuse_file_peek(&table, UINT64_MAX, 10));
    g_assert_null(fuse_file_peek(&table, 0xffff, 10));
    g_assert_cmpint(fuse_file_release(&table, a, 11, &blk), ==, -EBADF);
    g_assert_cmpint(fuse_file_release(&table, a, 10, &blk), ==, 0);
    g_assert_cmpint(fuse_file_release(&table, a, 10, &blk), ==, -EBADF);
    uint64_t c = open_on(&table, exp, 10); /* in the slot of a */
    g_assert_cmpuint((uint32_t)c, ==, (uint32_t)a);
    g_assert_cmpuint(c, !=, a);
    g_assert_null(fuse_file_peek(&table, a, 10));
    g_assert_nonnull(fuse_file_peek(&table, b, 11));
    g_assert_cmpuint(exp->opens, ==, 2);
    fuse_file_table_destroy(&table);
}

static void test_file_many(void)
{
    FuseFileTable table;
    g_autofree FuseExport *exp = export_new();
    const unsigned most = FUSE_FILES_PER_CHUNK * FUSE_FILE_CHUNKS_MAX;
    g_autofree uint64_t *fh = g_new(uint64_t, most);
    BlockBackend *blk;
    fuse_file_table_init(&table);
    for (unsigned i = 0; i < most; i++) {
        fh[i] = open_on(&table, exp, i);
    }
    FuseFile init = {.kind = FUSE_FILE_DIR};
    uint64_t one_more;
    g_assert_cmpint(fuse_file_open(&table, &init, &one_more), ==, -ENFILE);
    for (unsigned i = 0; i < most; i++) {
        g_assert_nonnull(fuse_file_peek(&table, fh[i], i));
        g_assert_cmpint(fuse_file_release(&table, fh[i], i, &blk), ==, 0);
    }
    g_assert_cmpuint(exp->opens, ==, 0);
    g_assert_cmpint(fuse_file_open(&table, &init, &one_more), ==, 0);
    fuse_file_table_destroy(&table);
}

static void test_file_detach(void)
{
    FuseFileTable table;
    g_autofree FuseExport *exp = export_new(), *other = export_new();
    BlockBackend *blk;
    fuse_file_table_init(&table);
    uint64_t a = open_on(&table, exp, 1), b = open_on(&table, other, 2);
    g_assert_cmpint(fuse_file_detach_export(&table, exp, false), ==, -EBUSY);
    g_assert_true(atomic_load(&fuse_file_peek(&table, a, 1)->exp) == exp);
    g_assert_cmpint(fuse_file_detach_export(&table, exp, true), ==, 0);
    g_assert_null(atomic_load(&fuse_file_peek(&table, a, 1)->exp));
    g_assert_true(atomic_load(&fuse_file_peek(&table, b, 2)->exp) == other);
    FuseFile init = {.kind = FUSE_FILE_EXPORT};
    uint64_t fh;
    atomic_store(&init.exp, exp);
    g_assert_cmpint(fuse_file_open(&table, &init, &fh), ==, -ESTALE);
    g_assert_cmpint(fuse_file_release(&table, a, 1, &blk), ==, 0);
    g_assert_cmpuint(other->opens, ==, 1);
    fuse_file_table_destroy(&table);
}

/* A released file lives on while a request uses it. */
static void test_file_reference(void)
{
    FuseFileTable table;
    BlockBackend *blk;
    uint64_t fh;
    fuse_file_table_init(&table);
    FuseFile init = {.kind = FUSE_FILE_TEXT, .nodeid = 4, .text = g_bytes_new("text", 4)};
    g_assert_cmpint(fuse_file_open(&table, &init, &fh), ==, 0);
    FuseFile *file = fuse_file_get(&table, fh, 4);
    g_assert_nonnull(file);
    g_assert_cmpint(fuse_file_release(&table, fh, 4, &blk), ==, 0);
    g_assert_null(fuse_file_get(&table, fh, 4));
    g_assert_cmpuint(g_bytes_get_size(file->text), ==, 4);
    fuse_file_put(&table, file, &blk);
    g_assert_null(file->text);
    fuse_file_table_destroy(&table);
}

static void test_file_lists(void)
{
    FuseFileTable table;
    uint64_t fh;
    fuse_file_table_init(&table);
    FuseFile init = {.kind = FUSE_FILE_DIR, .nodeid = 1};
    g_assert_cmpint(fuse_file_open(&table, &init, &fh), ==, 0);
    FuseFile *file = fuse_file_peek(&table, fh, 1);
    g_assert_null(fuse_file_get_list(&table, file));
    for (unsigned i = 0; i < 2; i++) { /* the second takes the place of the first */
        g_autoptr(FuseDirList) list = fuse_dir_list_new(1, 1);
        fuse_file_set_list(&table, file, list);
        g_autoptr(FuseDirList) got = fuse_file_get_list(&table, file);
        g_assert_true(got == list);
    }
    fuse_file_table_destroy(&table); /* frees what is still open */
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/inode/life", test_inode_life);
    g_test_add_func("/inode/forget-too-much", test_inode_forget_too_much);
    g_test_add_func("/inode/parents", test_inode_parents);
    g_test_add_func("/inode/unlink", test_inode_unlink);
    g_test_add_func("/file/handles", test_file_handles);
    g_test_add_func("/file/many", test_file_many);
    g_test_add_func("/file/detach", test_file_detach);
    g_test_add_func("/file/reference", test_file_reference);
    g_test_add_func("/file/lists", test_file_lists);
    return g_test_run();
}
