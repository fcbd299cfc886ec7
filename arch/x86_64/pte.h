/* The format of page-table entries: four levels of 512 entries, level 4 at the root. */
#pragma once
#include "x86_64/layout.h"
#include "lib/types.h"

#define PTE_PRESENT  (1ul << 0)
#define PTE_WRITE    (1ul << 1)
#define PTE_USER     (1ul << 2)
#define PTE_NOCACHE  (1ul << 4)
#define PTE_ACCESSED (1ul << 5)
#define PTE_DIRTY    (1ul << 6)
#define PTE_LARGE    (1ul << 7)
#define PTE_GLOBAL   (1ul << 8)
#define PTE_NX       (1ul << 63)
#define PTE_ADDRESS  0x000ffffffffff000ul

#define PT_ENTRIES 512
#define PT_LEVELS  4

/* The bytes that one entry at a level spans: 4 KiB, 2 MiB, 1 GiB, 512 GiB. */
static inline u64 pt_span(unsigned level)
{
    return 1ull << (PAGE_SHIFT + 9 * (level - 1));
}

static inline unsigned pt_index(u64 vaddr, unsigned level)
{
    return vaddr >> (PAGE_SHIFT + 9 * (level - 1)) & (PT_ENTRIES - 1);
}
