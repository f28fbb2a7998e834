/*
 * Requests: memory, decoding, the body of the reply.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "fuse/ops.h"
#include "fuse/request.h"

/* The object and, at its end, the head of the request that is read; a multiple of the page size. */
#define FUSE_REQUEST_FRONT   (64u * 1024)
#define FUSE_REQUEST_MAPPING (FUSE_REQUEST_FRONT + FUSE_PAYLOAD_SIZE)
/* Smaller payloads than this are not worth the system call. */
#define TRIM_THRESHOLD       (64u * 1024)

_Static_assert(sizeof(FuseRequest) + FUSE_WRITE_HEAD <= 4096, "object and head share a page");

FuseRequest *fuse_request_new(FuseQueue *queue)
{
    uint8_t *base =
        mmap(NULL, FUSE_REQUEST_MAPPING, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) {
        return NULL;
    }
    FuseRequest *req = (FuseRequest *)(base + FUSE_REQUEST_FRONT - 4096);
    req->queue = queue;
    req->payload = base + FUSE_REQUEST_FRONT;
    return req;
}

void fuse_request_free(FuseRequest *req)
{
    munmap(req->payload - FUSE_REQUEST_FRONT, FUSE_REQUEST_MAPPING);
}

void *fuse_request_buffer(FuseRequest *req)
{
    return req->payload - FUSE_WRITE_HEAD;
}

void fuse_request_trim(FuseRequest *req)
{
    if (req->touched > TRIM_THRESHOLD) {
        madvise(req->payload, FUSE_PAYLOAD_SIZE, MADV_DONTNEED);
        req->touched = 0;
    }
}

/* Take one NUL-terminated, not empty name off the front of the body. */
static bool take_name(FuseRequest *req, unsigned i)
{
    const char *end = memchr(req->body, '\0', req->body_len);
    if (!end || end == req->body) {
        return false;
    }
    req->names[i] = req->body;
    req->body_len -= (size_t)(end + 1 - req->body);
    req->body = end + 1;
    return true;
}

static int decode_body(FuseRequest *req)
{
    bool ok = true;
    switch (req->op->body) {
    case FUSE_BODY_NONE:
    case FUSE_BODY_DATA:
        break;
    case FUSE_BODY_NAME:
        ok = take_name(req, 0) && req->body_len == 0;
        break;
    case FUSE_BODY_TWO_NAMES:
        ok = take_name(req, 0) && take_name(req, 1) && req->body_len == 0;
        break;
    case FUSE_BODY_NAME_DATA:
        ok = take_name(req, 0);
        break;
    }
    return ok ? 0 : -EINVAL;
}

int fuse_request_decode(FuseRequest *req, size_t size, bool *answerable)
{
    const struct fuse_in_header *in = fuse_request_buffer(req);
    *answerable = size >= sizeof *in && in->len == size;
    if (!*answerable) {
        return -EINVAL;
    }
    req->in = in;
    if (size > FUSE_WRITE_HEAD) {
        req->touched = MAX(req->touched, size - FUSE_WRITE_HEAD);
    }
    req->op = fuse_op_find(in->opcode);
    if (!req->op) {
        return -ENOSYS;
    }
    size_t left = size - sizeof *in;
    size_t extensions = (size_t)in->total_extlen * 8; /* at the end; none is of use to us */
    if (left < extensions || left - extensions < req->op->arg_size) {
        *answerable = !req->op->no_reply;
        return -EINVAL;
    }
    req->arg = in + 1;
    req->body = (const char *)req->arg + req->op->arg_size;
    req->body_len = left - extensions - req->op->arg_size;
    return decode_body(req);
}

void *fuse_request_small_reply(FuseRequest *req, size_t size)
{
    g_assert(size <= sizeof req->small);
    req->small_reply = size;
    return memset(req->small, 0, size);
}
