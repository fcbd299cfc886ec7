/*
 * The buddy by itself, on a range of frames that exists only in its bitmaps, and the invariants of
 * the zones' own.
 */
#include "mm/tests/mmtest.h"
#include "lib/string.h"

#define BASE 3072
#define SPAN 8192 /* three levels of summary at order 0 */

static struct buddy toy;
static u64 words[320];

static bool toy_init(struct ktest *t)
{
    KTEST_CHECK(buddy_words(SPAN) <= ARRAY_SIZE(words), "%lu words", buddy_words(SPAN));
    if (buddy_words(SPAN) > ARRAY_SIZE(words))
        return false;
    memset(words, 0, sizeof(words));
    buddy_init(&toy, BASE, SPAN, words);
    return true;
}

static void check_toy(struct ktest *t, u64 free)
{
    u64 faults = mmtest_buddy_faults(&toy);
    KTEST_CHECK(!faults, "%lu invariants broken", faults);
    KTEST_CHECK(toy.free_pages == free, "%lu free, expected %lu", toy.free_pages, free);
}

MM_TEST(buddy, starts_empty)
{
    u64 block;
    u32 order;
    if (!toy_init(t))
        return;
    check_toy(t, 0);
    for (unsigned o = 0; o < NR_ORDERS; o++)
        KTEST_CHECK(buddy_take(&toy, o) == BUDDY_NONE, "order %u", o);
    KTEST_CHECK(!buddy_find(&toy, BASE, &block, &order), "at the start");
    KTEST_CHECK(!buddy_claim(&toy, BASE + SPAN - 1), "at the end");
}

MM_TEST(buddy, add_makes_the_largest_blocks)
{
    static const u64 expected[NR_ORDERS] = {[0] = 2, [1] = 2, [2] = 2, [3] = 2, [4] = 2, [5] = 2,
                                            [6] = 2, [7] = 2, [8] = 2, [9] = 2, [10] = 6};
    if (!toy_init(t))
        return;
    buddy_add(&toy, BASE + 1, BASE + SPAN - 1);
    check_toy(t, SPAN - 2);
    for (unsigned o = 0; o < NR_ORDERS; o++)
        KTEST_CHECK(toy.map[o].blocks == expected[o], "order %u: %lu blocks", o, toy.map[o].blocks);
    buddy_give(&toy, BASE, 0);
    buddy_give(&toy, BASE + SPAN - 1, 0);
    KTEST_CHECK(toy.map[MAX_ORDER].blocks == SPAN >> MAX_ORDER && toy.nonempty == 1u << MAX_ORDER,
                "%lu blocks of the largest order", toy.map[MAX_ORDER].blocks);
}

MM_TEST(buddy, takes_the_lowest)
{
    if (!toy_init(t))
        return;
    buddy_give(&toy, BASE + SPAN - 1, 0);
    buddy_give(&toy, BASE + 4099, 0);
    buddy_give(&toy, BASE + 65, 0);
    u64 first = buddy_take(&toy, 0), second = buddy_take(&toy, 0), third = buddy_take(&toy, 0);
    KTEST_CHECK(first == BASE + 65 && second == BASE + 4099 && third == BASE + SPAN - 1,
                "%lu, %lu, %lu", first, second, third);
    KTEST_CHECK(buddy_take(&toy, 0) == BUDDY_NONE, "a fourth");
    check_toy(t, 0);
}

MM_TEST(buddy, prefers_the_smallest_that_fits)
{
    if (!toy_init(t))
        return;
    buddy_give(&toy, BASE, 5);
    buddy_give(&toy, BASE + 1024, 2);
    u64 pfn = buddy_take(&toy, 1);
    KTEST_CHECK(pfn == BASE + 1024, "%lu", pfn);
    KTEST_CHECK(toy.map[5].blocks == 1 && toy.map[1].blocks == 1, "%lu of order 5, %lu of order 1",
                toy.map[5].blocks, toy.map[1].blocks);
    check_toy(t, 34);
}

MM_TEST(buddy, splits_and_merges_are_counted)
{
    if (!toy_init(t))
        return;
    buddy_give(&toy, BASE, MAX_ORDER);
    u64 pfn = buddy_take(&toy, 0);
    KTEST_CHECK(pfn == BASE, "%lu", pfn);
    for (unsigned o = 0; o < MAX_ORDER; o++)
        KTEST_CHECK(toy.map[o].blocks == 1 && toy.splits[o + 1] == 1,
                    "order %u: %lu blocks, %lu splits", o, toy.map[o].blocks, toy.splits[o + 1]);
    buddy_give(&toy, pfn, 0);
    for (unsigned o = 0; o < MAX_ORDER; o++)
        KTEST_CHECK(!toy.map[o].blocks && toy.merges[o] == 1, "order %u: %lu blocks, %lu merges", o,
                    toy.map[o].blocks, toy.merges[o]);
    check_toy(t, 1 << MAX_ORDER);
}

MM_TEST(buddy, claims_one_frame_of_a_block)
{
    u64 block = 0;
    u32 order = 0;
    if (!toy_init(t))
        return;
    buddy_give(&toy, BASE + 1024, MAX_ORDER);
    KTEST_CHECK(buddy_claim(&toy, BASE + 1024 + 613), "a free frame");
    KTEST_CHECK(!buddy_claim(&toy, BASE + 1024 + 613), "a taken frame");
    check_toy(t, 1023);
    for (u64 i = 0; i < 1024; i++)
        KTEST_CHECK(buddy_find(&toy, BASE + 1024 + i, &block, &order) == (i != 613), "frame %lu",
                    i);
    KTEST_CHECK(!buddy_claim(&toy, BASE - 1) && !buddy_claim(&toy, BASE + SPAN), "outside");
    buddy_give(&toy, BASE + 1024 + 613, 0);
    KTEST_CHECK(buddy_find(&toy, BASE + 2047, &block, &order) && block == BASE + 1024 &&
                    order == MAX_ORDER,
                "block %lu, order %u", block, order);
}

static void give_all(bool downwards)
{
    u64 step = 5; /* odd, so that all frames come once */
    for (u64 i = 0; i < SPAN; i++) {
        u64 at = i * step % SPAN;
        if (at % 7)
            buddy_give(&toy, BASE + (downwards ? SPAN - 1 - at : at), 0);
    }
    for (u64 at = 0; at < SPAN; at += 7)
        buddy_give(&toy, BASE + (downwards ? SPAN - 1 - at : at), 0);
}

MM_TEST(buddy, any_order_of_frees_ends_the_same)
{
    for (int downwards = 0; downwards < 2; downwards++) {
        if (!toy_init(t))
            return;
        give_all(downwards);
        check_toy(t, SPAN);
        KTEST_CHECK(toy.map[MAX_ORDER].blocks == SPAN >> MAX_ORDER, "%lu",
                    toy.map[MAX_ORDER].blocks);
    }
}

MM_TEST(buddy, zones_keep_the_invariants)
{
    for (int i = 0; i < NR_ZONES; i++) {
        struct zone *z = &zones[i];
        spin_lock(&z->lock);
        u64 faults = mmtest_buddy_faults(&z->buddy);
        u64 free = z->buddy.free_pages;
        spin_unlock(&z->lock);
        KTEST_CHECK(!faults, "zone %s: %lu invariants broken", z->name, faults);
        KTEST_CHECK(free <= z->managed, "zone %s: %lu free of %lu", z->name, free, z->managed);
    }
}
