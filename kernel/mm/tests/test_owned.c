/*
 * Frames of an owner: what is refused, references, flags, mappings with the hardware's dirty bit,
 * and that all comes back.
 */
#include "mm/owned.h"
#include "x86_64/paging.h"
#include "x86_64/cpu.h"
#include "x86_64/percpu.h"
#include "x86_64/tlb.h"
#include "x86_64/uaccess.h"
#include "lib/errno.h"
#include "mm/pages.h"
#include "mm/tests/mmtest.h"

#define VADDR 0x40000000ul

static struct owner owner, other;

static void owners_init(void)
{
    owner = (struct owner){.id = MMTEST_OWNER};
    other = (struct owner){.id = MMTEST_OWNER + 1};
}

static u64 one_frame(struct ktest *t)
{
    u64 pfn = 0;
    int err = owned_alloc(&owner, 0, false, &pfn);
    KTEST_CHECK(!err, "%d", err);
    return err ? 0 : pfn;
}

static struct page_info info_of(u64 pfn)
{
    struct page_info info = {0};
    owned_info(&owner, pfn, &info);
    return info;
}

static void check_empty(struct ktest *t, const struct owner *o)
{
    KTEST_CHECK(!o->blocks && !o->pages && !o->first, "%lu blocks, %lu pages", o->blocks, o->pages);
    KTEST_CHECK(!o->aspace.tables && !o->aspace.mapped && !o->aspace.root, "%lu tables, %lu mapped",
                o->aspace.tables, o->aspace.mapped);
}

