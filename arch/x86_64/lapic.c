/* See lapic.h. Registers are reached through uncached mappings in DEVICE_AREA. */
#include "x86_64/lapic.h"
#include "x86_64/cpu.h"
#include "x86_64/paging.h"
#include "x86_64/trap.h"

#define LAPIC_ID           0x20
#define LAPIC_EOI          0xb0
#define LAPIC_SPURIOUS     0xf0
#define LAPIC_ICR_LOW      0x300
#define LAPIC_ICR_HIGH     0x310
#define LAPIC_TIMER        0x320
#define LAPIC_TIMER_COUNT  0x380
#define LAPIC_TIMER_DIVIDE 0x3e0

#define ICR_NMI     (4u << 8)
#define ICR_INIT    (5u << 8)
#define ICR_STARTUP (6u << 8)
#define ICR_ASSERT  (1u << 14)
#define ICR_PENDING (1u << 12)
#define ICR_OTHERS  (3u << 18)

static volatile u32 *lapic, *ioapic;

static void lapic_write(u32 reg, u32 value)
{
    lapic[reg / 4] = value;
}

void lapic_map(u64 paddr)
{
    lapic = paging_map_device(paddr);
}

void lapic_enable(void)
{
    lapic_write(LAPIC_SPURIOUS, 0x100 | VECTOR_SPURIOUS);
}

u32 lapic_id(void)
{
    return lapic[LAPIC_ID / 4] >> 24;
}

void lapic_eoi(void)
{
    lapic_write(LAPIC_EOI, 0);
}

static void lapic_command(u32 apic_id, u32 command)
{
    while (lapic[LAPIC_ICR_LOW / 4] & ICR_PENDING)
        cpu_relax();
    lapic_write(LAPIC_ICR_HIGH, apic_id << 24);
    lapic_write(LAPIC_ICR_LOW, command | ICR_ASSERT);
}

void lapic_send(u32 apic_id, u8 vector)
{
    lapic_command(apic_id, vector);
}

void lapic_send_nmi_others(void)
{
    if (lapic)
        lapic_command(0, ICR_NMI | ICR_OTHERS);
}

void lapic_send_init(u32 apic_id)
{
    lapic_command(apic_id, ICR_INIT);
}

void lapic_send_startup(u32 apic_id, u8 page)
{
    lapic_command(apic_id, ICR_STARTUP | page);
}

void lapic_timer_once(u32 ticks)
{
    lapic_write(LAPIC_TIMER_DIVIDE, 0xb); /* by one */
    lapic_write(LAPIC_TIMER, VECTOR_TIMER);
    lapic_write(LAPIC_TIMER_COUNT, ticks);
}

static void ioapic_write(u32 reg, u32 value)
{
    ioapic[0] = reg;
    ioapic[4] = value;
}

void ioapic_map(u64 paddr)
{
    ioapic = paging_map_device(paddr);
}

void ioapic_route(u32 gsi, u8 vector, u32 apic_id)
{
    u32 reg = 0x10 + 2 * gsi;
    ioapic_write(reg + 1, apic_id << 24);
    ioapic_write(reg, vector);
}

void pic_disable(void)
{
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
}
