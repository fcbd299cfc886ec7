/* See zone.h. */
#include "mm/zone.h"
#include "x86_64/paging.h"
#include "lib/string.h"
#include "mm/memmap.h"
#include "mm/page.h"

#define BLOCK_PAGES (1ull << MAX_ORDER)

struct zone zones[NR_ZONES] = {
    [ZONE_DMA] = {.name = "DMA"},
    [ZONE_NORMAL] = {.name = "NORMAL"},
    [ZONE_HIGHMEM] = {.name = "HIGHMEM"},
};

static void zone_add_free(struct zone *z)
{
    for (u32 i = 0; i < memmap.free.count; i++) {
        u64 start = MAX(pfn_of(memmap.free.range[i].start), z->start_pfn);
        u64 end = MIN(pfn_of(memmap.free.range[i].end), z->end_pfn);
        if (start < end)
            buddy_add(&z->buddy, start, end);
    }
    z->managed = z->buddy.free_pages;
    z->watermark_min = z->managed / 256;
    z->watermark_low = z->watermark_min * 5 / 4;
    z->watermark_high = z->watermark_min * 3 / 2;
    z->watermark_quick = z->watermark_min + BLOCK_PAGES;
}

static u64 *zone_bitmaps(struct zone *z)
{
    u64 bytes = ALIGN_UP(buddy_words(z->end_pfn - z->start_pfn) * 8, PAGE_SIZE);
    memmap.metadata_bytes += bytes;
    return phys_to_virt(memmap_alloc(bytes, PAGE_SIZE));
}

void zones_init(void)
{
    u64 end = ALIGN_UP(page_end_pfn, BLOCK_PAGES);
    u64 *bitmaps[NR_ZONES] = {0};
    zones[ZONE_DMA].end_pfn = MIN(end, (u64)DMA_END_PFN);
    zones[ZONE_NORMAL].start_pfn = zones[ZONE_DMA].end_pfn;
    zones[ZONE_NORMAL].end_pfn = end;
    zones[ZONE_HIGHMEM].start_pfn = zones[ZONE_HIGHMEM].end_pfn = end;
    /* All early allocations come before the first zone is filled from what they leave. */
    for (int i = 0; i < NR_ZONES; i++)
        bitmaps[i] = zone_bitmaps(&zones[i]);
    for (int i = 0; i < NR_ZONES; i++) {
        struct zone *z = &zones[i];
        buddy_init(&z->buddy, z->start_pfn, z->end_pfn - z->start_pfn, bitmaps[i]);
        zone_add_free(z);
    }
}

/* Lowest number of free frames at which the zone still serves a block. */
static inline u64 floor_for(const struct zone *z, unsigned order, bool reserve)
{
    return (reserve ? 0 : z->watermark_min) + (1ull << order);
}

/* Near the watermark, or a larger block must be split. The zone is locked, and is unlocked here. */
static __attribute__((noinline)) u64 take_one_slow(struct zone *z, unsigned order, bool reserve)
{
    u64 pfn = BUDDY_NONE;
    if (z->buddy.free_pages >= floor_for(z, order, reserve))
        pfn = buddy_take(&z->buddy, order);
    if (pfn == BUDDY_NONE)
        z->failures++;
    else
        z->taken[order]++;
    spin_unlock(&z->lock);
    return pfn == BUDDY_NONE ? 0 : pfn;
}

/* Written so that the common case calls nothing. */
u64 zone_take_one(struct zone *z, unsigned order, bool reserve)
{
    spin_lock(&z->lock);
    if (unlikely(z->buddy.free_pages < z->watermark_quick || !buddy_has(&z->buddy, order)))
        return take_one_slow(z, order, reserve);
    u64 pfn = buddy_take_exact(&z->buddy, order);
    z->taken[order]++;
    spin_unlock(&z->lock);
    return pfn;
}

static __attribute__((noinline)) void give_one_merge(struct zone *z, u64 pfn, unsigned order)
{
    buddy_give_merge(&z->buddy, pfn, order);
    spin_unlock(&z->lock);
}

void zone_give_one(struct zone *z, u64 pfn, unsigned order)
{
    spin_lock(&z->lock);
    z->given[order]++;
    if (unlikely(!buddy_give_exact(&z->buddy, pfn, order))) {
        give_one_merge(z, pfn, order);
        return;
    }
    spin_unlock(&z->lock);
}

u32 zone_take(struct zone *z, unsigned order, u32 n, u32 *pfns)
{
    spin_lock(&z->lock);
    s64 spare = (s64)(z->buddy.free_pages - z->watermark_min) >> order;
    u32 got = spare > 0 ? buddy_take_many(&z->buddy, order, (u32)MIN((s64)n, spare), pfns) : 0;
    z->taken[order] += got;
    if (unlikely(!got))
        z->failures++;
    spin_unlock(&z->lock);
    return got;
}

void zone_give(struct zone *z, unsigned order, u32 n, const u32 *pfns)
{
    spin_lock(&z->lock);
    z->given[order] += n;
    buddy_give_many(&z->buddy, order, n, pfns);
    spin_unlock(&z->lock);
}

bool zone_claim(u64 pfn)
{
    struct zone *z = zone_of(pfn);
    SPIN_GUARD(&z->lock);
    bool claimed = buddy_claim(&z->buddy, pfn);
    z->taken[0] += claimed;
    return claimed;
}

bool zone_find_free(u64 pfn, u64 *block, u32 *order)
{
    struct zone *z = zone_of(pfn);
    SPIN_GUARD(&z->lock);
    return buddy_find(&z->buddy, pfn, block, order);
}

u32 zone_fragmentation(const struct zone *z, unsigned order)
{
    u64 useless = 0;
    for (unsigned o = 0; o < order; o++)
        useless += z->buddy.map[o].blocks << o;
    return z->buddy.free_pages ? (u32)(useless * 1000 / z->buddy.free_pages) : 0;
}
