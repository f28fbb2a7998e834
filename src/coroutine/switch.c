/*
 * Stack switching in assembly for x86-64 and AArch64, by swapcontext(3) elsewhere.
 *
 * A switch is an ordinary call for the compiler, so only what the ABI makes a callee
 * save has to be kept: those registers and the floating-point control words. It jumps to
 * the saved address instead of returning to it, because the CPU's return predictor
 * would always be wrong about a different stack.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "config.h"

#include "coroutine/switch.h"

#include <stdint.h>
#include <string.h>

#ifdef CO_CONTEXT_ASM

/* The first switch to a stack arrives here: calls entry(arg), both in callee-saved registers. */
void co_context_start(void);

#if defined(__x86_64__)

/* What co_context_switch keeps on the stack, lowest address first. */
typedef struct SavedFrame {
    uint32_t mxcsr;
    uint16_t x87_control;
    uint16_t unused;
    uint64_t r15, r14, r13, r12, rbx, rbp;
    uint64_t rip;
} SavedFrame;

__asm__(".text\n"
        ".p2align 4\n"
        ".globl co_context_switch\n"
        ".type co_context_switch, @function\n"
        "co_context_switch:\n"
        ".cfi_startproc\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    subq $8, %rsp\n"
        "    stmxcsr (%rsp)\n"
        "    fnstcw 4(%rsp)\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsp, %rdx\n"
        "    movq (%rsi), %rsp\n"
        "    movl (%rsp), %eax\n" /* loading the control words is slow, and they hardly ever differ */
        "    cmpl %eax, (%rdx)\n"
        "    jne 2f\n"
        "    movzwl 4(%rsp), %eax\n"
        "    cmpw %ax, 4(%rdx)\n"
        "    jne 2f\n"
        "1:\n"
        "    addq $8, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    popq %rcx\n"
        "    jmpq *%rcx\n"
        "2:\n"
        "    ldmxcsr (%rsp)\n"
        "    fldcw 4(%rsp)\n"
        "    jmp 1b\n"
        ".cfi_endproc\n"
        ".size co_context_switch, . - co_context_switch\n"
        ".p2align 4\n"
        ".globl co_context_start\n"
        ".type co_context_start, @function\n"
        "co_context_start:\n"
        ".cfi_startproc\n"
        ".cfi_undefined rip\n" /* backtraces end here */
        "    endbr64\n"
        "    movq %r12, %rdi\n"
        "    callq *%rbx\n"
        "    ud2\n"
        ".cfi_endproc\n"
        ".size co_context_start, . - co_context_start\n");

static void init_frame(SavedFrame *frame, CoContextEntry *entry, void *arg)
{
    __asm__("stmxcsr %0" : "=m"(frame->mxcsr));
    __asm__("fnstcw %0" : "=m"(frame->x87_control));
    frame->rbx = (uintptr_t)entry;
    frame->r12 = (uintptr_t)arg;
    frame->rip = (uintptr_t)co_context_start;
}

#elif defined(__aarch64__)

typedef struct SavedFrame {
    uint64_t x19, x20, x21, x22, x23, x24, x25, x26, x27, x28, fp, lr;
    uint64_t d8_to_d15[8];
    uint64_t fpcr;
    uint64_t unused;
} SavedFrame;

