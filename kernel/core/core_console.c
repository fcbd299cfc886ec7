/* Console commands of the core: the log, and the end. */
#include "console/command.h"
#include "core/panic.h"
#include "core/printk.h"

static void log_emit(const char *text, size_t n)
{
    cprintf("%.*s", (int)n, text);
}

COMMAND(log, "", "the kernel's log since boot")
{
    if (!command_extra(argc, argv, 0))
        printk_replay(log_emit);
    return true;
}

COMMAND(panic, "[words]", "stops the kernel with these words")
{
    char text[PANIC_REASON];
    command_join(text, sizeof(text), argc - 1, argv + 1);
    panic("%s", argc > 1 ? text : "asked for from the console");
}
