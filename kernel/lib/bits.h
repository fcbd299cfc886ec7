/* Bit counting, without the library call that the compiler's builtin would need. */
#pragma once
#include "lib/types.h"

static inline u32 bits_count(u64 word)
{
    u32 n = 0;
    for (; word; word &= word - 1)
        n++;
    return n;
}
