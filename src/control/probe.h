/*
 * Guessing the format of an image.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CONTROL_PROBE_H
#define BG_CONTROL_PROBE_H

#include <glib.h>
#include <stddef.h>

#include "block/graph.h"

/*
 * The format, by driver name, of an image that begins with `head` (n_head bytes, the first 4 KiB suffice) and
 * ends with `tail` (the last n_tail bytes, up to 512): "raw" where nothing is recognised. Static.
 */
const char *probe_format(const char *head, size_t n_head, const char *tail, size_t n_tail);

/* The same of an open file. NULL and *errp where it cannot be read; `path` for messages. */
const char *probe_file(int fd, const char *path, GError **errp);

/*
 * The same of what a node with these options contains: it is opened and closed again. Main thread, coroutine.
 * NULL and *errp.
 */
const char *coroutine_fn probe_co_node(BlockGraph *graph, JsonObject *options, GError **errp);

#endif /* BG_CONTROL_PROBE_H */
