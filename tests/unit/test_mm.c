/* sources: kernel/mm/memmap.c kernel/mm/page.c kernel/mm/buddy.c kernel/mm/zone.c kernel/mm/pcp.c */
/* sources: kernel/mm/pages.c kernel/mm/owned.c kernel/mm/aspace.c kernel/mm/pool.c */
/* sources: arch/x86_64/paging.c arch/x86_64/tlb.c kernel/lib/printf.c */
/* sources: tests/unit/hosted/machine.c tests/unit/hosted/cpus.c tests/unit/host_stubs.c */
/* sources: kernel/mm/tests/mmtest.c kernel/mm/tests/test_buddy.c kernel/mm/tests/test_pool.c */
/* sources: kernel/mm/tests/test_pcp.c kernel/mm/tests/test_pages.c kernel/mm/tests/test_owned.c */
/* sources: kernel/mm/tests/test_aspace.c kernel/mm/tests/test_smp_stress.c */
/* sources: tests/unit/hosted/test_locks.c tests/unit/hosted/test_zones.c */
/* sources: tests/unit/hosted/test_magazines.c tests/unit/hosted/test_page_array.c */
/* sources: tests/unit/hosted/test_owners.c tests/unit/hosted/test_tables.c */
/* sources: tests/unit/hosted/test_allocations.c kernel/mm/tests/test_memmap.c */
/*
 * All in-kernel tests of memory management, on machines that differ in what matters to it: how much
 * RAM, with which holes, how many CPUs.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include "debug/ktest.h"
#include "hosted/machine.h"
#include "tap.h"
#include "x86_64/percpu.h"
#include "core/spinlock.h"

#define TESTS 128

static struct ktest_entry tests[TESTS];
static unsigned test_count;
static const char *current;

void hosted_ktest_add(const char *name, void (*run)(struct ktest *t))
{
    if (test_count == TESTS)
        abort();
    tests[test_count++] = (struct ktest_entry){name, run};
}

void ktest_fail(struct ktest *t, const char *file, int line, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    t->failures++;
    tap_fault(file, line, current, "%s", text);
}

static bool run_tests(const struct machine *m)
{
    machine_boot(m);
    for (unsigned i = 0; i < test_count; i++) {
        struct ktest t = {0};
        current = tests[i].name;
        machine_switch(i % m->cpus);
        tests[i].run(&t);
        CHECK(!hosted_locks_held, "%s: %u locks are still held", current, hosted_locks_held);
        hosted_locks_held = 0;
    }
    return !tap_faults;
}

/* Ranges are [start, end) in MiB. */
#define MIB(from, to)                                                                              \
    {                                                                                              \
        (u64)(from) << 20, (u64)(to) << 20                                                         \
    }
#define LOW                                                                                        \
    {                                                                                              \
        0x1000, 0x9f000                                                                            \
    }

static const struct machine machines[] = {
    {"26 MiB, 2 CPUs", .cpus = 2, .ranges = 2, .range = {LOW, MIB(1, 26)}},
    {"16 MiB, 1 CPU", .cpus = 1, .ranges = 2, .range = {LOW, MIB(1, 16)}},
    {"RAM with holes, 4 CPUs, no NX", .cpus = 4, .no_nx = true, .warm = true, .ranges = 4,
     .range = {LOW, MIB(1, 40), MIB(45, 50), {0x6080000, 0x7012000}}},
    {"1.6 GiB with a hole, 8 CPUs", .cpus = 8, .ranges = 3,
     .range = {LOW, MIB(1, 1100), MIB(2049, 2560)}},
};

int main(void)
{
    tap_begin();
    printf("# %u tests on each machine\n", test_count);
    for (unsigned i = 0; i < ARRAY_SIZE(machines); i++) {
        CHECK(machine_run(&machines[i], run_tests), "%s", machines[i].name);
        tap_test(machines[i].name);
    }
    return tap_end();
}
