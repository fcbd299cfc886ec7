/*
 * Zones: DMA below 16 MiB, NORMAL above; HIGHMEM is there for its name and stays empty on x86-64.
 *
 * Watermarks, in free frames: below `low` a zone is short, and below `min` only allocations with
 * PAGES_RESERVE, which the kernel makes to serve others (page tables, descriptors), succeed.
 *
 * Lock: zone.lock for the buddy and the counts.
 */
#pragma once
#include "core/spinlock.h"
#include "mm/buddy.h"

struct zone {
    const char *name;
    u64 start_pfn, end_pfn;
    u64 managed; /* frames that the zone gives out */
    u64 watermark_min, watermark_low, watermark_high;
    u64 watermark_quick; /* with so many free frames no block of any order goes below min */
    struct spinlock lock;
    union {
        struct buddy buddy;
        struct buddy; /* the zone's own members too: zones[1].free_pages */
    };
    u64 taken[NR_ORDERS], given[NR_ORDERS]; /* blocks that went out of and came back to the buddy */
    u64 failures; /* times that it had no block to give, retries included */
};

extern struct zone zones[NR_ZONES];

/* Makes the zones from what memmap has left. */
void zones_init(void);
static inline struct zone *zone_of(u64 pfn)
{
    return pfn < zones[ZONE_DMA].end_pfn ? &zones[ZONE_DMA] : &zones[ZONE_NORMAL];
}
/* Takes one block; 0 when there is none. */
u64 zone_take_one(struct zone *z, unsigned order, bool reserve);
void zone_give_one(struct zone *z, u64 pfn, unsigned order);
/*
 * Takes up to n blocks, n not 0, from one place and above the min watermark; the lowest is the last in
 * the array. Returns how many.
 */
u32 zone_take(struct zone *z, unsigned order, u32 n, u32 *pfns);
void zone_give(struct zone *z, unsigned order, u32 n, const u32 *pfns);
/* Takes exactly this frame; false when the zone does not have it free. */
bool zone_claim(u64 pfn);
bool zone_find_free(u64 pfn, u64 *block, u32 *order);
/* Share of free memory that is useless for a block of the order, in permille: 0 when all of it fits. */
u32 zone_fragmentation(const struct zone *z, unsigned order);
