/*
 * Metrics in Prometheus' text format, version 0.0.4. Main thread.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <string.h>

#include "block/block-internal.h"

/* Label values escape backslash, quote and newline. */
static char *label_escape(const char *text)
{
    GString *s = g_string_new(NULL);
    for (const char *p = text; *p; p++) {
        if (*p == '\n') {
            g_string_append(s, "\\n");
            continue;
        }
        if (*p == '"' || *p == '\\') {
            g_string_append_c(s, '\\');
        }
        g_string_append_c(s, *p);
    }
    return g_string_free(s, FALSE);
}

static void head(GString *s, const char *name, const char *type, const char *help)
{
    g_string_append_printf(s, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* One family of counters, a sample per node and operation. */
static void counter_family(GString *s, BlockGraph *graph, const char *name, const char *help, size_t field)
{
    head(s, name, "counter", help);
    for (guint i = 0; i < graph->nodes->len; i++) {
        BlockNode *node = graph->nodes->pdata[i];
        g_autofree char *label = label_escape(node->name);
        for (BlockOp op = 0; op < BLOCK_OP_OPEN; op++) {
            BlockOpStats st;
            block_stats_get(node->stats, op, &st);
            uint64_t value;
            memcpy(&value, (const char *)&st + field, sizeof value);
            g_string_append_printf(s, "%s{node=\"%s\",operation=\"%s\"} %" G_GUINT64_FORMAT "\n", name, label,
                                   block_op_name(op), value);
        }
    }
}

static void histogram(GString *s, const char *name, const char *node, BlockOp op, const BlockOpStats *st)
{
    uint64_t sum = 0;
    for (int i = 0; i < BLOCK_LATENCY_BUCKETS - 1; i++) {
        sum += st->latency[i];
        g_string_append_printf(s,
                               "%s_bucket{node=\"%s\",operation=\"%s\",le=\"%.6f\"} %" G_GUINT64_FORMAT "\n",
                               name, node, block_op_name(op), (double)(1u << i) / 1e6, sum);
    }
    sum += st->latency[BLOCK_LATENCY_BUCKETS - 1];
    g_string_append_printf(s, "%s_bucket{node=\"%s\",operation=\"%s\",le=\"+Inf\"} %" G_GUINT64_FORMAT "\n",
                           name, node, block_op_name(op), sum);
    g_string_append_printf(s, "%s_sum{node=\"%s\",operation=\"%s\"} %.9f\n", name, node, block_op_name(op),
                           (double)st->total_ns / 1e9);
    g_string_append_printf(s, "%s_count{node=\"%s\",operation=\"%s\"} %" G_GUINT64_FORMAT "\n", name, node,
                           block_op_name(op), sum);
}

static void latency_family(GString *s, BlockGraph *graph)
{
    static const char name[] = "blockgraph_node_latency_seconds";
    head(s, name, "histogram", "Time from start to completion of operations.");
    for (guint i = 0; i < graph->nodes->len; i++) {
        BlockNode *node = graph->nodes->pdata[i];
        g_autofree char *label = label_escape(node->name);
        for (BlockOp op = 0; op < BLOCK_OP_OPEN; op++) {
            BlockOpStats st;
            block_stats_get(node->stats, op, &st);
            if (st.count) {
                histogram(s, name, label, op, &st);
            }
        }
    }
}

static void gauge_families(GString *s, BlockGraph *graph)
{
    head(s, "blockgraph_node_size_bytes", "gauge", "Length of the node.");
    for (guint i = 0; i < graph->nodes->len; i++) {
        BlockNode *node = graph->nodes->pdata[i];
        g_autofree char *label = label_escape(node->name);
        g_string_append_printf(s, "blockgraph_node_size_bytes{node=\"%s\"} %" G_GINT64_FORMAT "\n", label,
                               block_node_length(node));
    }
    head(s, "blockgraph_node_in_flight", "gauge", "Requests under way.");
    for (guint i = 0; i < graph->nodes->len; i++) {
        BlockNode *node = graph->nodes->pdata[i];
        g_autofree char *label = label_escape(node->name);
        g_string_append_printf(s, "blockgraph_node_in_flight{node=\"%s\"} %d\n", label,
                               atomic_load(&node->in_flight));
    }
    head(s, "blockgraph_export_parked_requests", "gauge", "Requests that wait for a drained section to end.");
    for (guint i = 0; i < graph->backends->len; i++) {
        BlockBackend *blk = graph->backends->pdata[i];
        g_autofree char *label = label_escape(blk->name);
        g_string_append_printf(s, "blockgraph_export_parked_requests{export=\"%s\"} %u\n", label,
                               block_backend_parked(blk));
    }
}

char *block_graph_to_metrics(BlockGraph *graph)
{
    bg_assert_main_thread();
    GString *s = g_string_new(NULL);
    counter_family(s, graph, "blockgraph_node_operations_total", "Completed operations.",
                   G_STRUCT_OFFSET(BlockOpStats, count));
    counter_family(s, graph, "blockgraph_node_bytes_total", "Bytes of successful operations.",
                   G_STRUCT_OFFSET(BlockOpStats, bytes));
    counter_family(s, graph, "blockgraph_node_errors_total", "Failed operations.",
                   G_STRUCT_OFFSET(BlockOpStats, errors));
    latency_family(s, graph);
    gauge_families(s, graph);
    head(s, "blockgraph_errors_total", "counter", "Errors recorded since the start.");
    g_string_append_printf(s, "blockgraph_errors_total %" G_GUINT64_FORMAT "\n",
                           block_graph_error_count(graph));
    return g_string_free(s, FALSE);
}
