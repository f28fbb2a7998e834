/*
 * Compiler attributes: coroutine marks, Clang thread-safety analysis, branch hints.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_UTIL_COMPILER_H
#define BG_UTIL_COMPILER_H

#include <stdbool.h>
#include <stddef.h>

/* Mark of a function that may yield: call it only from inside a coroutine. */
#if defined(__clang__)
#define coroutine_fn __attribute__((annotate("coroutine_fn")))
#else
#define coroutine_fn
#endif

#if defined(__clang__)
#define BG_TSA(x) __attribute__((x))
#else
#define BG_TSA(x)
#endif

#define BG_CAPABILITY(name)  BG_TSA(capability(name))
#define BG_SCOPED_CAPABILITY BG_TSA(scoped_lockable)
/*
 * On a member of a struct that names another member: in C clang resolves that only from version 20 on, with
 * -fexperimental-late-parse-attributes; elsewhere it is for the reader.
 */
#if defined(__clang__) && __clang_major__ >= 20 && defined(BG_LATE_PARSED_ATTRIBUTES)
#define BG_GUARDED_BY(lock)    BG_TSA(guarded_by(lock))
#define BG_PT_GUARDED_BY(lock) BG_TSA(pt_guarded_by(lock))
#else
#define BG_GUARDED_BY(lock)
#define BG_PT_GUARDED_BY(lock)
#endif
#define BG_ACQUIRE(...)     BG_TSA(acquire_capability(__VA_ARGS__))
#define BG_TRY_ACQUIRE(...) BG_TSA(try_acquire_capability(__VA_ARGS__))
#define BG_RELEASE(...)     BG_TSA(release_capability(__VA_ARGS__))
#define BG_REQUIRES(...)    BG_TSA(requires_capability(__VA_ARGS__))
#define BG_EXCLUDES(...)    BG_TSA(locks_excluded(__VA_ARGS__))
#define BG_NO_TSA           BG_TSA(no_thread_safety_analysis)

#define bg_likely(x)   __builtin_expect(!!(x), 1)
#define bg_unlikely(x) __builtin_expect(!!(x), 0)

/* In each turn of a loop that waits for another CPU. */
static inline void bg_cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

#define BG_CACHE_LINE    64
#define BG_CACHE_ALIGNED __attribute__((aligned(BG_CACHE_LINE)))

#define bg_container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

/* True under the named sanitizer, with gcc and with clang. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define BG_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define BG_TSAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define BG_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#define BG_TSAN 1
#endif

#endif /* BG_UTIL_COMPILER_H */
