/* See cmdline.h. `reserve=START-END` takes physical memory out of use (it may be given often). */
#include "core/cmdline.h"
#include "x86_64/layout.h"
#include "core/printk.h"
#include "lib/string.h"
#include "mm/memmap.h"

#define DEFAULT_SPIN 20000

struct kernel_options options = {.spin = DEFAULT_SPIN, .cpus = MAX_CPUS};

static bool option_reserve(char *value)
{
    u64 start, end;
    char *dash = strchr(value, '-');
    if (!dash)
        return false;
    *dash = 0;
    if (!string_parse_u64(value, &start) || !string_parse_u64(dash + 1, &end) || start >= end)
        return false;
    memmap_remove(start, end);
    return true;
}

static bool option_apply(const char *name, char *value)
{
    if (!strcmp(name, "spin"))
        return value && string_parse_u64(value, &options.spin);
    if (!strcmp(name, "cpus"))
        return value && string_parse_u64(value, &options.cpus) && options.cpus;
    if (!strcmp(name, "reserve"))
        return value && option_reserve(value);
    if (!strcmp(name, "quiet"))
        return (options.quiet = !value);
    return false;
}

static void word_apply(char *word)
{
    char copy[64];
    string_copy(copy, word, sizeof(copy));
    char *equals = strchr(word, '=');
    if (equals)
        *equals = 0;
    if (!option_apply(word, equals ? equals + 1 : NULL))
        printk(
            "command line: '%s' is not understood; known: spin=N cpus=N reserve=START-END quiet\n",
            copy);
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
