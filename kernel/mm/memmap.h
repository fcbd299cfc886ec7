/*
 * The physical memory map, and the allocator that serves until the zones exist.
 *
 * Two sorted sets of disjoint ranges: `ram`, everything that is RAM, and `free`, what nobody has
 * taken yet. The early allocator cuts the lowest range that fits out of `free`; what is left of it
 * when the zones are made is what they manage. Nothing is locked: only the boot CPU runs.
 */
#pragma once
#include "lib/types.h"

#define MEMMAP_RANGES 64
#define MEMMAP_LIMIT  (128ull << 30) /* RAM above is not used: the page array has room for so much */

struct mem_range {
    u64 start, end; /* bytes; end is exclusive */
};

struct range_set {
    u32 count;
    u32 dropped; /* ranges that did not fit into the table */
    struct mem_range range[MEMMAP_RANGES];
};

/* Adds a range; touching and overlapping ones become one. */
void range_add(struct range_set *s, u64 start, u64 end);
/* Takes a range out, splitting where it must. */
void range_remove(struct range_set *s, u64 start, u64 end);
bool range_contains(const struct range_set *s, u64 start, u64 end);
bool range_overlaps(const struct range_set *s, u64 start, u64 end);
u64 range_total(const struct range_set *s);
/* The lowest aligned address at or above `from` where size bytes lie in the set; 0 if there is none. */
u64 range_find(const struct range_set *s, u64 from, u64 size, u64 align);

struct memmap {
    struct range_set ram, free;
    u64 metadata_bytes; /* of what was allocated early: struct pages, bitmaps, magazines */
    bool warm;          /* RAM has an earlier boot's contents: what is allocated must be cleared */
};
extern struct memmap memmap;

void memmap_add(u64 start, u64 end);
/* Not RAM after all (firmware, `reserve=`). */
void memmap_remove(u64 start, u64 end);
/* RAM, but taken: the kernel image. */
void memmap_reserve(u64 start, u64 end);
/*
 * Before the first allocation of a boot. RAM is zero at power-on, and clearing it again would cost
 * more than all else; but a reset keeps it. So the first page that is allocated holds only a mark:
 * finding it there tells that this boot must clear what it allocates.
 */
void memmap_mark_boot(void);
/* Zeroed; panics when there is none. Above 16 MiB when it can be, and always above 1 MiB. */
u64 memmap_alloc(u64 size, u64 align);
/* The same, but 0 when nothing fits. */
u64 memmap_try_alloc(u64 size, u64 align);
/* A RAM page below 1 MiB that is free, or 0; it stays free. */
u64 memmap_low_page(void);
/* One past the highest frame of RAM. */
u64 memmap_end_pfn(void);
