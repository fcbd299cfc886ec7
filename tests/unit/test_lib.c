/* sources: kernel/lib/printf.c kernel/lib/string.c kernel/lib/crc32.c kernel/lib/cobs.c */
/* flags: -Dmemcpy=kos_memcpy -Dmemmove=kos_memmove -Dmemset=kos_memset -Dmemcmp=kos_memcmp */
/* flags: -Dstrlen=kos_strlen -Dstrcmp=kos_strcmp -Dstrncmp=kos_strncmp -Dstrchr=kos_strchr */
/* flags: -fno-builtin */
/*
 * The library against the host's own: formatting, memory and string functions, and against known
 * values and round trips: CRC-32, COBS, numbers.
 *
 * The flags above give the kernel's functions names of their own; undefined again here, both sides
 * can be called.
 */
#include "lib/cobs.h"
#include "lib/crc32.h"
#include "lib/printf.h"
#include "lib/string.h"
#undef memcpy
#undef memmove
#undef memset
#undef memcmp
#undef strlen
#undef strcmp
#undef strncmp
#undef strchr
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "tap.h"

static u64 seed = 0x9e3779b97f4a7c15;

/* ---- Formatting ---- */

/* The kernel's format is not checked by the compiler here, as the specs are made at run time. */
static size_t kos_print(char *buf, size_t cap, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    size_t n = vformat(buf, cap, fmt, ap);
    va_end(ap);
    return n;
}

#pragma GCC diagnostic ignored "-Wformat-nonliteral"
#pragma GCC diagnostic ignored "-Wformat-security"
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wformat-truncation"
#endif
#pragma GCC diagnostic ignored "-Wformat-zero-length"

#define SAME(spec, ...)                                                                            \
    do {                                                                                           \
        char kos[128], host[128];                                                                  \
        size_t n = kos_print(kos, sizeof(kos), spec, __VA_ARGS__);                                 \
        int m = snprintf(host, sizeof(host), spec, __VA_ARGS__);                                   \
        CHECK(n == (size_t)m && !strcmp(kos, host), "\"%s\": [%s] %zu, expected [%s] %d", spec,    \
              kos, n, host, m);                                                                    \
    } while (0)

/* Calls what with each spec that flags, width and precision give for a conversion. */
static void each_spec(const char *conversion, bool zero_flag, void (*what)(const char *spec))
{
    static const char *const flags[] = {"", "-", "0", "-0"};
    static const char *const widths[] = {"", "1", "3", "8", "20", "33"};
    static const char *const precisions[] = {"", ".1", ".3", ".7", ".25"};
    for (unsigned f = 0; f < (zero_flag ? 4 : 2); f++)
        for (unsigned w = 0; w < ARRAY_SIZE(widths); w++)
            for (unsigned p = 0; p < ARRAY_SIZE(precisions); p++) {
                char spec[32];
                snprintf(spec, sizeof(spec), "<%%%s%s%s%s>", flags[f], widths[w], precisions[p],
                         conversion);
                what(spec);
            }
}

static void ints(const char *spec)
{
    static const int values[] = {0, 1, -1, 7, 42, -999, 123456, INT_MAX, INT_MIN};
    for (unsigned i = 0; i < ARRAY_SIZE(values); i++)
        SAME(spec, values[i]);
}

static void longs(const char *spec)
{
    static const long values[] = {0, 1, -1, 15, 16, 1l << 40, -(1l << 52), LONG_MAX, LONG_MIN};
    for (unsigned i = 0; i < ARRAY_SIZE(values); i++)
        SAME(spec, values[i]);
}

static void texts(const char *spec)
{
    static const char *const values[] = {"", "a", "abc", "kernel page", "a longer text than most"};
    for (unsigned i = 0; i < ARRAY_SIZE(values); i++)
        SAME(spec, values[i]);
}

static void format_numbers(void)
{
    static const char *const of_int[] = {"d", "i", "u", "x", "X", "o"};
    static const char *const of_long[] = {"ld", "li", "lu", "lx", "lX", "lo", "llu", "zu", "zx"};
    for (unsigned i = 0; i < ARRAY_SIZE(of_int); i++)
        each_spec(of_int[i], true, ints);
    for (unsigned i = 0; i < ARRAY_SIZE(of_long); i++)
        each_spec(of_long[i], true, longs);
}

