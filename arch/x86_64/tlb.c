/* See tlb.h. */
#include "x86_64/tlb.h"
#include "x86_64/cpu.h"
#include "x86_64/lapic.h"
#include "x86_64/paging.h"
#include "x86_64/percpu.h"
#include "x86_64/trap.h"
#include "core/spinlock.h"
#include "mm/aspace.h"

static struct spinlock tlb_lock;

/* The request being served; written under tlb_lock before the generation is raised. */
static struct {
    struct aspace *aspace;
    u64 vaddr;
    bool retire;
    u64 generation;
} request;

void tlb_activate(struct aspace *as)
{
    struct cpu *cpu = this_cpu();
    if (cpu->aspace == as)
        return;
    /* The old tables leave CR3 before this CPU says so: once it has, they may be freed. */
    if (cpu->aspace)
        write_cr3(paging_kernel_root());
    /* Visible before the tables are used: a flush that misses this CPU found nothing cached. */
    __atomic_store_n(&cpu->aspace, as, __ATOMIC_SEQ_CST);
    if (as)
        write_cr3(as->root);
}

static void serve(struct cpu *cpu)
{
    if (cpu->aspace != request.aspace)
        return;
    cpu->tlb_flushes++;
    if (request.retire)
        tlb_activate(NULL);
    else
        cpu_invlpg(request.vaddr);
}

void tlb_interrupt(void)
{
    struct cpu *cpu = this_cpu();
    u64 generation = __atomic_load_n(&request.generation, __ATOMIC_ACQUIRE);
    if (cpu->tlb_generation == generation)
        return;
    serve(cpu);
    __atomic_store_n(&cpu->tlb_generation, generation, __ATOMIC_RELEASE);
}

static void shoot(struct aspace *as, u64 vaddr, bool retire)
{
    SPIN_GUARD(&tlb_lock);
    request.aspace = as;
    request.vaddr = vaddr;
    request.retire = retire;
    u64 generation = __atomic_add_fetch(&request.generation, 1, __ATOMIC_SEQ_CST);
    serve(this_cpu());
    this_cpu()->tlb_generation = generation;
    for_each_cpu(c)
        if (c != this_cpu() && __atomic_load_n(&c->aspace, __ATOMIC_SEQ_CST) == as)
            lapic_send(c->apic_id, VECTOR_TLB);
        else
            c->tlb_generation = generation;
    for_each_cpu(c)
        while (__atomic_load_n(&c->tlb_generation, __ATOMIC_ACQUIRE) != generation)
            cpu_relax();
}

void tlb_flush_page(struct aspace *as, u64 vaddr)
{
    shoot(as, vaddr, false);
}

void tlb_retire(struct aspace *as)
{
    shoot(as, 0, true);
}
