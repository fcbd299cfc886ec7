/*
 * Pairs of an allocation and a free; see kbench.h. A first pair is not timed: it fills the magazine.
 *
 * For KBENCH_PAGES and KBENCH_ZONE each pair takes and gives back the same block, whose buddy is in
 * use, so that nothing splits or merges. KBENCH_ASIS takes memory as it is: an order that has no
 * magazine is split off a larger block and merged again, each time.
 */
#include "debug/kbench.h"
#include "lib/errno.h"
#include "mm/pages.h"
#include "mm/pcp.h"
#include "mm/zone.h"

#define ROUNDS_MAX 1000000
#define HELD_MAX   256

/* Blocks kept out of the zone during a measurement; 0: given back already. */
struct held {
    u64 pfn[HELD_MAX];
    u32 count;
};

/* One loop for each order, so that the order is a constant, as it is where the kernel allocates. */
#define DEFINE_PAGES(order)                                                                        \
    static __attribute__((noinline)) u64 time_pages_##order(u32 rounds)                            \
    {                                                                                              \
        u64 start = rdtsc();                                                                       \
        for (u32 i = 0; i < rounds; i++)                                                           \
            pages_free(pages_alloc(order, PAGE_KERNEL, 0, 0), order, PAGE_KERNEL, 0);              \
        return rdtsc() - start;                                                                    \
    }
DEFINE_PAGES(0)
DEFINE_PAGES(1)
DEFINE_PAGES(2)
DEFINE_PAGES(3)
DEFINE_PAGES(4)
DEFINE_PAGES(5)
DEFINE_PAGES(6)
DEFINE_PAGES(7)
DEFINE_PAGES(8)
DEFINE_PAGES(9)
DEFINE_PAGES(10)

static u64 (*const time_pages[NR_ORDERS])(u32) = {
    time_pages_0, time_pages_1, time_pages_2, time_pages_3, time_pages_4,  time_pages_5,
    time_pages_6, time_pages_7, time_pages_8, time_pages_9, time_pages_10,
};

/* Past the magazines, also for the orders that have them. */
static u64 time_zone(unsigned order, u32 rounds)
{
    u64 start = rdtsc();
    for (u32 i = 0; i < rounds; i++) {
        u64 pfn = zone_take_one(pcp_zone, order, false);
        if (unlikely(!pfn)) /* others took the last one */
            return 0;
        zone_give_one(pcp_zone, pfn, order);
    }
    return rdtsc() - start;
}

static __attribute__((noinline)) u64 time_empty(u32 rounds)
{
    u64 start = rdtsc();
    for (u32 i = 0; i < rounds; i++)
        compiler_barrier();
    return rdtsc() - start;
}

static u64 time_pairs(u32 what, u32 order, u32 rounds)
{
    switch (what) {
    case KBENCH_PAGES:
    case KBENCH_ASIS:
        return time_pages[order](rounds);
    case KBENCH_ZONE:
    case KBENCH_LAST:
        return time_zone(order, rounds);
    default:
        return time_empty(rounds);
    }
}

static bool hold(struct held *h, unsigned order)
{
    u64 pfn = zone_take_one(pcp_zone, order, false);
    if (pfn)
        h->pfn[h->count++] = pfn;
    return pfn;
}

/*
 * Some blocks of the order are free, as is usual: of four that lie together, every other one. For
 * KBENCH_LAST just one is: taking it and giving it back changes every level of the summaries.
 */
static void prepare(struct held *h, u32 what, unsigned order)
{
    if (what == KBENCH_LAST) {
        while (h->count < HELD_MAX && READ_ONCE(pcp_zone->buddy.map[order].blocks) != 1 &&
               hold(h, order))
            ;
        return;
    }
    if (what == KBENCH_ASIS)
        return;
    for (unsigned i = 0; i < 4; i++)
        hold(h, order);
    for (unsigned i = 0; i < h->count; i += 2) {
        zone_give_one(pcp_zone, h->pfn[i], order);
        h->pfn[i] = 0;
    }
}

/* Fills the magazine; not for pairs past it, as it would take what they are to find. */
static bool warm_up(u32 what, u32 order)
{
    if (what == KBENCH_ZONE || what == KBENCH_LAST)
        return true;
    u64 pfn = pages_alloc(order, PAGE_KERNEL, 0, 0);
    if (pfn)
        pages_free(pfn, order, PAGE_KERNEL, 0);
    return pfn;
}

static u64 measure(struct held *h, u32 what, u32 order, u32 rounds)
{
    prepare(h, what, order);
    return warm_up(what, order) ? time_pairs(what, order, rounds) : 0;
}

int kbench_pairs(u32 what, u32 order, u32 rounds, u64 *ticks)
{
    static struct held h;
    if (what > KBENCH_ASIS || order > MAX_ORDER || !rounds || rounds > ROUNDS_MAX)
        return -EINVAL;
    kbench_begin();
    h.count = 0;
    *ticks = measure(&h, what, order, rounds);
    for (unsigned i = 0; i < h.count; i++)
        if (h.pfn[i])
            zone_give_one(pcp_zone, h.pfn[i], order);
    bool done = *ticks;
    kbench_end();
    return done ? 0 : -ENOMEM;
}
