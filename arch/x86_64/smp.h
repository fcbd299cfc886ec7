/* Starting the other CPUs, and setting up each. */
#pragma once
#include "x86_64/acpi.h"
#include "x86_64/percpu.h"

/* Gives the boot CPU its guarded stack and tables, and continues in next() on that stack. */
_Noreturn void smp_boot_cpu(void (*next)(void));
/* Starts every CPU that the machine has (max at most) and waits until each is online. */
void smp_start_others(const struct acpi_machine *m, u32 max);
_Noreturn void smp_ap_main(struct cpu *cpu);
/* Ends a CPU's halt, if it is in one. */
void smp_wake(struct cpu *cpu);
/* Runs work(arg) on every CPU, the caller's too, and waits for all. Event loops only. */
void smp_run_all(void (*work)(void *), void *arg);
/* Called by each CPU's loop: does what smp_run_all left for it. */
bool smp_poll_work(struct cpu *cpu);
