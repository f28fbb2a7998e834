/*
 * The arithmetic of throttling: limits, and the leaky buckets that keep to them. No clock, no lock, no I/O.
 *
 * A bucket fills with what requests take (bytes, or operations) and leaks at the average rate. A request may
 * pass while no bucket that counts it is over its size, and fills them then; so one that is larger than a
 * bucket passes too, and those after it wait for longer. The size is
 *   - without `max`: what the average rate gives in 100 ms;
 *   - with `max`: `max` for burst_s seconds. A burst ends when the bucket is full, and after that the average
 *     rate holds. Where burst_s is more than 1, a second bucket, which leaks at the rate `max` and is as
 *     large as that gives in 100 ms, keeps the burst to `max`.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BLOCK_THROTTLE_H
#define BG_BLOCK_THROTTLE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef enum ThrottleDirection {
    THROTTLE_READ,
    THROTTLE_WRITE,
    THROTTLE_DIRECTIONS,
} ThrottleDirection;

typedef enum ThrottleRateId {
    THROTTLE_BPS_TOTAL,
    THROTTLE_BPS_READ,
    THROTTLE_BPS_WRITE,
    THROTTLE_IOPS_TOTAL,
    THROTTLE_IOPS_READ,
    THROTTLE_IOPS_WRITE,
    THROTTLE_RATES,
} ThrottleRateId;

/* Largest avg, max, max * burst_s and iops_size. */
#define THROTTLE_RATE_MAX UINT64_C(1000000000000000)

typedef struct ThrottleRate {
    uint64_t avg;     /* bytes or operations per second; 0: no limit */
    uint64_t max;     /* the same in a burst; 0: no bursts */
    uint64_t burst_s; /* how long a burst may last, in seconds; 1 by default */
} ThrottleRate;

typedef struct ThrottleLimits {
    ThrottleRate rate[THROTTLE_RATES];
    uint64_t iops_size; /* bytes: longer requests count as several operations; 0: each counts as one */
} ThrottleLimits;

typedef struct ThrottleBucket {
    double level, burst_level; /* bytes or operations */
} ThrottleBucket;

typedef struct Throttle {
    ThrottleLimits limits;
    ThrottleBucket bucket[THROTTLE_RATES];
    int64_t leaked_ns; /* up to when the buckets have leaked */
} Throttle;

/* What is wrong with limits. */
typedef struct ThrottleFault {
    char option[32]; /* "iops-total-max" */
    char cause[96];
} ThrottleFault;

/* Words of the options: "bps-total", ...; the others have "-max" and "-max-length" behind. */
extern const char *const throttle_rate_names[THROTTLE_RATES];

/* No limits. */
void throttle_limits_init(ThrottleLimits *limits);
/* False and *fault where they contradict each other or are out of bounds. */
bool throttle_limits_check(const ThrottleLimits *limits, ThrottleFault *fault);

/* With empty buckets. Any clock that does not go back, in ns. */
void throttle_init(Throttle *t, const ThrottleLimits *limits, int64_t now_ns);
/* How long, in ns, the next request of this direction has to wait; 0: not at all. */
int64_t throttle_wait_ns(Throttle *t, ThrottleDirection direction, int64_t now_ns);
/* A request passes. Levels are those of the last throttle_wait_ns. */
void throttle_account(Throttle *t, ThrottleDirection direction, uint64_t bytes);

#endif /* BG_BLOCK_THROTTLE_H */
