/* Stands in front of kernel/debug/ktest.h in hosted tests: KTEST registers before main starts. */
#pragma once
#include_next "debug/ktest.h"
#undef KTEST

void hosted_ktest_add(const char *name, void (*run)(struct ktest *t));

#define KTEST(part, what)                                                                          \
    static void ktest_##part##_##what(struct ktest *t);                                            \
    static __attribute__((constructor)) void ktest_add_##part##_##what(void)                       \
    {                                                                                              \
        hosted_ktest_add(#part "." #what, ktest_##part##_##what);                                  \
    }                                                                                              \
    static void ktest_##part##_##what(struct ktest *t)
