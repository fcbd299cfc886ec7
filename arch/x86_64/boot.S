/*
 * The first instructions of every CPU.
 *
 * The boot CPU arrives at pvh_entry in 32-bit protected mode without paging, %ebx pointing to the
 * hvm_start_info. The others arrive at ap_trampoline in real mode, at a page below 1 MiB where
 * smp.c copied it. Both turn on long mode with the boot tables, which map the first 4 GiB at 0, at
 * the direct map and at the kernel's base, and are made by the assembler: nothing is computed here.
 */
#include "x86_64/layout.h"

#define PHYS(sym) ((sym) - KERNEL_BASE)
#define EFER 0xc0000080

/* CR4.PAE, CR3, EFER.LME, CR0.PG and CR0.PE; the caches, which INIT leaves off, on. */
.macro LONG_MODE_ON
    mov %cr4, %eax
    or $0x20, %eax
    mov %eax, %cr4
    mov $PHYS(boot_pml4), %eax
    mov %eax, %cr3
    mov $EFER, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    and $~0x60000000, %eax
    or $0x80000001, %eax
    mov %eax, %cr0
.endm

    .section .note.pvh, "a", @note
    .align 4
    .long 4, 4, 18 /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long PHYS(pvh_entry)

    .section .text.boot, "ax"
    .code32
    .globl pvh_entry
pvh_entry:
    cli
    cld
    mov %ebx, %ebp
    rdtsc
    mov %eax, PHYS(boot_tsc)
    mov %edx, PHYS(boot_tsc) + 4
    LONG_MODE_ON
    lgdt PHYS(boot_gdtr)
    ljmp $SEG_KERNEL_CODE, $PHYS(1f)
    .code64
1:  mov $2f, %rax
    jmp *%rax
2:  mov $SEG_KERNEL_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    lgdt boot_gdtr_high(%rip) /* the low address goes with the boot tables */
    lea boot_stack_top(%rip), %rsp
    mov %ebp, %edi
    xor %ebp, %ebp
    call kernel_main
    ud2

/*
 * Copied to a page below 1 MiB; %cs is its segment, so offsets count from ap_trampoline. The stack
 * and per-CPU block are taken from ap_boot_cpu, which smp.c fills in for one CPU at a time.
 */
    .section .rodata
    .balign 16
    .code16
    .globl ap_trampoline, ap_trampoline_end
ap_trampoline:
    cli
    cld
    mov %cs, %ax
    mov %ax, %ds
    lgdtl ap_gdtr - ap_trampoline
    LONG_MODE_ON
    ljmpl $SEG_KERNEL_CODE, $PHYS(ap_long_mode)
    .balign 4
ap_gdtr:
    .word boot_gdt_end - boot_gdt - 1
    .long PHYS(boot_gdt)
ap_trampoline_end:

    .section .text.boot, "ax"
    .code64
ap_long_mode:
    mov $1f, %rax
    jmp *%rax
1:  mov $SEG_KERNEL_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    cmpq $0, ap_boot_efer_nx(%rip)
    je 2f
    mov $EFER, %ecx /* before tables that have NX bits */
    rdmsr
    or $0x800, %eax
    wrmsr
2:  mov ap_boot_cr3(%rip), %rax
    mov %rax, %cr3
    mov ap_boot_stack(%rip), %rsp
    mov ap_boot_cpu(%rip), %rdi
    xor %ebp, %ebp
    call smp_ap_main
    ud2

    .section .data.boot_tables, "aw"
    .balign 4096
    .globl boot_pml4
boot_pml4:
    .quad PHYS(boot_pdpt) + 3
    .fill DIRECT_MAP_SLOT - 1, 8, 0
    .quad PHYS(boot_pdpt) + 3
    .fill KERNEL_SLOT - DIRECT_MAP_SLOT - 1, 8, 0
    .quad PHYS(boot_pdpt) + 3
boot_pdpt: /* also read as the kernel's: entry 510 is the image */
    .quad PHYS(boot_pd) + 3
    .quad PHYS(boot_pd) + 0x1003
    .quad PHYS(boot_pd) + 0x2003
    .quad PHYS(boot_pd) + 0x3003
    .fill 506, 8, 0
    .quad PHYS(boot_pd) + 3
    .quad 0
boot_pd:
    .set i, 0
    .rept 2048
    .quad (i << 21) + 0x83
    .set i, i + 1
    .endr

    .globl boot_tsc, ap_boot_cr3, ap_boot_stack, ap_boot_cpu, ap_boot_efer_nx
boot_tsc:        .quad 0
ap_boot_cr3:     .quad 0
ap_boot_stack:   .quad 0
ap_boot_cpu:     .quad 0
ap_boot_efer_nx: .quad 0

    .balign 8
boot_gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
boot_gdt_end:
boot_gdtr:
    .word boot_gdt_end - boot_gdt - 1
    .long PHYS(boot_gdt)
boot_gdtr_high:
    .word boot_gdt_end - boot_gdt - 1
    .quad boot_gdt

/* The address space's layout, for those who look at the memory from outside. */
    .globl layout_direct_map, layout_page_array, layout_stacks, layout_devices
    .set layout_direct_map, DIRECT_MAP
    .set layout_page_array, VMEMMAP
    .set layout_stacks, KSTACK_AREA
    .set layout_devices, DEVICE_AREA

/* A boot stack for the 32-bit call above and the first C code; kernel_main moves to a guarded one. */
    .section .bss
    .balign 16
    .skip 8192
boot_stack_top:
