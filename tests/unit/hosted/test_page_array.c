/*
 * The array of struct page as the kernel has mapped it: memory of its own where there is RAM, zeros
 * that nobody can write where there is none.
 */
#include "x86_64/paging.h"
#include "x86_64/cpu.h"
#include "mm/memmap.h"
#include "mm/page.h"
#include "mm/pages.h"
#include "mm/tests/mmtest.h"

#define MIB   (1ull << 20)
#define CHUNK (512 * MIB)

/* The entry that maps the struct pages of a MiB, and their physical address. */
static u64 array_entry(u64 mib, u64 *paddr, u64 *span)
{
    struct pt_step steps[PT_LEVELS];
    u64 vaddr = VMEMMAP + mib * PAGE_SIZE;
    unsigned n = paging_walk(paging_kernel_root(), vaddr, steps);
    *span = pt_span(steps[n - 1].level);
    *paddr = (steps[n - 1].entry & PTE_ADDRESS) + (vaddr & (*span - 1));
    return steps[n - 1].entry;
}

static bool has_ram(u64 mib)
{
    return range_overlaps(&memmap.ram, mib * MIB, (mib + 1) * MIB);
}

static u64 last_mib(void)
{
    return (paddr_of(page_end_pfn) + MIB - 1) / MIB;
}

/* RAM in every MiB of its 512: one large page does for all of them. */
static bool chunk_has_all(u64 mib)
{
    u64 first = mib / 512 * 512;
    for (u64 i = first; i < first + 512; i++)
        if (!has_ram(i))
            return false;
    return true;
}

static bool is_mine(u64 paddr)
{
    return range_contains(&memmap.ram, paddr, paddr + PAGE_SIZE) &&
           !range_overlaps(&memmap.free, paddr, paddr + PAGE_SIZE);
}

KTEST(page_array, backed_where_there_is_ram)
{
    u64 paddr, span, nx = cpu_features.nx ? PTE_NX : 0;
    for (u64 mib = 0; mib < last_mib(); mib++) {
        u64 e = array_entry(mib, &paddr, &span);
        KTEST_CHECK(e & PTE_PRESENT && (e & PTE_NX) == nx, "MiB %lu: 0x%lx", mib, e);
        KTEST_CHECK(!(e & PTE_USER), "MiB %lu: 0x%lx", mib, e);
        KTEST_CHECK(!(e & PTE_WRITE) == !has_ram(mib), "MiB %lu: 0x%lx", mib, e);
        if (has_ram(mib)) {
            KTEST_CHECK(is_mine(paddr) && e & PTE_GLOBAL, "MiB %lu: 0x%lx", mib, e);
            bool large = chunk_has_all(mib);
            KTEST_CHECK(span == (large ? pt_span(2) : PAGE_SIZE), "MiB %lu: page of 0x%lx", mib,
                        span);
        }
    }
}

/* What no frame needs is not mapped. */
KTEST(page_array, ends_with_ram)
{
    u64 paddr, span, end = (last_mib() + 511) / 512 * 512;
    KTEST_CHECK(!(array_entry(end, &paddr, &span) & PTE_PRESENT), "MiB %lu", end);
}

/* No two MiB share memory, unless it is the zeros. */
KTEST(page_array, each_page_once)
{
    static u64 seen[1 << 13];
    u64 paddr, span, zeros = 0;
    for (u64 mib = 0; mib < last_mib(); mib++) {
        array_entry(mib, &paddr, &span);
        if (!has_ram(mib)) {
            KTEST_CHECK(!zeros || paddr == zeros, "MiB %lu: 0x%lx", mib, paddr);
            zeros = paddr;
            continue;
        }
        for (u64 i = 0; i < mib; i++)
            if (seen[i] == paddr)
                KTEST_CHECK(!has_ram(i), "MiB %lu and %lu: 0x%lx", i, mib, paddr);
        seen[mib] = paddr;
    }
}

KTEST(page_array, holes_read_as_zero)
{
    for (u64 pfn = 0; pfn < page_end_pfn; pfn += 97)
        if (!has_ram(pfn >> 8))
            KTEST_CHECK(!page_at(pfn)->head && !page_live_block(pfn), "frame %lu", pfn);
    KTEST_CHECK(page_end_pfn == memmap_end_pfn(), "%lu frames", page_end_pfn);
}

/* The array is clear after booting, also where RAM was not: nothing is live that was not allocated. */
MM_TEST(page_array, nothing_is_live)
{
    u64 live = 0;
    for (u64 pfn = 0; pfn < page_end_pfn; pfn++)
        live += page_at(pfn)->head != 0;
    KTEST_CHECK(!live, "%lu frames", live);
}

static void check_place(struct ktest *t, u64 pfn, enum page_place place, u64 block, unsigned order)
{
    struct page_where w = page_find(pfn);
    KTEST_CHECK(w.place == place && w.block == block && w.order == order && !w.cpu,
                "frame %lu: place %u, block %lu, order %u, CPU %u", pfn, w.place, w.block, w.order,
                w.cpu);
}

MM_TEST(page_array, places)
{
    unsigned order = MIN(mmtest_largest_order(), 8u);
    u64 pfn = pages_alloc(order, PAGE_KERNEL, MMTEST_OWNER, 0);
    for (u64 i = 0; i < 1ull << order; i++)
        check_place(t, pfn + i, PLACE_LIVE, pfn, order);
    KTEST_CHECK(page_live_block(pfn - 1) != pfn, "the frame below");
    KTEST_CHECK(page_live_block(pfn + (1ull << order)) != pfn, "the frame above");
    pages_free(pfn, order, PAGE_KERNEL, MMTEST_OWNER);
    u64 image = mmtest_image_pfn();
    check_place(t, image, PLACE_RESERVED, image, 0);
    check_place(t, 0, PLACE_NOT_RAM, 0, 0);
    check_place(t, page_end_pfn, PLACE_NOT_RAM, page_end_pfn, 0);
    check_place(t, UINT64_MAX, PLACE_NOT_RAM, UINT64_MAX, 0);
    KTEST_CHECK(!page_live_block(0), "frame 0");
}
