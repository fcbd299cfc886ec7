/*
 * Allocation of blocks: every order, every kind of wrong free, claims of exact frames, watermarks,
 * exhaustion, splitting.
 */
#include "x86_64/paging.h"
#include "x86_64/percpu.h"
#include "lib/errno.h"
#include "lib/string.h"
#include "mm/memmap.h"
#include "mm/pages.h"
#include "mm/pcp.h"
#include "mm/tests/mmtest.h"

#define OWNER MMTEST_OWNER

static void check_live(struct ktest *t, u64 pfn, unsigned order)
{
    KTEST_CHECK(!(pfn & ((1ull << order) - 1)), "order %u at %lu", order, pfn);
    KTEST_CHECK(page_at(pfn)->head == page_head(PAGE_KERNEL, order, OWNER), "order %u: head 0x%lx",
                order, page_at(pfn)->head);
    for (u64 i = 1; i < 1ull << order; i++)
        KTEST_CHECK(!page_at(pfn + i)->head, "tail %lu has head 0x%lx", i, page_at(pfn + i)->head);
    u64 last = pfn + (1ull << order) - 1;
    struct page_where w = page_find(last);
    KTEST_CHECK(w.place == PLACE_LIVE && w.block == pfn && w.order == order,
                "frame %lu: place %u, block %lu, order %u", last, w.place, w.block, w.order);
    KTEST_CHECK(page_live_block(last) == pfn, "%lu", page_live_block(last));
}

MM_TEST(pages, every_order)
{
    unsigned largest = mmtest_largest_order();
    for (unsigned order = 0; order <= largest; order++) {
        u64 before = pages_free_count();
        u64 pfn = pages_alloc(order, PAGE_KERNEL, OWNER, 0);
        KTEST_CHECK(pfn, "order %u", order);
        if (!pfn)
            continue;
        check_live(t, pfn, order);
        u64 taken = before - pages_free_count();
        KTEST_CHECK(taken == 1ull << order, "order %u took %lu", order, taken);
        memset(phys_to_virt(paddr_of(pfn)), 0xa5, PAGE_SIZE << order);
        int err = pages_free(pfn, order, PAGE_KERNEL, OWNER);
        KTEST_CHECK(!err, "order %u: %d", order, err);
        enum page_place place = page_find(pfn).place;
        KTEST_CHECK(place == PLACE_FREE || place == PLACE_MAGAZINE, "place %u", place);
    }
}

MM_TEST(pages, blocks_do_not_overlap)
{
    u64 pfn[NR_ORDERS] = {0};
    unsigned largest = MIN(mmtest_largest_order(), 8u);
    for (unsigned o = 0; o <= largest; o++)
        pfn[o] = pages_alloc(o, PAGE_KERNEL, OWNER, 0);
    for (unsigned a = 0; a <= largest; a++)
        for (unsigned b = 0; b < a; b++)
            KTEST_CHECK(pfn[a] + (1ull << a) <= pfn[b] || pfn[b] + (1ull << b) <= pfn[a],
                        "order %u at %lu, order %u at %lu", a, pfn[a], b, pfn[b]);
    for (unsigned o = 0; o <= largest; o++)
        KTEST_CHECK(!pages_free(pfn[o], o, PAGE_KERNEL, OWNER), "order %u", o);
}

/* Must be refused, and nothing may change. */
static void refuse(struct ktest *t, const char *what, u64 pfn, unsigned order, enum page_kind kind,
                   u16 owner)
{
    u64 free = pages_free_count();
    u64 head = pfn < page_end_pfn ? page_at(pfn)->head : 0;
    int err = pages_free(pfn, order, kind, owner);
    KTEST_CHECK(err == -EINVAL, "%s: frame %lu, order %u: %d", what, pfn, order, err);
    KTEST_CHECK(pages_free_count() == free, "%s: %lu free, %lu before", what, pages_free_count(),
                free);
    KTEST_CHECK(pfn >= page_end_pfn || page_at(pfn)->head == head, "%s: head 0x%lx, 0x%lx before",
                what, page_at(pfn)->head, head);
}

