/*
 * Drained sections.
 *
 *   section    STARTED --every counter in the cover is 0--> DRAINED --block_drain_end--> freed
 *                 \------------------block_drain_end------------------------------------/
 *   node       quiesce == 0, not notified --section covers it--> quiesce > 0 --drain_begin called--> notified
 *              notified --last section gone--> quiesce == 0 --drain_end called--> not notified
 *
 * Invariants: node->quiesce and blk->quiesce are the number of active sections that cover them; drain_begin
 * and drain_end alternate, whatever callbacks do to the graph meanwhile; once a section is DRAINED, no
 * counter in its cover leaves 0 before its end (only attaching something busy can break this, and then the
 * caller waits again).
 *
 * Order: backends stop first, then drivers hear of it parents before children; at the end children before
 * parents, then the backends go on.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "aio/aio.h"
#include "block/block-internal.h"

typedef struct DrainWaiter DrainWaiter;
struct DrainWaiter {
    Coroutine *co;
    DrainWaiter *next;
};

struct BlockDrain {
    BlockGraph *graph;
    GPtrArray *roots;    /* BlockNode, referenced; NULL: the whole graph */
    GPtrArray *nodes;    /* the cover, parents before children; borrowed */
    GPtrArray *backends; /* the cover's users; borrowed */
};

/* ---- The cover of a section */

static void walk_up(BlockNode *node, int mark, GPtrArray *found)
{
    if (node->visit == mark) {
        return;
    }
    node->visit = mark;
    g_ptr_array_add(found, node);
    for (guint i = 0; i < node->parents->len; i++) {
        BlockChild *edge = node->parents->pdata[i];
        if (edge->parent) {
            walk_up(edge->parent, mark, found);
        }
    }
}

/* All nodes that the section covers, as marks: the roots' subtrees and everything above those. */
static int mark_cover(BlockDrain *section)
{
    BlockGraph *graph = section->graph;
    g_autoptr(GPtrArray) below = g_ptr_array_new();
    g_autoptr(GPtrArray) above = g_ptr_array_new();
    int mark = ++graph->visit;
    for (guint i = 0; i < section->roots->len; i++) {
        block_walk_down(section->roots->pdata[i], mark, below);
    }
    mark = ++graph->visit;
    for (guint i = 0; i < below->len; i++) {
        walk_up(below->pdata[i], mark, above);
    }
    return mark;
}

static GPtrArray *nodes_in_order(BlockGraph *graph)
{
    return block_walk_order(graph, (BlockNode *const *)graph->nodes->pdata, graph->nodes->len);
}

static void compute_cover(BlockDrain *section, GPtrArray *nodes, GPtrArray *backends)
{
    BlockGraph *graph = section->graph;
    g_autoptr(GPtrArray) order = nodes_in_order(graph);
    int mark = section->roots ? mark_cover(section) : 0;
    for (guint i = 0; i < order->len; i++) {
        BlockNode *node = order->pdata[i];
        if (!section->roots || node->visit == mark) {
            g_ptr_array_add(nodes, node);
        }
    }
    for (guint i = 0; i < graph->backends->len; i++) {
        BlockBackend *blk = graph->backends->pdata[i];
        if (!section->roots || (blk->root && blk->root->node->visit == mark)) {
            g_ptr_array_add(backends, blk);
        }
    }
}

/* ---- Telling drivers */

/* Call drain_begin and drain_end where the count says so and the driver has not heard. */
static void notify_drivers(BlockGraph *graph)
{
    /* Callbacks may change the graph: work on a copy, and look at each node's state afresh. */
    g_autoptr(GPtrArray) order = nodes_in_order(graph);
    for (guint i = 0; i < order->len; i++) {
        block_node_ref(order->pdata[i]);
    }
    for (guint i = 0; i < order->len; i++) {
        BlockNode *node = order->pdata[i];
        if (atomic_load(&node->quiesce) > 0 && !node->drain_notified && !node->closing) {
            node->drain_notified = true;
            if (node->driver->drain_begin) {
                node->driver->drain_begin(node);
            }
        }
    }
    for (guint i = order->len; i-- > 0;) {
        BlockNode *node = order->pdata[i];
        if (atomic_load(&node->quiesce) == 0 && node->drain_notified) {
            node->drain_notified = false;
            if (node->driver->drain_end) {
                node->driver->drain_end(node);
            }
        }
    }
    for (guint i = 0; i < order->len; i++) {
        block_node_unref_later(order->pdata[i]);
    }
}

