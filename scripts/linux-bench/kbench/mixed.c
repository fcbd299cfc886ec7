// SPDX-License-Identifier: GPL-2.0
/* Mixed workloads: allocations and frees in random order, from nothing to about half of a limit, and
 * what that does to free memory.
 *
 * The live blocks are in an array, slots 0 to n - 1. A step draws r; with limit L, a power of two, it
 * allocates when r % L >= n and frees a random slot otherwise, so n settles at L / 2. Each workload
 * has a dry run: the same steps without the allocator, to be taken off.
 */
#include <linux/gfp.h>
#include <linux/irqflags.h>
#include <linux/mmzone.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/vmalloc.h>
#include "kbench.h"

#define LIMIT     4096
#define STEPS     100000
#define BIG_LIMIT 32768
#define BIG_STEPS 200000

static void **live;
static u8 *live_order;
static u32 *alloc_ticks, *free_ticks; /* of single operations */
static u32 failed;

/* ---- pages: order k has probability 2^-(k+1), and order 5 what is left ---- */

static noinline u32 mix_pages(u32 limit, u32 steps)
{
    u32 n = 0, step;
    for (step = 0; step < steps; step++) {
        u64 r = random_next();
        if ((r & (limit - 1)) >= n) {
            int order = __builtin_ctzll(random_next() | 32);
            struct page *page = alloc_pages(GFP_KERNEL | __GFP_NOWARN, order);
            if (unlikely(!page)) {
                failed++;
                continue;
            }
            live_order[n] = order;
            live[n++] = page;
        } else {
            u32 i = random_next() % n;
            __free_pages(live[i], live_order[i]);
            n--;
            live[i] = live[n];
            live_order[i] = live_order[n];
        }
    }
    return n;
}

static noinline u32 mix_pages_dry(u32 limit, u32 steps)
{
    u32 n = 0, step;
    for (step = 0; step < steps; step++) {
        u64 r = random_next();
        if ((r & (limit - 1)) >= n) {
            int order = __builtin_ctzll(random_next() | 32);
            void *page = (void *)(uintptr_t)r;
            barrier_data(page);
            live_order[n] = order;
            live[n++] = page;
        } else {
            u32 i = random_next() % n;
            barrier_data(live[i]);
            n--;
            live[i] = live[n];
            live_order[i] = live_order[n];
        }
    }
    return n;
}

/* The same with the clock read around each operation, and without interrupts in between if quiet.
 * Frees are all steps that are no allocation. */
static noinline u32 mix_pages_timed(u32 limit, u32 steps, bool quiet, u32 *allocations)
{
    u32 n = 0, step, a = 0, f = 0;
    for (step = 0; step < steps; step++) {
        u64 r = random_next(), start, end;
        if ((r & (limit - 1)) >= n) {
            int order = __builtin_ctzll(random_next() | 32);
            struct page *page;
            if (quiet)
                local_irq_disable();
            start = TICKS();
            page = alloc_pages(GFP_KERNEL, order);
            end = TICKS();
            if (quiet)
                local_irq_enable();
            alloc_ticks[a++] = end - start;
            if (!page) {
                failed++;
                continue;
            }
            live_order[n] = order;
            live[n++] = page;
        } else {
            u32 i = random_next() % n;
            if (quiet)
                local_irq_disable();
            start = TICKS();
            __free_pages(live[i], live_order[i]);
            end = TICKS();
            if (quiet)
                local_irq_enable();
            free_ticks[f++] = end - start;
            n--;
            live[i] = live[n];
            live_order[i] = live_order[n];
        }
    }
    *allocations = a;
    return n;
}

static void free_live(u32 n)
{
    while (n--)
        __free_pages(live[n], live_order[n]);
}

/* Only every sixteenth block stays. */
static u32 thin_out(u32 n)
{
    u32 i, left = 0;
    for (i = 0; i < n; i++) {
        if (i % 16) {
            __free_pages(live[i], live_order[i]);
        } else {
            live[left] = live[i];
            live_order[left++] = live_order[i];
        }
    }
    return left;
}

static int compare(const void *a, const void *b)
{
    u32 x = *(const u32 *)a, y = *(const u32 *)b;
    return x < y ? -1 : x > y;
}

static void print_percentiles(const char *name, u32 *ticks, u32 n)
{
    sort(ticks, n, sizeof(*ticks), compare, NULL);
    print("V %s_n %u\n", name, n);
    print("V %s_p50 %u\n", name, ticks[n / 2]);
    print("V %s_p90 %u\n", name, ticks[(u64)n * 9 / 10]);
    print("V %s_p99 %u\n", name, ticks[(u64)n * 99 / 100]);
    print("V %s_p999 %u\n", name, ticks[(u64)n * 999 / 1000]);
    print("V %s_max %u\n", name, ticks[n - 1]);
}

/* Free blocks of all zones; what is in the lists of a CPU is not in them. Unusable for an order is
 * the share of free memory that is in smaller blocks. */
