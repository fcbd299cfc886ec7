/*
 * See kbench.h. The first pair is not timed: it fills the magazine, or splits what must be split.
 * After that a pair takes and gives back the same block, whose buddy is in use, so that nothing
 * splits or merges.
 */
#include "debug/kbench.h"
#include "x86_64/cpu.h"
#include "lib/errno.h"
#include "mm/pages.h"
#include "mm/pcp.h"
#include "mm/zone.h"

#define ROUNDS_MAX 1000000

static bool pair_pages(unsigned order)
{
    u64 pfn = pages_alloc(order, PAGE_KERNEL, 0, 0);
    return pfn && !pages_free(pfn, order, PAGE_KERNEL, 0);
}

static bool pair_zone(unsigned order)
{
    u32 pfn;
    if (!zone_take(pcp_zone, order, 1, false, &pfn))
        return false;
    zone_give(pcp_zone, order, 1, &pfn);
    return true;
}

static __attribute__((noinline)) bool pair_empty(unsigned order)
{
    __asm__ volatile("" : : "r"(order));
    return true;
}

static int time_pairs(bool (*pair)(unsigned), unsigned order, u32 rounds, u64 *ticks)
{
    if (!pair(order))
        return -ENOMEM;
    u64 start = rdtsc();
    for (u32 i = 0; i < rounds; i++)
        pair(order);
    *ticks = rdtsc() - start;
    return 0;
}

/* Holds one block of each order for the time of the measurement, so that a free one is a remnant. */
int kbench_run(u32 what, u32 order, u32 rounds, u64 *ticks)
{
    static bool (*const pairs[])(unsigned) = {pair_pages, pair_zone, pair_empty};
    if (what >= ARRAY_SIZE(pairs) || order > MAX_ORDER || !rounds || rounds > ROUNDS_MAX)
        return -EINVAL;
    u64 held = order < MAX_ORDER ? pages_alloc(order, PAGE_KERNEL, 0, 0) : 0;
    int err = time_pairs(pairs[what], order, rounds, ticks);
    if (held)
        pages_free(held, order, PAGE_KERNEL, 0);
    return err;
}
