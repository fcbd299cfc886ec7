/*
 * What kernel sources need when they are compiled for the host: an end for those that panic, and
 * physical memory, which begins at address 0 of this process unless hosted/machine.c makes some.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "x86_64/paging.h"
#include "core/panic.h"

u8 *hosted_ram;
int hosted_panic_status; /* when set, a panic is expected: it ends the process quietly with this */

_Noreturn void panic(const char *fmt, ...)
{
    va_list ap;
    if (hosted_panic_status)
        _exit(hosted_panic_status);
    va_start(ap, fmt);
    printf("Bail out! kernel panic: ");
    vprintf(fmt, ap);
    printf("\n");
    va_end(ap);
    exit(1);
}