__asm__(".text\n"
        ".p2align 4\n"
        ".globl co_context_switch\n"
        ".type co_context_switch, %function\n"
        "co_context_switch:\n"
        ".cfi_startproc\n"
        "    sub sp, sp, #176\n"
        "    stp x19, x20, [sp, #0]\n"
        "    stp x21, x22, [sp, #16]\n"
        "    stp x23, x24, [sp, #32]\n"
        "    stp x25, x26, [sp, #48]\n"
        "    stp x27, x28, [sp, #64]\n"
        "    stp x29, x30, [sp, #80]\n"
        "    stp d8, d9, [sp, #96]\n"
        "    stp d10, d11, [sp, #112]\n"
        "    stp d12, d13, [sp, #128]\n"
        "    stp d14, d15, [sp, #144]\n"
        "    mrs x9, fpcr\n"
        "    str x9, [sp, #160]\n"
        "    mov x10, sp\n"
        "    str x10, [x0]\n"
        "    ldr x10, [x1]\n"
        "    mov sp, x10\n"
        "    ldp x19, x20, [sp, #0]\n"
        "    ldp x21, x22, [sp, #16]\n"
        "    ldp x23, x24, [sp, #32]\n"
        "    ldp x25, x26, [sp, #48]\n"
        "    ldp x27, x28, [sp, #64]\n"
        "    ldp x29, x30, [sp, #80]\n"
        "    ldp d8, d9, [sp, #96]\n"
        "    ldp d10, d11, [sp, #112]\n"
        "    ldp d12, d13, [sp, #128]\n"
        "    ldp d14, d15, [sp, #144]\n"
        "    ldr x11, [sp, #160]\n"
        "    cmp x9, x11\n" /* writing fpcr is slow and it hardly ever differs */
        "    b.eq 1f\n"
        "    msr fpcr, x11\n"
        "1:\n"
        "    add sp, sp, #176\n"
        "    br x30\n"
        ".cfi_endproc\n"
        ".size co_context_switch, . - co_context_switch\n"
        ".p2align 4\n"
        ".globl co_context_start\n"
        ".type co_context_start, %function\n"
        "co_context_start:\n"
        ".cfi_startproc\n"
        ".cfi_undefined x30\n" /* backtraces end here */
        "    hint #36\n"       /* bti j: a legal target of the jump above */
        "    mov x0, x20\n"
        "    blr x19\n"
        "    brk #1\n"
        ".cfi_endproc\n"
        ".size co_context_start, . - co_context_start\n");

static void init_frame(SavedFrame *frame, CoContextEntry *entry, void *arg)
{
    __asm__("mrs %0, fpcr" : "=r"(frame->fpcr));
    frame->x19 = (uintptr_t)entry;
    frame->x20 = (uintptr_t)arg;
    frame->lr = (uintptr_t)co_context_start;
}

#endif

void co_context_init(CoContext *ctx, void *base, size_t size, CoContextEntry *entry, void *arg)
{
    uintptr_t top = ((uintptr_t)base + size) & ~(uintptr_t)15;
    SavedFrame *frame = (SavedFrame *)(top - sizeof(SavedFrame));

    /* co_context_start finds the stack aligned to 16 bytes: both ABIs want that before a call. */
    memset(frame, 0, sizeof(*frame));
    init_frame(frame, entry, arg);
    ctx->sp = frame;
}

#else /* !CO_CONTEXT_ASM */

/* makecontext(3) passes only ints. */
static void uc_start(unsigned entry_hi, unsigned entry_lo, unsigned arg_hi, unsigned arg_lo)
{
    CoContextEntry *entry = (CoContextEntry *)(uintptr_t)(((uint64_t)entry_hi << 32) | entry_lo);
    void *arg = (void *)(uintptr_t)(((uint64_t)arg_hi << 32) | arg_lo);

    entry(arg);
}

void co_context_init(CoContext *ctx, void *base, size_t size, CoContextEntry *entry, void *arg)
{
    uint64_t e = (uintptr_t)entry, a = (uintptr_t)arg;

    getcontext(&ctx->uc);
    ctx->uc.uc_stack.ss_sp = base;
    ctx->uc.uc_stack.ss_size = size;
    ctx->uc.uc_link = NULL;
    makecontext(&ctx->uc, (void (*)(void))uc_start, 4, (unsigned)(e >> 32), (unsigned)e, (unsigned)(a >> 32),
                (unsigned)a);
}

void co_context_switch(CoContext *from, CoContext *to)
{
    swapcontext(&from->uc, &to->uc);
}

#endif
