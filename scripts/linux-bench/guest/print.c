/* Lines on the console, and the end of the machine. A line is collected and written at once. */
#include "print.h"

u64 sample[MAX_BATCHES];

static char line[256];
static u64 length;

static void put_char(char c)
{
    if (length < sizeof line)
        line[length++] = c;
}

static void put_text(const char *text)
{
    while (*text)
        put_char(*text++);
}

static void put_number(u64 value)
{
    char digits[24];
    int n = 0;
    do {
        digits[n++] = '0' + value % 10;
        value /= 10;
    } while (value);
    put_char(' ');
    while (n)
        put_char(digits[--n]);
}

static void end_line(void)
{
    put_char('\n');
    CALL3(SYS_WRITE, 1, line, length);
    length = 0;
}

static void sort(u64 *values, int n)
{
    for (int gap = n / 2; gap; gap /= 2)
        for (int i = gap; i < n; i++) {
            u64 value = values[i];
            int j = i;
            for (; j >= gap && values[j - gap] > value; j -= gap)
                values[j] = values[j - gap];
            values[j] = value;
        }
}

void print_batches(const char *name, u64 operations, int batches)
{
    u64 sum = 0;
    for (int i = 0; i < batches; i++)
        sum += sample[i];
    sort(sample, batches);
    put_text("R u ");
    put_text(name);
    put_number(operations);
    put_number((u64)batches);
    put_number(sample[0]);
    put_number(sample[batches / 2]);
    put_number(sample[batches - 1]);
    put_number(sum / (u64)batches);
    end_line();
}

void print_value(const char *name, u64 value)
{
    put_text("V ");
    put_text(name);
    put_number(value);
    end_line();
}

/* QEMU's isa-debug-exit ends with status 2 * code + 1. The port is asked for only here: a process
 * that holds one pays for it at every return to user mode, and that would be in every figure. */
static _Noreturn void leave(u8 code)
{
    CALL3(SYS_IOPERM, 0xf4, 4, 1);
    for (;;)
        asm volatile("outb %0, %1" ::"a"(code), "Nd"((unsigned short)0xf4));
}

void fail(const char *what, long result)
{
    put_text("FAIL ");
    put_text(what);
    put_number((u64)-result);
    end_line();
    leave(0x7f);
}

void finish(void)
{
    put_text("END");
    end_line();
    leave(0x10);
}
