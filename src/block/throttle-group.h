/*
 * Throttle groups: limits that several nodes share. A group is an object of the graph; a node of the driver
 * throttle is its member.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BLOCK_THROTTLE_GROUP_H
#define BG_BLOCK_THROTTLE_GROUP_H

#include "block/throttle.h"
#include "block/types.h"

typedef struct ThrottleGroup ThrottleGroup;
typedef struct ThrottleMember ThrottleMember;

/* A group named `id`, which lives until block_graph_free(). False and *errp: bad limits, or there is such an
 * object already. Main thread. */
bool block_graph_add_throttle_group(BlockGraph *graph, const char *id, const ThrottleLimits *limits,
                                    GError **errp);
/* Borrowed; NULL and *errp, with the nearest id, where there is none. Main thread. */
ThrottleGroup *block_graph_find_throttle_group(BlockGraph *graph, const char *id, GError **errp);

/*
 * New limits from now on, also for the requests that wait; what was used before is forgotten. False and
 * *errp, which names group and option, with the old limits in force. Main thread.
 */
bool throttle_group_set_limits(ThrottleGroup *group, const ThrottleLimits *limits, GError **errp);
const char *throttle_group_id(const ThrottleGroup *group);

/* Main thread. */
ThrottleMember *throttle_group_join(ThrottleGroup *group);
/* No request waits any more. Frees it. Main thread. */
void throttle_member_leave(ThrottleMember *member);

/* Wait for the request's turn, and count it. Any thread with an AioContext. */
void coroutine_fn throttle_member_co_wait(ThrottleMember *member, ThrottleDirection direction,
                                          uint64_t bytes);

/*
 * While there is a reason, requests of the member pass at once, those that wait as well; they still count,
 * so the others of the group wait for longer. Main thread.
 */
typedef enum ThrottleRelease {
    THROTTLE_DRAINED = 1 << 0, /* a drained section */
    THROTTLE_ENDING = 1 << 1,  /* the daemon ends */
} ThrottleRelease;
void throttle_member_release(ThrottleMember *member, ThrottleRelease reason);
void throttle_member_hold(ThrottleMember *member, ThrottleRelease reason);

ThrottleGroup *throttle_member_group(const ThrottleMember *member);
/* Requests that wait. Any thread. */
unsigned throttle_member_waiting(ThrottleMember *member);

#endif /* BG_BLOCK_THROTTLE_GROUP_H */
