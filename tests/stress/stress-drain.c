/*
 * Stress test of drained sections: four iothreads of random I/O against a main thread that begins and ends
 * sections, changes the graph and moves a node between threads, with a model of the data.
 *
 *   blk0..blk7 -> [filters that come and go] -> leaf0..leaf3
 *   group      -> [edges to leaves that come and go]           (covers several leaves)
 *
 * BG_STRESS_SECONDS: how long on each kind of event loop (default 3). BG_SEED: the seed (default: the time).
 * BG_STRESS_LOOP: io_uring or epoll, for one of them only.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "aio/thread-pool.h"
#include "tests/stress/stress-model.h"

#define MAX_FILTERS   6
#define STALL_SECONDS 30

typedef enum ActorKind {
    ACTOR_DRAINER_1,
    ACTOR_DRAINER_2,
    ACTOR_DRAINER_3,
    ACTOR_FILTERS,
    ACTOR_GROUP,
    ACTOR_MOVER,
    ACTOR_VISITOR,
    ACTORS,
} ActorKind;

static const char *const actor_names[ACTORS] = {"drainer 1", "drainer 2", "drainer 3", "filters",
                                                "group",     "mover",     "visitor"};

typedef struct Stress Stress;

/* A coroutine of the main thread. */
typedef struct Actor {
    Stress *stress;
    StressRand rand;
    TestTask *task;
    _Atomic uint64_t progress;
} Actor;

struct Stress {
    TestEnv env;
    StressModel model;
    StressWorker workers[STRESS_WORKERS];
    Actor actors[ACTORS];
    AioContext *iothreads[TEST_IOTHREADS];
    BlockNode *filters[MAX_FILTERS];
    unsigned n_filters, filters_made;
    BlockNode *group;
    int64_t end_ns;
    pthread_t watchdog;
    _Atomic bool done;
};

static void coroutine_fn pause_up_to(Actor *a, uint32_t us)
{
    aio_co_sleep_ns((int64_t)stress_below(&a->rand, us) * 1000);
}

static bool running(const Actor *a)
{
    return aio_clock_ns() < a->stress->end_ns;
}

/* ---- Sections */

/* What must not move while a section is held. */
typedef struct Quiet {
    BlockNode *leaf;
    unsigned calls;
} Quiet;

static unsigned data_calls(BlockNode *leaf)
{
    static const BlockOp ops[] = {BLOCK_OP_READ, BLOCK_OP_WRITE, BLOCK_OP_WRITE_ZEROES, BLOCK_OP_DISCARD,
                                  BLOCK_OP_COPY_RANGE};
    unsigned sum = 0;
    for (unsigned i = 0; i < G_N_ELEMENTS(ops); i++) {
        sum += test_calls(leaf, ops[i]);
    }
    return sum;
}

static Quiet quiet_begin(BlockNode *leaf)
{
    g_assert_cmpint(atomic_load(&leaf->quiesce), >, 0);
    g_assert_cmpuint(atomic_load(&test_driver(leaf)->active_data), ==, 0);
    return (Quiet){leaf, data_calls(leaf)};
}

/*
 * No data request came since. A flush may have: a filter above that the filters actor deletes flushes as it
 * closes.
 */
static void quiet_check(const Quiet *q)
{
    g_assert_cmpuint(atomic_load(&test_driver(q->leaf)->active_data), ==, 0);
    g_assert_cmpuint(data_calls(q->leaf), ==, q->calls);
}

static BlockNode *random_leaf(Actor *a)
{
    return a->stress->model.leaf[stress_below(&a->rand, STRESS_LEAVES)];
}

static BlockNode *random_node(Actor *a)
{
    const GPtrArray *nodes = block_graph_nodes(a->stress->env.graph);
    return g_ptr_array_index(nodes, stress_below(&a->rand, nodes->len));
}

static void coroutine_fn hold_leaf(Actor *a)
{
    BlockNode *leaf = random_leaf(a);
    BlockDrain *outer = block_drain_co_begin(leaf);
    Quiet q = quiet_begin(leaf);
    pause_up_to(a, 1000);
    quiet_check(&q);
    BlockDrain *inner = block_drain_co_begin(stress_below(&a->rand, 2) ? leaf : random_node(a));
    pause_up_to(a, 200);
    quiet_check(&q);
    if (stress_below(&a->rand, 2)) {
        block_drain_end(inner);
        quiet_check(&q);
        block_drain_end(outer);
    } else {
        block_drain_end(outer);
        block_drain_end(inner);
    }
}