static void format_text(void)
{
    each_spec("s", false, texts);
    SAME("%.0s|", "abc");
    SAME("%c%c%c", 'k', 'o', 's');
    SAME("%3c|%-3c|", 'a', 'b');
    SAME("%s%%%d%%", "x", 5);
    SAME("%.*s|%*d|%-*d|", 2, "abc", 6, 42, 6, 42);
    SAME("no conversion%s", "");
    static const char unended[3] = {'a', 'b', 'c'};
    SAME("%.3s|", unended);
}

static void format_pointers(void)
{
    SAME("%p", (void *)0x1234);
    SAME("%20p|%-20p|", (void *)&seed, (void *)&seed);
}

/* What C defines for a star's value and for a precision of zero. */
static void format_corners(void)
{
    SAME("%*d|", -6, 42);
    SAME("%*s|", -6, "abc");
    SAME("%.*d|", -1, 42);
    SAME("%.*s|", -1, "abc");
    SAME("%.0d|", 0);
    SAME("%.0x|", 0u);
    SAME("%.d|", 0);
    SAME("%5.0u|", 0u);
}

static void format_random(void)
{
    static const char *const conversions[] = {"d", "u", "x", "X", "o"};
    for (int i = 0; i < 20000; i++) {
        char spec[40];
        u64 r = random_next(&seed), value = random_next(&seed) >> (r % 64);
        snprintf(spec, sizeof(spec), "%%%s%s%u.%ul%s", r & 64 ? "-" : "", r & 128 ? "0" : "",
                 (unsigned)(r >> 8) % 40, 1 + (unsigned)(r >> 16) % 20,
                 conversions[(r >> 24) % ARRAY_SIZE(conversions)]);
        SAME(spec, value);
    }
}

static void format_truncation(void)
{
    for (size_t cap = 0; cap < 30; cap++) {
        char kos[40], host[40];
        memset(kos, '#', sizeof(kos));
        memset(host, '#', sizeof(host));
        size_t n = kos_print(kos, cap, "%d-%8s-%x", -12345, "page", 0xbeefu);
        int m = snprintf(host, cap, "%d-%8s-%x", -12345, "page", 0xbeefu);
        CHECK(n == (size_t)m && !memcmp(kos, host, sizeof(kos)), "room for %zu", cap);
    }
}

/* ---- Memory and strings ---- */

static void fill(u8 *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++)
        bytes[i] = (u8)random_next(&seed);
}

static int sign(int v)
{
    return (v > 0) - (v < 0);
}

static void memory_copy(void)
{
    u8 source[200], kos[200], host[200];
    for (size_t n = 0; n <= 130; n++)
        for (size_t at = 0; at < 16; at++) {
            fill(source, sizeof(source));
            memset(kos, 0x77, sizeof(kos));
            memset(host, 0x77, sizeof(host));
            CHECK(kos_memcpy(kos + at, source + (n + at) % 9, n) == kos + at, "result");
            memcpy(host + at, source + (n + at) % 9, n);
            CHECK(!memcmp(kos, host, sizeof(kos)), "memcpy of %zu at %zu", n, at);
            CHECK(kos_memset(kos + at, (int)(n * 3 + 0x100), n) == kos + at, "result");
            memset(host + at, (int)(n * 3 + 0x100), n);
            CHECK(!memcmp(kos, host, sizeof(kos)), "memset of %zu at %zu", n, at);
        }
}

static void memory_move(void)
{
    u8 kos[160], host[160];
    for (size_t n = 0; n <= 70; n++)
        for (size_t from = 0; from < 30; from++)
            for (size_t to = 0; to < 30; to++) {
                fill(kos, sizeof(kos));
                memcpy(host, kos, sizeof(host));
                CHECK(kos_memmove(kos + to, kos + from, n) == kos + to, "result");
                memmove(host + to, host + from, n);
                CHECK(!memcmp(kos, host, sizeof(kos)), "%zu bytes from %zu to %zu", n, from, to);
            }
}

static void memory_compare(void)
{
    u8 a[64], b[64];
    for (int i = 0; i < 5000; i++) {
        size_t n = random_next(&seed) % sizeof(a);
        fill(a, sizeof(a));
        memcpy(b, a, sizeof(b));
        if (i % 3)
            b[random_next(&seed) % sizeof(b)] ^= (u8)random_next(&seed);
        CHECK(sign(kos_memcmp(a, b, n)) == sign(memcmp(a, b, n)), "%zu bytes", n);
    }
}

