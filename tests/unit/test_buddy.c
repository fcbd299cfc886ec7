/* sources: kernel/mm/buddy.c */
/* flags: -O2 */
/*
 * The buddy against a model that knows one thing about each frame: whether it is free.
 *
 * From the set of free frames follows what the free blocks must be, as each set has exactly one
 * representation: a block is free as a whole if all its frames are, and shown at the largest order
 * for which that holds. After each step the bitmaps, summaries, masks and counts are compared with
 * that, completely for small ranges and around the step for large ones. All seeds are fixed.
 *
 * test_buddy_walk.c goes through every state of a small range.
 */
#include <stdlib.h>
#include <string.h>
#include "mm/buddy.h"
#include "tap.h"

struct fixture {
    struct buddy b;
    u64 *words;
    u8 *is_free; /* the model, a byte a frame */
    s8 *live;    /* order of the block taken that starts there, or -1 */
    u32 *held;   /* the first frames of all of those, in no order, */
    u32 *place;  /* and where in it each is */
    u32 holds;
    u64 span, free, random;
};

static void fixture_init(struct fixture *f, u64 base, u64 span, u64 seed)
{
    *f = (struct fixture){.span = span, .random = seed};
    f->words = calloc(buddy_words(span), sizeof(u64)); /* exact: what lies beyond is poisoned */
    f->is_free = calloc(span + 1, 1);
    f->live = malloc(span + 1);
    memset(f->live, -1, span + 1);
    f->held = malloc((span + 1) * sizeof(u32));
    f->place = malloc((span + 1) * sizeof(u32));
    buddy_init(&f->b, base, span, f->words);
}

static void fixture_end(struct fixture *f)
{
    free(f->words);
    free(f->is_free);
    free(f->live);
    free(f->held);
    free(f->place);
}

static bool bit(const struct buddy *b, unsigned order, unsigned level, u64 i)
{
    return b->map[order].level[level][i / 64] >> (i % 64) & 1;
}

static bool all_free(const struct fixture *f, u64 first, unsigned order)
{
    return first + (1ull << order) <= f->span && !memchr(f->is_free + first, 0, (size_t)1 << order);
}

/* Whether the model has a free block of exactly this order there. */
static bool expect_block(const struct fixture *f, u64 first, unsigned order)
{
    if (!all_free(f, first, order))
        return false;
    u64 twice = first & ~((2ull << order) - 1);
    return order == MAX_ORDER || !all_free(f, twice, order + 1);
}

static void check_summaries(const struct fixture *f, unsigned order)
{
    const struct buddy_map *m = &f->b.map[order];
    u64 n = ((f->span >> order) + 63) / 64;
    for (u32 l = 1; l < m->levels; l++, n = (n + 63) / 64)
        for (u64 i = 0; i < n; i++)
            CHECK(bit(&f->b, order, l, i) == (m->level[l - 1][i] != 0),
                  "order %u, level %u, bit %lu", order, l, i);
    u64 used = 0;
    for (u64 i = 0; i < MAX(n, 1); i++)
        used |= m->level[m->levels - 1][i];
    CHECK((f->b.nonempty >> order & 1) == (used != 0), "order %u", order);
}

/* Everything, compared with the model. */
static void check_all(const struct fixture *f)
{
    u64 blocks[NR_ORDERS] = {0}, pages = 0;
    for (unsigned order = 0; order < NR_ORDERS; order++) {
        for (u64 i = 0; i < f->span >> order; i++) {
            bool expected = expect_block(f, i << order, order);
            CHECK(bit(&f->b, order, 0, i) == expected, "order %u, block %lu: %d expected", order, i,
                  expected);
            blocks[order] += expected;
        }
        CHECK(f->b.map[order].blocks == blocks[order], "order %u: %lu, not %lu", order,
              f->b.map[order].blocks, blocks[order]);
        pages += blocks[order] << order;
        check_summaries(f, order);
    }
    CHECK(f->b.free_pages == pages && pages == f->free, "%lu free, expected %lu and %lu",
          f->b.free_pages, pages, f->free);
    CHECK(f->b.nonempty >> NR_ORDERS == 0, "0x%x", f->b.nonempty);
}

