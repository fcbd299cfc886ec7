/* Stands in front of arch/x86_64/percpu.h in hosted tests: a variable says which CPU runs. */
#pragma once
#define this_cpu gs_this_cpu
#include_next "x86_64/percpu.h"
#undef this_cpu

extern struct cpu *hosted_cpu;

static inline struct cpu *this_cpu(void)
{
    return hosted_cpu;
}
