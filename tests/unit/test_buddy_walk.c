/* sources: kernel/mm/buddy.c */
/* flags: -O2 */
/*
 * The buddy in every state that a range of 16 frames has.
 *
 * A state is the set of live blocks, of orders 0 to 4. What must be free follows from it, and so do
 * all bits of the buddy: each state is put there bit by bit, one operation of the real code is done
 * in it, and what it leaves must be, bit by bit, the state that follows. Operations are a take of
 * each order (also one that must fail) and a give of each live block; those are the transitions.
 * Beside them each frame is claimed and looked for, which must lead into a known state too.
 *
 * The walk goes breadth first from the empty state and ends with every state that there is: as many
 * as the recursion S(0) = 2, S(k+1) = S(k)^2 + 1 says, because a range is one live block or two
 * halves. It is done twice: on a range of just those frames, and on 16 frames in the middle of a
 * range that is so large that the bitmaps have three levels.
 */
#include <stdlib.h>
#include <string.h>
#include "mm/buddy.h"
#include "tap.h"

#define FRAMES      16u
#define ORDERS      5
#define STATES      458330
#define TRANSITIONS 5883813
#define NOT_LIVE    0xff

/* How many states a block of an order has. */
static const u32 states_of[ORDERS] = {2, 5, 26, 677, STATES};

struct state {
    u8 live[FRAMES]; /* order of the live block that starts there */
    u32 free;        /* a bit a frame */
};

/* What the buddy looks like when these frames are free: the blocks of each order. */
static u16 shape_of[1 << FRAMES][ORDERS];

struct walk {
    struct buddy b;
    u64 *words, at; /* at: the first of the 16 frames, from the range's start */
    u32 *queue, states;
    bool *seen;
    u64 transitions, extra;
};

static void shapes_make(void)
{
    for (u32 free = 0; free < 1u << FRAMES; free++) {
        u32 whole = free; /* a bit for each block of this order that has only free frames */
        for (unsigned order = 0; order < ORDERS; order++) {
            u32 twice = 0;
            for (unsigned i = 0; i < FRAMES >> (order + 1); i++)
                twice |= (whole >> 2 * i & 3) == 3 ? 1u << i : 0;
            shape_of[free][order] = (u16)whole;
            for (unsigned i = 0; order < ORDERS - 1 && i < FRAMES >> (order + 1); i++)
                if (twice >> i & 1)
                    shape_of[free][order] &= (u16) ~(3u << 2 * i);
            whole = twice;
        }
    }
}

static u32 mask_of(unsigned first, unsigned order)
{
    return ((1u << (1u << order)) - 1) << first;
}

/* A number for each state of a block, and back: the last one is the block itself, live. */
static u32 rank(const u8 *live, unsigned order)
{
    if (*live == order)
        return states_of[order] - 1;
    if (!order)
        return 0;
    u32 upper = rank(live + (1u << (order - 1)), order - 1);
    return rank(live, order - 1) * states_of[order - 1] + upper;
}

static void unrank(struct state *s, unsigned first, unsigned order, u32 number)
{
    if (number == states_of[order] - 1) {
        s->live[first] = (u8)order;
        s->free &= ~mask_of(first, order);
    } else if (order) {
        unrank(s, first, order - 1, number / states_of[order - 1]);
        unrank(s, first + (1u << (order - 1)), order - 1, number % states_of[order - 1]);
    }
}

static struct state state_of(u32 number)
{
    struct state s = {.free = (1u << FRAMES) - 1};
    memset(s.live, NOT_LIVE, sizeof(s.live));
    unrank(&s, 0, ORDERS - 1, number);
    return s;
}

static u64 count_bits(u64 word)
{
    return (u64)__builtin_popcountll(word);
}

/* Writes the 16 frames' part of the books; nothing else of the range is free. */
static void load(struct walk *w, u32 free)
{
    w->b.nonempty = 0;
    w->b.free_pages = count_bits(free);
    for (unsigned order = 0; order < ORDERS; order++) {
        struct buddy_map *m = &w->b.map[order];
        u64 i = w->at >> order, bits = (u64)shape_of[free][order] << (i % 64);
        m->blocks = count_bits(bits);
        w->b.nonempty |= (u32)(bits != 0) << order;
        for (u32 l = 0; l < m->levels; l++) {
            m->level[l][i / 64] = bits;
            i /= 64;
            bits = (u64)(bits != 0) << (i % 64);
        }
    }
}

/* The books must say that exactly these frames are free. */
static void check(const struct walk *w, u32 free, const char *what, u64 where)
{
    u32 nonempty = 0;
    for (unsigned order = 0; order < ORDERS; order++) {
        const struct buddy_map *m = &w->b.map[order];
        u64 i = w->at >> order, bits = (u64)shape_of[free][order] << (i % 64);
        CHECK(m->blocks == count_bits(bits), "%s %lu: order %u, %lu blocks", what, where, order,
              m->blocks);
        nonempty |= (u32)(bits != 0) << order;
        for (u32 l = 0; l < m->levels; l++) {
            CHECK(m->level[l][i / 64] == bits, "%s %lu: order %u, level %u: 0x%lx, not 0x%lx", what,
                  where, order, l, m->level[l][i / 64], bits);
            i /= 64;
            bits = (u64)(bits != 0) << (i % 64);
        }
    }
    CHECK(w->b.nonempty == nonempty, "%s %lu: 0x%x, not 0x%x", what, where, w->b.nonempty,
          nonempty);
    CHECK(w->b.free_pages == count_bits(free), "%s %lu: %lu free", what, where, w->b.free_pages);
}

