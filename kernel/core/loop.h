/*
 * What a CPU does: look for work, do it, and halt when there has been none for a while.
 *
 * Work is: bytes on the two serial lines (boot CPU), entries in the rings that belong to this CPU,
 * and functions that smp_run_all left. A CPU first spins for options.spin rounds, so that a burst of
 * calls runs at memory speed, then says in its rings that it wants a doorbell, looks once more and
 * halts.
 */
#pragma once
#include "x86_64/percpu.h"

_Noreturn void loop_run(struct cpu *cpu);
