/* Names, files and lines of the kernel's own code, from tables that the build makes of its DWARF. */
#pragma once
#include "lib/types.h"

/* "buddy_take+0x12 (kernel/mm/buddy.c:80)"; the bare address when it is no code of the kernel's. */
void ksym_format(char *buf, size_t cap, u64 address);
bool ksym_is_text(u64 address);
