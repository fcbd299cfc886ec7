/*
 * Entry stubs, 16 bytes each: an error code where the CPU pushes none, the vector, then the common
 * path, which builds a struct pt_regs and calls trap_handle(vector, regs).
 */
#include "x86_64/layout.h"

    .text
    .balign 16
    .globl trap_stubs
trap_stubs:
    .set v, 0
    .rept TRAP_STUBS
    .balign 16
    .if !(v == 8 || (v >= 10 && v <= 14) || v == 17 || v == 21 || v == 29 || v == 30)
    push $0
    .endif
    push $v
    jmp trap_common
    .set v, v + 1
    .endr

/* Each push and pop says where the registers are, so that a debugger can follow the stack through. */
.macro SAVE reg
    push \reg
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset \reg, 0
.endm
.macro RESTORE reg
    pop \reg
    .cfi_adjust_cfa_offset -8
    .cfi_restore \reg
.endm

    .cfi_sections .debug_frame
    .balign 16
trap_common:
    .cfi_startproc simple
    .cfi_signal_frame
    .cfi_def_cfa %rsp, 56 /* seven words: vector, error code, rip, cs, flags, rsp, ss */
    .cfi_offset %rip, -40
    .cfi_offset %rsp, -16
    xchg %rdi, (%rsp) /* the vector becomes the first argument; its slot holds the saved rdi */
    .cfi_offset %rdi, -56
    SAVE %rsi
    SAVE %rdx
    SAVE %rcx
    SAVE %rax
    SAVE %r8
    SAVE %r9
    SAVE %r10
    SAVE %r11
    SAVE %rbx
    SAVE %rbp
    SAVE %r12
    SAVE %r13
    SAVE %r14
    SAVE %r15
    mov %rsp, %rsi
    cld
    sub $8, %rsp /* 21 words are on the stack: a call wants it aligned to 16 */
    .cfi_adjust_cfa_offset 8
    call trap_handle
    add $8, %rsp
    .cfi_adjust_cfa_offset -8
    .globl trap_return
trap_return:
    RESTORE %r15
    RESTORE %r14
    RESTORE %r13
    RESTORE %r12
    RESTORE %rbp
    RESTORE %rbx
    RESTORE %r11
    RESTORE %r10
    RESTORE %r9
    RESTORE %r8
    RESTORE %rax
    RESTORE %rcx
    RESTORE %rdx
    RESTORE %rsi
    RESTORE %rdi
    add $8, %rsp
    .cfi_adjust_cfa_offset -8
    iretq
    .cfi_endproc
