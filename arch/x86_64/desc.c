/* See desc.h. */
#include "x86_64/desc.h"
#include "x86_64/layout.h"

static void tss_describe(u64 *gdt, const struct tss *tss)
{
    u64 base = (u64)tss;
    gdt[0] =
        (sizeof(*tss) - 1) | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24 & 0xff) << 56;
    gdt[1] = base >> 32;
}

void desc_load(struct desc_tables *t)
{
    t->gdt[0] = 0;
    t->gdt[SEG_KERNEL_CODE / 8] = 0x00af9b000000ffff;
    t->gdt[SEG_KERNEL_DATA / 8] = 0x00cf93000000ffff;
    tss_describe(&t->gdt[SEG_TSS / 8], &t->tss);
    t->tss.iomap_base = sizeof(t->tss);
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) gdtr = {sizeof(t->gdt) - 1, (u64)t->gdt};
    __asm__ volatile("lgdt %0\n"
                     "mov %w1, %%ds\n mov %w1, %%es\n mov %w1, %%ss\n"
                     "mov %w2, %%fs\n mov %w2, %%gs\n"
                     "ltr %w3"
                     :
                     : "m"(gdtr), "r"(SEG_KERNEL_DATA), "r"(0), "r"(SEG_TSS)
                     : "memory");
}