static void coroutine_fn hold_several(Actor *a, BlockDrain *section, unsigned first, unsigned n)
{
    Quiet q[STRESS_LEAVES];
    for (unsigned i = 0; i < n; i++) {
        q[i] = quiet_begin(a->stress->model.leaf[first + i]);
    }
    pause_up_to(a, 1000);
    for (unsigned i = 0; i < n; i++) {
        quiet_check(&q[i]);
    }
    block_drain_end(section);
}

static int coroutine_fn drainer_run(void *opaque)
{
    Actor *a = opaque;
    BlockGraph *graph = a->stress->env.graph;
    while (running(a)) {
        switch (stress_below(&a->rand, 6)) {
        case 0:
            hold_several(a, block_drain_co_begin_all(graph), 0, STRESS_LEAVES);
            break;
        case 1: {
            unsigned first = stress_below(&a->rand, STRESS_LEAVES - 1);
            BlockNode *const *leaves = &a->stress->model.leaf[first];
            hold_several(a, block_drain_co_begin_nodes(leaves, 2), first, 2);
            break;
        }
        case 2: {
            BlockDrain *section = block_drain_start(random_node(a));
            pause_up_to(a, 100);
            block_drain_end(section);
            break;
        }
        case 3:
            block_drain_end(block_drain_co_begin(random_node(a)));
            break;
        default:
            hold_leaf(a);
        }
        atomic_fetch_add(&a->progress, 1);
        pause_up_to(a, 3000);
    }
    return 0;
}

/* ---- Graph changes */

static void coroutine_fn insert_filter(Actor *a)
{
    Stress *s = a->stress;
    g_autoptr(GError) err = NULL;
    unsigned at = stress_below(&a->rand, STRESS_LEAVES + s->n_filters);
    BlockNode *below = at < STRESS_LEAVES ? s->model.leaf[at] : s->filters[at - STRESS_LEAVES];
    BlockNode *filter =
        test_open(&s->env, "{'driver':'test-filter','node-name':'filter%u','file':'%s','delay-ns':%u}",
                  s->filters_made++, below->name, stress_below(&a->rand, 3) == 0);
    int ret = block_node_co_replace(below, filter, &err);
    g_assert_no_error(err);
    g_assert_cmpint(ret, ==, 0);
    s->filters[s->n_filters++] = filter;
}

static void coroutine_fn remove_filter(Actor *a)
{
    Stress *s = a->stress;
    g_autoptr(GError) err = NULL;
    unsigned i = stress_below(&a->rand, s->n_filters);
    BlockNode *filter = s->filters[i];
    s->filters[i] = s->filters[--s->n_filters];
    int ret = block_node_co_replace(filter, filter->file->node, &err);
    g_assert_no_error(err);
    g_assert_cmpint(ret, ==, 0);
    test_delete(&s->env, filter);
}

static int coroutine_fn filters_run(void *opaque)
{
    Actor *a = opaque;
    Stress *s = a->stress;
    while (running(a)) {
        if (s->n_filters < MAX_FILTERS && (s->n_filters == 0 || stress_below(&a->rand, 2))) {
            insert_filter(a);
        } else {
            remove_filter(a);
        }
        atomic_fetch_add(&a->progress, 1);
        pause_up_to(a, 3000);
    }
    while (s->n_filters) {
        remove_filter(a);
    }
    return 0;
}

/* The group has no user and no I/O; its edges join what sections cover. */
static int coroutine_fn group_run(void *opaque)
{
    Actor *a = opaque;
    BlockNode *group = a->stress->group;
    while (running(a)) {
        if (group->children->len < 3 && stress_below(&a->rand, 2)) {
            g_autofree char *name = g_strdup_printf("c%" G_GUINT64_FORMAT, atomic_load(&a->progress));
            test_attach(group, random_leaf(a), name);
        } else if (group->children->len) {
            guint i = stress_below(&a->rand, group->children->len);
            block_child_co_detach(g_ptr_array_index(group->children, i));
        }
        atomic_fetch_add(&a->progress, 1);
        pause_up_to(a, 3000);
    }
    return 0;
}

static int coroutine_fn mover_run(void *opaque)
{
    Actor *a = opaque;
    Stress *s = a->stress;
    BlockNode *leaf = s->model.leaf[STRESS_LEAVES - 1];
    while (running(a)) {
        g_autoptr(GError) err = NULL;
        unsigned i = stress_below(&a->rand, TEST_IOTHREADS + 1);
        AioContext *home = i == TEST_IOTHREADS ? s->env.ctx : s->iothreads[i];
        int ret = block_node_co_set_aio_context(leaf, home, &err);
        g_assert_no_error(err);
        g_assert_cmpint(ret, ==, 0);
        atomic_fetch_add(&a->progress, 1);
        pause_up_to(a, 4000);
    }
    return 0;
}

