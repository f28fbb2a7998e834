/*
 * Coroutine stacks: mapped with a guard page below, reused through a pool of each thread
 * and a shared one behind it.
 *
 * A coroutine may end in another thread than it was created in; then one thread's pool only
 * grows and another's is always empty. So pools exchange batches through the shared pool,
 * and what is too much even for that is unmapped.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "coroutine/coroutine-internal.h"
#include "util/lock.h"
#include "util/log.h"

#define THREAD_POOL_MAX 128
#define POOL_BATCH      32
#define SHARED_POOL_MAX 1024

/*
 * All mappings are alike to the cache, and so would be the lines in use at their upper
 * ends: successive coroutines start at different offsets from there.
 */
#define CACHE_COLOURS     16
#define CACHE_COLOUR_STEP (2 * BG_CACHE_LINE)

static struct {
    BgMutex lock;
    Coroutine *first BG_GUARDED_BY(lock);
    unsigned length BG_GUARDED_BY(lock);
} shared_pool = {.lock = BG_MUTEX_INIT};

static size_t guard_size(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

static Coroutine *map_coroutine(void)
{
    static _Atomic unsigned counter;
    unsigned colour = atomic_fetch_add_explicit(&counter, 1, memory_order_relaxed) % CACHE_COLOURS;
    size_t guard = guard_size();
    size_t size = guard + (size_t)COROUTINE_STACK_SIZE * FIBER_STACK_FACTOR;
    char *mapping = mmap(NULL, size, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);

    if (mapping == MAP_FAILED || mprotect(mapping, guard, PROT_NONE) < 0) {
        bg_fatal("cannot map a coroutine stack of %zu bytes: %s (see also vm.max_map_count)", size,
                 strerror(errno));
    }
    size_t room = (sizeof(Coroutine) + BG_CACHE_LINE - 1) & ~(size_t)(BG_CACHE_LINE - 1);
    Coroutine *co = (Coroutine *)(mapping + size - room - (size_t)colour * CACHE_COLOUR_STEP);

    co->mapping = mapping;
    co->mapping_size = size;
    void *base;
    size_t stack_size;

    coroutine_stack(co, &base, &stack_size);
    co->valgrind_id = fiber_stack_register(base, stack_size);
    return co;
}

static void unmap_coroutine(Coroutine *co)
{
    void *base;
    size_t size;

    coroutine_stack(co, &base, &size);
    fiber_stack_deregister(base, size, co->valgrind_id);
    munmap(co->mapping, co->mapping_size);
}

void coroutine_stack(const Coroutine *co, void **base, size_t *size)
{
    char *lowest = (char *)co->mapping + guard_size();

    *base = lowest;
    *size = (size_t)((char *)co - lowest);
}

static void push(Coroutine **list, Coroutine *co)
{
    co->next = *list;
    *list = co;
}

static Coroutine *pop(Coroutine **list)
{
    Coroutine *co = *list;

    *list = co->next;
    return co;
}

static void refill(CoThread *t)
{
    bg_mutex_lock(&shared_pool.lock);
    while (shared_pool.length > 0 && t->pool.length < POOL_BATCH) {
        push(&t->pool.first, pop(&shared_pool.first));
        shared_pool.length--;
        t->pool.length++;
    }
    bg_mutex_unlock(&shared_pool.lock);
}

/* Move `n` coroutines of the thread's pool to the shared one; what does not fit is unmapped. */
static void give_back(CoThread *t, unsigned n)
{
    Coroutine *excess = NULL;

    bg_mutex_lock(&shared_pool.lock);
    for (; n > 0; n--) {
        Coroutine *co = pop(&t->pool.first);

        t->pool.length--;
        if (shared_pool.length < SHARED_POOL_MAX) {
            push(&shared_pool.first, co);
            shared_pool.length++;
        } else {
            push(&excess, co);
        }
    }
    bg_mutex_unlock(&shared_pool.lock);
    while (excess) {
        unmap_coroutine(pop(&excess));
    }
}

Coroutine *coroutine_alloc(CoThread *t)
{
    if (bg_unlikely(t->pool.length == 0)) {
        refill(t);
        if (t->pool.length == 0) {
            return map_coroutine();
        }
    }
    t->pool.length--;
    return pop(&t->pool.first);
}

void coroutine_release(CoThread *t, Coroutine *co)
{
    push(&t->pool.first, co);
    t->pool.length++;
    if (bg_unlikely(t->pool.length > THREAD_POOL_MAX)) {
        give_back(t, POOL_BATCH);
    }
}

void coroutine_pool_drain(void)
{
    CoThread *t = co_thread();

    while (t->pool.length > 0) {
        t->pool.length--;
        unmap_coroutine(pop(&t->pool.first));
    }
}
