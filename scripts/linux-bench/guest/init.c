/* The first process of the machine: it seeds Linux's random numbers, says what memory there is, runs
 * the workloads of user space, loads the module with those of the kernel, and ends the machine.
 * Its arguments say which: u, k. What it prints is in print.h.
 */
#include "print.h"
#include "workloads.h"

static char text[65536];

static void mount(const char *type, const char *folder)
{
    long result = CALL6(SYS_MOUNT, type, folder, type, 0, 0, 0);
    if (result)
        fail(type, result);
}

static long open_file(const char *path, int flags)
{
    long fd = CALL3(SYS_OPEN, path, flags, 0);
    if (fd < 0)
        fail(path, fd);
    return fd;
}

/* Nothing here is random, and until its generator is seeded Linux does a whole extraction, thousands
 * of instructions, for each random number: in every new slab and in every fork. So 512 fixed bits
 * are credited.
 *
 * They are not const: this process then has a mapping for data as others have, and fork copies it. */
static void seed_random(void)
{
    static struct {
        int bits, bytes;
        u64 data[8];
    } entropy = {512, 64, {1, 2, 3, 4, 5, 6, 7, 8}};
    long fd = open_file("/dev/random", O_RDWR);
    long result = CALL3(SYS_IOCTL, fd, RNDADDENTROPY, &entropy);
    if (result)
        fail("RNDADDENTROPY", result);
    CALL1(SYS_CLOSE, fd);
}

static const char *after(const char *where, const char *what)
{
    while (*what)
        if (*where++ != *what++)
            return 0;
    return where;
}

/* Prints a line of /proc/meminfo, which is in text, as "V NAME_kB VALUE". */
static void print_memory(const char *key, const char *name)
{
    for (const char *at = text; *at; at++) {
        const char *number = at == text || at[-1] == '\n' ? after(at, key) : 0;
        if (!number)
            continue;
        u64 value = 0;
        while (*number == ' ')
            number++;
        while (*number >= '0' && *number <= '9')
            value = value * 10 + (u64)(*number++ - '0');
        print_value(name, value);
        return;
    }
    fail(name, 0);
}

static void print_memory_lines(void)
{
    long fd = open_file("/proc/meminfo", O_RDONLY), n = 0, got;
    while ((got = CALL3(SYS_READ, fd, text + n, sizeof text - 1 - (u64)n)) > 0)
        n += got;
    CALL1(SYS_CLOSE, fd);
    text[n] = 0;
    print_memory("MemTotal:", "MemTotal_kB");
    print_memory("MemFree:", "MemFree_kB");
    print_memory("MemAvailable:", "MemAvailable_kB");
    print_memory("Slab:", "Slab_kB");
    print_memory("SUnreclaim:", "SUnreclaim_kB");
    print_memory("KernelStack:", "KernelStack_kB");
    print_memory("PageTables:", "PageTables_kB");
    print_memory("Percpu:", "Percpu_kB");
    print_memory("VmallocUsed:", "VmallocUsed_kB");
}

/* The module measures while it is loaded; what it found is in a file then. */
static void run_module(void)
{
    long fd = open_file("/kbench.ko", O_RDONLY);
    long result = CALL3(SYS_FINIT_MODULE, fd, "", 0);
    if (result)
        fail("finit_module", result);
    CALL1(SYS_CLOSE, fd);
    fd = open_file("/proc/kbench", O_RDONLY);
    long got;
    while ((got = CALL3(SYS_READ, fd, text, 4096)) > 0)
        CALL3(SYS_WRITE, 1, text, got);
    CALL1(SYS_CLOSE, fd);
}

_Noreturn void cmain(const long *stack);

void cmain(const long *stack)
{
    long arguments = stack[0];
    char *const *argument = (char *const *)(stack + 1);

    mount("proc", "/proc");
    mount("sysfs", "/sys");
    mount("tmpfs", "/t");
    CALL6(SYS_PRCTL, PR_SET_THP_DISABLE, 1, 0, 0, 0, 0);
    seed_random();
    print_memory_lines();
    calibrate();
    for (long i = 1; i < arguments; i++) {
        if (argument[i][0] == 'u')
            run_user_workloads();
        if (argument[i][0] == 'k')
            run_module();
    }
    finish();
}

asm(".globl _start\n"
    "_start:\n\t"
    "xor %ebp, %ebp\n\t"
    "mov %rsp, %rdi\n\t"
    "and $-16, %rsp\n\t"
    "call cmain\n\t"
    "ud2");