static void refuse_any_order(struct ktest *t, const char *what, u64 pfn)
{
    for (unsigned order = 0; order < NR_ORDERS; order++)
        refuse(t, what, pfn, order, PAGE_KERNEL, OWNER);
    refuse(t, what, pfn, 0, PAGE_NONE, 0);
}

MM_TEST(pages, wrong_frees_of_a_live_block)
{
    u64 pfn = pages_alloc(2, PAGE_KERNEL, OWNER, 0);
    KTEST_CHECK(pfn, "out of memory");
    if (!pfn)
        return;
    for (unsigned order = 0; order < 64; order++)
        if (order != 2)
            refuse(t, "order", pfn, order, PAGE_KERNEL, OWNER);
    refuse(t, "order", pfn, UINT32_MAX, PAGE_KERNEL, OWNER);
    for (u32 kind = PAGE_NONE; kind <= PAGE_POOL; kind++)
        if (kind != PAGE_KERNEL)
            refuse(t, "kind", pfn, 2, kind, OWNER);
    refuse(t, "owner", pfn, 2, PAGE_KERNEL, 0);
    refuse(t, "owner", pfn, 2, PAGE_KERNEL, OWNER + 1);
    for (u64 i = 1; i < 4; i++)
        refuse_any_order(t, "tail", pfn + i);
    page_at(pfn)->refs = 2;
    refuse(t, "references", pfn, 2, PAGE_KERNEL, OWNER);
    page_at(pfn)->refs = 1;
    page_at(pfn)->flags = PG_LOCKED;
    refuse(t, "flags", pfn, 2, PAGE_KERNEL, OWNER);
    page_at(pfn)->flags = 0;
    KTEST_CHECK(!pages_free(pfn, 2, PAGE_KERNEL, OWNER), "the right free");
}

MM_TEST(pages, double_frees)
{
    unsigned largest = mmtest_largest_order();
    for (unsigned order = 0; order <= largest; order++) {
        u64 pfn = pages_alloc(order, PAGE_KERNEL, OWNER, 0);
        KTEST_CHECK(pfn && !pages_free(pfn, order, PAGE_KERNEL, OWNER), "order %u", order);
        refuse_any_order(t, "double", pfn);
        pcp_drain();
        refuse_any_order(t, "double, drained", pfn);
    }
}

MM_TEST(pages, frees_of_what_was_never_allocated)
{
    refuse_any_order(t, "frame 0", 0);
    refuse_any_order(t, "image", mmtest_image_pfn());
    refuse_any_order(t, "end", page_end_pfn);
    refuse_any_order(t, "beyond the end", page_end_pfn + 1);
    refuse_any_order(t, "far beyond", 1ull << 40);
    refuse_any_order(t, "no frame's number", UINT64_MAX);
    u64 hole;
    for (u32 n = 0; (hole = mmtest_hole(n)); n++)
        refuse_any_order(t, "hole", hole);
    for (int i = 0; i < NR_ZONES; i++) {
        struct zone *z = &zones[i];
        u64 block;
        u32 order;
        for (u64 pfn = z->end_pfn; pfn-- > z->start_pfn;)
            if (zone_find_free(pfn, &block, &order)) {
                refuse_any_order(t, "free frame", pfn);
                refuse_any_order(t, "free block", block);
                break;
            }
    }
}

static int claim(u64 pfn)
{
    return pages_claim(pfn, PAGE_KERNEL, OWNER);
}

/* Claims a frame that is not in use, and gives it back. */
static void check_claim(struct ktest *t, u64 pfn)
{
    u64 free = pages_free_count();
    int err = claim(pfn);
    KTEST_CHECK(!err, "frame %lu: %d", pfn, err);
    if (err)
        return;
    KTEST_CHECK(pages_free_count() == free - 1, "%lu free, %lu before", pages_free_count(), free);
    check_live(t, pfn, 0);
    err = claim(pfn);
    KTEST_CHECK(err == -EBUSY, "again: %d", err);
    KTEST_CHECK(pages_free_count() == free - 1, "%lu free after the second", pages_free_count());
    KTEST_CHECK(!pages_free(pfn, 0, PAGE_KERNEL, OWNER), "frame %lu", pfn);
}

