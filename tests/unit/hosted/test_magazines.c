/* Magazines block by block: what is kept, what goes back, in which order, and from where. */
#include "x86_64/percpu.h"
#include "mm/memmap.h"
#include "mm/pages.h"
#include "mm/pcp.h"
#include "mm/tests/mmtest.h"
#include "mm/zone.h"

#define OWNER MMTEST_OWNER

static const u32 slots_of[PCP_MAGAZINES] = {64, 32, 16, 8, 4};
static u32 expected[128];

static struct magazine *magazine(unsigned i)
{
    return &this_cpu()->pcp.magazine[i];
}

static u32 *slots(unsigned i)
{
    return &this_cpu()->pcp.slot[pcp_first[i]];
}

MM_TEST(magazines, limits_to_the_block)
{
    const struct zone *z = zones[ZONE_NORMAL].managed ? &zones[ZONE_NORMAL] : &zones[ZONE_DMA];
    for (unsigned o = 0; o < NR_ORDERS; o++)
        KTEST_CHECK(pcp_index[o] == (o < 4    ? (int)o
                                     : o == 9 ? 4
                                              : -1),
                    "order %u: %d", o, pcp_index[o]);
    KTEST_CHECK(pcp_zone == z && pcp_zone_start == z->start_pfn, "zone %s", pcp_zone->name);
    for_each_cpu(cpu) {
        for (unsigned i = 0; i < PCP_MAGAZINES; i++) {
            u64 limit = z->managed / 64 / cpu_count / (1ull << pcp_order[i]);
            limit = limit > slots_of[i] ? slots_of[i] : limit;
            limit = limit < 2 ? 0 : limit;
            const struct magazine *m = &cpu->pcp.magazine[i];
            KTEST_CHECK(m->limit == limit && m->batch == (limit < 8 ? 1 : limit / 4),
                        "CPU %u, %u: %u, not %lu", cpu->id, i, m->limit, limit);
        }
    }
}

/* A refill takes a batch, gives out its lowest and has the next one on top. */
static void check_refill(struct ktest *t, unsigned i, u8 limit, u8 batch)
{
    struct magazine *m = magazine(i), was = *m;
    unsigned order = pcp_order[i];
    pcp_drain();
    m->limit = limit;
    m->batch = batch;
    u32 n = zone_take(pcp_zone, order, batch, expected);
    KTEST_CHECK(n <= batch, "%u blocks, not %u", n, batch);
    if (n)
        zone_give(pcp_zone, order, n, expected);
    u64 taken = pcp_zone->taken[order];
    spin_lock(&m->lock);
    u64 pfn = pcp_refill(m, slots(i), order);
    KTEST_CHECK(pfn == (n ? expected[n - 1] : 0), "%u of order %u: %lu", limit, order, pfn);
    KTEST_CHECK(pcp_zone->taken[order] - taken == n, "%u of order %u: %lu taken", limit, order,
                pcp_zone->taken[order] - taken);
    KTEST_CHECK(m->count == (n ? n - 1 : 0), "%u of order %u: %u kept", limit, order, m->count);
    for (u32 k = 0; k < m->count; k++)
        KTEST_CHECK(slots(i)[k] == expected[k], "%u of order %u: slot %u", limit, order, k);
    if (pfn)
        zone_give_one(pcp_zone, pfn, order);
    pcp_drain();
    m->limit = was.limit;
    m->batch = was.batch;
}

MM_TEST(magazines, refills)
{
    for (unsigned i = 0; i < PCP_MAGAZINES; i++) {
        check_refill(t, i, 0, 1);
        check_refill(t, i, 2, 1);
        check_refill(t, i, 4, 2);
        if (i < 4)
            check_refill(t, i, 8, 4);
    }
}

#define LIMIT 8
#define BATCH 6 /* a quarter of it, rounded up, goes from a full magazine */
#define SMALL 2

