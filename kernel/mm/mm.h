/*
 * Memory management: sizes, units and the order of locks.
 *
 *   memmap   which physical ranges are RAM, and the allocator that serves until zones exist
 *   page     struct page, one for each frame
 *   buddy    the set of free blocks of one zone, as bitmaps; no locks, no struct page
 *   zone     a buddy with its lock, watermarks and counts
 *   pcp      each CPU's magazines of free blocks in front of a zone
 *   pages    allocation of blocks: magazine, zone, fallback; every free is checked
 *   owned    frames that belong to an owner (a client), with all that a page can be asked
 *   aspace   an owner's page tables
 *   pool     small fixed-size objects
 *
 * A frame is a 4 KiB page of physical memory; its number (pfn) is its address divided by 4096. A
 * block is 2^order frames, aligned to its size. Frame 0 is never given out: 0 means "none".
 *
 * Lock order, outer first: ring.lock (rpc), owner.lock, aspace.lock, tlb_lock or pool.lock,
 * magazine.lock, zone.lock.
 */
#pragma once
#include "lib/types.h"

#define MAX_ORDER 10
#define NR_ORDERS (MAX_ORDER + 1)

enum zone_type { ZONE_DMA, ZONE_NORMAL, ZONE_HIGHMEM, NR_ZONES };

#define DMA_END_PFN 4096 /* 16 MiB */

static inline u64 pfn_of(u64 paddr)
{
    return paddr >> 12;
}
static inline u64 paddr_of(u64 pfn)
{
    return pfn << 12;
}
