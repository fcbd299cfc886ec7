/*
 * The slow ways of an allocation and of a free, and the first and last frames of RAM and of zones:
 * what an allocation takes, and what it leaves where it was.
 */
#include "x86_64/percpu.h"
#include "hosted/machine.h"
#include "lib/errno.h"
#include "mm/memmap.h"
#include "mm/pages.h"
#include "mm/pcp.h"
#include "mm/tests/mmtest.h"
#include "mm/zone.h"

#define OWNER MMTEST_OWNER

static struct magazine *magazine(struct cpu *cpu, unsigned order)
{
    return &cpu->pcp.magazine[pcp_index[order]];
}

static u64 put(struct cpu *cpu, unsigned order)
{
    u32 block = 0;
    if (!zone_take(pcp_zone, order, 1, &block))
        return 0;
    cpu->pcp.slot[pcp_first[pcp_index[order]] + magazine(cpu, order)->count++] = block;
    return block;
}

/* An empty magazine is filled from the zone; what is in others stays there. */
MM_TEST(allocations, a_miss_drains_nothing)
{
    struct cpu *other = &cpus[cpu_count - 1];
    for (unsigned order = 0; order < 4; order++) {
        unsigned beside = (order + 1) % 4;
        pcp_drain();
        u64 block = put(other, beside);
        u64 pfn = pages_alloc(order, PAGE_KERNEL, OWNER, 0);
        KTEST_CHECK(pfn && block && pcp_blocks(beside) == 1, "order %u: %lu blocks", order,
                    pcp_blocks(beside));
        const struct magazine *m = magazine(this_cpu(), order);
        KTEST_CHECK(m->count < m->batch, "order %u: %u kept", order, m->count);
        KTEST_CHECK(!pages_free(pfn, order, PAGE_KERNEL, OWNER), "order %u", order);
    }
    pcp_drain();
    u64 block = put(other, 0), pfn = pages_alloc(5, PAGE_KERNEL, OWNER, 0);
    KTEST_CHECK(block && pfn && pcp_blocks(0) == 1, "order 5: %lu blocks", pcp_blocks(0));
    KTEST_CHECK(!pages_free(pfn, 5, PAGE_KERNEL, OWNER), "order 5");
}

/* All that is left lies in another magazine: it goes to the zone, and comes from there. */
static void check_drained(struct ktest *t, unsigned order)
{
    struct cpu *other = &cpus[cpu_count - 1];
    struct chain all = {0};
    u64 min = pcp_zone->watermark_min, block = 0;
    pcp_drain();
    u64 held = pages_alloc(6, PAGE_KERNEL, OWNER, 0);
    chain_fill(&all, PAGES_RESERVE);
    pages_free(held, 6, PAGE_KERNEL, OWNER);
    pcp_zone->watermark_min = 0;
    if (zone_of(held) == pcp_zone && cpu_count > 1) {
        machine_switch(0);
        for (unsigned i = 0; i < 8; i++)
            block = put(other, 3);
        KTEST_CHECK(!pcp_zone->buddy.free_pages && block, "%lu free", pcp_zone->buddy.free_pages);
        u64 pfn = pages_alloc(order, PAGE_KERNEL, OWNER, 0);
        KTEST_CHECK(pfn == held, "order %u: %lu, not %lu", order, pfn, held);
        KTEST_CHECK(!pcp_pages(), "order %u: %lu frames in magazines", order, pcp_pages());
        KTEST_CHECK(!pages_free(pfn, order, PAGE_KERNEL, OWNER), "order %u", order);
        pcp_drain();
    }
    pcp_zone->watermark_min = min;
    KTEST_CHECK(!chain_free(&all), "giving back");
}

MM_TEST(allocations, of_what_others_have_kept)
{
    check_drained(t, 0);
    check_drained(t, 5);
    check_drained(t, 6);
}

/* What is below the watermark is for the reserve, and stays out of magazines. */
MM_TEST(allocations, of_the_reserve)
{
    struct chain all = {0};
    chain_fill(&all, 0);
    u64 reserve = pcp_zone->buddy.free_pages;
    u64 pfn = pages_alloc(0, PAGE_KERNEL, OWNER, PAGES_RESERVE);
    KTEST_CHECK(pfn && zone_of(pfn) == pcp_zone && !pcp_pages(), "%lu frames in magazines",
                pcp_pages());
    KTEST_CHECK(pcp_zone->buddy.free_pages == reserve - 1, "%lu of %lu left",
                pcp_zone->buddy.free_pages, reserve);
    KTEST_CHECK(!pages_free(pfn, 0, PAGE_KERNEL, OWNER) && !chain_free(&all), "giving back");
}

