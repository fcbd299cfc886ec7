/* What the kernel needs of ACPI: the CPUs and interrupt controllers, from the MADT. */
#pragma once
#include "x86_64/layout.h"
#include "lib/types.h"

struct acpi_machine {
    u32 cpus;
    u32 unused_cpus; /* more than MAX_CPUS */
    u32 apic_ids[MAX_CPUS];
    u64 lapic, ioapic;
    u32 isa_gsi[16]; /* where each ISA interrupt arrives */
};

/*
 * Reads the tables through the boot mapping of the first 4 GiB. rsdp may be 0: then the BIOS area is
 * searched. False when there is no MADT; *m then describes a single CPU with the usual addresses.
 */
bool acpi_read(u64 rsdp, struct acpi_machine *m);
