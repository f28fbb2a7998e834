/*
 * Snapshots of several kinds and nodes at one point in time.
 *
 *   OPEN --commit: section, internal snapshots name by name, then all overlays--> COMMITTED --free--> gone
 *   OPEN --an error: internal snapshots made so far deleted--> OPEN --free: nodes and files removed--> gone
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/snapshot-set.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "aio/thread-pool.h"
#include "block/create.h"
#include "block/drain.h"
#include "block/overlay.h"
#include "block/snapshot.h"
#include "util/error.h"
#include "util/log.h"
#include "util/text.h"

struct SnapshotSet {
    BlockGraph *graph;
    GPtrArray *nodes;     /* BlockNode, referenced: of which snapshots are taken */
    GHashTable *internal; /* name -> GPtrArray of BlockNode, borrowed */
    GArray *overlays;     /* BlockOverlay, borrowed: `nodes`, and nodes of the graph */
    GPtrArray *made;      /* BlockNode, borrowed: overlays that were opened here */
    GPtrArray *files;     /* char *: those that were made here */
    bool committed;
};

SnapshotSet *snapshot_set_new(BlockGraph *graph)
{
    SnapshotSet *set = g_new0(SnapshotSet, 1);

    set->graph = graph;
    set->nodes = g_ptr_array_new();
    set->internal = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, (GDestroyNotify)g_ptr_array_unref);
    set->overlays = g_array_new(FALSE, FALSE, sizeof(BlockOverlay));
    set->made = g_ptr_array_new();
    set->files = g_ptr_array_new_with_free_func(g_free);
    return set;
}

static bool add_node(SnapshotSet *set, BlockNode *node, GError **errp)
{
    if (g_ptr_array_find(set->nodes, node, NULL)) {
        bg_error_set(errp, EINVAL, "node '%s' is named twice", node->name);
        return false;
    }
    g_ptr_array_add(set->nodes, block_node_ref(node));
    return true;
}

bool coroutine_fn snapshot_set_co_add_internal(SnapshotSet *set, BlockNode *node, const char *name,
                                               GError **errp)
{
    GPtrArray *nodes = g_hash_table_lookup(set->internal, name);

    if (!add_node(set, node, errp)) {
        return false;
    }
    if (!nodes) {
        nodes = g_ptr_array_new();
        g_hash_table_insert(set->internal, g_strdup(name), nodes);
    }
    g_ptr_array_add(nodes, node);
    return true;
}

bool coroutine_fn snapshot_set_co_add_overlay(SnapshotSet *set, BlockNode *node, BlockNode *overlay,
                                              GError **errp)
{
    BlockOverlay pair = {node, overlay};

    if (!add_node(set, node, errp)) {
        return false;
    }
    g_array_append_val(set->overlays, pair);
    return true;
}

/* ---- Overlays that are made here */

static JsonObject *file_options(const char *filename)
{
    JsonObject *options = json_object_new();

    json_object_set_string_member(options, "driver", "file");
    json_object_set_string_member(options, "filename", filename);
    return options;
}

/* Whether a file is one of those that the graph's leaves have open, asked in a worker thread: it may lie in a
 * mount of ours. Locks do not tell where they are off. */
typedef struct FileSearch {
    const char *filename;
    GPtrArray *names; /* of the leaves' files */
    const char *found;
} FileSearch;

static int find_same_file(void *opaque)
{
    FileSearch *search = opaque;
    struct stat st, other;

    if (stat(search->filename, &st) < 0) {
        return 0;
    }
    for (guint i = 0; i < search->names->len && !search->found; i++) {
        const char *name = search->names->pdata[i];

        if (stat(name, &other) == 0 && other.st_dev == st.st_dev && other.st_ino == st.st_ino) {
            search->found = name;
        }
    }
    return 0;
}

static int coroutine_fn refuse_file_in_use(const SnapshotSet *set, const char *filename, GError **errp)
{
    const GPtrArray *nodes = block_graph_nodes(set->graph);
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    FileSearch search = {.filename = filename, .names = names};

    for (guint i = 0; i < nodes->len; i++) {
        BlockNode *node = nodes->pdata[i];
        char *name = node->children->len == 0 ? block_node_filename(node) : NULL;

        if (name) {
            g_ptr_array_add(names, name);
        }
    }
    thread_pool_co_run(find_same_file, &search);
    return search.found
               ? bg_error_set(errp, EBUSY, "'%s' cannot become an overlay: this graph uses the file, as '%s'",
                              filename, search.found)
               : 0;
}

