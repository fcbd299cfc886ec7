/*
 * The kernel's virtual address space (assembler-safe).
 *
 *   0000000000000000  a client's own pages (lower half)
 *   ffff800000000000  direct map: physical address p is at DIRECT_MAP + p, for RAM only
 *   ffffff8000000000  struct page array, one entry a frame (VMEMMAP)
 *   ffffffff40000000  kernel stacks, each with an unmapped guard page below; device registers
 *   ffffffff80000000  the kernel image, loaded at physical 2 MiB
 */
#pragma once

#define KERNEL_BASE 0xffffffff80000000
#define KERNEL_LOAD 0x200000

#define DIRECT_MAP      0xffff800000000000
#define DIRECT_MAP_SLOT 256 /* index in the top-level table */
#define VMEMMAP         0xffffff8000000000
#define KSTACK_AREA     0xffffffff40000000
#define DEVICE_AREA     0xffffffff7f000000
#define KERNEL_SLOT     511
#define USER_END        0x0000800000000000

#define PAGE_SHIFT 12
#define PAGE_SIZE  4096

#define SEG_KERNEL_CODE 0x08
#define SEG_KERNEL_DATA 0x10
#define SEG_TSS         0x18

#define MAX_CPUS     8
#define KSTACK_BYTES 16384
#define ISTACK_BYTES 8192
#define TRAP_STUBS   64
