/* sources: kernel/mm/buddy.c */
/* flags: -O2 */
/*
 * Many blocks at once against as many single calls: two buddies go through the same states, one in
 * batches, one block by block. What they give, their bitmaps, and all their counts must be the same
 * at every step. All seeds are fixed.
 */
#include <stdlib.h>
#include <string.h>
#include "mm/buddy.h"
#include "tap.h"

#define BATCH 64

struct pair {
    struct buddy one, many;
    u64 *words_one, *words_many;
    u64 base, span, random;
    u32 *live[NR_ORDERS], lives[NR_ORDERS];
};

static void pair_init(struct pair *p, u64 base, u64 span, u64 seed)
{
    *p = (struct pair){.base = base, .span = span, .random = seed};
    p->words_one = calloc(buddy_words(span), sizeof(u64));
    p->words_many = calloc(buddy_words(span), sizeof(u64));
    buddy_init(&p->one, base, span, p->words_one);
    buddy_init(&p->many, base, span, p->words_many);
    for (unsigned o = 0; o < NR_ORDERS; o++)
        p->live[o] = calloc((span >> o) + 1, sizeof(u32));
}

static void pair_end(struct pair *p)
{
    free(p->words_one);
    free(p->words_many);
    for (unsigned o = 0; o < NR_ORDERS; o++)
        free(p->live[o]);
}

static void check_same(const struct pair *p, const char *after, unsigned order, u32 n)
{
    CHECK(!memcmp(p->words_one, p->words_many, buddy_words(p->span) * sizeof(u64)),
          "bitmaps differ after %s, order %u, %u blocks", after, order, n);
    CHECK(p->one.nonempty == p->many.nonempty, "0x%x, not 0x%x, after %s, order %u, %u blocks",
          p->many.nonempty, p->one.nonempty, after, order, n);
    CHECK(p->one.free_pages == p->many.free_pages, "%lu free, not %lu, after %s",
          p->many.free_pages, p->one.free_pages, after);
    for (unsigned o = 0; o < NR_ORDERS; o++) {
        CHECK(p->one.map[o].blocks == p->many.map[o].blocks, "order %u: %lu blocks, not %lu", o,
              p->many.map[o].blocks, p->one.map[o].blocks);
        CHECK(p->one.splits[o] == p->many.splits[o], "order %u: %lu splits, not %lu, after %s", o,
              p->many.splits[o], p->one.splits[o], after);
        CHECK(p->one.merges[o] == p->many.merges[o], "order %u: %lu merges, not %lu, after %s", o,
              p->many.merges[o], p->one.merges[o], after);
    }
}

/* Takes a batch; each of its blocks, from the last on, is what a single call gives. */
static u32 take(struct pair *p, unsigned order, u32 n)
{
    u32 pfns[BATCH], got = buddy_take_many(&p->many, order, n, pfns);
    bool has = p->one.nonempty >> order;
    CHECK(got <= n && !!got == has, "order %u: %u of %u", order, got, n);
    for (u32 i = got; i-- > 0;) {
        u64 pfn = buddy_take(&p->one, order);
        CHECK(pfn == pfns[i], "order %u: %u, expected %lu", order, pfns[i], pfn);
        p->live[order][p->lives[order]++] = pfns[i];
    }
    check_same(p, "take", order, got);
    return got;
}

static void give(struct pair *p, unsigned order, u32 n, const u32 *pfns)
{
    buddy_give_many(&p->many, order, n, pfns);
    for (u32 i = 0; i < n; i++)
        buddy_give(&p->one, pfns[i], order);
    check_same(p, "give", order, n);
}

/* Gives the newest, as they were taken, the other way about, mixed, or in runs with breaks. */
static void give_newest(struct pair *p, unsigned order, u32 n)
{
    u32 pfns[BATCH], *live = p->live[order] + p->lives[order] - n;
    unsigned how = random_next(&p->random) % 4;
    for (u32 i = 0; i < n; i++)
        pfns[i] = how == 1 ? live[n - 1 - i] : live[i];
    for (u32 i = n; how >= 2 && i-- > 1;) {
        u32 j = (u32)(random_next(&p->random) % (i + 1)), t = pfns[i];
        if (how == 3 && random_next(&p->random) % 8)
            continue;
        pfns[i] = pfns[j];
        pfns[j] = t;
    }
    p->lives[order] -= n;
    give(p, order, n, pfns);
}

