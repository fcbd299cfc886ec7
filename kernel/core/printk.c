/* See printk.h. */
#include "core/printk.h"
#include "core/spinlock.h"
#include "drivers/uart.h"
#include "lib/printf.h"
#include "lib/string.h"

static char log_ring[LOG_BYTES];
static u64 log_written; /* bytes ever; the next goes to log_written % LOG_BYTES */
static struct spinlock log_lock;

static void raw_sink(const char *text, size_t n)
{
    uart_write_text(&uart_console, text, n);
}

static void (*log_sink)(const char *, size_t) = raw_sink;

void printk_set_sink(void (*sink)(const char *, size_t))
{
    log_sink = sink;
}

static void log_append(const char *text, size_t n)
{
    SPIN_GUARD(&log_lock);
    for (size_t i = 0; i < n; i++)
        log_ring[log_written++ % LOG_BYTES] = text[i];
}

void printk(const char *fmt, ...)
{
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    size_t n = MIN(vformat(text, sizeof(text), fmt, ap), sizeof(text) - 1);
    va_end(ap);
    log_append(text, n);
    log_sink(text, n);
}

static u64 log_oldest(void)
{
    return log_written > LOG_BYTES ? log_written - LOG_BYTES : 0;
}

void printk_replay(void (*emit)(const char *, size_t))
{
    char piece[128];
    u64 at = log_oldest();
    while (at < READ_ONCE(log_written)) {
        size_t n = 0;
        for (; n < sizeof(piece) && at < log_written; n++, at++)
            piece[n] = log_ring[at % LOG_BYTES];
        emit(piece, n);
    }
}

size_t printk_copy_tail(char *dst, size_t cap)
{
    SPIN_GUARD(&log_lock);
    u64 oldest = log_oldest();
    u64 at = log_written - oldest > cap ? log_written - cap : oldest;
    size_t n = 0;
    while (at < log_written)
        dst[n++] = log_ring[at++ % LOG_BYTES];
    return n;
}
