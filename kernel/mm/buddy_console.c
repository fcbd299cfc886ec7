/*
 * The console command `buddy`: free blocks by order, and a picture of where they are.
 *
 * The picture has at most MAP_CELLS characters, each for the same power of two of frames. Free
 * frames are counted into the cells by walking the bitmaps from their summaries down, so that the
 * work grows with the free blocks and not with the zone; a word of the bitmap that lies in one cell
 * is counted as a whole. No lock is held for the walk: what changes meanwhile shows or does not.
 */
#include "mm/buddy.h"
#include "console/command.h"
#include "lib/bits.h"
#include "lib/printf.h"
#include "mm/memmap.h"
#include "mm/pcp.h"
#include "mm/zone.h"
#include "x86_64/percpu.h"

#define MAP_ROWS    16
#define MAP_COLUMNS 64
#define MAP_CELLS   (MAP_ROWS * MAP_COLUMNS)

struct map {
    const struct zone *zone;
    u64 cell_frames; /* a power of two */
    u64 cells;
    u32 ram[MAP_CELLS], managed[MAP_CELLS], free[MAP_CELLS]; /* frames */
};

/* ---- the picture ---- */

static void count_frames(const struct map *m, u32 *counts, u64 pfn, u64 frames)
{
    u64 at = pfn - m->zone->start_pfn;
    while (frames) {
        u64 n = MIN(frames, m->cell_frames - at % m->cell_frames);
        counts[at / m->cell_frames] += (u32)n;
        at += n;
        frames -= n;
    }
}

static void count_ranges(const struct map *m, u32 *counts, const struct range_set *s)
{
    for (u32 i = 0; i < s->count; i++) {
        u64 start = MAX(pfn_of(s->range[i].start), m->zone->start_pfn);
        u64 end = MIN(pfn_of(s->range[i].end), m->zone->end_pfn);
        if (start < end)
            count_frames(m, counts, start, end - start);
    }
}

static void count_word(struct map *m, unsigned order, u64 first, u64 word)
{
    const struct buddy *b = &m->zone->buddy;
    if (64ull << order <= m->cell_frames) {
        m->free[(first << order) / m->cell_frames] += bits_count(word) << order;
        return;
    }
    for (; word; word &= word - 1) {
        u64 i = first + (u64)__builtin_ctzll(word);
        count_frames(m, m->free, b->base + (i << order), 1ull << order);
    }
}

/* The free blocks below one word of a summary; the bitmap itself is level 0. */
static void count_blocks(struct map *m, unsigned order, u32 level, u64 i)
{
    u64 word = READ_ONCE(m->zone->buddy.map[order].level[level][i]);
    if (level == 0) {
        count_word(m, order, i * 64, word);
        return;
    }
    for (; word; word &= word - 1)
        count_blocks(m, order, level - 1, i * 64 + (u64)__builtin_ctzll(word));
}

static void count_magazines(struct map *m)
{
    for_each_cpu(cpu) {
        for (unsigned order = 0; order < NR_ORDERS; order++) {
            if (pcp_index[order] < 0)
                continue;
            struct magazine *mag = &cpu->pcp.magazine[pcp_index[order]];
            SPIN_GUARD(&mag->lock);
            for (u32 i = 0; i < mag->count; i++)
                count_frames(m, m->free, cpu->pcp.slot[pcp_first[pcp_index[order]] + i],
                             1ull << order);
        }
    }
}

static void map_collect(struct map *m, const struct zone *z)
{
    u64 span = z->end_pfn - z->start_pfn;
    *m = (struct map){.zone = z, .cell_frames = 1};
    while (m->cell_frames * MAP_CELLS < span)
        m->cell_frames *= 2;
    m->cells = (span + m->cell_frames - 1) / m->cell_frames;
    count_ranges(m, m->ram, &memmap.ram);
    count_ranges(m, m->managed, &memmap.free); /* what the zones were filled from */
    for (unsigned order = 0; order < NR_ORDERS; order++)
        count_blocks(m, order, z->buddy.map[order].levels - 1, 0);
    if (z == pcp_zone)
        count_magazines(m);
}

