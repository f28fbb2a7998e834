/*
 * Counts what is allocated, by hooks of the sanitizers. Without them there is nothing to count by.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "tests/fuzz/fuzz-memory.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#ifndef __has_feature
#define __has_feature(x) 0
#endif

#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)

/* gcc does not install the header that declares these. */
int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void *p, size_t size),
                                              void (*on_free)(const volatile void *p));
size_t __sanitizer_get_allocated_size(const volatile void *p);

static _Atomic int64_t allocated, most;

static void on_malloc(const volatile void *p, size_t size)
{
    int64_t now = atomic_fetch_add(&allocated, (int64_t)size) + (int64_t)size;
    int64_t limit = atomic_load(&most);
    if (limit && now > limit) {
        atomic_store(&most, 0); /* once: what follows allocates as well */
        fprintf(stderr, "too much memory: the last allocation is of %zu bytes\n", size);
        abort();
    }
}

static void on_free(const volatile void *p)
{
    if (p) {
        atomic_fetch_sub(&allocated, (int64_t)__sanitizer_get_allocated_size(p));
    }
}

void fuzz_memory_init(void)
{
    __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
}

void fuzz_memory_limit(size_t limit)
{
    atomic_store(&most, limit ? atomic_load(&allocated) + (int64_t)limit : 0);
}

#else

void fuzz_memory_init(void)
{
}

void fuzz_memory_limit(size_t limit)
{
}

#endif
