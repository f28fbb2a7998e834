/*
 * Throttle groups: whose turn it is.
 *
 * A request:
 *
 *   ARRIVED --nobody in the group waits, and the buckets have room--> PASSED
 *           --its member is released--------------------------------> PASSED
 *           --else--> WAITING --its turn, and the buckets have room-> PASSED
 *                             --its member is released--------------> PASSED
 *
 * Turns: in each direction the members take turns, and a member's own requests come in the order in which
 * they arrived. Where both directions have room, they take turns too, as they may share a bucket.
 *
 * Invariants, under the lock:
 *   - while a request waits, the timer is armed for no later than the moment when the first may pass;
 *   - a released member has no request that waits;
 *   - group->waiting is the sum of the members' queues.
 *
 * The timer runs in the main thread. Who lets a request pass, there or in any other thread, counts it, takes
 * it out of its queue, and wakes it after the lock is dropped; it goes on in its own context.
 *
 * Lock order: the timer's lock is taken under the group's.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "block/throttle-group.h"

#include <errno.h>

#include "aio/aio.h"
#include "block/block-internal.h"
#include "util/error.h"
#include "util/text.h"

/* A timer that fires this much too late is not moved for that. */
#define REARM_SLACK_NS (50 * 1000)

typedef struct Waiter { /* on the stack of its coroutine */
    Coroutine *co;
    uint64_t bytes;
    GList entry; /* of its member's queue, or of those that were let pass */
} Waiter;

struct ThrottleMember {
    ThrottleGroup *group;
    unsigned released;                 /* ThrottleRelease; with the group's lock, as the queues */
    GQueue queue[THROTTLE_DIRECTIONS]; /* Waiter */
};

struct ThrottleGroup {
    char *id;
    AioTimer timer;
    BgMutex lock;
    Throttle throttle BG_GUARDED_BY(lock);
    GPtrArray *members BG_GUARDED_BY(lock);                 /* ThrottleMember, borrowed */
    unsigned turn[THROTTLE_DIRECTIONS] BG_GUARDED_BY(lock); /* index of the member that is next */
    unsigned waiting[THROTTLE_DIRECTIONS] BG_GUARDED_BY(lock);
    ThrottleDirection first BG_GUARDED_BY(lock); /* that is asked first */
    int64_t armed_ns BG_GUARDED_BY(lock);        /* INT64_MAX: the timer is not armed */
};

/*
 * Wake all but `self`; whether that was among them. Not under the lock: in the own thread the coroutines may
 * run at once.
 */
static bool wake_others(GQueue *passed, const Waiter *self)
{
    bool found = false;
    for (GList *l; (l = g_queue_pop_head_link(passed));) {
        Waiter *w = l->data; /* gone once its coroutine runs */
        if (w == self) {
            found = true;
        } else {
            aio_co_wake(w->co);
        }
    }
    return found;
}

static void wake_all(GQueue *passed)
{
    wake_others(passed, NULL);
}

/* ---- Turns; the lock is held */

static Waiter *pop_locked(ThrottleGroup *group, ThrottleMember *member, ThrottleDirection direction)
    BG_REQUIRES(group->lock)
{
    Waiter *w = g_queue_pop_head_link(&member->queue[direction])->data;
    throttle_account(&group->throttle, direction, w->bytes);
    group->waiting[direction]--;
    return w;
}

/* The next in turn; there is one. */
static Waiter *next_locked(ThrottleGroup *group, ThrottleDirection direction) BG_REQUIRES(group->lock)
{
    unsigned n = group->members->len;
    for (unsigned i = 0; i < n; i++) {
        unsigned at = (group->turn[direction] + i) % n;
        ThrottleMember *member = group->members->pdata[at];
        if (member->queue[direction].head) {
            group->turn[direction] = (at + 1) % n;
            return pop_locked(group, member, direction);
        }
    }
    g_assert_not_reached();
}

