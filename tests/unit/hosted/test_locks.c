/*
 * Every function takes the lock that its header names, as often as it must, and gives it back. What
 * runs in one thread would never show that a lock is missing, so the locks count.
 */
#include "x86_64/percpu.h"
#include "mm/owned.h"
#include "mm/pages.h"
#include "mm/pcp.h"
#include "mm/pool.h"
#include "mm/tests/mmtest.h"
#include "mm/zone.h"

#define OWNER MMTEST_OWNER
#define VADDR 0x7000000000ul

/* The call takes this lock n times, and holds none at its end. */
#define TAKES(n, lock, call)                                                                       \
    do {                                                                                           \
        u32 taken = (lock).taken, held = hosted_locks_held;                                        \
        (void)(call);                                                                              \
        KTEST_CHECK((lock).taken - taken == (n), "%s: %u times", #call, (lock).taken - taken);     \
        KTEST_CHECK(hosted_locks_held == held, "%s: %u held", #call, hosted_locks_held);           \
    } while (0)

static void check_zone(struct ktest *t, struct zone *z)
{
    u64 block, pfn = zone_take_one(z, 4, true);
    u32 order, pfns[2];
    if (!pfn)
        return;
    TAKES(1, z->lock, zone_find_free(pfn, &block, &order));
    TAKES(1, z->lock, zone_claim(pfn));
    TAKES(1, z->lock, zone_give_one(z, pfn, 4));
    TAKES(1, z->lock, pfn = zone_take_one(z, 0, true));
    TAKES(1, z->lock, zone_give_one(z, pfn, 0));
    TAKES(1, z->lock, zone_claim(pfn));
    TAKES(1, z->lock, zone_give_one(z, pfn, 0));
    u32 n = 0;
    TAKES(1, z->lock, n = zone_take(z, 0, 2, pfns));
    TAKES(1, z->lock, zone_give(z, 0, n, pfns));
    u64 quick = z->watermark_quick; /* as if memory were short */
    z->watermark_quick = UINT64_MAX;
    TAKES(1, z->lock, pfn = zone_take_one(z, 0, true));
    TAKES(1, z->lock, zone_give_one(z, pfn, 0));
    z->watermark_quick = quick;
}

MM_TEST(locks, of_zones)
{
    for (int i = 0; i < NR_ZONES; i++)
        check_zone(t, &zones[i]);
}

MM_TEST(locks, of_magazines)
{
    struct pcp *pcp = &this_cpu()->pcp;
    struct magazine *m = &pcp->magazine[0];
    struct spinlock *lock = &m->lock;
    u64 block, pfn = 0;
    u32 order, cpu;
    pcp_drain();
    TAKES(1, *lock, (spin_lock(lock), pfn = pcp_refill(m, pcp->slot, 0)));
    zone_give_one(pcp_zone, pfn, 0);
    u8 limit = m->limit; /* as if the zone were too small for magazines */
    pcp_drain();
    m->limit = 0;
    pfn = zone_take_one(pcp_zone, 0, false);
    TAKES(1, *lock, (spin_lock(lock), pcp_spill(pcp, 0, pfn), 0));
    m->limit = limit;
    pcp_drain();
    pfn = pages_alloc(0, PAGE_KERNEL, OWNER, 0);
    TAKES(1, *lock, pages_free(pfn, 0, PAGE_KERNEL, OWNER));
    TAKES(1, *lock, pfn = pages_alloc(0, PAGE_KERNEL, OWNER, 0));
    TAKES(1, *lock, pages_free(pfn, 0, PAGE_KERNEL, OWNER));
    TAKES(1, *lock, pcp_find(1, &block, &order, &cpu));
    TAKES(0, pcp_zone->lock, pcp_pages());
    pcp_drain();
    TAKES(0, pcp_zone->lock, pcp_drain()); /* nothing is in them */
    for_each_cpu(c)
        for (unsigned i = 0; i < PCP_MAGAZINES; i++)
            TAKES(1, c->pcp.magazine[i].lock, pcp_drain());
}

MM_TEST(locks, of_owners)
{
    struct owner o = {.id = OWNER};
    struct page_info info;
    u64 pfn = 0, paddrs[2];
    u32 n, refs;
    TAKES(1, o.lock, owned_alloc(&o, 2, true, &pfn));
    TAKES(1, o.lock, owned_alloc_array(&o, 0, 2, paddrs, &n));
    TAKES(1, o.lock, owned_free_array(&o, 0, 2, paddrs, &n));
    TAKES(1, o.lock, owned_free(&o, pfn + 1, 0));
    TAKES(1, o.lock, owned_claim(&o, pfn));
    TAKES(1, o.lock, owned_put(&o, pfn, &refs));
    TAKES(1, o.lock, owned_get(&o, pfn, &refs));
    TAKES(1, o.lock, owned_flags(&o, pfn, PG_DIRTY, 0));
    TAKES(1, o.lock, owned_info(&o, pfn, &info));
    TAKES(1, o.lock, owned_map(&o, pfn, VADDR));
    TAKES(1, o.lock, owned_unmap(&o, pfn));
    TAKES(1, o.lock, owned_release_all(&o));
    TAKES(0, o.lock, owned_alloc(&o, NR_ORDERS, false, &pfn));
}

MM_TEST(locks, of_address_spaces)
{
    struct aspace as = {0};
    bool dirty;
    u64 pfn = pages_alloc(0, PAGE_KERNEL, OWNER, 0);
    TAKES(1, as.lock, aspace_map(&as, VADDR, pfn));
    TAKES(1, as.lock, aspace_map(&as, VADDR, pfn));
    TAKES(1, as.lock, aspace_dirty(&as, VADDR, true));
    TAKES(1, as.lock, (aspace_unmap(&as, VADDR, &dirty), 0));
    TAKES(1, as.lock, (aspace_destroy(&as), 0));
    pages_free(pfn, 0, PAGE_KERNEL, OWNER);
}

MM_TEST(locks, of_pools)
{
    struct pool p = {.object_bytes = 64};
    void *a = NULL, *b = NULL;
    TAKES(1, p.lock, a = pool_alloc(&p));
    TAKES(1, p.lock, b = pool_alloc(&p));
    TAKES(1, p.lock, (pool_free(&p, a), 0));
    TAKES(1, p.lock, (pool_free(&p, b), 0));
}
