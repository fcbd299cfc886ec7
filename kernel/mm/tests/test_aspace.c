/*
 * Address spaces: what the tables hold, that they come and go with the mappings, and that no CPU
 * keeps a translation of what was unmapped.
 */
#include "mm/aspace.h"
#include "x86_64/paging.h"
#include "x86_64/smp.h"
#include "x86_64/tlb.h"
#include "x86_64/uaccess.h"
#include "lib/errno.h"
#include "mm/pages.h"
#include "mm/tests/mmtest.h"

#define VADDR 0x7000000000ul

static struct aspace as;

static u64 frame_new(struct ktest *t)
{
    u64 pfn = pages_alloc(0, PAGE_KERNEL, MMTEST_OWNER, 0);
    KTEST_CHECK(pfn, "out of memory");
    as = (struct aspace){0};
    return pfn;
}

static void frame_end(struct ktest *t, u64 pfn)
{
    aspace_destroy(&as);
    KTEST_CHECK(!as.root && !as.tables && !as.mapped, "%lu tables, %lu mapped", as.tables,
                as.mapped);
    KTEST_CHECK(!pages_free(pfn, 0, PAGE_KERNEL, MMTEST_OWNER), "frame %lu", pfn);
}

static void check_tables(struct ktest *t, const char *what, u64 tables, u64 mapped)
{
    KTEST_CHECK(as.tables == tables && as.mapped == mapped, "%s: %lu tables, %lu mapped", what,
                as.tables, as.mapped);
}

static void check_walk(struct ktest *t, u64 vaddr, u64 pfn)
{
    struct pt_step steps[PT_LEVELS];
    unsigned n = paging_walk(as.root, vaddr, steps);
    KTEST_CHECK(n == PT_LEVELS, "%u steps to 0x%lx", n, vaddr);
    const u64 path = PTE_PRESENT | PTE_WRITE | PTE_USER;
    for (unsigned i = 0; i < n; i++) {
        u64 e = steps[i].entry, at = pfn_of(e & PTE_ADDRESS);
        KTEST_CHECK((e & path) == path && !(e & (PTE_LARGE | PTE_GLOBAL)), "step %u: 0x%lx", i, e);
        if (i + 1 < PT_LEVELS)
            KTEST_CHECK(page_at(at)->kind == PAGE_TABLE && page_at(at)->refs, "step %u: 0x%lx", i,
                        e);
    }
    u64 leaf = steps[n - 1].entry;
    KTEST_CHECK((leaf & PTE_ADDRESS) == paddr_of(pfn), "0x%lx", leaf);
    KTEST_CHECK(!cpu_features.nx == !(leaf & PTE_NX), "0x%lx: execution", leaf);
    KTEST_CHECK(!(leaf & (PTE_DIRTY | PTE_ACCESSED)), "0x%lx: used before it was", leaf);
}

static void map(struct ktest *t, u64 vaddr, u64 pfn)
{
    int err = aspace_map(&as, vaddr, pfn);
    KTEST_CHECK(!err, "0x%lx: %d", vaddr, err);
    if (!err)
        check_walk(t, vaddr, pfn);
}

static void unmap(struct ktest *t, u64 vaddr, bool expect_dirty)
{
    struct pt_step steps[PT_LEVELS];
    bool dirty = !expect_dirty;
    aspace_unmap(&as, vaddr, &dirty);
    KTEST_CHECK(dirty == expect_dirty, "0x%lx: dirty is %d", vaddr, dirty);
    unsigned n = paging_walk(as.root, vaddr, steps);
    KTEST_CHECK(!(steps[n - 1].entry & PTE_PRESENT), "0x%lx is still mapped", vaddr);
}

MM_TEST(aspace, tables_come_and_go)
{
    static const struct {
        u64 vaddr, tables;
    } steps[] = {
        {VADDR, 4},
        {VADDR + PAGE_SIZE, 4},
        {VADDR + 511 * PAGE_SIZE, 4},
        {VADDR + (2ul << 20), 5},
        {VADDR + (1ul << 30), 7},
        {VADDR + (512ul << 30), 10},
        {0x1000, 12},
        {USER_END - PAGE_SIZE, 15},
    };
    u64 pfn = frame_new(t);
    for (u32 i = 0; pfn && i < ARRAY_SIZE(steps); i++) {
        map(t, steps[i].vaddr, pfn);
        check_tables(t, "mapping", steps[i].tables, i + 1);
    }
    for (u32 i = ARRAY_SIZE(steps); pfn && i-- > 0;) {
        unmap(t, steps[i].vaddr, false);
        check_tables(t, "unmapping", i ? steps[i - 1].tables : 1, i);
    }
    frame_end(t, pfn);
}

