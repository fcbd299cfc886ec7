/*
 * The end: reports what happened on the console and to Python, and stops all CPUs with the memory as
 * it is, so that it can be looked at.
 */
#pragma once
#include "lib/types.h"

#define PANIC_TRACE  24
#define PANIC_REASON 200

struct pt_regs;

_Noreturn void panic(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void panic_with_regs(const struct pt_regs *regs, const char *reason);
bool panic_in_progress(void);

/* Names what was expected and, in the message, what was found. */
#define KASSERT(condition, fmt, ...)                                                               \
    do {                                                                                           \
        if (unlikely(!(condition)))                                                                \
            panic("assertion failed: %s: " fmt, #condition, ##__VA_ARGS__);                        \
    } while (0)
