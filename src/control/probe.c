/*
 * Magic numbers of image formats.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "control/probe.h"

#include <errno.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "util/error.h"

#define TAIL_SIZE 512

typedef struct Magic {
    const char *format;
    size_t offset; /* from the beginning, or of the tail */
    const char *bytes;
    size_t size;
} Magic;

#define MAGIC(format, offset, text)                                                                          \
    {                                                                                                        \
        format, offset, text, sizeof(text) - 1                                                               \
    }

static const Magic head_magics[] = {
    MAGIC("qcow2", 0, "QFI\xfb\0\0\0\x02"),
    MAGIC("qcow2", 0, "QFI\xfb\0\0\0\x03"),
    MAGIC("qcow", 0, "QFI\xfb"),
    MAGIC("qed", 0, "QED\0"),
    MAGIC("vmdk", 0, "KDMV"),
    MAGIC("vmdk", 0, "COWD"),
    MAGIC("vmdk", 0, "# Disk DescriptorFile"),
    MAGIC("vdi", 0x40, "\x7f\x10\xda\xbe"),
    MAGIC("vhdx", 0, "vhdxfile"),
    MAGIC("vpc", 0, "conectix"),
    MAGIC("luks", 0, "LUKS\xba\xbe"),
    MAGIC("parallels", 0, "WithoutFreeSpace"),
    MAGIC("parallels", 0, "WithouFreSpacExt"),
    MAGIC("bochs", 0, "Bochs Virtual HD Image"),
    MAGIC("cloop", 0, "#!/bin/sh\n#V2.0 Format\n"),
};

static const Magic tail_magics[] = {
    MAGIC("vpc", 0, "conectix"),
    MAGIC("dmg", 0, "koly"),
};

static const char *match(const Magic *magics, size_t count, const char *data, size_t size)
{
    for (size_t i = 0; i < count; i++) {
        const Magic *m = &magics[i];

        if (m->offset + m->size <= size && memcmp(data + m->offset, m->bytes, m->size) == 0) {
            return m->format;
        }
    }
    return NULL;
}

const char *probe_format(const char *head, size_t n_head, const char *tail, size_t n_tail)
{
    const char *found = match(head_magics, G_N_ELEMENTS(head_magics), head, n_head);

    if (!found && n_tail == TAIL_SIZE) {
        found = match(tail_magics, G_N_ELEMENTS(tail_magics), tail, n_tail);
    }
    return found ? found : "raw";
}

/* Read up to `size` bytes. Count or -errno. */
static ssize_t read_at(int fd, char *buf, size_t size, off_t offset)
{
    size_t done = 0;

    while (done < size) {
        ssize_t n = pread(fd, buf + done, size - done, offset + (off_t)done);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return -errno;
        }
        if (n == 0) {
            break;
        }
        done += (size_t)n;
    }
    return (ssize_t)done;
}

const char *probe_file(int fd, const char *path, GError **errp)
{
    char head[4096], tail[TAIL_SIZE];
    off_t end = lseek(fd, 0, SEEK_END);
    ssize_t n_head, n_tail = 0;

    if (end < 0) {
        bg_error_set_errno(errp, errno, "cannot find the size of '%s'", path);
        return NULL;
    }
    n_head = read_at(fd, head, sizeof(head), 0);
    if (n_head >= 0 && end >= TAIL_SIZE) {
        n_tail = read_at(fd, tail, sizeof(tail), end - TAIL_SIZE);
    }
    if (n_head < 0 || n_tail < 0) {
        bg_error_set_errno(errp, (int)-MIN(n_head, n_tail), "cannot read '%s'", path);
        return NULL;
    }
    return probe_format(head, n_head, tail, n_tail);
}

static const char *coroutine_fn probe_co_backend(BlockBackend *blk, GError **errp)
{
    char head[4096], tail[TAIL_SIZE];
    int64_t length = block_backend_length(blk), n_head = MIN(length, (int64_t)sizeof(head));
    int64_t n_tail = length >= TAIL_SIZE ? TAIL_SIZE : 0;
    int ret = block_backend_co_pread(blk, 0, n_head, head);

    if (ret == 0 && n_tail > 0) {
        ret = block_backend_co_pread(blk, length - n_tail, n_tail, tail);
    }
    if (ret < 0) {
        bg_error_set_errno(errp, -ret, "cannot read the image to find its format");
        return NULL;
    }
    return probe_format(head, (size_t)n_head, tail, (size_t)n_tail);
}

const char *coroutine_fn probe_co_node(BlockGraph *graph, JsonObject *options, GError **errp)
{
    const char *format = NULL;
    BlockNode *node = block_node_co_open(graph, options, errp);

    if (!node) {
        return NULL;
    }
    BlockBackend *blk = block_backend_new(graph, "probe", BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL);

    if (block_backend_insert(blk, node, errp) == 0) {
        format = probe_co_backend(blk, errp);
    }
    block_backend_co_free(blk);
    block_node_co_unref(node);
    return format;
}
