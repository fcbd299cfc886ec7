/*
 * Per-CPU magazines: small stacks of free blocks in front of one zone (NORMAL, or DMA when there is
 * nothing else), for orders 0 to 3 and 9. Filled and emptied in batches, so that most allocations
 * take no shared lock.
 *
 * A batch is a quarter of a magazine: what one allocation or free has to do is bounded by it. A refill
 * takes fewer when they do not lie at one place in the zone (see buddy_take_many), always the lowest
 * first. When a magazine is full, what is on top goes, so that what stays need not move; what was
 * freed last of all is then on top. A quarter of a batch goes, that the free which meets the full
 * magazine is not a long one, and a batch when many are freed in a row.
 *
 * A block in a magazine is taken out of the buddy and has a page head of zero, like all that is free.
 *
 * Lock: one a magazine, because others drain it when memory runs short; its CPU finds it free.
 */
#pragma once
#include "core/spinlock.h"
#include "mm/mm.h"

#define PCP_MAGAZINES 5
#define PCP_BURST     8 /* so many spills in a row, and a whole batch goes at once */
#define PCP_SLOTS     (64 + 32 + 16 + 8 + 4)

struct magazine {
    struct spinlock lock;
    u8 count, limit, batch;
};

struct pcp {
    struct magazine magazine[PCP_MAGAZINES];
    u32 slot[PCP_SLOTS];      /* pfn of each block */
    u8 spills[PCP_MAGAZINES]; /* in a row, with nothing taken in between */
    u32 last[PCP_MAGAZINES];  /* pfn whose free spilled last */
};

extern struct zone *pcp_zone;
extern u64 pcp_zone_start; /* its first frame: everything from there on goes through magazines */

/* The magazine for an order, or -1; the orders of the magazines, their slots and first slots. */
static const s8 pcp_index[NR_ORDERS] = {0, 1, 2, 3, -1, -1, -1, -1, -1, 4, -1};
static const u8 pcp_order[PCP_MAGAZINES] = {0, 1, 2, 3, 9};
static const u8 pcp_slots[PCP_MAGAZINES] = {64, 32, 16, 8, 4};
static const u8 pcp_first[PCP_MAGAZINES] = {0, 64, 96, 112, 120};

/* Sets the limits by the zone's size. */
void pcp_init(void);
/*
 * Takes one block for a CPU whose magazine m is empty, filling that; 0 when the zone has none above its
 * watermark: what is below never comes into a magazine, where anyone could take it. This and the next
 * are called with the magazine locked, and unlock it.
 */
u64 pcp_refill(struct magazine *m, u32 *slots, unsigned order);
/* Gives back one block when its magazine is full, making room for it first. */
void pcp_spill(struct pcp *pcp, unsigned order, u64 pfn);
/* Empties all magazines of all CPUs into the zone; returns the frames that went back. */
u64 pcp_drain(void);
/* Frames in all magazines, and those of one order's blocks. */
u64 pcp_pages(void);
u64 pcp_blocks(unsigned order);
bool pcp_find(u64 pfn, u64 *block, u32 *order, u32 *cpu);