static int coroutine_fn make_storage(SnapshotSet *set, const SnapshotOverlayFile *file, GError **errp)
{
    g_autoptr(JsonObject) options = file_options(file->filename);
    g_autoptr(GError) error = NULL;
    int ret;

    json_object_set_int_member(options, "size", 0);
    ret = block_driver_co_create(set->graph, options, 0, &error);
    if (ret == 0) {
        g_ptr_array_add(set->files, g_strdup(file->filename));
    } else if (ret == -EEXIST && file->overwrite) {
        ret = refuse_file_in_use(set, file->filename, errp);
        ret = ret < 0 ? ret : block_driver_co_create(set->graph, options, BLOCK_CREATE_OVERWRITE, errp);
    } else {
        g_propagate_error(errp, g_steal_pointer(&error));
    }
    return ret;
}

/* What a format's header calls the node's. */
static const char *format_of(const BlockNode *node)
{
    while (node->driver->is_filter && node->file) {
        node = node->file->node;
    }
    return node->driver->child_options ? node->driver->name : "raw";
}

/* An empty image as long as the node, which it names as its backing file. */
static bool coroutine_fn make_image(SnapshotSet *set, BlockNode *node, const SnapshotOverlayFile *file,
                                    GError **errp)
{
    g_autoptr(JsonObject) options = json_object_new();
    g_autofree char *backing = block_node_filename(node);

    json_object_set_string_member(options, "driver", file->format);
    json_object_set_object_member(options, "file", file_options(file->filename));
    json_object_set_int_member(options, "size", block_node_length(node));
    if (backing && g_utf8_validate(backing, -1, NULL)) {
        json_object_set_string_member(options, "backing-file", backing);
        json_object_set_string_member(options, "backing-fmt", format_of(node));
    }
    return block_driver_co_create(set->graph, options, BLOCK_CREATE_DRY_RUN, errp) == 0 &&
           make_storage(set, file, errp) == 0 && block_driver_co_create(set->graph, options, 0, errp) == 0;
}

/* What is no name for a node, or could not stand in a graph file, which a remount needs, becomes "_". */
static void make_writable(char *name)
{
    size_t last = strlen(name) - 1;

    for (size_t i = 0; i <= last; i++) {
        bool edge = i == 0 || i == last;

        if (name[i] == ']' || g_ascii_iscntrl(name[i]) || (edge && name[i] == ' ') ||
            (i == 0 && name[i] == '#')) {
            name[i] = '_';
        }
    }
}

/* The file's name, made unique. */
static char *choose_node_name(const SnapshotSet *set, const char *filename)
{
    g_autofree char *base = g_path_get_basename(filename);

    make_writable(base);
    g_autofree char *name = g_strdup(base);

    for (unsigned i = 2; block_graph_find(set->graph, name, NULL); i++) {
        g_free(name);
        name = g_strdup_printf("%s.%u", base, i);
    }
    return g_steal_pointer(&name);
}

/* Like the node in what is not said of the overlay. */
static JsonObject *overlay_options(const SnapshotSet *set, const BlockNode *node,
                                   const SnapshotOverlayFile *file)
{
    JsonObject *options = json_object_new(), *cache = json_object_new();
    g_autofree char *chosen = file->node_name ? NULL : choose_node_name(set, file->filename);

    json_object_set_string_member(options, "node-name", file->node_name ? file->node_name : chosen);
    json_object_set_string_member(options, "driver", file->format);
    json_object_set_object_member(options, "file", file_options(file->filename));
    json_object_set_null_member(options, "backing");
    json_object_set_boolean_member(cache, "direct", node->cache_direct);
    json_object_set_boolean_member(cache, "no-flush", node->cache_no_flush);
    json_object_set_object_member(options, "cache", cache);
    json_object_set_string_member(options, "discard", node->discard_unmap ? "unmap" : "ignore");
    json_object_set_string_member(options, "detect-zeroes",
                                  node->detect_zeroes_unmap ? "unmap"
                                  : node->detect_zeroes     ? "on"
                                                            : "off");
    return options;
}

/* Before anything is made. */
static bool check_file(const SnapshotSet *set, const SnapshotOverlayFile *file, GError **errp)
{
    const BlockDriver *driver = block_driver_find(file->format, errp);

    if (!driver) {
        return false;
    }
    if (!block_overlay_is_possible(driver)) {
        bg_error_set(errp, ENOTSUP, "an image of format '%s' cannot be an overlay: it has no backing",
                     file->format);
        return false;
    }
    if (file->node_name && block_graph_find(set->graph, file->node_name, NULL)) {
        bg_error_set(errp, EEXIST, "there is a node '%s' already", file->node_name);
        return false;
    }
    return true;
}

