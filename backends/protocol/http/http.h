/*
 * What the files of the drivers http, https, ftp and ftps share.
 *
 *   open.c       options, opening, closing, the drivers
 *   url.c        the URL, and what of it people may see
 *   multi.c      libcurl's multi handle in an AioContext
 *   transfer.c   one transfer: its options, its way through libcurl
 *   reply.c      whether a reply is what was asked for
 *   pin.c        which resource it is: the first answer, and the check after an outage
 *   fetch.c      ranges in memory: those that are read, and those that are read ahead
 *   read.c       requests
 *   spool.c      a server without ranges
 *   cache.c      blocks kept in a local file
 *
 * All of it runs in the thread of the node's home (link.ctx) but for opening and closing.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BACKENDS_HTTP_H
#define BG_BACKENDS_HTTP_H

#include <curl/curl.h>

#include "backends/protocol/remote/remote.h"
#include "block/secret.h"

#define HTTP_NS_PER_S        INT64_C(1000000000)
#define HTTP_MAX_TRANSFER    (1024 * 1024) /* of one request of the core's, which has one deadline */
#define HTTP_CHUNK_MAX       (2 * 1024 * 1024)
#define HTTP_CONNECTIONS_MAX 64
#define HTTP_CACHE_BLOCK     (64 * 1024)

typedef struct HttpState HttpState;
typedef struct HttpTransfer HttpTransfer;
typedef struct HttpFetch HttpFetch;
typedef struct HttpSpool HttpSpool;
typedef struct HttpCache HttpCache;

/* ---- Options, constant after open */

typedef struct HttpOptions {
    char *url;   /* without user and fragment: what libcurl gets */
    char *where; /* for people: also without the query */
    bool ftp;
    bool ssl; /* https, ftps */
    char *username, *proxy_username;
    const char *password, *proxy_password, *cookie; /* of secrets: borrowed */
    char *cookie_text;                              /* option cookie */
    struct curl_slist *headers;                     /* option header, cookie */
    bool sslverify;
    const BlockTlsCreds *creds; /* NULL: the system's certificates */
    unsigned connections;
    int64_t readahead; /* bytes of the first one */
    char *spool;       /* NULL: none; "auto" or a file's name */
    char *cache_file;
    int64_t cache_size;
} HttpOptions;

/* ---- url.c */

/* Take `url` apart. False and *errp, where it is none for this driver, or holds a password. */
bool http_url_parse(HttpOptions *o, BlockOptions *opts, const char *scheme, const char *url, GError **errp);

/* ---- Replies */

/* What the headers of a reply say; those of the last one where there were redirects. */
typedef struct HttpReply {
    long status;
    char *etag, *last_modified;
    bool has_range;                         /* Content-Range was there: */
    int64_t range_start, range_last, total; /* -1: "*" */
    int64_t length;                         /* Content-Length; -1: none */
    int64_t retry_after_s;                  /* -1: none */
    bool encoded;                           /* Content-Encoding other than identity */
    bool complete;                          /* the empty line behind the headers was there */
} HttpReply;

/* The resource as the first answer had it. */
typedef struct HttpPin {
    bool set;
    int64_t size;
    char *etag, *last_modified; /* NULL: not given. FTP: the time of the file as last_modified */
} HttpPin;

typedef enum HttpOutcome {
    HTTP_OK,
    HTTP_LOST,     /* ended by us: disconnected */
    HTTP_BROKEN,   /* on the level of the connection */
    HTTP_BUSY,     /* asked to come again later */
    HTTP_NO_RANGE, /* the whole resource was sent, which is the pinned one */
    HTTP_EMPTY,    /* 416, and the resource is empty */
    HTTP_CHANGED,  /* it is another resource */
    HTTP_REFUSED,  /* anything else that asking again does not change */
} HttpOutcome;

/* How a transfer ended. */
typedef struct HttpResult {
    HttpOutcome outcome;
    int errnum; /* positive, but for HTTP_OK */
    char *text; /* the cause, for people; NULL for HTTP_OK */
} HttpResult;

void http_reply_reset(HttpReply *reply);
/* One line of a header. */
void http_reply_line(HttpReply *reply, const char *line, size_t n);
/* Whether the body of the reply to a request of [start, end) may be taken; end -1: no range was asked for.
 * HTTP_OK, or another outcome with *errnum and *text (g_free). */
HttpOutcome http_reply_check(const HttpReply *reply, const HttpPin *pin, int64_t start, int64_t end,
                             int *errnum, char **text);
/* Of a transfer that libcurl ended with `code`, no body being refused by us. */
HttpOutcome http_code_outcome(CURLcode code, int *errnum);

/* ---- transfer.c: one transfer at a time on an easy handle */

typedef struct HttpTransferOps {
    /* Inside of libcurl: n bytes of the body, which the reply's headers allow. Bytes taken; another number
     * ends the transfer, CURL_WRITEFUNC_PAUSE pauses it. */
    size_t (*data)(HttpTransfer *t, const uint8_t *data, size_t n);
    /* It ended, not by http_transfer_abort. Outside of libcurl and of coroutines. May start it again. */
    void (*done)(HttpTransfer *t);
} HttpTransferOps;

struct HttpTransfer {
    HttpState *s;
    const HttpTransferOps *ops;
    CURL *easy; /* NULL: not running */
    int64_t start, end;
    bool head;     /* FTP: only size and time */
    bool accepted; /* the headers were looked at and are good */
    bool complete; /* FTP: the range is all there, the rest is not wanted */
    HttpReply reply;
    HttpResult result; /* valid in `done` and until the next start */
    char error[CURL_ERROR_SIZE];
    GList entry; /* in s->active while it runs */
};

