/*
 * What a zone has after booting, against the memory map that it was made from; and its watermarks,
 * counts and failures to the frame.
 */
#include "x86_64/paging.h"
#include "x86_64/percpu.h"
#include "lib/string.h"
#include "mm/memmap.h"
#include "mm/pages.h"
#include "mm/pcp.h"
#include "mm/tests/mmtest.h"
#include "mm/zone.h"

#define BLOCK (1ull << MAX_ORDER)

static u64 free_between(u64 start, u64 end)
{
    u64 n = 0;
    for (u32 i = 0; i < memmap.free.count; i++)
        for (u64 pfn = pfn_of(memmap.free.range[i].start); pfn < pfn_of(memmap.free.range[i].end);
             pfn++)
            n += pfn >= start && pfn < end;
    return n;
}

MM_TEST(zones, bounds)
{
    u64 end = (page_end_pfn + BLOCK - 1) / BLOCK * BLOCK;
    const struct zone *dma = &zones[ZONE_DMA], *normal = &zones[ZONE_NORMAL];
    const struct zone *high = &zones[ZONE_HIGHMEM];
    KTEST_CHECK(!strcmp(dma->name, "DMA") && !strcmp(normal->name, "NORMAL"), "names");
    KTEST_CHECK(!dma->start_pfn && dma->end_pfn == MIN(end, 4096ul), "DMA ends at %lu",
                dma->end_pfn);
    KTEST_CHECK(normal->start_pfn == dma->end_pfn && normal->end_pfn == end, "NORMAL %lu-%lu",
                normal->start_pfn, normal->end_pfn);
    KTEST_CHECK(high->start_pfn == end && high->end_pfn == end && !high->managed, "HIGHMEM %lu",
                high->managed);
    for (u64 pfn = 0; pfn < end; pfn += 512)
        KTEST_CHECK(zone_of(pfn) == (pfn < 4096 ? dma : normal), "frame %lu", pfn);
    KTEST_CHECK(zone_of(dma->end_pfn - 1) == dma && zone_of(dma->end_pfn) == normal, "the border");
}

MM_TEST(zones, manage_what_is_free)
{
    for (int i = 0; i < NR_ZONES; i++) {
        const struct zone *z = &zones[i];
        u64 n = free_between(z->start_pfn, z->end_pfn);
        KTEST_CHECK(z->managed == n, "zone %s: %lu frames, not %lu", z->name, z->managed, n);
        KTEST_CHECK(z->buddy.base == z->start_pfn && z->buddy.span == z->end_pfn - z->start_pfn,
                    "zone %s: base %lu, span %lu", z->name, z->buddy.base, z->buddy.span);
        KTEST_CHECK(z->watermark_min == n / 256, "zone %s: min %lu", z->name, z->watermark_min);
        KTEST_CHECK(z->watermark_low == n / 256 * 5 / 4 && z->watermark_high == n / 256 * 3 / 2,
                    "zone %s: low %lu, high %lu", z->name, z->watermark_low, z->watermark_high);
        KTEST_CHECK(z->watermark_quick == z->watermark_min + BLOCK, "zone %s: quick %lu", z->name,
                    z->watermark_quick);
    }
}

/* The bitmaps are apart from each other and from what is given out. */
MM_TEST(zones, bitmaps_have_their_own_memory)
{
    u64 end = 0;
    for (int i = 0; i < NR_ZONES; i++) {
        const struct buddy *b = &zones[i].buddy;
        u64 start = direct_to_phys(b->map[0].level[0]), bytes = buddy_words(b->span) * 8;
        KTEST_CHECK(start % PAGE_SIZE == 0 && start >= end, "zone %d: 0x%lx", i, start);
        end = ALIGN_UP(start + bytes, PAGE_SIZE);
        KTEST_CHECK(range_contains(&memmap.ram, start, end) &&
                        !range_overlaps(&memmap.free, start, end),
                    "zone %d: 0x%lx-0x%lx", i, start, end);
    }
}