MM_TEST(pages, claims_of_free_frames)
{
    u64 pfn = pages_alloc(0, PAGE_KERNEL, OWNER, 0);
    KTEST_CHECK(pfn && !pages_free(pfn, 0, PAGE_KERNEL, OWNER), "out of memory");
    if (this_cpu()->pcp.magazine[0].limit && pfn >= pcp_zone_start) {
        enum page_place place = page_find(pfn).place;
        KTEST_CHECK(place == PLACE_MAGAZINE, "place %u", place);
    }
    check_claim(t, pfn);
    pcp_drain();
    KTEST_CHECK(page_find(pfn).place == PLACE_FREE, "place %u", page_find(pfn).place);
    check_claim(t, pfn);
    u64 low = pfn_of(memmap_low_page());
    if (low)
        check_claim(t, low);
}

MM_TEST(pages, claims_out_of_the_middle)
{
    unsigned order = mmtest_largest_order();
    u64 block = pages_alloc(order, PAGE_KERNEL, OWNER, 0);
    KTEST_CHECK(order >= 4 && block && !pages_free(block, order, PAGE_KERNEL, OWNER), "order %u",
                order);
    pcp_drain();
    struct page_where before = page_find(block), now;
    u64 pfn = block + (1ull << order) / 2 + 5;
    KTEST_CHECK(!claim(pfn), "frame %lu", pfn);
    for (u64 i = block; i < block + (1ull << order); i++) {
        enum page_place place = page_find(i).place;
        KTEST_CHECK(place == (i == pfn ? PLACE_LIVE : PLACE_FREE), "frame %lu: place %u", i, place);
    }
    KTEST_CHECK(!pages_free(pfn, 0, PAGE_KERNEL, OWNER), "frame %lu", pfn);
    pcp_drain();
    now = page_find(block);
    KTEST_CHECK(now.place == PLACE_FREE && now.block == before.block && now.order == before.order,
                "place %u, block %lu, order %u", now.place, now.block, now.order);
}

static void refuse_claim(struct ktest *t, const char *what, u64 pfn, int expected)
{
    u64 free = pages_free_count();
    u64 head = pfn < page_end_pfn ? page_at(pfn)->head : 0;
    int err = claim(pfn);
    KTEST_CHECK(err == expected, "%s: frame %lu: %d, expected %d", what, pfn, err, expected);
    KTEST_CHECK(pages_free_count() == free, "%s", what);
    KTEST_CHECK(pfn >= page_end_pfn || page_at(pfn)->head == head, "%s", what);
}

MM_TEST(pages, claims_of_what_is_not_free)
{
    u64 pfn = pages_alloc(3, PAGE_KERNEL, OWNER, 0), hole;
    KTEST_CHECK(pfn, "out of memory");
    for (u64 i = 0; pfn && i < 8; i++)
        refuse_claim(t, "live block", pfn + i, -EBUSY);
    refuse_claim(t, "image", mmtest_image_pfn(), -EBUSY);
    refuse_claim(t, "kernel's tables", pfn_of(paging_kernel_root()), -EBUSY);
    refuse_claim(t, "frame 0", 0, -EINVAL);
    refuse_claim(t, "end", page_end_pfn, -EINVAL);
    refuse_claim(t, "far beyond", 1ull << 40, -EINVAL);
    refuse_claim(t, "no frame's number", UINT64_MAX, -EINVAL);
    refuse_claim(t, "frame number that overflows", 1ull << 52, -EINVAL);
    for (u32 n = 0; (hole = mmtest_hole(n)); n++)
        refuse_claim(t, "hole", hole, -EINVAL);
    KTEST_CHECK(pfn && !pages_free(pfn, 3, PAGE_KERNEL, OWNER), "giving back");
}

