/*
 * The mixed workload: steps that allocate a block of a random order or give back a random one of
 * those held. See kbench.h. With n blocks held, a step allocates with probability 1 - n/limit, so
 * that about half of the limit is held in the end; order k has probability 2^-(k+1), and order 5, the
 * largest, what is left.
 *
 * The same loop runs in three modes: as it is, without the calls (what is to be taken off), and with
 * a clock around each call. Latencies are counted in a histogram: no sorting, no list.
 *
 * What it works with is in a block of its own, so that the kernel's image does not grow by it.
 */
#include "debug/kbench.h"
#include "x86_64/paging.h"
#include "lib/errno.h"
#include "lib/string.h"
#include "mm/pages.h"

#define LIMIT_MAX 32768
#define STEPS_MAX 1000000
#define TICKS_MAX 32768 /* latencies from there on are counted together; the maximum is exact */

struct histogram {
    u64 count, max;
    u32 of[TICKS_MAX];
};

struct mix {
    u64 random;
    u64 failed;
    u64 empty; /* what the clock itself takes */
    struct histogram alloc, free;
    u64 live[LIMIT_MAX]; /* pfn */
    u8 order[LIMIT_MAX];
};
#define MIX_ORDER 8
_Static_assert(sizeof(struct mix) <= 4096u << MIX_ORDER, "the block holds it");

static void histogram_add(struct histogram *h, u64 ticks)
{
    h->count++;
    h->max = MAX(h->max, ticks);
    h->of[MIN(ticks, (u64)TICKS_MAX - 1)]++;
}

/* The value that has `rank` smaller or equal ones before it. */
static u64 histogram_at(const struct histogram *h, u64 rank)
{
    u64 below = 0;
    for (u32 ticks = 0; ticks < TICKS_MAX; ticks++) {
        below += h->of[ticks];
        if (below > rank)
            return ticks;
    }
    return h->max;
}

static void histogram_summary(const struct histogram *h, u64 out[6])
{
    u64 n = h->count;
    const u64 summary[] = {n,
                           histogram_at(h, n / 2),
                           histogram_at(h, n * 9 / 10),
                           histogram_at(h, n * 99 / 100),
                           histogram_at(h, n * 999 / 1000),
                           h->max};
    memcpy(out, summary, sizeof(summary));
}

/* One of the modes: 0 for a failed allocation, else the block. */
static inline u64 step_alloc(struct mix *m, enum kbench_mix mode, unsigned order)
{
    if (mode == KBENCH_DRY) {
        u64 pfn = m->random | 1;
        __asm__ volatile("" : "+r"(pfn));
        return pfn;
    }
    if (mode == KBENCH_PLAIN)
        return pages_alloc(order, PAGE_KERNEL, 0, 0);
    u64 start = kbench_clock();
    u64 pfn = pages_alloc(order, PAGE_KERNEL, 0, 0);
    u64 end = kbench_clock();
    histogram_add(&m->alloc, end - start - m->empty);
    return pfn;
}

static inline void step_free(struct mix *m, enum kbench_mix mode, u64 pfn, unsigned order)
{
    if (mode == KBENCH_DRY) {
        __asm__ volatile("" ::"r"(pfn), "r"(order));
        return;
    }
    u64 start = mode == KBENCH_SINGLE ? kbench_clock() : 0;
    pages_free(pfn, order, PAGE_KERNEL, 0);
    if (mode == KBENCH_SINGLE)
        histogram_add(&m->free, kbench_clock() - start - m->empty);
}

/* The mode is a constant where this is used. Returns how many blocks are held at the end. */
static inline __attribute__((always_inline)) u32 run(struct mix *m, enum kbench_mix mode, u32 limit,
                                                     u32 steps)
{
    u32 n = 0;
    for (u32 s = 0; s < steps; s++) {
        if ((kbench_random(&m->random) & (limit - 1)) >= n) {
            unsigned order = (unsigned)bits_lowest(kbench_random(&m->random) | 32);
            u64 pfn = step_alloc(m, mode, order);
            if (unlikely(!pfn)) {
                m->failed++;
                continue;
            }
            m->order[n] = (u8)order;
            m->live[n++] = pfn;
        } else {
            u32 i = (u32)(kbench_random(&m->random) % n);
            step_free(m, mode, m->live[i], m->order[i]);
            n--;
            m->live[i] = m->live[n];
            m->order[i] = m->order[n];
        }
    }
    return n;
}

#define DEFINE_RUN(name, mode)                                                                     \
    static __attribute__((noinline)) u32 run_##name(struct mix *m, u32 limit, u32 steps)           \
    {                                                                                              \
        return run(m, mode, limit, steps);                                                         \
    }
DEFINE_RUN(dry, KBENCH_DRY)
DEFINE_RUN(plain, KBENCH_PLAIN)
DEFINE_RUN(single, KBENCH_SINGLE)

static u32 (*const runs[])(struct mix *, u32, u32) = {run_dry, run_plain, run_single};

static void count_blocks(u64 blocks[NR_ORDERS])
{
    for (unsigned order = 0; order < NR_ORDERS; order++) {
        blocks[order] = 0;
        for (int i = 0; i < NR_ZONES; i++)
            blocks[order] += zones[i].buddy.map[order].blocks;
    }
}

/* Gives back all blocks, or all but every n-th. Returns how many are left. */
static u32 give_back(struct mix *m, u32 live, u32 keep)
{
    u32 left = 0;
    for (u32 i = 0; i < live; i++) {
        if (keep && i % keep == 0) {
            m->live[left] = m->live[i];
            m->order[left++] = m->order[i];
        } else {
            pages_free(m->live[i], m->order[i], PAGE_KERNEL, 0);
        }
    }
    return left;
}

static void measure(struct mix *m, u32 mode, u32 steps, u32 limit, struct mix_result *r)
{
    count_blocks(r->start_blocks);
    u64 start = kbench_clock();
    u32 live = runs[mode](m, limit, steps);
    r->ticks = kbench_clock() - start - m->empty;
    r->live = live;
    r->failed = m->failed;
    if (mode == KBENCH_DRY)
        return;
    count_blocks(r->live_blocks);
    u32 left = give_back(m, live, 16);
    count_blocks(r->sixteenth_blocks);
    give_back(m, left, 0);
    count_blocks(r->freed_blocks);
    histogram_summary(&m->alloc, r->alloc_ticks);
    histogram_summary(&m->free, r->free_ticks);
}

int kbench_mix(u32 mode, u32 steps, u32 limit, u64 seed, struct mix_result *r)
{
    if (mode > KBENCH_SINGLE || !steps || steps > STEPS_MAX || !limit || limit > LIMIT_MAX ||
        limit & (limit - 1) || !seed)
        return -EINVAL;
    u64 block = pages_alloc(MIX_ORDER, PAGE_KERNEL, 0, 0);
    if (!block)
        return -ENOMEM;
    struct mix *m = phys_to_virt(paddr_of(block));
    memset(m, 0, sizeof(*m));
    *r = (struct mix_result){0};
    m->random = seed;
    kbench_begin();
    m->empty = kbench_empty();
    measure(m, mode, steps, limit, r);
    kbench_end();
    pages_free(block, MIX_ORDER, PAGE_KERNEL, 0);
    return 0;
}
