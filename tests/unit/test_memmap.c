/* sources: kernel/mm/memmap.c tests/unit/host_stubs.c */
/*
 * Sets of ranges against a bitmap that has a bit for each unit of a small space, and the memory map
 * made of them: rounding to pages, frame 0, the limit, reservations and the early allocator.
 */
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include "mm/memmap.h"
#include "tap.h"

#define UNITS 512

static struct range_set set;
static bool model[UNITS];

static void reset(void)
{
    memset(&set, 0, sizeof(set));
    memset(model, 0, sizeof(model));
}

static void model_set(u64 start, u64 end, bool to)
{
    for (u64 i = start; i < end; i++)
        model[i] = to;
}

/* Sorted, disjoint, not touching, not empty; and exactly what the model has. */
static void check_set(void)
{
    u64 total = 0;
    bool now[UNITS] = {false};
    for (u32 i = 0; i < set.count; i++) {
        struct mem_range r = set.range[i];
        CHECK(r.start < r.end && r.end <= UNITS, "range %u: %" PRIu64 "-%" PRIu64, i, r.start,
              r.end);
        CHECK(!i || set.range[i - 1].end < r.start, "range %u starts at %" PRIu64, i, r.start);
        for (u64 k = r.start; k < r.end && k < UNITS; k++)
            now[k] = true;
    }
    for (u64 k = 0; k < UNITS; k++) {
        CHECK(now[k] == model[k], "unit %" PRIu64 ": %d", k, now[k]);
        total += model[k];
    }
    CHECK(range_total(&set) == total, "%" PRIu64 " of %" PRIu64, range_total(&set), total);
    CHECK(set.count <= MEMMAP_RANGES, "%u ranges", set.count);
}

static void check_queries(u64 start, u64 end)
{
    bool all = true, any = false;
    for (u64 i = start; i < end; i++) {
        all &= model[i];
        any |= model[i];
    }
    CHECK(range_contains(&set, start, end) == all, "%" PRIu64 "-%" PRIu64, start, end);
    CHECK(range_overlaps(&set, start, end) == any, "%" PRIu64 "-%" PRIu64, start, end);
}

static u64 model_find(u64 from, u64 size, u64 align)
{
    for (u64 at = 0; at + size <= UNITS; at += align) {
        bool all = at >= from;
        for (u64 i = at; i < at + size; i++)
            all &= model[i];
        if (all)
            return at;
    }
    return 0;
}

static void check_find(u64 from, u64 size, u64 align)
{
    u64 got = range_find(&set, from, size, align), expected = model_find(from, size, align);
    CHECK(got == expected,
          "from %" PRIu64 ", %" PRIu64 " bytes, align %" PRIu64 ": %" PRIu64 ", expected %" PRIu64,
          from, size, align, got, expected);
}

static void random_ranges(void)
{
    u64 random = 0x9e3779b97f4a7c15;
    for (int round = 0; round < 60; round++) {
        reset();
        for (int i = 0; i < 300; i++) {
            u64 start = 1 + random_next(&random) % (UNITS - 2);
            u64 length = 1 + random_next(&random) % (round % 3 ? 9 : 120);
            u64 end = MIN(start + length, (u64)UNITS);
            bool add = random_next(&random) % 2;
            if (add)
                range_add(&set, start, end);
            else
                range_remove(&set, start, end);
            CHECK(!set.dropped, "%u dropped", set.dropped);
            if (set.dropped)
                return;
            model_set(start, end, add);
            check_set();
            check_queries(start, end);
            check_find(random_next(&random) % UNITS, 1 + random_next(&random) % 20,
                       1ull << random_next(&random) % 6);
        }
    }
}

static void touching_and_empty(void)
{
    reset();
    range_add(&set, 10, 20);
    range_add(&set, 30, 40);
    range_add(&set, 20, 30);
    CHECK(set.count == 1 && set.range[0].start == 10 && set.range[0].end == 40, "%u", set.count);
    range_add(&set, 15, 15);
    range_add(&set, 60, 50);
    range_remove(&set, 25, 25);
    range_remove(&set, 30, 20);
    CHECK(set.count == 1 && range_total(&set) == 30, "%u", set.count);
    range_remove(&set, 15, 20);
    CHECK(set.count == 2 && !range_overlaps(&set, 15, 20), "%u", set.count);
    CHECK(range_overlaps(&set, 14, 16) && !range_contains(&set, 14, 16), "the edge");
    range_remove(&set, 0, UINT64_MAX);
    CHECK(!set.count && !range_total(&set), "%u", set.count);
    CHECK(!range_contains(&set, 10, 11) && !range_find(&set, 0, 1, 1), "an empty set");
}