/* Page tables and pools may be made of the reserve: their frames go back to the zone. */
MM_TEST(allocations, frames_of_the_reserve_stay_out)
{
    static const enum page_kind kinds[] = {PAGE_KERNEL, PAGE_CLIENT, PAGE_TABLE, PAGE_POOL};
    const struct magazine *m = magazine(this_cpu(), 0);
    for (u32 i = 0; i < ARRAY_SIZE(kinds); i++) {
        u64 pfn = pages_alloc(0, kinds[i], OWNER, 0);
        pcp_drain();
        u64 given = zone_of(pfn)->given[0];
        bool kept = i < 2 && m->limit && pfn >= pcp_zone_start;
        KTEST_CHECK(!pages_free(pfn, 0, kinds[i], OWNER), "kind %u", kinds[i]);
        KTEST_CHECK(m->count == kept && zone_of(pfn)->given[0] - given == !kept, "kind %u: %u kept",
                    kinds[i], m->count);
    }
}

/* The first frame that goes through magazines does; the one below it does not. */
MM_TEST(allocations, border_of_the_magazines)
{
    u64 start = pcp_zone_start, pfn = pages_alloc(1, PAGE_KERNEL, OWNER, 0);
    const struct magazine *m = magazine(this_cpu(), 0);
    pcp_drain();
    pages_split(pfn, 1);
    pcp_zone_start = pfn + 1;
    u64 given = pcp_zone->given[0];
    KTEST_CHECK(!pages_free(pfn + 1, 0, PAGE_KERNEL, OWNER), "frame %lu", pfn + 1);
    KTEST_CHECK(m->count == (m->limit != 0), "%u kept", m->count);
    KTEST_CHECK(pcp_zone->given[0] == given + !m->limit, "%lu given", pcp_zone->given[0] - given);
    given = pcp_zone->given[0];
    KTEST_CHECK(!pages_free(pfn, 0, PAGE_KERNEL, OWNER), "frame %lu", pfn);
    KTEST_CHECK(m->count == (m->limit != 0), "%u kept", m->count);
    KTEST_CHECK(pcp_zone->given[0] == given + 1, "%lu given", pcp_zone->given[0] - given);
    pcp_zone_start = start;
}

/* A free goes into the magazine up to its limit, and then makes room for a few. */
MM_TEST(allocations, frees_up_to_the_limit)
{
    struct magazine *m = magazine(this_cpu(), 0);
    u64 pfn[80];
    if (!m->limit)
        return;
    for (u32 i = 0; i < m->limit + 1u; i++)
        pfn[i] = pages_alloc(0, PAGE_KERNEL, OWNER, 0);
    pcp_drain();
    u32 limit = m->limit, kept = 0;
    this_cpu()->pcp.spills[0] = 0;
    for (u32 i = 0; i < limit + 1; i++) {
        u64 given = pcp_zone->given[0];
        bool mine = pfn[i] >= pcp_zone_start;
        KTEST_CHECK(!pages_free(pfn[i], 0, PAGE_KERNEL, OWNER), "frame %lu", pfn[i]);
        u32 spilt = mine && kept == limit ? (m->batch + 3u) / 4 : 0;
        kept += mine;
        kept -= spilt;
        KTEST_CHECK(m->count == kept && pcp_zone->given[0] - given == (mine ? spilt : 0),
                    "%u freed: %u kept, not %u", i + 1, m->count, kept);
    }
}

static void check_claim(struct ktest *t, u64 pfn, bool is_ram)
{
    int err = pages_claim(pfn, PAGE_KERNEL, OWNER);
    KTEST_CHECK((err != -EINVAL) == is_ram && (!err || err == -EBUSY || err == -EINVAL),
                "frame %lu: %d", pfn, err);
    if (!err)
        KTEST_CHECK(!pages_free(pfn, 0, PAGE_KERNEL, OWNER), "frame %lu", pfn);
}

MM_TEST(allocations, claims_at_the_ends_of_ram)
{
    for (u32 i = 0; i < memmap.ram.count; i++) {
        u64 first = pfn_of(memmap.ram.range[i].start), end = pfn_of(memmap.ram.range[i].end);
        check_claim(t, first - 1, false);
        check_claim(t, first, true);
        check_claim(t, end - 1, true);
        check_claim(t, end, false);
        KTEST_CHECK(page_find(first).place != PLACE_NOT_RAM, "frame %lu", first);
        KTEST_CHECK(page_find(end - 1).place != PLACE_NOT_RAM, "frame %lu", end - 1);
        KTEST_CHECK(page_find(first - 1).place == PLACE_NOT_RAM, "frame %lu", first - 1);
        KTEST_CHECK(page_find(end).place == PLACE_NOT_RAM, "frame %lu", end);
    }
}
