/* Magazines: how they fill, spill, drain and are searched. */
#include "x86_64/percpu.h"
#include "mm/pages.h"
#include "mm/pcp.h"
#include "mm/tests/mmtest.h"

static const unsigned cached[] = {0, 1, 2, 3, 9};
static u32 held[128];

static struct magazine *magazine(unsigned order)
{
    return &this_cpu()->pcp.magazine[pcp_index[order]];
}

static u64 alloc(unsigned order)
{
    return pages_alloc(order, PAGE_KERNEL, MMTEST_OWNER, 0);
}

static int give(u64 pfn, unsigned order)
{
    return pages_free(pfn, order, PAGE_KERNEL, MMTEST_OWNER);
}

MM_TEST(pcp, tables)
{
    u32 slots = 0;
    for (unsigned i = 0; i < PCP_MAGAZINES; i++) {
        KTEST_CHECK(pcp_order[i] == cached[i] && pcp_index[cached[i]] == (int)i, "magazine %u", i);
        KTEST_CHECK(pcp_first[i] == slots, "magazine %u: %u, expected %u", i, pcp_first[i], slots);
        slots += pcp_slots[i];
    }
    KTEST_CHECK(slots == PCP_SLOTS, "%u", slots);
}

MM_TEST(pcp, limits)
{
    u64 pages[PCP_MAGAZINES] = {0};
    for_each_cpu(cpu) {
        for (unsigned i = 0; i < PCP_MAGAZINES; i++) {
            const struct magazine *m = &cpu->pcp.magazine[i];
            KTEST_CHECK(m->limit <= pcp_slots[i] && m->limit != 1, "CPU %u, order %u: limit %u",
                        cpu->id, cached[i], m->limit);
            KTEST_CHECK(m->batch == MAX(m->limit / 4, 1) && m->count <= m->limit,
                        "CPU %u, order %u: batch %u, %u of %u", cpu->id, cached[i], m->batch,
                        m->count, m->limit);
            pages[i] += (u64)m->limit << cached[i];
        }
    }
    for (unsigned i = 0; i < PCP_MAGAZINES; i++)
        KTEST_CHECK(pages[i] <= pcp_zone->managed / 64, "order %u: %lu of %lu", cached[i], pages[i],
                    pcp_zone->managed);
}

/* What the zone alone gives, one by one. */
static u32 take_singly(unsigned order, u32 n)
{
    u32 got = 0;
    while (got < n && (held[got] = (u32)zone_take_one(pcp_zone, order, false)))
        got++;
    return got;
}

/* From empty: one alloc fills up to a batch, and hands out what the zone alone would have given. */
static void check_refill(struct ktest *t, unsigned order)
{
    struct magazine *m = magazine(order);
    u32 n = zone_take(pcp_zone, order, m->batch, held);
    zone_give(pcp_zone, order, n, held);
    KTEST_CHECK(n <= m->batch && take_singly(order, n) == n, "order %u: %u blocks", order, n);
    zone_give(pcp_zone, order, n, held);
    u64 taken = pcp_zone->taken[order];
    for (u32 i = 0; i < n; i++) {
        u64 pfn = alloc(order);
        KTEST_CHECK(pfn == held[i], "order %u: block %u is %lu, not %u", order, i, pfn, held[i]);
        KTEST_CHECK(m->count == n - 1 - i && pcp_blocks(order) == m->count, "order %u: %u kept",
                    order, m->count);
    }
    KTEST_CHECK(pcp_zone->taken[order] - taken == n, "order %u: %lu taken, not %u", order,
                pcp_zone->taken[order] - taken, n);
    for (u32 i = 0; i < n; i++)
        KTEST_CHECK(!give(held[i], order), "order %u", order);
    if (n && m->limit)
        KTEST_CHECK(alloc(order) == held[n - 1] && !give(held[n - 1], order),
                    "order %u: not the last one freed", order);
}

MM_TEST(pcp, refill)
{
    for (unsigned i = 0; i < PCP_MAGAZINES; i++) {
        pcp_drain();
        check_refill(t, cached[i]);
    }
}

/* When the magazine is full some go, and what was freed last is what comes next. */
static void check_top(struct ktest *t, unsigned order, u32 n)
{
    struct magazine *m = magazine(order);
    if (n <= m->limit)
        return;
    KTEST_CHECK(m->count == m->limit - (m->batch + 3) / 4 + 1, "order %u: %u of %u", order,
                m->count, m->limit);
    u64 pfn = alloc(order);
    KTEST_CHECK(pfn == held[n - 1] && !give(pfn, order), "order %u: %lu, freed last %u", order, pfn,
                held[n - 1]);
}

