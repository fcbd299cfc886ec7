/* The local APIC (one a CPU, in xAPIC mode) and the IOAPIC that routes the serial lines' interrupts. */
#pragma once
#include "lib/types.h"

/* Maps the registers; once, on the boot CPU. */
void lapic_map(u64 paddr);
/* Turns on the calling CPU's APIC. */
void lapic_enable(void);
u32 lapic_id(void);
void lapic_eoi(void);
void lapic_send(u32 apic_id, u8 vector);
void lapic_send_nmi_others(void);
void lapic_send_init(u32 apic_id);
void lapic_send_startup(u32 apic_id, u8 page);
/* One interrupt on VECTOR_TIMER after so many bus ticks (about 1 ns each in QEMU); 0 stops it. */
void lapic_timer_once(u32 ticks);

/* Maps the one whose inputs start at 0. */
void ioapic_map(u64 paddr);
/* Edge-triggered interrupt gsi goes to the CPU with that APIC id as vector. */
void ioapic_route(u32 gsi, u8 vector, u32 apic_id);
/* Masks the legacy interrupt controllers. */
void pic_disable(void);
