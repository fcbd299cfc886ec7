// SPDX-License-Identifier: GPL-2.0
/* A module that measures what Linux's allocators cost. All of it runs while the module is loaded, in
 * the loader's context; nothing else runs then. What it found is in /proc/kbench, in the lines that
 * guest/print.h describes.
 */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/sort.h>
#include <linux/vmalloc.h>
#include "kbench.h"

#define TEXT_BYTES (128 << 10)

const char *const order_names[] = {"lifo", "fifo", "rand"};
u64 sample[MAX_BATCHES], sample_free[MAX_BATCHES];
void *object[OBJECTS];
u32 permutation[OBJECTS];
u64 random_state;

static char *text;
static size_t text_length;

void print(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    text_length += vscnprintf(text + text_length, TEXT_BYTES - text_length, format, args);
    va_end(args);
}

static int compare(const void *a, const void *b)
{
    u64 x = *(const u64 *)a, y = *(const u64 *)b;
    return x < y ? -1 : x > y;
}

void print_batches(u64 *ticks, const char *name, u64 operations, int batches)
{
    u64 sum = 0;
    int i;
    for (i = 0; i < batches; i++)
        sum += ticks[i];
    sort(ticks, batches, sizeof(*ticks), compare, NULL);
    print("R k %s %llu %d %llu %llu %llu %llu\n", name, operations, batches, ticks[0],
          ticks[batches / 2], ticks[batches - 1], sum / batches);
}

void permute(enum free_order order)
{
    int i;
    for (i = 0; i < OBJECTS; i++)
        permutation[i] = order == FREE_LIFO ? OBJECTS - 1 - i : i;
    if (order != FREE_RANDOM)
        return;
    random_start();
    for (i = OBJECTS - 1; i > 0; i--) {
        u32 j = random_next() % (i + 1), kept = permutation[i];
        permutation[i] = permutation[j];
        permutation[j] = kept;
    }
}

/* Code whose number of instructions is known. */
static void calibrate(void)
{
    BENCH("cal_tsc_pair", 1, 50, , , );
    BENCH("cal_loop_2000001_insns", 1, 10, , ({
              u64 n;
              asm volatile("mov $1000000, %0\n1: dec %0\n\tjnz 1b" : "=r"(n)::"cc");
          }), );
}

static ssize_t read_text(struct file *file, char __user *to, size_t size, loff_t *at)
{
    return simple_read_from_buffer(to, size, at, text, text_length);
}

static const struct proc_ops operations = {
    .proc_read = read_text,
    .proc_lseek = default_llseek,
};

static int __init kbench_init(void)
{
    /* All memory of the module's own first: the workloads find the same free memory each time. */
    text = vmalloc(TEXT_BYTES);
    if (!text || mixed_init())
        return -ENOMEM;
    calibrate();
    bench_pages();
    bench_slab();
    bench_mixed();
    return proc_create("kbench", 0400, NULL, &operations) ? 0 : -ENOMEM;
}

module_init(kbench_init);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("what the allocators cost");
