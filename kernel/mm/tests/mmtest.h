/*
 * What the memory tests share: MM_TEST, which runs a test with the books checked around it, and
 * tools to use memory up and to give it back.
 *
 * Two tests at once would see each other's frames, so they take turns. Waiting for the turn serves
 * smp_run_all, which the test that has it may call.
 */
#pragma once
#include "debug/ktest.h"
#include "mm/owned.h"
#include "mm/zone.h"

/* Runs body alone, and checks that it leaves every zone with the blocks that it found there. */
void mmtest_run(struct ktest *t, void (*body)(struct ktest *t));
/* Tests that keep static data, but do not touch memory, take turns too. */
void mmtest_lock(void);
void mmtest_unlock(void);

#define MM_TEST(part, what)                                                                        \
    static void mmtest_##part##_##what(struct ktest *t);                                           \
    KTEST(part, what)                                                                              \
    {                                                                                              \
        mmtest_run(t, mmtest_##part##_##what);                                                     \
    }                                                                                              \
    static void mmtest_##part##_##what(struct ktest *t)

/* An owner that is no client's. */
#define MMTEST_OWNER 0xfff0

/* Blocks chained through their struct pages, so that any number can be held and none is touched. */
struct chain {
    u64 first; /* pfn, 0: none */
    u64 pages;
};

/* Allocates all that there is, the largest blocks first. */
void chain_fill(struct chain *c, unsigned flags);
/* One block; false when there is none. */
bool chain_add(struct chain *c, unsigned order, unsigned flags);
/* Gives all back; returns how many were refused. */
u64 chain_free(struct chain *c);

/* The largest order of which a block can be had now; 0 if memory is that short. */
unsigned mmtest_largest_order(void);
/* The n-th frame below page_end_pfn with no RAM that lies between RAM; 0 when there are fewer. */
u64 mmtest_hole(u32 n);
/* A frame of the kernel's image. */
u64 mmtest_image_pfn(void);

/* Counts what of a zone's bitmaps contradicts buddy.h: 0 when all invariants hold. */
u64 mmtest_buddy_faults(const struct buddy *b);

static inline u64 mmtest_random(u64 *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}