MM_TEST(pages, split)
{
    u64 pfn = pages_alloc(3, PAGE_KERNEL, OWNER, 0);
    KTEST_CHECK(pfn, "out of memory");
    if (!pfn)
        return;
    pages_split(pfn, 3);
    KTEST_CHECK(!page_at(pfn + 8)->head || page_at(pfn + 8)->owner != OWNER, "the ninth frame");
    refuse(t, "whole", pfn, 3, PAGE_KERNEL, OWNER);
    for (u64 i = 0; i < 8; i++)
        check_live(t, pfn + i, 0);
    for (u64 i = 0; i < 8; i++) {
        u64 at = pfn + (i * 5 + 3) % 8;
        KTEST_CHECK(!pages_free(at, 0, PAGE_KERNEL, OWNER), "frame %lu", i);
        refuse(t, "double", at, 0, PAGE_KERNEL, OWNER);
    }
}

static void check_zones_at_min(struct ktest *t)
{
    for (int i = 0; i < NR_ZONES; i++) {
        const struct zone *z = &zones[i];
        KTEST_CHECK(z->buddy.free_pages == z->watermark_min, "zone %s: %lu free, min is %lu",
                    z->name, z->buddy.free_pages, z->watermark_min);
    }
    KTEST_CHECK(!pcp_pages(), "%lu frames in magazines", pcp_pages());
}

MM_TEST(pages, watermarks)
{
    struct chain all = {0};
    chain_fill(&all, 0);
    check_zones_at_min(t);
    u64 reserve = pages_free_count(), taken = 0;
    KTEST_CHECK(reserve, "there is no reserve");
    struct chain deeper = {0};
    while (chain_add(&deeper, 0, PAGES_RESERVE)) {
        taken++;
        u64 pfn = pages_alloc(0, PAGE_KERNEL, OWNER, 0);
        KTEST_CHECK(!pfn, "ordinary allocation with %lu of %lu reserved frames left",
                    pages_free_count() + 1, reserve);
        if (pfn) {
            KTEST_CHECK(!pages_free(pfn, 0, PAGE_KERNEL, OWNER), "frame %lu", pfn);
            break;
        }
    }
    chain_fill(&deeper, PAGES_RESERVE);
    KTEST_CHECK(deeper.pages == reserve, "%lu of %lu reserved frames", deeper.pages, reserve);
    KTEST_CHECK(!pages_free_count(), "%lu left", pages_free_count());
    KTEST_CHECK(!chain_free(&deeper) && !chain_free(&all), "giving back");
}

MM_TEST(pages, exhaustion_at_every_order)
{
    for (unsigned order = 0; order < NR_ORDERS; order++) {
        struct chain all = {0};
        u64 total = pages_free_count();
        while (pages_free_count() > 4096 && chain_add(&all, MAX_ORDER, PAGES_RESERVE))
            ; /* so that it does not take long with much memory */
        while (chain_add(&all, order, PAGES_RESERVE))
            ;
        KTEST_CHECK(all.pages + pages_free_count() == total, "order %u: %lu and %lu are not %lu",
                    order, all.pages, pages_free_count(), total);
        KTEST_CHECK(order || all.pages == total, "%lu of %lu", all.pages, total);
        for (int i = 0; i < NR_ZONES; i++)
            KTEST_CHECK(!(zones[i].buddy.nonempty >> order), "order %u: zone %s still has some",
                        order, zones[i].name);
        KTEST_CHECK(!chain_free(&all), "giving back, order %u", order);
        KTEST_CHECK(pages_free_count() == total, "order %u: %lu of %lu", order, pages_free_count(),
                    total);
        pcp_drain();
    }
}

MM_TEST(pages, failures_are_counted)
{
    struct chain all = {0};
    chain_fill(&all, PAGES_RESERVE);
    u64 before = pcp_zone->failures;
    KTEST_CHECK(!pages_alloc(0, PAGE_KERNEL, OWNER, PAGES_RESERVE), "memory is not used up");
    KTEST_CHECK(pcp_zone->failures > before, "%lu", pcp_zone->failures);
    KTEST_CHECK(!chain_free(&all), "giving back");
}
