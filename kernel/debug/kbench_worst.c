/*
 * The most that single calls can take: each case builds the state in which its call has the most to
 * do, and times that one call. docs/measuring.md says why each state is the worst. See kbench.h.
 *
 * All of the zone is held first, its blocks of the largest order in `block`, smaller ones in a chain
 * through their struct pages. From there a state is made by giving back parts of the blocks:
 *
 *   BLOCK_HELD    nothing of it is free
 *   BLOCK_LOOSE   its first frame was given back, all else is held
 *   BLOCK_COMB    of its first frames every other one was given back, a batch of them: none merges
 *   BLOCK_OUT     all but its first part was given back: that part, given back too, merges with it
 *                 up to the largest order. Or the whole block was.
 */
#include "debug/kbench.h"
#include "x86_64/paging.h"
#include "x86_64/percpu.h"
#include "lib/errno.h"
#include "mm/owned.h"
#include "mm/pages.h"

#define BLOCKS_MAX 16384 /* of the largest order, in 64 GiB */
#define OWNER      0xffef
#define ARRAY      64
#define COMB       32 /* frames of a comb, with free ones among them */

enum { BLOCK_HELD, BLOCK_LOOSE, BLOCK_COMB, BLOCK_OUT };

static u32 *block; /* pfn of each; these two are in memory of their own while a case runs */
static u8 *state;
static u32 blocks;
#define SPACE_ORDER 5
_Static_assert(BLOCKS_MAX *(sizeof(u32) + sizeof(u8)) <= 4096 << SPACE_ORDER, "both fit");
static u64 chain; /* smaller blocks that are held: pfn of the first, 0: none */

/* Not inline, and with an order that is no constant: where the kernel allocates it is never dearer. */
static __attribute__((noinline)) u64 call_alloc(unsigned order)
{
    __asm__("" : "+r"(order));
    return pages_alloc(order, PAGE_KERNEL, 0, 0);
}

static __attribute__((noinline)) void call_free(u64 pfn, unsigned order)
{
    __asm__("" : "+r"(order));
    pages_free(pfn, order, PAGE_KERNEL, 0);
}

static void hold_all(void)
{
    u64 pfn;
    for (blocks = 0; blocks < BLOCKS_MAX; blocks++) {
        pfn = zone_take_one(pcp_zone, MAX_ORDER, true);
        if (!pfn)
            break;
        block[blocks] = (u32)pfn;
        state[blocks] = BLOCK_HELD;
    }
    for (unsigned order = MAX_ORDER; order-- > 0;) {
        while ((pfn = zone_take_one(pcp_zone, order, true))) {
            page_at(pfn)->head = page_head(PAGE_KERNEL, order, 0);
            page_at(pfn)->links.next = (u32)chain;
            chain = pfn;
        }
    }
}

/* All of a block but its first 2^order frames. */
static void give_rest(u32 b, unsigned order)
{
    for (; order < MAX_ORDER; order++)
        zone_give_one(pcp_zone, block[b] + (1ull << order), order);
}

static u32 limit_of(unsigned order)
{
    return this_cpu()->pcp.magazine[pcp_index[order]].limit;
}

static u32 batch_of(unsigned order)
{
    return this_cpu()->pcp.magazine[pcp_index[order]].batch;
}

/* Gives back the teeth of a comb, or what is between and behind them. */
static void give_comb(u32 b, bool teeth)
{
    for (u32 i = 0; i < COMB; i++)
        if ((i % 2 == 0 && i / 2 < batch_of(0)) == teeth)
            zone_give_one(pcp_zone, block[b] + i, 0);
}

static void release_all(void)
{
    pcp_drain();
    for (u32 b = 0; b < blocks; b++) {
        if (state[b] == BLOCK_HELD)
            zone_give_one(pcp_zone, block[b], MAX_ORDER);
        if (state[b] == BLOCK_LOOSE)
            give_rest(b, 0);
        if (state[b] == BLOCK_COMB) {
            give_comb(b, false);
            give_rest(b, (unsigned)bits_lowest(COMB));
        }
    }
    while (chain) {
        u64 pfn = chain;
        struct page *p = page_at(pfn);
        unsigned order = p->order;
        chain = p->links.next;
        *p = (struct page){0};
        zone_give_one(pcp_zone, pfn, order);
    }
}

/* Gives back a part of a block by way of the magazine. */
static void to_magazine(u32 b, unsigned order)
{
    page_at(block[b])->head = page_head(PAGE_KERNEL, order, 0);
    call_free(block[b], order);
}

