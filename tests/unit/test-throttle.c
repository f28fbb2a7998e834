/*
 * Tests of throttling: the arithmetic by a simulated clock, turns and drained sections with coroutines.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "block/throttle-group.h"

#include <errno.h>

#include "tests/unit/driver-test-util.h"

#define S   INT64_C(1000000000)
#define KIB 1024

/* ---- Arithmetic */

static ThrottleLimits limits_of(ThrottleRateId id, uint64_t avg, uint64_t max, uint64_t burst_s)
{
    ThrottleLimits limits;
    throttle_limits_init(&limits);
    limits.rate[id] = (ThrottleRate){avg, max, burst_s};
    return limits;
}

/* How many requests pass until `end`, by a writer that never stops. */
static unsigned passed_until(Throttle *t, ThrottleDirection direction, uint64_t bytes, int64_t *now,
                             int64_t end)
{
    unsigned n = 0;
    while (*now < end) {
        int64_t wait = throttle_wait_ns(t, direction, *now);
        if (wait == 0) {
            throttle_account(t, direction, bytes);
            n++;
        }
        *now += wait;
    }
    return n;
}

static void assert_near(unsigned n, unsigned want)
{
    g_assert_cmpuint(n, >=, want - 2);
    g_assert_cmpuint(n, <=, want + 2);
}

static void test_rate(void)
{
    ThrottleLimits limits = limits_of(THROTTLE_IOPS_TOTAL, 100, 0, 1);
    int64_t now = 5 * S, start = now;
    Throttle t;
    throttle_init(&t, &limits, now);
    assert_near(passed_until(&t, THROTTLE_WRITE, 512, &now, start + 10 * S), 1000 + 10);
    /* What was not used is not saved up. */
    now += 1000 * S;
    start = now;
    assert_near(passed_until(&t, THROTTLE_READ, 512, &now, start + 10 * S), 1000 + 10);
}

static void test_directions(void)
{
    ThrottleLimits limits = limits_of(THROTTLE_BPS_READ, 1000, 0, 1);
    int64_t now = 0;
    Throttle t;
    throttle_init(&t, &limits, now);
    throttle_account(&t, THROTTLE_WRITE, 1000000);
    g_assert_cmpint(throttle_wait_ns(&t, THROTTLE_READ, now), ==, 0);
    throttle_account(&t, THROTTLE_READ, 2100);
    g_assert_cmpint(throttle_wait_ns(&t, THROTTLE_WRITE, now), ==, 0);
    int64_t wait = throttle_wait_ns(&t, THROTTLE_READ, now);
    g_assert_cmpint(ABS(wait - 2 * S), <=, 10);
    g_assert_cmpint(throttle_wait_ns(&t, THROTTLE_READ, now + wait), ==, 0);
}

static void test_burst(void)
{
    /* 1000 at once, and then the rate. */
    ThrottleLimits limits = limits_of(THROTTLE_IOPS_WRITE, 100, 1000, 1);
    int64_t now = 0;
    Throttle t;
    throttle_init(&t, &limits, now);
    assert_near(passed_until(&t, THROTTLE_WRITE, 1, &now, 1), 1001);
    assert_near(passed_until(&t, THROTTLE_WRITE, 1, &now, 10 * S), 1000);
    /* A burst is kept to its own rate, and is over when the bucket of 10 s of it is full. */
    limits = limits_of(THROTTLE_IOPS_WRITE, 100, 1000, 10);
    now = 0;
    throttle_init(&t, &limits, now);
    assert_near(passed_until(&t, THROTTLE_WRITE, 1, &now, 5 * S), 5000 + 100);
    assert_near(passed_until(&t, THROTTLE_WRITE, 1, &now, 20 * S), 10000 + 20 * 100 - 5100);
    assert_near(passed_until(&t, THROTTLE_WRITE, 1, &now, 30 * S), 1000);
}