/* Only what a step at a frame can have changed: the blocks that contain it, and the sums. */
static void check_near(const struct fixture *f, u64 frame)
{
    u64 pages = 0;
    for (unsigned order = 0; order < NR_ORDERS; order++) {
        u64 i = frame >> order;
        if (i < f->span >> order)
            CHECK(bit(&f->b, order, 0, i) == expect_block(f, i << order, order),
                  "frame %lu, order %u", frame, order);
        if ((i ^ 1) < f->span >> order)
            CHECK(bit(&f->b, order, 0, i ^ 1) == expect_block(f, (i ^ 1) << order, order),
                  "frame %lu, buddy at order %u", frame, order);
        pages += f->b.map[order].blocks << order;
        CHECK((f->b.nonempty >> order & 1) == (f->b.map[order].blocks != 0), "order %u", order);
        CHECK(buddy_has(&f->b, order) == (f->b.map[order].blocks != 0), "order %u", order);
    }
    CHECK(f->b.free_pages == f->free && pages == f->free, "%lu and %lu free, expected %lu",
          f->b.free_pages, pages, f->free);
}

static void model_set(struct fixture *f, u64 first, u64 count, bool to_free)
{
    for (u64 i = first; i < first + count; i++) {
        CHECK(f->is_free[i] != to_free, "frame %lu is %s already", i, to_free ? "free" : "taken");
        f->is_free[i] = to_free;
    }
    f->free += to_free ? count : -count;
}

static void live_add(struct fixture *f, u64 first, unsigned order)
{
    f->live[first] = (s8)order;
    f->place[first] = f->holds;
    f->held[f->holds++] = (u32)first;
}

static void live_remove(struct fixture *f, u64 first)
{
    u32 last = f->held[--f->holds];
    f->live[first] = -1;
    f->held[f->place[first]] = last;
    f->place[last] = f->place[first];
}

static void step_add(struct fixture *f, u64 first, u64 end)
{
    buddy_add(&f->b, f->b.base + first, f->b.base + end);
    model_set(f, first, end - first, true);
}

/* What must be taken: the lowest block of the smallest order that fits. */
static u64 expect_take(const struct fixture *f, unsigned order)
{
    for (unsigned o = order; o < NR_ORDERS; o++)
        for (u64 i = 0; i < f->span >> o; i++)
            if (expect_block(f, i << o, o))
                return i << o;
    return BUDDY_NONE;
}

static u64 step_take(struct fixture *f, unsigned order, bool exact)
{
    u64 expected = exact ? expect_take(f, order) : 0;
    u64 pfn = buddy_take(&f->b, order);
    if (pfn == BUDDY_NONE) {
        CHECK(!exact || expected == BUDDY_NONE, "order %u: none, expected %lu", order, expected);
        return BUDDY_NONE;
    }
    u64 first = pfn - f->b.base;
    CHECK(!exact || first == expected, "order %u: %lu, expected %lu", order, first, expected);
    CHECK(first % (1ull << order) == 0 && first + (1ull << order) <= f->span, "order %u at %lu",
          order, first);
    model_set(f, first, 1ull << order, false);
    live_add(f, first, order);
    return first;
}

/* What buddy_give does: the first step says whether the block merges, and then changes nothing. */
static void give_in_two_steps(struct fixture *f, u64 first, unsigned order)
{
    bool merges = order < MAX_ORDER && all_free(f, first ^ 1ull << order, order);
    bool given = buddy_give_exact(&f->b, f->b.base + first, order);
    CHECK(given == !merges, "order %u at %lu: given %d", order, first, given);
    if (given)
        return;
    check_near(f, first);
    buddy_give_merge(&f->b, f->b.base + first, order);
}

static void step_give(struct fixture *f, u64 first)
{
    unsigned order = (unsigned)f->live[first];
    live_remove(f, first);
    if (random_next(&f->random) % 2)
        buddy_give(&f->b, f->b.base + first, order);
    else
        give_in_two_steps(f, first, order);
    model_set(f, first, 1ull << order, true);
}

/* A claimed frame becomes a live block of order 0. */
static bool step_claim(struct fixture *f, u64 frame)
{
    bool expected = f->is_free[frame], claimed = buddy_claim(&f->b, f->b.base + frame);
    CHECK(claimed == expected, "frame %lu: %d", frame, claimed);
    if (claimed != expected || !claimed)
        return false;
    model_set(f, frame, 1, false);
    live_add(f, frame, 0);
    return true;
}