/* One request that may pass now; NULL: none, and *wait_ns says for how long. */
static Waiter *pass_one_locked(ThrottleGroup *group, int64_t now_ns, int64_t *wait_ns)
    BG_REQUIRES(group->lock)
{
    *wait_ns = INT64_MAX;
    for (int i = 0; i < THROTTLE_DIRECTIONS; i++) {
        ThrottleDirection direction = (group->first + (unsigned)i) % THROTTLE_DIRECTIONS;
        if (group->waiting[direction] == 0) {
            continue;
        }
        int64_t wait = throttle_wait_ns(&group->throttle, direction, now_ns);
        if (wait == 0) {
            group->first = (direction + 1) % THROTTLE_DIRECTIONS;
            return next_locked(group, direction);
        }
        *wait_ns = MIN(*wait_ns, wait);
    }
    return NULL;
}

static void arm_locked(ThrottleGroup *group, int64_t expire_ns) BG_REQUIRES(group->lock)
{
    if (expire_ns == INT64_MAX) {
        if (group->armed_ns != INT64_MAX) {
            aio_timer_del(&group->timer);
            group->armed_ns = INT64_MAX;
        }
    } else if (group->armed_ns == INT64_MAX || expire_ns < group->armed_ns - REARM_SLACK_NS) {
        /* One that fires too early looks again. */
        aio_timer_mod(&group->timer, expire_ns);
        group->armed_ns = expire_ns;
    }
}

/* Let pass who may, into `passed`, and arm the timer for the next. */
static void dispatch_locked(ThrottleGroup *group, GQueue *passed) BG_REQUIRES(group->lock)
{
    int64_t now_ns = aio_clock_ns(), wait_ns;
    Waiter *w;
    while ((w = pass_one_locked(group, now_ns, &wait_ns))) {
        g_queue_push_tail_link(passed, &w->entry);
    }
    arm_locked(group, wait_ns == INT64_MAX ? INT64_MAX : now_ns + wait_ns);
}

static void timer_fired(void *opaque)
{
    ThrottleGroup *group = opaque;
    GQueue passed = G_QUEUE_INIT;
    bg_mutex_lock(&group->lock);
    group->armed_ns = INT64_MAX;
    dispatch_locked(group, &passed);
    bg_mutex_unlock(&group->lock);
    wake_all(&passed);
}

/* ---- Requests */

static bool passes_at_once_locked(ThrottleGroup *group, ThrottleMember *member, ThrottleDirection direction)
    BG_REQUIRES(group->lock)
{
    /* The buckets leak in any case, so that what is counted is counted as of now. */
    bool has_room = throttle_wait_ns(&group->throttle, direction, aio_clock_ns()) == 0;
    bool is_first = group->waiting[THROTTLE_READ] + group->waiting[THROTTLE_WRITE] == 0;
    return member->released || (has_room && is_first);
}

static void enqueue_locked(ThrottleGroup *group, ThrottleMember *member, ThrottleDirection direction,
                           Waiter *w) BG_REQUIRES(group->lock)
{
    g_queue_push_tail_link(&member->queue[direction], &w->entry);
    group->waiting[direction]++;
}

void coroutine_fn throttle_member_co_wait(ThrottleMember *member, ThrottleDirection direction, uint64_t bytes)
{
    ThrottleGroup *group = member->group;
    Waiter self = {.co = coroutine_self(), .bytes = bytes, .entry.data = &self};
    GQueue passed = G_QUEUE_INIT;
    bg_mutex_lock(&group->lock);
    if (passes_at_once_locked(group, member, direction)) {
        throttle_account(&group->throttle, direction, bytes);
        bg_mutex_unlock(&group->lock);
        return;
    }
    enqueue_locked(group, member, direction, &self);
    dispatch_locked(group, &passed);
    bg_mutex_unlock(&group->lock);
    if (!wake_others(&passed, &self)) {
        coroutine_yield();
    }
}

/* ---- Members */

ThrottleMember *throttle_group_join(ThrottleGroup *group)
{
    bg_assert_main_thread();
    ThrottleMember *member = g_new0(ThrottleMember, 1);
    member->group = group;
    for (int i = 0; i < THROTTLE_DIRECTIONS; i++) {
        g_queue_init(&member->queue[i]);
    }
    bg_mutex_lock(&group->lock);
    g_ptr_array_add(group->members, member);
    bg_mutex_unlock(&group->lock);
    return member;
}

/* Under the lock. */
static unsigned waiting_of(const ThrottleMember *member)
{
    return member->queue[THROTTLE_READ].length + member->queue[THROTTLE_WRITE].length;
}

