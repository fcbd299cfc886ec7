/*
 * A machine in this process, for the kernel's own memory management: RAM, CPUs and their translation
 * of addresses. The sources of kernel/mm, paging.c and tlb.c run on it as they are.
 *
 * RAM is a file in memory, mapped as a whole for phys_to_virt, and once more, page by page as the
 * kernel's tables say, as the array of struct page. So that array is there where the kernel has put
 * it, and is read-only where the kernel has made it so. A use of frame 0 crashes.
 *
 * All CPUs run in one thread, one at a time. Each has a TLB that forgets only what it is told to, and
 * a cache of page tables that is as lazy; see cpus.c.
 *
 * A process boots one machine: memory management keeps its state in static data. machine_run gives
 * each its process.
 */
#pragma once
#include "mm/memmap.h"

struct machine {
    const char *name;
    u32 cpus;
    bool no_nx;
    bool warm; /* RAM has an earlier boot's contents */
    u32 ranges;
    struct mem_range range[6];
};

/* Boots as kernel/core/main.c does, up to and with the magazines. */
void machine_boot(const struct machine *m);
/* The part of it that ends before page_array_init. */
void machine_power_on(const struct machine *m);
/* Maps the array of struct page as the kernel's tables say. */
void machine_map_page_array(void);
/* Boots a machine in a process of its own and calls run there; true if that returns and exits well. */
bool machine_run(const struct machine *m, bool (*run)(const struct machine *m));

/* Whether run(arg) panics. It runs in a process with a copy of the machine, which then is gone. */
bool machine_panics(void (*run)(void *arg), void *arg);

/* Goes on as another CPU. */
void machine_switch(u32 cpu);
/* When set, called at each invlpg, on the CPU that executes it. */
extern void (*machine_on_invlpg)(u64 vaddr);
