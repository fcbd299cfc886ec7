/* The command line that the loader passes: words `name` or `name=value`. */
#pragma once
#include "lib/types.h"

struct kernel_options {
    u64 spin;   /* spin=N: loop rounds without work before a CPU halts; 0 halts at once */
    u64 cpus;   /* cpus=N: start at most N */
    bool quiet; /* quiet: no boot messages */
};
extern struct kernel_options options;

/* Takes the line apart; an option that is not known is named in the log. */
void cmdline_parse(const char *line);