bool coroutine_fn snapshot_set_co_add_file(SnapshotSet *set, BlockNode *node, const SnapshotOverlayFile *file,
                                           GError **errp)
{
    g_autoptr(JsonObject) options = overlay_options(set, node, file);
    BlockNode *overlay;

    if (!check_file(set, file, errp)) {
        return false;
    }
    if (file->make && !make_image(set, node, file, errp)) {
        return false;
    }
    overlay = block_node_co_open(set->graph, options, errp);
    if (!overlay) {
        return false;
    }
    g_ptr_array_add(set->made, overlay);
    return snapshot_set_co_add_overlay(set, node, overlay, errp);
}

/* ---- Commit */

/* What fails here stays as a snapshot that nobody asked for. */
static void coroutine_fn undo_internal(const GPtrArray *names, SnapshotSet *set)
{
    for (guint i = 0; i < names->len; i++) {
        const GPtrArray *nodes = g_hash_table_lookup(set->internal, names->pdata[i]);
        g_autoptr(GError) error = NULL;

        if (block_snapshot_co_delete((BlockNode *const *)nodes->pdata, nodes->len, names->pdata[i], &error) <
            0) {
            bg_log(BG_LOG_ERROR, "taking back snapshot '%s': %s", (char *)names->pdata[i], error->message);
        }
    }
}

static bool coroutine_fn commit_drained(SnapshotSet *set, GError **errp)
{
    g_autoptr(GPtrArray) done = g_ptr_array_new();
    GHashTableIter iter;
    gpointer name, nodes;
    int ret = 0;

    g_hash_table_iter_init(&iter, set->internal);
    while (ret == 0 && g_hash_table_iter_next(&iter, &name, &nodes)) {
        ret = block_snapshot_co_create((BlockNode *const *)((GPtrArray *)nodes)->pdata,
                                       ((GPtrArray *)nodes)->len, name, errp);
        if (ret == 0) {
            g_ptr_array_add(done, name);
        }
    }
    if (ret == 0 && set->overlays->len > 0) {
        ret = block_overlay_co_insert((BlockOverlay *)(void *)set->overlays->data, set->overlays->len, errp);
    }
    if (ret < 0) {
        undo_internal(done, set);
    }
    return ret == 0;
}

/* A section of our own is needed only around several steps: each makes one after writing out what it can. */
static bool coroutine_fn commit_steps(SnapshotSet *set, GError **errp)
{
    guint steps = g_hash_table_size(set->internal) + (set->overlays->len > 0);
    BlockDrain *section;
    bool ok;

    if (steps == 1) {
        return commit_drained(set, errp);
    }
    section = block_drain_co_begin_nodes((BlockNode *const *)set->nodes->pdata, set->nodes->len);
    ok = commit_drained(set, errp);
    block_drain_end(section);
    return ok;
}

bool coroutine_fn snapshot_set_co_commit(SnapshotSet *set, GError **errp)
{
    set->committed = set->nodes->len == 0 || commit_steps(set, errp);
    return set->committed;
}

/* ---- The end */

static int remove_in_thread(void *opaque)
{
    return unlink(opaque) < 0 ? -errno : 0;
}

static void coroutine_fn take_back(SnapshotSet *set)
{
    for (guint i = 0; i < set->made->len; i++) {
        g_autoptr(GError) error = NULL;

        if (block_graph_co_delete_node(set->graph, set->made->pdata[i], &error) < 0) {
            bg_log(BG_LOG_ERROR, "taking back an overlay: %s", error->message);
        }
    }
    for (guint i = 0; i < set->files->len; i++) {
        thread_pool_co_run(remove_in_thread, set->files->pdata[i]);
    }
}

void coroutine_fn snapshot_set_co_free(SnapshotSet *set)
{
    if (!set->committed) {
        take_back(set);
    }
    for (guint i = 0; i < set->nodes->len; i++) {
        block_node_co_unref(set->nodes->pdata[i]);
    }
    g_ptr_array_free(set->nodes, TRUE);
    g_hash_table_destroy(set->internal);
    g_array_free(set->overlays, TRUE);
    g_ptr_array_free(set->made, TRUE);
    g_ptr_array_free(set->files, TRUE);
    g_free(set);
}
