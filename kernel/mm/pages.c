/* See pages.h. */
#include "mm/pages.h"
#include "x86_64/percpu.h"
#include "lib/errno.h"
#include "mm/memmap.h"
#include "mm/pcp.h"
#include "mm/zone.h"

static u64 take_preferred(unsigned order, bool reserve)
{
    u32 pfn = 0;
    if (pcp_index[order] >= 0)
        return pcp_refill(&this_cpu()->pcp, order, reserve);
    return zone_take(pcp_zone, order, 1, reserve, &pfn) ? pfn : 0;
}

static __attribute__((noinline)) u64 alloc_slow(unsigned order, unsigned flags)
{
    bool reserve = flags & PAGES_RESERVE;
    u32 low = 0;
    u64 pfn = take_preferred(order, reserve);
    if (!pfn && pcp_drain())
        pfn = take_preferred(order, reserve);
    if (!pfn && pcp_zone_start)
        pfn = zone_take(&zones[ZONE_DMA], order, 1, reserve, &low) ? low : 0;
    return pfn;
}

u64 pages_alloc(unsigned order, enum page_kind kind, u16 owner, unsigned flags)
{
    u64 pfn = 0;
    int index = pcp_index[order];
    if (likely(index >= 0)) {
        struct pcp *pcp = &this_cpu()->pcp;
        struct magazine *m = &pcp->magazine[index];
        spin_lock(&m->lock);
        if (likely(m->count))
            pfn = pcp->slot[m->first + --m->count];
        spin_unlock(&m->lock);
    }
    if (unlikely(!pfn)) {
        pfn = alloc_slow(order, flags);
        if (!pfn)
            return 0;
    }
    page_at(pfn)->head = page_head(kind, order, owner);
    return pfn;
}

static __attribute__((noinline)) void free_to_zone(u64 pfn, unsigned order)
{
    u32 block = (u32)pfn;
    if (pfn >= pcp_zone_start && pcp_index[order] >= 0)
        pcp_spill(&this_cpu()->pcp, order, pfn);
    else
        zone_give(zone_of(pfn), order, 1, &block);
}

int pages_free(u64 pfn, unsigned order, enum page_kind kind, u16 owner)
{
    if (unlikely(pfn >= page_end_pfn || order > MAX_ORDER))
        return -EINVAL;
    struct page *page = page_at(pfn);
    if (unlikely(page->head != page_head(kind, order, owner)))
        return -EINVAL;
    page->head = 0;
    int index = pcp_index[order];
    if (likely(index >= 0 && pfn >= pcp_zone_start)) {
        struct pcp *pcp = &this_cpu()->pcp;
        struct magazine *m = &pcp->magazine[index];
        spin_lock(&m->lock);
        if (likely(m->count < m->limit)) {
            pcp->slot[m->first + m->count++] = (u32)pfn;
            spin_unlock(&m->lock);
            return 0;
        }
        spin_unlock(&m->lock);
    }
    free_to_zone(pfn, order);
    return 0;
}

int pages_claim(u64 pfn, enum page_kind kind, u16 owner)
{
    u64 at = paddr_of(pfn);
    if (pfn >= page_end_pfn || !range_contains(&memmap.ram, at, at + paddr_of(1)))
        return -EINVAL;
    if (!zone_claim(pfn) && !(pcp_drain() && zone_claim(pfn)))
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
