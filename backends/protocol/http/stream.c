/*
 * Who reads in order, and how far to be ahead of them.
 *
 * A stream begins with a read that continues another one, or one of the first byte. It is ahead by
 * `readahead` bytes first, and by twice as much with each window that was read, up to what is useful with the
 * server's delay. Reads of one reader come a little out of order: the kernel reads ahead as well, in several
 * queues.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "backends/protocol/http/fetch.h"

#define SLACK (1024 * 1024) /* bytes by which a read may be out of order */
#define ALIGN 4096

void http_streams_init(HttpState *s)
{
    for (int i = 0; i < HTTP_STREAMS; i++) {
        s->streams[i].next = -1;
    }
}

static HttpStream *oldest(HttpState *s)
{
    HttpStream *found = &s->streams[0];

    for (int i = 1; i < HTTP_STREAMS; i++) {
        if (s->streams[i].used < found->used) {
            found = &s->streams[i];
        }
    }
    return found;
}

/*
 * What a fast link (1 byte per ns, some to spare) carries while the server takes its time to begin. Where it
 * begins at once, more would only leave the CPU's caches.
 */
static int64_t max_window(const HttpState *s)
{
    int64_t most = (int64_t)HTTP_CHUNK_MAX * s->o.connections;

    return CLAMP(s->delay_ns * 4, MIN(HTTP_CHUNK_MAX, most), most);
}

static void go_on(HttpState *s, HttpStream *stream, int64_t end)
{
    int64_t max = max_window(s);

    if (end <= stream->next) {
        return;
    }
    stream->since_growth += end - stream->next;
    stream->next = end;
    if (stream->window == 0) {
        stream->window = MIN(s->o.readahead, max);
    } else if (stream->since_growth >= stream->window) {
        stream->since_growth = 0;
        stream->window = MIN(stream->window * 2, max);
    }
}

HttpStream *http_stream_find(HttpState *s, int64_t offset, int64_t bytes)
{
    s->uses++;
    for (int i = 0; i < HTTP_STREAMS; i++) {
        HttpStream *stream = &s->streams[i];
        int64_t slack = stream->window ? SLACK : 0;

        if (stream->next >= 0 && offset >= stream->next - slack && offset <= stream->next + slack) {
            stream->used = s->uses;
            go_on(s, stream, offset + bytes);
            return stream;
        }
    }
    HttpStream *stream = oldest(s);
    int64_t max = max_window(s);

    *stream = (HttpStream){.next = offset + bytes, .used = s->uses};
    stream->window = offset == 0 ? MIN(s->o.readahead, max) : 0;
    return stream->window ? stream : NULL;
}

/* Of one range: so that a large window is carried by all connections, a small one by few. */
static int64_t chunk_size(const HttpState *s, const HttpStream *stream)
{
    int64_t half = MIN(stream->window / 2, HTTP_CHUNK_MAX / 2);
    int64_t chunk = MAX(stream->window / s->o.connections, half);

    chunk = MAX(chunk, s->o.readahead);
    chunk = MIN(chunk, HTTP_CHUNK_MAX);
    return chunk - chunk % HTTP_CACHE_BLOCK ? chunk - chunk % HTTP_CACHE_BLOCK : HTTP_CACHE_BLOCK;
}

static int64_t alignment(const HttpState *s)
{
    return s->cache ? HTTP_CACHE_BLOCK : ALIGN;
}

int64_t http_fetch_align(const HttpState *s, int64_t offset)
{
    return offset - offset % alignment(s);
}

int64_t http_stream_fetch_end(const HttpState *s, const HttpStream *stream, int64_t offset, int64_t bytes)
{
    int64_t align = alignment(s), end = offset + bytes;

    if (stream && s->o.readahead) {
        int64_t ahead = http_fetch_align(s, offset) + chunk_size(s, stream);

        end = MAX(end, ahead);
    }
    return MIN(end + (align - end % align) % align, s->pin.size);
}

void http_read_ahead(HttpState *s, HttpStream *stream)
{
    if (!stream || s->quiet || !s->o.readahead) {
        return;
    }
    int64_t align = alignment(s), next = stream->next;
    int64_t offset = next + (align - next % align) % align; /* who reads fetches what is before it */
    int64_t target = MIN(offset + stream->window, s->pin.size);
    int64_t chunk = chunk_size(s, stream);

    while (offset < target && (target - offset >= chunk || target == s->pin.size) &&
           http_fetch_ahead(s, &offset, chunk)) {
    }
}