static void print_fragmentation(const char *when)
{
    static const u8 orders[] = {1, 2, 3, 4, 5, 6, 9, 10};
    u64 blocks[MAX_ORDER] = {0}, pages = 0;
    int zone, order, k, largest = -1;
    for (zone = 0; zone < MAX_NR_ZONES; zone++)
        for (order = 0; order < MAX_ORDER; order++)
            blocks[order] += NODE_DATA(0)->node_zones[zone].free_area[order].nr_free;
    for (order = 0; order < MAX_ORDER; order++) {
        pages += blocks[order] << order;
        if (blocks[order])
            largest = order;
    }
    print("V frag_%s_free_pages %llu\nV frag_%s_largest_order %d\n", when, pages, when, largest);
    for (k = 0; k < ARRAY_SIZE(orders); k++) {
        u64 usable = 0;
        for (order = orders[k]; order < MAX_ORDER; order++)
            usable += blocks[order] << order;
        print("V frag_%s_unusable_o%d_permille %llu\n", when, orders[k],
              pages ? (pages - usable) * 1000 / pages : 0);
    }
}

static void bench_mixpages(void)
{
    u32 n, allocations;
    print_fragmentation("start");
    BENCH("mixpages_dry_100k", STEPS, 5, random_start(), n = mix_pages_dry(LIMIT, STEPS), );
    BENCH("mixpages_100k", STEPS, 10, random_start(), n = mix_pages(LIMIT, STEPS), free_live(n));
    print("V mixpages_live_at_end %u\n", n);
    random_start();
    n = mix_pages_timed(LIMIT, STEPS, false, &allocations);
    print("V mixpages_failed %u\n", failed);
    print_fragmentation("mix_live");
    print_percentiles("mixpages_alloc_lat", alloc_ticks, allocations);
    print_percentiles("mixpages_free_lat", free_ticks, STEPS - allocations);
    free_live(n);
    print_fragmentation("mix_freed");
    random_start();
    n = mix_pages_timed(LIMIT, STEPS, true, &allocations);
    print_percentiles("mixpages_alloc_lat_quiet", alloc_ticks, allocations);
    print_percentiles("mixpages_free_lat_quiet", free_ticks, STEPS - allocations);
    free_live(n);
}

/* Half of the machine's memory. */
static void bench_mixpages_big(void)
{
    u32 n = 0;
    failed = 0;
    BENCH("mixpages_big_200k", BIG_STEPS, 3, (free_live(n), random_start()),
          n = mix_pages(BIG_LIMIT, BIG_STEPS), );
    print("V mixpages_big_live_at_end %u\nV mixpages_big_failed %u\n", n, failed);
    print_fragmentation("big_live");
    n = thin_out(n);
    print_fragmentation("big_sixteenth_left");
    free_live(n);
    print_fragmentation("end");
}

/* ---- objects: a size class of 8 to 8192, and a size in its upper half ---- */

static inline u64 random_size(void)
{
    u64 q = random_next();
    u32 top = 8u << (q % 11);
    return top / 2 + 1 + (u32)(q >> 32) % (top / 2);
}

static noinline u32 mix_slab(u32 limit, u32 steps)
{
    u32 n = 0, step;
    for (step = 0; step < steps; step++) {
        u64 r = random_next();
        if ((r & (limit - 1)) >= n) {
            live[n++] = kmalloc(random_size(), GFP_KERNEL);
        } else {
            u32 i = random_next() % n;
            kfree(live[i]);
            live[i] = live[--n];
        }
    }
    return n;
}

static noinline u32 mix_slab_dry(u32 limit, u32 steps)
{
    u32 n = 0, step;
    for (step = 0; step < steps; step++) {
        u64 r = random_next();
        if ((r & (limit - 1)) >= n) {
            void *size = (void *)random_size();
            barrier_data(size);
            live[n++] = size;
        } else {
            u32 i = random_next() % n;
            barrier_data(live[i]);
            live[i] = live[--n];
        }
    }
    return n;
}

static void bench_mixslab(void)
{
    u32 n;
    BENCH("mixslab_dry_100k", STEPS, 5, random_start(), n = mix_slab_dry(LIMIT, STEPS), );
    BENCH("mixslab_100k", STEPS, 10, random_start(), n = mix_slab(LIMIT, STEPS),
          while (n) kfree(live[--n]));
}

int mixed_init(void)
{
    live = vmalloc(BIG_LIMIT * sizeof(*live));
    live_order = vmalloc(BIG_LIMIT);
    alloc_ticks = vmalloc(STEPS * sizeof(*alloc_ticks));
    free_ticks = vmalloc(STEPS * sizeof(*free_ticks));
    return live && live_order && alloc_ticks && free_ticks ? 0 : -ENOMEM;
}

void bench_mixed(void)
{
    bench_mixslab();
    bench_mixpages();
    bench_mixpages_big();
}