static void remove_locked(ThrottleGroup *group, ThrottleMember *member) BG_REQUIRES(group->lock)
{
    guint at;
    bool found = g_ptr_array_find(group->members, member, &at);
    g_assert(found && waiting_of(member) == 0);
    g_ptr_array_remove_index(group->members, at);
    for (int i = 0; i < THROTTLE_DIRECTIONS; i++) {
        group->turn[i] -= group->turn[i] > at ? 1 : 0;
    }
}

void throttle_member_leave(ThrottleMember *member)
{
    ThrottleGroup *group = member->group;
    bg_assert_main_thread();
    bg_mutex_lock(&group->lock);
    remove_locked(group, member);
    bg_mutex_unlock(&group->lock);
    g_free(member);
}

void throttle_member_release(ThrottleMember *member, ThrottleRelease reason)
{
    ThrottleGroup *group = member->group;
    GQueue passed = G_QUEUE_INIT;
    bg_assert_main_thread();
    bg_mutex_lock(&group->lock);
    member->released |= reason;
    throttle_wait_ns(&group->throttle, THROTTLE_READ, aio_clock_ns()); /* the buckets leak up to now */
    for (int i = 0; i < THROTTLE_DIRECTIONS; i++) {
        while (member->queue[i].head) {
            g_queue_push_tail_link(&passed, &pop_locked(group, member, i)->entry);
        }
    }
    dispatch_locked(group, &passed); /* what waits now may be something else, or nothing */
    bg_mutex_unlock(&group->lock);
    wake_all(&passed);
}

void throttle_member_hold(ThrottleMember *member, ThrottleRelease reason)
{
    bg_assert_main_thread();
    bg_mutex_lock(&member->group->lock);
    member->released &= ~(unsigned)reason;
    bg_mutex_unlock(&member->group->lock);
}

ThrottleGroup *throttle_member_group(const ThrottleMember *member)
{
    return member->group;
}

unsigned throttle_member_waiting(ThrottleMember *member)
{
    bg_mutex_lock(&member->group->lock);
    unsigned n = waiting_of(member);
    bg_mutex_unlock(&member->group->lock);
    return n;
}

/* ---- Groups */

static bool check_limits(const char *id, const ThrottleLimits *limits, GError **errp)
{
    ThrottleFault fault;
    if (!throttle_limits_check(limits, &fault)) {
        bg_error_set(errp, EINVAL, "throttle group '%s': option 'limits.%s': %s", id, fault.option,
                     fault.cause);
        return false;
    }
    return true;
}

bool block_graph_add_throttle_group(BlockGraph *graph, const char *id, const ThrottleLimits *limits,
                                    GError **errp)
{
    if (!check_limits(id, limits, errp) || !block_graph_id_is_new(graph, id, errp)) {
        return false;
    }
    ThrottleGroup *group = g_new0(ThrottleGroup, 1);
    group->id = g_strdup(id);
    group->members = g_ptr_array_new();
    group->armed_ns = INT64_MAX;
    bg_mutex_init(&group->lock);
    aio_timer_init(&group->timer, graph->main_context, timer_fired, group);
    throttle_init(&group->throttle, limits, aio_clock_ns());
    g_hash_table_insert(graph->throttle_groups, group->id, group);
    return true;
}

void throttle_group_free(gpointer data)
{
    ThrottleGroup *group = data;
    g_assert(group->members->len == 0);
    aio_timer_del(&group->timer);
    bg_mutex_destroy(&group->lock);
    g_ptr_array_unref(group->members);
    g_free(group->id);
    g_free(group);
}

ThrottleGroup *block_graph_find_throttle_group(BlockGraph *graph, const char *id, GError **errp)
{
    return block_graph_find_object(graph->throttle_groups, "throttle-group", id, errp);
}

bool throttle_group_set_limits(ThrottleGroup *group, const ThrottleLimits *limits, GError **errp)
{
    GQueue passed = G_QUEUE_INIT;
    bg_assert_main_thread();
    if (!check_limits(group->id, limits, errp)) {
        return false;
    }
    bg_mutex_lock(&group->lock);
    throttle_init(&group->throttle, limits, aio_clock_ns());
    dispatch_locked(group, &passed);
    bg_mutex_unlock(&group->lock);
    wake_all(&passed);
    return true;
}

const char *throttle_group_id(const ThrottleGroup *group)
{
    return group->id;
}