static void a_full_table(void)
{
    reset();
    for (u64 i = 0; i < MEMMAP_RANGES; i++)
        range_add(&set, 10 + i * 4, 12 + i * 4);
    CHECK(set.count == MEMMAP_RANGES && !set.dropped, "%u, %u dropped", set.count, set.dropped);
    range_add(&set, 4, 6);
    range_add(&set, 400, 410);
    CHECK(set.count == MEMMAP_RANGES && set.dropped == 2, "%u, %u dropped", set.count, set.dropped);
    range_remove(&set, 18, 19); /* of one at the edge: no new range */
    CHECK(set.count == MEMMAP_RANGES && set.dropped == 2, "%u, %u dropped", set.count, set.dropped);
    range_add(&set, 12, 14); /* joins two */
    CHECK(set.count == MEMMAP_RANGES - 1 && set.dropped == 2, "%u", set.count);
    range_add(&set, 400, 410);
    range_remove(&set, 403,
                 405); /* a split has no room: the upper part is dropped, not kept wrongly */
    CHECK(set.count == MEMMAP_RANGES && set.dropped == 3, "%u, %u dropped", set.count, set.dropped);
    CHECK(range_contains(&set, 400, 403) && !range_overlaps(&set, 403, 405), "the split");
    for (u32 i = 0; i < set.count; i++)
        CHECK(set.range[i].start < set.range[i].end &&
                  (!i || set.range[i - 1].end < set.range[i].start),
              "range %u", i);
}

static void memmap_reset(void)
{
    memset(&memmap, 0, sizeof(memmap));
}

static void pages_of_the_map(void)
{
    memmap_reset();
    memmap_add(0, 0x9fc00);
    CHECK(memmap.ram.range[0].start == 0x1000 && memmap.ram.range[0].end == 0x9f000,
          "0x%" PRIx64 "-0x%" PRIx64, memmap.ram.range[0].start, memmap.ram.range[0].end);
    memmap_add(0x100800, 0x4000800);
    CHECK(memmap.ram.range[1].start == 0x101000 && memmap.ram.range[1].end == 0x4000000,
          "0x%" PRIx64 "-0x%" PRIx64, memmap.ram.range[1].start, memmap.ram.range[1].end);
    memmap_remove(0x3ffe801, 0x3ffe802); /* a byte takes its page */
    CHECK(range_total(&memmap.ram) == 0x9e000 + 0x3eff000 - 0x1000, "0x%" PRIx64,
          range_total(&memmap.ram));
    memmap_reserve(0x200001, 0x200002);
    CHECK(range_total(&memmap.free) == range_total(&memmap.ram) - 0x1000, "0x%" PRIx64,
          range_total(&memmap.free));
    CHECK(memmap_end_pfn() == 0x4000, "0x%" PRIx64, memmap_end_pfn());
    memmap_add(0x5000000, 0x5000fff); /* not a whole page */
    CHECK(memmap.ram.count == 3 && memmap_end_pfn() == 0x4000, "%u ranges", memmap.ram.count);
}

static void limits_of_the_map(void)
{
    memmap_reset();
    memmap_add(MEMMAP_LIMIT - 0x2000, MEMMAP_LIMIT + 0x10000);
    CHECK(range_total(&memmap.ram) == 0x2000, "0x%" PRIx64, range_total(&memmap.ram));
    memmap_add(MEMMAP_LIMIT, MEMMAP_LIMIT * 2);
    memmap_add(0, 0x1000);
    CHECK(range_total(&memmap.ram) == 0x2000 && memmap.ram.count == 1, "0x%" PRIx64,
          range_total(&memmap.ram));
    memmap_reset();
    CHECK(!memmap_end_pfn() && !memmap_low_page(), "an empty map");
}

