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

/*
 * A bit of a word, and the word with that bit set or not; of the index only the lowest six bits
 * count. One instruction each: from shifts the compiler makes three or four.
 */
static inline bool bits_test(u64 word, u64 index)
{
    return word >> (index % 64) & 1;
}

static inline u64 bits_with(u64 word, u64 index)
{
    __asm__("bts %1, %0" : "+r"(word) : "r"(index) : "cc");
    return word;
}

static inline u64 bits_without(u64 word, u64 index)
{
    __asm__("btr %1, %0" : "+r"(word) : "r"(index) : "cc");
    return word;
}

static inline u32 bits_count(u64 word)
{
    word -= word >> 1 & 0x5555555555555555ull;
    word = (word & 0x3333333333333333ull) + (word >> 2 & 0x3333333333333333ull);
    word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0full;
    return (u32)(word * 0x0101010101010101ull >> 56);
}
