/* See mmtest.h. */
#include "mm/tests/mmtest.h"
#include "x86_64/paging.h"
#include "x86_64/smp.h"
#include "lib/bits.h"
#include "mm/memmap.h"
#include "mm/pages.h"
#include "mm/pcp.h"

extern u8 kernel_start[];

static struct spinlock turn;

void mmtest_lock(void)
{
    while (!spin_try(&turn))
        smp_poll_work(this_cpu());
}

void mmtest_unlock(void)
{
    spin_unlock(&turn);
}

static void check_zone(struct ktest *t, const struct zone *z, const u64 blocks[NR_ORDERS])
{
    for (unsigned order = 0; order < NR_ORDERS; order++)
        KTEST_CHECK(z->buddy.map[order].blocks == blocks[order],
                    "%s order %u: %lu free blocks, %lu before", z->name, order,
                    z->buddy.map[order].blocks, blocks[order]);
}

void mmtest_run(struct ktest *t, void (*body)(struct ktest *t))
{
    static u64 blocks[NR_ZONES][NR_ORDERS];
    mmtest_lock();
    pcp_drain();
    u64 before = pages_free_count();
    for (int i = 0; i < NR_ZONES; i++)
        for (unsigned order = 0; order < NR_ORDERS; order++)
            blocks[i][order] = zones[i].buddy.map[order].blocks;
    body(t);
    u64 after = pages_free_count();
    KTEST_CHECK(after == before, "%lu frames free, %lu before", after, before);
    pcp_drain();
    u64 drained = pages_free_count();
    KTEST_CHECK(drained == before, "%lu frames free once drained, %lu before", drained, before);
    for (int i = 0; i < NR_ZONES; i++)
        check_zone(t, &zones[i], blocks[i]);
    mmtest_unlock();
}

bool chain_add(struct chain *c, unsigned order, unsigned flags)
{
    u64 pfn = pages_alloc(order, PAGE_KERNEL, MMTEST_OWNER, flags);
    if (!pfn)
        return false;
    page_at(pfn)->links.next = (u32)c->first;
    c->first = pfn;
    c->pages += 1ull << order;
    return true;
}

void chain_fill(struct chain *c, unsigned flags)
{
    for (unsigned order = NR_ORDERS; order-- > 0;)
        while (chain_add(c, order, flags))
            ;
}

u64 chain_free(struct chain *c)
{
    u64 refused = 0;
    while (c->first) {
        struct page *p = page_at(c->first);
        u64 next = p->links.next;
        p->links = (struct page_links){0};
        refused += pages_free(c->first, p->order, PAGE_KERNEL, MMTEST_OWNER) != 0;
        c->first = next;
    }
    c->pages = 0;
    return refused;
}

unsigned mmtest_largest_order(void)
{
    unsigned order = MAX_ORDER;
    for (; order; order--) {
        u64 pfn = pages_alloc(order, PAGE_KERNEL, MMTEST_OWNER, 0);
        if (!pfn)
            continue;
        pages_free(pfn, order, PAGE_KERNEL, MMTEST_OWNER);
        break;
    }
    return order;
}

u64 mmtest_hole(u32 n)
{
    const struct range_set *ram = &memmap.ram;
    if (n + 1 >= ram->count)
        return 0;
    u64 start = pfn_of(ALIGN_UP(ram->range[n].end, PAGE_SIZE));
    u64 end = pfn_of(ram->range[n + 1].start);
    return (start + end) / 2;
}

u64 mmtest_image_pfn(void)
{
    return pfn_of(image_to_phys(kernel_start));
}

static bool map_bit(const struct buddy_map *m, u64 i)
{
    return m->level[0][i / 64] >> (i % 64) & 1;
}

/* A free block in a larger free one. */
static bool is_covered(const struct buddy *b, unsigned order, u64 i)
{
    for (unsigned up = order + 1; up < NR_ORDERS; up++)
        if (map_bit(&b->map[up], i >> (up - order)))
            return true;
    return false;
}

static u64 word_faults(const struct buddy *b, unsigned order, u64 index, u64 *blocks)
{
    u64 word = b->map[order].level[0][index], faults = 0;
    if (order < MAX_ORDER)
        faults += bits_count(word & word >> 1 & 0x5555555555555555ull); /* both halves free */
    for (u64 left = word; left; left &= left - 1, ++*blocks)
        faults += is_covered(b, order, index * 64 + (u64)__builtin_ctzll(left));
    return faults;
}

static u64 order_faults(const struct buddy *b, unsigned order)
{
    const struct buddy_map *m = &b->map[order];
    u64 faults = 0, blocks = 0, n = ((b->span >> order) + 63) / 64;
    for (u64 i = 0; i < n; i++)
        faults += word_faults(b, order, i, &blocks);
    for (u32 l = 1; l < m->levels; l++, n = (n + 63) / 64)
        for (u64 i = 0; i < n; i++)
            faults += !m->level[l - 1][i] != !(m->level[l][i / 64] >> (i % 64) & 1);
    faults += blocks != b->map[order].blocks;
    faults += !blocks != !(b->nonempty >> order & 1);
    return faults;
}

u64 mmtest_buddy_faults(const struct buddy *b)
{
    u64 faults = 0, pages = 0;
    for (unsigned order = 0; order < NR_ORDERS; order++) {
        faults += order_faults(b, order);
        pages += b->map[order].blocks << order;
    }
    return faults + (pages != b->free_pages) + (b->nonempty >> NR_ORDERS != 0);
}
