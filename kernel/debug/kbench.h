/*
 * Timing of the allocator inside the kernel, in TSC ticks: under -icount one tick is one instruction.
 *
 *   kbench_pairs   an allocation and its free, many times
 *   kbench_batch   1024 frames, then all given back, in three orders
 *   kbench_mix     random allocations and frees of mixed orders
 *   kbench_worst   single calls in states built to make them as dear as they can be
 *
 * The workloads of the first three are those that Linux was measured with. Nothing that another CPU
 * does is shut out: figures are exact on a machine with one CPU.
 *
 * One benchmark runs at a time, with interrupts off: a byte on a serial line comes when it comes, and
 * its interrupt must not be counted.
 */
#pragma once
#include "mm/mm.h"
#include "x86_64/cpu.h"
#include "lib/bits.h"

enum kbench_what { KBENCH_PAGES, KBENCH_ZONE, KBENCH_EMPTY, KBENCH_LAST, KBENCH_ASIS };
enum kbench_free { KBENCH_LIFO, KBENCH_FIFO, KBENCH_RANDOM };
enum kbench_mix { KBENCH_DRY, KBENCH_PLAIN, KBENCH_SINGLE };

#define KBENCH_SEED 88172645463325252ull

/* What the mixed workload answers with. Blocks are counted in all zones, without the magazines. */
struct mix_result {
    u64 ticks;                         /* of all steps */
    u64 live, failed;                  /* blocks held at the end; allocations that found none */
    u64 alloc_ticks[6], free_ticks[6]; /* of single calls: count, p50, p90, p99, p99.9, max */
    u64 start_blocks[NR_ORDERS];       /* free blocks by order before the first step, */
    u64 live_blocks[NR_ORDERS];        /* after the last one, */
    u64 sixteenth_blocks[NR_ORDERS];   /* when only every 16th live block is still held, */
    u64 freed_blocks[NR_ORDERS];       /* and when none is */
};

/* Ticks for `rounds` alloc+free pairs. All return -EINVAL when an argument is out of range. */
int kbench_pairs(u32 what, u32 order, u32 rounds, u64 *ticks);
/* Ticks for 1024 allocations and for their frees. */
int kbench_batch(u32 order_of_frees, u64 *alloc, u64 *free);
int kbench_mix(u32 mode, u32 steps, u32 limit, u64 seed, struct mix_result *r);
/* Runs one case; its name is NULL when there is none of that index. */
const char *kbench_worst_name(u32 index);
int kbench_worst(u32 index, u64 *ticks);

/* Waits for the turn, empties the magazines and turns interrupts off; the other way about. */
void kbench_begin(void);
void kbench_end(void);
/* What two readings of the clock with nothing between them are apart. */
u64 kbench_empty(void);

/* The compiler moves no memory access over it. */
static inline u64 kbench_clock(void)
{
    compiler_barrier();
    u64 now = rdtsc();
    compiler_barrier();
    return now;
}

/* xorshift64 */
static inline u64 kbench_random(u64 *state)
{
    u64 x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}