static void strings(void)
{
    static const char *const words[] = {"", "a", "b", "ab", "abc", "abd", "\x80", "\xff", "a\xff"};
    for (unsigned i = 0; i < ARRAY_SIZE(words); i++) {
        const char *x = words[i];
        CHECK(kos_strlen(x) == strlen(x), "\"%s\"", x);
        for (unsigned k = 0; k < ARRAY_SIZE(words); k++) {
            const char *y = words[k];
            CHECK(sign(kos_strcmp(x, y)) == sign(strcmp(x, y)), "\"%s\", \"%s\"", x, y);
            for (size_t n = 0; n < 5; n++)
                CHECK(sign(kos_strncmp(x, y, n)) == sign(strncmp(x, y, n)), "\"%s\", \"%s\", %zu",
                      x, y, n);
        }
        for (int c = -1; c < 256; c++)
            CHECK(kos_strchr(x, c) == strchr(x, c), "\"%s\", %d", x, c);
    }
}

static void string_copies(void)
{
    for (size_t cap = 0; cap < 8; cap++) {
        char *exact = malloc(cap + !cap); /* so that a byte too many is seen */
        size_t n = string_copy(exact, "kernel", cap), expected = cap ? MIN(cap - 1, (size_t)6) : 0;
        CHECK(n == expected, "room for %zu: %zu", cap, n);
        CHECK(!cap || (!strncmp(exact, "kernel", n) && !exact[n]), "room for %zu", cap);
        free(exact);
    }
}

static void numbers(void)
{
    static const struct {
        const char *word;
        bool good;
        u64 value;
    } rows[] = {
        {"0", true, 0},
        {"1", true, 1},
        {"007", true, 7},
        {"4096", true, 4096},
        {"18446744073709551615", true, UINT64_MAX},
        {"18446744073709551616", false, 0},
        {"18446744073709551620", false, 0},
        {"99999999999999999999999", false, 0},
        {"0x0", true, 0},
        {"0x10", true, 16},
        {"0XfF", true, 255},
        {"0xABCDEF", true, 0xabcdef},
        {"0xffffffffffffffff", true, UINT64_MAX},
        {"0x10000000000000000", false, 0},
        {"0x", false, 0},
        {"x10", false, 0},
        {"0xg", false, 0},
        {"0x1g", false, 0},
        {"1K", true, 1024},
        {"3M", true, 3 << 20},
        {"2G", true, 2ull << 30},
        {"0x10K", true, 16384},
        {"0G", true, 0},
        {"K", false, 0},
        {"0xK", false, 0},
        {"1KK", false, 0},
        {"1K1", false, 0},
        {"1k", false, 0},
        {"1T", false, 0},
        {"1.5G", false, 0},
        {"17179869183G", true, 17179869183ull << 30},
        {"17179869184G", false, 0},
        {"18014398509481983K", true, 18014398509481983ull << 10},
        {"18014398509481984K", false, 0},
        {"", false, 0},
        {" ", false, 0},
        {" 1", false, 0},
        {"1 ", false, 0},
        {"-1", false, 0},
        {"+1", false, 0},
        {"12a", false, 0},
        {"a", false, 0},
        {"1_000", false, 0},
        {"\xff", false, 0},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        u64 value = 12345;
        bool good = string_parse_u64(rows[i].word, &value);
        CHECK(good == rows[i].good, "\"%s\": %d", rows[i].word, good);
        CHECK(value == (rows[i].good ? rows[i].value : 12345), "\"%s\": %lu", rows[i].word, value);
    }
    for (int i = 0; i < 2000; i++) {
        char word[32];
        u64 value, expected = random_next(&seed) >> (random_next(&seed) % 64);
        snprintf(word, sizeof(word), i % 2 ? "%lu" : "0x%lx", expected);
        CHECK(string_parse_u64(word, &value) && value == expected, "\"%s\"", word);
    }
}

/* ---- CRC-32 and COBS ---- */