/* ---- Cover changes: counters up for the new cover, down for the old */

static void cover_enter(GPtrArray *nodes, GPtrArray *backends)
{
    for (guint i = 0; i < backends->len; i++) {
        block_backend_quiesce(backends->pdata[i]);
    }
    for (guint i = 0; i < nodes->len; i++) {
        atomic_fetch_add(&((BlockNode *)nodes->pdata[i])->quiesce, 1);
    }
}

static void cover_leave_nodes(GPtrArray *nodes)
{
    for (guint i = 0; i < nodes->len; i++) {
        atomic_fetch_sub(&((BlockNode *)nodes->pdata[i])->quiesce, 1);
    }
}

static void cover_leave_backends(GPtrArray *backends)
{
    for (guint i = 0; i < backends->len; i++) {
        block_backend_unquiesce(backends->pdata[i]);
    }
}

void block_drain_graph_changed(BlockGraph *graph)
{
    bg_assert_main_thread();
    if (!graph->sections->len) {
        return;
    }
    g_autoptr(GPtrArray) released = g_ptr_array_new_with_free_func((GDestroyNotify)g_ptr_array_unref);
    for (guint i = 0; i < graph->sections->len; i++) {
        BlockDrain *section = graph->sections->pdata[i];
        GPtrArray *nodes = g_ptr_array_new(), *backends = g_ptr_array_new();
        compute_cover(section, nodes, backends);
        cover_enter(nodes, backends);
        cover_leave_nodes(section->nodes);
        g_ptr_array_unref(section->nodes);
        g_ptr_array_add(released, section->backends);
        section->nodes = nodes;
        section->backends = backends;
    }
    notify_drivers(graph);
    for (guint i = 0; i < released->len; i++) {
        cover_leave_backends(released->pdata[i]);
    }
    block_drain_kick(graph); /* what was detached no longer holds anyone up */
}

/* ---- Begin, wait, end */

static BlockDrain *section_start(BlockGraph *graph, BlockNode *const *roots, unsigned n)
{
    bg_assert_main_thread();
    BlockDrain *section = g_new(BlockDrain, 1);
    *section = (BlockDrain){.graph = graph, .nodes = g_ptr_array_new(), .backends = g_ptr_array_new()};
    if (roots) {
        section->roots = g_ptr_array_new();
        for (unsigned i = 0; i < n; i++) {
            g_ptr_array_add(section->roots, block_node_ref(roots[i]));
        }
    }
    compute_cover(section, section->nodes, section->backends);
    cover_enter(section->nodes, section->backends);
    g_ptr_array_add(graph->sections, section);
    notify_drivers(graph);
    return section;
}

BlockDrain *block_drain_start(BlockNode *node)
{
    return section_start(node->graph, &node, 1);
}

BlockDrain *block_drain_start_all(BlockGraph *graph)
{
    return section_start(graph, NULL, 0);
}

static bool cover_is_idle(void *opaque)
{
    BlockDrain *section = opaque;
    /* Each counter once seen 0 stays 0, as what could raise it is stopped or has been seen 0 itself. */
    for (guint i = 0; i < section->backends->len; i++) {
        if (atomic_load(&((BlockBackend *)section->backends->pdata[i])->in_flight)) {
            return false;
        }
    }
    for (guint i = 0; i < section->nodes->len; i++) {
        if (atomic_load(&((BlockNode *)section->nodes->pdata[i])->in_flight)) {
            return false;
        }
    }
    return true;
}

