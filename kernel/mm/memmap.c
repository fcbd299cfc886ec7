/* See memmap.h. */
#include "mm/memmap.h"
#include "x86_64/paging.h"
#include "core/panic.h"
#include "lib/string.h"

#define LOW_END   0x100000
#define DMA_END   0x1000000
#define PAGE      4096
#define BOOT_MARK 0x4b4f5320424f4f54

struct memmap memmap;

static void entry_delete(struct range_set *s, u32 i)
{
    for (s->count--; i < s->count; i++)
        s->range[i] = s->range[i + 1];
}

static void entry_insert(struct range_set *s, u32 i, u64 start, u64 end)
{
    if (s->count == MEMMAP_RANGES) {
        s->dropped++;
        return;
    }
    for (u32 j = s->count++; j > i; j--)
        s->range[j] = s->range[j - 1];
    s->range[i] = (struct mem_range){start, end};
}

void range_add(struct range_set *s, u64 start, u64 end)
{
    u32 i = 0;
    if (start >= end)
        return;
    while (i < s->count && s->range[i].end < start)
        i++;
    while (i < s->count && s->range[i].start <= end) {
        start = MIN(start, s->range[i].start);
        end = MAX(end, s->range[i].end);
        entry_delete(s, i);
    }
    entry_insert(s, i, start, end);
}

void range_remove(struct range_set *s, u64 start, u64 end)
{
    if (start >= end)
        return;
    for (u32 i = 0; i < s->count;) {
        struct mem_range r = s->range[i];
        if (r.end <= start || r.start >= end) {
            i++;
            continue;
        }
        entry_delete(s, i);
        if (r.start < start)
            entry_insert(s, i++, r.start, start);
        if (r.end > end)
            entry_insert(s, i++, end, r.end);
    }
}

bool range_contains(const struct range_set *s, u64 start, u64 end)
{
    for (u32 i = 0; i < s->count; i++)
        if (s->range[i].start <= start && end <= s->range[i].end)
            return true;
    return false;
}

bool range_overlaps(const struct range_set *s, u64 start, u64 end)
{
    for (u32 i = 0; i < s->count; i++)
        if (s->range[i].start < end && start < s->range[i].end)
            return true;
    return false;
}

u64 range_total(const struct range_set *s)
{
    u64 total = 0;
    for (u32 i = 0; i < s->count; i++)
        total += s->range[i].end - s->range[i].start;
    return total;
}

u64 range_find(const struct range_set *s, u64 from, u64 size, u64 align)
{
    for (u32 i = 0; i < s->count; i++) {
        u64 start = ALIGN_UP(MAX(s->range[i].start, from), align);
        if (start < s->range[i].end && s->range[i].end - start >= size)
            return start;
    }
    return 0;
}

void memmap_add(u64 start, u64 end)
{
    start = MAX(ALIGN_UP(MIN(start, MEMMAP_LIMIT), PAGE), PAGE); /* frame 0 is never used */
    end = ALIGN_DOWN(MIN(end, MEMMAP_LIMIT), PAGE);
    range_add(&memmap.ram, start, end);
    range_add(&memmap.free, start, end);
}

/* A piece of RAM that the table had no room for must not be given out either. */
static void free_only_ram(void)
{
    u64 at = 0;
    for (u32 i = 0; i < memmap.ram.count; i++) {
        range_remove(&memmap.free, at, memmap.ram.range[i].start);
        at = memmap.ram.range[i].end;
    }
    range_remove(&memmap.free, at, MEMMAP_LIMIT);
}

void memmap_remove(u64 start, u64 end)
{
    start = ALIGN_DOWN(start, PAGE);
    end = ALIGN_UP(MIN(end, MEMMAP_LIMIT), PAGE);
    range_remove(&memmap.ram, start, end);
    range_remove(&memmap.free, start, end);
    if (memmap.ram.dropped)
        free_only_ram();
}

void memmap_reserve(u64 start, u64 end)
{
    range_remove(&memmap.free, ALIGN_DOWN(start, PAGE), ALIGN_UP(MIN(end, MEMMAP_LIMIT), PAGE));
}

u64 memmap_try_alloc(u64 size, u64 align)
{
    u64 start = range_find(&memmap.free, DMA_END, size, align);
    if (!start)
        start = range_find(&memmap.free, LOW_END, size, align);
    if (start)
        range_remove(&memmap.free, start, start + size);
    if (start && memmap.warm)
        memset(phys_to_virt(start), 0, size);
    return start;
}

void memmap_mark_boot(void)
{
    u64 *mark = phys_to_virt(memmap_alloc(PAGE, PAGE));
    memmap.warm = *mark == BOOT_MARK;
    *mark = BOOT_MARK;
}

u64 memmap_alloc(u64 size, u64 align)
{
    u64 start = memmap_try_alloc(size, align);
    KASSERT(start, "the machine has no %lu KiB of RAM left for the kernel itself", size >> 10);
    return start;
}

u64 memmap_low_page(void)
{
    u64 page = range_find(&memmap.free, PAGE, PAGE, PAGE);
    return page < LOW_END ? page : 0;
}

u64 memmap_end_pfn(void)
{
    return memmap.ram.count ? memmap.ram.range[memmap.ram.count - 1].end / PAGE : 0;
}