static void test_iops_size(void)
{
    ThrottleLimits limits = limits_of(THROTTLE_IOPS_TOTAL, 100, 0, 1);
    limits.iops_size = 4096;
    int64_t now = 0;
    Throttle t;
    throttle_init(&t, &limits, now);
    assert_near(passed_until(&t, THROTTLE_READ, 4 * 4096, &now, 40 * S), 1000 + 3);
    now += 100 * S;
    int64_t end = now + 10 * S;
    assert_near(passed_until(&t, THROTTLE_READ, 100, &now, end), 1000 + 10);
}

static void assert_refused(const ThrottleLimits *limits, const char *option)
{
    ThrottleFault fault;
    g_assert_false(throttle_limits_check(limits, &fault));
    g_assert_cmpstr(fault.option, ==, option);
    g_assert_cmpuint(strlen(fault.cause), <, sizeof fault.cause - 1);
}

static void test_limits(void)
{
    static const struct {
        uint64_t avg, max, burst_s;
        const char *option;
    } bad[] = {
        {THROTTLE_RATE_MAX + 1, 0, 1, "bps-read"},
        {1, THROTTLE_RATE_MAX + 1, 1, "bps-read-max"},
        {0, 1, 1, "bps-read-max"},
        {10, 9, 1, "bps-read-max"},
        {10, 10, 0, "bps-read-max-length"},
        {10, 0, 2, "bps-read-max-length"},
        {10, THROTTLE_RATE_MAX / 2, 3, "bps-read-max-length"},
    };
    ThrottleFault fault;
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        ThrottleLimits limits = limits_of(THROTTLE_BPS_READ, bad[i].avg, bad[i].max, bad[i].burst_s);
        assert_refused(&limits, bad[i].option);
    }
    ThrottleLimits good = limits_of(THROTTLE_BPS_READ, THROTTLE_RATE_MAX / 2, THROTTLE_RATE_MAX / 2, 2);
    good.rate[THROTTLE_BPS_WRITE].avg = 7;
    g_assert_true(throttle_limits_check(&good, &fault));
    good.rate[THROTTLE_BPS_TOTAL].avg = 7;
    assert_refused(&good, "bps-total");
    ThrottleLimits sized = limits_of(THROTTLE_BPS_READ, 1, 0, 1);
    sized.iops_size = 4096;
    assert_refused(&sized, "iops-size");
    sized.rate[THROTTLE_IOPS_READ].avg = 1;
    g_assert_true(throttle_limits_check(&sized, &fault));
}

/* ---- A group of two nodes. Its limit lets one request through, and no second for an hour. */

typedef struct Fixture {
    TestEnv *env;
    ThrottleGroup *group;
    ThrottleLimits one;
    BlockNode *node[2];
    BlockBackend *blk[2];
} Fixture;

static void coroutine_fn open_pair(Fixture *x, TestEnv *env)
{
    *x = (Fixture){.env = env, .one = limits_of(THROTTLE_BPS_TOTAL, 1, 0, 1)};
    g_assert_true(block_graph_add_throttle_group(env->graph, "g", &x->one, NULL));
    x->group = block_graph_find_throttle_group(env->graph, "g", NULL);
    for (int i = 0; i < 2; i++) {
        x->node[i] = test_open(env,
                               "{'driver':'throttle','node-name':'t%d','throttle-group':'g',"
                               "'file':{'driver':'null-co','size':1048576}}",
                               i);
        x->blk[i] = test_backend(env, i ? "b1" : "b0", x->node[i]);
    }
}

static void coroutine_fn close_pair(Fixture *x)
{
    driver_test_close(x->env, x->blk[0]);
    driver_test_close(x->env, x->blk[1]);
}

static unsigned waiting(Fixture *x, int i)
{
    /* The status is what people see, and the only thing that tells. */
    g_autofree char *text = x->node[i]->driver->status(x->node[i]);
    return text ? (unsigned)g_ascii_strtoull(text, NULL, 10) : 0;
}

