/*
 * Page tables entry by entry: what is in them, what their pages count, when what is flushed, and
 * that a page's translation is gone from all CPUs before its table is.
 */
#include "mm/aspace.h"
#include "x86_64/cpu.h"
#include "x86_64/paging.h"
#include "x86_64/percpu.h"
#include "x86_64/tlb.h"
#include "x86_64/uaccess.h"
#include "lib/errno.h"
#include "hosted/machine.h"
#include "mm/pages.h"
#include "mm/pcp.h"
#include "mm/pool.h"
#include "mm/tests/mmtest.h"

#define OWNER MMTEST_OWNER
#define VADDR 0x7000000000ul
/* With another index at each level. */
#define DIRTY_AT (VADDR + 5 * PAGE_SIZE + (7ul << 21) + (9ul << 30))

static struct aspace as;

static u64 *table(u64 paddr)
{
    return phys_to_virt(paddr);
}

/* Each table's page counts its entries; returns the tables below and with this one. */
static u64 check_table(struct ktest *t, u64 paddr, unsigned level)
{
    const struct page *p = page_at(pfn_of(paddr));
    u32 used = 0;
    u64 tables = 1;
    for (unsigned i = 0; i < (level == PT_LEVELS ? PT_ENTRIES / 2 : PT_ENTRIES); i++) {
        u64 e = table(paddr)[i];
        used += e != 0;
        if (!e)
            continue;
        if (level > 1) {
            KTEST_CHECK((e & ~(PTE_ADDRESS | PTE_ACCESSED)) == (PTE_PRESENT | PTE_WRITE | PTE_USER),
                        "level %u: 0x%lx", level, e);
            tables += check_table(t, e & PTE_ADDRESS, level - 1);
        } else {
            u64 nx = cpu_features.nx ? PTE_NX : 0;
            KTEST_CHECK((e & ~(PTE_ADDRESS | PTE_ACCESSED | PTE_DIRTY)) ==
                            (PTE_PRESENT | PTE_WRITE | PTE_USER | nx),
                        "page: 0x%lx", e);
        }
    }
    KTEST_CHECK(p->kind == PAGE_TABLE && p->refs == used, "level %u: kind %u, %u of %u entries",
                level, p->kind, p->refs, used);
    return tables;
}

static void check(struct ktest *t, u64 mapped)
{
    u64 tables = as.root ? check_table(t, as.root, PT_LEVELS) : 0;
    KTEST_CHECK(as.tables == tables && as.mapped == mapped, "%lu tables, not %lu; %lu mapped",
                as.tables, tables, as.mapped);
}

static u64 flushes, early;
static u64 path[PT_LEVELS + 1]; /* frames of the tables on the way to the page, by level */

/*
 * By the time of a flush the way to the page is cut, and the tables are there: the first flush is the
 * page's, the next that of the table of level 1, which is freed behind it, and so on.
 */
static void on_invlpg(u64 vaddr)
{
    struct pt_step steps[PT_LEVELS];
    unsigned n = paging_walk(as.root, vaddr, steps);
    early += (steps[n - 1].entry & PTE_PRESENT) != 0;
    for (u64 level = MAX(flushes, 1); level <= PT_LEVELS; level++)
        early += page_at(path[level])->kind != PAGE_TABLE;
    for (u64 level = 1; level < flushes; level++)
        early += page_at(path[level])->kind == PAGE_TABLE;
    flushes++;
}

static void on_dirty_invlpg(u64 vaddr)
{
    struct pt_step steps[PT_LEVELS];
    unsigned n = paging_walk(as.root, vaddr, steps);
    early += (steps[n - 1].entry & (PTE_PRESENT | PTE_DIRTY)) != PTE_PRESENT;
    flushes++;
}

static u64 flushes_of_unmap(struct ktest *t, u64 vaddr)
{
    struct pt_step steps[PT_LEVELS];
    bool dirty = true;
    paging_walk(as.root, vaddr, steps);
    path[PT_LEVELS] = pfn_of(as.root);
    for (unsigned i = 0; i < PT_LEVELS - 1; i++)
        path[PT_LEVELS - 1 - i] = pfn_of(steps[i].entry & PTE_ADDRESS);
    flushes = early = 0;
    machine_on_invlpg = on_invlpg;
    aspace_unmap(&as, vaddr, &dirty);
    machine_on_invlpg = NULL;
    KTEST_CHECK(!dirty && !early, "0x%lx: dirty %d, %lu faults when flushing", vaddr, dirty, early);
    return flushes;
}

static u64 begin(void)
{
    as = (struct aspace){0};
    return pages_alloc(0, PAGE_KERNEL, OWNER, 0);
}

