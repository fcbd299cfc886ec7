/* See machine.h: RAM, and booting on it. */
#define _GNU_SOURCE
#include "hosted/machine.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <signal.h>
#include <unistd.h>
#include "x86_64/paging.h"
#include "x86_64/percpu.h"
#include "x86_64/cpu.h"
#include "core/panic.h"
#include "mm/page.h"
#include "mm/pcp.h"
#include "mm/zone.h"

#define ARRAY_CHUNK  (2ull << 20)
#define DMA_END      (16ull << 20)
#define PANIC_STATUS 77 /* of a process in which a panic is what is wanted */

extern int hosted_panic_status;

struct page *page_array;
struct cpu_features cpu_features;
u32 hosted_locks_held;
static int ram_file;
static u64 ram_bytes;
static int ram_sharing = MAP_SHARED;

/* What the linker script says of the kernel; the three parts of its image must lie in this order. */
__asm__(".pushsection .bss.kernel_image, \"aw\", @nobits\n"
        ".balign 4096\n"
        ".globl kernel_start, rodata_start, data_start, kernel_end\n"
        "kernel_start: .skip 4096\n"
        "rodata_start: .skip 4096\n"
        "data_start: .skip 4096\n"
        "kernel_end:\n"
        ".popsection\n");

static void *map_or_die(void *at, u64 bytes, int protection, int flags, int file, u64 offset)
{
    void *p = mmap(at, bytes, protection, flags, file, (off_t)offset);
    KASSERT(p != MAP_FAILED, "no %lu bytes of address space", bytes);
    return p;
}

static void ram_make(const struct machine *m)
{
    u64 end = m->range[m->ranges - 1].end;
    ram_bytes = end;
    ram_file = memfd_create("ram", 0);
    KASSERT(ram_file >= 0 && !ftruncate(ram_file, (off_t)end), "no %lu bytes of RAM", end);
    hosted_ram = map_or_die(NULL, end, PROT_READ | PROT_WRITE, MAP_SHARED, ram_file, 0);
    map_or_die(hosted_ram, PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (m->warm) /* where the early allocator begins */
        memset(hosted_ram + DMA_END, 0x5a, MIN(end - DMA_END, 8ull << 20));
}

void machine_power_on(const struct machine *m)
{
    u64 image = (u64)_end - (u64)__executable_start;
    cpu_features = (struct cpu_features){.nx = !m->no_nx, .pge = true};
    cpu_count = m->cpus;
    for_each_cpu(cpu) {
        cpu->self = cpu;
        cpu->id = (u32)(cpu - cpus);
        cpu->apic_id = 2 * cpu->id + 1;
    }
    ram_make(m);
    for (u32 i = 0; i < m->ranges; i++)
        memmap_add(m->range[i].start, m->range[i].end);
    memmap_reserve(KERNEL_LOAD, KERNEL_LOAD + image);
    if (m->warm) /* what memmap_mark_boot of the earlier boot has left */
        *(u64 *)phys_to_virt(DMA_END) = 0x4b4f5320424f4f54;
    paging_init();
}

/* What the kernel's tables say of one page of the array. */
struct array_page {
    bool present, in_ram;
    int protection;
    u64 paddr;
};

static struct array_page array_page_at(u64 offset)
{
    struct pt_step steps[PT_LEVELS];
    unsigned n = paging_walk(paging_kernel_root(), VMEMMAP + offset, steps);
    u64 e = steps[n - 1].entry, span = pt_span(steps[n - 1].level);
    u64 paddr = (e & PTE_ADDRESS) + ((VMEMMAP + offset) & (span - 1));
    bool in_ram = phys_to_virt(paddr) == hosted_ram + paddr;
    KASSERT(in_ram || !(e & PTE_WRITE), "struct pages in the kernel's image, at 0x%lx", paddr);
    return (struct array_page){.present = e & PTE_PRESENT,
                               .in_ram = in_ram,
                               .protection = e & PTE_WRITE ? PROT_READ | PROT_WRITE : PROT_READ,
                               .paddr = paddr};
}

/* Whether b, so many bytes behind a, can be mapped together with it. */
static bool goes_on(struct array_page a, struct array_page b, u64 bytes)
{
    return a.present == b.present && a.in_ram == b.in_ram && a.protection == b.protection &&
           (!a.in_ram || b.paddr == a.paddr + bytes);
}

/* Where there is no page a use of it crashes; what is in the kernel's image is zeros. */
static void array_run_map(u64 offset, u64 bytes, struct array_page first)
{
    u8 *at = (u8 *)page_array + offset;
    if (!first.present)
        return;
    if (first.in_ram)
        map_or_die(at, bytes, first.protection, ram_sharing | MAP_FIXED, ram_file, first.paddr);
    else
        map_or_die(at, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

static u64 array_bytes(void)
{
    return ALIGN_UP(page_end_pfn * sizeof(struct page), ARRAY_CHUNK);
}

static void array_map(void)
{
    u64 end = array_bytes(), next;
    for (u64 offset = 0; offset < end; offset = next) {
        struct array_page first = array_page_at(offset);
        next = offset + PAGE_SIZE;
        while (next < end && goes_on(first, array_page_at(next), next - offset))
            next += PAGE_SIZE;
        array_run_map(offset, next - offset, first);
    }
}

void machine_map_page_array(void)
{
    page_array = map_or_die(NULL, array_bytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    array_map();
}

/* From here on what this process does to RAM is its own. */
static void ram_detach(void)
{
    ram_sharing = MAP_PRIVATE;
    map_or_die(hosted_ram, ram_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, ram_file, 0);
    array_map();
}

bool machine_panics(void (*run)(void *arg), void *arg)
{
    int status = 0;
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        ram_detach();
        hosted_panic_status = PANIC_STATUS;
        run(arg);
        _exit(0);
    }
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) &&
           WEXITSTATUS(status) == PANIC_STATUS;
}

void machine_boot(const struct machine *m)
{
    machine_power_on(m);
    page_array_init();
    machine_map_page_array();
    zones_init();
    pcp_init();
}

bool machine_run(const struct machine *m, bool (*run)(const struct machine *m))
{
    int status = 1;
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        exit(!run(m));
    }
    return child > 0 && waitpid(child, &status, 0) == child && !status;
}
