/*
 * Secrets and TLS credentials of a graph, and what its tables of objects have in common.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "block/secret.h"

#include <errno.h>
#include <string.h>

#include "block/block-internal.h"
#include "block/options.h"
#include "util/error.h"
#include "util/text.h"

static void secret_free(gpointer data)
{
    char *text = data;

    explicit_bzero(text, strlen(text));
    g_free(text);
}

BlockTlsCreds *block_tls_creds_new(void)
{
    BlockTlsCreds *creds = g_new0(BlockTlsCreds, 1);

    creds->verify_peer = true;
    return creds;
}

void block_tls_creds_free(BlockTlsCreds *creds)
{
    if (creds) {
        g_free(creds->dir);
        g_free(creds->username);
        g_free(creds);
    }
}

bool block_graph_id_is_new(BlockGraph *graph, const char *id, GError **errp)
{
    bg_assert_main_thread();
    if (g_hash_table_contains(graph->secrets, id) || g_hash_table_contains(graph->tls_creds, id) ||
        g_hash_table_contains(graph->throttle_groups, id)) {
        bg_error_set(errp, EEXIST, "there are two objects named '%s'", id);
        return false;
    }
    return true;
}

bool block_graph_add_secret(BlockGraph *graph, const char *id, const char *data, size_t size, GError **errp)
{
    if (memchr(data, 0, size)) {
        bg_error_set(errp, EINVAL, "secret '%s' contains a zero byte", id);
        return false;
    }
    if (!block_graph_id_is_new(graph, id, errp)) {
        return false;
    }
    g_hash_table_insert(graph->secrets, g_strdup(id), g_strndup(data, size));
    return true;
}

bool block_graph_add_tls_creds(BlockGraph *graph, const char *id, BlockTlsCreds *creds, GError **errp)
{
    if (!block_graph_id_is_new(graph, id, errp)) {
        block_tls_creds_free(creds);
        return false;
    }
    g_hash_table_insert(graph->tls_creds, g_strdup(id), creds);
    return true;
}

gpointer block_graph_find_object(GHashTable *table, const char *type, const char *id, GError **errp)
{
    gpointer found = g_hash_table_lookup(table, id);

    bg_assert_main_thread();
    if (!found) {
        g_autofree const char **ids = (const char **)g_hash_table_get_keys_as_array(table, NULL);
        const char *nearest = text_nearest(id, ids);

        bg_error_set(errp, ENOENT, "no %s object is named '%s'%s%s%s", type, id,
                     nearest ? ", did you mean '" : "", nearest ? nearest : "", nearest ? "'?" : "");
    }
    return found;
}

const char *block_graph_find_secret(BlockGraph *graph, const char *id, GError **errp)
{
    return block_graph_find_object(graph->secrets, "secret", id, errp);
}

bool block_graph_read_secret(BlockGraph *graph, BlockOptions *opts, const char *key, const char **out,
                             GError **errp)
{
    g_autofree char *id = NULL;
    g_autoptr(GError) cause = NULL;

    if (!block_options_get_string(opts, key, &id, errp)) {
        return false;
    }
    if (id) {
        *out = block_graph_find_secret(graph, id, &cause);
        return *out || block_options_error(opts, key, errp, ENOENT, "%s", cause->message);
    }
    return true;
}

const BlockTlsCreds *block_graph_find_tls_creds(BlockGraph *graph, const char *id, GError **errp)
{
    return block_graph_find_object(graph->tls_creds, "tls-creds", id, errp);
}

bool block_graph_read_tls_creds(BlockGraph *graph, BlockOptions *opts, bool psk, const BlockTlsCreds **out,
                                GError **errp)
{
    g_autofree char *id = NULL;
    g_autoptr(GError) cause = NULL;

    if (!block_options_get_string(opts, "tls-creds", &id, errp)) {
        return false;
    }
    if (!id) {
        return true;
    }
    const BlockTlsCreds *creds = block_graph_find_tls_creds(graph, id, &cause);

    if (!creds) {
        return block_options_error(opts, "tls-creds", errp, ENOENT, "%s", cause->message);
    }
    if (creds->psk && !psk) {
        return block_options_error(opts, "tls-creds", errp, ENOTSUP, "'%s' is not of type tls-creds-x509",
                                   id);
    }
    *out = creds;
    return true;
}

void block_graph_secrets_new(BlockGraph *graph)
{
    graph->secrets = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, secret_free);
    graph->tls_creds =
        g_hash_table_new_full(g_str_hash, g_str_equal, g_free, (GDestroyNotify)block_tls_creds_free);
}

void block_graph_secrets_free(BlockGraph *graph)
{
    g_hash_table_unref(graph->secrets);
    g_hash_table_unref(graph->tls_creds);
}