#define EXPECT(expected, call)                                                                     \
    do {                                                                                           \
        int got = (call);                                                                          \
        KTEST_CHECK(got == (expected), "%s: %d", #call, got);                                      \
    } while (0)

MM_TEST(owned, alloc_and_free)
{
    u64 pfn, largest = mmtest_largest_order();
    owners_init();
    for (unsigned order = 0; order <= largest; order++) {
        EXPECT(0, owned_alloc(&owner, order, false, &pfn));
        KTEST_CHECK(owner.blocks == 1 && owner.pages == 1ull << order && owner.first == pfn,
                    "order %u: %lu blocks, %lu pages", order, owner.blocks, owner.pages);
        EXPECT(-EINVAL, owned_free(&owner, pfn, order ? order - 1 : 1));
        EXPECT(-EINVAL, owned_free(&other, pfn, order));
        EXPECT(0, owned_free(&owner, pfn, order));
        EXPECT(-EINVAL, owned_free(&owner, pfn, order));
        check_empty(t, &owner);
    }
    EXPECT(-EINVAL, owned_alloc(&owner, NR_ORDERS, false, &pfn));
    EXPECT(-EINVAL, owned_alloc(&owner, UINT32_MAX, true, &pfn));
    EXPECT(-EINVAL, owned_free(&owner, pfn, NR_ORDERS));
}

/* Everything that may be done to a frame is refused. */
static void refuse_all(struct ktest *t, struct owner *o, u64 pfn)
{
    u32 refs = 0;
    u64 blocks = o->blocks;
    for (unsigned order = 0; order < NR_ORDERS; order++)
        EXPECT(-EINVAL, owned_free(o, pfn, order));
    EXPECT(-EINVAL, owned_get(o, pfn, &refs));
    EXPECT(-EINVAL, owned_put(o, pfn, &refs));
    EXPECT(-EINVAL, owned_flags(o, pfn, PG_DIRTY, 0));
    EXPECT(-EINVAL, owned_map(o, pfn, VADDR));
    EXPECT(-EINVAL, owned_unmap(o, pfn));
    KTEST_CHECK(o->blocks == blocks && !o->aspace.tables, "frame %lu: %lu blocks, %lu tables", pfn,
                o->blocks, o->aspace.tables);
}

MM_TEST(owned, what_is_not_the_owners)
{
    u64 block = 0, kernel = pages_alloc(0, PAGE_KERNEL, MMTEST_OWNER, 0);
    owners_init();
    EXPECT(0, owned_alloc(&owner, 2, false, &block));
    refuse_all(t, &other, block);
    for (u64 i = 1; i < 4; i++)
        refuse_all(t, &owner, block + i);
    refuse_all(t, &owner, kernel);
    refuse_all(t, &owner, 0);
    refuse_all(t, &owner, mmtest_image_pfn());
    refuse_all(t, &owner, page_end_pfn);
    refuse_all(t, &owner, UINT64_MAX);
    if (mmtest_hole(0))
        refuse_all(t, &owner, mmtest_hole(0));
    EXPECT(0, owned_free(&owner, block, 2));
    refuse_all(t, &owner, block);
    EXPECT(0, pages_free(kernel, 0, PAGE_KERNEL, MMTEST_OWNER));
}

MM_TEST(owned, split_frames)
{
    u64 pfn = 0;
    owners_init();
    EXPECT(0, owned_alloc(&owner, 3, true, &pfn));
    KTEST_CHECK(owner.blocks == 8 && owner.pages == 8 && owner.first == pfn,
                "%lu blocks, %lu pages", owner.blocks, owner.pages);
    EXPECT(-EINVAL, owned_free(&owner, pfn, 3));
    for (u64 i = 0; i < 8; i++) {
        EXPECT(0, owned_free(&owner, pfn + (i * 3 + 1) % 8, 0));
        KTEST_CHECK(owner.blocks == 7 - i, "%lu blocks", owner.blocks);
    }
    check_empty(t, &owner);
}

MM_TEST(owned, references)
{
    u32 refs = 0;
    owners_init();
    u64 pfn = one_frame(t);
    if (!pfn)
        return;
    EXPECT(0, owned_get(&owner, pfn, &refs));
    KTEST_CHECK(refs == 2 && info_of(pfn).refs == 2, "%u", refs);
    EXPECT(-EBUSY, owned_free(&owner, pfn, 0));
    EXPECT(0, owned_claim(&owner, pfn));
    KTEST_CHECK(info_of(pfn).refs == 3 && owner.pages == 1, "%u", info_of(pfn).refs);
    EXPECT(0, owned_put(&owner, pfn, &refs));
    EXPECT(0, owned_put(&owner, pfn, &refs));
    KTEST_CHECK(refs == 1, "%u", refs);
    page_at(pfn)->refs = UINT32_MAX;
    EXPECT(-EOVERFLOW, owned_get(&owner, pfn, &refs));
    EXPECT(-EOVERFLOW, owned_claim(&owner, pfn));
    KTEST_CHECK(page_at(pfn)->refs == UINT32_MAX, "%u", page_at(pfn)->refs);
    page_at(pfn)->refs = 1;
    EXPECT(0, owned_put(&owner, pfn, &refs));
    KTEST_CHECK(!refs && info_of(pfn).place != PLACE_LIVE, "%u", refs);
    EXPECT(-EINVAL, owned_put(&owner, pfn, &refs));
    check_empty(t, &owner);
}

MM_TEST(owned, put_of_a_block)
{
    u64 pfn = 0;
    u32 refs = 9;
    owners_init();
    EXPECT(0, owned_alloc(&owner, 2, false, &pfn));
    EXPECT(-EINVAL, owned_map(&owner, pfn, VADDR)); /* only single frames */
    EXPECT(-EBUSY, owned_claim(&owner, pfn));
    EXPECT(0, owned_put(&owner, pfn, &refs));
    KTEST_CHECK(!refs, "%u", refs);
    check_empty(t, &owner);
}

MM_TEST(owned, locked_and_dirty)
{
    u32 refs = 0;
    owners_init();
    u64 pfn = one_frame(t);
    if (!pfn)
        return;
    KTEST_CHECK(!info_of(pfn).flags, "%u", info_of(pfn).flags);
    EXPECT(-EINVAL, owned_flags(&owner, pfn, PG_MAPPED, 0));
    EXPECT(-EINVAL, owned_flags(&owner, pfn, 0, PG_MAPPED));
    EXPECT(-EINVAL, owned_flags(&owner, pfn, 1u << 31, 0));
    EXPECT(0, owned_flags(&owner, pfn, PG_LOCKED | PG_DIRTY, 0));
    KTEST_CHECK(info_of(pfn).flags == (PG_LOCKED | PG_DIRTY), "%u", info_of(pfn).flags);
    EXPECT(-EBUSY, owned_free(&owner, pfn, 0));
    EXPECT(-EBUSY, owned_put(&owner, pfn, &refs));
    KTEST_CHECK(info_of(pfn).refs == 1 && owner.pages == 1, "%u", info_of(pfn).refs);
    EXPECT(0, owned_flags(&owner, pfn, 0, PG_LOCKED));
    KTEST_CHECK(info_of(pfn).flags == PG_DIRTY, "%u", info_of(pfn).flags);
    EXPECT(0, owned_flags(&owner, pfn, PG_DIRTY, PG_DIRTY));
    KTEST_CHECK(info_of(pfn).flags == PG_DIRTY, "set wins over clear: %u", info_of(pfn).flags);
    EXPECT(0, owned_free(&owner, pfn, 0)); /* dirty alone keeps nothing */
    check_empty(t, &owner);
}

MM_TEST(owned, claims)
{
    owners_init();
    u64 pfn = one_frame(t);
    if (!pfn)
        return;
    EXPECT(-EBUSY, owned_claim(&other, pfn));
    EXPECT(0, owned_free(&owner, pfn, 0));
    EXPECT(0, owned_claim(&other, pfn));
    KTEST_CHECK(other.blocks == 1 && other.pages == 1 && other.first == pfn, "%lu blocks",
                other.blocks);
    KTEST_CHECK(page_at(pfn)->head == page_head(PAGE_CLIENT, 0, other.id), "0x%lx",
                page_at(pfn)->head);
    EXPECT(-EBUSY, owned_claim(&owner, pfn));
    EXPECT(-EBUSY, owned_claim(&owner, mmtest_image_pfn()));
    EXPECT(-EINVAL, owned_claim(&owner, 0));
    EXPECT(-EINVAL, owned_claim(&owner, page_end_pfn));
    EXPECT(-EINVAL, owned_claim(&owner, UINT64_MAX));
    if (mmtest_hole(0))
        EXPECT(-EINVAL, owned_claim(&owner, mmtest_hole(0)));
    EXPECT(0, owned_free(&other, pfn, 0));
    check_empty(t, &owner);
    check_empty(t, &other);
}

MM_TEST(owned, map_and_unmap)
{
    u32 refs = 0;
    owners_init();
    u64 a = one_frame(t), b = one_frame(t);
    if (!a || !b)
        return;
    EXPECT(-EINVAL, owned_unmap(&owner, a));
    EXPECT(-EINVAL, owned_map(&owner, a, 0));
    EXPECT(0, owned_map(&owner, a, VADDR));
    KTEST_CHECK(info_of(a).vaddr == VADDR && info_of(a).flags & PG_MAPPED, "0x%lx",
                info_of(a).vaddr);
    EXPECT(-EBUSY, owned_map(&owner, a, VADDR + PAGE_SIZE));
    EXPECT(-EEXIST, owned_map(&owner, b, VADDR));
    KTEST_CHECK(!info_of(b).vaddr && !info_of(b).flags, "0x%lx", info_of(b).vaddr);
    EXPECT(-EBUSY, owned_free(&owner, a, 0));
    EXPECT(-EBUSY, owned_put(&owner, a, &refs));
    EXPECT(-EINVAL, owned_unmap(&other, a));
    KTEST_CHECK(owner.aspace.mapped == 1 && owner.aspace.tables == 4, "%lu mapped, %lu tables",
                owner.aspace.mapped, owner.aspace.tables);
    EXPECT(0, owned_unmap(&owner, a));
    EXPECT(-EINVAL, owned_unmap(&owner, a));
    KTEST_CHECK(!info_of(a).vaddr && !info_of(a).flags, "%u", info_of(a).flags);
    KTEST_CHECK(!owner.aspace.mapped && owner.aspace.tables == 1, "%lu tables",
                owner.aspace.tables);
    EXPECT(0, owned_free(&owner, a, 0));
    EXPECT(0, owned_free(&owner, b, 0));
    KTEST_CHECK(!owned_release_all(&owner), "nothing is left to release");
    check_empty(t, &owner);
}

/* The list goes through the descriptors of mapped frames: remove first, middle and last of it. */
MM_TEST(owned, list_with_mapped_frames)
{
    u64 pfn[5];
    for (u32 mask = 0; mask < 32; mask += 3) {
        owners_init();
        for (u32 i = 0; i < 5; i++)
            pfn[i] = one_frame(t);
        for (u32 i = 0; i < 5; i++)
            if (mask >> i & 1)
                EXPECT(0, owned_map(&owner, pfn[i], VADDR + i * PAGE_SIZE));
        for (u32 n = 0; n < 5; n++) {
            u32 i = (n * 3 + 2 + mask) % 5;
            if (mask >> i & 1)
                EXPECT(0, owned_unmap(&owner, pfn[i]));
            EXPECT(0, owned_free(&owner, pfn[i], 0));
            u64 on_list = 0;
            for (u32 k = 0; k < 5; k++)
                on_list += page_at(pfn[k])->owner == owner.id;
            KTEST_CHECK(on_list == owner.blocks && owner.blocks == 4 - n, "%lu blocks",
                        owner.blocks);
        }
        KTEST_CHECK(!owner.first, "list is not empty, mask %u", mask);
        owned_release_all(&owner);
    }
}

static u64 user_read(u64 vaddr, u64 *value)
{
    u64 fault = 0;
    tlb_activate(&owner.aspace);
    return user_copy_in(value, vaddr, sizeof(*value), &fault);
}

static u64 user_write(u64 vaddr, u64 value)
{
    u64 fault = 0;
    tlb_activate(&owner.aspace);
    return user_copy_out(vaddr, &value, sizeof(value), &fault);
}

MM_TEST(owned, hardware_dirty_bit)
{
    u64 value = 0;
    owners_init();
    u64 pfn = one_frame(t);
    if (!pfn)
        return;
    u64 *memory = phys_to_virt(paddr_of(pfn));
    memory[1] = 0x1234567890abcdef;
    EXPECT(0, owned_map(&owner, pfn, VADDR));
    KTEST_CHECK(!user_read(VADDR + 8, &value) && value == 0x1234567890abcdef, "0x%lx", value);
    KTEST_CHECK(!(info_of(pfn).flags & PG_DIRTY), "dirty by reading");
    for (u64 round = 1; round < 4; round++) {
        KTEST_CHECK(!user_write(VADDR + 8, round) && memory[1] == round, "0x%lx", memory[1]);
        KTEST_CHECK(info_of(pfn).flags & PG_DIRTY, "round %lu: not dirty by writing", round);
        EXPECT(0, owned_flags(&owner, pfn, 0, PG_DIRTY));
        KTEST_CHECK(!(info_of(pfn).flags & PG_DIRTY), "round %lu: still dirty", round);
    }
    EXPECT(0, owned_unmap(&owner, pfn));
    KTEST_CHECK(!info_of(pfn).flags, "%u", info_of(pfn).flags);
    EXPECT(0, owned_map(&owner, pfn, VADDR));
    KTEST_CHECK(!user_write(VADDR, 1), "writing");
    EXPECT(0, owned_unmap(&owner, pfn));
    KTEST_CHECK(info_of(pfn).flags == PG_DIRTY, "lost by unmapping: %u", info_of(pfn).flags);
    KTEST_CHECK(owned_release_all(&owner) == 1, "one frame");
    check_empty(t, &owner);
}

MM_TEST(owned, release_all)
{
    u64 pfn[4] = {0}, total = 0, free = pages_free_count();
    u32 refs;
    owners_init();
    for (unsigned order = 0; order < 4; order++) {
        EXPECT(0, owned_alloc(&owner, order, false, &pfn[order]));
        total += 1ull << order;
    }
    u64 a = one_frame(t), b = one_frame(t), c = one_frame(t);
    EXPECT(0, owned_map(&owner, a, 0x1000));
    EXPECT(0, owned_map(&owner, b, USER_END - PAGE_SIZE));
    EXPECT(0, owned_map(&owner, pfn[0], VADDR));
    EXPECT(0, owned_flags(&owner, a, PG_LOCKED | PG_DIRTY, 0));
    EXPECT(0, owned_flags(&owner, c, PG_LOCKED, 0));
    EXPECT(0, owned_flags(&owner, pfn[3], PG_LOCKED, 0));
    EXPECT(0, owned_get(&owner, b, &refs));
    EXPECT(0, owned_get(&owner, pfn[2], &refs));
    KTEST_CHECK(!user_write(0x1000, 7), "the lowest page");
    KTEST_CHECK(!user_write(USER_END - 8, 7), "the highest page");
    u64 released = owned_release_all(&owner);
    KTEST_CHECK(released == total + 3, "%lu of %lu", released, total + 3);
    check_empty(t, &owner);
    KTEST_CHECK(pages_free_count() == free, "%lu free, %lu before", pages_free_count(), free);
    KTEST_CHECK(this_cpu()->aspace != &owner.aspace, "the tables are still in use");
    KTEST_CHECK(read_cr3() != 0 && !page_at(pfn_of(read_cr3()))->head, "CR3 is 0x%lx", read_cr3());
    KTEST_CHECK(!owned_release_all(&owner), "a second time");
}

MM_TEST(owned, info_of_any_frame)
{
    struct page_info info = {0};
    owners_init();
    u64 pfn = 0;
    EXPECT(0, owned_alloc(&other, 1, false, &pfn));
    EXPECT(0, owned_info(&owner, pfn + 1, &info));
    KTEST_CHECK(info.place == PLACE_LIVE && info.kind == PAGE_CLIENT && info.owner == other.id,
                "place %u, kind %u, owner %u", info.place, info.kind, info.owner);
    KTEST_CHECK(info.paddr == paddr_of(pfn + 1) && info.block == paddr_of(pfn) && info.order == 1,
                "0x%lx in 0x%lx", info.paddr, info.block);
    EXPECT(0, owned_free(&other, pfn, 1));
    EXPECT(0, owned_info(&owner, mmtest_image_pfn(), &info));
    KTEST_CHECK(info.place == PLACE_RESERVED && !info.kind && !info.refs, "place %u", info.place);
    EXPECT(0, owned_info(&owner, 0, &info));
    KTEST_CHECK(info.place == PLACE_NOT_RAM, "place %u", info.place);
    if (mmtest_hole(0)) {
        EXPECT(0, owned_info(&owner, mmtest_hole(0), &info));
        KTEST_CHECK(info.place == PLACE_NOT_RAM, "place %u", info.place);
    }
    EXPECT(0, owned_info(&owner, page_end_pfn - 1, &info));
    KTEST_CHECK(info.place != PLACE_NOT_RAM, "the last frame");
    EXPECT(-EINVAL, owned_info(&owner, page_end_pfn, &info));
    EXPECT(-EINVAL, owned_info(&owner, UINT64_MAX, &info));
}

/* With n frames left in the whole machine: mapping works or leaves nothing behind. */
static int map_with_left(struct ktest *t, const u64 *spare, u32 n, u64 pfn)
{
    struct chain all = {0};
    chain_fill(&all, PAGES_RESERVE);
    for (u32 i = 0; i < n; i++)
        EXPECT(0, pages_free(spare[i], 0, PAGE_KERNEL, MMTEST_OWNER));
    int err = owned_map(&owner, pfn, VADDR);
    u64 kept = err ? owner.aspace.tables : 5; /* four tables and a page of descriptors */
    KTEST_CHECK(pages_free_count() == n - kept, "%u left, %lu afterwards, %lu tables", n,
                pages_free_count(), owner.aspace.tables);
    KTEST_CHECK(!err || (owner.aspace.tables <= 1 && !owner.aspace.mapped && !info_of(pfn).flags),
                "%u left: %lu tables, %lu mapped", n, owner.aspace.tables, owner.aspace.mapped);
    if (!err)
        EXPECT(0, owned_unmap(&owner, pfn));
    aspace_destroy(&owner.aspace);
    for (u32 i = 0; i < n; i++)
        KTEST_CHECK(pages_alloc(0, PAGE_KERNEL, MMTEST_OWNER, PAGES_RESERVE), "spare %u", i);
    KTEST_CHECK(!chain_free(&all), "giving back");
    return err;
}

MM_TEST(owned, map_without_memory)
{
    u64 spare[5], pfn;
    owners_init();
    pfn = one_frame(t);
    for (u32 n = 0; n <= 5; n++) {
        for (u32 i = 0; i < 5; i++)
            spare[i] = pages_alloc(0, PAGE_KERNEL, MMTEST_OWNER, 0);
        int err = map_with_left(t, spare, n, pfn);
        KTEST_CHECK(err == (n < 5 ? -ENOMEM : 0), "%u frames left: %d", n, err);
        for (u32 i = 0; i < 5; i++)
            EXPECT(0, pages_free(spare[i], 0, PAGE_KERNEL, MMTEST_OWNER));
    }
    EXPECT(0, owned_free(&owner, pfn, 0));
}
