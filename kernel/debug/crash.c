/* See crash.h. Each kind takes another way into the panic code. */
#include "debug/crash.h"
#include "x86_64/cpu.h"
#include "core/panic.h"
#include "lib/errno.h"
#include "lib/string.h"
#include "lib/types.h"

const char crash_kinds[] = "panic null write-text stack invalid divide assert triple";

extern u8 kernel_start[];

static void crash_panic(void)
{
    panic("asked for");
}

static void crash_null(void)
{
    volatile u32 *nowhere = (volatile u32 *)8;
    __asm__("" : "+r"(nowhere)); /* the compiler would refuse what it can see */
    *nowhere = 1;
}

static void crash_write_text(void)
{
    *(volatile u8 *)kernel_start = 0;
}

static __attribute__((noinline)) u64 recurse(u64 depth)
{
    volatile u8 block[512];
    block[0] = (u8)depth;
    return depth ? recurse(depth - 1) + block[0] : 0;
}

static void crash_stack(void)
{
    recurse(1000000);
}

static void crash_invalid(void)
{
    __asm__ volatile("ud2");
}

static void crash_divide(void)
{
    u32 zero = 0;
    __asm__ volatile("divl %0" : "+r"(zero) : "a"(1), "d"(0));
}

static void crash_assert(void)
{
    u64 found = READ_ONCE(*(const u8 *)crash_kinds);
    KASSERT(found == 0, "found %lu", found);
}

static void crash_triple(void)
{
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) none = {0, 0};
    __asm__ volatile("lidt %0; int3" : : "m"(none));
}

static const struct {
    const char *kind;
    void (*crash)(void);
} kinds[] = {
    {"panic", crash_panic},   {"null", crash_null},       {"write-text", crash_write_text},
    {"stack", crash_stack},   {"invalid", crash_invalid}, {"divide", crash_divide},
    {"assert", crash_assert}, {"triple", crash_triple},
};

int crash_now(const char *kind)
{
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
        if (!strcmp(kinds[i].kind, kind))
            kinds[i].crash();
    return -EINVAL;
}
