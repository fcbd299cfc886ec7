/*
 * The kernel's page tables, made once at boot from the early allocator, and the walk through any
 * tables.
 */
#pragma once
#include "x86_64/layout.h"
#include "x86_64/pte.h"
#include "lib/types.h"

static inline void *phys_to_virt(u64 paddr)
{
    return (void *)(DIRECT_MAP + paddr);
}

static inline u64 direct_to_phys(const void *p)
{
    return (u64)p - DIRECT_MAP;
}

/* The physical address of something in the kernel image. */
static inline u64 image_to_phys(const void *p)
{
    return (u64)p - KERNEL_BASE;
}

/* Builds and loads the tables: image with its permissions, direct map of all RAM. */
void paging_init(void);
u64 paging_kernel_root(void);

/* Boot only: maps [paddr, paddr+size) at vaddr with the largest pages that fit. */
void paging_map(u64 vaddr, u64 paddr, u64 size, u64 flags);
/* Boot only: maps the one page at paddr again and again over size bytes. */
void paging_map_same(u64 vaddr, u64 paddr, u64 size, u64 flags);
/* Boot only: makes the 2 MiB at vaddr use a ready level-1 table. */
void paging_map_table(u64 vaddr, u64 table_paddr);
/* Boot only: the page of device registers at paddr, uncached. */
volatile void *paging_map_device(u64 paddr);
/* Boot only: a stack with a guard page below it; returns its top. */
u64 paging_map_stack(u64 size);
/* Whether an address lies in a guard page of a kernel stack. */
bool paging_is_guard(u64 vaddr);

struct pt_step {
    u32 level, index;
    u64 entry; /* 0 when not present */
};

/* Follows vaddr from the root down; returns the number of steps (1 to 4), the last in steps[n-1]. */
unsigned paging_walk(u64 root, u64 vaddr, struct pt_step steps[PT_LEVELS]);
/* "4 KiB rw-u" and the like, for a present entry at a level. */
void paging_describe_entry(char *buf, size_t cap, const struct pt_step *step);
