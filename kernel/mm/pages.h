/*
 * Allocation of blocks of frames: from this CPU's magazine, else from its zone; when that has none the
 * magazines of all CPUs are emptied, and its zone and then the other one are tried.
 *
 * The part that finds a block in the magazine is inline: with a constant order it is some twenty
 * instructions.
 *
 * Locks: those of pcp and zone, inside.
 */
#pragma once
#include "lib/errno.h"
#include "mm/page.h"
#include "mm/pcp.h"
#include "mm/zone.h"
#include "x86_64/percpu.h"

#define PAGES_RESERVE 1 /* may go below the min watermark: for the kernel's own needs */

/* For pages_alloc, when the magazine or zone has nothing as it is. */
u64 pages_alloc_hard(unsigned order, bool reserve);

/* A block of 2^order frames with head page_head(kind, order, owner). Its pfn, or 0. */
static inline u64 pages_alloc(unsigned order, enum page_kind kind, u16 owner, unsigned flags)
{
    u64 pfn;
    int index = pcp_index[order];
    if (likely(index >= 0)) {
        struct pcp *pcp = &this_cpu()->pcp;
        struct magazine *m = &pcp->magazine[index];
        spin_lock(&m->lock);
        if (likely(m->count)) {
            pfn = pcp->slot[pcp_first[index] + --m->count];
            spin_unlock(&m->lock);
        } else {
            pfn = pcp_refill(m, &pcp->slot[pcp_first[index]], order);
        }
    } else {
        pfn = zone_take_one(pcp_zone, order, flags & PAGES_RESERVE);
    }
    if (unlikely(!pfn)) {
        pfn = pages_alloc_hard(order, flags & PAGES_RESERVE);
        if (!pfn)
            return 0;
    }
    page_at(pfn)->head = page_head(kind, order, owner);
    return pfn;
}

/*
 * Gives a block back. Its head must be exactly page_head(kind, order, owner), one reference and no
 * flags; anything else is -EINVAL and changes nothing.
 */
static inline int pages_free(u64 pfn, unsigned order, enum page_kind kind, u16 owner)
{
    if (unlikely(pfn >= page_end_pfn || order > MAX_ORDER))
        return -EINVAL;
    struct page *page = page_at(pfn);
    if (unlikely(page->head != page_head(kind, order, owner)))
        return -EINVAL;
    page->head = 0;
    /* What may have come out of the reserve goes back to the zone, where the watermark guards it. */
    bool reserve = kind == PAGE_TABLE || kind == PAGE_POOL;
    int index = reserve ? -1 : pcp_index[order];
    if (likely(index >= 0 && pfn >= pcp_zone_start)) {
        struct pcp *pcp = &this_cpu()->pcp;
        struct magazine *m = &pcp->magazine[index];
        spin_lock(&m->lock);
        if (likely(m->count < m->limit)) {
            pcp->slot[pcp_first[index] + m->count++] = (u32)pfn;
            spin_unlock(&m->lock);
            return 0;
        }
        pcp_spill(pcp, order, pfn);
    } else {
        zone_give_one(zone_of(pfn), pfn, order);
    }
    return 0;
}

/* Takes exactly this frame: -EBUSY when it is not free, -EINVAL when it is no RAM. */
int pages_claim(u64 pfn, enum page_kind kind, u16 owner);
/* Makes a live block into 2^order live blocks of order 0. */
void pages_split(u64 pfn, unsigned order);
/* Free frames: in the zones and in magazines. */
u64 pages_free_count(void);