/* A backend that comes, reads a little in some thread, and goes. */
static int coroutine_fn visit(void *opaque)
{
    uint8_t buf[700];
    return block_backend_co_pread(opaque, 12345, sizeof buf, buf);
}

static int coroutine_fn visitor_run(void *opaque)
{
    Actor *a = opaque;
    Stress *s = a->stress;
    while (running(a)) {
        g_autoptr(GError) err = NULL;
        BlockBackend *blk =
            block_backend_new(s->env.graph, "visitor", BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL);
        BlockNode *node = random_node(a);
        if (node != s->group) {
            g_assert_cmpint(block_backend_insert(blk, node, &err), ==, 0);
            unsigned i = stress_below(&a->rand, TEST_IOTHREADS);
            g_assert_cmpint(test_join(test_spawn(s->iothreads[i], visit, blk)), ==, 0);
        }
        block_backend_co_free(blk);
        atomic_fetch_add(&a->progress, 1);
        pause_up_to(a, 5000);
    }
    return 0;
}

/* ---- Watchdog */

static void dump(Stress *s, const char *who)
{
    g_printerr("stress-drain: %s has not moved for %d s\n", who, STALL_SECONDS);
    for (unsigned i = 0; i < STRESS_LEAVES; i++) {
        BlockNode *n = s->model.leaf[i];
        g_printerr("  %s: in_flight %d, quiesce %d, active %u, drains %u/%u\n", n->name,
                   atomic_load(&n->in_flight), atomic_load(&n->quiesce), atomic_load(&test_driver(n)->active),
                   atomic_load(&test_driver(n)->drain_begins), atomic_load(&test_driver(n)->drain_ends));
    }
    for (unsigned i = 0; i < s->n_filters; i++) {
        BlockNode *n = s->filters[i];
        g_printerr("  %s: in_flight %d, quiesce %d, active %u\n", n->name, atomic_load(&n->in_flight),
                   atomic_load(&n->quiesce), atomic_load(&test_driver(n)->active));
    }
    for (unsigned i = 0; i < STRESS_BACKENDS; i++) {
        g_printerr("  blk%u: parked %u\n", i, block_backend_parked(s->model.blk[i]));
    }
    for (unsigned i = 0; i < STRESS_WORKERS; i++) {
        g_printerr("  worker %u: %" G_GUINT64_FORMAT " steps\n", i, atomic_load(&s->workers[i].progress));
    }
    for (unsigned i = 0; i < ACTORS; i++) {
        g_printerr("  %s: %" G_GUINT64_FORMAT " steps\n", actor_names[i],
                   atomic_load(&s->actors[i].progress));
    }
}

/* Each actor must move by itself: that all wait for one is how a bug would look. */
static void *watchdog_run(void *opaque)
{
    Stress *s = opaque;
    uint64_t last[STRESS_WORKERS + ACTORS] = {0};
    unsigned still[STRESS_WORKERS + ACTORS] = {0};
    while (!atomic_load(&s->done)) {
        g_usleep(G_USEC_PER_SEC / 4);
        for (unsigned i = 0; i < STRESS_WORKERS + ACTORS; i++) {
            bool is_worker = i < STRESS_WORKERS;
            uint64_t now =
                atomic_load(is_worker ? &s->workers[i].progress : &s->actors[i - STRESS_WORKERS].progress);
            still[i] = now == last[i] ? still[i] + 1 : 0;
            last[i] = now;
            if (still[i] > 4 * STALL_SECONDS) {
                dump(s, is_worker ? "a worker" : actor_names[i - STRESS_WORKERS]);
                abort();
            }
        }
    }
    return NULL;
}

/* ---- The run */

static void coroutine_fn run_all(TestEnv *env, void *opaque)
{
    static TestTaskFunc *const functions[ACTORS] = {drainer_run, drainer_run, drainer_run, filters_run,
                                                    group_run,   mover_run,   visitor_run};
    Stress *s = opaque;
    uint64_t seed = s->actors[0].rand.state;
    stress_model_open(&s->model, env);
    s->group = test_open(env, "{'driver':'test-format','node-name':'group'}");
    stress_workers_start(&s->model, s->workers, s->iothreads, TEST_IOTHREADS, seed);
    for (unsigned i = 0; i < ACTORS; i++) {
        Actor *a = &s->actors[i];
        a->stress = s;
        a->rand.state = (seed + 1000 + i) * UINT64_C(0xd1342543de82ef95) | 1;
        a->task = test_spawn(env->ctx, functions[i], a);
    }
    g_assert_cmpint(pthread_create(&s->watchdog, NULL, watchdog_run, s), ==, 0);
    for (unsigned i = 0; i < ACTORS; i++) {
        while (!test_task_done(s->actors[i].task)) {
            aio_co_sleep_ns(1000 * 1000);
        }
        test_join(s->actors[i].task);
    }
    atomic_store(&s->model.stop, true);
    stress_workers_join(s->workers);
    atomic_store(&s->done, true);
    pthread_join(s->watchdog, NULL);
    stress_model_check(&s->model);
}