/* ---- states: false when the machine is too small for it ---- */

/* Nothing is free but whole blocks: one, or as many as the watermark asks for. */
static bool only_whole_blocks(void)
{
    u32 b = blocks;
    u64 needed = pcp_zone->watermark_min + (1ull << MAX_ORDER);
    do {
        if (!b)
            return false;
        state[--b] = BLOCK_OUT;
        zone_give_one(pcp_zone, block[b], MAX_ORDER);
    } while (pcp_zone->buddy.free_pages < needed);
    return true;
}

/* And n combs: a batch of frames in one word of the bitmap, the only ones around. */
static bool combs(u32 n)
{
    if (!limit_of(0) || blocks < 2 * n || !only_whole_blocks())
        return false;
    for (u32 i = 0; i < n; i++) {
        u32 b = i * (blocks / n);
        if (state[b] != BLOCK_HELD)
            return false;
        state[b] = BLOCK_COMB;
        give_comb(b, true);
    }
    return true;
}

/*
 * The magazine of order 0 is full, in a burst of frees. The batch on top are frames that each merge ten times, as far from
 * each other as can be, so that most words they are in become zero and not zero.
 */
static bool full_magazine(void)
{
    u32 batch = batch_of(0), gap = blocks / batch, below = limit_of(0) - batch;
    if (!limit_of(0) || gap < 2)
        return false;
    for (u32 b = 0; b < blocks && below; b++) {
        if (b % gap == 0)
            continue;
        state[b] = BLOCK_LOOSE;
        to_magazine(b, 0);
        below--;
    }
    for (u32 i = 0; i < batch; i++) {
        state[i * gap] = BLOCK_OUT;
        give_rest(i * gap, 0);
        to_magazine(i * gap, 0);
    }
    struct pcp *pcp = &this_cpu()->pcp;
    pcp->spills[0] = PCP_BURST; /* the next one gives a batch */
    pcp->last[0] = pcp->slot[limit_of(0) - batch];
    return !below && state[blocks - 1] == BLOCK_HELD;
}

/* All magazines are full, of blocks that merge up to the largest order; there is none of that. */
static bool full_magazines(void)
{
    u32 b = 0;
    for (unsigned i = 0; i < PCP_MAGAZINES; i++) {
        unsigned order = pcp_order[i];
        for (u32 n = limit_of(order); n; n--) {
            if (b == blocks)
                return false;
            state[b] = BLOCK_OUT;
            give_rest(b, order);
            to_magazine(b++, order);
        }
    }
    return true;
}

/* ---- cases: ticks of one call, 0 when its state cannot be made ---- */

#define TIMED(call)                                                                                \
    ({                                                                                             \
        u64 start_ = kbench_clock();                                                               \
        call;                                                                                      \
        kbench_clock() - start_ - kbench_empty();                                                  \
    })

static u64 zone_take_one_splits(void)
{
    if (!only_whole_blocks())
        return 0;
    u64 pfn = 0, ticks = TIMED(pfn = zone_take_one(pcp_zone, 0, false));
    zone_give_one(pcp_zone, pfn, 0);
    return ticks;
}

static u64 zone_give_one_merges(void)
{
    if (!only_whole_blocks())
        return 0;
    u64 pfn = zone_take_one(pcp_zone, 0, false);
    return TIMED(zone_give_one(pcp_zone, pfn, 0));
}

static u64 time_zone_take(void)
{
    u32 pfns[PCP_SLOTS], got = 0;
    u64 ticks = TIMED(got = zone_take(pcp_zone, 0, batch_of(0), pfns));
    zone_give(pcp_zone, 0, got, pfns);
    return ticks;
}

static u64 zone_take_word(void)
{
    return combs(1) ? time_zone_take() : 0;
}

static u64 zone_take_splits(void)
{
    return limit_of(0) && only_whole_blocks() ? time_zone_take() : 0;
}

static u64 zone_give_merges(void)
{
    if (!full_magazine())
        return 0;
    struct pcp *pcp = &this_cpu()->pcp;
    struct magazine *m = &pcp->magazine[0];
    SPIN_GUARD(&m->lock);
    if (m->count < m->batch) /* another CPU ran out of memory and emptied it */
        return 0;
    m->count -= m->batch;
    return TIMED(zone_give(pcp_zone, 0, m->batch, pcp->slot + m->count));
}

