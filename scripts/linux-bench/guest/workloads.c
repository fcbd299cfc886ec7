/* The workloads of user space: system calls and page faults, in batches between two reads of the
 * clock. A figure holds the three or four instructions per operation of its loop and of putting a
 * system call's arguments into registers.
 */
#include "workloads.h"
#include "print.h"

#define PAGE 4096ul
#define HUGE (2ul << 20)
#define WARM 2 /* batches that are not recorded */

/* before and after are outside the timed section. */
#define BENCH(name, operations, batches, before, body, after)                                      \
    do {                                                                                           \
        for (int batch = -WARM; batch < (batches); batch++) {                                      \
            before;                                                                                \
            u64 start = ticks();                                                                   \
            body;                                                                                  \
            u64 end = ticks();                                                                     \
            after;                                                                                 \
            if (batch >= 0)                                                                        \
                sample[batch] = end - start;                                                       \
        }                                                                                          \
        print_batches(name, operations, batches);                                                  \
    } while (0)

#define REPEAT(n) for (int i = 0; i < (n); i++)

/* ---- what the workloads are made of ---- */

static char *map_file(u64 size, int prot, int flags, long fd)
{
    long result = CALL6(SYS_MMAP, 0, size, prot, flags, fd, 0);
    if ((u64)result > -4096ul)
        fail("mmap", result);
    return (char *)result;
}