static void check_paired(Stress *s)
{
    for (unsigned i = 0; i < STRESS_LEAVES; i++) {
        TestDriver *d = test_driver(s->model.leaf[i]);
        g_assert_cmpuint(atomic_load(&d->drain_begins), ==, atomic_load(&d->drain_ends));
        g_assert_cmpuint(atomic_load(&d->drain_begins), >, 0);
        g_assert_cmpuint(atomic_load(&d->active), ==, 0);
        g_assert_cmpint(atomic_load(&s->model.leaf[i]->in_flight), ==, 0);
    }
    for (unsigned i = 0; i < STRESS_BACKENDS; i++) {
        g_assert_cmpuint(block_backend_parked(s->model.blk[i]), ==, 0);
    }
    const GPtrArray *nodes = block_graph_nodes(s->env.graph);
    for (guint i = 0; i < nodes->len; i++) {
        BlockNode *node = g_ptr_array_index(nodes, i);
        g_assert_cmpint(atomic_load(&node->quiesce), ==, 0);
    }
}

static void report(Stress *s, const char *loop)
{
    uint64_t ops[BLOCK_OP__MAX] = {0};
    for (unsigned i = 0; i < STRESS_WORKERS; i++) {
        for (unsigned op = 0; op < BLOCK_OP__MAX; op++) {
            ops[op] += s->workers[i].ops[op];
        }
    }
    g_print("# %s:", loop);
    for (unsigned op = 0; op < BLOCK_OP__MAX; op++) {
        if (ops[op]) {
            g_print(" %s %" G_GUINT64_FORMAT, block_op_name(op), ops[op]);
        }
    }
    for (unsigned i = 0; i < ACTORS; i++) {
        g_print(", %s %" G_GUINT64_FORMAT, actor_names[i], atomic_load(&s->actors[i].progress));
    }
    g_print("\n");
}

static void coroutine_fn close_all(TestEnv *env, void *opaque)
{
    Stress *s = opaque;
    test_delete(env, s->group);
    stress_model_close(&s->model, env);
}

static bool stress_loop(AioBackend backend, const char *name, double seconds, uint64_t seed)
{
    g_autoptr(GError) err = NULL;
    Stress *s = g_new0(Stress, 1);
    if (!test_env_open(&s->env, backend, &err)) {
        g_print("# %s: skipped: %s\n", name, err->message);
        g_free(s);
        return false;
    }
    for (unsigned i = 0; i < TEST_IOTHREADS; i++) {
        s->iothreads[i] = test_iothread(&s->env, i);
    }
    s->end_ns = aio_clock_ns() + (int64_t)(seconds * 1e9);
    s->actors[0].rand.state = seed;
    test_run(&s->env, run_all, s);
    check_paired(s);
    report(s, name);
    test_run(&s->env, close_all, s);
    test_env_close(&s->env);
    g_free(s);
    return true;
}

int main(void)
{
    const char *seconds_text = g_getenv("BG_STRESS_SECONDS"), *seed_text = g_getenv("BG_SEED");
    const char *only = g_getenv("BG_STRESS_LOOP");
    double seconds = seconds_text ? g_ascii_strtod(seconds_text, NULL) : 3;
    uint64_t seed = seed_text ? g_ascii_strtoull(seed_text, NULL, 0) : (uint64_t)g_get_real_time();
    g_print("# BG_SEED=%" G_GUINT64_FORMAT ", %g s on each loop\n", seed, seconds);
    bg_main_thread_register();
    test_drivers_register();
    unsigned ran = 0;
    if ((!only || !strcmp(only, "io_uring")) && stress_loop(AIO_BACKEND_URING, "io_uring", seconds, seed)) {
        g_print("ok %u /stress/drain/io_uring\n", ++ran);
    }
    if ((!only || !strcmp(only, "epoll")) && stress_loop(AIO_BACKEND_EPOLL, "epoll", seconds, seed)) {
        g_print("ok %u /stress/drain/epoll\n", ++ran);
    }
    g_print("1..%u\n", ran);
    coroutine_pool_drain();
    thread_pool_shutdown();
    if (!ran) {
        g_printerr("stress-drain: BG_STRESS_LOOP names no event loop that runs here\n");
    }
    return ran ? 0 : 1;
}
