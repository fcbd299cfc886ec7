/* See uart.h. */
#include "drivers/uart.h"
#include "x86_64/cpu.h"

#define UART_DATA  0
#define UART_IER   1
#define UART_FCR   2
#define UART_LCR   3
#define UART_MCR   4
#define UART_LSR   5
#define LSR_DATA   1
#define LSR_THRE   32
#define FIFO_BYTES 16

struct uart uart_console = {.port = 0x3f8};
struct uart uart_wire = {.port = 0x2f8};

void uart_init(struct uart *u)
{
    outb(u->port + UART_IER, 0);
    outb(u->port + UART_LCR, 0x80); /* divisor latch: 115200 baud */
    outb(u->port + UART_DATA, 1);
    outb(u->port + UART_IER, 0);
    outb(u->port + UART_LCR, 0x03);
    outb(u->port + UART_FCR, 0x07); /* FIFOs on and emptied, interrupt at the first byte */
    outb(u->port + UART_MCR, 0x0b);
}

void uart_listen(struct uart *u)
{
    outb(u->port + UART_IER, 1);
}

void uart_receive(struct uart *u)
{
    while (inb(u->port + UART_LSR) & LSR_DATA) {
        if (u->head - READ_ONCE(u->tail) == UART_RING) {
            outb(u->port + UART_IER, 0);
            WRITE_ONCE(u->paused, true);
            return;
        }
        u->ring[u->head % UART_RING] = inb(u->port + UART_DATA);
        __atomic_store_n(&u->head, u->head + 1, __ATOMIC_RELEASE);
    }
}

int uart_read(struct uart *u)
{
    if (__atomic_load_n(&u->head, __ATOMIC_ACQUIRE) == u->tail) {
        if (READ_ONCE(u->paused)) {
            WRITE_ONCE(u->paused, false);
            outb(u->port + UART_IER, 1);
        }
        return -1;
    }
    u8 byte = u->ring[u->tail % UART_RING];
    __atomic_store_n(&u->tail, u->tail + 1, __ATOMIC_RELEASE);
    return byte;
}

void uart_write(struct uart *u, const void *bytes, size_t n)
{
    const u8 *p = bytes;
    while (n) {
        while (!(inb(u->port + UART_LSR) & LSR_THRE))
            cpu_relax();
        for (size_t i = 0; i < FIFO_BYTES && n; i++, n--)
            outb(u->port + UART_DATA, *p++);
    }
}

void uart_write_text(struct uart *u, const char *text, size_t n)
{
    while (n) {
        size_t line = 0;
        while (line < n && text[line] != '\n')
            line++;
        uart_write(u, text, line);
        if (line < n)
            uart_write(u, "\r\n", 2);
        line += line < n;
        text += line;
        n -= line;
    }
}
