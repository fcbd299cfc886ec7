/*
 * The kernel's log: every printk goes into a ring of the last LOG_BYTES and out to the console.
 * Lock: log_lock for the ring; the console has its own.
 */
#pragma once
#include <stdarg.h>
#include "lib/types.h"

#define LOG_BYTES 16384

void printk(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Where printk's text goes besides the log; the raw serial line until the console takes over. */
void printk_set_sink(void (*sink)(const char *text, size_t n));
/* Calls emit with the log's text, oldest first, in pieces. */
void printk_replay(void (*emit)(const char *text, size_t n));
/* Copies the end of the log, at most cap bytes; returns how many. */
size_t printk_copy_tail(char *dst, size_t cap);
