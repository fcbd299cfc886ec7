/*
 * Console commands that show memory: mem, zones, page. What they print is collected first, under the
 * lock that it needs; nothing is printed while one is held.
 */
#include "mm/memmap.h"
#include "mm/owned.h"
#include "mm/pages.h"
#include "mm/pcp.h"
#include "mm/zone.h"
#include "console/command.h"
#include "lib/printf.h"
#include "lib/string.h"
#include "rpc/client.h"
#include "x86_64/paging.h"
#include "x86_64/percpu.h"

extern u8 kernel_start[], kernel_end[];

/* ---- mem ---- */

static u64 less(u64 whole, u64 part) /* counts are read one by one while others allocate */
{
    return whole > part ? whole - part : 0;
}

static void row(const char *what, u64 bytes)
{
    u64 total = MAX(range_total(&memmap.ram), 1);
    u64 share = (bytes * 10000 + total / 2) / total;
    cprintf("%-27s %10lu KiB  %3lu.%02lu %%\n", what, bytes >> 10, share / 100, share % 100);
}

static u64 client_pages(void)
{
    u64 pages = 0;
    for (u64 id = 0; id < MAX_CLIENTS; id++) {
        const struct client *c = client_get(id);
        pages += c ? c->owner.pages : 0;
    }
    return pages;
}

static void print_managed(u64 managed)
{
    u64 magazines = paddr_of(pcp_pages());
    u64 free = paddr_of(pages_free_count());
    u64 clients = paddr_of(client_pages());
    row("managed by zones", managed);
    row("  free in zones", less(free, magazines));
    row("  free in magazines", magazines);
    row("  used by clients", clients);
    row("  used by the kernel", less(managed, free + clients));
}

/* The magazines are metadata that lies in the image: the rest must not lose them twice. */
static void print_reserved(u64 reserved)
{
    u64 image = (u64)(kernel_end - kernel_start);
    u64 magazines = cpu_count * sizeof(struct pcp);
    row("reserved", reserved);
    row("  kernel image", image);
    row("  metadata", memmap.metadata_bytes);
    row("  page tables, stacks", less(reserved + magazines, image + memmap.metadata_bytes));
}

COMMAND(mem, "", "where the memory is")
{
    u64 total = range_total(&memmap.ram), managed = 0;
    if (command_extra(argc, argv, 0))
        return true;
    for (int i = 0; i < NR_ZONES; i++)
        managed += paddr_of(zones[i].managed);
    row("RAM", total);
    print_managed(managed);
    print_reserved(less(total, managed));
    cprintf("\nphysical addresses of RAM\n");
    for (u32 i = 0; i < memmap.ram.count; i++) {
        const struct mem_range *r = &memmap.ram.range[i];
        cprintf("  0x%010lx-0x%010lx %10lu KiB\n", r->start, r->end - 1, (r->end - r->start) >> 10);
    }
    return true;
}

/* ---- zones ---- */

static void print_zone(struct zone *z)
{
    if (z->start_pfn == z->end_pfn) {
        cprintf("%-7s empty\n", z->name);
        return;
    }
    spin_lock(&z->lock);
    u64 free = z->buddy.free_pages, failures = z->failures;
    spin_unlock(&z->lock);
    cprintf("%-7s 0x%010lx-0x%010lx %8lu %8lu %6lu %6lu %6lu %6lu\n", z->name,
            paddr_of(z->start_pfn), paddr_of(z->end_pfn) - 1, z->managed, free, z->watermark_min,
            z->watermark_low, z->watermark_high, failures);
}

COMMAND(zones, "", "the zones, in frames of 4 KiB")
{
    if (command_extra(argc, argv, 0))
        return true;
    cprintf("zone    addresses                  managed     free    min    low   high failed\n");
    for (int i = 0; i < NR_ZONES; i++)
        print_zone(&zones[i]);
    return true;
}

/* ---- page ---- */

/* What the frame's owner knows of it; for a frame without one, what anybody does. */
static bool frame_info(u64 pfn, struct page_info *info)
{
    struct client *asker = client_get(CLIENT_CONSOLE);
    if (owned_info(&asker->owner, pfn, info))
        return false;
    struct client *owner = info->kind == PAGE_CLIENT ? client_get(info->owner) : NULL;
    return !owner || owner == asker || !owned_info(&owner->owner, pfn, info);
}

static void print_place(const struct page_info *i)
{
    u64 image = image_to_phys(kernel_start), end = image_to_phys(kernel_end);
    switch (i->place) {
    case PLACE_RESERVED:
        cprintf("  place  reserved: %s\n", i->paddr >= image && i->paddr < end
                                               ? "the kernel image"
                                               : "page tables, stacks, metadata");
        return;
    case PLACE_FREE:
        cprintf("  place  free, in the zone\n");
        break;
    case PLACE_MAGAZINE:
        cprintf("  place  free, in a magazine of CPU %u\n", i->cpu);
        break;
    default:
        cprintf("  place  in use%s\n", i->paddr == i->block ? "" : ", not the first of its block");
        break;
    }
    cprintf("  block  0x%lx-0x%lx, order %u, %lu KiB\n", i->block,
            i->block + (paddr_of(1) << i->order) - 1, i->order, 4ul << i->order);
}

static void print_flags(const struct page_info *i)
{
    if (!i->flags)
        cprintf("  flags  none\n");
    else
        cprintf("  flags %s%s%s\n", i->flags & PG_DIRTY ? " dirty" : "",
                i->flags & PG_LOCKED ? " locked" : "", i->flags & PG_MAPPED ? " mapped" : "");
    if (i->vaddr)
        cprintf("  vaddr  0x%lx\n", i->vaddr);
}

static void print_live(const struct page_info *i)
{
    static const char *const kinds[] = {"none", "kernel", "client", "page table", "small objects"};
    const struct client *c = client_get(i->owner);
    char name[CLIENT_NAME];
    cprintf("  kind   %s\n", i->kind < ARRAY_SIZE(kinds) ? kinds[i->kind] : "unknown");
    if (c) {
        client_name_format(c, name);
        cprintf("  owner  client %u, %s\n", i->owner, name);
    }
    if (i->kind == PAGE_TABLE)
        cprintf("  used   %u of %u entries\n", i->refs, PT_ENTRIES);
    else
        cprintf("  refs   %u\n", i->refs);
    print_flags(i);
}

COMMAND(page, "<addr>", "what a physical frame is now")
{
    struct page_info info;
    u64 addr;
    if (argc < 2)
        return false;
    if (command_extra(argc, argv, 1) ||
        !command_number(argv[1], "an address", 0, UINT64_MAX, &addr))
        return true;
    if (!frame_info(pfn_of(addr), &info) || info.place == PLACE_NOT_RAM) {
        cprintf("0x%lx is not RAM\n", addr);
        return true;
    }
    cprintf("frame 0x%lx, number %lu, zone %s\n", info.paddr, pfn_of(addr), zones[info.zone].name);
    print_place(&info);
    if (info.place == PLACE_LIVE)
        print_live(&info);
    return true;
}
