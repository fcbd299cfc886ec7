/*
 * The machine that is not there: what the kernel's RPC sources call outside of themselves, as little
 * of it as will do. Memory comes in blocks for rings alone, each between two areas that nobody can
 * touch; a block that is not taken cannot be touched either.
 */
#include <sanitizer/asan_interface.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include "fuzz.h"
#include "core/panic.h"
#include "core/printk.h"
#include "debug/crash.h"
#include "debug/kbench.h"
#include "debug/ktest.h"
#include "drivers/uart.h"
#include "lib/errno.h"
#include "mm/memmap.h"
#include "mm/owned.h"
#include "mm/pages.h"
#include "rpc/ring.h"
#include "x86_64/smp.h"

#define BLOCKS      70 /* more than there can be rings */
#define BLOCK_BYTES (4096ul << RING_ORDER)
#define RAM_BYTES   ((2 * BLOCKS + 1) * BLOCK_BYTES)

unsigned char *fuzz_ram;
unsigned char fuzz_pages[RAM_BYTES / 4096 * sizeof(struct page)] __attribute__((aligned(16)));
unsigned fuzz_cpu;
struct cpu cpus[MAX_CPUS];
u32 cpu_count = 2;
struct memmap memmap;
struct zone zones[NR_ZONES];
struct zone *pcp_zone = &zones[ZONE_NORMAL];
u64 pcp_zone_start, page_end_pfn = RAM_BYTES / 4096;
struct uart uart_wire, uart_console;
u64 boot_tsc;
const u8 build_id_note[36];
u8 kernel_start[1], kernel_end[1];

static bool taken[BLOCKS];
static u32 blocks_taken, woken;

static u64 block_paddr(u32 block)
{
    return (2 * block + 1) * BLOCK_BYTES;
}

void machine_init(void)
{
    fuzz_ram = mmap(NULL, RAM_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(fuzz_ram != MAP_FAILED, "no memory");
    for (u32 b = 0; b < BLOCKS; b++) {
        int err = mprotect(fuzz_ram + block_paddr(b), BLOCK_BYTES, PROT_READ | PROT_WRITE);
        CHECK(!err, "no memory");
        ASAN_POISON_MEMORY_REGION(fuzz_ram + block_paddr(b), BLOCK_BYTES);
    }
    for (u32 i = 0; i < MAX_CPUS; i++)
        cpus[i].id = i;
    client_init();
}

u32 machine_blocks_taken(void)
{
    return blocks_taken;
}

u32 machine_woken(void)
{
    u32 mask = woken;
    woken = 0;
    return mask;
}

/* ---- Memory ---- */

u64 zone_take_one(struct zone *z, unsigned order, bool reserve)
{
    CHECK(z == pcp_zone && order == RING_ORDER && !reserve, "order %u", order);
    u32 b = 0;
    while (b < BLOCKS && taken[b])
        b++;
    if (b == BLOCKS)
        return 0;
    taken[b] = true;
    blocks_taken++;
    ASAN_UNPOISON_MEMORY_REGION(fuzz_ram + block_paddr(b), BLOCK_BYTES);
    return pfn_of(block_paddr(b));
}

void zone_give_one(struct zone *z, u64 pfn, unsigned order)
{
    u64 b = paddr_of(pfn) / BLOCK_BYTES / 2;
    (void)z;
    CHECK(order == RING_ORDER && b < BLOCKS && paddr_of(pfn) == block_paddr((u32)b) && taken[b],
          "frame %lu, order %u", pfn, order);
    taken[b] = false;
    blocks_taken--;
    ASAN_POISON_MEMORY_REGION(fuzz_ram + paddr_of(pfn), BLOCK_BYTES);
}

u64 pages_alloc_hard(unsigned order, bool reserve)
{
    (void)order;
    (void)reserve;
    return 0;
}

u64 owned_release_all(struct owner *o)
{
    (void)o;
    return 0;
}

u64 pages_free_count(void)
{
    return BLOCKS - blocks_taken;
}

u64 pcp_pages(void)
{
    return 0;
}

u64 range_total(const struct range_set *s)
{
    (void)s;
    return RAM_BYTES;
}

/* ---- CPUs and lines ---- */

void smp_wake(struct cpu *cpu)
{
    woken |= 1u << cpu->id;
}

bool smp_poll_work(struct cpu *cpu)
{
    CHECK(false, "CPU %u waits for a lock that nobody else can hold", cpu->id);
}

int uart_read(struct uart *u)
{
    CHECK(u == &uart_wire, "not the wire");
    return target_wire_read();
}

void uart_write(struct uart *u, const void *bytes, size_t n)
{
    CHECK(u == &uart_wire, "not the wire");
    target_wire_write(bytes, n);
}

/* ---- What handlers call ---- */

_Noreturn void panic(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "kernel panic: ");
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "\n");
    va_end(ap);
    abort();
}

size_t printk_copy_tail(char *dst, size_t cap)
{
    size_t n = MIN(cap, (size_t)40);
    memset(dst, '.', n);
    return n;
}

u32 ktest_count(void)
{
    return 3;
}

const char *ktest_name(u32 index)
{
    return index < ktest_count() ? "part.what" : NULL;
}

u64 ktest_run(u32 index, char *report, size_t cap)
{
    snprintf(report, cap, "test %u", index);
    return index;
}

int kbench_pairs(u32 what, u32 order, u32 rounds, u64 *ticks)
{
    *ticks = what + order + rounds;
    return rounds ? 0 : -EINVAL;
}

int kbench_batch(u32 order_of_frees, u64 *alloc, u64 *free)
{
    *alloc = *free = order_of_frees;
    return 0;
}

int kbench_mix(u32 mode, u32 steps, u32 limit, u64 seed, struct mix_result *r)
{
    *r = (struct mix_result){.ticks = mode + steps + limit + seed};
    return 0;
}

const char *kbench_worst_name(u32 index)
{
    return ktest_name(index);
}

int kbench_worst(u32 index, u64 *ticks)
{
    *ticks = index;
    return 0;
}

int crash_now(const char *kind)
{
    (void)kind;
    return -EINVAL;
}
