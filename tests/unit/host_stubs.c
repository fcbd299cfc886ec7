/* What kernel sources need when they are compiled for the host: an end for those that panic. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include "core/panic.h"

_Noreturn void panic(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    printf("Bail out! kernel panic: ");
    vprintf(fmt, ap);
    printf("\n");
    va_end(ap);
    exit(1);
}