static void reach(struct walk *w, const u8 *live)
{
    u32 number = rank(live, ORDERS - 1);
    if (w->seen[number])
        return;
    w->seen[number] = true;
    w->queue[w->states++] = number;
}

/* The lowest block of the smallest order that fits; FRAMES when there is none. */
static u64 expect_take(u32 free, unsigned order)
{
    for (unsigned o = order; o < ORDERS; o++)
        if (shape_of[free][o])
            return (u64)__builtin_ctz(shape_of[free][o]) << o;
    return FRAMES;
}

static void walk_take(struct walk *w, const struct state *s, unsigned order)
{
    u64 first = expect_take(s->free, order), base = w->b.base + w->at;
    u64 expected = first == FRAMES ? BUDDY_NONE : base + first;
    struct state next = *s;
    load(w, s->free);
    u64 pfn = buddy_take(&w->b, order);
    CHECK(pfn == expected, "take of order %u: %lu, not %lu", order, pfn, expected);
    if (first != FRAMES) {
        next.live[first] = (u8)order;
        next.free &= ~mask_of((unsigned)first, order);
        reach(w, next.live);
    }
    check(w, next.free, "take of order", order);
    w->transitions++;
}

static void walk_give(struct walk *w, const struct state *s, unsigned first)
{
    struct state next = *s;
    unsigned order = s->live[first];
    load(w, s->free);
    buddy_give(&w->b, w->b.base + w->at + first, order);
    next.live[first] = NOT_LIVE;
    next.free |= mask_of(first, order);
    reach(w, next.live);
    check(w, next.free, "give of frame", first);
    w->transitions++;
}

/* A claimed frame is a live block of order 0. */
static void walk_claim(struct walk *w, const struct state *s, unsigned frame)
{
    struct state next = *s;
    bool expected = s->free >> frame & 1;
    load(w, s->free);
    CHECK(buddy_claim(&w->b, w->b.base + w->at + frame) == expected, "claim of %u", frame);
    if (expected) {
        next.live[frame] = 0;
        next.free &= ~mask_of(frame, 0);
        reach(w, next.live);
    }
    check(w, next.free, "claim of frame", frame);
    w->extra++;
}

static void walk_find(struct walk *w, const struct state *s, unsigned frame)
{
    u64 block = 0;
    u32 order = 0;
    bool found = buddy_find(&w->b, w->b.base + w->at + frame, &block, &order);
    CHECK(found == (s->free >> frame & 1), "frame %u: %d", frame, found);
    if (!found)
        return;
    u64 first = block - w->b.base - w->at;
    CHECK(order < ORDERS && first == (frame & ~((1u << order) - 1)) &&
              shape_of[s->free][order] >> (first >> order) & 1,
          "frame %u in block %lu, order %u", frame, first, order);
}

static void walk_from(struct walk *w, u32 number)
{
    struct state s = state_of(number);
    CHECK(rank(s.live, ORDERS - 1) == number, "state %u", number);
    for (unsigned order = 0; order < ORDERS; order++)
        walk_take(w, &s, order);
    for (unsigned first = 0; first < FRAMES; first++)
        if (s.live[first] != NOT_LIVE)
            walk_give(w, &s, first);
    for (unsigned frame = 0; frame < FRAMES; frame++)
        walk_claim(w, &s, frame);
    load(w, s.free);
    for (unsigned frame = 0; frame < FRAMES; frame++)
        walk_find(w, &s, frame);
}

static void walk_all(u64 base, u64 span, u64 at)
{
    struct walk w = {.at = at};
    struct state start = state_of(0);
    u64 n = buddy_words(span), used = 0;
    shapes_make();
    w.words = calloc(n, sizeof(u64)); /* exact: what lies beyond is poisoned */
    w.queue = calloc(STATES, sizeof(u32));
    w.seen = calloc(STATES, sizeof(bool));
    buddy_init(&w.b, base, span, w.words);
    buddy_add(&w.b, base + at, base + at + FRAMES);
    check(&w, start.free, "the beginning", 0);
    reach(&w, start.live);
    for (u32 i = 0; i < w.states && !tap_faults; i++)
        walk_from(&w, w.queue[i]);
    printf("# %u states, %lu transitions, %lu claims\n", w.states, w.transitions, w.extra);
    CHECK(w.states == STATES, "%u states", w.states);
    CHECK(w.transitions == TRANSITIONS, "%lu transitions", w.transitions);
    load(&w, 0); /* no operation has left a bit anywhere else */
    for (u64 i = 0; i < n; i++)
        used += w.words[i] != 0;
    CHECK(!used, "%lu words that are not of the 16 frames are not zero", used);
    free(w.words);
    free(w.queue);
    free(w.seen);
}

static void a_range_of_16_frames(void)
{
    walk_all(1024, FRAMES, 0);
}

static void in_16_frames_of_a_large_range(void)
{
    walk_all(4096, 3 * 4096 + 5 * 1024, 2 * 4096 + 65 * FRAMES);
}

int main(void)
{
    tap_begin();
    RUN(a_range_of_16_frames);
    RUN(in_16_frames_of_a_large_range);
    return tap_end();
}
