/* The sets of ranges, as boot fills them; tests/unit/test_memmap.c tries many more on the host. */
#include "mm/memmap.h"
#include "mm/tests/mmtest.h"

static struct range_set set;

static void check_range(struct ktest *t, u32 i, u64 start, u64 end)
{
    const struct mem_range *r = &set.range[i];
    KTEST_CHECK(i < set.count && r->start == start && r->end == end,
                "range %u of %u: 0x%lx-0x%lx, expected 0x%lx-0x%lx", i, set.count, r->start, r->end,
                start, end);
}

KTEST(memmap, neighbours_become_one)
{
    mmtest_lock();
    set = (struct range_set){0};
    range_add(&set, 0x5000, 0x6000);
    range_add(&set, 0x1000, 0x2000);
    range_add(&set, 0x3000, 0x3000);
    KTEST_CHECK(set.count == 2, "%u ranges", set.count);
    check_range(t, 0, 0x1000, 0x2000);
    range_add(&set, 0x2000, 0x3000);
    KTEST_CHECK(set.count == 2, "%u ranges", set.count);
    check_range(t, 0, 0x1000, 0x3000);
    check_range(t, 1, 0x5000, 0x6000);
    range_add(&set, 0x800, 0x8000);
    KTEST_CHECK(set.count == 1, "%u ranges", set.count);
    check_range(t, 0, 0x800, 0x8000);
    mmtest_unlock();
}

/* What has no place is left out and counted; the others stay as they are. */
KTEST(memmap, full_table)
{
    mmtest_lock();
    set = (struct range_set){0};
    for (u64 i = 0; i < MEMMAP_RANGES + 3; i++)
        range_add(&set, i * 0x2000, i * 0x2000 + 0x1000);
    KTEST_CHECK(set.count == MEMMAP_RANGES && set.dropped == 3, "%u ranges, %u dropped", set.count,
                set.dropped);
    check_range(t, 0, 0, 0x1000);
    check_range(t, MEMMAP_RANGES - 1, (MEMMAP_RANGES - 1) * 0x2000,
                (MEMMAP_RANGES - 1) * 0x2000 + 0x1000);
    range_add(&set, 0x1000, 0x2000); /* closes a gap: there is room for one more */
    range_add(&set, 0x1000000, 0x1001000);
    KTEST_CHECK(set.count == MEMMAP_RANGES && set.dropped == 3, "%u ranges, %u dropped", set.count,
                set.dropped);
    check_range(t, MEMMAP_RANGES - 1, 0x1000000, 0x1001000);
    mmtest_unlock();
}
