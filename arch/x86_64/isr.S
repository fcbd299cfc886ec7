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

    .balign 16
trap_common:
    xchg %rdi, (%rsp) /* the vector becomes the first argument; its slot holds the saved rdi */
    push %rsi
    push %rdx
    push %rcx
    push %rax
    push %r8
    push %r9
    push %r10
    push %r11
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, %rsi
    cld
    sub $8, %rsp /* 21 words are on the stack: a call wants it aligned to 16 */
    call trap_handle
    add $8, %rsp
    .globl trap_return
trap_return:
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rax
    pop %rcx
    pop %rdx
    pop %rsi
    pop %rdi
    add $8, %rsp
    iretq
