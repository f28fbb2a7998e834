/*
 * Leaky buckets.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "block/throttle.h"

#include <inttypes.h>

#define NS_PER_S   1e9
/* The room of a bucket without bursts: so many seconds of its rate. */
#define SHORT_S    0.1
/* Longer waits are looked at again then. */
#define WAIT_MAX_S 1e9

const char *const throttle_rate_names[THROTTLE_RATES] = {
    [THROTTLE_BPS_TOTAL] = "bps-total", [THROTTLE_BPS_READ] = "bps-read",
    [THROTTLE_BPS_WRITE] = "bps-write", [THROTTLE_IOPS_TOTAL] = "iops-total",
    [THROTTLE_IOPS_READ] = "iops-read", [THROTTLE_IOPS_WRITE] = "iops-write",
};

/* ---- Limits */

void throttle_limits_init(ThrottleLimits *limits)
{
    *limits = (ThrottleLimits){0};
    for (int i = 0; i < THROTTLE_RATES; i++) {
        limits->rate[i].burst_s = 1;
    }
}

static bool G_GNUC_PRINTF(4, 5)
    refuse(ThrottleFault *fault, const char *name, const char *suffix, const char *cause, ...)
{
    va_list ap;
    va_start(ap, cause);
    g_snprintf(fault->option, sizeof fault->option, "%s%s", name, suffix);
    g_vsnprintf(fault->cause, sizeof fault->cause, cause, ap);
    va_end(ap);
    return false;
}

static bool check_rate(const ThrottleRate *r, const char *name, ThrottleFault *fault)
{
    if (r->avg > THROTTLE_RATE_MAX) {
        return refuse(fault, name, "", "is more than %" PRIu64, THROTTLE_RATE_MAX);
    }
    if (r->max > THROTTLE_RATE_MAX) {
        return refuse(fault, name, "-max", "is more than %" PRIu64, THROTTLE_RATE_MAX);
    }
    if (r->max && !r->avg) {
        return refuse(fault, name, "-max", "needs %s", name);
    }
    if (r->max && r->max < r->avg) {
        return refuse(fault, name, "-max", "is less than %s", name);
    }
    if (r->burst_s == 0) {
        return refuse(fault, name, "-max-length", "is 0: a burst lasts for a second at least");
    }
    if (r->burst_s > 1 && !r->max) {
        return refuse(fault, name, "-max-length", "needs %s-max", name);
    }
    if (r->max && r->burst_s > THROTTLE_RATE_MAX / r->max) {
        return refuse(fault, name, "-max-length", "times %s-max is more than %" PRIu64, name,
                      THROTTLE_RATE_MAX);
    }
    return true;
}

/* One limit on reads and writes together, or one on each. */
static bool check_total(const ThrottleLimits *limits, ThrottleRateId total, ThrottleFault *fault)
{
    for (ThrottleRateId id = total + 1; id <= total + 2; id++) {
        if (limits->rate[total].avg && limits->rate[id].avg) {
            return refuse(fault, throttle_rate_names[total], "", "cannot be given with %s",
                          throttle_rate_names[id]);
        }
    }
    return true;
}

bool throttle_limits_check(const ThrottleLimits *limits, ThrottleFault *fault)
{
    for (int i = 0; i < THROTTLE_RATES; i++) {
        if (!check_rate(&limits->rate[i], throttle_rate_names[i], fault)) {
            return false;
        }
    }
    if (!check_total(limits, THROTTLE_BPS_TOTAL, fault) || !check_total(limits, THROTTLE_IOPS_TOTAL, fault)) {
        return false;
    }
    if (limits->iops_size > THROTTLE_RATE_MAX) {
        return refuse(fault, "iops-size", "", "is more than %" PRIu64, THROTTLE_RATE_MAX);
    }
    if (limits->iops_size && !limits->rate[THROTTLE_IOPS_TOTAL].avg &&
        !limits->rate[THROTTLE_IOPS_READ].avg && !limits->rate[THROTTLE_IOPS_WRITE].avg) {
        return refuse(fault, "iops-size", "", "needs iops-total, iops-read or iops-write");
    }
    return true;
}

/* ---- Buckets */

void throttle_init(Throttle *t, const ThrottleLimits *limits, int64_t now_ns)
{
    *t = (Throttle){.limits = *limits, .leaked_ns = now_ns};
}

static void leak(Throttle *t, int64_t now_ns)
{
    if (now_ns <= t->leaked_ns) {
        return;
    }
    double seconds = (double)(now_ns - t->leaked_ns) / NS_PER_S;
    t->leaked_ns = now_ns;
    for (int i = 0; i < THROTTLE_RATES; i++) {
        const ThrottleRate *r = &t->limits.rate[i];
        ThrottleBucket *b = &t->bucket[i];
        b->level = MAX(b->level - (double)r->avg * seconds, 0);
        b->burst_level = MAX(b->burst_level - (double)r->max * seconds, 0);
    }
}

/* Seconds until `excess` has leaked. */
static double seconds_over(double excess, uint64_t rate)
{
    return excess > 0 ? excess / (double)rate : 0;
}

static double bucket_wait(const ThrottleRate *r, const ThrottleBucket *b)
{
    if (!r->avg) {
        return 0;
    }
    double size = r->max ? (double)r->max * (double)r->burst_s : (double)r->avg * SHORT_S;
    double wait = seconds_over(b->level - size, r->avg), burst_wait = 0;
    if (r->burst_s > 1) {
        burst_wait = seconds_over(b->burst_level - (double)r->max * SHORT_S, r->max);
    }
    return MAX(wait, burst_wait);
}

static bool counts(ThrottleRateId id, ThrottleDirection direction)
{
    switch (id) {
    case THROTTLE_BPS_READ:
    case THROTTLE_IOPS_READ:
        return direction == THROTTLE_READ;
    case THROTTLE_BPS_WRITE:
    case THROTTLE_IOPS_WRITE:
        return direction == THROTTLE_WRITE;
    default:
        return true;
    }
}

int64_t throttle_wait_ns(Throttle *t, ThrottleDirection direction, int64_t now_ns)
{
    double wait = 0;
    leak(t, now_ns);
    for (ThrottleRateId id = 0; id < THROTTLE_RATES; id++) {
        if (counts(id, direction)) {
            double one = bucket_wait(&t->limits.rate[id], &t->bucket[id]);
            wait = MAX(wait, one);
        }
    }
    return wait > 0 ? 1 + (int64_t)(MIN(wait, WAIT_MAX_S) * NS_PER_S) : 0;
}

void throttle_account(Throttle *t, ThrottleDirection direction, uint64_t bytes)
{
    uint64_t unit = t->limits.iops_size;
    double operations = unit && bytes > unit ? (double)bytes / (double)unit : 1;
    for (ThrottleRateId id = 0; id < THROTTLE_RATES; id++) {
        /* What has no limit is not counted: nothing would ever leak out. */
        if (counts(id, direction) && t->limits.rate[id].avg) {
            double n = id >= THROTTLE_IOPS_TOTAL ? operations : (double)bytes;
            t->bucket[id].level += n;
            t->bucket[id].burst_level += t->limits.rate[id].max ? n : 0;
        }
    }
}
