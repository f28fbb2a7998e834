/*
 * RequestTracker: keeps overlapping writes of one node in order where it matters.
 *
 * A read-modify-write and a truncate are "serialising": no write that overlaps them may run at the same
 * time. All other writes take the fast way: one atomic counter, no lock, no list.
 *
 *   mode of the node     a plain write                      a serialising write
 *   FAST (serialising    counts itself in `fast`            raises `serialising`, enters the list, waits for
 *         == 0)                                             fast == 0, then for earlier overlapping entries
 *   SLOW (serialising    enters the list, waits for         enters the list, waits for earlier overlapping
 *         > 0)           earlier overlapping serialising    entries
 *                        entries
 *
 * Invariants: an entry waits only for earlier entries, so there is no cycle; while `serialising` > 0 no new
 * write becomes fast; a serialising entry runs only after `fast` was seen 0.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_BLOCK_SERIALISE_H
#define BG_BLOCK_SERIALISE_H

#include "block/types.h"

typedef struct RequestTracker RequestTracker;
typedef struct TrackedRequest TrackedRequest;

/* Lives on the stack of the request's coroutine from begin to end. */
struct TrackedRequest {
    int64_t offset, end; /* bytes; end exclusive */
    bool serialising, listed;
    TrackedRequest *prev, *next; /* guarded by the tracker's lock, as all below */
    struct TrackedWaiter *waiters;
};

RequestTracker *request_tracker_new(void);
void request_tracker_free(RequestTracker *t);

/* Wait until the write [offset, offset + bytes) may run. Coroutine, any thread. */
void coroutine_fn request_tracker_begin(RequestTracker *t, TrackedRequest *req, int64_t offset, int64_t bytes,
                                        bool serialising);
/* The write has ended: wake who waits for it. Any thread. */
void request_tracker_end(RequestTracker *t, TrackedRequest *req);

#endif /* BG_BLOCK_SERIALISE_H */
