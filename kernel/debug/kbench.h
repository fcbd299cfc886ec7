/* Timing of the allocator inside the kernel. */
#pragma once
#include "lib/types.h"

enum kbench_what { KBENCH_PAGES, KBENCH_ZONE, KBENCH_EMPTY, KBENCH_LAST };

/* TSC ticks for `rounds` alloc+free pairs; -EINVAL when an argument is out of range. */
int kbench_run(u32 what, u32 order, u32 rounds, u64 *ticks);
