/* See pcp.h. */
#include "mm/pcp.h"
#include "x86_64/percpu.h"
#include "mm/memmap.h"
#include "mm/zone.h"

struct zone *pcp_zone;
u64 pcp_zone_start;

/* All magazines of an order together may hold at most 1/64 of the zone. */
static u8 limit_for(unsigned m)
{
    u64 share = (pcp_zone->managed / 64 / cpu_count) >> pcp_order[m];
    u64 limit = MIN(share, (u64)pcp_slots[m]);
    return (u8)(limit < 2 ? 0 : limit);
}

void pcp_init(void)
{
    pcp_zone = zones[ZONE_NORMAL].managed ? &zones[ZONE_NORMAL] : &zones[ZONE_DMA];
    pcp_zone_start = pcp_zone->start_pfn;
    for_each_cpu(cpu) {
        for (unsigned m = 0; m < PCP_MAGAZINES; m++) {
            u8 limit = limit_for(m);
            cpu->pcp.magazine[m] = (struct magazine){.limit = limit, .batch = MAX(limit / 4, 1)};
        }
        memmap.metadata_bytes += sizeof(cpu->pcp);
    }
}

u64 pcp_refill(struct magazine *m, u32 *slots, unsigned order)
{
    u32 got = zone_take(pcp_zone, order, m->batch, slots);
    u64 pfn = 0;
    if (likely(
            got)) { /* the lowest is on top: the order is that of an allocator without magazines */
        pfn = slots[--got];
        m->count = (u8)got;
    }
    spin_unlock(&m->lock);
    return pfn;
}

/*
 * How many blocks are to go from a full magazine. The block of the last spill lies where that one
 * left off; if it is still there, nothing was taken since.
 */
static u32 spill_size(struct pcp *pcp, u32 index, const u32 *slots)
{
    const struct magazine *m = &pcp->magazine[index];
    u8 *spills = &pcp->spills[index];
    u32 small = (m->batch + 3u) / 4, size = *spills == PCP_BURST ? m->batch : small;
    if (slots[m->limit - size] != pcp->last[index])
        *spills = 0;
    else if (*spills < PCP_BURST)
        ++*spills;
    return *spills == PCP_BURST ? m->batch : small;
}

void pcp_spill(struct pcp *pcp, unsigned order, u64 pfn)
{
    u32 index = (u32)pcp_index[order], block = (u32)pfn;
    struct magazine *m = &pcp->magazine[index];
    u32 *slots = &pcp->slot[pcp_first[index]];
    if (unlikely(!m->limit)) {
        zone_give_one(pcp_zone, pfn, order);
    } else {
        u32 n = spill_size(pcp, index, slots), left = m->limit - n;
        zone_give(pcp_zone, order, n, slots + left);
        slots[left] = pcp->last[index] = block;
        m->count = (u8)(left + 1);
    }
    spin_unlock(&m->lock);
}

u64 pcp_drain(void)
{
    u64 pages = 0;
    for_each_cpu(cpu) {
        for (unsigned i = 0; i < PCP_MAGAZINES; i++) {
            struct magazine *m = &cpu->pcp.magazine[i];
            SPIN_GUARD(&m->lock);
            if (!m->count)
                continue;
            zone_give(pcp_zone, pcp_order[i], m->count, &cpu->pcp.slot[pcp_first[i]]);
            pages += (u64)m->count << pcp_order[i];
            m->count = 0;
        }
    }
    return pages;
}

u64 pcp_blocks(unsigned order)
{
    u64 n = 0;
    if (pcp_index[order] < 0)
        return 0;
    for_each_cpu(cpu)
        n += READ_ONCE(cpu->pcp.magazine[pcp_index[order]].count);
    return n;
}

u64 pcp_pages(void)
{
    u64 n = 0;
    for (unsigned i = 0; i < PCP_MAGAZINES; i++)
        n += pcp_blocks(pcp_order[i]) << pcp_order[i];
    return n;
}

bool pcp_find(u64 pfn, u64 *block, u32 *order, u32 *cpu_id)
{
    for_each_cpu(cpu) {
        for (unsigned i = 0; i < PCP_MAGAZINES; i++) {
            struct magazine *m = &cpu->pcp.magazine[i];
            SPIN_GUARD(&m->lock);
            for (u32 s = 0; s < m->count; s++) {
                u32 at = cpu->pcp.slot[pcp_first[i] + s];
                if (pfn - at >= 1u << pcp_order[i])
                    continue;
                *block = at;
                *order = pcp_order[i];
                *cpu_id = cpu->id;
                return true;
            }
        }
    }
    return false;
}
