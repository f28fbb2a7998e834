/*
 * Requests.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>

#include "backends/protocol/http/http.h"

typedef struct HttpRead {
    HttpState *s;
    int64_t offset, bytes;
    const IoVector *qiov;
    size_t qiov_offset;
} HttpRead;

static int coroutine_fn try_read(RemoteLink *link, void *opaque)
{
    HttpRead *r = opaque;

    return http_fetch_co_read(r->s, r->offset, r->bytes, r->qiov, r->qiov_offset);
}

int coroutine_fn http_co_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                size_t qiov_offset, BlockRequestFlags flags)
{
    HttpState *s = node->opaque;

    if (s->spool) {
        return http_spool_co_read(s, offset, bytes, qiov, qiov_offset);
    }
    if (s->cache && !http_fetch_has(s, offset)) {
        if (s->link.state == REMOTE_LINK_CHANGED) {
            return -ESTALE;
        }
        if (http_cache_co_read(s, offset, bytes, qiov, qiov_offset)) {
            return 0;
        }
    }
    HttpRead r = {s, offset, bytes, qiov, qiov_offset};

    return remote_link_co_run(&s->link, try_read, &r, REMOTE_RESEND);
}