/* Start one, which either passes or waits. */
static TestRequest *coroutine_fn start(Fixture *x, unsigned thread, int i, BlockOp op)
{
    unsigned before = waiting(x, i);
    TestRequest *req = test_request_start(test_iothread(x->env, thread), x->blk[i], op, 0, 4 * KIB, 1);
    test_wait(test_request_done(req) || waiting(x, i) == before + 1);
    return req;
}

static void let_one_pass(Fixture *x)
{
    g_assert_true(throttle_group_set_limits(x->group, &x->one, NULL));
}

/* Members take turns, and each one's requests come in order, from whatever thread. */
static void coroutine_fn test_turns(TestEnv *env)
{
    Fixture x;
    TestRequest *req[2][4];
    open_pair(&x, env);
    TestRequest *first = start(&x, 0, 0, BLOCK_OP_WRITE);
    g_assert_cmpint(test_request_finish(first), ==, 0);
    for (int i = 0; i < 2; i++) {
        for (unsigned k = 0; k < 4; k++) {
            req[i][k] = start(&x, k, i, BLOCK_OP_WRITE);
            g_assert_cmpuint(waiting(&x, i), ==, k + 1);
        }
    }
    for (unsigned n = 0; n < 8; n++) {
        unsigned other = waiting(&x, 0) == waiting(&x, 1) ? 2 : waiting(&x, 0) > waiting(&x, 1) ? 0 : 1;
        unsigned left[2] = {waiting(&x, 0), waiting(&x, 1)};
        let_one_pass(&x);
        int who = waiting(&x, 0) < left[0] ? 0 : 1;
        g_assert_cmpuint(waiting(&x, who), ==, left[who] - 1);
        g_assert_cmpuint(waiting(&x, !who), ==, left[!who]);
        if (other < 2) {
            g_assert_cmpint(who, ==, other);
        }
        g_assert_cmpint(test_request_finish(req[who][4 - left[who]]), ==, 0);
    }
    close_pair(&x);
}

/* Reads and writes share the total fairly; each kind of request counts; a flush does not wait. */
static void coroutine_fn test_kinds(TestEnv *env)
{
    static const BlockOp ops[] = {BLOCK_OP_READ, BLOCK_OP_WRITE, BLOCK_OP_WRITE_ZEROES, BLOCK_OP_DISCARD};
    Fixture x;
    open_pair(&x, env);
    for (unsigned i = 0; i < G_N_ELEMENTS(ops); i++) {
        let_one_pass(&x);
        g_assert_cmpint(test_request_finish(start(&x, 0, 0, ops[i])), ==, 0);
        TestRequest *second = start(&x, 0, 0, ops[i]);
        g_assert_cmpuint(waiting(&x, 0), ==, 1);
        let_one_pass(&x);
        g_assert_cmpint(test_request_finish(second), ==, 0);
    }
    TestRequest *reads[2] = {start(&x, 0, 0, BLOCK_OP_READ), start(&x, 1, 0, BLOCK_OP_READ)};
    TestRequest *write = start(&x, 2, 0, BLOCK_OP_WRITE);
    let_one_pass(&x);
    let_one_pass(&x);
    g_assert_cmpint(test_request_finish(write), ==, 0);
    g_assert_cmpint(test_request_finish(reads[0]), ==, 0);
    g_assert_cmpuint(waiting(&x, 0), ==, 1);
    g_assert_cmpint(block_backend_co_flush(x.blk[1]), ==, 0);
    let_one_pass(&x);
    g_assert_cmpint(test_request_finish(reads[1]), ==, 0);
    close_pair(&x);
}