static void check_spill(struct ktest *t, unsigned order)
{
    struct magazine *m = magazine(order);
    u32 n = 0, want = m->limit + 1u;
    while (n < want && (held[n] = (u32)alloc(order)))
        n++;
    pcp_drain(); /* what a refill has left over */
    u64 in_zone = pcp_zone->buddy.free_pages, before = pages_free_count();
    u32 own = 0; /* the others are not the magazine's */
    for (u32 i = 0; i < n; i++) {
        own += held[i] >= pcp_zone_start;
        KTEST_CHECK(!give(held[i], order), "order %u, block %u", order, i);
        KTEST_CHECK(m->count == MIN(own, m->limit) || own > m->limit, "order %u: %u of %u", order,
                    m->count, own);
        KTEST_CHECK(m->count <= m->limit, "order %u: %u of %u", order, m->count, m->limit);
    }
    u64 expected = before + ((u64)n << order);
    KTEST_CHECK(pages_free_count() == expected, "order %u: %lu free, expected %lu", order,
                pages_free_count(), expected);
    KTEST_CHECK(own <= m->limit || pcp_zone->buddy.free_pages > in_zone,
                "order %u: %u freed and none went to the zone", order, own);
    check_top(t, order, own == n ? n : 0);
}

MM_TEST(pcp, spill)
{
    unsigned largest = mmtest_largest_order();
    for (unsigned i = 0; i < PCP_MAGAZINES && cached[i] <= largest; i++) {
        pcp_drain();
        check_spill(t, cached[i]);
    }
}

MM_TEST(pcp, drain_empties_all)
{
    unsigned largest = mmtest_largest_order();
    for (unsigned i = 0; i < PCP_MAGAZINES && cached[i] <= largest; i++) {
        u64 pfn = alloc(cached[i]);
        KTEST_CHECK(pfn && !give(pfn, cached[i]), "order %u", cached[i]);
    }
    u64 inside = pcp_pages(), free = pages_free_count(), zone = pcp_zone->buddy.free_pages;
    u64 drained = pcp_drain();
    KTEST_CHECK(drained == inside, "%lu drained of %lu", drained, inside);
    KTEST_CHECK(!pcp_pages() && !pcp_drain(), "%lu still inside", pcp_pages());
    KTEST_CHECK(pages_free_count() == free, "%lu free, %lu before", pages_free_count(), free);
    KTEST_CHECK(pcp_zone->buddy.free_pages == zone + inside, "%lu in the zone, expected %lu",
                pcp_zone->buddy.free_pages, zone + inside);
    for (unsigned i = 0; i < PCP_MAGAZINES; i++)
        KTEST_CHECK(!magazine(cached[i])->count, "order %u", cached[i]);
}

MM_TEST(pcp, orders_without_a_magazine)
{
    unsigned largest = mmtest_largest_order();
    for (unsigned order = 0; order <= largest; order++) {
        if (pcp_index[order] >= 0)
            continue;
        pcp_drain();
        u64 pfn = alloc(order);
        KTEST_CHECK(pfn && !give(pfn, order), "order %u", order);
        KTEST_CHECK(!pcp_pages() && !pcp_blocks(order), "order %u: %lu frames in magazines", order,
                    pcp_pages());
        KTEST_CHECK(page_find(pfn).place == PLACE_FREE, "order %u", order);
    }
}

MM_TEST(pcp, find)
{
    unsigned largest = mmtest_largest_order();
    pcp_drain();
    for (unsigned i = 0; i < PCP_MAGAZINES && cached[i] <= largest; i++) {
        u64 block = 0, pfn = alloc(cached[i]);
        u32 order = 99, cpu = 99;
        bool live = pfn && pcp_find(pfn, &block, &order, &cpu);
        KTEST_CHECK(pfn && !live && !give(pfn, cached[i]), "order %u: live, and found", cached[i]);
        if (!magazine(cached[i])->limit || pfn < pcp_zone_start)
            continue;
        bool found = pcp_find(pfn + (1ull << cached[i]) - 1, &block, &order, &cpu);
        KTEST_CHECK(found && block == pfn && order == cached[i] && cpu == this_cpu()->id,
                    "order %u: block %lu, order %u, CPU %u", cached[i], block, order, cpu);
        struct page_where w = page_find(pfn);
        KTEST_CHECK(w.place == PLACE_MAGAZINE && w.cpu == cpu && w.block == pfn, "place %u",
                    w.place);
    }
}

/* Frames below the zone that the magazines serve go straight back to theirs. */
MM_TEST(pcp, other_zones_frames_stay_out)
{
    u64 block;
    u32 order;
    for (u64 pfn = pcp_zone_start; pfn-- > 1;) {
        if (!zone_find_free(pfn, &block, &order))
            continue;
        pcp_drain();
        KTEST_CHECK(!pages_claim(pfn, PAGE_KERNEL, MMTEST_OWNER), "frame %lu", pfn);
        KTEST_CHECK(!give(pfn, 0) && !pcp_pages(), "%lu frames in magazines", pcp_pages());
        return;
    }
}