/* Addresses so high that rounding them up to a page does not fit 64 bits. */
static void top_of_the_address_space(void)
{
    memmap_reset();
    memmap_add(UINT64_MAX - 10, UINT64_MAX);
    CHECK(!memmap.ram.count, "no page, but 0x%" PRIx64 " bytes", range_total(&memmap.ram));
    memmap_reset();
    memmap_add(0x100000, 0x4000000);
    memmap_remove(0x2000000, UINT64_MAX);
    CHECK(range_total(&memmap.ram) == 0x1f00000, "0x%" PRIx64 " bytes stay",
          range_total(&memmap.ram));
    memmap_reserve(0x1000000, UINT64_MAX);
    CHECK(range_total(&memmap.free) == 0xf00000, "0x%" PRIx64 " bytes are free",
          range_total(&memmap.free));
}

/* A piece of RAM that the table had no room for is not free either, though that table had room. */
static void more_pieces_than_the_map_has_room_for(void)
{
    memmap_reset();
    memmap_add(0x1000000, 0x10000000);
    memmap_reserve(0x1000000, 0x1800000);
    for (u64 i = 0; i < MEMMAP_RANGES + 10; i++)
        memmap_remove(0x1080000 + i * 0x100000, 0x1081000 + i * 0x100000);
    CHECK(memmap.ram.count == MEMMAP_RANGES && memmap.ram.dropped, "%u ranges, %u dropped",
          memmap.ram.count, memmap.ram.dropped);
    CHECK(!memmap.free.dropped, "%u dropped", memmap.free.dropped);
    for (u32 i = 0; i < memmap.free.count; i++)
        CHECK(range_contains(&memmap.ram, memmap.free.range[i].start, memmap.free.range[i].end),
              "0x%" PRIx64 "-0x%" PRIx64, memmap.free.range[i].start, memmap.free.range[i].end);
    CHECK(range_total(&memmap.free) == range_total(&memmap.ram) - 0x800000 + 8 * 0x1000,
          "0x%" PRIx64 " bytes are free", range_total(&memmap.free));
}

static void early_allocation(void)
{
    memmap_reset();
    memmap_add(0x1000, 0x9f000);
    memmap_add(0x100000, 0x400000);
    u64 before = range_total(&memmap.free);
    u64 a = memmap_alloc(0x1000, 0x1000), b = memmap_alloc(0x1000, 0x100000);
    CHECK(a == 0x100000 && b == 0x200000, "0x%" PRIx64 ", 0x%" PRIx64, a, b);
    CHECK(range_total(&memmap.free) == before - 0x2000, "0x%" PRIx64, range_total(&memmap.free));
    CHECK(range_total(&memmap.ram) == before, "0x%" PRIx64, range_total(&memmap.ram));
    u64 c = memmap_try_alloc(0x1ff000, 0x1000);
    CHECK(c == 0x201000, "0x%" PRIx64, c);
    CHECK(!memmap_try_alloc(0x100000, 0x1000), "more than there is");
    CHECK(memmap_low_page() == 0x1000, "0x%" PRIx64, memmap_low_page());
    CHECK(range_contains(&memmap.free, 0x1000, 0x9f000), "low memory stays free");
    while (memmap_try_alloc(0x1000, 0x1000))
        ;
    CHECK(range_total(&memmap.free) == 0x9e000, "0x%" PRIx64, range_total(&memmap.free));
    memmap_add(0x3000000, 0x4000000);
    CHECK(memmap_low_page() == 0x1000, "0x%" PRIx64, memmap_low_page());
    memmap_reserve(0, 0x100000);
    CHECK(!memmap_low_page(), "0x%" PRIx64, memmap_low_page());
    CHECK(!memmap.free.dropped && !memmap.ram.dropped, "%u dropped", memmap.free.dropped);
}

static void low_page_is_low(void)
{
    memmap_reset();
    memmap_add(0x100000, 0x400000);
    CHECK(!memmap_low_page(), "0x%" PRIx64, memmap_low_page());
    memmap_add(0xff000, 0x100000);
    CHECK(memmap_low_page() == 0xff000, "0x%" PRIx64, memmap_low_page());
}

#define PIECE(i) (0x100000 + (u64)(i)*0x10000)

/* A full table of pieces of eight pages; the free set has room for one more range, and none for it. */
static void fill_table(u64 reserved)
{
    memmap_reset();
    for (u64 i = 0; i < MEMMAP_RANGES; i++)
        memmap_add(PIECE(i), PIECE(i) + 0x8000);
    memmap_reserve(PIECE(reserved), PIECE(reserved) + 0x8000);
}

