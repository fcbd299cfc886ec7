/*
 * See machine.h: the CPUs, and how they translate a client's addresses.
 *
 * Each CPU has a TLB, which holds pages and whether they were written to, and remembers the last
 * table that each of its walks went through. Nothing leaves either of them but by invlpg or a write
 * of CR3. So a flush that is missing shows as a use of what was unmapped, and a table that is freed
 * too soon as a walk through a frame that is no table.
 */
#include <string.h>
#include "x86_64/cpu.h"
#include "x86_64/lapic.h"
#include "x86_64/paging.h"
#include "x86_64/percpu.h"
#include "x86_64/smp.h"
#include "x86_64/tlb.h"
#include "x86_64/uaccess.h"
#include "core/panic.h"
#include "hosted/machine.h"
#include "mm/page.h"

#define TLB_ENTRIES 16

struct translation {
    bool valid, dirty;
    u64 vaddr, paddr;
};

static struct mmu {
    u64 cr3;
    struct translation tlb[TLB_ENTRIES];
    struct translation table; /* vaddr's 2 MiB are translated by the table at paddr */
    u32 next;                 /* TLB entry to be replaced */
} mmus[MAX_CPUS];

struct cpu cpus[MAX_CPUS];
u32 cpu_count = 1;
struct cpu *hosted_cpu = cpus;
void (*machine_on_invlpg)(u64 vaddr);

static struct mmu *mmu(void)
{
    return &mmus[this_cpu()->id];
}

u64 read_cr3(void)
{
    return mmu()->cr3;
}

void write_cr3(u64 value)
{
    *mmu() = (struct mmu){.cr3 = value};
}

void cpu_invlpg(u64 vaddr)
{
    struct mmu *m = mmu();
    if (machine_on_invlpg)
        machine_on_invlpg(vaddr);
    for (u32 i = 0; i < TLB_ENTRIES; i++)
        if (m->tlb[i].vaddr == vaddr)
            m->tlb[i].valid = false;
    m->table.valid = false;
}

void cpu_relax(void)
{
    panic("CPU %u waits for ever", this_cpu()->id);
}

void machine_switch(u32 cpu)
{
    hosted_cpu = &cpus[cpu];
}

/* An interrupt is served before the sender goes on. */
void lapic_send(u32 apic_id, u8 vector)
{
    struct cpu *sender = hosted_cpu;
    KASSERT(vector == VECTOR_TLB, "vector %u", vector);
    for_each_cpu(cpu) {
        if (cpu->apic_id != apic_id)
            continue;
        hosted_cpu = cpu;
        tlb_interrupt();
    }
    hosted_cpu = sender;
}

void smp_run_all(void (*work)(void *), void *arg)
{
    struct cpu *caller = hosted_cpu;
    for_each_cpu(cpu) {
        hosted_cpu = cpu;
        work(arg);
    }
    hosted_cpu = caller;
}

bool smp_poll_work(struct cpu *cpu)
{
    panic("CPU %u waits for its turn", cpu->id);
}

/* The table of level 1 for an address; 0 when the way there ends before. */
static u64 walk_tables(u64 vaddr)
{
    u64 table = mmu()->cr3;
    for (unsigned level = PT_LEVELS; level > 1; level--) {
        u64 *e = (u64 *)phys_to_virt(table) + pt_index(vaddr, level);
        if (~*e & (PTE_PRESENT | PTE_WRITE | PTE_USER))
            return 0;
        *e |= PTE_ACCESSED;
        table = *e & PTE_ADDRESS;
    }
    return table;
}

/* The page's entry in its table; NULL when it is not mapped. */
static u64 *walk(u64 vaddr)
{
    struct mmu *m = mmu();
    u64 area = ALIGN_DOWN(vaddr, pt_span(2));
    if (!m->table.valid || m->table.vaddr != area) {
        u64 table = walk_tables(vaddr);
        m->table = (struct translation){.valid = table != 0, .vaddr = area, .paddr = table};
    }
    if (!m->table.valid)
        return NULL;
    KASSERT(page_at(pfn_of(m->table.paddr))->kind == PAGE_TABLE, "0x%lx is a page table no more",
            m->table.paddr);
    u64 *e = (u64 *)phys_to_virt(m->table.paddr) + pt_index(vaddr, 1);
    return ~*e & (PTE_PRESENT | PTE_WRITE | PTE_USER) ? NULL : e;
}

static struct translation *tlb_fill(u64 page)
{
    struct mmu *m = mmu();
    u64 *e = walk(page);
    if (!e)
        return NULL;
    *e |= PTE_ACCESSED;
    struct translation *t = &m->tlb[m->next++ % TLB_ENTRIES];
    *t = (struct translation){.valid = true, .vaddr = page, .paddr = *e & PTE_ADDRESS};
    return t;
}

static struct translation *tlb_find(u64 page)
{
    struct mmu *m = mmu();
    for (u32 i = 0; i < TLB_ENTRIES; i++)
        if (m->tlb[i].valid && m->tlb[i].vaddr == page)
            return &m->tlb[i];
    return NULL;
}

/* Where a client's page is; NULL: a page fault. The first write through an entry sets its bit. */
static u8 *translate(u64 page, bool write)
{
    struct translation *t = tlb_find(page);
    if (!t)
        t = tlb_fill(page);
    if (t && write && !t->dirty) {
        u64 *e = walk(page);
        if (!e)
            return NULL;
        *e |= PTE_DIRTY;
        t->dirty = true;
    }
    return t ? phys_to_virt(t->paddr) : NULL;
}

static size_t user_copy(void *kernel, u64 user, size_t n, bool write, u64 *fault)
{
    for (size_t done = 0; done < n;) {
        u64 at = user + done, offset = at % PAGE_SIZE;
        u8 *page = at < USER_END ? translate(at - offset, write) : NULL;
        if (!page) {
            *fault = at;
            return n - done;
        }
        size_t part = MIN(n - done, PAGE_SIZE - offset);
        if (write)
            memcpy(page + offset, (u8 *)kernel + done, part);
        else
            memcpy((u8 *)kernel + done, page + offset, part);
        done += part;
    }
    return 0;
}

size_t user_copy_in(void *dst, u64 user_src, size_t n, u64 *fault)
{
    return user_copy(dst, user_src, n, false, fault);
}

size_t user_copy_out(u64 user_dst, const void *src, size_t n, u64 *fault)
{
    return user_copy((void *)src, user_dst, n, true, fault);
}
