/* See ktest.h. */
#include "debug/ktest.h"
#include "lib/printf.h"

extern const struct ktest_entry tests_begin[], tests_end[];

u32 ktest_count(void)
{
    return (u32)(tests_end - tests_begin);
}

const char *ktest_name(u32 index)
{
    return index < ktest_count() ? tests_begin[index].name : NULL;
}

void ktest_fail(struct ktest *t, const char *file, int line, const char *fmt, ...)
{
    char text[200];
    va_list ap;
    va_start(ap, fmt);
    vformat(text, sizeof(text), fmt, ap);
    va_end(ap);
    t->failures++;
    size_t room = t->cap - t->len;
    t->len += MIN(format(t->report + t->len, room, "%s:%d: %s\n", file, line, text), room - 1);
}

u64 ktest_run(u32 index, char *report, size_t cap)
{
    struct ktest t = {.report = report, .cap = cap};
    report[0] = 0;
    tests_begin[index].run(&t);
    return t.failures;
}