/* Entries are counted, not guessed from the last one: unmap in another order. */
MM_TEST(aspace, tables_stay_while_in_use)
{
    u64 pfn = frame_new(t);
    map(t, VADDR, pfn);
    map(t, VADDR + PAGE_SIZE, pfn);
    map(t, VADDR + (2ul << 20), pfn);
    unmap(t, VADDR, false);
    check_tables(t, "first", 5, 2);
    KTEST_CHECK(aspace_map(&as, VADDR + PAGE_SIZE, pfn) == -EEXIST, "the second is there");
    unmap(t, VADDR + (2ul << 20), false);
    check_tables(t, "third", 4, 1);
    unmap(t, VADDR + PAGE_SIZE, false);
    check_tables(t, "second", 1, 0);
    frame_end(t, pfn);
}

MM_TEST(aspace, bad_addresses)
{
    static const u64 bad[] = {0,          1,         0x800,        0xfff,
                              0x1001,     VADDR + 8, USER_END - 1, USER_END,
                              1ul << 63,  VMEMMAP,   DIRECT_MAP,   0xfffffffffffff000,
                              KERNEL_BASE};
    u64 pfn = frame_new(t);
    for (u32 i = 0; i < ARRAY_SIZE(bad); i++) {
        int err = aspace_map(&as, bad[i], pfn);
        KTEST_CHECK(err == -EINVAL, "0x%lx: %d", bad[i], err);
    }
    check_tables(t, "bad addresses", 0, 0);
    frame_end(t, pfn);
}

MM_TEST(aspace, an_occupied_address)
{
    u64 pfn = frame_new(t), free;
    map(t, VADDR, pfn);
    free = pages_free_count();
    int err = aspace_map(&as, VADDR, pfn + 1);
    KTEST_CHECK(err == -EEXIST, "%d", err);
    KTEST_CHECK(pages_free_count() == free, "%lu free, %lu before", pages_free_count(), free);
    check_tables(t, "again", 4, 1);
    check_walk(t, VADDR, pfn);
    unmap(t, VADDR, false);
    check_tables(t, "unmapped", 1, 0);
    frame_end(t, pfn);
}

MM_TEST(aspace, upper_half_is_the_kernels)
{
    u64 pfn = frame_new(t);
    map(t, VADDR, pfn);
    const u64 *root = phys_to_virt(as.root), *kernel = phys_to_virt(paging_kernel_root());
    for (unsigned i = 0; i < PT_ENTRIES; i++) {
        if (i >= PT_ENTRIES / 2)
            KTEST_CHECK(root[i] == kernel[i], "entry %u: 0x%lx, the kernel's is 0x%lx", i, root[i],
                        kernel[i]);
        else
            KTEST_CHECK(!root[i] == (i != pt_index(VADDR, 4)), "entry %u: 0x%lx", i, root[i]);
    }
    frame_end(t, pfn); /* with the mapping still there */
}

/* Leaves n free frames in the machine; the tables that are missing need `needed`. */
static void map_with_left(struct ktest *t, u64 vaddr, u32 n, u32 needed, u64 pfn)
{
    u64 spare[4], tables = as.tables, mapped = as.mapped;
    struct chain all = {0};
    for (u32 i = 0; i < 4; i++)
        spare[i] = pages_alloc(0, PAGE_KERNEL, MMTEST_OWNER, 0);
    chain_fill(&all, PAGES_RESERVE);
    for (u32 i = 0; i < n; i++)
        pages_free(spare[i], 0, PAGE_KERNEL, MMTEST_OWNER);
    int err = aspace_map(&as, vaddr, pfn);
    KTEST_CHECK(err == (n < needed ? -ENOMEM : 0), "%u of %u frames: %d", n, needed, err);
    KTEST_CHECK(as.mapped == mapped + !err, "%u of %u frames: %lu mapped", n, needed, as.mapped);
    /* A new root may stay, as it does when the last page is unmapped. */
    u64 rest = tables ? tables : MIN(n, 1u);
    KTEST_CHECK(as.tables == (err ? rest : tables + needed), "%u of %u frames: %lu tables", n,
                needed, as.tables);
    KTEST_CHECK(pages_free_count() == n - (as.tables - tables), "%u of %u frames: %lu free", n,
                needed, pages_free_count());
    if (!err)
        unmap(t, vaddr, false);
    KTEST_CHECK(!chain_free(&all), "giving back");
    for (u32 i = n; i < 4; i++)
        pages_free(spare[i], 0, PAGE_KERNEL, MMTEST_OWNER);
}

