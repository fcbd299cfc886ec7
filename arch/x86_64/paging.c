/*
 * See paging.h. Tables come from memmap_alloc and are never freed; after boot the upper half does
 * not change, so a client's root is a copy of the kernel's with its own lower half.
 */
#include "x86_64/paging.h"
#include "x86_64/cpu.h"
#include "core/panic.h"
#include "lib/printf.h"
#include "mm/memmap.h"

#define GUARD_MARKS 64

extern u8 kernel_start[], rodata_start[], data_start[], kernel_end[];

static u64 kernel_root;
static u64 next_device = DEVICE_AREA;
static u64 next_stack = KSTACK_AREA;
static u64 guards[GUARD_MARKS];
static unsigned guard_count;

u64 paging_kernel_root(void)
{
    return kernel_root;
}

static u64 usable_flags(u64 flags)
{
    if (!cpu_features.nx)
        flags &= ~PTE_NX;
    if (!cpu_features.pge)
        flags &= ~PTE_GLOBAL;
    return flags;
}

static u64 *table_at(u64 entry)
{
    return phys_to_virt(entry & PTE_ADDRESS);
}

static u64 table_new(void)
{
    return memmap_alloc(PAGE_SIZE, PAGE_SIZE);
}

/* The entry for vaddr at a level, with the tables above it made where missing. */
static u64 *entry_for(u64 vaddr, unsigned level)
{
    u64 *table = phys_to_virt(kernel_root);
    for (unsigned l = PT_LEVELS; l > level; l--) {
        u64 *e = &table[pt_index(vaddr, l)];
        if (!*e)
            *e = table_new() | PTE_PRESENT | PTE_WRITE;
        table = table_at(*e);
    }
    return &table[pt_index(vaddr, level)];
}

static unsigned largest_level(u64 vaddr, u64 paddr, u64 size)
{
    for (unsigned level = cpu_features.gigabyte_pages ? 3 : 2; level > 1; level--)
        if (!((vaddr | paddr) & (pt_span(level) - 1)) && size >= pt_span(level))
            return level;
    return 1;
}

void paging_map(u64 vaddr, u64 paddr, u64 size, u64 flags)
{
    flags = usable_flags(flags) | PTE_PRESENT;
    while (size) {
        unsigned level = largest_level(vaddr, paddr, size);
        u64 span = pt_span(level);
        u64 *e = entry_for(vaddr, level);
        u64 value = paddr | flags | (level > 1 ? PTE_LARGE : 0);
        /* All that goes into this table: a larger page can only begin where the next table does. */
        u64 count = MIN(size / span, (u64)PT_ENTRIES - pt_index(vaddr, level));
        for (u64 i = 0; i < count; i++, value += span)
            e[i] = value;
        vaddr += count * span;
        paddr += count * span;
        size -= count * span;
    }
}

void paging_map_same(u64 vaddr, u64 paddr, u64 size, u64 flags)
{
    for (u64 end = vaddr + size; vaddr < end; vaddr += PAGE_SIZE)
        *entry_for(vaddr, 1) = paddr | usable_flags(flags) | PTE_PRESENT;
}

void paging_map_table(u64 vaddr, u64 table_paddr)
{
    *entry_for(vaddr, 2) = table_paddr | PTE_PRESENT;
}

volatile void *paging_map_device(u64 paddr)
{
    u64 vaddr = next_device;
    next_device += PAGE_SIZE;
    paging_map(vaddr, ALIGN_DOWN(paddr, PAGE_SIZE), PAGE_SIZE, PTE_WRITE | PTE_NOCACHE | PTE_NX);
    return (volatile u8 *)vaddr + paddr % PAGE_SIZE;
}

u64 paging_map_stack(u64 size)
{
    KASSERT(guard_count < GUARD_MARKS, "%u guard pages", guard_count);
    guards[guard_count++] = next_stack;
    u64 low = next_stack + PAGE_SIZE;
    for (u64 at = low; at < low + size; at += PAGE_SIZE)
        paging_map(at, memmap_alloc(PAGE_SIZE, PAGE_SIZE), PAGE_SIZE,
                   PTE_WRITE | PTE_NX | PTE_GLOBAL);
    next_stack = low + size;
    return low + size;
}

bool paging_is_guard(u64 vaddr)
{
    for (unsigned i = 0; i < guard_count; i++)
        if (vaddr - guards[i] < PAGE_SIZE)
            return true;
    return false;
}

static void map_image(void)
{
    u64 text = (u64)kernel_start, ro = (u64)rodata_start, data = (u64)data_start;
    paging_map(text, text - KERNEL_BASE, ro - text, PTE_GLOBAL);
    paging_map(ro, ro - KERNEL_BASE, data - ro, PTE_NX | PTE_GLOBAL);
    paging_map(data, data - KERNEL_BASE, (u64)kernel_end - data, PTE_WRITE | PTE_NX | PTE_GLOBAL);
}

/* All RAM, but read-only where it is the kernel's own text and constants. */
static void map_direct(void)
{
    u64 ro_start = image_to_phys(kernel_start), ro_end = image_to_phys(data_start);
    const u64 rw = PTE_WRITE | PTE_NX | PTE_GLOBAL;
    for (unsigned i = 0; i < memmap.ram.count; i++) {
        u64 start = ALIGN_DOWN(memmap.ram.range[i].start, PAGE_SIZE);
        u64 end = ALIGN_UP(memmap.ram.range[i].end, PAGE_SIZE);
        if (start <= ro_start && ro_end <= end) {
            paging_map(DIRECT_MAP + start, start, ro_start - start, rw);
            paging_map(DIRECT_MAP + ro_start, ro_start, ro_end - ro_start, PTE_NX | PTE_GLOBAL);
            start = ro_end;
        }
        paging_map(DIRECT_MAP + start, start, end - start, rw);
    }
}

void paging_init(void)
{
    memmap_mark_boot();
    kernel_root = table_new();
    map_image();
    map_direct();
    write_cr3(kernel_root);
}

unsigned paging_walk(u64 root, u64 vaddr, struct pt_step steps[PT_LEVELS])
{
    u64 *table = phys_to_virt(root);
    unsigned n = 0;
    for (unsigned level = PT_LEVELS; level >= 1; level--) {
        u64 entry = READ_ONCE(table[pt_index(vaddr, level)]);
        steps[n++] = (struct pt_step){level, pt_index(vaddr, level), entry};
        if (!(entry & PTE_PRESENT) || (level < PT_LEVELS && entry & PTE_LARGE))
            break;
        table = table_at(entry);
    }
    return n;
}

void paging_describe_entry(char *buf, size_t cap, const struct pt_step *step)
{
    static const char *const sizes[] = {"", "4 KiB page", "2 MiB page", "1 GiB page"};
    u64 e = step->entry;
    bool leaf = step->level == 1 || (step->level < PT_LEVELS && e & PTE_LARGE);
    if (!(e & PTE_PRESENT)) {
        format(buf, cap, "not present");
        return;
    }
    format(buf, cap, "-> 0x%09lx  %s  r%c%c%c%s%s%s%s", e & PTE_ADDRESS,
           leaf ? sizes[step->level] : "table     ", e & PTE_WRITE ? 'w' : '-',
           e & PTE_NX ? '-' : 'x', e & PTE_USER ? 'u' : 'k', e & PTE_ACCESSED ? " accessed" : "",
           leaf && e & PTE_DIRTY ? " dirty" : "", leaf && e & PTE_GLOBAL ? " global" : "",
           e & PTE_NOCACHE ? " uncached" : "");
}
