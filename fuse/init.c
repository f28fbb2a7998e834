/*
 * The INIT request.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "fuse/init.h"
#include "util/error.h"

/* fuse_init_in grew at its end: what every version has. */
#define INIT_IN_MIN 16

/*
 * What we ask for, where the kernel has it. Not asked for: locks (the kernel keeps them itself),
 * ATOMIC_O_TRUNC (the kernel would take the length for 0 before it asks again, and AIO would see the end of
 * the file in an export of fixed length that O_TRUNC leaves alone), EXPORT_SUPPORT (no look-up of . and ..),
 * writeback cache.
 */
#define WANTED_FLAGS                                                                                         \
    (FUSE_ASYNC_READ | FUSE_ASYNC_DIO | FUSE_BIG_WRITES | FUSE_MAX_PAGES | FUSE_PARALLEL_DIROPS |            \
     FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO | FUSE_HANDLE_KILLPRIV | FUSE_HANDLE_KILLPRIV_V2 |          \
     FUSE_ABORT_ERROR | FUSE_DIRECT_IO_ALLOW_MMAP)
/* Without these requests would have other sizes than we reckon with. */
#define NEEDED_FLAGS (FUSE_BIG_WRITES | FUSE_MAX_PAGES)

static void accept_init(const struct fuse_init_in *in, struct fuse_init_out *out)
{
    uint64_t offered = in->flags;
    if (in->flags & FUSE_INIT_EXT) {
        offered |= (uint64_t)in->flags2 << 32;
    }
    uint64_t agreed = offered & WANTED_FLAGS;
    if ((agreed >> 32) != 0) {
        agreed |= FUSE_INIT_EXT;
    }
    out->minor = MIN(in->minor, FUSE_PROTO_MINOR);
    out->max_readahead = in->max_readahead;
    out->flags = (uint32_t)agreed;
    out->flags2 = (uint32_t)(agreed >> 32);
    out->max_background = FUSE_QUEUE_MAX_BACKGROUND;
    out->congestion_threshold = FUSE_QUEUE_CONGESTION;
    out->max_write = FUSE_PAYLOAD_SIZE;
    out->time_gran = 1;
    out->max_pages = (uint16_t)(FUSE_PAYLOAD_SIZE / (size_t)sysconf(_SC_PAGESIZE));
}

static int refuse(FuseInitReply *reply, GError **errp, const struct fuse_init_in *in, const char *why)
{
    reply->header.error = -EPROTO;
    reply->header.len = sizeof reply->header;
    return bg_error_set(errp, EPROTO, "FUSE protocol %u.%u of the kernel: %s", in->major, in->minor, why);
}

int fuse_init_negotiate(const void *buf, size_t size, FuseInitReply *reply, GError **errp)
{
    const struct fuse_in_header *header = buf;
    memset(reply, 0, sizeof *reply);
    if (size < sizeof *header + INIT_IN_MIN || header->len != size || header->opcode != FUSE_INIT) {
        return bg_error_set(errp, EPROTO, "malformed first FUSE request of %zu bytes", size);
    }
    struct fuse_init_in in = {.major = 0};
    memcpy(&in, header + 1, MIN(size - sizeof *header, sizeof in));
    reply->header.unique = header->unique;
    reply->init.major = FUSE_PROTO_MAJOR;
    reply->header.len = sizeof *reply;
    if (in.major < FUSE_PROTO_MAJOR) {
        return refuse(reply, errp, &in, "too old");
    }
    if (in.major > FUSE_PROTO_MAJOR) {
        reply->init.minor = FUSE_PROTO_MINOR;
        return 1;
    }
    if (in.minor < FUSE_PROTO_MINOR_MIN) {
        return refuse(reply, errp, &in, "too old, 7.31 (Linux 5.4) is the oldest that is served");
    }
    if ((in.flags & NEEDED_FLAGS) != NEEDED_FLAGS) {
        return refuse(reply, errp, &in, "no large requests");
    }
    accept_init(&in, &reply->init);
    return 0;
}
