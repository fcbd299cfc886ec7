/*
 * All CPUs at once: blocks that no two may hold, magazines drained under their owners' hands, and
 * mappings that come and go in one address space.
 *
 * Each CPU takes, claims and frees at random from a fixed seed, and writes its stamp into every page
 * it holds; a stamp that has changed when the block is given back was written by another holder.
 */
#include "x86_64/paging.h"
#include "x86_64/smp.h"
#include "x86_64/tlb.h"
#include "x86_64/uaccess.h"
#include "mm/owned.h"
#include "mm/pages.h"
#include "mm/pcp.h"
#include "mm/tests/mmtest.h"

#define SLOTS 24

static struct worker {
    u64 random, rounds, allocs, claims, foreign, refused, held_pages;
    struct {
        u32 pfn, order;
    } slot[SLOTS];
} workers[MAX_CPUS];

static u64 share; /* pages that a CPU may hold */
static u64
    claimable; /* frames from pcp_zone_start on that are claimed; not all, or all are touched */
static bool draining;

static void stamp(u64 pfn, unsigned order, u64 id)
{
    for (u64 i = 0; i < 1ull << order; i++) {
        volatile u64 *page = phys_to_virt(paddr_of(pfn + i));
        page[0] = page[PAGE_SIZE / 8 - 1] = ~id << 40 | (pfn + i);
    }
}

static u64 foreign_stamps(u64 pfn, unsigned order, u64 id)
{
    u64 foreign = 0;
    for (u64 i = 0; i < 1ull << order; i++) {
        const volatile u64 *page = phys_to_virt(paddr_of(pfn + i));
        u64 mine = ~id << 40 | (pfn + i);
        foreign += page[0] != mine || page[PAGE_SIZE / 8 - 1] != mine;
    }
    return foreign;
}

static unsigned random_order(u64 random)
{
    static const u8 orders[] = {0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 9};
    return orders[random % sizeof(orders)];
}

static void slot_fill(struct worker *w, u32 s, u64 id)
{
    unsigned order = random_order(mmtest_random(&w->random));
    u64 pfn = 0;
    if (mmtest_random(&w->random) % 8 == 0) {
        order = 0;
        pfn = pcp_zone_start + mmtest_random(&w->random) % claimable;
        if (pages_claim(pfn, PAGE_KERNEL, MMTEST_OWNER))
            return;
        w->claims++;
    } else if (w->held_pages + (1ull << order) <= share) {
        pfn = pages_alloc(order, PAGE_KERNEL, MMTEST_OWNER, 0);
    }
    if (!pfn)
        return;
    w->allocs++;
    w->held_pages += 1ull << order;
    w->slot[s].pfn = (u32)pfn;
    w->slot[s].order = order;
    stamp(pfn, order, id);
}

static void slot_empty(struct worker *w, u32 s, u64 id)
{
    u64 pfn = w->slot[s].pfn;
    unsigned order = w->slot[s].order;
    w->foreign += foreign_stamps(pfn, order, id);
    w->refused += pages_free(pfn, order, PAGE_KERNEL, MMTEST_OWNER) != 0;
    w->held_pages -= 1ull << order;
    w->slot[s].pfn = 0;
}

static void stress_cpu(void *arg)
{
    u64 id = this_cpu()->id;
    struct worker *w = &workers[id];
    for (u64 round = 0; round < *(const u64 *)arg; round++) {
        u32 s = (u32)(mmtest_random(&w->random) % SLOTS);
        if (w->slot[s].pfn)
            slot_empty(w, s, id);
        else
            slot_fill(w, s, id);
        if (draining && id == cpu_count - 1 && round % 16 == 0)
            pcp_drain();
        w->rounds++;
    }
    for (u32 s = 0; s < SLOTS; s++)
        if (w->slot[s].pfn)
            slot_empty(w, s, id);
}

static void stress(struct ktest *t, u64 seed, u64 rounds, bool drain)
{
    draining = drain;
    share = MIN(pages_free_count() / 2 / cpu_count, 2048ul);
    claimable = MIN(page_end_pfn - pcp_zone_start, 8192ul);
    rounds = MIN(rounds, 2 * rounds / cpu_count);
    for (u32 i = 0; i < MAX_CPUS; i++)
        workers[i] = (struct worker){.random = seed * (i + 1)};
    smp_run_all(stress_cpu, &rounds);
    for_each_cpu(cpu) {
        const struct worker *w = &workers[cpu->id];
        KTEST_CHECK(w->rounds == rounds && w->allocs > rounds / 8, "CPU %u: %lu rounds, %lu blocks",
                    cpu->id, w->rounds, w->allocs);
        KTEST_CHECK(!w->foreign, "CPU %u: %lu pages held by another too", cpu->id, w->foreign);
        KTEST_CHECK(!w->refused && !w->held_pages, "CPU %u: %lu frees refused", cpu->id,
                    w->refused);
    }
    for (int i = 0; i < NR_ZONES; i++)
        KTEST_CHECK(!mmtest_buddy_faults(&zones[i].buddy), "zone %s: %lu invariants broken",
                    zones[i].name, mmtest_buddy_faults(&zones[i].buddy));
}

MM_TEST(smp, blocks)
{
    stress(t, 0x9e3779b97f4a7c15, 3000, false);
}

MM_TEST(smp, blocks_and_drains)
{
    stress(t, 0xd1342543de82ef95, 1500, true);
}

static struct owner shared;
static u64 map_errors[MAX_CPUS], wrong_values[MAX_CPUS];

/* One frame of the shared owner: mapped, written through the mapping, looked at, gone. */
static void map_round(u32 id, u64 round)
{
    u64 pfn, fault, value = (u64)id << 32 | round, vaddr = 0x10000000 + id * 0x1000;
    if (round % 3 == 0)
        vaddr += (u64)id << 30; /* tables of its own, which come and go as well */
    if (owned_alloc(&shared, 0, false, &pfn)) {
        map_errors[id]++;
        return;
    }
    map_errors[id] += owned_map(&shared, pfn, vaddr) != 0;
    tlb_activate(&shared.aspace);
    map_errors[id] += user_copy_out(vaddr, &value, 8, &fault) != 0;
    wrong_values[id] += *(volatile u64 *)phys_to_virt(paddr_of(pfn)) != value;
    map_errors[id] += owned_unmap(&shared, pfn) != 0;
    wrong_values[id] += user_copy_in(&value, vaddr, 8, &fault) != 8;
    map_errors[id] += owned_free(&shared, pfn, 0) != 0;
}

static void map_cpu(void *arg)
{
    u32 id = this_cpu()->id;
    map_errors[id] = wrong_values[id] = 0;
    for (u64 round = 0; round < *(const u64 *)arg; round++)
        map_round(id, round);
}

MM_TEST(smp, mappings)
{
    u64 rounds = 16 / cpu_count; /* each waits for all CPUs several times */
    shared = (struct owner){.id = MMTEST_OWNER};
    smp_run_all(map_cpu, &rounds);
    for_each_cpu(cpu)
        KTEST_CHECK(!map_errors[cpu->id] && !wrong_values[cpu->id],
                    "CPU %u: %lu errors, %lu wrong values", cpu->id, map_errors[cpu->id],
                    wrong_values[cpu->id]);
    KTEST_CHECK(!shared.blocks && !shared.aspace.mapped && shared.aspace.tables <= 1,
                "%lu blocks, %lu mapped, %lu tables", shared.blocks, shared.aspace.mapped,
                shared.aspace.tables);
    KTEST_CHECK(!owned_release_all(&shared), "nothing is left to release");
}
