/* Stands before arch's header of that name: the same, but the CPU that runs is one that we choose. */
#pragma once
#define this_cpu gs_this_cpu
#include_next "x86_64/percpu.h"
#undef this_cpu

extern unsigned fuzz_cpu;

static inline struct cpu *this_cpu(void)
{
    return &cpus[fuzz_cpu];
}
