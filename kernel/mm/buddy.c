/* See buddy.h. */
#include "mm/buddy.h"

static u64 words_for(u64 bits)
{
    return (bits + 63) / 64;
}

u64 buddy_words(u64 span)
{
    u64 total = 0;
    for (unsigned order = 0; order < NR_ORDERS; order++) {
        u64 n = span >> order;
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
        u64 n = span >> order;
        do {
            n = words_for(n);
            m->level[m->levels++] = words;
            words += MAX(n, 1);
        } while (n > 1);
    }
}

static inline bool map_test(const struct buddy_map *m, u64 i)
{
    return m->level[0][i / 64] >> (i % 64) & 1;
}

static inline void block_set(struct buddy *b, unsigned order, u64 i)
{
    const struct buddy_map *m = &b->map[order];
    b->blocks[order]++;
    for (u32 l = 0; l < m->levels; l++) {
        u64 *word = &m->level[l][i / 64];
        u64 old = *word;
        *word = old | 1ull << (i % 64);
        if (old)
            return;
        i /= 64;
    }
    b->nonempty |= 1u << order;
}

static inline void block_clear(struct buddy *b, unsigned order, u64 i)
{
    const struct buddy_map *m = &b->map[order];
    b->blocks[order]--;
    for (u32 l = 0; l < m->levels; l++) {
        u64 *word = &m->level[l][i / 64];
        *word &= ~(1ull << (i % 64));
        if (*word)
            return;
        i /= 64;
    }
    b->nonempty &= ~(1u << order);
}

static inline u64 lowest(const struct buddy_map *m)
{
    u64 i = 0;
    for (u32 l = m->levels; l-- > 0;)
        i = i * 64 + (u64)__builtin_ctzll(m->level[l][i]);
    return i;
}

u64 buddy_take(struct buddy *b, unsigned order)
{
    u32 fits = b->nonempty >> order << order;
    if (!fits)
        return BUDDY_NONE;
    unsigned from = (unsigned)__builtin_ctz(fits);
    u64 i = lowest(&b->map[from]);
    block_clear(b, from, i);
    while (from > order) {
        b->splits[from]++;
        from--;
        i *= 2;
        block_set(b, from, i + 1);
    }
    b->free_pages -= 1ull << order;
    return b->base + (i << order);
}

void buddy_give(struct buddy *b, u64 pfn, unsigned order)
{
    u64 i = (pfn - b->base) >> order;
    b->free_pages += 1ull << order;
    while (order < MAX_ORDER && map_test(&b->map[order], i ^ 1)) {
        block_clear(b, order, i ^ 1);
        b->merges[order]++;
        i /= 2;
        order++;
    }
    block_set(b, order, i);
}

void buddy_add(struct buddy *b, u64 start, u64 end)
{
    while (start < end) {
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
        if (map_test(&b->map[o], i)) {
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
        block_set(b, order, half ^ 1);
    }
    b->free_pages--;
    return true;
}