MM_TEST(aspace, tables_without_memory)
{
    u64 pfn = frame_new(t);
    for (u32 n = 0; n <= 4; n++) {
        map_with_left(t, VADDR, n, 4, pfn);
        aspace_destroy(&as);
    }
    map(t, VADDR, pfn);
    for (u32 n = 0; n <= 3; n++) {
        map_with_left(t, VADDR + (2ul << 20), MIN(n, 1u), 1, pfn);
        map_with_left(t, VADDR + (1ul << 30), MIN(n, 2u), 2, pfn);
        map_with_left(t, VADDR + (512ul << 30), n, 3, pfn);
        check_tables(t, "the neighbour", 4, 1);
        check_walk(t, VADDR, pfn);
    }
    frame_end(t, pfn);
}

MM_TEST(aspace, dirty)
{
    u64 fault, value = 5, pfn = frame_new(t);
    map(t, VADDR, pfn);
    tlb_activate(&as);
    KTEST_CHECK(!aspace_dirty(&as, VADDR, false), "before any use");
    KTEST_CHECK(!user_copy_in(&value, VADDR, 8, &fault) && !aspace_dirty(&as, VADDR, false),
                "after reading");
    KTEST_CHECK(!user_copy_out(VADDR, &value, 8, &fault), "0x%lx", fault);
    KTEST_CHECK(aspace_dirty(&as, VADDR, false) && aspace_dirty(&as, VADDR, true), "after writing");
    KTEST_CHECK(!aspace_dirty(&as, VADDR, true), "after clearing");
    KTEST_CHECK(!user_copy_out(VADDR, &value, 8, &fault), "0x%lx", fault);
    unmap(t, VADDR, true);
    map(t, VADDR, pfn);
    unmap(t, VADDR, false);
    frame_end(t, pfn);
}

/* What every CPU does at the same time, and what it found. */
static struct {
    u64 vaddr, value[MAX_CPUS], left[MAX_CPUS], fault[MAX_CPUS];
} visit;

static void visit_cpu(void *arg)
{
    u32 id = this_cpu()->id;
    (void)arg;
    tlb_activate(&as);
    visit.value[id] = visit.fault[id] = 0;
    visit.left[id] = user_copy_in(&visit.value[id], visit.vaddr, 8, &visit.fault[id]);
}

static void check_visits(struct ktest *t, const char *what, u64 left, u64 value)
{
    smp_run_all(visit_cpu, NULL);
    for_each_cpu(cpu) {
        u32 i = cpu->id;
        KTEST_CHECK(visit.left[i] == left && visit.value[i] == value,
                    "%s: CPU %u: %lu bytes left, value 0x%lx", what, i, visit.left[i],
                    visit.value[i]);
        KTEST_CHECK(!left || visit.fault[i] == visit.vaddr, "%s: CPU %u: fault at 0x%lx", what, i,
                    visit.fault[i]);
    }
}

/* With a neighbour the table stays when the page goes; without one it goes too. */
static void check_unmapped(struct ktest *t, u64 a, u64 b, bool neighbour)
{
    if (neighbour)
        map(t, VADDR + PAGE_SIZE, b);
    for (int round = 0; round < 3; round++) {
        map(t, VADDR, a);
        check_visits(t, "mapped", 0, 0xaaaa);
        unmap(t, VADDR, false);
        check_visits(t, "unmapped", 8, 0);
        map(t, VADDR, b);
        check_visits(t, "another frame", 0, 0xbbbb);
        unmap(t, VADDR, false);
        map(t, VADDR, a);
        check_visits(t, "replaced at once", 0, 0xaaaa);
        unmap(t, VADDR, false);
    }
    if (neighbour)
        unmap(t, VADDR + PAGE_SIZE, false);
}

MM_TEST(aspace, unmapped_on_every_cpu)
{
    u64 a = frame_new(t), b = pages_alloc(0, PAGE_KERNEL, MMTEST_OWNER, 0);
    *(u64 *)phys_to_virt(paddr_of(a)) = 0xaaaa;
    *(u64 *)phys_to_virt(paddr_of(b)) = 0xbbbb;
    visit.vaddr = VADDR;
    check_unmapped(t, a, b, false);
    check_unmapped(t, a, b, true);
    KTEST_CHECK(!pages_free(b, 0, PAGE_KERNEL, MMTEST_OWNER), "frame %lu", b);
    frame_end(t, a);
    for_each_cpu(cpu)
        KTEST_CHECK(cpu->aspace != &as, "CPU %u still has the tables", cpu->id);
}

