/*
 * 1024 frames allocated one by one, then given back one by one: the last one first, the first one
 * first, or in a random order that is always the same. See kbench.h.
 *
 * Three rounds are not timed. From then on each round finds what the one before it left.
 */
#include "debug/kbench.h"
#include "lib/errno.h"
#include "mm/pages.h"

#define FRAMES 1024
#define ROUNDS 4

static u64 frame[FRAMES];
static u32 place[FRAMES]; /* which is given back when */

static void make_order(u32 how)
{
    u64 random = KBENCH_SEED;
    for (u32 i = 0; i < FRAMES; i++)
        place[i] = how == KBENCH_LIFO ? FRAMES - 1 - i : i;
    if (how != KBENCH_RANDOM)
        return;
    for (u32 i = FRAMES - 1; i > 0; i--) {
        u32 j = (u32)(kbench_random(&random) % (i + 1)), t = place[i];
        place[i] = place[j];
        place[j] = t;
    }
}

static __attribute__((noinline)) u64 time_alloc(void)
{
    u64 start = kbench_clock();
    for (u32 i = 0; i < FRAMES; i++)
        frame[i] = pages_alloc(0, PAGE_KERNEL, 0, 0);
    return kbench_clock() - start;
}

static __attribute__((noinline)) u64 time_free(void)
{
    u64 start = kbench_clock();
    for (u32 i = 0; i < FRAMES; i++)
        pages_free(frame[place[i]], 0, PAGE_KERNEL, 0);
    return kbench_clock() - start;
}

int kbench_batch(u32 how, u64 *alloc, u64 *free)
{
    if (how > KBENCH_RANDOM)
        return -EINVAL;
    kbench_begin();
    make_order(how);
    bool all = true;
    for (u32 i = 0; i < ROUNDS; i++) {
        *alloc = time_alloc() - kbench_empty();
        for (u32 k = 0; k < FRAMES; k++)
            all &= frame[k] != 0;
        *free = time_free() - kbench_empty(); /* frame 0 is refused */
    }
    kbench_end();
    return all ? 0 : -ENOMEM;
}
