/* Exception decoding and interrupt dispatch: see trap.h. */
#include "x86_64/trap.h"
#include "x86_64/cpu.h"
#include "x86_64/desc.h"
#include "x86_64/lapic.h"
#include "x86_64/paging.h"
#include "x86_64/percpu.h"
#include "x86_64/tlb.h"
#include "x86_64/uaccess.h"
#include "core/panic.h"
#include "drivers/uart.h"
#include "lib/printf.h"

#define GATE_INTERRUPT 0x8e

struct idt_gate {
    u16 offset_low, selector;
    u8 ist, type;
    u16 offset_mid;
    u32 offset_high, reserved;
};

static struct idt_gate idt[TRAP_STUBS];
extern const u8 trap_stubs[TRAP_STUBS][16];

static const char *const names[] = {
    "divide error",
    "debug",
    "non-maskable interrupt",
    "breakpoint",
    "overflow",
    "bound range",
    "invalid opcode",
    "no FPU",
    "double fault",
    "coprocessor",
    "invalid TSS",
    "segment not present",
    "stack segment",
    "general protection",
    "page fault",
    "reserved vector 15",
    "x87 floating point",
    "alignment check",
    "machine check",
    "SIMD floating point",
    "virtualization",
    "control protection",
};

const char *trap_name(u64 vector)
{
    return vector < ARRAY_SIZE(names) ? names[vector] : "reserved exception";
}

static u8 stack_for(unsigned vector)
{
    switch (vector) {
    case VECTOR_DOUBLE_FAULT:
        return IST_DOUBLE_FAULT;
    case VECTOR_NMI:
        return IST_NMI;
    case VECTOR_MACHINE_CHECK:
        return IST_MACHINE_CHECK;
    default:
        return 0;
    }
}

void trap_init(void)
{
    for (unsigned v = 0; v < TRAP_STUBS; v++) {
        u64 entry = (u64)trap_stubs[v];
        idt[v] = (struct idt_gate){
            .offset_low = (u16)entry,
            .offset_mid = (u16)(entry >> 16),
            .offset_high = (u32)(entry >> 32),
            .selector = SEG_KERNEL_CODE,
            .ist = stack_for(v),
            .type = GATE_INTERRUPT,
        };
    }
}

void trap_load(void)
{
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) idtr = {sizeof(idt) - 1, (u64)idt};
    __asm__ volatile("lidt %0" : : "m"(idtr));
}

static const char *access_words(u64 error)
{
    if (error & 16)
        return "instruction fetch from";
    return error & 2 ? "write to" : "read of";
}

static const char *address_words(u64 address, u64 error)
{
    if (paging_is_guard(address))
        return "a stack's guard page: the kernel stack overflowed";
    if (error & 8)
        return "an address whose page tables have a reserved bit set";
    if (error & 1)
        return error & 2 ? "a page that may not be written" : "a page that may not be accessed so";
    return address < PAGE_SIZE ? "the page at 0 (a NULL pointer)" : "an address that is not mapped";
}

void trap_describe(char *buf, size_t cap, u64 vector, const struct pt_regs *regs)
{
    if (vector == VECTOR_PAGE_FAULT)
        format(buf, cap, "page fault: %s 0x%lx, %s", access_words(regs->orig_rax), read_cr2(),
               address_words(read_cr2(), regs->orig_rax));
    else if (vector == VECTOR_DOUBLE_FAULT && paging_is_guard(read_cr2()))
        format(buf, cap, "double fault: the kernel stack overflowed into its guard page at 0x%lx",
               read_cr2());
    else
        format(buf, cap, "%s (vector %lu, error code 0x%lx)", trap_name(vector), vector,
               regs->orig_rax);
}

static void exception(u64 vector, struct pt_regs *regs)
{
    char reason[160];
    if (vector == VECTOR_PAGE_FAULT && user_copy_fixup(regs, read_cr2()))
        return;
    if (vector == VECTOR_NMI && panic_in_progress())
        cpu_stop();
    trap_describe(reason, sizeof(reason), vector, regs);
    panic_with_regs(regs, reason);
}

void trap_handle(u64 vector, struct pt_regs *regs)
{
    user_access_end(); /* iretq restores what was */
    if (vector < VECTOR_COM1) {
        exception(vector, regs);
        return;
    }
    this_cpu()->interrupts++;
    switch (vector) {
    case VECTOR_COM1:
        uart_receive(&uart_console);
        break;
    case VECTOR_COM2:
        uart_receive(&uart_wire);
        break;
    case VECTOR_TLB:
        tlb_interrupt();
        break;
    case VECTOR_TIMER:
        this_cpu()->timer_interrupts++;
        break;
    case VECTOR_SPURIOUS:
        return; /* takes no end-of-interrupt */
    default:
        break; /* VECTOR_WAKE: to end a halt is all it is for */
    }
    lapic_eoi();
}