static void step_find(const struct fixture *f, u64 frame)
{
    u64 block = 0;
    u32 order = 0;
    bool found = buddy_find(&f->b, f->b.base + frame, &block, &order);
    CHECK(found == (frame < f->span && f->is_free[frame]), "frame %lu: %d", frame, found);
    if (!found)
        return;
    CHECK(order < NR_ORDERS && (block - f->b.base) == (frame & ~((1ull << order) - 1)),
          "frame %lu in %lu, order %u", frame, block - f->b.base, order);
    CHECK(order < NR_ORDERS && expect_block(f, block - f->b.base, order), "frame %lu, order %u",
          frame, order);
}

/* A random live block; BUDDY_NONE when there is none. */
static u64 live_block(struct fixture *f)
{
    return f->holds ? f->held[random_next(&f->random) % f->holds] : BUDDY_NONE;
}

static u64 step_random(struct fixture *f, bool exact)
{
    u64 at = random_next(&f->random) % f->span;
    switch (random_next(&f->random) % 8) {
    case 0:
    case 1:
    case 2:
        at = step_take(f, (unsigned)(random_next(&f->random) % NR_ORDERS), exact);
        return at == BUDDY_NONE ? 0 : at;
    case 3:
        step_claim(f, at);
        return at;
    case 4:
        step_find(f, at);
        return at;
    default:
        at = live_block(f);
        if (at == BUDDY_NONE)
            return 0;
        step_give(f, at);
        return at;
    }
}

static void give_back_all(struct fixture *f)
{
    for (u64 i = 0; i < f->span; i++)
        if (f->live[i] >= 0)
            step_give(f, i);
}

static void run_random(u64 base, u64 span, u64 seed, unsigned steps, bool whole)
{
    struct fixture f;
    fixture_init(&f, base, span, seed);
    /* Some of the range from the start, with a hole; the rest of it in the middle of the run. */
    u64 hole = span / 3, end = span - span / 5;
    step_add(&f, 0, hole);
    step_add(&f, hole + 1, end);
    check_all(&f);
    for (unsigned i = 0; i < steps && tap_faults < 8; i++) {
        u64 at = step_random(&f, whole);
        if (i == steps / 2)
            step_add(&f, end, span);
        if (whole)
            check_all(&f);
        else
            check_near(&f, at);
    }
    check_all(&f);
    give_back_all(&f);
    buddy_give(&f.b, f.b.base + hole, 0);
    model_set(&f, hole, 1, true);
    check_all(&f);
    fixture_end(&f);
}

static void random_steps_on_small_ranges(void)
{
    static const u64 spans[] = {16, 64, 1000, 1024, 1025, 2048, 3072, 4095, 4097, 5000};
    for (unsigned i = 0; i < ARRAY_SIZE(spans); i++)
        run_random(1024 * i, spans[i], 0x9e3779b97f4a7c15 + i, spans[i] < 2048 ? 2000 : 400, true);
}

static void random_steps_on_large_ranges(void)
{
    static const u64 spans[] = {65536, 262144, 262145, 300000, 524288, 700001};
    for (unsigned i = 0; i < ARRAY_SIZE(spans); i++)
        run_random(4096, spans[i], 0xd1342543de82ef95 + i, 20000, false);
}

/* Words are exactly enough for the range, and initialisation uses each once. */
static void words_and_levels(void)
{
    static const u64 spans[] = {0,      1,    16,    63,     64,     65,     1023,    1024,
                                4096,   4097, 65536, 262143, 262144, 262145, 1 << 20, (1 << 24) + 1,
                                1 << 25};
    for (unsigned i = 0; i < ARRAY_SIZE(spans); i++) {
        struct buddy b;
        u64 n = buddy_words(spans[i]), used = 0, *words = calloc(n, sizeof(u64));
        buddy_init(&b, 0, spans[i], words);
        for (unsigned order = 0; order < NR_ORDERS; order++) {
            u64 bits = (spans[i] + (1ull << order) - 1) >> order; /* also a cut-off block */
            CHECK(b.map[order].levels >= 1 && b.map[order].levels <= BUDDY_LEVELS,
                  "%lu frames, order %u: %lu levels", spans[i], order, b.map[order].levels);
            for (u32 l = 0; l < b.map[order].levels; l++) {
                CHECK(b.map[order].level[l] == words + used, "%lu frames, order %u, level %u",
                      spans[i], order, l);
                bits = (bits + 63) / 64;
                used += MAX(bits, 1);
            }
            CHECK(bits <= 1, "%lu frames, order %u: %lu words at the top", spans[i], order, bits);
        }
        CHECK(used == n, "%lu frames: %lu words of %lu", spans[i], used, n);
        free(words);
    }
}

