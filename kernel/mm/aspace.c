/* See aspace.h. */
#include "mm/aspace.h"
#include "x86_64/paging.h"
#include "x86_64/tlb.h"
#include "core/panic.h"
#include "lib/errno.h"
#include "lib/string.h"
#include "mm/pages.h"

static u64 *table_at(u64 paddr)
{
    return phys_to_virt(paddr);
}

static u64 table_new(struct aspace *as)
{
    u64 pfn = pages_alloc(0, PAGE_TABLE, 0, PAGES_RESERVE);
    if (!pfn)
        return 0;
    page_at(pfn)->refs = 0;
    memset(table_at(paddr_of(pfn)), 0, PAGE_SIZE);
    as->tables++;
    return paddr_of(pfn);
}

static void table_free(struct aspace *as, u64 paddr)
{
    page_at(pfn_of(paddr))->refs = 1; /* the head that pages_free expects */
    int err = pages_free(pfn_of(paddr), 0, PAGE_TABLE, 0);
    KASSERT(!err, "page table 0x%lx: error %d", paddr, err);
    as->tables--;
}

static bool root_ensure(struct aspace *as)
{
    if (as->root)
        return true;
    u64 root = table_new(as);
    if (!root)
        return false;
    memcpy(table_at(root) + PT_ENTRIES / 2, table_at(paging_kernel_root()) + PT_ENTRIES / 2,
           PAGE_SIZE / 2);
    /* Other CPUs look without the lock, and put it into CR3. */
    __atomic_store_n(&as->root, root, __ATOMIC_RELEASE);
    return true;
}

/* The tables on the way to vaddr: path[l] is the one of level l; false when one is missing. */
static bool path_find(const struct aspace *as, u64 vaddr, u64 path[PT_LEVELS + 1])
{
    path[PT_LEVELS] = as->root;
    for (unsigned level = PT_LEVELS; level > 1; level--) {
        u64 e = path[level] ? table_at(path[level])[pt_index(vaddr, level)] : 0;
        if (!(e & PTE_PRESENT))
            return false;
        path[level - 1] = e & PTE_ADDRESS;
    }
    return true;
}

/*
 * Frees the table of a level if it is empty, and those above that thereby become empty (the root
 * stays). Each is taken out of the one above, then out of the walkers' caches, and only then freed.
 */
static void tables_drop(struct aspace *as, u64 vaddr, const u64 path[PT_LEVELS + 1], unsigned level)
{
    while (level < PT_LEVELS && !page_at(pfn_of(path[level]))->refs) {
        u64 empty = path[level++];
        WRITE_ONCE(table_at(path[level])[pt_index(vaddr, level)], 0);
        page_at(pfn_of(path[level]))->refs--;
        tlb_flush_page(as, vaddr);
        table_free(as, empty);
    }
}

/* Makes the missing tables; on failure those that were made are gone again. */
static int path_make(struct aspace *as, u64 vaddr, u64 path[PT_LEVELS + 1])
{
    if (!root_ensure(as))
        return -ENOMEM;
    path[PT_LEVELS] = as->root;
    for (unsigned level = PT_LEVELS; level > 1; level--) {
        u64 *e = &table_at(path[level])[pt_index(vaddr, level)];
        if (!(*e & PTE_PRESENT)) {
            u64 table = table_new(as);
            if (!table) {
                tables_drop(as, vaddr, path, level);
                return -ENOMEM;
            }
            WRITE_ONCE(*e, table | PTE_PRESENT | PTE_WRITE | PTE_USER);
            page_at(pfn_of(path[level]))->refs++;
        }
        path[level - 1] = *e & PTE_ADDRESS;
    }
    return 0;
}

int aspace_map(struct aspace *as, u64 vaddr, u64 pfn)
{
    u64 path[PT_LEVELS + 1];
    if (vaddr % PAGE_SIZE || vaddr < ASPACE_LOWEST || vaddr >= USER_END)
        return -EINVAL;
    SPIN_GUARD(&as->lock);
    int err = path_make(as, vaddr, path);
    if (err)
        return err;
    u64 *e = &table_at(path[1])[pt_index(vaddr, 1)];
    if (*e & PTE_PRESENT)
        return -EEXIST;
    WRITE_ONCE(*e,
               paddr_of(pfn) | PTE_PRESENT | PTE_WRITE | PTE_USER | (cpu_features.nx ? PTE_NX : 0));
    page_at(pfn_of(path[1]))->refs++;
    as->mapped++;
    return 0;
}

void aspace_unmap(struct aspace *as, u64 vaddr, bool *dirty)
{
    u64 path[PT_LEVELS + 1];
    SPIN_GUARD(&as->lock);
    KASSERT(path_find(as, vaddr, path), "0x%lx is not mapped", vaddr);
    u64 *e = &table_at(path[1])[pt_index(vaddr, 1)];
    u64 old = __atomic_exchange_n(e, 0, __ATOMIC_SEQ_CST);
    KASSERT(old & PTE_PRESENT, "0x%lx is not mapped", vaddr);
    tlb_flush_page(as, vaddr);
    *dirty = old & PTE_DIRTY;
    page_at(pfn_of(path[1]))->refs--;
    tables_drop(as, vaddr, path, 1);
    as->mapped--;
}

bool aspace_dirty(struct aspace *as, u64 vaddr, bool clear)
{
    u64 path[PT_LEVELS + 1];
    SPIN_GUARD(&as->lock);
    KASSERT(path_find(as, vaddr, path), "0x%lx is not mapped", vaddr);
    u64 *e = &table_at(path[1])[pt_index(vaddr, 1)];
    bool dirty = READ_ONCE(*e) & PTE_DIRTY;
    if (dirty && clear) {
        __atomic_and_fetch(e, ~PTE_DIRTY, __ATOMIC_SEQ_CST);
        tlb_flush_page(as, vaddr);
    }
    return dirty;
}

static void subtree_free(struct aspace *as, u64 table, unsigned level)
{
    unsigned entries = level == PT_LEVELS ? PT_ENTRIES / 2 : PT_ENTRIES;
    for (unsigned i = 0; level > 1 && i < entries; i++) {
        u64 e = table_at(table)[i];
        if (e & PTE_PRESENT)
            subtree_free(as, e & PTE_ADDRESS, level - 1);
    }
    table_free(as, table);
}

void aspace_destroy(struct aspace *as)
{
    if (!as->root)
        return;
    tlb_retire(as);
    SPIN_GUARD(&as->lock);
    subtree_free(as, as->root, PT_LEVELS);
    as->root = 0;
    as->mapped = 0;
}
