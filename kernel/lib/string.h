/* The standard memory and string functions, and bounded helpers. No kernel state. */
#pragma once
#include "lib/types.h"

void *memcpy(void *restrict dst, const void *restrict src, size_t n);
void *memmove(void *dst, const void *src, size_t n);
void *memset(void *dst, int byte, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);
int strcmp(const char *a, const char *b);
int strncmp(const char *a, const char *b, size_t n);
char *strchr(const char *s, int c);

/* Copies at most cap-1 bytes and always ends dst with NUL; returns the length copied. */
size_t string_copy(char *dst, const char *src, size_t cap);

/*
 * Parses a whole word as an unsigned number: decimal, 0x hexadecimal, with an optional K, M or G
 * (binary) suffix. False when the word is empty, has other characters or does not fit 64 bits.
 */
bool string_parse_u64(const char *word, u64 *value);
