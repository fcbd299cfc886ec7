/* Owners: the list link by link, arrays of blocks, and every field that can be asked for. */
#include "mm/owned.h"
#include "x86_64/paging.h"
#include "x86_64/percpu.h"
#include "x86_64/tlb.h"
#include "x86_64/uaccess.h"
#include "lib/errno.h"
#include "mm/pages.h"
#include "mm/pcp.h"
#include "mm/tests/mmtest.h"

#define VADDR 0x40000000ul

static struct owner owner, other;

static void owners_init(void)
{
    owner = (struct owner){.id = MMTEST_OWNER};
    other = (struct owner){.id = MMTEST_OWNER + 1};
}

#define EXPECT(expected, call)                                                                     \
    do {                                                                                           \
        int got = (call);                                                                          \
        KTEST_CHECK(got == (expected), "%s: %d", #call, got);                                      \
    } while (0)

/* A mapped page's descriptor starts with its links. */
static const struct page_links *links(u64 pfn)
{
    const struct page *p = page_at(pfn);
    return p->flags & PG_MAPPED ? p->descriptor : &p->links;
}

/* The list has exactly the owner's blocks, and both ways say the same. */
static void check_list(struct ktest *t, const struct owner *o)
{
    u64 blocks = 0, pages = 0, extra_refs = 0;
    u32 before = 0, dirty = 0, locked = 0;
    for (u32 pfn = o->first; pfn && blocks <= o->blocks; pfn = links(pfn)->next) {
        const struct page *p = page_at(pfn);
        KTEST_CHECK(p->kind == PAGE_CLIENT && p->owner == o->id, "frame %u: head 0x%lx", pfn,
                    p->head);
        KTEST_CHECK(links(pfn)->prev == before, "frame %u: after %u, says %u", pfn, before,
                    links(pfn)->prev);
        before = pfn;
        blocks++;
        pages += 1ull << p->order;
        extra_refs += p->refs - 1;
        dirty += (p->flags & PG_DIRTY) != 0;
        locked += (p->flags & PG_LOCKED) != 0;
    }
    KTEST_CHECK(extra_refs == o->extra_refs && dirty == o->dirty && locked == o->locked,
                "%lu more references, %u dirty, %u locked, not %lu, %u, %u", o->extra_refs,
                o->dirty, o->locked, extra_refs, dirty, locked);
    KTEST_CHECK(blocks == o->blocks && pages == o->pages, "%lu blocks, %lu pages in the list",
                blocks, pages);
}

MM_TEST(owners, list_of_all)
{
    u64 pfn[6] = {0}, whole = 0;
    owners_init();
    for (u32 i = 0; i < 6; i++) {
        EXPECT(0, owned_alloc(&owner, i % 3, false, &pfn[i]));
        check_list(t, &owner);
        KTEST_CHECK(owner.first == pfn[i], "%u", owner.first);
    }
    EXPECT(0, owned_alloc(&owner, 2, true, &whole));
    check_list(t, &owner);
    KTEST_CHECK(owner.blocks == 10 && owner.pages == 18, "%lu blocks, %lu pages", owner.blocks,
                owner.pages);
    for (u32 i = 0; i < 4; i++)
        KTEST_CHECK(page_at(whole + i)->head == page_head(PAGE_CLIENT, 0, owner.id), "frame %u", i);
    EXPECT(0, owned_map(&owner, pfn[3], VADDR));
    check_list(t, &owner);
    EXPECT(0, owned_map(&owner, whole + 3, VADDR + PAGE_SIZE));
    check_list(t, &owner);
    EXPECT(0, owned_free(&owner, pfn[2], 2)); /* between others */
    check_list(t, &owner);
    EXPECT(0, owned_unmap(&owner, pfn[3]));
    EXPECT(0, owned_free(&owner, pfn[0], 0)); /* the last */
    check_list(t, &owner);
    EXPECT(0, owned_free(&owner, whole, 0)); /* the first */
    check_list(t, &owner);
    KTEST_CHECK(owned_release_all(&owner) == 18 - 4 - 1 - 1, "released");
    check_list(t, &owner);
    KTEST_CHECK(!owner.pages && !owner.blocks, "%lu pages", owner.pages);
}

MM_TEST(owners, arrays)
{
    u64 paddrs[8], free = pages_free_count();
    u32 n = 99, freed = 99;
    owners_init();
    EXPECT(0, owned_alloc_array(&owner, 1, 8, paddrs, &n));
    KTEST_CHECK(n == 8 && owner.blocks == 8 && owner.pages == 16, "%u blocks", n);
    check_list(t, &owner);
    for (u32 i = 0; i < 8; i++) {
        const struct page *p = page_at(pfn_of(paddrs[i]));
        KTEST_CHECK(paddrs[i] % (2 * PAGE_SIZE) == 0 && p->owner == owner.id && p->order == 1,
                    "block %u: 0x%lx", i, paddrs[i]);
    }
    EXPECT(-EINVAL, owned_alloc_array(&owner, NR_ORDERS, 1, paddrs, &n));
    KTEST_CHECK(!n, "%u", n);
    EXPECT(0, owned_alloc_array(&owner, 0, 0, paddrs, &n));
    KTEST_CHECK(!n && owner.blocks == 8, "%u", n);
    EXPECT(-EINVAL, owned_free_array(&owner, 0, 8, paddrs, &freed)); /* not the order */
    KTEST_CHECK(!freed && owner.blocks == 8, "%u freed", freed);
    paddrs[3] += 8;
    EXPECT(-EINVAL, owned_free_array(&owner, 1, 8, paddrs, &freed));
    KTEST_CHECK(freed == 3 && owner.blocks == 5, "%u freed", freed);
    paddrs[3] -= 8;
    EXPECT(-EINVAL, owned_free_array(&owner, 1, 8, paddrs, &freed)); /* the first is gone */
    KTEST_CHECK(!freed, "%u freed", freed);
    EXPECT(0, owned_free_array(&owner, 1, 5, paddrs + 3, &freed));
    KTEST_CHECK(freed == 5 && !owner.blocks && !owner.pages, "%u freed", freed);
    EXPECT(0, owned_free_array(&owner, 1, 0, paddrs, &freed));
    KTEST_CHECK(!freed && pages_free_count() == free, "%lu free", pages_free_count());
}

MM_TEST(owners, arrays_of_frames)
{
    u64 paddrs[5];
    u32 n = 0, freed = 0;
    owners_init();
    EXPECT(0, owned_alloc_array(&owner, 0, 5, paddrs, &n));
    EXPECT(0, owned_free_array(&owner, 0, 5, paddrs, &freed));
    KTEST_CHECK(n == 5 && freed == 5 && !owner.pages, "%u of %u freed", freed, n);
    if (mmtest_largest_order() < MAX_ORDER)
        return;
    EXPECT(0, owned_alloc_array(&owner, MAX_ORDER, 1, paddrs, &n));
    EXPECT(0, owned_free_array(&owner, MAX_ORDER, 1, paddrs, &freed));
    KTEST_CHECK(n == 1 && freed == 1 && !owner.pages, "%u of %u freed", freed, n);
}

/* The kernel's reserve is not for clients. */
MM_TEST(owners, leave_the_reserve)
{
    u64 pfn = 0, paddr;
    u32 n = 9;
    struct chain all = {0};
    owners_init();
    chain_fill(&all, 0);
    KTEST_CHECK(pages_free_count(), "there is no reserve");
    EXPECT(-ENOMEM, owned_alloc(&owner, 0, false, &pfn));
    EXPECT(-ENOMEM, owned_alloc_array(&owner, 0, 1, &paddr, &n));
    KTEST_CHECK(!owner.pages && !n, "%lu pages", owner.pages);
    KTEST_CHECK(!chain_free(&all), "giving back");
}

MM_TEST(owners, without_memory)
{
    u64 pfn = 0, paddrs[4], held[2];
    u32 n = 99;
    struct chain all = {0};
    owners_init();
    for (u32 i = 0; i < 2; i++)
        held[i] = pages_alloc(0, PAGE_KERNEL, MMTEST_OWNER, 0);
    chain_fill(&all, PAGES_RESERVE);
    EXPECT(-ENOMEM, owned_alloc(&owner, 0, false, &pfn));
    EXPECT(-ENOMEM, owned_alloc_array(&owner, 0, 4, paddrs, &n));
    KTEST_CHECK(!n && !owner.pages && !owner.blocks && !owner.first, "%u", n);
    u64 watermark = pcp_zone->watermark_min; /* what is left is not kept for the kernel now */
    zones[ZONE_DMA].watermark_min = pcp_zone->watermark_min = 0;
    for (u32 i = 0; i < 2; i++)
        pages_free(held[i], 0, PAGE_KERNEL, MMTEST_OWNER);
    EXPECT(0, owned_alloc_array(&owner, 0, 4, paddrs, &n));
    KTEST_CHECK(n == 2 && owner.pages == 2 && owner.blocks == 2, "%u", n);
    KTEST_CHECK(owned_release_all(&owner) == 2, "released");
    zones[ZONE_DMA].watermark_min = zones[ZONE_DMA].managed / 256;
    pcp_zone->watermark_min = watermark;
    KTEST_CHECK(!chain_free(&all), "giving back");
}

MM_TEST(owners, claims_count)
{
    u64 pfn = 0;
    u32 refs = 0;
    owners_init();
    EXPECT(0, owned_alloc(&other, 0, false, &pfn));
    EXPECT(0, owned_free(&other, pfn, 0));
    EXPECT(0, owned_claim(&owner, pfn));
    check_list(t, &owner);
    EXPECT(0, owned_claim(&owner, pfn));
    EXPECT(0, owned_claim(&owner, pfn));
    KTEST_CHECK(page_at(pfn)->refs == 3 && owner.pages == 1, "%u", page_at(pfn)->refs);
    check_list(t, &owner);
    EXPECT(0, owned_put(&owner, pfn, &refs));
    check_list(t, &owner);
    KTEST_CHECK(refs == 2 && page_at(pfn)->refs == 2, "%u", refs);
    EXPECT(0, owned_get(&owner, pfn, &refs));
    KTEST_CHECK(refs == 3 && page_at(pfn)->refs == 3, "%u", refs);
    EXPECT(0, owned_flags(&owner, pfn, PG_DIRTY | PG_LOCKED, 0));
    check_list(t, &owner);
    EXPECT(-EBUSY, owned_free(&owner, pfn, 0));
    KTEST_CHECK(owned_release_all(&owner) == 1 && !page_at(pfn)->head, "released");
    check_list(t, &owner);
    EXPECT(0, owned_alloc(&owner, 0, false, &pfn));
    EXPECT(0, owned_alloc(&owner, 0, false, &pfn));
    EXPECT(0, owned_flags(&owner, pfn, PG_DIRTY, 0));
    EXPECT(0, owned_free(&owner, pfn, 0));
    check_list(t, &owner);
    KTEST_CHECK(!page_at(pfn)->descriptor, "%p is left in a free page", page_at(pfn)->descriptor);
    owned_release_all(&owner);
}

/* A put that is not the last leaves a locked or mapped frame as it is. */
MM_TEST(owners, puts)
{
    u64 pfn = 0;
    u32 refs = 0;
    owners_init();
    EXPECT(0, owned_alloc(&owner, 0, false, &pfn));
    EXPECT(0, owned_get(&owner, pfn, &refs));
    EXPECT(0, owned_flags(&owner, pfn, PG_LOCKED, 0));
    EXPECT(0, owned_put(&owner, pfn, &refs));
    KTEST_CHECK(refs == 1 && page_at(pfn)->flags == PG_LOCKED, "%u", refs);
    EXPECT(-EBUSY, owned_put(&owner, pfn, &refs));
    EXPECT(0, owned_flags(&owner, pfn, 0, PG_LOCKED));
    EXPECT(0, owned_map(&owner, pfn, VADDR));
    EXPECT(-EBUSY, owned_put(&owner, pfn, &refs));
    EXPECT(0, owned_unmap(&owner, pfn));
    refs = 9;
    EXPECT(0, owned_put(&owner, pfn, &refs));
    KTEST_CHECK(!refs && !owner.first && !page_at(pfn)->head, "%u", refs);
    owned_release_all(&owner);
}

static u32 flags_of(u64 pfn)
{
    struct page_info info = {0};
    owned_info(&owner, pfn, &info);
    return info.flags;
}

MM_TEST(owners, flags)
{
    u64 pfn = 0, fault, value = 1;
    owners_init();
    EXPECT(0, owned_alloc(&owner, 0, false, &pfn));
    for (u32 set = 0; set < 4; set++)
        for (u32 clear = 0; clear < 4; clear++)
            for (u32 was = 0; was < 4; was++) {
                EXPECT(0, owned_flags(&owner, pfn, was, PG_DIRTY | PG_LOCKED));
                EXPECT(0, owned_flags(&owner, pfn, set, clear));
                check_list(t, &owner);
                KTEST_CHECK(page_at(pfn)->flags == ((was & ~clear) | set), "%u, %u, %u: %u", was,
                            set, clear, page_at(pfn)->flags);
            }
    for (u32 bit = 2; bit < 32; bit++) {
        EXPECT(-EINVAL, owned_flags(&owner, pfn, 1u << bit, 0));
        EXPECT(-EINVAL, owned_flags(&owner, pfn, 0, 1u << bit));
    }
    EXPECT(0, owned_flags(&owner, pfn, PG_LOCKED, PG_DIRTY));
    EXPECT(0, owned_map(&owner, pfn, VADDR)); /* flags stay */
    KTEST_CHECK(flags_of(pfn) == (PG_LOCKED | PG_MAPPED), "%u", flags_of(pfn));
    /* Only a clear of "dirty" touches the hardware's bit. */
    EXPECT(0, owned_flags(&owner, pfn, 0, PG_DIRTY | PG_LOCKED));
    tlb_activate(&owner.aspace);
    KTEST_CHECK(!user_copy_out(VADDR, &value, 8, &fault), "writing");
    EXPECT(0, owned_flags(&owner, pfn, 0, PG_LOCKED));
    KTEST_CHECK(aspace_dirty(&owner.aspace, VADDR, false), "lost by unlocking");
    for (int times = 0; times < 2; times++)
        KTEST_CHECK(flags_of(pfn) == (PG_DIRTY | PG_MAPPED), "lost by asking: %u", flags_of(pfn));
    EXPECT(0, owned_flags(&owner, pfn, PG_LOCKED, 0));
    KTEST_CHECK(flags_of(pfn) == (PG_LOCKED | PG_DIRTY | PG_MAPPED), "%u", flags_of(pfn));
    EXPECT(0, owned_flags(&owner, pfn, PG_DIRTY, PG_LOCKED));
    EXPECT(0, owned_flags(&owner, pfn, 0, PG_DIRTY));
    KTEST_CHECK(flags_of(pfn) == PG_MAPPED, "%u", flags_of(pfn));
    /* What was dirty before the mapping is so after it. */
    EXPECT(0, owned_flags(&owner, pfn, PG_DIRTY, 0));
    EXPECT(0, owned_unmap(&owner, pfn));
    KTEST_CHECK(flags_of(pfn) == PG_DIRTY, "%u", flags_of(pfn));
    check_list(t, &owner);
    EXPECT(0, owned_flags(&owner, pfn, 0, PG_DIRTY));
    EXPECT(0, owned_map(&owner, pfn, VADDR));
    tlb_activate(&owner.aspace);
    KTEST_CHECK(!user_copy_out(VADDR, &value, 8, &fault), "writing");
    EXPECT(0, owned_unmap(&owner, pfn));
    check_list(t, &owner);
    KTEST_CHECK(owned_release_all(&owner) == 1, "released");
}

static void check_info(struct ktest *t, u64 pfn, struct page_info want)
{
    struct page_info info = {0};
    EXPECT(0, owned_info(&owner, pfn, &info));
    KTEST_CHECK(info.paddr == paddr_of(pfn) && info.block == want.block && info.vaddr == want.vaddr,
                "frame %lu: 0x%lx in 0x%lx at 0x%lx", pfn, info.paddr, info.block, info.vaddr);
    KTEST_CHECK(info.place == want.place && info.kind == want.kind && info.order == want.order,
                "frame %lu: place %u, kind %u, order %u", pfn, info.place, info.kind, info.order);
    KTEST_CHECK(info.flags == want.flags && info.owner == want.owner && info.refs == want.refs,
                "frame %lu: flags %u, owner %u, refs %u", pfn, info.flags, info.owner, info.refs);
    KTEST_CHECK(info.cpu == want.cpu && info.zone == (pfn < zones[ZONE_DMA].end_pfn ? 0 : 1),
                "frame %lu: CPU %u, zone %u", pfn, info.cpu, info.zone);
}

MM_TEST(owners, infos)
{
    u64 pfn = 0, low = 0;
    owners_init();
    EXPECT(0, owned_alloc(&owner, 3, false, &pfn));
    struct page_info live = {.block = paddr_of(pfn),
                             .place = PLACE_LIVE,
                             .kind = PAGE_CLIENT,
                             .order = 3,
                             .owner = owner.id,
                             .refs = 1};
    check_info(t, pfn, live);
    check_info(t, pfn + 7, live);
    page_at(pfn)->refs = 77;
    page_at(pfn)->flags = PG_LOCKED;
    live.refs = 77;
    live.flags = PG_LOCKED;
    check_info(t, pfn + 5, live);
    page_at(pfn)->refs = 1;
    page_at(pfn)->flags = 0;
    EXPECT(0, owned_free(&owner, pfn, 3));
    pcp_drain();
    EXPECT(0, owned_alloc(&other, 0, false, &pfn));
    EXPECT(0, owned_map(&other, pfn, VADDR)); /* another's address is not told */
    check_info(t, pfn,
               (struct page_info){.block = paddr_of(pfn),
                                  .place = PLACE_LIVE,
                                  .kind = PAGE_CLIENT,
                                  .flags = PG_MAPPED,
                                  .owner = other.id,
                                  .refs = 1});
    KTEST_CHECK(owned_release_all(&other) == 1, "released");
    if (this_cpu()->pcp.magazine[0].limit && pfn >= pcp_zone_start)
        check_info(t, pfn,
                   (struct page_info){
                       .block = paddr_of(pfn), .place = PLACE_MAGAZINE, .cpu = this_cpu()->id});
    pcp_drain();
    for (low = 1; low < 256; low++)
        if (zone_claim(low))
            break;
    if (low == 256)
        return;
    check_info(t, low, (struct page_info){.block = paddr_of(low), .place = PLACE_RESERVED});
    zone_give_one(&zones[ZONE_DMA], low, 0);
}