/* Blocks up to the limit, and one more, which spills; the next block's index. */
static u32 fill_and_spill(struct magazine *m, const u32 *held, u32 next)
{
    while (m->count < LIMIT)
        slots(0)[m->count++] = held[next++];
    spin_lock(&m->lock);
    pcp_spill(&this_cpu()->pcp, 0, held[next]);
    return next + 1;
}

static void check_spills(struct ktest *t, struct magazine *m, const u32 *held)
{
    u32 next = 0;
    for (u32 spill = 0; spill < PCP_BURST + 4; spill++) {
        /* The first of all has nothing to go on from; then they count, and then they are a burst. */
        u32 size = spill < PCP_BURST ? SMALL : BATCH, stay = LIMIT - size;
        u64 given = pcp_zone->given[0];
        u32 bottom = slots(0)[0];
        next = fill_and_spill(m, held, next);
        KTEST_CHECK(m->count == stay + 1 && pcp_zone->given[0] == given + size,
                    "spill %u: %u kept, %lu given", spill, m->count, pcp_zone->given[0] - given);
        KTEST_CHECK(slots(0)[stay] == held[next - 1], "spill %u: %u on top", spill, slots(0)[stay]);
        KTEST_CHECK(!spill || slots(0)[0] == bottom, "spill %u: the bottom has moved", spill);
        KTEST_CHECK(page_find(held[next - 2]).place == PLACE_FREE, "spill %u: what was on top",
                    spill);
    }
    m->count--; /* with something taken in between, it is no burst any more */
    zone_give_one(pcp_zone, slots(0)[m->count], 0);
    u64 given = pcp_zone->given[0];
    fill_and_spill(m, held, next);
    KTEST_CHECK(m->count == LIMIT - SMALL + 1 && pcp_zone->given[0] == given + SMALL,
                "after the burst: %u kept", m->count);
}

MM_TEST(magazines, spills)
{
    struct magazine *m = magazine(0), was = *m;
    pcp_drain();
    u32 n = 0, spare;
    while (n < ARRAY_SIZE(expected) && zone_take(pcp_zone, 0, 1, &expected[n]))
        n++;
    m->limit = LIMIT;
    m->batch = BATCH;
    this_cpu()->pcp.spills[0] = 0;
    this_cpu()->pcp.last[0] = 0;
    KTEST_CHECK(n == ARRAY_SIZE(expected), "%u blocks", n);
    check_spills(t, m, expected);
    pcp_drain();
    m->limit = 0; /* too small a zone: straight through */
    if (zone_take(pcp_zone, 0, 1, &spare)) {
        u64 given = pcp_zone->given[0];
        spin_lock(&m->lock);
        pcp_spill(&this_cpu()->pcp, 0, spare);
        KTEST_CHECK(!m->count && pcp_zone->given[0] == given + 1, "%u kept", m->count);
    }
    m->limit = was.limit;
    m->batch = was.batch;
    for (u32 i = 0; i < n; i++) /* what has not been spilt */
        if (page_find(expected[i]).place == PLACE_RESERVED)
            zone_give_one(pcp_zone, expected[i], 0);
}

/* Puts one block into a magazine of a CPU; false when there is none. */
static bool put(struct cpu *cpu, unsigned i, u32 *block)
{
    struct magazine *m = &cpu->pcp.magazine[i];
    if (!zone_take(pcp_zone, pcp_order[i], 1, block))
        return false;
    cpu->pcp.slot[pcp_first[i] + m->count++] = *block;
    return true;
}

