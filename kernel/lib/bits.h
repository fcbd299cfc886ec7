/* Words as sets of bits, without the library calls that the compiler's builtins would need. */
#pragma once
#include "lib/types.h"

/* The index of the lowest bit that is set; the word must have one. */
static inline u64 bits_lowest(u64 word)
{
    u64 index;
    __asm__("bsf %1, %0" : "=r"(index) : "rm"(word) : "cc");
    return index;
}

static inline u32 bits_count(u64 word)
{
    u32 n = 0;
    for (; word; word &= word - 1)
        n++;
    return n;
}
