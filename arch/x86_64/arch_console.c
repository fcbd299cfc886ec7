/* Console commands that show the hardware's side: CPUs and page tables; and reboot. */
#include "console/command.h"
#include "core/spinlock.h"
#include "lib/printf.h"
#include "rpc/client.h"
#include "rpc/frame.h"
#include "x86_64/cpu.h"
#include "x86_64/paging.h"
#include "x86_64/percpu.h"

/* ---- cpus ---- */

static void print_counters(void)
{
    cprintf("CPU  APIC  state         calls  interrupts      sleeps   IPIs sent  TLB flushes\n");
    for_each_cpu(c)
        cprintf("%3u  %4u  %-7s  %10lu  %10lu  %10lu  %10lu  %11lu\n", c->id, c->apic_id,
                READ_ONCE(c->asleep) ? "asleep" : "running", c->calls, c->interrupts, c->sleeps,
                c->wakeups_sent, c->tlb_flushes);
}

static void print_memory(void)
{
    char fill[16];
    cprintf("CPU  stack                                      blocks in magazines / limit\n"
            "                                       order      0      1      2      3      9\n");
    for_each_cpu(c) {
        cprintf("%3u  0x%016lx-0x%016lx", c->id, c->stack_low, c->stack_top - 1);
        for (unsigned i = 0; i < PCP_MAGAZINES; i++) {
            const struct magazine *m = &c->pcp.magazine[i];
            format(fill, sizeof(fill), "%u/%u", READ_ONCE(m->count), m->limit);
            cprintf("%7s", fill);
        }
        cprintf("\n");
    }
}

COMMAND(cpus, "", "the CPUs: counters, stacks, magazines")
{
    if (command_extra(argc, argv, 0))
        return true;
    print_counters();
    cprintf("\n");
    print_memory();
    return true;
}

/* ---- pt ---- */

/* The bits above the tables' reach must repeat the highest one below. */
static bool is_canonical(u64 vaddr)
{
    return vaddr < USER_END || vaddr >= DIRECT_MAP;
}

/* The steps through a client's tables, or the kernel's when there is no client; 0: no tables. */
static unsigned walk(struct client *client, u64 vaddr, struct pt_step steps[PT_LEVELS])
{
    if (!client)
        return paging_walk(paging_kernel_root(), vaddr, steps);
    struct aspace *as = &client->owner.aspace;
    SPIN_GUARD(&as->lock);
    return as->root ? paging_walk(as->root, vaddr, steps) : 0;
}

static void print_steps(const struct pt_step *steps, unsigned n)
{
    char text[80];
    for (unsigned i = 0; i < n; i++) {
        paging_describe_entry(text, sizeof(text), &steps[i]);
        cprintf("  level %u  [%3u]  %s\n", steps[i].level, steps[i].index, text);
    }
}

/* What all levels together allow, and the address that comes out. */
static void print_translation(u64 vaddr, const struct pt_step *steps, unsigned n)
{
    u64 every = UINT64_MAX, any = 0;
    for (unsigned i = 0; i < n; i++) {
        every &= steps[i].entry;
        any |= steps[i].entry;
    }
    if (!n || !(every & PTE_PRESENT)) {
        cprintf("not mapped\n");
        return;
    }
    u64 offset = pt_span(steps[n - 1].level) - 1;
    u64 paddr = (steps[n - 1].entry & PTE_ADDRESS & ~offset) | (vaddr & offset);
    cprintf("physical address 0x%lx, r%c%c%c\n", paddr, every & PTE_WRITE ? 'w' : '-',
            any & PTE_NX ? '-' : 'x', every & PTE_USER ? 'u' : 'k');
}

COMMAND(pt, "<addr> [client]", "the page-table walk for a virtual address")
{
    struct pt_step steps[PT_LEVELS];
    struct client *client = NULL;
    u64 vaddr, id;
    if (argc < 2)
        return false;
    if (command_extra(argc, argv, 2) ||
        !command_number(argv[1], "an address", 0, UINT64_MAX, &vaddr))
        return true;
    if (!is_canonical(vaddr))
        return command_expected(argv[1], "a canonical address: bits 47 to 63 all the same");
    if (argc > 2) {
        if (!command_number(argv[2], "the id of a client", 1, MAX_CLIENTS - 1, &id))
            return true;
        client = client_get(id);
        if (!client)
            return command_expected(argv[2], "the id of an open client; 'clients' lists them");
    }
    unsigned n = walk(client, vaddr, steps);
    if (!n)
        cprintf("client %s has no page tables yet\n", argv[2]);
    print_steps(steps, n);
    print_translation(vaddr, steps, n);
    return true;
}

/* ---- reboot ---- */

/* A trap that finds no handlers, nor one for that: the CPU gives up and the machine resets. */
static _Noreturn void reset(void)
{
    static const struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) no_handlers;
    cpu_irq_disable();
    __asm__ volatile("lidt %0; int3" : : "m"(no_handlers));
    cpu_stop();
}

COMMAND(reboot, "", "starts the machine anew")
{
    if (command_extra(argc, argv, 0))
        return true;
    cprintf("rebooting\n");
    frame_send_bye();
    reset();
}
