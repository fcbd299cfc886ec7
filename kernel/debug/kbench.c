/* What the benchmarks share; see kbench.h. */
#include "debug/kbench.h"
#include "core/spinlock.h"
#include "mm/pcp.h"

static struct spinlock turn;

void kbench_begin(void)
{
    spin_lock(&turn);
    pcp_drain(); /* counts do not depend on what was in the magazines */
    cpu_irq_disable();
}

void kbench_end(void)
{
    cpu_irq_enable();
    pcp_drain();
    spin_unlock(&turn);
}

u64 kbench_empty(void)
{
    u64 start = kbench_clock();
    return kbench_clock() - start;
}
