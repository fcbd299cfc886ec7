/*
 * Per-CPU data: GS points to the CPU's own struct cpu. A CPU writes only its own, but for the fields
 * marked shared.
 */
#pragma once
#include "x86_64/desc.h"
#include "x86_64/layout.h"
#include "lib/types.h"
#include "mm/pcp.h"

struct aspace;

struct cpu {
    struct cpu *self;
    u32 id; /* 0 is the boot CPU */
    u32 apic_id;
    bool online; /* shared: set by the CPU, read by the boot CPU */
    bool asleep; /* shared: about to halt or halted; who gives it work sends VECTOR_WAKE */
    struct aspace *aspace; /* whose tables CR3 holds; NULL: the kernel's alone */

    u64 tlb_generation;   /* shared: the last shootdown this CPU has served */
    void (*work)(void *); /* shared: run once by this CPU's loop, then set to NULL */
    void *work_arg;

    u64 calls, interrupts, timer_interrupts, sleeps, wakeups_sent, tlb_flushes;
    const char *current_call; /* what it serves, for a panic's report */
    u64 stack_low, stack_top;
    struct pcp pcp;
    struct desc_tables desc;
};

extern struct cpu cpus[MAX_CPUS];
extern u32 cpu_count; /* CPUs that are online; their ids are 0 to cpu_count-1 */

static inline struct cpu *this_cpu(void)
{
    struct cpu *c;
    __asm__("mov %%gs:0, %0" : "=r"(c));
    return c;
}

#define for_each_cpu(c) for (struct cpu *c = cpus; c < cpus + READ_ONCE(cpu_count); c++)
