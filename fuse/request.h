/*
 * FuseRequest: one request of the kernel's, from its arrival to its reply.
 *
 * States, and who owns the object:
 *
 *   IDLE (queue's pool) --transport reads--> DECODED --coroutine starts--> RUNNING --handler returns-->
 *   REPLIED --> IDLE
 *
 * A request belongs to the thread of its queue; its coroutine may visit another thread and comes back before
 * the handler returns. The handler never replies itself: what it returns and leaves in the request is sent
 * once, by fuse_queue_finish().
 *
 * Memory: one mapping holds the object, the head of what is read, and the payload:
 *
 *   | struct FuseRequest ... | in_header, arg | payload, 1 MiB |
 *                            ^                ^ on a page
 *                            FUSE_WRITE_HEAD bytes before the payload: a request is read to here in one
 *                            piece, so that the data of a WRITE begin on a page
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_FUSE_REQUEST_H
#define BG_FUSE_REQUEST_H

#include <stdalign.h>

#include "aio/aio.h"
#include "fuse/protocol.h"
#include "util/compiler.h"

typedef struct FuseRequest FuseRequest;
typedef struct FuseQueue FuseQueue;
typedef struct FuseInode FuseInode;
typedef struct FuseExport FuseExport;
typedef struct FuseOp FuseOp;

/* Room for the fixed-size replies; the largest is fuse_entry_out. */
#define FUSE_SMALL_REPLY_MAX 128

struct FuseRequest {
    FuseQueue *queue;
    FuseRequest *next; /* in the pool */

    /* -- set by fuse_request_decode */
    const FuseOp *op;
    const struct fuse_in_header *in;
    const void *arg;      /* op->arg_size bytes */
    const char *names[2]; /* as op->body says */
    const char *body;     /* what follows arg and the names */
    size_t body_len;

    /* -- set by the handler; let go by fuse_queue_finish */
    FuseInode *inode;       /* a reference, or NULL */
    FuseExport *exports[2]; /* entered, or NULL */

    uint8_t *payload;     /* FUSE_PAYLOAD_SIZE bytes, page-aligned */
    size_t payload_reply; /* bytes of the payload that are the reply's body */
    size_t touched;       /* bytes of the payload that may hold memory */

    /* The reply: header and, for small ones, the body right after it. */
    size_t small_reply; /* bytes of small */
    struct fuse_out_header out;
    alignas(8) uint8_t small[FUSE_SMALL_REPLY_MAX];
};
_Static_assert(offsetof(FuseRequest, small) == offsetof(FuseRequest, out) + sizeof(struct fuse_out_header),
               "header and small body are sent as one piece");

/* A request object of `queue`; NULL when out of memory. Any thread. */
FuseRequest *fuse_request_new(FuseQueue *queue);
void fuse_request_free(FuseRequest *req);
/* Where a transport puts a whole request, FUSE_WRITE_HEAD + FUSE_PAYLOAD_SIZE bytes. */
void *fuse_request_buffer(FuseRequest *req);
/* Give back the memory of a payload that is larger than a few pages. */
void fuse_request_trim(FuseRequest *req);

/*
 * Check and take apart the `size` bytes at fuse_request_buffer(): lengths, opcode, terminators of names. 0;
 * -ENOSYS unknown opcode; -EINVAL malformed; in these cases a reply is due where *answerable. False there
 * where not even the header can be trusted.
 */
int fuse_request_decode(FuseRequest *req, size_t size, bool *answerable);

/* The reply's body: `size` zeroed bytes (at most FUSE_SMALL_REPLY_MAX) for the handler to fill. */
void *fuse_request_small_reply(FuseRequest *req, size_t size);
/* The reply's body is the first `size` bytes of the payload. */
static inline void fuse_request_payload_reply(FuseRequest *req, size_t size)
{
    req->payload_reply = size;
    if (size > req->touched) {
        req->touched = size;
    }
}

#endif /* BG_FUSE_REQUEST_H */
