/*
 * Driver file: making a file, or giving one that is there a new content of zeroes.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <unistd.h>

#include "aio/thread-pool.h"
#include "backends/protocol/file/file.h"
#include "block/create.h"
#include "block/graph.h"
#include "util/error.h"

#define FILE_MODE 0644

typedef struct FileCreate {
    char *filename;
    int64_t size;
    BlockPreallocation preallocation;
    bool is_new; /* made by us */
} FileCreate;

static void clear(FileCreate *c)
{
    g_free(c->filename);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(FileCreate, clear)

/* ---- In a worker thread */

static int make_in_thread(void *opaque)
{
    FileCreate *c = opaque;
    int fd = open(c->filename, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, FILE_MODE);
    if (fd < 0) {
        return -errno;
    }
    close(fd);
    return 0;
}

static int remove_in_thread(void *opaque)
{
    FileCreate *c = opaque;
    return unlink(c->filename) < 0 ? -errno : 0;
}

/* The new name is on stable storage, too, where the file system can do that. */
static int sync_directory_in_thread(void *opaque)
{
    FileCreate *c = opaque;
    g_autofree char *directory = g_path_get_dirname(c->filename);
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return errno == EACCES ? 0 : -errno;
    }
    int ret = fsync(fd) < 0 && errno != EINVAL ? -errno : 0;
    close(fd);
    return ret;
}

/* ---- Content */

static int coroutine_fn write_content(BlockBackend *blk, const FileCreate *c, GError **errp)
{
    BlockNode *node = block_backend_node(blk);
    if (!node->growable && c->size > block_node_length(node)) {
        return bg_error_set(errp, ENOSPC,
                            "'%s' is %" PRId64 " bytes long, which is less than the %" PRId64 " asked for",
                            c->filename, block_node_length(node), c->size);
    }
    int ret = 0;
    if (node->growable) {
        ret = c->is_new ? 0 : block_backend_co_truncate(blk, 0, errp);
        ret = ret < 0 ? ret : block_backend_co_truncate(blk, c->size, errp);
    }
    if (ret < 0) {
        return ret;
    }
    if (c->preallocation != BLOCK_PREALLOC_OFF && c->size > 0) {
        ret = block_create_co_reserve(blk, 0, c->size, c->preallocation);
    }
    ret = ret < 0 ? ret : block_backend_co_flush(blk);
    return ret < 0 ? bg_error_set_errno(errp, -ret, "making '%s'", c->filename) : 0;
}

static int coroutine_fn fill_file(BlockGraph *graph, const FileCreate *c, GError **errp)
{
    g_autoptr(JsonObject) outer = json_object_new();
    JsonObject *file = json_object_new();
    json_object_set_string_member(file, "driver", "file");
    json_object_set_string_member(file, "filename", c->filename);
    json_object_set_object_member(outer, "file", file);
    g_autoptr(BlockOptions) opts = block_options_new("new image", "", outer);
    GError *error = NULL;
    BlockBackend *blk = block_create_co_open(graph, opts, "file", &error);
    if (!blk) {
        int ret = bg_error_to_errno(error);
        g_propagate_error(errp, error);
        return ret;
    }
    int ret = write_content(blk, c, errp);
    block_backend_co_free(blk);
    return ret;
}

/* ---- Options */

static bool read_options(BlockOptions *opts, FileCreate *c, GError **errp)
{
    static const char *const words[] = {"off", "falloc", "full", NULL};
    static const BlockPreallocation modes[] = {BLOCK_PREALLOC_OFF, BLOCK_PREALLOC_FALLOC,
                                               BLOCK_PREALLOC_FULL};
    static const BlockForeignOption foreign[] = {{"nocow", "off"}, {"extent-size-hint", NULL}, {NULL, NULL}};
    int mode = 0;
    c->size = -1;
    if (!block_options_require_string(opts, "filename", &c->filename, errp) ||
        !block_options_get_size(opts, "size", &c->size, errp) ||
        !block_options_get_enum(opts, "preallocation", words, &mode, errp) ||
        !block_options_refuse_foreign(opts, foreign, errp) || !block_options_finish(opts, errp)) {
        return false;
    }
    c->preallocation = modes[mode];
    return c->size >= 0 || block_options_error(opts, "size", errp, EINVAL, "required");
}

int coroutine_fn file_co_create(BlockGraph *graph, BlockOptions *opts, BlockCreateFlags flags, GError **errp)
{
    g_auto(FileCreate) c = {0};
    if (!read_options(opts, &c, errp)) {
        return -EINVAL;
    }
    if (flags & BLOCK_CREATE_DRY_RUN) {
        return 0;
    }
    int ret = thread_pool_co_run(make_in_thread, &c);
    c.is_new = ret == 0;
    if (ret < 0 && (ret != -EEXIST || !(flags & BLOCK_CREATE_OVERWRITE))) {
        block_options_error(opts, "filename", errp, -ret, "cannot make '%s': %s", c.filename,
                            g_strerror(-ret));
        return ret;
    }
    ret = fill_file(graph, &c, errp);
    if (c.is_new) {
        int end = thread_pool_co_run(ret < 0 ? remove_in_thread : sync_directory_in_thread, &c);
        if (ret == 0 && end < 0) {
            ret = bg_error_set_errno(errp, -end, "making '%s' durable", c.filename);
        }
    }
    return ret;
}
