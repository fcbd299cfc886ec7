/*
 * Output of a hosted test: TAP on stdout. TAP_OK prints one line for one condition; CHECK notes the
 * first few failures of the running test, which tap_end then sums up in one line. With TAP_STOP in the
 * environment the first failure ends the program: who asks only whether one fails learns it soonest.
 */
#pragma once
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static unsigned tap_count, tap_failed, tap_faults;

static inline void tap_begin(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("TAP version 13\n");
}

__attribute__((format(printf, 4, 5))) static inline void
tap_fault(const char *file, int line, const char *condition, const char *fmt, ...)
{
    va_list ap;
    if (tap_faults++ >= 8)
        return;
    va_start(ap, fmt);
    printf("# %s:%d: %s: ", file, line, condition);
    vprintf(fmt, ap);
    printf("\n");
    va_end(ap);
    if (getenv("TAP_STOP"))
        exit(1);
}

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition))                                                                          \
            tap_fault(__FILE__, __LINE__, #condition, __VA_ARGS__);                                \
    } while (0)

/* Ends one test: good when no CHECK failed since the last. */
static inline void tap_test(const char *name)
{
    tap_count++;
    tap_failed += tap_faults != 0;
    printf("%sok %u - %s\n", tap_faults ? "not " : "", tap_count, name);
    tap_faults = 0;
}

#define RUN(test)                                                                                  \
    do {                                                                                           \
        test();                                                                                    \
        tap_test(#test);                                                                           \
    } while (0)

/* The exit status. */
static inline int tap_end(void)
{
    printf("1..%u\n", tap_count);
    return tap_failed != 0;
}

static inline uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}
