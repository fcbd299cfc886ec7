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
 * Taking and giving back a block without a split or merge is inline, at the end of this file.
 *
 * No locks and no struct page: the caller has the zone's lock, and knows what may be given back.
 */
#pragma once
#include "lib/bits.h"
#include "mm/mm.h"

#define BUDDY_LEVELS 5 /* 64^4 blocks of order 0 are 64 GiB: a zone with a hole is larger */
#define BUDDY_NONE   UINT64_MAX

struct buddy_map {
    u64 *level[BUDDY_LEVELS]; /* level[0]: the bitmap; the last has one word */
    u64 levels;
    u64 blocks; /* free blocks */
    u64 pad;    /* 64 bytes: the place of an order's map is found by a shift */
};

struct buddy {
    u64 base;     /* first pfn, a multiple of the largest block */
    u64 span;     /* frames */
    u32 nonempty; /* bit per order */
    u64 free_pages;
    struct buddy_map map[NR_ORDERS];
    u64 splits[NR_ORDERS]; /* times a block of this order was halved */
    u64 merges[NR_ORDERS]; /* times two blocks of this order became one */
};

/* The 64-bit words of memory that buddy_init needs for so many frames. */
u64 buddy_words(u64 span);
/* Starts with nothing free. base must be a multiple of 1024; words must be zero. */
void buddy_init(struct buddy *b, u64 base, u64 span, u64 *words);
/* Makes the frames [start, end) free, in the largest blocks that fit. */
void buddy_add(struct buddy *b, u64 start, u64 end);
/* Takes exactly this frame out; false when it is not free. */
bool buddy_claim(struct buddy *b, u64 pfn);
/* Whether the frame is in a free block, and in which. */
bool buddy_find(const struct buddy *b, u64 pfn, u64 *block, u32 *order);

/* Gives n blocks back; what lies in a row at the beginning as the larger blocks that it makes up. */
void buddy_give_many(struct buddy *b, unsigned order, u32 n, const u32 *pfns);

/*
 * What buddy_take, buddy_take_many and buddy_give do when a block must be split or can be merged, or
 * there are many; use those.
 */
u64 buddy_take_split(struct buddy *b, unsigned order, unsigned from);
u32 buddy_take_word(struct buddy *b, unsigned order, u32 n, u32 *pfns);
u32 buddy_take_run(struct buddy *b, unsigned order, unsigned from, u32 n, u32 *pfns);
void buddy_give_merge(struct buddy *b, u64 pfn, unsigned order);

/* The map of an order, its address kept in a register instead of being computed at each use. */
static inline struct buddy_map *buddy_map_of(struct buddy *b, unsigned order)
{
    struct buddy_map *m = &b->map[order];
    __asm__("" : "+r"(m));
    return m;
}

static inline bool buddy_map_test(const struct buddy_map *m, u64 i)
{
    return bits_test(m->level[0][i / 64], i);
}

/*
 * What follows a change in the bitmap, for the words above: block i is in a word that was zero, or
 * has become zero. The loops over levels are unrolled: a zone has two to four, and the counting would
 * cost more than the work. They end at the level where nothing changes for the word above.
 */
static inline void buddy_summary_set(struct buddy *b, struct buddy_map *m, unsigned order, u64 i)
{
#pragma GCC unroll 5
    for (u32 l = 1; l < BUDDY_LEVELS; l++) {
        if (l == m->levels)
            break;
        i /= 64;
        u64 *word = &m->level[l][i / 64];
        u64 old = *word;
        *word = bits_with(old, i);
        if (likely(old))
            return;
    }
    b->nonempty |= 1u << order;
}

static inline void buddy_summary_clear(struct buddy *b, struct buddy_map *m, unsigned order, u64 i)
{
#pragma GCC unroll 5
    for (u32 l = 1; l < BUDDY_LEVELS; l++) {
        if (l == m->levels)
            break;
        i /= 64;
        u64 *word = &m->level[l][i / 64];
        u64 rest = bits_without(*word, i);
        *word = rest;
        if (likely(rest))
            return;
    }
    b->nonempty &= ~(1u << order);
}

static inline void buddy_block_set(struct buddy *b, unsigned order, u64 i)
{
    struct buddy_map *m = buddy_map_of(b, order);
    u64 *word = &m->level[0][i / 64];
    u64 old = *word;
    m->blocks++;
    *word = bits_with(old, i);
    if (!old)
        buddy_summary_set(b, m, order, i);
}

/* Goes down the summaries to the lowest block; the order must have one. */
static inline u64 buddy_lowest(const struct buddy_map *m)
{
    u64 i = 0, l = m->levels;
    do {
        l--;
        i = i * 64 + bits_lowest(m->level[l][i]);
    } while (l);
    return i;
}

/* Takes out the lowest block of an order that has one. */
static inline u64 buddy_lowest_take(struct buddy *b, unsigned order)
{
    struct buddy_map *m = buddy_map_of(b, order);
    u64 i = buddy_lowest(m);
    u64 *word = &m->level[0][i / 64];
    u64 rest = *word & (*word - 1);
    m->blocks--;
    *word = rest;
    if (unlikely(!rest))
        buddy_summary_clear(b, m, order, i);
    return i;
}

/* Whether the order has a free block of its own. */
static inline bool buddy_has(const struct buddy *b, unsigned order)
{
    return b->nonempty >> order & 1;
}

/* Takes the lowest free block of an order that has one. */
static inline u64 buddy_take_exact(struct buddy *b, unsigned order)
{
    b->free_pages -= 1ull << order;
    return b->base + (buddy_lowest_take(b, order) << order);
}

/* Takes the lowest free block of the order, splitting a larger one if need be; BUDDY_NONE if none. */
static inline u64 buddy_take(struct buddy *b, unsigned order)
{
    u32 fits = b->nonempty >> order;
    if (fits & 1)
        return buddy_take_exact(b, order);
    return fits ? buddy_take_split(b, order, order + (unsigned)bits_lowest(fits)) : BUDDY_NONE;
}

/*
 * Takes up to n blocks, n not 0: those that as many calls of buddy_take would, the first of them last
 * in the array, on top of a stack. It looks in one place only, a word of the bitmap or a larger
 * block, and so may get fewer; 0 when there is none.
 */
static inline u32 buddy_take_many(struct buddy *b, unsigned order, u32 n, u32 *pfns)
{
    u32 fits = b->nonempty >> order;
    if (fits & 1)
        return buddy_take_word(b, order, n, pfns);
    return fits ? buddy_take_run(b, order, order + (unsigned)bits_lowest(fits), n, pfns) : 0;
}

/* Gives a block back unless it merges: then it changes nothing and returns false. */
static inline bool buddy_give_exact(struct buddy *b, u64 pfn, unsigned order)
{
    struct buddy_map *m = buddy_map_of(b, order);
    u64 i = (pfn - b->base) >> order;
    u64 *word = &m->level[0][i / 64];
    u64 old = *word;
    if (order < MAX_ORDER && bits_test(old, i ^ 1))
        return false;
    b->free_pages += 1ull << order;
    m->blocks++;
    *word = bits_with(old, i);
    if (unlikely(!old))
        buddy_summary_set(b, m, order, i);
    return true;
}

/* Gives a block back and merges it as far as it goes. */
static inline void buddy_give(struct buddy *b, u64 pfn, unsigned order)
{
    if (!buddy_give_exact(b, pfn, order))
        buddy_give_merge(b, pfn, order);
}
