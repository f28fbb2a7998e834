/*
 * What objects of the types secret and tls-creds-* give to the drivers that name them.
 *
 * Main thread. Everything borrowed lives until block_graph_free(), and is wiped then.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BLOCK_SECRET_H
#define BG_BLOCK_SECRET_H

#include "block/types.h"

/* TLS credentials of a client, as QEMU's objects tls-creds-x509, tls-creds-psk have them. */
typedef struct BlockTlsCreds {
    bool psk;  /* else X.509 */
    char *dir; /* with ca-cert.pem, client-cert.pem, client-key.pem, or keys.psk; NULL: the system's CAs */
    char *username; /* PSK */
    bool verify_peer;
} BlockTlsCreds;

BlockTlsCreds *block_tls_creds_new(void);
void block_tls_creds_free(BlockTlsCreds *creds);

/* A copy of `size` bytes of data, without zero bytes, is kept under `id`. False and *errp where there is one
 * already. */
bool block_graph_add_secret(BlockGraph *graph, const char *id, const char *data, size_t size, GError **errp);
/* Takes creds over. */
bool block_graph_add_tls_creds(BlockGraph *graph, const char *id, BlockTlsCreds *creds, GError **errp);

/* The text of a secret, borrowed; NULL and *errp, with the nearest id, where there is none. */
const char *block_graph_find_secret(BlockGraph *graph, const char *id, GError **errp);
/* Of the option `key`, the id of a secret: *out stays as it is where there is none. False and *errp. */
bool block_graph_read_secret(BlockGraph *graph, BlockOptions *opts, const char *key, const char **out,
                             GError **errp);
const BlockTlsCreds *block_graph_find_tls_creds(BlockGraph *graph, const char *id, GError **errp);
/* Of the option tls-creds, likewise. `psk`: keys will do as well as certificates. */
bool block_graph_read_tls_creds(BlockGraph *graph, BlockOptions *opts, bool psk, const BlockTlsCreds **out,
                                GError **errp);

#endif /* BG_BLOCK_SECRET_H */
