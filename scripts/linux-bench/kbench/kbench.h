/* SPDX-License-Identifier: GPL-2.0 */
/* What the parts of the module share: the clock, random numbers, and batches with their report. */
#ifndef KBENCH_H
#define KBENCH_H

#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/sched.h>

#define MAX_BATCHES 128
#define OBJECTS     1024 /* in a batch that allocates all and then frees all */
#define WARM        3    /* batches that are not recorded */

/* Under -icount a tick is an instruction. Nothing is done ahead of it or behind it. */
#define TICKS()                                                                                    \
    ({                                                                                             \
        u32 low_, high_;                                                                           \
        asm volatile("lfence\n\trdtsc\n\tlfence" : "=a"(low_), "=d"(high_)::"memory");             \
        (u64) high_ << 32 | low_;                                                                  \
    })

/* before and after are outside the timed section. */
#define BENCH(name, operations, batches, before, body, after)                                      \
    do {                                                                                           \
        int batch_;                                                                                \
        for (batch_ = -WARM; batch_ < (batches); batch_++) {                                       \
            u64 start_, end_;                                                                      \
            before;                                                                                \
            start_ = TICKS();                                                                      \
            body;                                                                                  \
            end_ = TICKS();                                                                        \
            after;                                                                                 \
            if (batch_ >= 0)                                                                       \
                sample[batch_] = end_ - start_;                                                    \
            if ((batch_ & 15) == 0)                                                                \
                cond_resched();                                                                    \
        }                                                                                          \
        print_batches(sample, name, operations, batches);                                          \
    } while (0)

/* OBJECTS allocations in a row, then as many frees in the order of permutation, timed apart. allocate
 * gives object[i], release takes object[permutation[i]]. */
#define BENCH_ALL(name, order, allocate, release)                                                  \
    do {                                                                                           \
        int batch_, i;                                                                             \
        char full_[64];                                                                            \
        for (batch_ = -WARM; batch_ < 50; batch_++) {                                              \
            u64 start_, filled_, full_start_, end_;                                                \
            start_ = TICKS();                                                                      \
            for (i = 0; i < OBJECTS; i++)                                                          \
                object[i] = allocate;                                                              \
            filled_ = TICKS();                                                                     \
            full_start_ = TICKS();                                                                 \
            for (i = 0; i < OBJECTS; i++)                                                          \
                release(object[permutation[i]]);                                                   \
            end_ = TICKS();                                                                        \
            if (batch_ >= 0) {                                                                     \
                sample[batch_] = filled_ - start_;                                                 \
                sample_free[batch_] = end_ - full_start_;                                          \
            }                                                                                      \
            cond_resched();                                                                        \
        }                                                                                          \
        snprintf(full_, sizeof(full_), "%s_alloc_%s", name, order_names[order]);                   \
        print_batches(sample, full_, OBJECTS, 50);                                                 \
        snprintf(full_, sizeof(full_), "%s_free_%s", name, order_names[order]);                    \
        print_batches(sample_free, full_, OBJECTS, 50);                                            \
    } while (0)

enum free_order { FREE_LIFO, FREE_FIFO, FREE_RANDOM };

extern const char *const order_names[];
extern u64 sample[MAX_BATCHES], sample_free[MAX_BATCHES];
extern void *object[OBJECTS];
extern u32 permutation[OBJECTS];
extern u64 random_state;

static inline void random_start(void)
{
    random_state = 88172645463325252ULL;
}

static inline u64 random_next(void)
{
    u64 x = random_state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return random_state = x;
}

/* Adds to what /proc/kbench shows. */
__printf(1, 2) void print(const char *format, ...);

/* Sorts the batches and prints them: R k NAME OPERATIONS BATCHES MIN MEDIAN MAX MEAN. */
void print_batches(u64 *ticks, const char *name, u64 operations, int batches);

/* Fills permutation. */
void permute(enum free_order order);

void bench_pages(void);
void bench_slab(void);

/* Gets the memory that the mixed workloads keep their books in. */
int mixed_init(void);
void bench_mixed(void);

#endif