static void find_with_only(u64 span, u64 pages)
{
    struct fixture f;
    fixture_init(&f, 2048, span, 1);
    if (pages)
        step_add(&f, 0, pages);
    for (u64 i = span > 1100 ? span - 1100 : 0; i < span + 3; i++)
        step_find(&f, i);
    CHECK(!buddy_claim(&f.b, f.b.base + span) && f.b.free_pages == f.free, "past the end");
    fixture_end(&f);
}

/*
 * A frame behind the last whole block of an order is in no block of that order, whatever is free at
 * the start of the range.
 */
static void find_at_the_end_of_a_range(void)
{
    for (u64 span = 1; span <= 2200 && !tap_faults; span += span < 300 ? 1 : 61) {
        find_with_only(span, span);
        find_with_only(span, 0);
        for (unsigned order = 0; 1ull << order < span && order < NR_ORDERS; order++)
            find_with_only(span, 1ull << order);
    }
}

/* Ranges that start and end anywhere become the largest blocks. */
static void add_at_any_place(void)
{
    u64 random = 77;
    for (unsigned i = 0; i < 300; i++) {
        struct fixture f;
        fixture_init(&f, 1024, 4096 + i, 1);
        u64 start = random_next(&random) % (f.span - 1);
        u64 end = start + 1 + random_next(&random) % (f.span - start);
        step_add(&f, start, MIN(end, f.span));
        check_all(&f);
        fixture_end(&f);
    }
}

/* The largest blocks are made many at a time: across words of their bitmap, and beside free ones. */
static void add_many_largest_blocks(void)
{
    static const u64 starts[] = {0, 1, 1023, 1024, 62 * 1024, 63 * 1024, 64 * 1024 - 5, 65 * 1024};
    static const u64 sizes[] = {1024, 1025, 2048, 63 * 1024, 64 * 1024, 65 * 1024 + 7, 140 * 1024};
    for (unsigned i = 0; i < ARRAY_SIZE(starts) * ARRAY_SIZE(sizes); i++) {
        u64 start = starts[i / ARRAY_SIZE(sizes)], end = start + sizes[i % ARRAY_SIZE(sizes)];
        struct fixture f;
        fixture_init(&f, 8192, 210 * 1024, 1);
        step_add(&f, end, f.span);
        step_add(&f, start, end);
        if (start)
            step_add(&f, 0, start);
        check_near(&f, start);
        check_near(&f, end);
        CHECK(f.b.map[MAX_ORDER].blocks == 210 && f.b.nonempty == 1u << MAX_ORDER,
              "%lu+%lu: %lu blocks", start, end - start, f.b.map[MAX_ORDER].blocks);
        check_summaries(&f, MAX_ORDER);
        u64 taken = 0;
        while (step_take(&f, MAX_ORDER, false) == taken * 1024)
            taken++;
        CHECK(taken == 210, "%lu+%lu: %lu taken in order", start, end - start, taken);
        fixture_end(&f);
    }
}

/* Any number of them from any place on: exactly those bits. */
static void add_runs_of_largest_blocks(void)
{
    u64 n = 4 * 64, span = n << MAX_ORDER;
    for (u64 first = 0; first < 70; first++) {
        for (u64 count = 1; count < 130 && !tap_faults; count += count < 60 || count > 66 ? 3 : 1) {
            struct buddy b;
            u64 *words = calloc(buddy_words(span), sizeof(u64));
            buddy_init(&b, 2048, span, words);
            buddy_add(&b, 2048 + (first << MAX_ORDER), 2048 + ((first + count) << MAX_ORDER));
            for (u64 i = 0; i < n; i++)
                CHECK(bit(&b, MAX_ORDER, 0, i) == (i >= first && i < first + count),
                      "%lu blocks from %lu: block %lu", count, first, i);
            for (u64 i = 0; i < n / 64; i++)
                CHECK(bit(&b, MAX_ORDER, 1, i) == (b.map[MAX_ORDER].level[0][i] != 0),
                      "%lu blocks from %lu: word %lu", count, first, i);
            CHECK(b.map[MAX_ORDER].blocks == count && b.free_pages == count << MAX_ORDER &&
                      b.nonempty == 1u << MAX_ORDER,
                  "%lu blocks from %lu: %lu", count, first, b.map[MAX_ORDER].blocks);
            free(words);
        }
    }
}