/*
 * Sleep until idle(opaque). It is asked after drain_waiting is raised and under the lock, so that the last
 * completion either is seen here or finds us in the list. Pairs with block_drain_count_down.
 */
static void coroutine_fn wait_until(BlockGraph *graph, bool (*idle)(void *opaque), void *opaque)
{
    atomic_fetch_add(&graph->drain_waiting, 1);
    bg_mutex_lock(&graph->drain_lock);
    while (!idle(opaque)) {
        DrainWaiter w = {.co = coroutine_self(), .next = graph->drain_waiters};
        graph->drain_waiters = &w;
        bg_mutex_unlock(&graph->drain_lock);
        coroutine_yield();
        bg_mutex_lock(&graph->drain_lock);
    }
    bg_mutex_unlock(&graph->drain_lock);
    atomic_fetch_sub(&graph->drain_waiting, 1);
}

void coroutine_fn block_drain_co_wait(BlockDrain *section)
{
    bg_assert_main_thread();
    wait_until(section->graph, cover_is_idle, section);
}

static bool node_is_idle(void *opaque)
{
    return atomic_load(&((BlockNode *)opaque)->in_flight) == 0;
}

void coroutine_fn block_drain_co_wait_node(BlockNode *node)
{
    wait_until(node->graph, node_is_idle, node);
}

void coroutine_fn block_drain_co_quiet_for_close(BlockNode *node)
{
    atomic_fetch_add(&node->quiesce, 1);
    if (!node->drain_notified && node->driver->drain_begin) {
        node->driver->drain_begin(node);
    }
    wait_until(node->graph, node_is_idle, node);
    if (node->driver->drain_end) {
        node->driver->drain_end(node);
    }
    node->drain_notified = false;
}

void block_drain_kick(BlockGraph *graph)
{
    bg_mutex_lock(&graph->drain_lock);
    DrainWaiter *w = graph->drain_waiters;
    graph->drain_waiters = NULL;
    bg_mutex_unlock(&graph->drain_lock);
    while (w) {
        DrainWaiter *next = w->next; /* w lies on the stack of the coroutine that is woken */
        aio_co_wake(w->co);
        w = next;
    }
}

void block_drain_end(BlockDrain *section)
{
    BlockGraph *graph = section->graph;
    bg_assert_main_thread();
    bool found = g_ptr_array_remove(graph->sections, section);
    g_assert(found);
    cover_leave_nodes(section->nodes);
    notify_drivers(graph);
    cover_leave_backends(section->backends);
    g_ptr_array_unref(section->nodes);
    g_ptr_array_unref(section->backends);
    if (section->roots) {
        for (guint i = 0; i < section->roots->len; i++) {
            block_node_unref_later(section->roots->pdata[i]);
        }
        g_ptr_array_unref(section->roots);
    }
    g_free(section);
}

static BlockDrain *coroutine_fn wait_for(BlockDrain *section)
{
    block_drain_co_wait(section);
    return section;
}

BlockDrain *coroutine_fn block_drain_co_begin(BlockNode *node)
{
    return wait_for(block_drain_start(node));
}

BlockDrain *coroutine_fn block_drain_co_begin_nodes(BlockNode *const *nodes, unsigned n)
{
    g_assert(n > 0);
    return wait_for(section_start(nodes[0]->graph, nodes, n));
}

BlockDrain *coroutine_fn block_drain_co_begin_all(BlockGraph *graph)
{
    return wait_for(block_drain_start_all(graph));
}

static void coroutine_fn wait_entry(void *opaque)
{
    block_drain_co_wait(opaque);
}

BlockDrain *block_drain_begin(BlockNode *node)
{
    BlockDrain *section = block_drain_start(node);
    aio_context_run_coroutine(node->graph->main_context, wait_entry, section);
    return section;
}

BlockDrain *block_drain_begin_all(BlockGraph *graph)
{
    BlockDrain *section = block_drain_start_all(graph);
    aio_context_run_coroutine(graph->main_context, wait_entry, section);
    return section;
}
