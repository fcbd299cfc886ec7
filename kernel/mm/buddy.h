/*
 * The buddy allocator: the set of free blocks of a range of frames.
 *
 * For each order one bitmap, a bit a block, set when the block is free as a whole and not part of a
 * larger free one. Above each bitmap stand summaries, 64 to 1: a bit says whether the word below has
 * any bit set. `nonempty` has a bit for each order that has a free block. A search goes down the
 * summaries, one count-trailing-zeros a level, and so finds the lowest block of an order at once.
 *
 * Invariants: no frame is in two free blocks; no block and its buddy are both free at an order below
 * the largest (they are merged); a summary bit is set if and only if its word is not zero. So each
 * set of free frames has exactly one representation.
 *
 * No locks and no struct page: the caller has the zone's lock, and knows what may be given back.
 */
#pragma once
#include "mm/mm.h"

#define BUDDY_LEVELS 5 /* 64^5 blocks: more than there can be frames */
#define BUDDY_NONE UINT64_MAX

struct buddy_map {
    u64 *level[BUDDY_LEVELS]; /* level[0]: the bitmap; the last has one word */
    u32 levels;
};

struct buddy {
    u64 base;     /* first pfn, a multiple of the largest block */
    u64 span;     /* frames */
    u32 nonempty; /* bit per order */
    u64 free_pages;
    struct buddy_map map[NR_ORDERS];
    u64 blocks[NR_ORDERS]; /* free blocks */
    u64 splits[NR_ORDERS]; /* times a block of this order was halved */
    u64 merges[NR_ORDERS]; /* times two blocks of this order became one */
};

/* The 64-bit words of memory that buddy_init needs for so many frames. */
u64 buddy_words(u64 span);
/* Starts with nothing free. base must be a multiple of 1024; words must be zero. */
void buddy_init(struct buddy *b, u64 base, u64 span, u64 *words);
/* Makes the frames [start, end) free, in the largest blocks that fit. */
void buddy_add(struct buddy *b, u64 start, u64 end);
/* Takes the lowest free block of the order, splitting a larger one if need be; BUDDY_NONE if none. */
u64 buddy_take(struct buddy *b, unsigned order);
/* Gives a block back and merges it as far as it goes. */
void buddy_give(struct buddy *b, u64 pfn, unsigned order);
/* Takes exactly this frame out; false when it is not free. */
bool buddy_claim(struct buddy *b, u64 pfn);
/* Whether the frame is in a free block, and in which. */
bool buddy_find(const struct buddy *b, u64 pfn, u64 *block, u32 *order);