/* The same live blocks, reached in two ways, are the same bits. */
static void canonical_form(void)
{
    for (u64 seed = 1; seed <= 20; seed++) {
        struct fixture a, b;
        u64 span = 4096 + seed * 37, random = seed;
        fixture_init(&a, 0, span, seed * 0x2545f4914f6cdd1d);
        fixture_init(&b, 0, span, 1);
        step_add(&a, 0, span);
        for (int i = 0; i < 3000; i++)
            step_random(&a, false);
        /* The other: frame by frame, the free ones, in a random order of pieces. */
        u64 start = random_next(&random) % span, stride = 2 * (random_next(&random) % 50) + 1;
        while (span % stride == 0)
            stride += 2;
        for (u64 gone = 0, i = start; gone < span; gone++, i = (i + 1) % span)
            if (a.is_free[i] && i % stride)
                step_add(&b, i, i + 1);
        for (u64 i = 0; i < span; i += stride)
            if (a.is_free[i])
                step_add(&b, i, i + 1);
        CHECK(!memcmp(a.words, b.words, buddy_words(span) * sizeof(u64)), "seed %lu", seed);
        CHECK(a.b.nonempty == b.b.nonempty && a.b.free_pages == b.b.free_pages, "seed %lu", seed);
        for (unsigned o = 0; o < NR_ORDERS; o++)
            CHECK(a.b.map[o].blocks == b.b.map[o].blocks, "seed %lu, order %u", seed, o);
        fixture_end(&a);
        fixture_end(&b);
    }
}

/* With a block of the order it is taken as it is: nothing is split. */
static void takes_of_an_order_that_is_there(void)
{
    for (unsigned order = 0; order < NR_ORDERS; order++) {
        struct fixture f;
        fixture_init(&f, 1024, 8192, 1);
        step_add(&f, 0, 1024);
        step_add(&f, 4096, 4096 + (1ull << order));
        u64 first = order == MAX_ORDER ? 0 : 4096;
        CHECK(step_take(&f, order, true) == first, "order %u", order);
        u64 pfn = order == MAX_ORDER ? buddy_take_exact(&f.b, order) : f.b.base + 4096;
        CHECK(pfn == f.b.base + 4096, "order %u: %lu", order, pfn);
        for (unsigned o = 0; o < NR_ORDERS; o++)
            CHECK(!f.b.splits[o], "order %u: %lu splits of %u", order, f.b.splits[o], o);
        fixture_end(&f);
    }
}

/* Splits and merges are counted at the order that was halved or joined. */
static void counters(void)
{
    struct fixture f;
    fixture_init(&f, 0, 2048, 1);
    step_add(&f, 0, 2048);
    u64 a = step_take(&f, 7, true);
    for (unsigned o = 0; o < NR_ORDERS; o++)
        CHECK(f.b.splits[o] == (o > 7), "order %u: %lu splits", o, f.b.splits[o]);
    step_claim(&f, 1500);
    for (unsigned o = 0; o < NR_ORDERS; o++)
        CHECK(f.b.splits[o] == (u64)(o > 7) + (o > 0), "order %u: %lu splits", o, f.b.splits[o]);
    memset(f.b.merges, 0, sizeof(f.b.merges));
    step_give(&f, 1500);
    step_give(&f, a);
    for (unsigned o = 0; o < NR_ORDERS; o++)
        CHECK(f.b.merges[o] == (u64)(o < 10) + (o >= 7 && o < 10), "order %u: %lu merges", o,
              f.b.merges[o]);
    fixture_end(&f);
}

int main(void)
{
    tap_begin();
    RUN(words_and_levels);
    RUN(counters);
    RUN(takes_of_an_order_that_is_there);
    RUN(add_at_any_place);
    RUN(add_many_largest_blocks);
    RUN(add_runs_of_largest_blocks);
    RUN(canonical_form);
    RUN(random_steps_on_small_ranges);
    RUN(random_steps_on_large_ranges);
    RUN(find_at_the_end_of_a_range);
    return tap_end();
}
