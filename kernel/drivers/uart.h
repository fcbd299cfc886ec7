/*
 * 16550 serial lines: COM1 is the console, COM2 the wire to Python.
 *
 * Received bytes go from the interrupt handler into a ring that one reader empties. A full ring
 * turns the interrupt off: the bytes stay in the device, which holds back the sender, and nothing is
 * lost. Sending waits for the transmitter before each FIFO's worth of 16 bytes.
 */
#pragma once
#include "lib/types.h"

#define UART_RING 4096

struct uart {
    u16 port;
    bool paused;    /* the ring was full: the receive interrupt is off */
    u32 head, tail; /* head: written by the handler; tail: by the reader */
    u8 ring[UART_RING];
};

extern struct uart uart_console, uart_wire;

void uart_init(struct uart *u);
/* Turns the receive interrupt on; before that nothing is received. */
void uart_listen(struct uart *u);
/* The interrupt handler's part. */
void uart_receive(struct uart *u);
static inline bool uart_pending(const struct uart *u)
{
    return READ_ONCE(u->head) != u->tail;
}
/* The next received byte, or -1. */
int uart_read(struct uart *u);
void uart_write(struct uart *u, const void *bytes, size_t n);
/* The same for text: each \n becomes \r\n. */
void uart_write_text(struct uart *u, const char *text, size_t n);