static void end(struct ktest *t, u64 pfn)
{
    aspace_destroy(&as);
    KTEST_CHECK(!as.root && !as.tables && !as.mapped, "%lu tables", as.tables);
    KTEST_CHECK(!pages_free(pfn, 0, PAGE_KERNEL, OWNER), "frame %lu", pfn);
}

MM_TEST(tables, entries_are_counted)
{
    static const u64 at[] = {0x1000,
                             VADDR,
                             VADDR + PAGE_SIZE,
                             VADDR + 511 * PAGE_SIZE,
                             VADDR + (2ul << 20),
                             VADDR + (1ul << 30),
                             USER_END - PAGE_SIZE};
    u64 pfn = begin();
    for (u32 i = 0; i < ARRAY_SIZE(at); i++) {
        KTEST_CHECK(!aspace_map(&as, at[i], pfn), "0x%lx", at[i]);
        check(t, i + 1);
        KTEST_CHECK(aspace_map(&as, at[i], pfn) == -EEXIST, "0x%lx again", at[i]);
        check(t, i + 1);
    }
    for (u32 i = 0; i < ARRAY_SIZE(at); i++) {
        bool dirty;
        aspace_unmap(&as, at[(i * 3 + 2) % ARRAY_SIZE(at)], &dirty);
        check(t, ARRAY_SIZE(at) - 1 - i);
    }
    end(t, pfn);
}

/* The page, and once more for each table that goes. */
MM_TEST(tables, flushes)
{
    u64 pfn = begin();
    aspace_map(&as, VADDR, pfn);
    aspace_map(&as, VADDR + 2 * PAGE_SIZE, pfn);
    aspace_map(&as, VADDR + (2ul << 20), pfn);
    tlb_activate(&as);
    u64 n = flushes_of_unmap(t, VADDR);
    KTEST_CHECK(n == 1, "a page of two: %lu", n);
    n = flushes_of_unmap(t, VADDR + 2 * PAGE_SIZE);
    KTEST_CHECK(n == 2, "the last page of a table: %lu", n);
    n = flushes_of_unmap(t, VADDR + (2ul << 20));
    KTEST_CHECK(n == 4, "the last page: %lu", n);
    end(t, pfn);
    KTEST_CHECK(!this_cpu()->aspace, "the tables are still in use");
}

MM_TEST(tables, flushes_of_the_dirty_bit)
{
    u64 pfn = begin(), fault, value = 1;
    aspace_map(&as, DIRTY_AT, pfn);
    tlb_activate(&as);
    machine_on_invlpg = on_dirty_invlpg;
    flushes = early = 0;
    KTEST_CHECK(!aspace_dirty(&as, DIRTY_AT, true) && !flushes, "%lu flushes, clean", flushes);
    KTEST_CHECK(!user_copy_out(DIRTY_AT, &value, 8, &fault), "writing");
    u64 e = table(as.root)[pt_index(DIRTY_AT, 4)];
    KTEST_CHECK(aspace_dirty(&as, DIRTY_AT, false) && !flushes, "%lu flushes, asked", flushes);
    KTEST_CHECK(aspace_dirty(&as, DIRTY_AT, true) && flushes == 1, "%lu flushes, cleared", flushes);
    KTEST_CHECK(!aspace_dirty(&as, DIRTY_AT, true) && flushes == 1, "%lu flushes, clean", flushes);
    KTEST_CHECK(table(as.root)[pt_index(DIRTY_AT, 4)] == e, "the rest of the way is as it was");
    KTEST_CHECK(!early, "flushed before the bit was cleared");
    machine_on_invlpg = NULL;
    check(t, 1);
    KTEST_CHECK(!user_copy_in(&value, DIRTY_AT, 8, &fault), "still mapped");
    end(t, pfn);
}

static void unmap_nothing(void *vaddr)
{
    bool dirty;
    aspace_unmap(&as, (u64)vaddr, &dirty);
}

static void dirty_nothing(void *vaddr)
{
    aspace_dirty(&as, (u64)vaddr, false);
}

/* With a table missing at each level, and with only the page missing. */
MM_TEST(tables, what_is_not_mapped)
{
    static const u64 offsets[] = {PAGE_SIZE, 2ul << 20, 1ul << 30, 512ul << 30};
    u64 pfn = begin();
    KTEST_CHECK(machine_panics(unmap_nothing, (void *)VADDR), "without tables");
    KTEST_CHECK(machine_panics(dirty_nothing, (void *)VADDR), "without tables");
    aspace_map(&as, VADDR, pfn);
    for (u32 i = 0; i < ARRAY_SIZE(offsets); i++)
        KTEST_CHECK(machine_panics(unmap_nothing, (void *)(VADDR + offsets[i])), "unmap +0x%lx",
                    offsets[i]);
    for (u32 i = 1; i < ARRAY_SIZE(offsets); i++)
        KTEST_CHECK(machine_panics(dirty_nothing, (void *)(VADDR + offsets[i])), "dirty +0x%lx",
                    offsets[i]);
    end(t, pfn);
}