static char map_char(const struct map *m, u64 cell)
{
    u32 managed = m->managed[cell], free = m->free[cell];
    if (!managed)
        return m->ram[cell] ? 'k' : ' ';
    if (free >= managed)
        return '.';
    return free ? (char)('0' + MAX(free * 10 / managed, 1u)) : '#';
}

static void map_print(const struct map *m)
{
    for (u64 cell = 0; cell < m->cells; cell += MAP_COLUMNS) {
        char text[MAP_COLUMNS];
        int n = (int)MIN(m->cells - cell, (u64)MAP_COLUMNS);
        for (int i = 0; i < n; i++)
            text[i] = map_char(m, cell + (u64)i);
        while (n && text[n - 1] == ' ')
            n--;
        cprintf("0x%010lx%s%.*s\n", paddr_of(m->zone->start_pfn + cell * m->cell_frames),
                n ? "  " : "", n, text);
    }
    cprintf("# in use   1-9 tenths free   . free   k the kernel's own   blank: no RAM\n");
}

/* ---- the table ---- */

static void size_format(char *buf, size_t cap, u64 frames)
{
    if (frames < 256)
        format(buf, cap, "%lu KiB", frames * 4);
    else
        format(buf, cap, "%lu MiB", frames / 256);
}

static void zone_print(struct zone *z)
{
    struct zone copy;
    char size[16];
    spin_lock(&z->lock);
    copy = *z;
    spin_unlock(&z->lock);
    u64 magazines = z == pcp_zone ? pcp_pages() : 0;
    cprintf("zone %s: %lu frames, %lu free in the zone, %lu free in magazines\n", copy.name,
            copy.managed, copy.buddy.free_pages, magazines);
    cprintf("order     block      free  magazine      taken      given     splits     merges\n");
    for (unsigned o = 0; o < NR_ORDERS; o++) {
        size_format(size, sizeof(size), 1ull << o);
        cprintf("%5u  %8s  %8lu  %8lu %10lu %10lu %10lu %10lu\n", o, size, copy.buddy.map[o].blocks,
                z == pcp_zone ? pcp_blocks(o) : 0, copy.taken[o], copy.given[o],
                copy.buddy.splits[o], copy.buddy.merges[o]);
    }
    cprintf("\n");
}

static void zone_draw(const struct zone *z)
{
    static struct map map;
    char size[16];
    map_collect(&map, z);
    size_format(size, sizeof(size), map.cell_frames);
    cprintf("map of %s, a character for %s\n", z->name, size);
    map_print(&map);
}

/* ---- the command ---- */

static bool same_word(const char *a, const char *b) /* letters of either case */
{
    while (*a && (*a | 0x20) == (*b | 0x20)) {
        a++;
        b++;
    }
    return !*a && !*b;
}

static struct zone *zone_named(const char *name)
{
    for (int i = 0; i < NR_ZONES; i++)
        if (same_word(zones[i].name, name))
            return &zones[i];
    return NULL;
}

static struct zone *zone_largest(void)
{
    struct zone *largest = &zones[0];
    for (int i = 1; i < NR_ZONES; i++)
        if (zones[i].managed > largest->managed)
            largest = &zones[i];
    return largest;
}

COMMAND(buddy, "[dma|normal]", "free blocks by order, and where they are")
{
    if (command_extra(argc, argv, 1))
        return true;
    struct zone *chosen = argc > 1 ? zone_named(argv[1]) : zone_largest();
    if (!chosen)
        return command_expected(argv[1], "a zone: dma, normal or highmem");
    if (!chosen->managed) {
        cprintf("zone %s is empty\n", chosen->name);
        return true;
    }
    for (int i = 0; i < NR_ZONES; i++)
        if (zones[i].managed && (argc == 1 || &zones[i] == chosen))
            zone_print(&zones[i]);
    zone_draw(chosen);
    return true;
}
