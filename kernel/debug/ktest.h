/*
 * In-kernel tests. KTEST(part, what) { ... } registers one; KTEST_CHECK notes a failure and goes on.
 * They run from the console (`test`) and one by one from Python, which shows each as a test.
 *
 * A test leaves the kernel as it found it.
 */
#pragma once
#include "lib/types.h"

#define KTEST_REPORT 1024

struct ktest {
    u64 failures;
    char *report;
    size_t cap, len;
};

struct ktest_entry {
    const char *name;
    void (*run)(struct ktest *t);
};

#define KTEST(part, what)                                                                          \
    static void ktest_##part##_##what(struct ktest *t);                                            \
    static const struct ktest_entry ktest_entry_##part##_##what                                    \
        __attribute__((section(".kos.tests"), used)) = {#part "." #what, ktest_##part##_##what};   \
    static void ktest_##part##_##what(struct ktest *t)

#define KTEST_CHECK(condition, fmt, ...)                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            ktest_fail(t, __FILE__, __LINE__, "%s: " fmt, #condition, ##__VA_ARGS__);              \
    } while (0)

void ktest_fail(struct ktest *t, const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

u32 ktest_count(void);
const char *ktest_name(u32 index);
/* Runs one; the report has a line for each check that failed. Returns how many did. */
u64 ktest_run(u32 index, char *report, size_t cap);