/* Straight from the polynomial, a bit at a time. */
static u32 crc_by_bits(const u8 *data, size_t n)
{
    u32 crc = ~0u;
    for (size_t i = 0; i < n; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ~crc;
}

static void checksums(void)
{
    static const struct {
        const char *text;
        u32 crc;
    } known[] = {
        {"", 0},
        {"a", 0xe8b7be43},
        {"abc", 0x352441c2},
        {"123456789", 0xcbf43926},
        {"The quick brown fox jumps over the lazy dog", 0x414fa339},
    };
    u8 data[300];
    for (unsigned i = 0; i < ARRAY_SIZE(known); i++)
        CHECK(crc32(0, known[i].text, strlen(known[i].text)) == known[i].crc, "\"%s\"",
              known[i].text);
    for (size_t n = 0; n <= sizeof(data); n++) {
        fill(data, n);
        u32 whole = crc32(0, data, n), part = crc32(0, data, n / 3);
        CHECK(whole == crc_by_bits(data, n), "%zu bytes", n);
        CHECK(crc32(part, data + n / 3, n - n / 3) == whole, "%zu bytes in two parts", n);
    }
}

/* Every length, with no zeros, only zeros and some; into buffers of exactly the promised size. */
static void cobs_round_trips(void)
{
    for (size_t n = 0; n <= 1100; n++)
        for (unsigned kind = 0; kind < 5; kind++) {
            u8 *plain = malloc(n + !n), *coded = malloc(COBS_MAX(n));
            for (size_t i = 0; i < n; i++) {
                u64 r = random_next(&seed);
                bool zero = kind == 1 || (kind == 2 && r % 4 == 0) ||
                            (kind == 3 && i % 254 == 253) || (kind == 4 && r % 256 == 0);
                plain[i] = zero ? 0 : (u8)(r >> 8) | 1;
            }
            size_t len = cobs_encode(coded, plain, n);
            CHECK(len >= n + 1 && len <= COBS_MAX(n), "%zu bytes became %zu", n, len);
            CHECK(!memchr(coded, 0, len), "%zu bytes, kind %u: a zero", n, kind);
            u8 *exact = malloc(len);
            memcpy(exact, coded, len);
            long back = cobs_decode(exact, len);
            CHECK(back == (long)n && !memcmp(exact, plain, n), "%zu bytes, kind %u: %ld back", n,
                  kind, back);
            free(plain);
            free(coded);
            free(exact);
        }
}

static void cobs_known(void)
{
    static const struct {
        size_t n;
        u8 plain[4], coded[6];
    } rows[] = {
        {0, {0}, {1}},
        {1, {0}, {1, 1}},
        {2, {0, 0}, {1, 1, 1}},
        {3, {0x11, 0, 0x22}, {2, 0x11, 2, 0x22}},
        {4, {0x11, 0, 0, 0}, {2, 0x11, 1, 1, 1}},
        {4, {1, 2, 3, 4}, {5, 1, 2, 3, 4}},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        u8 coded[8] = {0};
        size_t len = cobs_encode(coded, rows[i].plain, rows[i].n);
        CHECK(len == rows[i].n + 1 && !memcmp(coded, rows[i].coded, len), "row %u", i);
    }
}

/* Anything may come in: the decoder reads and writes nothing outside, and accepts only encodings. */
static void cobs_garbage(void)
{
    for (int i = 0; i < 60000; i++) {
        size_t n = random_next(&seed) % (i % 2 ? 20 : 600);
        u8 *bytes = malloc(n + !n), *again = malloc(COBS_MAX(n)), *copy = malloc(n + !n);
        u64 small = random_next(&seed) % 3;
        for (size_t k = 0; k < n; k++)
            bytes[k] = (u8)(small ? random_next(&seed) % 6 + (small - 1) : random_next(&seed));
        memcpy(copy, bytes, n);
        long len = cobs_decode(bytes, n);
        CHECK(len >= -1 && len <= (long)n, "%zu bytes: %ld", n, len);
        if (len >= 0 && n) {
            CHECK(!memchr(copy, 0, n), "%zu bytes with a zero were accepted", n);
            size_t coded = cobs_encode(again, bytes, (size_t)len);
            /* A run of 254 at the very end may be followed by an empty one or not. */
            CHECK((coded == n || coded == n + 1) && !memcmp(again, copy, n), "%zu bytes", n);
        }
        free(bytes);
        free(again);
        free(copy);
    }
    u8 past[] = {3, 1};
    u8 zero[] = {3, 1, 0, 1};
    u8 code[] = {2, 1, 0};
    CHECK(cobs_decode(past, 2) == -1 && cobs_decode(zero, 4) == -1 && cobs_decode(code, 3) == -1,
          "known bad ones");
}

int main(void)
{
    tap_begin();
    RUN(format_numbers);
    RUN(format_text);
    RUN(format_pointers);
    RUN(format_random);
    RUN(format_truncation);
    RUN(memory_copy);
    RUN(memory_move);
    RUN(memory_compare);
    RUN(strings);
    RUN(string_copies);
    RUN(numbers);
    RUN(checksums);
    RUN(cobs_known);
    RUN(cobs_round_trips);
    RUN(cobs_garbage);
    RUN(format_corners);
    return tap_end();
}