MM_TEST(magazines, counted_found_and_drained)
{
    u32 blocks[MAX_CPUS][PCP_MAGAZINES][2] = {0}, n[PCP_MAGAZINES] = {0};
    u64 pages = 0, block;
    u32 order, owner;
    for_each_cpu(cpu)
        for (unsigned i = 0; i < PCP_MAGAZINES; i++)
            for (u32 k = 0; k < 2; k++)
                if (put(cpu, i, &blocks[cpu->id][i][k])) {
                    n[i]++;
                    pages += 1ull << pcp_order[i];
                }
    for (unsigned i = 0; i < PCP_MAGAZINES; i++)
        KTEST_CHECK(pcp_blocks(pcp_order[i]) == n[i], "magazines %u: %lu", i,
                    pcp_blocks(pcp_order[i]));
    for (unsigned o = 4; o < 9; o++)
        KTEST_CHECK(!pcp_blocks(o), "order %u: %lu", o, pcp_blocks(o));
    KTEST_CHECK(pcp_pages() == pages, "%lu, not %lu", pcp_pages(), pages);
    for_each_cpu(cpu)
        for (unsigned i = 0; i < PCP_MAGAZINES; i++)
            for (u32 k = 0; k < 2; k++) {
                u64 first = blocks[cpu->id][i][k], size = 1ull << pcp_order[i];
                if (!first)
                    continue;
                for (u64 at = first; at<first + size; at += size> 1 ? size - 1 : 1) {
                    bool found = pcp_find(at, &block, &order, &owner);
                    KTEST_CHECK(found && block == first && order == pcp_order[i] &&
                                    owner == cpu->id,
                                "frame %lu: block %lu, order %u, CPU %u", at, block, order, owner);
                }
            }
    KTEST_CHECK(!pcp_find(0, &block, &order, &owner), "frame 0");
    KTEST_CHECK(!pcp_find(page_end_pfn, &block, &order, &owner), "the end");
    KTEST_CHECK(pcp_drain() == pages && !pcp_pages(), "%lu left", pcp_pages());
}

/* With the preferred zone used up, the other one serves; magazines of all CPUs are emptied first. */
MM_TEST(magazines, when_the_zone_is_empty)
{
    struct chain all = {0};
    u32 block = 0;
    struct cpu *other = &cpus[cpu_count - 1];
    if (!put(other, 2, &block))
        return;
    chain_fill(&all, PAGES_RESERVE);
    KTEST_CHECK(!pcp_pages() && !pages_free_count(), "%lu frames in magazines", pcp_pages());
    KTEST_CHECK(!pages_alloc(0, PAGE_KERNEL, OWNER, PAGES_RESERVE), "there is none");
    KTEST_CHECK(!pages_alloc(5, PAGE_KERNEL, OWNER, PAGES_RESERVE), "there is none");
    KTEST_CHECK(!chain_free(&all), "giving back");
    pcp_drain();
    if (pcp_zone == &zones[ZONE_DMA])
        return;
    for (unsigned order = 0; order < 6; order += 5) {
        u64 failures = pcp_zone->failures, taken = zones[ZONE_DMA].taken[order];
        struct chain normal = {0};
        while (pcp_zone->buddy.free_pages > pcp_zone->watermark_min)
            for (unsigned o = NR_ORDERS; o-- > 0;)
                if (pcp_zone->buddy.nonempty >> o &&
                    pcp_zone->buddy.free_pages >= pcp_zone->watermark_min + (1ull << o)) {
                    chain_add(&normal, o, 0);
                    break;
                }
        u64 pfn = pages_alloc(order, PAGE_KERNEL, OWNER, 0);
        KTEST_CHECK(pfn && zone_of(pfn) == &zones[ZONE_DMA], "order %u: %lu", order, pfn);
        KTEST_CHECK(pcp_zone->failures > failures, "order %u: %lu", order, pcp_zone->failures);
        KTEST_CHECK(zones[ZONE_DMA].taken[order] == taken + 1, "order %u", order);
        KTEST_CHECK(!pages_free(pfn, order, PAGE_KERNEL, OWNER) && !pcp_pages(), "order %u", order);
        KTEST_CHECK(page_find(pfn).place == PLACE_FREE, "order %u", order);
        KTEST_CHECK(!chain_free(&normal), "giving back");
        pcp_drain();
    }
}
