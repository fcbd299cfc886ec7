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

static inline void block_clear(struct buddy *b, struct buddy_map *m, unsigned order, u64 i)
{
    u64 *word = &m->level[0][i / 64];
    u64 rest = bits_without(*word, i);
    m->blocks--;
    *word = rest;
    if (!rest)
        buddy_summary_clear(b, m, order, i);
}

/* Sets the only block of an order that has none: all words of its map are zero. */
static inline void block_set_only(struct buddy_map *m, u64 i)
{
    m->blocks = 1;
    m->level[0][i / 64] = bits_with(0, i);
#pragma GCC unroll 5
    for (u32 l = 1; l < BUDDY_LEVELS; l++) {
        if (l == m->levels)
            break;
        i /= 64;
        m->level[l][i / 64] = bits_with(0, i);
    }
}

/*
 * The order, and all up to `from`, have no block. Takes the lowest block of order `from` apart: its
 * first `taken` blocks of the order are taken, the rest of it stays free, in the largest blocks that
 * fit. Returns the index of the first. The counts of splits are those of taking one by one.
 */
static inline __attribute__((always_inline)) u64 take_apart(struct buddy *b, unsigned order,
                                                            unsigned from, u64 taken)
{
    u64 first = buddy_lowest_take(b, from) << (from - order), at = first;
    struct buddy_map *m = buddy_map_of(b, order);
    /* The blocks that stay free are the bits of their number. */
    b->nonempty |= (u32)((1ull << (from - order)) - taken) << order;
    for (; order < from; order++, m++) {
        if (taken & 1)
            block_set_only(m, at + taken++);
        at /= 2;
        taken /= 2;
        b->splits[order + 1] += taken;
    }
    return first;
}

u64 buddy_take_split(struct buddy *b, unsigned order, unsigned from)
{
    b->free_pages -= 1ull << order;
    return b->base + (take_apart(b, order, from, 1) << order);
}

/* Up to n blocks out of the lowest word of the bitmap that has any. */
u32 buddy_take_word(struct buddy *b, unsigned order, u32 n, u32 *pfns)
{
    struct buddy_map *m = buddy_map_of(b, order);
    u64 i = buddy_lowest(m), *word = &m->level[0][i / 64], rest = *word;
    u32 base = (u32)(b->base + (i / 64 * 64 << order));
    u32 got = (u32)MIN((u64)n, bits_count(rest));
    for (u32 left = got; left-- > 0; rest &= rest - 1)
        pfns[left] = base + (u32)(bits_lowest(rest) << order);
    *word = rest;
    m->blocks -= got;
    b->free_pages -= (u64)got << order;
    if (!rest)
        buddy_summary_clear(b, m, order, i);
    return got;
}

/* Up to n blocks out of one larger one. */
u32 buddy_take_run(struct buddy *b, unsigned order, unsigned from, u32 n, u32 *pfns)
{
    u32 got = (u32)MIN((u64)n, 1ull << (from - order)), size = 1u << order;
    b->free_pages -= (u64)got << order;
    u32 pfn = (u32)(b->base + (take_apart(b, order, from, got) << order));
#pragma GCC unroll 4
    for (u32 *at = pfns + got; at > pfns; pfn += size)
        *--at = pfn;
    return got;
}

/*
 * Gives block i of an order, whose map is m, back and merges it as far as it goes. free_pages is the
 * caller's.
 */
static inline __attribute__((always_inline)) void give(struct buddy *b, struct buddy_map *m,
                                                       unsigned order, u64 i)
{
    for (;; order++, m++, i /= 2) {
        u64 *word = &m->level[0][i / 64], old = *word;
        if (order == MAX_ORDER || !bits_test(old, i ^ 1)) {
            m->blocks++;
            *word = bits_with(old, i);
            if (unlikely(!old))
                buddy_summary_set(b, m, order, i);
            return;
        }
        m->blocks--;
        b->merges[order]++;
        *word = old = bits_without(old, i ^ 1);
        if (unlikely(!old))
            buddy_summary_clear(b, m, order, i);
    }
}

static void give_one(struct buddy *b, unsigned order, u64 i)
{
    give(b, buddy_map_of(b, order), order, i);
}

void buddy_give_merge(struct buddy *b, u64 pfn, unsigned order)
{
    b->free_pages += 1ull << order;
    give_one(b, order, (pfn - b->base) >> order);
}

/*
 * Gives the blocks [i, end) of an order, as the largest blocks that they make up. The counts of
 * merges are those of giving them one by one.
 */
static void give_run(struct buddy *b, unsigned order, u64 i, u64 end)
{
    for (; i < end && order < MAX_ORDER; order++) {
        if (i & 1)
            give_one(b, order, i++);
        if (end & 1 && i < end)
            give_one(b, order, --end);
        i /= 2;
        end /= 2;
        b->merges[order] += end - i;
    }
    for (; i < end; i++)
        give_one(b, order, i);
}

/* How many of the blocks, from the first on, lie one behind the other, upwards or downwards. */
static u32 run_length(unsigned order, u32 n, const u32 *pfns)
{
    u32 size = 1u << order, run = 1, step = n > 1 ? pfns[1] - pfns[0] : 0;
    if (step == size || step == -size)
        while (run < n && pfns[run] - pfns[run - 1] == step)
            run++;
    return run;
}

/* Gives what lies in runs at the beginning; returns how many. */
static __attribute__((noinline)) u32 give_runs(struct buddy *b, unsigned order, u32 n,
                                               const u32 *pfns)
{
    u32 done = 0, run;
    while ((run = run_length(order, n - done, pfns + done)) > 1) {
        u64 i = (MIN(pfns[done], pfns[done + run - 1]) - b->base) >> order;
        give_run(b, order, i, i + run);
        done += run;
    }
    return done;
}

/* Frames that were allocated in a row are often given back in a row: what begins so is given as runs. */
void buddy_give_many(struct buddy *b, unsigned order, u32 n, const u32 *pfns)
{
    struct buddy_map *m = buddy_map_of(b, order);
    const u32 *end = pfns + n;
    b->free_pages += (u64)n << order;
    if (n > 1 && pfns[1] - pfns[0] + (1u << order) <= 2u << order)
        pfns += give_runs(b, order, n, pfns);
    for (; pfns < end; pfns++)
        give(b, m, order, (*pfns - b->base) >> order);
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
    block_clear(b, buddy_map_of(b, order), order, (block - b->base) >> order);
    while (order > 0) {
        b->splits[order]++;
        order--;
        u64 half = (pfn - b->base) >> order; /* the half with the frame; the other stays free */
        buddy_block_set(b, order, half ^ 1);
    }
    b->free_pages--;
    return true;
}
