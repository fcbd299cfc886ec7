/* Stands before arch's header of that name: the same, but RAM and struct pages are where we put them. */
#pragma once
#include_next "x86_64/layout.h"

extern unsigned char *fuzz_ram;
extern unsigned char fuzz_pages[];

#undef DIRECT_MAP
#undef VMEMMAP
#define DIRECT_MAP ((unsigned long)fuzz_ram)
#define VMEMMAP    ((unsigned long)fuzz_pages)
