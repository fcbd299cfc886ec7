/*
 * The page array, and finding out what a frame is.
 *
 * The array lies at VMEMMAP. Where 512 MiB of physical memory hold some RAM in every MiB, a 2 MiB
 * page backs their entries; elsewhere 4 KiB pages do, one for each MiB with RAM, and one read-only
 * page of zeros stands for all the others. So a hole of any size costs no memory, and any pfn below
 * page_end_pfn can be looked up without asking first.
 */
#include "mm/page.h"
#include "x86_64/paging.h"
#include "core/panic.h"
#include "lib/string.h"
#include "mm/memmap.h"
#include "mm/pcp.h"
#include "mm/zone.h"

#define GRANULE     (1ull << 20)   /* physical bytes whose struct pages fill one page */
#define CHUNK       (512ull << 20) /* physical bytes whose struct pages fill 2 MiB */
#define CHUNK_ARRAY (2ull << 20)

u64 page_end_pfn;

static const u8 zero_page[PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));
static u64 zero_table[PT_ENTRIES] __attribute__((aligned(PAGE_SIZE)));
static const u64 metadata_flags = PTE_WRITE | PTE_NX | PTE_GLOBAL;

static u64 zero_table_get(void)
{
    u64 entry = image_to_phys(zero_page) | PTE_PRESENT | (cpu_features.nx ? PTE_NX : 0);
    if (!zero_table[0])
        for (unsigned i = 0; i < PT_ENTRIES; i++)
            zero_table[i] = entry;
    return image_to_phys(zero_table);
}

static bool gap_has_granule(u64 start, u64 end)
{
    return start < end && ALIGN_UP(start, GRANULE) + GRANULE <= end;
}

/* Whether there is some RAM in every MiB: no hole inside the chunk has a whole one. */
static bool chunk_is_full(u64 chunk)
{
    u64 at = chunk;
    for (u32 i = 0; i < memmap.ram.count; i++) {
        if (gap_has_granule(at, MIN(memmap.ram.range[i].start, chunk + CHUNK)))
            return false;
        at = MAX(at, memmap.ram.range[i].end);
    }
    return !gap_has_granule(at, chunk + CHUNK);
}

/* One MiB after another, but those alike and next to each other at once. */
static void chunk_map_granules(u64 chunk, u64 vaddr, u64 end)
{
    end = MIN(chunk + CHUNK, end);
    for (u64 from = chunk, to; from < end; from = to) {
        bool ram = range_overlaps(&memmap.ram, from, from + GRANULE);
        for (to = from + GRANULE; to < end; to += GRANULE)
            if (range_overlaps(&memmap.ram, to, to + GRANULE) != ram)
                break;
        u64 bytes = (to - from) / GRANULE * PAGE_SIZE;
        if (ram) {
            paging_map(vaddr, memmap_alloc(bytes, PAGE_SIZE), bytes, metadata_flags);
            memmap.metadata_bytes += bytes;
        } else {
            paging_map_same(vaddr, image_to_phys(zero_page), bytes, PTE_NX | PTE_GLOBAL);
        }
        vaddr += bytes;
    }
}

static void chunk_map(u64 chunk, u64 end)
{
    u64 vaddr = VMEMMAP + chunk / PAGE_SIZE * sizeof(struct page);
    if (!range_overlaps(&memmap.ram, chunk, chunk + CHUNK)) {
        paging_map_table(vaddr, zero_table_get());
        return;
    }
    u64 paddr = chunk_is_full(chunk) ? memmap_try_alloc(CHUNK_ARRAY, CHUNK_ARRAY) : 0;
    if (!paddr) {
        chunk_map_granules(chunk, vaddr, end);
        return;
    }
    paging_map(vaddr, paddr, CHUNK_ARRAY, metadata_flags);
    memmap.metadata_bytes += CHUNK_ARRAY;
}

void page_array_init(void)
{
    page_end_pfn = memmap_end_pfn();
    for (u64 chunk = 0; chunk < paddr_of(page_end_pfn); chunk += CHUNK)
        chunk_map(chunk, paddr_of(page_end_pfn));
}

u64 page_live_block(u64 pfn)
{
    for (unsigned order = 0; order <= MAX_ORDER; order++) {
        u64 head = pfn & ~((1ull << order) - 1);
        const struct page *p = page_at(head);
        if (p->kind != PAGE_NONE && p->order >= order)
            return head;
    }
    return 0;
}

struct page_where page_find(u64 pfn)
{
    struct page_where w = {.place = PLACE_NOT_RAM, .block = pfn};
    u64 at = paddr_of(pfn);
    if (pfn >= page_end_pfn || !range_contains(&memmap.ram, at, at + PAGE_SIZE))
        return w;
    w.place = PLACE_RESERVED;
    u64 live = page_live_block(pfn);
    if (live) {
        w.place = PLACE_LIVE;
        w.block = live;
        w.order = page_at(live)->order;
    } else if (zone_find_free(pfn, &w.block, &w.order)) {
        w.place = PLACE_FREE;
    } else if (pcp_find(pfn, &w.block, &w.order, &w.cpu)) {
        w.place = PLACE_MAGAZINE;
    }
    return w;
}
