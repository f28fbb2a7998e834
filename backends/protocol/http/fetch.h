/*
 * Between fetch.c and stream.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BACKENDS_HTTP_FETCH_H
#define BG_BACKENDS_HTTP_FETCH_H

#include "backends/protocol/http/http.h"

/* At the top of fetch.c. */
typedef enum HttpFetchState {
    HTTP_FETCH_QUEUED,
    HTTP_FETCH_RUNNING,
    HTTP_FETCH_RESTING,
    HTTP_FETCH_DONE,
    HTTP_FETCH_FAILED,
} HttpFetchState;

struct HttpFetch {
    HttpTransfer t; /* first */
    HttpFetchState state;
    int error;          /* FAILED */
    unsigned refs;      /* the list, and readers */
    bool listed;        /* in s->fetches */
    int64_t base;       /* of the resource: where the memory begins */
    int64_t start, end; /* what it still has to give; start rises as it is read in order */
    int64_t filled;     /* up to where the data is there */
    int64_t mark;       /* `filled` when the transfer began */
    int64_t taken;      /* bytes that were read */
    int64_t begun_ns;   /* the transfer; 0: its first byte was there */
    int64_t give_up_ns; /* with a busy server */
    unsigned tries;     /* with a busy server */
    uint8_t *buf;
    size_t capacity;
    AioTimer retry;
    GQueue waiters; /* HttpWaiter */
    GList entry, queue_entry;
};

/* Be there ahead at *offset with about `bytes` more; *offset moves behind. False: no connection is free. */
bool http_fetch_ahead(HttpState *s, int64_t *offset, int64_t bytes);

void http_fetch_unref(HttpFetch *f);

/* ---- stream.c */

void http_streams_init(HttpState *s);
/* What [offset, offset + bytes) continues, or NULL where it is out of order. */
HttpStream *http_stream_find(HttpState *s, int64_t offset, int64_t bytes);
/* Start and end of what is to be fetched for a read. */
int64_t http_fetch_align(const HttpState *s, int64_t offset);
int64_t http_stream_fetch_end(const HttpState *s, const HttpStream *stream, int64_t offset, int64_t bytes);
void http_read_ahead(HttpState *s, HttpStream *stream);

#endif /* BG_BACKENDS_HTTP_FETCH_H */