static u64 time_pages_alloc(unsigned order)
{
    u64 pfn = 0, ticks = TIMED(pfn = call_alloc(order));
    pages_free(pfn, order, PAGE_KERNEL, 0);
    return ticks;
}

static u64 alloc_refills_from_word(void)
{
    return combs(1) ? time_pages_alloc(0) : 0;
}

static u64 alloc_refills_by_split(void)
{
    return limit_of(0) && only_whole_blocks() ? time_pages_alloc(0) : 0;
}

static u64 free_spills(void)
{
    if (!full_magazine())
        return 0;
    u64 pfn = block[blocks - 1];
    state[blocks - 1] = BLOCK_LOOSE;
    page_at(pfn)->head = page_head(PAGE_KERNEL, 0, 0);
    return TIMED(call_free(pfn, 0));
}

static u64 drain(void)
{
    return full_magazines() ? TIMED(pcp_drain()) : 0;
}

static u64 alloc_drains(void)
{
    return full_magazines() ? time_pages_alloc(MAX_ORDER) : 0;
}

static u64 claim_splits(void)
{
    if (!only_whole_blocks())
        return 0;
    u64 pfn = block[blocks - 1] + (1ull << MAX_ORDER) - 1;
    u64 ticks = TIMED(pages_claim(pfn, PAGE_KERNEL, 0));
    pages_free(pfn, 0, PAGE_KERNEL, 0);
    return ticks;
}

static u64 claim_drains(void)
{
    if (!full_magazines())
        return 0;
    u64 ticks = TIMED(pages_claim(block[0], PAGE_KERNEL, 0));
    pages_free(block[0], 0, PAGE_KERNEL, 0);
    return ticks;
}

/* An owner with a block before the state is made, so that lists have neighbours to mend. */
static struct owner owner = {.id = OWNER};

static u64 owned_alloc_refills(void)
{
    u64 pfn;
    return combs(1) ? TIMED(owned_alloc(&owner, 0, false, &pfn)) : 0;
}

static u64 owned_alloc_splits(void)
{
    u64 pfn;
    return full_magazines() ? TIMED(owned_alloc(&owner, MAX_ORDER, true, &pfn)) : 0;
}

static u64 owned_alloc_array_refills(void)
{
    static u64 paddrs[ARRAY];
    u32 got, refills = ARRAY / batch_of(0);
    return combs(refills - 1) ? TIMED(owned_alloc_array(&owner, 0, ARRAY, paddrs, &got)) : 0;
}

static u64 owned_free_spills(void)
{
    u64 first = owner.first, next = page_at(first)->links.next;
    return next && full_magazine() ? TIMED(owned_free(&owner, next, 0)) : 0;
}

static const struct {
    const char *name;
    u64 (*run)(void);
} cases[] = {
    {"zone_take_one", zone_take_one_splits},
    {"zone_give_one", zone_give_one_merges},
    {"zone_take_word", zone_take_word},
    {"zone_take_split", zone_take_splits},
    {"zone_give", zone_give_merges},
    {"pages_alloc_refill_word", alloc_refills_from_word},
    {"pages_alloc_refill_split", alloc_refills_by_split},
    {"pages_free_spill", free_spills},
    {"pcp_drain", drain},
    {"pages_alloc_drain", alloc_drains},
    {"pages_claim", claim_splits},
    {"pages_claim_drain", claim_drains},
    {"owned_alloc_refill", owned_alloc_refills},
    {"owned_alloc_drain_split", owned_alloc_splits},
    {"owned_alloc_array_64", owned_alloc_array_refills},
    {"owned_free_spill", owned_free_spills},
};

const char *kbench_worst_name(u32 index)
{
    return index < ARRAY_SIZE(cases) ? cases[index].name : NULL;
}

int kbench_worst(u32 index, u64 *ticks)
{
    u64 pfn;
    if (index >= ARRAY_SIZE(cases))
        return -EINVAL;
    u64 space = pages_alloc(SPACE_ORDER, PAGE_KERNEL, 0, 0);
    if (!space)
        return -ENOMEM;
    kbench_begin();
    block = phys_to_virt(paddr_of(space));
    state = (u8 *)(block + BLOCKS_MAX);
    for (int i = 0; i < 3; i++)
        owned_alloc(&owner, 0, false, &pfn);
    pcp_drain();
    hold_all();
    *ticks = cases[index].run();
    owned_release_all(&owner);
    release_all();
    kbench_end();
    pages_free(space, SPACE_ORDER, PAGE_KERNEL, 0);
    return *ticks ? 0 : -ENOMEM;
}
