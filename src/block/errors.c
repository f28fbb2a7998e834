/*
 * The log of I/O errors: a bounded ring, with repeats folded.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "block/block-internal.h"

#define REPEAT_WINDOW_US G_USEC_PER_SEC

typedef struct ErrorEntry {
    int64_t first_us, last_us; /* CLOCK_REALTIME */
    char *name;
    char *text;
    BlockOp op;
    int errnum;
    int64_t offset, bytes; /* of the first */
    uint64_t count;
} ErrorEntry;

struct ErrorLog {
    BgMutex lock;                       /* a leaf */
    GQueue entries BG_GUARDED_BY(lock); /* ErrorEntry*, newest last */
    uint64_t total BG_GUARDED_BY(lock);
};

static void error_entry_free(ErrorEntry *e)
{
    g_free(e->name);
    g_free(e->text);
    g_free(e);
}

ErrorLog *error_log_new(void)
{
    ErrorLog *log = g_new0(ErrorLog, 1);
    bg_mutex_init(&log->lock);
    return log;
}

void error_log_free(ErrorLog *log)
{
    ErrorEntry *e;
    while ((e = g_queue_pop_head(&log->entries))) {
        error_entry_free(e);
    }
    bg_mutex_destroy(&log->lock);
    g_free(log);
}

/* Whether the newest of this name is the same error, a moment ago. */
static ErrorEntry *find_repeat(ErrorLog *log, const ErrorEntry *new) BG_REQUIRES(log->lock)
{
    for (GList *l = log->entries.tail; l; l = l->prev) {
        ErrorEntry *e = l->data;
        if (new->first_us - e->last_us > REPEAT_WINDOW_US) {
            return NULL;
        }
        if (e->op == new->op && e->errnum == new->errnum && !strcmp(e->name, new->name) &&
            !g_strcmp0(e->text, new->text)) {
            return e;
        }
    }
    return NULL;
}

void block_graph_log_error(BlockGraph *graph, const char *name, BlockOp op, int64_t offset, int64_t bytes,
                           int errnum, const char *text)
{
    ErrorLog *log = graph->errors;
    int64_t now = g_get_real_time();
    ErrorEntry *new = g_new(ErrorEntry, 1);
    *new = (ErrorEntry){.first_us = now,
                        .last_us = now,
                        .name = g_strdup(name),
                        .text = g_strdup(text),
                        .op = op,
                        .errnum = errnum,
                        .offset = offset,
                        .bytes = bytes,
                        .count = 1};
    bg_mutex_lock(&log->lock);
    log->total++;
    ErrorEntry *old = find_repeat(log, new);
    if (old) {
        old->count++;
        old->last_us = now;
        old = new;
    } else {
        g_queue_push_tail(&log->entries, new);
        old = log->entries.length > BLOCK_ERRORS_KEPT ? g_queue_pop_head(&log->entries) : NULL;
    }
    bg_mutex_unlock(&log->lock);
    if (old) {
        error_entry_free(old);
    }
}

static void append_line(GString *s, const ErrorEntry *e)
{
    g_autoptr(GDateTime) utc = g_date_time_new_from_unix_utc(e->first_us / G_USEC_PER_SEC);
    g_autofree char *time = g_date_time_format(utc, "%Y-%m-%dT%H:%M:%S");
    g_string_append_printf(s, "%s.%03dZ %s %s", time, (int)(e->first_us % G_USEC_PER_SEC / 1000), e->name,
                           block_op_name(e->op));
    if (e->offset >= 0) {
        g_string_append_printf(s, " offset=%" G_GINT64_FORMAT " length=%" G_GINT64_FORMAT, e->offset,
                               e->bytes);
    }
    const char *name = strerrorname_np(e->errnum);
    g_string_append_printf(s, " %s: %s", name ? name : "error", e->text ? e->text : g_strerror(e->errnum));
    if (e->count > 1) {
        g_string_append_printf(s, " (%" G_GUINT64_FORMAT " times)", e->count);
    }
}

char *block_graph_errors_text(BlockGraph *graph)
{
    ErrorLog *log = graph->errors;
    GString *s = g_string_new(NULL);
    bg_mutex_lock(&log->lock);
    for (GList *l = log->entries.head; l; l = l->next) {
        append_line(s, l->data);
        g_string_append_c(s, '\n');
    }
    bg_mutex_unlock(&log->lock);
    return g_string_free(s, FALSE);
}

char *block_graph_last_error(BlockGraph *graph, const char *name)
{
    ErrorLog *log = graph->errors;
    GString *s = NULL;
    bg_mutex_lock(&log->lock);
    for (GList *l = log->entries.tail; l && !s; l = l->prev) {
        const ErrorEntry *e = l->data;
        if (!name || !strcmp(e->name, name)) {
            s = g_string_new(NULL);
            append_line(s, e);
        }
    }
    bg_mutex_unlock(&log->lock);
    return s ? g_string_free(s, FALSE) : NULL;
}

uint64_t block_graph_error_count(BlockGraph *graph)
{
    bg_mutex_lock(&graph->errors->lock);
    uint64_t n = graph->errors->total;
    bg_mutex_unlock(&graph->errors->lock);
    return n;
}
