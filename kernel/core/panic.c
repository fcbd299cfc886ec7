/*
 * See panic.h. Runs with nothing trusted: no locks are taken, output goes to the serial lines
 * directly, a panic inside a panic stops at once.
 *
 * The report for Python is one frame on the wire (rpc/frame.h): struct panic_report, then the text
 * that the console shows.
 */
#include "core/panic.h"
#include "x86_64/cpu.h"
#include "x86_64/lapic.h"
#include "x86_64/paging.h"
#include "x86_64/percpu.h"
#include "x86_64/trap.h"
#include "core/ksym.h"
#include "drivers/uart.h"
#include "lib/printf.h"
#include "lib/string.h"
#include "rpc/frame.h"

#define TEXT_BYTES 3400 /* with the report it fits one frame */

struct panic_report {
    u32 cpu, depth;
    char reason[PANIC_REASON];
    struct pt_regs regs;
    u64 cr2, cr3;
    u64 trace[PANIC_TRACE];
};

/* What the wire carries after the frame's kind byte. */
static struct {
    struct panic_report report;
    char text[TEXT_BYTES];
} record;
static size_t text_len;
static bool retold;
static u32 panicking; /* id + 1 of the CPU that panicked first */

bool panic_in_progress(void)
{
    return __atomic_load_n(&panicking, __ATOMIC_ACQUIRE);
}

static void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    size_t room = sizeof(record.text) - text_len;
    text_len += MIN(vformat(record.text + text_len, room, fmt, ap), room - 1);
    va_end(ap);
}

/* Whether a frame pointer can be followed: a mapped, aligned word pair of this kernel's memory. */
static bool frame_is_readable(u64 frame)
{
    struct pt_step steps[PT_LEVELS];
    if (frame % 8 || frame < DIRECT_MAP || !paging_kernel_root())
        return frame >= KERNEL_BASE && !(frame % 8);
    for (unsigned word = 0; word < 2; word++) {
        unsigned n = paging_walk(paging_kernel_root(), frame + 8 * word, steps);
        if (!(steps[n - 1].entry & PTE_PRESENT))
            return false;
    }
    return true;
}

static u32 trace_collect(const struct pt_regs *regs, u64 trace[PANIC_TRACE])
{
    u32 n = 0;
    u64 frame = regs->rbp;
    trace[n++] = regs->rip;
    while (n < PANIC_TRACE && frame_is_readable(frame)) {
        const u64 *f = (const u64 *)frame;
        if (!ksym_is_text(f[1]))
            break;
        trace[n++] = f[1];
        if (f[0] <= frame)
            break;
        frame = f[0];
    }
    return n;
}

static void say_registers(const struct pt_regs *r)
{
    say("  rip %016lx  rsp %016lx  rbp %016lx\n", r->rip, r->rsp, r->rbp);
    say("  rax %016lx  rbx %016lx  rcx %016lx\n", r->rax, r->rbx, r->rcx);
    say("  rdx %016lx  rsi %016lx  rdi %016lx\n", r->rdx, r->rsi, r->rdi);
    say("  r8  %016lx  r9  %016lx  r10 %016lx\n", r->r8, r->r9, r->r10);
    say("  r11 %016lx  r12 %016lx  r13 %016lx\n", r->r11, r->r12, r->r13);
    say("  r14 %016lx  r15 %016lx  cr2 %016lx\n", r->r14, r->r15, record.report.cr2);
    say("  cr3 %016lx  flags %lx  error %lx\n", record.report.cr3, r->eflags, r->orig_rax);
}

static void say_trace(const struct panic_report *r)
{
    char where[160];
    for (u32 i = 0; i < r->depth; i++) {
        /* A return address is after the call: the line of the call is one byte before it. */
        ksym_format(where, sizeof(where), i ? r->trace[i] - 1 : r->trace[i]);
        say("  #%-2u %016lx %s\n", i, r->trace[i], where);
    }
}

static void report(const struct pt_regs *regs, const char *reason)
{
    struct panic_report *r = &record.report;
    r->cpu = this_cpu()->id;
    string_copy(r->reason, reason, sizeof(r->reason));
    r->regs = *regs;
    r->cr2 = read_cr2();
    r->cr3 = read_cr3();
    r->depth = trace_collect(regs, r->trace);
    say("\nKERNEL PANIC on CPU %u: %s\n", r->cpu, reason);
    if (this_cpu()->current_call)
        say("  while serving the call %s\n", this_cpu()->current_call);
    say_registers(regs);
    say_trace(r);
    say("  stopped; the machine's memory stays as it is\n");
    uart_write_text(&uart_console, record.text, text_len);
    frame_send_panic(&record, sizeof(record.report) + text_len);
}

_Noreturn void panic_with_regs(const struct pt_regs *regs, const char *reason)
{
    u32 nobody = 0;
    cpu_irq_disable();
    if (!__atomic_compare_exchange_n(&panicking, &nobody, this_cpu()->id + 1, false,
                                     __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        if (nobody == this_cpu()->id + 1) {
            uart_write_text(&uart_console, "\npanic inside the panic: ", 25);
            uart_write_text(&uart_console, reason, strlen(reason));
            if (!retold) { /* the first reason is in the record already */
                retold = true;
                frame_send_panic(&record, sizeof(record.report) + text_len);
            }
        }
        cpu_stop();
    }
    lapic_send_nmi_others();
    report(regs, reason);
    cpu_stop();
}

_Noreturn void panic(const char *fmt, ...)
{
    char reason[PANIC_REASON];
    /* Inside the call: what follows it may be another function's code. */
    struct pt_regs regs = {.rip = (u64)__builtin_return_address(0) - 1};
    va_list ap;
    va_start(ap, fmt);
    vformat(reason, sizeof(reason), fmt, ap);
    va_end(ap);
    /* The caller's frame: the registers that a call keeps are as they were there. */
    __asm__ volatile("mov %%rbx, %0\n mov %%r12, %1\n mov %%r13, %2\n mov %%r14, %3\n mov %%r15, %4"
                     : "=m"(regs.rbx), "=m"(regs.r12), "=m"(regs.r13), "=m"(regs.r14),
                       "=m"(regs.r15));
    regs.rbp = *(u64 *)__builtin_frame_address(0);
    regs.rsp = (u64)__builtin_frame_address(0) + 16;
    panic_with_regs(&regs, reason);
}
