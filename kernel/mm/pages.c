/* See pages.h. */
#include "mm/pages.h"
#include "mm/memmap.h"
#include "mm/zone.h"

u64 pages_alloc_hard(unsigned order, bool reserve)
{
    pcp_drain(); /* even if it finds nothing: another CPU may just have done it */
    u64 pfn = zone_take_one(pcp_zone, order, reserve);
    if (!pfn && pcp_zone_start)
        pfn = zone_take_one(&zones[ZONE_DMA], order, reserve);
    return pfn;
}

int pages_claim(u64 pfn, enum page_kind kind, u16 owner)
{
    u64 at = paddr_of(pfn);
    if (pfn >= page_end_pfn || !range_contains(&memmap.ram, at, at + paddr_of(1)))
        return -EINVAL;
    bool claimed = zone_claim(pfn);
    if (!claimed) { /* it may be in a magazine */
        pcp_drain();
        claimed = zone_claim(pfn);
    }
    if (!claimed)
        return -EBUSY;
    page_at(pfn)->head = page_head(kind, 0, owner);
    return 0;
}

void pages_split(u64 pfn, unsigned order)
{
    struct page *first = page_at(pfn);
    u64 head = page_head(first->kind, 0, first->owner);
    for (u64 i = 0; i < 1ull << order; i++)
        first[i].head = head;
}

u64 pages_free_count(void)
{
    u64 n = pcp_pages();
    for (int i = 0; i < NR_ZONES; i++)
        n += READ_ONCE(zones[i].buddy.free_pages);
    return n;
}
