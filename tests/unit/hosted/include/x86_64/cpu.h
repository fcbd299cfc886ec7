/*
 * Stands for arch/x86_64/cpu.h in hosted tests: the instructions that memory management uses, done by
 * hosted/cpus.c on the current one of its CPUs.
 */
#pragma once
#include "x86_64/layout.h"
#include "lib/types.h"

u64 read_cr3(void);
void write_cr3(u64 value);
void cpu_invlpg(u64 vaddr);
/* All CPUs take turns in one thread: whoever waits for another waits for ever, so this panics. */
void cpu_relax(void);

struct cpu_features {
    bool nx, smep, smap, umip, pge, gigabyte_pages;
};
extern struct cpu_features cpu_features;
