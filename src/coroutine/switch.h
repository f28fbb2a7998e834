/*
 * Stack switching: the saved registers of a suspended flow of control.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BG_COROUTINE_SWITCH_H
#define BG_COROUTINE_SWITCH_H

#include <stddef.h>

#if (defined(__x86_64__) && defined(__LP64__)) || defined(__aarch64__)
#define CO_CONTEXT_ASM 1
#endif
/* Build with -DBG_COROUTINE_UCONTEXT to test the portable way where assembly exists. */
#ifdef BG_COROUTINE_UCONTEXT
#undef CO_CONTEXT_ASM
#endif

#ifndef CO_CONTEXT_ASM
#include <ucontext.h>
#endif

/* In assembly: the stack pointer below which the callee-saved registers lie. */
typedef struct CoContext {
#ifdef CO_CONTEXT_ASM
    void *sp;
#else
    ucontext_t uc;
#endif
} CoContext;

typedef void CoContextEntry(void *arg);

/* The next switch to `ctx` calls entry(arg) on the stack [base, base + size). entry never returns. */
void co_context_init(CoContext *ctx, void *base, size_t size, CoContextEntry *entry, void *arg);

/* Save the caller in *from and go on in *to; returns when something switches back to *from. */
void co_context_switch(CoContext *from, CoContext *to);

#endif /* BG_COROUTINE_SWITCH_H */
