/*
 * The graph as a tree and as a picture. Main thread.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <string.h>

#include "block/block-internal.h"
#include "util/text.h"

static const char *durable_word(BlockNode *node)
{
    int d = block_node_durable(node);
    return d > 0 ? "yes" : d == 0 ? "no" : "unknown";
}

/* "base: qcow2, 1 GiB, read-only, /srv/base.qcow2" */
static void describe_node(GString *s, BlockNode *node)
{
    g_autofree char *size = text_format_size((uint64_t)block_node_length(node));
    g_string_append_printf(s, "%s: %s, %s", node->name, node->driver->name, size);
    if (node->read_only) {
        g_string_append(s, ", read-only");
    }
    if (atomic_load(&node->quiesce)) {
        g_string_append(s, ", drained");
    }
    if (!node->children->len) {
        g_autofree char *file = block_node_filename(node);
        if (file) {
            g_string_append_printf(s, ", %s", file);
        }
    }
    g_autofree char *status = node->driver->status ? node->driver->status(node) : NULL;
    if (status) {
        g_string_append_printf(s, ", %s", status);
    }
}

/* ---- Text */

/* One line for `node`, then its children, each behind `indent`. A shared node is drawn in full once. */
static void draw_children(GString *s, BlockNode *node, const char *indent, GHashTable *drawn)
{
    for (guint i = 0; i < node->children->len; i++) {
        const BlockChild *edge = node->children->pdata[i];
        bool last = i + 1 == node->children->len;
        g_string_append_printf(s, "%s%s %s = ", indent, last ? "└─" : "├─", edge->name);
        describe_node(s, edge->node);
        bool again = !g_hash_table_add(drawn, edge->node) && edge->node->children->len;
        g_string_append(s, again ? " (see above)\n" : "\n");
        if (!again) {
            g_autofree char *deeper = g_strdup_printf("%s%s  ", indent, last ? " " : "│");
            draw_children(s, edge->node, deeper, drawn);
        }
    }
}

char *block_graph_to_text(BlockGraph *graph)
{
    bg_assert_main_thread();
    GString *s = g_string_new(NULL);
    g_autoptr(GHashTable) drawn = g_hash_table_new(NULL, NULL);
    for (guint i = 0; i < graph->backends->len; i++) {
        BlockBackend *blk = graph->backends->pdata[i];
        if (!blk->root) {
            continue;
        }
        const char *mode = blk->perm & BLOCK_PERM_WRITE ? "writable" : "read-only";
        g_string_append_printf(s, "%s (%s, durable: %s)\n└─ ", blk->name, mode,
                               durable_word(blk->root->node));
        describe_node(s, blk->root->node);
        g_string_append_c(s, '\n');
        g_hash_table_add(drawn, blk->root->node);
        draw_children(s, blk->root->node, "   ", drawn);
    }
    for (guint i = 0; i < graph->nodes->len; i++) {
        BlockNode *node = graph->nodes->pdata[i];
        if (node->parents->len == 0) {
            g_string_append(s, "(not exported)\n└─ ");
            describe_node(s, node);
            g_string_append_c(s, '\n');
            draw_children(s, node, "   ", drawn);
        }
    }
    return g_string_free(s, FALSE);
}

/* ---- dot */

static char *dot_escape(const char *text)
{
    GString *s = g_string_new(NULL);
    for (const char *p = text; *p; p++) {
        if (strchr("\"\\", *p)) {
            g_string_append_c(s, '\\');
        }
        g_string_append_c(s, *p == '\n' ? ' ' : *p);
    }
    return g_string_free(s, FALSE);
}

static void dot_node(GString *s, BlockNode *node)
{
    g_autofree char *file = node->children->len ? NULL : block_node_filename(node);
    g_autofree char *name = dot_escape(node->name), *label = file ? dot_escape(file) : NULL;
    g_autofree char *size = text_format_size((uint64_t)block_node_length(node));
    g_string_append_printf(s, "  \"n %s\" [label=\"%s\\n%s, %s%s%s\"%s];\n", name, name, node->driver->name,
                           size, label ? "\\n" : "", label ? label : "",
                           node->read_only ? " style=dashed" : "");
    for (guint i = 0; i < node->children->len; i++) {
        const BlockChild *edge = node->children->pdata[i];
        g_autofree char *child = dot_escape(edge->node->name), *role = dot_escape(edge->name);
        g_string_append_printf(s, "  \"n %s\" -> \"n %s\" [label=\"%s\"];\n", name, child, role);
    }
}

char *block_graph_to_dot(BlockGraph *graph)
{
    bg_assert_main_thread();
    GString *s = g_string_new("digraph blockgraph {\n  node [shape=box fontname=\"sans-serif\"];\n"
                              "  edge [fontname=\"sans-serif\"];\n");
    for (guint i = 0; i < graph->backends->len; i++) {
        BlockBackend *blk = graph->backends->pdata[i];
        if (blk->root) {
            g_autofree char *name = dot_escape(blk->name), *node = dot_escape(blk->root->node->name);
            g_string_append_printf(s, "  \"e %s\" [label=\"%s\" shape=note];\n  \"e %s\" -> \"n %s\";\n",
                                   name, name, name, node);
        }
    }
    for (guint i = 0; i < graph->nodes->len; i++) {
        dot_node(s, graph->nodes->pdata[i]);
    }
    g_string_append(s, "}\n");
    return g_string_free(s, FALSE);
}
