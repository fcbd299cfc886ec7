/*
 * See uaccess.h. One `rep movsb` between two labels does all copies: a page fault at that
 * instruction on a lower-half address resumes after it, with the bytes left in %rcx.
 */
#include "x86_64/uaccess.h"
#include "x86_64/cpu.h"
#include "x86_64/percpu.h"

extern const u8 user_copy_insn[], user_copy_resume[];
static u64 fault_address[MAX_CPUS];

void user_access_end(void)
{
    if (cpu_features.smap)
        __asm__ volatile("clac" ::: "memory");
}

static __attribute__((noinline)) size_t user_copy(void *dst, const void *src, size_t n)
{
    if (cpu_features.smap)
        __asm__ volatile("stac" ::: "memory");
    __asm__ volatile(".globl user_copy_insn, user_copy_resume\n"
                     "user_copy_insn: rep movsb\n"
                     "user_copy_resume:"
                     : "+D"(dst), "+S"(src), "+c"(n)
                     :
                     : "memory");
    user_access_end();
    return n;
}

/* Keeps a length inside the lower half, so that no copy can reach the kernel's addresses. */
static size_t reachable(u64 user, size_t n)
{
    if (user >= USER_END)
        return 0;
    return MIN(n, USER_END - user);
}

static size_t finish(size_t asked, size_t allowed, size_t left, u64 user, u64 *fault)
{
    if (left)
        *fault = fault_address[this_cpu()->id];
    else if (allowed < asked)
        *fault = user + allowed;
    return asked - allowed + left;
}

size_t user_copy_in(void *dst, u64 user_src, size_t n, u64 *fault)
{
    size_t allowed = reachable(user_src, n);
    return finish(n, allowed, user_copy(dst, (const void *)user_src, allowed), user_src, fault);
}

size_t user_copy_out(u64 user_dst, const void *src, size_t n, u64 *fault)
{
    size_t allowed = reachable(user_dst, n);
    return finish(n, allowed, user_copy((void *)user_dst, src, allowed), user_dst, fault);
}

bool user_copy_fixup(struct pt_regs *regs, u64 address)
{
    if (regs->rip != (u64)user_copy_insn || address >= USER_END)
        return false;
    fault_address[this_cpu()->id] = address;
    regs->rip = (u64)user_copy_resume;
    return true;
}