/* Whatever is allocated early is counted, but for page tables, stacks and the first page's mark. */
MM_TEST(zones, metadata_is_counted)
{
    u64 bytes = cpu_count * sizeof(struct pcp);
    struct pt_step steps[PT_LEVELS];
    for (int i = 0; i < NR_ZONES; i++)
        bytes += ALIGN_UP(buddy_words(zones[i].buddy.span) * 8, PAGE_SIZE);
    for (u64 at = 0; at < page_end_pfn * sizeof(struct page); at += PAGE_SIZE) {
        unsigned n = paging_walk(paging_kernel_root(), VMEMMAP + at, steps);
        if (!(steps[n - 1].entry & PTE_WRITE))
            continue;
        if (steps[n - 1].level == 1)
            bytes += PAGE_SIZE;
        else if (at % pt_span(2) == 0)
            bytes += pt_span(2);
    }
    KTEST_CHECK(memmap.metadata_bytes == bytes, "%lu bytes, not %lu", memmap.metadata_bytes, bytes);
}

static void set_free_to(struct chain *c, struct zone *z, u64 free)
{
    *c = (struct chain){0};
    for (unsigned order = NR_ORDERS; order-- > 0;)
        while (z->buddy.free_pages >= free + (1ull << order)) {
            u64 pfn = zone_take_one(z, order, true);
            if (!pfn)
                break;
            page_at(pfn)->head = page_head(PAGE_KERNEL, order, MMTEST_OWNER);
            page_at(pfn)->links.next = (u32)c->first;
            c->first = pfn;
        }
}

static void give_back(struct chain *c, struct zone *z)
{
    while (c->first) {
        struct page *p = page_at(c->first);
        u64 next = p->links.next;
        zone_give_one(z, c->first, p->order);
        p->head = 0;
        p->links = (struct page_links){0};
        c->first = next;
    }
}

/* With so many free frames, and all of them apart: single ones can be had down to the mark. */
static void check_floor(struct ktest *t, struct zone *z, u64 free, bool reserve)
{
    u32 pfns[3] = {0}, n = 0;
    u64 floor = reserve ? 0 : z->watermark_min, left = free > floor ? free - floor : 0;
    u64 failures = z->failures, taken = z->taken[0], given = z->given[0];
    if (!reserve) {
        for (u32 got = 1; got && n < 3; n += got)
            got = zone_take(z, 0, 3 - n, pfns + n);
        KTEST_CHECK(n == MIN(left, 3ul), "zone %s: %u of %lu above the mark", z->name, n, left);
        KTEST_CHECK(z->failures == failures + (n < 3), "%lu failures, %lu before", z->failures,
                    failures);
        KTEST_CHECK(z->taken[0] == taken + n, "%lu taken", z->taken[0] - taken);
        if (n)
            zone_give(z, 0, n, pfns);
        KTEST_CHECK(z->given[0] == given + n, "%lu given", z->given[0] - given);
    }
    failures = z->failures, taken = z->taken[0], given = z->given[0];
    u64 pfn = zone_take_one(z, 0, reserve);
    KTEST_CHECK(!pfn == !left, "zone %s: frame %lu, %lu above the mark", z->name, pfn, left);
    KTEST_CHECK(z->failures == failures + !pfn && z->taken[0] == taken + !!pfn,
                "%lu failures, %lu taken", z->failures - failures, z->taken[0] - taken);
    if (pfn)
        zone_give_one(z, pfn, 0);
    KTEST_CHECK(z->given[0] == given + !!pfn, "%lu given", z->given[0] - given);
    KTEST_CHECK(z->buddy.free_pages == free, "%lu free", z->buddy.free_pages);
}

MM_TEST(zones, watermarks_to_the_frame)
{
    struct chain c;
    for (int i = 0; i < NR_ZONES; i++) {
        struct zone *z = &zones[i];
        if (!z->managed)
            continue;
        for (u64 above = 0; above < 5; above++) {
            set_free_to(&c, z, z->watermark_min + above);
            check_floor(t, z, z->watermark_min + above, false);
            give_back(&c, z);
            set_free_to(&c, z, above);
            check_floor(t, z, above, true);
            check_floor(t, z, above, false);
            give_back(&c, z);
        }
    }
}

