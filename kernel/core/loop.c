/* See loop.h. */
#include "core/loop.h"
#include "x86_64/cpu.h"
#include "x86_64/smp.h"
#include "console/console.h"
#include "core/cmdline.h"
#include "drivers/uart.h"
#include "rpc/frame.h"
#include "rpc/ring.h"

static bool loop_work(struct cpu *cpu)
{
    bool worked = ring_poll(cpu->id);
    worked |= smp_poll_work(cpu);
    if (cpu->id == 0) {
        worked |= frame_poll();
        worked |= console_poll();
    }
    return worked;
}

/* True when there is something that a halt must not miss. Interrupts are off. */
static bool loop_pending(const struct cpu *cpu)
{
    if (ring_pending(cpu->id) || __atomic_load_n(&cpu->work, __ATOMIC_ACQUIRE))
        return true;
    return cpu->id == 0 && (uart_pending(&uart_wire) || uart_pending(&uart_console));
}

static void loop_halt(struct cpu *cpu)
{
    ring_set_doorbell(cpu->id, true); /* a CPU that is marked asleep holds no ring's lock */
    __atomic_store_n(&cpu->asleep, true, __ATOMIC_SEQ_CST);
    cpu_fence(); /* the flags are visible before the last look */
    cpu_irq_disable();
    if (!loop_pending(cpu)) {
        cpu->sleeps++;
        cpu_irq_enable_halt();
    }
    cpu_irq_enable();
    __atomic_store_n(&cpu->asleep, false, __ATOMIC_SEQ_CST);
    ring_set_doorbell(cpu->id, false);
}

_Noreturn void loop_run(struct cpu *cpu)
{
    u64 idle_rounds = 0;
    cpu_irq_enable();
    for (;;) {
        if (loop_work(cpu)) {
            idle_rounds = 0;
        } else if (++idle_rounds > options.spin) {
            loop_halt(cpu);
            idle_rounds = options.spin; /* woken for nothing: look once, halt again */
        }
    }
}