static void check_free_is_ram(u64 expected)
{
    u64 outside = 0;
    for (u32 i = 0; i < memmap.free.count; i++)
        outside +=
            !range_contains(&memmap.ram, memmap.free.range[i].start, memmap.free.range[i].end);
    CHECK(!outside, "%" PRIu64 " free ranges are no RAM", outside);
    CHECK(range_total(&memmap.free) == expected, "0x%" PRIx64 " free, not 0x%" PRIx64,
          range_total(&memmap.free), expected);
}

/* What the table of RAM has no room for is not given out, wherever it lies. */
static void ram_that_was_dropped(void)
{
    const u64 all = (MEMMAP_RANGES - 1) * 0x8000;
    for (u64 i = 0; i < MEMMAP_RANGES; i++) {
        fill_table((i + 7) % MEMMAP_RANGES);
        memmap_remove(PIECE(i) + 0x2000, PIECE(i) + 0x3000); /* its upper part is lost */
        CHECK(memmap.ram.dropped == 1 && !memmap.free.dropped, "piece %" PRIu64, i);
        check_free_is_ram(all - 0x6000);
    }
    fill_table(5);
    memmap_add(0x40000, 0x48000); /* below all others */
    memmap_remove(PIECE(9), PIECE(9) + 0x1000);
    check_free_is_ram(all - 0x1000);
    fill_table(5);
    memmap_add(PIECE(80), PIECE(81)); /* above all others */
    memmap_remove(PIECE(9), PIECE(9) + 0x1000);
    check_free_is_ram(all - 0x1000);
    fill_table(5); /* no RAM is dropped: what is free stays as it is, even if it should not be */
    range_add(&memmap.free, PIECE(90), PIECE(91));
    memmap_remove(PIECE(9), PIECE(9) + 0x1000);
    CHECK(range_total(&memmap.free) == all - 0x1000 + 0x10000, "0x%" PRIx64 " free",
          range_total(&memmap.free));
}

/* DMA memory is scarce: it is used when there is no other, and then from its start. */
static void memory_above_16_mib_first(void)
{
    memmap_reset();
    memmap_add(0x100000, 0x1008000); /* eight pages above */
    for (u64 i = 0; i < 8; i++) {
        u64 page = memmap_try_alloc(0x1000, 0x1000);
        CHECK(page == 0x1000000 + i * 0x1000, "page %" PRIu64 ": 0x%" PRIx64, i, page);
    }
    u64 low = memmap_try_alloc(0x2000, 0x1000);
    CHECK(low == 0x100000, "0x%" PRIx64, low);
}

/* RAM that stands at its address in this process, too, with old contents. */
static void clearing_after_a_reset(void)
{
    const u64 ram = 0x20000000, size = 0x10000;
    u8 *bytes = mmap((void *)ram, size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(bytes == (u8 *)ram, "no memory at 0x%" PRIx64, ram);
    if (bytes != (u8 *)ram)
        return;
    for (int boot = 0; boot < 3; boot++) {
        memmap_reset();
        memmap_add(ram, ram + size);
        memmap_mark_boot();
        CHECK(memmap.warm == (boot > 0), "boot %d: warm is %d", boot, memmap.warm);
        CHECK(range_total(&memmap.free) == size - 0x1000, "0x%" PRIx64, range_total(&memmap.free));
        u8 *page = (u8 *)memmap_alloc(0x2000, 0x1000);
        u64 dirty = 0;
        for (u64 i = 0; i < 0x2000; i++)
            dirty += page[i] != 0;
        CHECK(!dirty, "boot %d: %" PRIu64 " bytes are not clear", boot, dirty);
        CHECK(!boot || page[0x2000] == 0xa5, "boot %d: more than the pages was cleared", boot);
        memset(page, 0xa5, 0x3000);
    }
    munmap(bytes, size);
}

int main(void)
{
    tap_begin();
    RUN(touching_and_empty);
    RUN(random_ranges);
    RUN(a_full_table);
    RUN(pages_of_the_map);
    RUN(limits_of_the_map);
    RUN(more_pieces_than_the_map_has_room_for);
    RUN(early_allocation);
    RUN(low_page_is_low);
    RUN(ram_that_was_dropped);
    RUN(memory_above_16_mib_first);
    RUN(clearing_after_a_reset);
    RUN(top_of_the_address_space);
    return tap_end();
}
