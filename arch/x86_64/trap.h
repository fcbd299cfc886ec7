/*
 * Exceptions and interrupts.
 *
 * Vectors 0 to 31 are the CPU's exceptions, the next 32 ours. An exception that nothing expects is a
 * panic; a page fault inside user_copy (uaccess.c) makes that copy return early instead.
 */
#pragma once
#include "lib/types.h"

/* Saved registers, in the order and under the name that debuggers know from Linux. */
struct pt_regs {
    u64 r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi;
    u64 orig_rax; /* the CPU's error code */
    u64 rip, cs, eflags, rsp, ss;
};

#define VECTOR_DOUBLE_FAULT  8
#define VECTOR_NMI           2
#define VECTOR_MACHINE_CHECK 18
#define VECTOR_PAGE_FAULT    14
#define VECTOR_COM1          32
#define VECTOR_COM2          33
#define VECTOR_WAKE          34
#define VECTOR_TLB           35
#define VECTOR_TIMER         36
#define VECTOR_SPURIOUS      63

/* Fills the IDT (once) and loads it on the calling CPU. */
void trap_init(void);
void trap_load(void);

/* The name of an exception, "page fault" for 14. */
const char *trap_name(u64 vector);
/* Says in words what happened: "write to 0x10, which is not mapped". */
void trap_describe(char *buf, size_t cap, u64 vector, const struct pt_regs *regs);
void trap_handle(u64 vector, struct pt_regs *regs);
