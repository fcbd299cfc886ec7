/*
 * Console commands for testing: test runs the in-kernel tests and reports them as KTAP does (a plan,
 * a line for each test, what failed as comments before that line), crash breaks the kernel.
 */
#include "console/command.h"
#include "debug/crash.h"
#include "debug/ktest.h"
#include "lib/string.h"

static bool test_matches(u32 index, const char *prefix)
{
    return !strncmp(ktest_name(index), prefix, strlen(prefix));
}

static u32 tests_matching(const char *prefix)
{
    u32 n = 0;
    for (u32 i = 0; i < ktest_count(); i++)
        n += test_matches(i, prefix);
    return n;
}

static void print_comment(const char *text)
{
    while (*text) {
        int n = 0;
        while (text[n] && text[n] != '\n')
            n++;
        cprintf("# %.*s\n", n, text);
        text += n + (text[n] == '\n');
    }
}

/* Runs one and reports it as the number-th; returns whether it passed. */
static bool run_test(u32 index, u32 number)
{
    char report[KTEST_REPORT];
    u64 failures = ktest_run(index, report, sizeof(report));
    print_comment(report);
    cprintf("%s %u %s\n", failures ? "not ok" : "ok", number, ktest_name(index));
    return !failures;
}

COMMAND(test, "[name]", "runs the tests whose names begin so")
{
    const char *prefix = argc > 1 ? argv[1] : "";
    u32 n = tests_matching(prefix), number = 0, passed = 0;
    if (command_extra(argc, argv, 1))
        return true;
    if (!n && argc > 1)
        return command_expected(prefix, "how a test's name begins; 'test' alone runs all");
    cprintf("KTAP version 1\n1..%u\n", n);
    for (u32 i = 0; i < ktest_count(); i++)
        if (test_matches(i, prefix))
            passed += run_test(i, ++number);
    cprintf("# pass:%u fail:%u\n", passed, n - passed);
    return true;
}

static void crash_usage(void)
{
    char kinds[128];
    string_copy(kinds, crash_kinds, sizeof(kinds));
    for (char *p = kinds; *p; p++)
        if (*p == ' ')
            *p = '|';
    cprintf("usage: crash %s\n", kinds);
}

COMMAND(crash, "<kind>", "breaks the kernel; alone, lists the kinds")
{
    if (command_extra(argc, argv, 1))
        return true;
    if (argc < 2) {
        crash_usage();
        return true;
    }
    crash_now(argv[1]);
    return command_expected(argv[1], crash_kinds);
}
