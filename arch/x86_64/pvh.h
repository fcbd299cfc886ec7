/* What the loader hands over: the PVH start info (struct hvm_start_info of Xen's public headers). */
#pragma once
#include "lib/types.h"

struct boot_info {
    u64 rsdp;
    char cmdline[512];
    bool cmdline_cut; /* it was longer */
};

/* Copies what is needed (the originals lie in RAM that will be given out) and fills memmap. */
void pvh_read(u64 start_info_paddr, struct boot_info *info);
