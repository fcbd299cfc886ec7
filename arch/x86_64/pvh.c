/* See pvh.h. */
#include "x86_64/pvh.h"
#include "x86_64/paging.h"
#include "core/panic.h"
#include "lib/string.h"
#include "mm/memmap.h"

#define PVH_MAGIC 0x336ec578
#define E820_RAM  1

struct start_info {
    u32 magic, version, flags, nr_modules;
    u64 modlist, cmdline, rsdp;
    u64 memmap; /* from version 1 */
    u32 memmap_entries, reserved;
};

struct memmap_entry {
    u64 addr, size;
    u32 type, reserved;
};

void pvh_read(u64 start_info_paddr, struct boot_info *info)
{
    const struct start_info *si = phys_to_virt(start_info_paddr);
    if (si->magic != PVH_MAGIC || si->version < 1 || !si->memmap_entries)
        panic("no PVH start info with a memory map at 0x%lx (magic 0x%x, version %u)",
              start_info_paddr, si->magic, si->version);
    info->rsdp = si->rsdp;
    if (si->cmdline)
        info->cmdline_cut = strlen(phys_to_virt(si->cmdline)) >= sizeof(info->cmdline);
    if (si->cmdline)
        string_copy(info->cmdline, phys_to_virt(si->cmdline), sizeof(info->cmdline));
    const struct memmap_entry *e = phys_to_virt(si->memmap);
    for (u32 i = 0; i < si->memmap_entries; i++)
        if (e[i].type == E820_RAM)
            memmap_add(e[i].addr, e[i].addr + e[i].size);
    for (u32 i = 0; i < si->memmap_entries; i++)
        if (e[i].type != E820_RAM)
            memmap_remove(e[i].addr, e[i].addr + e[i].size);
}