/* A drained section ends though requests wait for hours; the limit holds again after it. */
static void coroutine_fn test_drain(TestEnv *env)
{
    Fixture x;
    TestRequest *req[8];
    open_pair(&x, env);
    g_assert_cmpint(test_request_finish(start(&x, 0, 0, BLOCK_OP_WRITE)), ==, 0);
    for (unsigned i = 0; i < 8; i++) {
        req[i] = start(&x, i % TEST_IOTHREADS, i < 6 ? 0 : 1, i % 2 ? BLOCK_OP_READ : BLOCK_OP_WRITE);
    }
    BlockDrain *section = block_drain_co_begin(x.node[0]);
    for (unsigned i = 0; i < 6; i++) {
        g_assert_cmpint(test_request_finish(req[i]), ==, 0);
    }
    g_assert_cmpuint(waiting(&x, 1), ==, 2); /* not covered */
    block_drain_end(section);
    TestRequest *later = start(&x, 0, 0, BLOCK_OP_WRITE);
    g_assert_cmpuint(waiting(&x, 0), ==, 1);
    block_graph_limit_waits(env->graph);
    g_assert_cmpint(test_request_finish(later), ==, 0);
    g_assert_cmpint(test_request_finish(req[6]), ==, 0);
    g_assert_cmpint(test_request_finish(req[7]), ==, 0);
    g_assert_cmpint(test_request_finish(start(&x, 0, 0, BLOCK_OP_WRITE)), ==, 0);
    close_pair(&x);
}

static int coroutine_fn work(void *opaque)
{
    g_autofree void *buf = g_malloc0(512);
    int ret = 0;
    for (int i = 0; i < 200 && ret == 0; i++) {
        ret = i % 2 ? block_backend_co_pread(opaque, 0, 512, buf)
                    : block_backend_co_pwrite(opaque, 0, 512, buf, 0);
    }
    return ret;
}

/* The timer wakes them all, in every thread, while sections come and go. */
static void coroutine_fn test_threads(TestEnv *env)
{
    Fixture x;
    TestTask *tasks[8];
    open_pair(&x, env);
    ThrottleLimits fast = limits_of(THROTTLE_IOPS_TOTAL, 5000, 0, 1);
    g_assert_true(throttle_group_set_limits(x.group, &fast, NULL));
    for (unsigned i = 0; i < 8; i++) {
        tasks[i] = test_spawn(test_iothread(env, i % TEST_IOTHREADS), work, x.blk[i % 2]);
    }
    for (unsigned i = 0; i < 10; i++) {
        block_drain_end(block_drain_co_begin(x.node[i % 2]));
        aio_co_sleep_ns(S / 100);
    }
    for (unsigned i = 0; i < 8; i++) {
        g_assert_cmpint(test_join(tasks[i]), ==, 0);
    }
    close_pair(&x);
}

static void coroutine_fn test_bad(TestEnv *env)
{
    Fixture x;
    open_pair(&x, env);
    GError *err = NULL;
    ThrottleLimits bad = limits_of(THROTTLE_BPS_READ, 5, 4, 1);
    g_assert_false(throttle_group_set_limits(x.group, &bad, &err));
    test_check_error(&err, EINVAL, "'g'", "'limits.bps-read-max'", "less", NULL);
    g_assert_false(block_graph_add_throttle_group(env->graph, "g", &x.one, &err));
    test_check_error(&err, EEXIST, "'g'", NULL);
    err = test_open_error(env, 0, "{'driver':'throttle','node-name':'n','file':'t0'}");
    test_check_error(&err, EINVAL, "'throttle-group'", "required", NULL);
    err = test_open_error(env, 0, "{'driver':'throttle','node-name':'n','file':'t0','throttle-group':'h'}");
    test_check_error(&err, ENOENT, "'n'", "'throttle-group'", "'h'", NULL);
    close_pair(&x);
}

static void register_tests(void)
{
    g_test_add_func("/throttle/rate", test_rate);
    g_test_add_func("/throttle/directions", test_directions);
    g_test_add_func("/throttle/burst", test_burst);
    g_test_add_func("/throttle/iops-size", test_iops_size);
    g_test_add_func("/throttle/limits", test_limits);
    test_add_co("throttle/turns", test_turns);
    test_add_co("throttle/kinds", test_kinds);
    test_add_co("throttle/drain", test_drain);
    test_add_co("throttle/threads", test_threads);
    test_add_co("throttle/bad", test_bad);
}

int main(int argc, char **argv)
{
    return driver_test_main(argc, argv, register_tests);
}