MM_TEST(aspace, destroyed_on_every_cpu)
{
    u64 pfn = frame_new(t);
    *(u64 *)phys_to_virt(paddr_of(pfn)) = 0xcccc;
    visit.vaddr = VADDR;
    for (int round = 0; round < 3; round++) {
        map(t, VADDR, pfn);
        check_visits(t, "mapped", 0, 0xcccc);
        aspace_destroy(&as);
        check_tables(t, "destroyed", 0, 0);
        for_each_cpu(cpu)
            KTEST_CHECK(!cpu->aspace, "CPU %u still has the tables", cpu->id);
        /* The kernel's own tables: nothing is there. */
        u64 fault = 0, value;
        KTEST_CHECK(user_copy_in(&value, VADDR, 8, &fault) == 8 && fault == VADDR, "0x%lx", fault);
    }
    frame_end(t, pfn);
}

static void write_cpu(void *arg)
{
    u64 fault, value = 1;
    u32 id = this_cpu()->id, only = *(const u32 *)arg;
    tlb_activate(&as);
    visit.left[id] = 0;
    if (only == MAX_CPUS || only == id)
        visit.left[id] = user_copy_out(VADDR + 8 * id, &value, 8, &fault);
}

/* One CPU writes, or all of them with MAX_CPUS. */
static void check_written(struct ktest *t, u32 only)
{
    smp_run_all(write_cpu, &only);
    for_each_cpu(cpu)
        KTEST_CHECK(!visit.left[cpu->id], "CPU %u: %lu bytes left", cpu->id, visit.left[cpu->id]);
    KTEST_CHECK(aspace_dirty(&as, VADDR, true), "not dirty by writing on CPU %u", only);
    KTEST_CHECK(!aspace_dirty(&as, VADDR, false), "still dirty after CPU %u", only);
}

/* A CPU that has written before has "dirty" in its TLB: clearing must reach it, or it is not set. */
MM_TEST(aspace, dirty_is_cleared_on_every_cpu)
{
    u64 pfn = frame_new(t);
    map(t, VADDR, pfn);
    for_each_cpu(cpu) {
        check_written(t, MAX_CPUS);
        check_written(t, cpu->id);
    }
    unmap(t, VADDR, false);
    frame_end(t, pfn);
}

MM_TEST(aspace, copies_stop_at_the_fault)
{
    static u8 buffer[2 * PAGE_SIZE];
    u64 fault = 0, pfn = frame_new(t), kernel = DIRECT_MAP + PAGE_SIZE;
    map(t, VADDR, pfn);
    map(t, USER_END - PAGE_SIZE, pfn);
    tlb_activate(&as);
    size_t left = user_copy_in(buffer, VADDR + 100, sizeof(buffer), &fault);
    KTEST_CHECK(left == PAGE_SIZE + 100 && fault == VADDR + PAGE_SIZE, "%lu left, fault at 0x%lx",
                left, fault);
    left = user_copy_out(VADDR - 8, buffer, 16, &fault);
    KTEST_CHECK(left == 16 && fault == VADDR - 8, "%lu left, fault at 0x%lx", left, fault);
    left = user_copy_in(buffer, USER_END - 8, 16, &fault);
    KTEST_CHECK(left == 8 && fault == USER_END, "%lu left, fault at 0x%lx", left, fault);
    left = user_copy_in(buffer, kernel, 8, &fault);
    KTEST_CHECK(left == 8 && fault == kernel, "%lu left, fault at 0x%lx", left, fault);
    left = user_copy_out(UINT64_MAX - 3, buffer, 8, &fault);
    KTEST_CHECK(left == 8 && fault == UINT64_MAX - 3, "%lu left, fault at 0x%lx", left, fault);
    left = user_copy_in(buffer, 1ul << 63, 8, &fault); /* not canonical */
    KTEST_CHECK(left == 8 && fault == 1ul << 63, "%lu left, fault at 0x%lx", left, fault);
    KTEST_CHECK(!user_copy_in(buffer, kernel, 0, &fault), "nothing");
    frame_end(t, pfn);
}