/* Any of those held, so that some of a batch merge far and some not at all. */
static void shuffle_live(struct pair *p, unsigned order)
{
    for (u32 i = p->lives[order]; i-- > 1;) {
        u32 j = (u32)(random_next(&p->random) % (i + 1)), t = p->live[order][i];
        p->live[order][i] = p->live[order][j];
        p->live[order][j] = t;
    }
}

static void run_random(u64 base, u64 span, u64 seed)
{
    struct pair p;
    pair_init(&p, base, span, seed);
    u64 hole = span / 3;
    buddy_add(&p.one, base, base + hole);
    buddy_add(&p.many, base, base + hole);
    buddy_add(&p.one, base + hole + 1, base + span);
    buddy_add(&p.many, base + hole + 1, base + span);
    for (unsigned i = 0; i < 3000 && !tap_faults; i++) {
        unsigned order = (unsigned)(random_next(&p.random) % 8);
        order = order > 4 ? 0 : order == 4 ? (unsigned)(random_next(&p.random) % NR_ORDERS) : order;
        u32 n = 1 + (u32)(random_next(&p.random) % BATCH);
        if (random_next(&p.random) % 2)
            take(&p, order, n);
        else
            give_newest(&p, order, MIN(n, p.lives[order]));
        if (random_next(&p.random) % 64 == 0)
            shuffle_live(&p, order);
    }
    for (unsigned order = 0; order < NR_ORDERS; order++)
        while (p.lives[order] && !tap_faults)
            give_newest(&p, order, MIN(p.lives[order], BATCH));
    CHECK(p.many.free_pages == span - 1, "%lu of %lu free", p.many.free_pages, span);
    pair_end(&p);
}

static void random_batches(void)
{
    static const u64 spans[] = {64, 1000, 1024, 4096, 5000, 70000, 300000};
    for (unsigned i = 0; i < ARRAY_SIZE(spans) && !tap_faults; i++)
        for (u64 seed = 1; seed <= 4; seed++)
            run_random(1024 * i, spans[i], seed * 0x9e3779b97f4a7c15);
}

/* Every number of blocks, out of a larger block of every order, up to a batch and all of it. */
static void every_way_to_take_apart(void)
{
    for (unsigned from = 1; from < NR_ORDERS; from++)
        for (unsigned order = 0; order < from; order++)
            for (u32 n = 1; n <= MIN(BATCH, 1u << (from - order)) && !tap_faults; n++) {
                struct pair p;
                pair_init(&p, 2048, 2048, 1);
                buddy_give(&p.one, 2048 + (1u << from), from);
                buddy_give(&p.many, 2048 + (1u << from), from);
                u32 got = take(&p, order, n);
                CHECK(got == n, "order %u from %u: %u of %u", order, from, got, n);
                give_newest(&p, order, n);
                pair_end(&p);
            }
}

/* Every run of up to 64 blocks at every place of 128, upwards and downwards, with all else free. */
static void every_run(void)
{
    for (u32 n = 1; n <= BATCH; n++)
        for (u32 first = 0; first + n <= 128 && !tap_faults; first++) {
            struct pair p;
            pair_init(&p, 0, 1024, 1);
            u32 pfns[BATCH];
            if (first) {
                buddy_add(&p.one, 0, first);
                buddy_add(&p.many, 0, first);
            }
            buddy_add(&p.one, first + n, 1024);
            buddy_add(&p.many, first + n, 1024);
            for (u32 i = 0; i < n; i++)
                pfns[i] = first % 2 ? first + n - 1 - i : first + i;
            give(&p, 0, n, pfns);
            CHECK(p.many.nonempty == 1u << MAX_ORDER, "%u from %u: 0x%x", n, first,
                  p.many.nonempty);
            pair_end(&p);
        }
}

int main(void)
{
    tap_begin();
    RUN(every_way_to_take_apart);
    RUN(every_run);
    RUN(random_batches);
    return tap_end();
}