static inline char *map(u64 size)
{
    return map_file(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

static inline void unmap(void *start, u64 size)
{
    CALL2(SYS_MUNMAP, start, size);
}

static inline void protect(void *start, u64 size, int prot)
{
    CALL3(SYS_MPROTECT, start, size, prot);
}

/* Read-only and back. */
static inline void toggle(void *start, u64 size)
{
    protect(start, size, PROT_READ);
    protect(start, size, PROT_READ | PROT_WRITE);
}

static inline void write_byte(char *at)
{
    *(volatile char *)at = 1;
}

/* Writes to each page: four instructions beside the fault. */
static inline void write_pages(char *start, u64 size)
{
    char *end = start + size;
    asm volatile("1: movb $1, (%0)\n\t"
                 "add $4096, %0\n\t"
                 "cmp %1, %0\n\t"
                 "jb 1b"
                 : "+r"(start)
                 : "r"(end)
                 : "memory", "cc");
}

static inline void read_pages(char *start, u64 size)
{
    char *end = start + size;
    asm volatile("1: cmpb $1, (%0)\n\t"
                 "add $4096, %0\n\t"
                 "cmp %1, %0\n\t"
                 "jb 1b"
                 : "+r"(start)
                 : "r"(end)
                 : "memory", "cc");
}

static inline char *map_written(u64 size)
{
    char *start = map(size);
    write_pages(start, size);
    return start;
}

/* The first 2 MiB in it that have a page table of their own. */
static inline char *huge_aligned(char *start)
{
    return (char *)(((u64)start + HUGE - 1) & ~(HUGE - 1));
}

/* A child that ends at once. */
static inline long fork_ending(void)
{
    long pid = CALL0(SYS_FORK);
    if (pid < 0)
        fail("fork", pid);
    if (!pid)
        CALL1(SYS_EXIT_GROUP, 0);
    return pid;
}

static inline void reap(long pid)
{
    CALL6(SYS_WAIT4, pid, 0, 0, 0, 0, 0);
}

/* ---- calibration ---- */

static char pages[8192] __attribute__((aligned(4096)));

void calibrate(void)
{
    BENCH("cal_tsc_pair", 1, 50, , , );
    BENCH(
        "cal_loop_2000001_insns", 1, 10, , {
            u64 n;
            asm volatile("mov $1000000, %0\n1: dec %0\n\tjnz 1b" : "=r"(n)::"cc");
        }, );
    write_pages(pages, sizeof pages);
    BENCH(
        "cal_rep_stosq_4096B", 1, 20, , {
            void *to = pages;
            u64 n = 512;
            asm volatile("rep stosq" : "+D"(to), "+c"(n) : "a"(0) : "memory");
        }, );
}

/* ---- the workloads ---- */

static void run_calls(void)
{
    BENCH("getpid", 1000, 50, , REPEAT(1000) CALL0(SYS_GETPID), );
    BENCH("getpid_1", 1, 200, , CALL0(SYS_GETPID), );
}

static void run_map(void)
{
    char *p;
    BENCH("mmap_munmap_4K", 100, 50, , REPEAT(100) unmap(map(PAGE), PAGE), );
    BENCH("mmap_munmap_64K", 100, 50, , REPEAT(100) unmap(map(16 * PAGE), 16 * PAGE), );
    BENCH("mmap_munmap_1M", 100, 50, , REPEAT(100) unmap(map(256 * PAGE), 256 * PAGE), );
    BENCH("mmap_munmap_4K_single", 1, 200, , unmap(map(PAGE), PAGE), );
    BENCH("mmap_4K_only_single", 1, 200, , p = map(PAGE), unmap(p, PAGE));
    BENCH("munmap_4K_only_single", 1, 200, p = map(PAGE), unmap(p, PAGE), );
    BENCH(
        "mmap_touch_munmap_4K", 100, 50, , REPEAT(100) {
            p = map(PAGE);
            write_byte(p);
            unmap(p, PAGE);
        }, );
    BENCH("mmap_touch_munmap_64K", 50, 50, , REPEAT(50) unmap(map_written(16 * PAGE), 16 * PAGE), );
}

static void run_faults(void)
{
    const u64 size = 16 << 20, n = size / PAGE;
    const int populate = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE;
    char *p;
    BENCH("fault_anon_write_16M", n, 10, p = map(size), write_pages(p, size), unmap(p, size));
    BENCH("fault_anon_readzero_16M", n, 10, p = map(size), read_pages(p, size), unmap(p, size));
    BENCH("fault_anon_write_after_zero_16M", n, 10, (p = map(size), read_pages(p, size)),
          write_pages(p, size), unmap(p, size));
    BENCH("populate_16M", n, 10, , p = map_file(size, PROT_READ | PROT_WRITE, populate, -1),
          unmap(p, size));
    BENCH("munmap_touched_16M_percall", 1, 10, p = map_written(size), unmap(p, size), );
    BENCH("munmap_touched_16M_perpage", n, 10, p = map_written(size), unmap(p, size), );
    BENCH("madv_dontneed_16M_perpage", n, 10, p = map_written(size),
          CALL3(SYS_MADVISE, p, size, MADV_DONTNEED), unmap(p, size));
    /* The first page of a range that has no page table, then the second one. */
    BENCH("fault_first_in_2M_region", 1, 50, p = map(2 * HUGE), write_byte(huge_aligned(p)),
          unmap(p, 2 * HUGE));
    BENCH("fault_one_warm_tables", 1, 50, (p = map(2 * HUGE), write_byte(huge_aligned(p))),
          write_byte(huge_aligned(p) + PAGE), unmap(p, 2 * HUGE));
}

static void run_protect(void)
{
    char *p = map_written(256 * PAGE);
    BENCH("mprotect_1p_toggle_pair", 100, 50, , REPEAT(100) toggle(p + 64 * PAGE, PAGE), );
    BENCH("mprotect_256p_toggle_pair", 50, 30, , REPEAT(50) toggle(p, 256 * PAGE), );
    unmap(p, 256 * PAGE);
    /* A page that is a whole mapping: nothing is split or merged. */
    p = map_written(PAGE);
    BENCH("mprotect_whole_1p_vma_toggle_pair", 100, 50, , REPEAT(100) toggle(p, PAGE), );
    unmap(p, PAGE);
}

static void run_brk(void)
{
    u64 end = ((u64)CALL1(SYS_BRK, 0) + PAGE - 1) & ~(PAGE - 1);
    CALL1(SYS_BRK, end);
    BENCH(
        "brk_grow_shrink_4K_pair", 100, 50, , REPEAT(100) {
            CALL1(SYS_BRK, end + PAGE);
            CALL1(SYS_BRK, end);
        }, );
    BENCH(
        "brk_grow_touch_shrink_4K", 100, 50, , REPEAT(100) {
            CALL1(SYS_BRK, end + PAGE);
            write_byte((char *)end);
            CALL1(SYS_BRK, end);
        }, );
    BENCH("brk_grow_4K_256x", 256, 20, , REPEAT(256) CALL1(SYS_BRK, end + (u64)(i + 1) * PAGE),
          CALL1(SYS_BRK, end));
}

static void run_tmpfs(void)
{
    const u64 size = 4 << 20, n = size / PAGE;
    const int both = PROT_READ | PROT_WRITE;
    char *p;
    long fd = CALL3(SYS_OPEN, "/t/f", O_RDWR | O_CREAT, 0600);
    if (fd < 0)
        fail("/t/f", fd);
    BENCH(
        "tmpfs_shared_write_fault_hole", n, 10,
        {
            CALL2(SYS_FTRUNCATE, fd, 0);
            CALL2(SYS_FTRUNCATE, fd, size);
            p = map_file(size, both, MAP_SHARED, fd);
        },
        write_pages(p, size), unmap(p, size));
    /* Every page of the file is there now. */
    BENCH("tmpfs_shared_write_fault_cached", n, 10, p = map_file(size, both, MAP_SHARED, fd),
          write_pages(p, size), unmap(p, size));
    BENCH("tmpfs_shared_read_fault_cached_perpage", n, 10,
          p = map_file(size, PROT_READ, MAP_SHARED, fd), read_pages(p, size), unmap(p, size));
    BENCH("tmpfs_munmap_cached_perpage", n, 10,
          (p = map_file(size, both, MAP_SHARED, fd), write_pages(p, size)), unmap(p, size), );
    BENCH("tmpfs_private_write_fault_cached", n, 10, p = map_file(size, both, MAP_PRIVATE, fd),
          write_pages(p, size), unmap(p, size));
    CALL2(SYS_FTRUNCATE, fd, 0);
    CALL1(SYS_CLOSE, fd);
}

static void run_fork(void)
{
    long pid;
    BENCH("fork_exit_wait_small", 1, 40, , reap(fork_ending()), );
    BENCH("fork_only_small", 1, 40, , pid = fork_ending(), reap(pid));
}

/* The pages that a child writes to, timed in the child, which leaves the time in shared. */
static void run_copy(char *p, u64 size, volatile u64 *shared)
{
    for (int batch = -WARM; batch < 10; batch++) {
        write_pages(p, size);
        long pid = CALL0(SYS_FORK);
        if (pid < 0)
            fail("fork", pid);
        if (!pid) {
            u64 start = ticks();
            write_pages(p, size);
            *shared = ticks() - start;
            CALL1(SYS_EXIT_GROUP, 0);
        }
        reap(pid);
        if (batch >= 0)
            sample[batch] = *shared;
    }
    print_batches("cow_copy_fault_4M", size / PAGE, 10);
}

static void run_fork_with_memory(void)
{
    const u64 size = 4 << 20;
    long pid;
    char *shared = map_file(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
    write_byte(shared);
    run_fork();
    char *p = map_written(size);
    BENCH("fork_exit_wait_4M", 1, 40, write_pages(p, size), reap(fork_ending()), );
    BENCH("fork_only_4M", 1, 40, write_pages(p, size), pid = fork_ending(), reap(pid));
    run_copy(p, size, (volatile u64 *)shared);
    /* The parent's writes after the child has gone: the pages are its own again. */
    BENCH("cow_reuse_fault_4M", size / PAGE, 10, reap(fork_ending()), write_pages(p, size), );
    unmap(p, size);
    unmap(shared, PAGE);
}

/* A range in which every other page can be written: 2000 mappings that cannot be merged. */
static char *map_many(void)
{
    char *p = map_file(2000 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    for (u64 i = 0; i < 2000; i += 2)
        protect(p + i * PAGE, PAGE, PROT_READ | PROT_WRITE);
    return p;
}

static void run_many(void)
{
    const u64 size = 2000 * PAGE;
    char *many = map_many();
    BENCH("mmap_munmap_4K_with_2000_vmas", 100, 50, , REPEAT(100) unmap(map(PAGE), PAGE), );
    BENCH("fault_anon_write_across_1000_vmas", 1000, 20,
          CALL3(SYS_MADVISE, many, size, MADV_DONTNEED),
          REPEAT(1000) write_byte(many + (u64)i * 2 * PAGE), );
    unmap(many, size);
    BENCH("munmap_2000_vmas_percall", 1, 10, many = map_many(), unmap(many, size), );
}

/* Linux turns huge pages off by itself when it has less than 512 MiB. */
static void run_huge(void)
{
    const u64 size = 16 << 20;
    char *p;
    long fd = CALL3(SYS_OPEN, "/sys/kernel/mm/transparent_hugepage/enabled", O_RDWR, 0);
    if (fd < 0)
        fail("transparent_hugepage", fd);
    CALL3(SYS_WRITE, fd, "madvise", 7);
    CALL1(SYS_CLOSE, fd);
    CALL6(SYS_PRCTL, PR_SET_THP_DISABLE, 0, 0, 0, 0, 0);
    BENCH("fault_anon_write_16M_thp_madvise", size / PAGE, 6,
          (p = map(size), CALL3(SYS_MADVISE, p, size, MADV_HUGEPAGE)), write_pages(p, size),
          unmap(p, size));
    CALL6(SYS_PRCTL, PR_SET_THP_DISABLE, 1, 0, 0, 0, 0);
}

void run_user_workloads(void)
{
    run_calls();
    run_map();
    run_faults();
    run_protect();
    run_brk();
    run_tmpfs();
    run_fork_with_memory();
    run_many();
    run_huge();
}
