/* See cmdline.h. `reserve=START-END` takes physical memory out of use (it may be given often). */
#include "core/cmdline.h"
#include "x86_64/layout.h"
#include "core/printk.h"
#include "lib/string.h"
#include "mm/memmap.h"

#define DEFAULT_SPIN 20000

extern u8 kernel_start[], kernel_end[];

struct kernel_options options = {.spin = DEFAULT_SPIN, .cpus = MAX_CPUS};

/* Memory that is in use already - the kernel's image - cannot be taken out of use. */
static bool option_reserve(char *value)
{
    u64 start, end;
    char *dash = strchr(value, '-');
    if (!dash)
        return false;
    *dash = 0;
    if (!string_parse_u64(value, &start) || !string_parse_u64(dash + 1, &end) || start >= end)
        return false;
    if (start < (u64)kernel_end - KERNEL_BASE && end > (u64)kernel_start - KERNEL_BASE)
        return false;
    memmap_remove(start, end);
    return true;
}

static bool option_apply(const char *name, char *value)
{
    u64 number;
    if (!strcmp(name, "reserve"))
        return value && option_reserve(value);
    if (!strcmp(name, "quiet"))
        return (options.quiet = !value);
    if (!value || !string_parse_u64(value, &number))
        return false;
    if (!strcmp(name, "spin"))
        options.spin = number;
    else if (!strcmp(name, "cpus") && number)
        options.cpus = number;
    else
        return false;
    return true;
}

static void word_apply(char *word)
{
    char copy[56];
    string_copy(copy, word, sizeof(copy));
    char *equals = strchr(word, '=');
    if (equals)
        *equals = 0;
    if (option_apply(word, equals ? equals + 1 : NULL))
        return;
    printk("command line: '%s' is refused\n", copy);
    printk("  known: spin=N, cpus=N, reserve=START-END (not the kernel's own), quiet\n");
}

void cmdline_parse(const char *line)
{
    char word[128];
    while (*line) {
        size_t n = 0;
        for (; *line == ' '; line++)
            ;
        for (; *line && *line != ' '; line++)
            if (n + 1 < sizeof(word))
                word[n++] = *line;
        word[n] = 0;
        if (n)
            word_apply(word);
    }
}
