/* See buddy.h. */
#include "mm/buddy.h"

static u64 words_for(u64 bits)
{
    return (bits + 63) / 64;
}

/* Blocks of an order, the one that the end of the range cuts off too: it is never free. */
static u64 blocks_in(u64 span, unsigned order)
{
    return (span + (1ull << order) - 1) >> order;
}

u64 buddy_words(u64 span)
{
    u64 total = 0;
    for (unsigned order = 0; order < NR_ORDERS; order++) {
        u64 n = blocks_in(span, order);
        do {
            n = words_for(n);
            total += MAX(n, 1);
        } while (n > 1);
    }
    return total;
}

void buddy_init(struct buddy *b, u64 base, u64 span, u64 *words)
{
    *b = (struct buddy){.base = base, .span = span};
    for (unsigned order = 0; order < NR_ORDERS; order++) {
        struct buddy_map *m = &b->map[order];
        u64 n = blocks_in(span, order);
        do {
            n = words_for(n);
            m->level[m->levels++] = words;
            words += MAX(n, 1);
        } while (n > 1);
    }
}

static void block_clear(struct buddy *b, unsigned order, u64 i)
{
    struct buddy_map *m = &b->map[order];
    m->blocks--;
    for (u32 l = 0; l < m->levels; l++) {
        u64 *word = &m->level[l][i / 64];
        *word &= ~(1ull << (i % 64));
        if (*word)
            return;
        i /= 64;
    }
    b->nonempty &= ~(1u << order);
}

/* The order has no block of its own: halves a larger one, and its lower half again, down to it. */
u64 buddy_take_split(struct buddy *b, unsigned order, unsigned from)
{
    u64 i = buddy_lowest_take(b, from);
    while (from > order) {
        b->splits[from]++;
        from--;
        i *= 2;
        buddy_block_set(b, from, i + 1);
    }
    b->free_pages -= 1ull << order;
    return b->base + (i << order);
}

void buddy_give_merge(struct buddy *b, u64 pfn, unsigned order)
{
    u64 i = (pfn - b->base) >> order;
    b->free_pages += 1ull << order;
    while (order < MAX_ORDER && buddy_map_test(&b->map[order], i ^ 1)) {
        block_clear(b, order, i ^ 1);
        b->merges[order]++;
        i /= 2;
        order++;
    }
    buddy_block_set(b, order, i);
}

/* Sets as many largest blocks as lie in one word of the bitmap; returns how many. */
static u64 largest_set(struct buddy *b, u64 pfn, u64 pages)
{
    u64 i = (pfn - b->base) >> MAX_ORDER;
    u64 n = MIN(pages >> MAX_ORDER, 64 - i % 64);
    buddy_block_set(b, MAX_ORDER, i);
    b->map[MAX_ORDER].level[0][i / 64] |= (n < 64 ? (1ull << n) - 1 : ~0ull) << (i % 64);
    b->map[MAX_ORDER].blocks += n - 1;
    b->free_pages += n << MAX_ORDER;
    return n;
}

void buddy_add(struct buddy *b, u64 start, u64 end)
{
    while (start < end) {
        if (!(start & ((1ull << MAX_ORDER) - 1)) && end - start >= 1ull << MAX_ORDER) {
            start += largest_set(b, start, end - start) << MAX_ORDER;
            continue;
        }
        unsigned order = MAX_ORDER;
        while (start & ((1ull << order) - 1) || end - start < 1ull << order)
            order--;
        buddy_give(b, start, order);
        start += 1ull << order;
    }
}

bool buddy_find(const struct buddy *b, u64 pfn, u64 *block, u32 *order)
{
    if (pfn - b->base >= b->span)
        return false;
    for (unsigned o = 0; o < NR_ORDERS; o++) {
        u64 i = (pfn - b->base) >> o;
        if (buddy_map_test(&b->map[o], i)) {
            *block = b->base + (i << o);
            *order = o;
            return true;
        }
    }
    return false;
}

bool buddy_claim(struct buddy *b, u64 pfn)
{
    u64 block;
    u32 order;
    if (!buddy_find(b, pfn, &block, &order))
        return false;
    block_clear(b, order, (block - b->base) >> order);
    while (order > 0) {
        b->splits[order]++;
        order--;
        u64 half = (pfn - b->base) >> order; /* the half with the frame; the other stays free */
        buddy_block_set(b, order, half ^ 1);
    }
    b->free_pages--;
    return true;
}
