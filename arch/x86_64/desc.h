/* Segments and task state: one GDT and TSS a CPU, with the stacks that exceptions switch to. */
#pragma once
#include "lib/types.h"

#define IST_DOUBLE_FAULT  1
#define IST_NMI           2
#define IST_MACHINE_CHECK 3
#define IST_COUNT         3

struct tss {
    u32 reserved0;
    u64 rsp[3];
    u64 reserved1;
    u64 ist[7];
    u64 reserved2;
    u16 reserved3, iomap_base;
} __attribute__((packed));

struct desc_tables {
    u64 gdt[5];
    struct tss tss;
};

/* Fills the calling CPU's tables and loads them; tss.ist has the tops of its exception stacks. */
void desc_load(struct desc_tables *t);
