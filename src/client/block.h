/*
 * The block layer in the client's own process.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_CLIENT_BLOCK_H
#define BG_CLIENT_BLOCK_H

#include "block/graph.h"

/* 0 or -errno and *errp. It leaves no backend in the graph. */
typedef int ClientBlockWork(BlockGraph *graph, void *opaque, GError **errp);

/*
 * Run `work` in a coroutine, with an empty graph; what it leaves there is closed after. 0 or -errno and
 * *errp.
 */
int client_block_run(ClientBlockWork *work, void *opaque, GError **errp);

#endif /* BG_CLIENT_BLOCK_H */