/* A block of an order counts as so many frames against the mark. */
MM_TEST(zones, watermarks_of_blocks)
{
    struct zone *z = pcp_zone;
    struct chain c;
    u32 block;
    for (unsigned order = 1; order < 5; order++) {
        u64 size = 1ull << order;
        for (u64 above = 0; above < 3; above++) {
            u64 free = z->watermark_min + size + above - 1;
            u64 held = zone_take_one(z, order, true), high = zone_take_one(z, order + 1, true);
            set_free_to(&c, z, free - size);
            zone_give_one(z, held, order); /* so that there is one block of the order */
            u32 n = zone_take(z, order, 1, &block);
            KTEST_CHECK(n == (above > 0), "order %u, %lu above: %u", order, above, n);
            if (n)
                zone_give(z, order, n, &block);
            u64 one = zone_take_one(z, order, false);
            KTEST_CHECK(!one == !above, "order %u, %lu above: %lu", order, above, one);
            if (one)
                zone_give_one(z, one, order);
            give_back(&c, z);
            zone_give_one(z, high, order + 1);
        }
    }
}

/* The quick way stops at the mark where a block of the largest order would go below min. */
MM_TEST(zones, quick_way_keeps_the_reserve)
{
    struct zone *z = pcp_zone;
    struct chain c;
    if (z->managed < 8 * BLOCK)
        return;
    for (u64 above = 0; above < 3; above++) {
        u64 block = zone_take_one(z, MAX_ORDER, true);
        set_free_to(&c, z, z->watermark_quick - 1 + above - BLOCK);
        zone_give_one(z, block, MAX_ORDER);
        KTEST_CHECK(z->buddy.free_pages == z->watermark_quick - 1 + above, "%lu free",
                    z->buddy.free_pages);
        u64 taken = z->taken[MAX_ORDER], pfn = zone_take_one(z, MAX_ORDER, false);
        KTEST_CHECK(!pfn == !above, "%lu above: %lu", above, pfn);
        KTEST_CHECK(z->taken[MAX_ORDER] == taken + !!pfn, "%lu above: taken", above);
        if (pfn)
            zone_give_one(z, pfn, MAX_ORDER);
        give_back(&c, z);
    }
}

MM_TEST(zones, claims)
{
    for (int i = 0; i < NR_ZONES; i++) {
        struct zone *z = &zones[i];
        u64 taken = z->taken[0], block = 0, pfn = z->managed ? zone_take_one(z, 0, true) : 0;
        u32 order = 99;
        if (!pfn)
            continue;
        KTEST_CHECK(!zone_claim(pfn) && z->taken[0] == taken + 1, "frame %lu", pfn);
        KTEST_CHECK(!zone_find_free(pfn, &block, &order), "frame %lu", pfn);
        zone_give_one(z, pfn, 0);
        KTEST_CHECK(zone_find_free(pfn, &block, &order) && block <= pfn &&
                        pfn < block + (1ull << order),
                    "frame %lu in %lu, order %u", pfn, block, order);
        KTEST_CHECK(zone_claim(pfn) && z->taken[0] == taken + 2, "frame %lu", pfn);
        zone_give_one(z, pfn, 0);
    }
}

MM_TEST(zones, fragmentation)
{
    struct zone z = {.name = "toy"};
    KTEST_CHECK(!zone_fragmentation(&z, 4), "%u", zone_fragmentation(&z, 4));
    z.buddy.map[0].blocks = 3;
    z.buddy.map[1].blocks = 2;
    z.buddy.map[5].blocks = 1;
    z.buddy.free_pages = 3 + 4 + 32;
    static const u32 expected[] = {0, 76, 179, 179, 179, 179, 1000};
    for (unsigned order = 0; order < ARRAY_SIZE(expected); order++)
        KTEST_CHECK(zone_fragmentation(&z, order) == expected[order], "order %u: %u", order,
                    zone_fragmentation(&z, order));
}
