/*
 * Formatted output into a caller's buffer: %d %i %u %x %X %o %c %s %p %% with the flags `-` and
 * `0`, width and precision as numbers or `*`, and the lengths l, ll and z.
 */
#pragma once
#include <stdarg.h>
#include "lib/types.h"

/* Writes at most cap bytes including the NUL; returns the length that the full text has. */
size_t vformat(char *buf, size_t cap, const char *fmt, va_list ap);
size_t format(char *buf, size_t cap, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
