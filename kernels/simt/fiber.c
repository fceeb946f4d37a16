/* x86-64 switches by a few instructions; elsewhere by ucontext, which costs a system call each way.
 *
 * Stacks lie whole pages apart, so that their uppermost lines would all fall into the same few sets
 * of the first-level cache: each begins some lines lower than the one before it.
 *
 * AddressSanitizer must be told of every switch, or it takes the other stack for an overflow of
 * this one. */
#include "kernels/simt/fiber.h"

#include "base/check.h"
#include "base/memory.h"
#include "kernels/simt/asan.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifndef __x86_64__
#include <ucontext.h>
#endif

struct kv_fiber {
    void *pointer; /* where its registers lie, while it is switched away from (x86-64) */
    unsigned char *mapping;
    size_t mapping_bytes;
    unsigned char *stack; /* the mapping behind the trapping page */
    size_t stack_bytes;   /* what is used of it */
    kv_fiber_entry_t *entry;
    void *argument;
#ifndef __x86_64__
    ucontext_t context;
#endif
#if KV_SIMT_ASAN
    kv_fiber_t *from; /* who switched to it last */
    void *fake_stack;
    const void *bottom; /* of the stack that this fiber runs on, a thread's own too */
    size_t bottom_bytes;
#endif
};

static void arrived(kv_fiber_t *self)
{
#if KV_SIMT_ASAN
    kv_fiber_t *from = self->from;
    __sanitizer_finish_switch_fiber(self->fake_stack, &from->bottom, &from->bottom_bytes);
#else
    (void)self;
#endif
}

static void begin(kv_fiber_t *self)
{
    arrived(self);
    self->entry(self->argument);
    KV_CHECK(!"a fiber returned");
}

#ifdef __x86_64__

/* Pushes the registers that a call preserves, keeps the stack pointer in *from and takes to's. */
void kv_fiber_exchange(void **from, void *to);

__asm__(".text\n"
        ".p2align 4\n"
        ".globl kv_fiber_exchange\n"
        ".hidden kv_fiber_exchange\n"
        ".type kv_fiber_exchange, @function\n"
        "kv_fiber_exchange:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size kv_fiber_exchange, . - kv_fiber_exchange\n"
        /* Where a fiber begins: what it calls, with what. */
        ".p2align 4\n"
        ".globl kv_fiber_enter\n"
        ".hidden kv_fiber_enter\n"
        ".type kv_fiber_enter, @function\n"
        "kv_fiber_enter:\n"
        "    movq %r12, %rdi\n"
        "    callq *%rbx\n"
        "    ud2\n"
        ".size kv_fiber_enter, . - kv_fiber_enter\n");

void kv_fiber_enter(void) __attribute__((visibility("hidden")));

static void prepare(kv_fiber_t *fiber)
{
    /* Six registers, the address to return to, and two words that leave the stack as it is before a
     * call. */
    enum { R12 = 3, RBX = 4, REGISTERS = 6, WORDS = REGISTERS + 3 };
    uint64_t *top = (uint64_t *)(void *)(fiber->stack + fiber->stack_bytes);
    uint64_t *words = top - WORDS;
    memset(words, 0, WORDS * sizeof *words);
    words[R12] = (uint64_t)(uintptr_t)fiber;
    words[RBX] = (uint64_t)(uintptr_t)begin;
    words[REGISTERS] = (uint64_t)(uintptr_t)kv_fiber_enter;
    fiber->pointer = words;
}

static void exchange(kv_fiber_t *from, kv_fiber_t *to)
{
    kv_fiber_exchange(&from->pointer, to->pointer);
}

#else

/* makecontext passes integers only. */
static void enter(unsigned int high, unsigned int low)
{
    begin((kv_fiber_t *)(uintptr_t)((uint64_t)high << 32 | low));
}

static void prepare(kv_fiber_t *fiber)
{
    uint64_t self = (uintptr_t)fiber;
    KV_CHECK(getcontext(&fiber->context) == 0);
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = fiber->stack_bytes;
    fiber->context.uc_link = NULL;
    makecontext(
        &fiber->context, (void (*)(void))enter, 2, (unsigned int)(self >> 32), (unsigned int)self);
}

static void exchange(kv_fiber_t *from, kv_fiber_t *to)
{
    KV_CHECK(swapcontext(&from->context, &to->context) == 0);
}

#endif

kv_fiber_t *kv_fiber_create(size_t stack_bytes, size_t number)
{
    enum { STEP_BYTES = 17 * 64, CYCLE_BYTES = 4096 };

    kv_fiber_t *fiber = kv_allocate(sizeof *fiber);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    fiber->stack_bytes = (stack_bytes + page - 1) / page * page;
    fiber->mapping_bytes = fiber->stack_bytes + page;
    void *mapping = mmap(NULL, fiber->mapping_bytes, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    KV_CHECK(mapping != MAP_FAILED);
    KV_CHECK(mprotect(mapping, page, PROT_NONE) == 0);
    fiber->mapping = mapping;
    fiber->stack = fiber->mapping + page;
    fiber->stack_bytes -= number * STEP_BYTES % CYCLE_BYTES;
#if KV_SIMT_ASAN
    fiber->bottom = fiber->stack;
    fiber->bottom_bytes = fiber->stack_bytes;
#endif
    return fiber;
}

kv_fiber_t *kv_fiber_create_for_thread(void)
{
    return kv_allocate(sizeof(kv_fiber_t));
}

void kv_fiber_destroy(kv_fiber_t *fiber)
{
    if (fiber == NULL) {
        return;
    }
    if (fiber->mapping != NULL) {
        KV_SIMT_UNPOISON(fiber->stack, fiber->stack_bytes);
        munmap(fiber->mapping, fiber->mapping_bytes);
    }
    free(fiber);
}

#if KV_SIMT_ASAN
/* The frames that the fiber was left in have red zones, from its stack pointer up. */
static void forget_frames(kv_fiber_t *fiber)
{
    unsigned char *lowest = fiber->stack;
#ifdef __x86_64__
    lowest = fiber->pointer != NULL ? fiber->pointer : fiber->stack + fiber->stack_bytes;
#endif
    KV_SIMT_UNPOISON(lowest, (size_t)(fiber->stack + fiber->stack_bytes - lowest));
}
#endif

void kv_fiber_restart(kv_fiber_t *fiber, kv_fiber_entry_t *entry, void *argument)
{
#if KV_SIMT_ASAN
    forget_frames(fiber); /* its fake stack is used again: a new one would be lost with it */
#endif
    fiber->entry = entry;
    fiber->argument = argument;
    prepare(fiber);
}

void kv_fiber_switch(kv_fiber_t *from, kv_fiber_t *to)
{
#if KV_SIMT_ASAN
    to->from = from;
    __sanitizer_start_switch_fiber(&from->fake_stack, to->bottom, to->bottom_bytes);
#endif
    exchange(from, to);
    arrived(from);
}

const void *kv_fiber_stack(const kv_fiber_t *fiber, size_t *bytes_out)
{
    *bytes_out = fiber->stack_bytes;
    return fiber->stack;
}
