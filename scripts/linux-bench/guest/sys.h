/* What init needs of Linux, without a C library: a timed section then holds only the instructions
 * that are written in it, and the kernel's. */
#ifndef SYS_H
#define SYS_H

typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned char u8;

enum {
    SYS_READ = 0,
    SYS_WRITE = 1,
    SYS_OPEN = 2,
    SYS_CLOSE = 3,
    SYS_MMAP = 9,
    SYS_MPROTECT = 10,
    SYS_MUNMAP = 11,
    SYS_BRK = 12,
    SYS_IOCTL = 16,
    SYS_MADVISE = 28,
    SYS_GETPID = 39,
    SYS_FORK = 57,
    SYS_WAIT4 = 61,
    SYS_FTRUNCATE = 77,
    SYS_PRCTL = 157,
    SYS_MOUNT = 165,
    SYS_IOPERM = 173,
    SYS_EXIT_GROUP = 231,
    SYS_FINIT_MODULE = 313,
};

enum {
    PROT_NONE = 0,
    PROT_READ = 1,
    PROT_WRITE = 2,
    MAP_SHARED = 1,
    MAP_PRIVATE = 2,
    MAP_ANONYMOUS = 0x20,
    MAP_POPULATE = 0x8000,
    MADV_DONTNEED = 4,
    MADV_HUGEPAGE = 14,
    O_RDONLY = 0,
    O_RDWR = 2,
    O_CREAT = 0100,
    PR_SET_THP_DISABLE = 41,
    RNDADDENTROPY = 0x40085203,
};

static inline long syscall6(long number, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 asm("r10") = d;
    register long r8 asm("r8") = e;
    register long r9 asm("r9") = f;
    asm volatile("syscall"
                 : "=a"(result)
                 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                 : "rcx", "r11", "memory");
    return result;
}

static inline long syscall3(long number, long a, long b, long c)
{
    long result;
    asm volatile("syscall"
                 : "=a"(result)
                 : "a"(number), "D"(a), "S"(b), "d"(c)
                 : "rcx", "r11", "memory");
    return result;
}

#define CALL0(number)          syscall3(number, 0, 0, 0)
#define CALL1(number, a)       syscall3(number, (long)(a), 0, 0)
#define CALL2(number, a, b)    syscall3(number, (long)(a), (long)(b), 0)
#define CALL3(number, a, b, c) syscall3(number, (long)(a), (long)(b), (long)(c))
#define CALL6(number, a, b, c, d, e, f)                                                            \
    syscall6(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

/* Under -icount a tick is an instruction. Nothing is done ahead of it or behind it. */
static inline u64 ticks(void)
{
    u32 low, high;
    asm volatile("lfence\n\trdtsc\n\tlfence" : "=a"(low), "=d"(high)::"memory");
    return (u64)high << 32 | low;
}

#endif
