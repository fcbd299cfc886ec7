/*
 * Allocation of blocks of frames: from this CPU's magazine, else from its zone, else from the other
 * zone; when all fail the magazines of all CPUs are emptied and it is tried once more.
 *
 * Locks: those of pcp and zone, inside.
 */
#pragma once
#include "mm/page.h"

#define PAGES_RESERVE 1 /* may go below the min watermark: for the kernel's own needs */

/* A block of 2^order frames with head page_head(kind, order, owner). Its pfn, or 0. */
u64 pages_alloc(unsigned order, enum page_kind kind, u16 owner, unsigned flags);
/*
 * Gives a block back. Its head must be exactly page_head(kind, order, owner), one reference and no
 * flags; anything else is -EINVAL and changes nothing.
 */
int pages_free(u64 pfn, unsigned order, enum page_kind kind, u16 owner);
/* Takes exactly this frame: -EBUSY when it is not free, -EINVAL when it is no RAM. */
int pages_claim(u64 pfn, enum page_kind kind, u16 owner);
/* Makes a live block into 2^order live blocks of order 0. */
void pages_split(u64 pfn, unsigned order);
/* Free frames: in the zones and in magazines. */
u64 pages_free_count(void);