static void destroy(void *arg)
{
    (void)arg;
    aspace_destroy(&as);
}

/* A table's frame that says that it is something else. */
MM_TEST(tables, that_cannot_be_freed)
{
    u64 pfn = begin();
    aspace_map(&as, VADDR, pfn);
    page_at(pfn_of(as.root))->owner = 5;
    KTEST_CHECK(machine_panics(destroy, NULL), "a root that is not free to go");
    page_at(pfn_of(as.root))->owner = 0;
    end(t, pfn);
}

static void early_alloc(void *bytes)
{
    memmap_alloc((u64)bytes, PAGE_SIZE);
}

KTEST(tables, early_allocation_that_fails)
{
    KTEST_CHECK(machine_panics(early_alloc, (void *)(1ul << 40)), "more than there is");
    KTEST_CHECK(!machine_panics(early_alloc, (void *)PAGE_SIZE), "a page");
}

static struct pool pool;

static void free_of_no_pool(void *object)
{
    pool_free(&pool, object);
}

static void free_of_odd_page(void *object)
{
    page_at(pfn_of(direct_to_phys(object)))->owner = 1;
    pool_free(&pool, object);
}

static void free_twice(void *object)
{
    pool_free(&pool, object);
    pool_free(&pool, object);
}

/* Mirrors the start of a pool's page. */
struct pool_page {
    void *free;
    u32 used, bumped, next, prev;
};

static u32 pages_with_room(struct ktest *t, u32 capacity)
{
    u32 n = 0, before = 0;
    for (u32 pfn = pool.partial; pfn && n < 100; n++) {
        const struct pool_page *p = phys_to_virt(paddr_of(pfn));
        KTEST_CHECK(p->prev == before && p->used && p->used < capacity, "page %u: used %u", pfn,
                    p->used);
        before = pfn;
        pfn = p->next;
    }
    return n;
}

MM_TEST(pools, pages_with_room_are_linked)
{
    static void *objects[16];
    u32 capacity = (PAGE_SIZE - sizeof(struct pool_page)) / 1000;
    pool = (struct pool){.object_bytes = 1000};
    KTEST_CHECK(capacity == 4, "%u", capacity);
    for (u32 i = 0; i < 16; i++) {
        objects[i] = pool_alloc(&pool);
        KTEST_CHECK(pages_with_room(t, capacity) == (i % 4 != 3), "object %u", i);
        KTEST_CHECK(pool.pages == i / 4 + 1 && pool.live == i + 1, "object %u", i);
        KTEST_CHECK((u64)objects[i] % PAGE_SIZE == sizeof(struct pool_page) + i % 4 * 1000,
                    "object %u: %p", i, objects[i]);
    }
    for (u32 page = 0; page < 4; page++) {
        pool_free(&pool, objects[page * 4 + 1]);
        KTEST_CHECK(pages_with_room(t, capacity) == page + 1, "page %u", page);
    }
    void *again = pool_alloc(&pool); /* of the page that got room last */
    KTEST_CHECK(again == objects[13] && pages_with_room(t, capacity) == 3, "%p", again);
    pool_free(&pool, again);
    static const u32 order[] = {4, 6, 7, 0, 2, 3, 12, 14, 15, 8, 10, 11};
    for (u32 i = 0; i < ARRAY_SIZE(order); i++) {
        pool_free(&pool, objects[order[i]]);
        KTEST_CHECK(pages_with_room(t, capacity) == 4 - (i + 1) / 3, "object %u", order[i]);
        KTEST_CHECK(pool.pages == 4 - (i + 1) / 3, "object %u: %lu pages", order[i], pool.pages);
    }
    KTEST_CHECK(!pool.live && !pool.partial, "%lu live", pool.live);
}

MM_TEST(pools, wrong_frees)
{
    u64 pfn = pages_alloc(0, PAGE_KERNEL, OWNER, 0);
    u8 *page = phys_to_virt(paddr_of(pfn));
    for (u32 i = 0; i < PAGE_SIZE; i++)
        page[i] = 1;
    pool = (struct pool){.object_bytes = 64};
    void *object = pool_alloc(&pool);
    KTEST_CHECK(machine_panics(free_of_no_pool, page + 64), "a page of no pool");
    KTEST_CHECK(machine_panics(free_twice, object), "twice");
    KTEST_CHECK(machine_panics(free_of_odd_page, object), "of a page that cannot be freed");
    pool_free(&pool, object);
    KTEST_CHECK(!pages_free(pfn, 0, PAGE_KERNEL, OWNER), "frame %lu", pfn);
}
