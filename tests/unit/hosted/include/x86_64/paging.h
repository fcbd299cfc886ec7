/*
 * Stands in front of arch/x86_64/paging.h in hosted tests: physical memory is an area of this
 * process, and the kernel's image is this program, which appears at KERNEL_LOAD.
 */
#pragma once
#define phys_to_virt   flat_phys_to_virt
#define direct_to_phys flat_direct_to_phys
#define image_to_phys  flat_image_to_phys
#include_next "x86_64/paging.h"
#undef phys_to_virt
#undef direct_to_phys
#undef image_to_phys

extern u8 *hosted_ram; /* where physical address 0 is; with NULL every address is itself */
extern const char __executable_start[], _end[];

static inline u64 image_to_phys(const void *p)
{
    return KERNEL_LOAD + ((u64)p - (u64)__executable_start);
}

static inline void *phys_to_virt(u64 paddr)
{
    u64 in_image = paddr - KERNEL_LOAD;
    if (hosted_ram && in_image < (u64)_end - (u64)__executable_start)
        return (void *)((u64)__executable_start + in_image);
    return (void *)((u64)hosted_ram + paddr);
}

static inline u64 direct_to_phys(const void *p)
{
    return (u64)p - (u64)hosted_ram;
}
