/* Instructions that C has no words for. */
#pragma once
#include "x86_64/layout.h"
#include "lib/types.h"

#define MSR_APIC_BASE 0x1b
#define MSR_EFER      0xc0000080
#define MSR_GS_BASE   0xc0000101
#define EFER_NXE      (1u << 11)
#define CR0_WP        (1u << 16)
#define CR4_PGE       (1u << 7)
#define CR4_UMIP      (1u << 11)
#define CR4_SMEP      (1u << 20)
#define CR4_SMAP      (1u << 21)
#define RFLAGS_IF     (1u << 9)

static inline void outb(u16 port, u8 value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline u8 inb(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline u64 rdmsr(u32 msr)
{
    u32 lo, hi;
    __asm__ volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr));
    return (u64)hi << 32 | lo;
}

static inline void wrmsr(u32 msr, u64 value)
{
    __asm__ volatile("wrmsr" : : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

static inline u64 rdtsc(void)
{
    u32 lo, hi;
    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return (u64)hi << 32 | lo;
}

#define DEFINE_CR(n)                                                                               \
    static inline u64 read_cr##n(void)                                                             \
    {                                                                                              \
        u64 v;                                                                                     \
        __asm__ volatile("mov %%cr" #n ", %0" : "=r"(v));                                          \
        return v;                                                                                  \
    }                                                                                              \
    static inline void write_cr##n(u64 v)                                                          \
    {                                                                                              \
        __asm__ volatile("mov %0, %%cr" #n : : "r"(v) : "memory");                                 \
    }
DEFINE_CR(0)
DEFINE_CR(2)
DEFINE_CR(3)
DEFINE_CR(4)
#undef DEFINE_CR

static inline void cpu_invlpg(u64 vaddr)
{
    __asm__ volatile("invlpg (%0)" : : "r"(vaddr) : "memory");
}

static inline void cpu_irq_enable(void)
{
    __asm__ volatile("sti" ::: "memory");
}

static inline void cpu_irq_disable(void)
{
    __asm__ volatile("cli" ::: "memory");
}

/* Enables interrupts and halts; an interrupt cannot slip between the two. */
static inline void cpu_irq_enable_halt(void)
{
    __asm__ volatile("sti; hlt" ::: "memory");
}

static inline void cpu_relax(void)
{
    __asm__ volatile("pause" ::: "memory");
}

/* Orders earlier stores before later loads. */
static inline void cpu_fence(void)
{
    __asm__ volatile("mfence" ::: "memory");
}

static inline void compiler_barrier(void)
{
    __asm__ volatile("" ::: "memory");
}

struct cpuid {
    u32 eax, ebx, ecx, edx;
};

static inline struct cpuid cpu_id(u32 leaf, u32 sub)
{
    struct cpuid r;
    __asm__ volatile("cpuid"
                     : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
                     : "a"(leaf), "c"(sub));
    return r;
}

/* Stops this CPU for good. */
static inline _Noreturn void cpu_stop(void)
{
    for (;;)
        __asm__ volatile("cli; hlt");
}

/* What this kind of CPU offers; found once on the boot CPU. */
struct cpu_features {
    bool nx, smep, smap, umip, pge, gigabyte_pages;
};
extern struct cpu_features cpu_features;
void cpu_features_detect(void);
/* Turns on what cpu_features says, on the calling CPU. */
void cpu_features_enable(void);
