/*
 * See smp.h. The others are started one after another: each takes its stack and its struct cpu from
 * the ap_boot_* words, says that it is online, and the next follows. There are no fixed delays; a CPU
 * that does not come within the timer's few seconds is left out with a line in the log.
 */
#include "x86_64/smp.h"
#include "x86_64/cpu.h"
#include "x86_64/lapic.h"
#include "x86_64/paging.h"
#include "x86_64/trap.h"
#include "core/loop.h"
#include "core/panic.h"
#include "core/printk.h"
#include "core/spinlock.h"
#include "lib/string.h"
#include "mm/memmap.h"

#define START_TIMEOUT_TICKS 0xf0000000u

struct cpu cpus[MAX_CPUS];
u32 cpu_count = 1;

extern const u8 ap_trampoline[], ap_trampoline_end[];
extern u64 ap_boot_cr3, ap_boot_stack, ap_boot_cpu, ap_boot_efer_nx;

static void cpu_load(struct cpu *cpu)
{
    desc_load(&cpu->desc);
    wrmsr(MSR_GS_BASE, (u64)cpu);
    trap_load();
}

static void cpu_prepare(struct cpu *cpu, u32 id)
{
    cpu->self = cpu;
    cpu->id = id;
    cpu->stack_top = paging_map_stack(KSTACK_BYTES);
    cpu->stack_low = cpu->stack_top - KSTACK_BYTES;
    for (int i = 0; i < IST_COUNT; i++)
        cpu->desc.tss.ist[i] = paging_map_stack(ISTACK_BYTES);
}

_Noreturn void smp_boot_cpu(void (*next)(void))
{
    struct cpu *cpu = &cpus[0];
    cpu_prepare(cpu, 0);
    cpu_load(cpu);
    cpu->online = true;
    __asm__ volatile("mov %0, %%rsp\n xor %%ebp, %%ebp\n call *%1\n ud2"
                     :
                     : "r"(cpu->stack_top), "r"(next)
                     : "memory");
    __builtin_unreachable();
}

_Noreturn void smp_ap_main(struct cpu *cpu)
{
    cpu_features_enable();
    cpu_load(cpu);
    lapic_enable();
    __atomic_store_n(&cpu->online, true, __ATOMIC_RELEASE);
    lapic_send(cpus[0].apic_id, VECTOR_WAKE);
    loop_run(cpu);
}

static bool wait_online(struct cpu *cpu)
{
    u64 expired = cpus[0].timer_interrupts + 1;
    lapic_timer_once(START_TIMEOUT_TICKS);
    cpu_irq_disable();
    while (!__atomic_load_n(&cpu->online, __ATOMIC_ACQUIRE) &&
           READ_ONCE(cpus[0].timer_interrupts) < expired) {
        cpu_irq_enable_halt();
        cpu_irq_disable();
    }
    cpu_irq_enable();
    lapic_timer_once(0);
    return cpu->online;
}

static bool start_one(struct cpu *cpu, u32 apic_id, u64 trampoline)
{
    cpu->apic_id = apic_id;
    ap_boot_stack = cpu->stack_top;
    ap_boot_cpu = (u64)cpu;
    lapic_send_init(apic_id);
    lapic_send_startup(apic_id, (u8)(trampoline >> PAGE_SHIFT));
    if (wait_online(cpu))
        return true;
    lapic_send_init(apic_id); /* should it come late, it finds no stack that is another's */
    return false;
}

void smp_start_others(const struct acpi_machine *m, u32 max)
{
    u64 trampoline = memmap_low_page();
    cpus[0].apic_id = lapic_id();
    if (m->cpus < 2 || max < 2)
        return;
    if (!trampoline) {
        printk("smp: no free page below 1 MiB to start the other CPUs from\n");
        return;
    }
    memcpy(phys_to_virt(trampoline), ap_trampoline, (size_t)(ap_trampoline_end - ap_trampoline));
    ap_boot_cr3 = paging_kernel_root();
    ap_boot_efer_nx = cpu_features.nx;
    for (u32 i = 0; i < m->cpus && cpu_count < max; i++) {
        if (m->apic_ids[i] == cpus[0].apic_id)
            continue;
        struct cpu *cpu = &cpus[cpu_count];
        cpu_prepare(cpu, cpu_count);
        if (start_one(cpu, m->apic_ids[i], trampoline))
            WRITE_ONCE(cpu_count, cpu_count + 1);
        else
            printk("smp: the CPU with APIC id %u did not start and is left out\n", m->apic_ids[i]);
    }
}

void smp_wake(struct cpu *cpu)
{
    if (__atomic_load_n(&cpu->asleep, __ATOMIC_SEQ_CST)) {
        this_cpu()->wakeups_sent++;
        lapic_send(cpu->apic_id, VECTOR_WAKE);
    }
}

bool smp_poll_work(struct cpu *cpu)
{
    void (*work)(void *) = __atomic_load_n(&cpu->work, __ATOMIC_ACQUIRE);
    if (!work)
        return false;
    work(cpu->work_arg);
    __atomic_store_n(&cpu->work, NULL, __ATOMIC_RELEASE);
    return true;
}

void smp_run_all(void (*work)(void *), void *arg)
{
    static struct spinlock run_lock;
    while (!spin_try(&run_lock))
        smp_poll_work(this_cpu()); /* who holds it may be waiting for this CPU */
    for_each_cpu(c) {
        if (c == this_cpu())
            continue;
        c->work_arg = arg;
        __atomic_store_n(&c->work, work, __ATOMIC_SEQ_CST);
        smp_wake(c);
    }
    work(arg);
    for_each_cpu(c)
        while (c != this_cpu() && __atomic_load_n(&c->work, __ATOMIC_ACQUIRE))
            cpu_relax();
    spin_unlock(&run_lock);
}