void http_transfer_init(HttpTransfer *t, HttpState *s, const HttpTransferOps *ops);
void http_transfer_destroy(HttpTransfer *t);
/* Ask for [start, end), or with end -1 for all. Not inside of libcurl. */
void http_transfer_start(HttpTransfer *t, int64_t start, int64_t end);
static inline bool http_transfer_running(const HttpTransfer *t)
{
    return t->easy != NULL;
}
/* No-op where it does not run. `done` is not called. Not inside of libcurl. */
void http_transfer_abort(HttpTransfer *t);
/* libcurl says it ended: sets the result, calls done. */
void http_transfer_ended(HttpTransfer *t, CURLcode code);
/* An easy handle with the node's options. Main thread or home. */
CURL *http_easy_new(HttpState *s);

/* ---- multi.c */

bool http_multi_init(HttpState *s, GError **errp);
/* Idle: no transfer runs. */
void http_multi_destroy(HttpState *s);
/* End all transfers with HTTP_LOST, and break all connections. Their `done` is called. */
void http_multi_disconnect(HttpState *s);
/* Between two contexts; in the thread of the first, of the second. */
void http_multi_detach(HttpState *s);
void http_multi_attach(HttpState *s);
/* For CURLOPT_OPENSOCKETFUNCTION and CURLOPT_CLOSESOCKETFUNCTION. */
curl_socket_t http_socket_open(void *opaque, curlsocktype purpose, struct curl_sockaddr *address);
int http_socket_close(void *opaque, curl_socket_t fd);

/* ---- pin.c */

extern const RemoteLinkOps http_link_ops;

/* ---- fetch.c */

void http_fetches_init(HttpState *s);
/* Whatever is not there yet fails with REMOTE_LOST. */
void http_fetches_disconnect(HttpState *s);
/* End those that nobody waits for. */
void http_fetches_quiet(HttpState *s);
/* End all, drop all memory. */
void http_fetches_destroy(HttpState *s);
/*
 * Read [offset, offset + bytes) through memory: 0, REMOTE_LOST, or -errno. Coroutine, home.
 */
/* Whether somebody fetched, or fetches, the byte at offset. */
bool http_fetch_has(HttpState *s, int64_t offset);
int coroutine_fn http_fetch_co_read(HttpState *s, int64_t offset, int64_t bytes, const IoVector *qiov,
                                    size_t qiov_offset);

/* ---- spool.c: where the server has no ranges. s->spool may be NULL. */

int coroutine_fn http_spool_co_open(HttpState *s, BlockOptions *opts, GError **errp);
/* Home. */
void coroutine_fn http_spool_co_close(HttpState *s);
/* The link is up, went down; a drained section ended. Home. */
void http_spool_connected(HttpState *s);
void http_spool_disconnect(HttpState *s);
void http_spool_loud(HttpState *s);
int coroutine_fn http_spool_co_read(HttpState *s, int64_t offset, int64_t bytes, const IoVector *qiov,
                                    size_t qiov_offset);
/* "spooled 45 %"; g_free. Any thread. */
char *http_spool_status(HttpState *s);

/* ---- cache.c: s->cache may be NULL, but for reading */

int coroutine_fn http_cache_co_open(HttpState *s, BlockOptions *opts, GError **errp);
void http_cache_close(HttpState *s);
/* Whether all of the range was there. Home. */
bool coroutine_fn http_cache_co_read(HttpState *s, int64_t offset, int64_t bytes, const IoVector *qiov,
                                     size_t qiov_offset);
/* Keep what a fetch that is DONE has. Home. */
void http_cache_insert(HttpState *s, HttpFetch *f);

/* ---- read.c */

int coroutine_fn http_co_preadv(BlockNode *node, int64_t offset, int64_t bytes, const IoVector *qiov,
                                size_t qiov_offset, BlockRequestFlags flags);

/* ---- The node */

/* A part of what somebody reads in order. */
typedef struct HttpStream {
    int64_t next;         /* where it goes on; -1: unused */
    int64_t window;       /* bytes to be ahead; 0: not known to be in order */
    int64_t since_growth; /* bytes read since the window grew */
    uint64_t used;        /* when, on the clock of uses */
} HttpStream;

#define HTTP_STREAMS 8

struct HttpState {
    BlockNode *node;
    HttpOptions o;
    Remote remote;
    RemoteLink link;

    /* -- home */
    CURLM *multi;
    AioTimer timer;
    bool timer_was_set;  /* between two contexts */
    GHashTable *sockets; /* set of fd: libcurl's connections */
    GHashTable *watches; /* fd -> HttpWatch: those it wants to be told of */
    GQueue active;       /* HttpTransfer that run */
    GPtrArray *idle;     /* easy handles of ended ones */
    bool probe_waits;    /* for a busy server */
    bool disconnecting;  /* nothing is started meanwhile */
    HttpPin pin;
    bool ranges;                    /* the server sends parts */
    struct curl_slist *pin_headers; /* those of each request once it is pinned */

    GQueue fetches;     /* HttpFetch: the first is the first to go */
    GQueue queued;      /* those of them that wait for a connection */
    unsigned running;   /* those of them that have one */
    int64_t delay_ns;   /* from request to first byte, averaged */
    int64_t held_bytes; /* memory of all */
    GPtrArray *spares;  /* memory of HTTP_CHUNK_MAX bytes for the next ones */
    HttpStream streams[HTTP_STREAMS];
    uint64_t uses;
    bool quiet; /* in a drained section: nothing is read ahead */

    HttpSpool *spool; /* NULL: the server does ranges */
    HttpCache *cache; /* NULL: none */
};

#endif /* BG_BACKENDS_HTTP_H */
