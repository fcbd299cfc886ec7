/*
 * From the entry stub to the loop. The order matters: each step uses only what stands above it.
 */
#include "x86_64/acpi.h"
#include "x86_64/cpu.h"
#include "x86_64/lapic.h"
#include "x86_64/paging.h"
#include "x86_64/pvh.h"
#include "x86_64/smp.h"
#include "x86_64/trap.h"
#include "console/console.h"
#include "core/cmdline.h"
#include "core/loop.h"
#include "core/printk.h"
#include "drivers/uart.h"
#include "mm/memmap.h"
#include "mm/page.h"
#include "mm/pages.h"
#include "mm/pcp.h"
#include "mm/zone.h"
#include "rpc/client.h"
#include "rpc/frame.h"

extern u8 kernel_start[], kernel_end[];
void kernel_main(u64 start_info);

static struct acpi_machine machine;

static void interrupts_init(void)
{
    pic_disable();
    lapic_map(machine.lapic);
    ioapic_map(machine.ioapic);
    lapic_enable();
    cpus[0].apic_id = lapic_id();
    ioapic_route(machine.isa_gsi[4], VECTOR_COM1, cpus[0].apic_id);
    ioapic_route(machine.isa_gsi[3], VECTOR_COM2, cpus[0].apic_id);
}

static void memory_init(void)
{
    page_array_init();
    zones_init();
    pcp_init();
}

static void say_hello(void)
{
    if (options.quiet)
        return;
    printk("KOS: %lu MiB of RAM in %u ranges, %u CPU%s\n",
           (range_total(&memmap.ram) + (1 << 19)) >> 20, memmap.ram.count, cpu_count,
           cpu_count == 1 ? "" : "s");
    printk("zones: DMA %lu pages, NORMAL %lu pages; metadata %lu KiB\n", zones[ZONE_DMA].managed,
           zones[ZONE_NORMAL].managed, memmap.metadata_bytes >> 10);
    printk("'help' lists the commands\n");
}

/* On the boot CPU's own guarded stack, with the kernel's own tables. */
static void kernel_continue(void)
{
    interrupts_init();
    smp_start_others(&machine, (u32)MIN(options.cpus, (u64)MAX_CPUS));
    memory_init();
    client_init();
    frame_offer_client();
    frame_mark_ready();
    uart_listen(&uart_wire);
    frame_send_hello();
    say_hello();
    uart_listen(&uart_console);
    console_init();
    loop_run(&cpus[0]);
}

/* Called by boot.S on the boot stack, with the boot tables: the first 4 GiB at the direct map. */
void kernel_main(u64 start_info)
{
    static struct boot_info info;
    wrmsr(MSR_GS_BASE, (u64)&cpus[0]);
    cpus[0].self = &cpus[0];
    trap_init();
    trap_load();
    uart_init(&uart_console);
    uart_init(&uart_wire);
    pvh_read(start_info, &info);
    memmap_reserve((u64)kernel_start - KERNEL_BASE, (u64)kernel_end - KERNEL_BASE);
    cmdline_parse(info.cmdline);
    if (info.cmdline_cut)
        printk("command line: only the first %lu characters are used\n", sizeof(info.cmdline) - 1);
    if (!acpi_read(info.rsdp, &machine))
        printk("acpi: no table of CPUs found; running on one\n");
    if (machine.unused_cpus)
        printk("acpi: %u CPUs more than %u are not used\n", machine.unused_cpus, MAX_CPUS);
    if (memmap.ram.dropped)
        printk("memory map: %u ranges do not fit the table and are not used\n", memmap.ram.dropped);
    cpu_features_detect();
    cpu_features_enable();
    paging_init();
    smp_boot_cpu(kernel_continue);
}
